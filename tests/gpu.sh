#!/usr/bin/env bash
# Everything that needs a GPU, in one command and less than 9 minutes: tests/gpu.sh [FOLDER for results, default runs/gpu]
#
# Wanted: CUDA 13 (nvcc, compute-sanitizer), Python 3.10 or newer with CuPy 14, torch, NumPy, pytest, cmake, ninja,
# scikit-build-core, pybind11, safetensors and tqdm. No network. Builds generant with its CUDA kernels into a folder of
# its own; then parity of every op in both precisions, random bits beside the CPU's, models, the demo, the kernels under
# compute-sanitizer at small sizes, and the benchmarks. Every part has its limit (530 s together) and is run whatever
# became of the others; the exit status is 0 if all passed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-runs/gpu}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
python=${PYTHON:-python3}
capability=$("$python" -c 'import cupy; print(cupy.cuda.Device(0).compute_capability)') || exit 2
case $capability in 90 | 100) architecture=${capability}a-real ;; *) architecture=$capability-real ;; esac
failed=()

part() { # part NAME SECONDS command ...
  local name=$1 limit=$2 begun=$SECONDS
  shift 2
  printf '\n=== %s\n' "$name"
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    tail -n "${LINES_SHOWN:-3}" "$out/$name.log"
    printf '=== %s: passed in %d s\n' "$name" $((SECONDS - begun))
  else
    tail -n 40 "$out/$name.log"
    printf '=== %s: FAILED after %d s (%s)\n' "$name" $((SECONDS - begun)) "$out/$name.log"
    failed+=("$name")
  fi
}

part build 150 "$python" -m pip install --no-index --no-deps --no-build-isolation --target "$work/site" . \
  -Ccmake.define.GENERANT_CUDA=ON -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture" -Cbuild-dir="$work/build"
export PYTHONPATH=$work/site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=Agg
"$python" -c 'import generant; print(generant.show_config())' | tee "$out/config.log" || exit 1

part parity 150 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_*.py
LINES_SHOWN=20 part demo 40 "$python" -m generant.cli demo --quick --backend cuda --out "$out/demo"
for tool in memcheck racecheck; do
  GENERANT_TEST_SMALL=1 GENERANT_RAW_ALLOCATOR=1 part "$tool" 55 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    --target-processes all "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_ops.py
done
LINES_SHOWN=60 part benchmarks 80 "$python" benchmarks/gpu.py --json "$out/gpu.json"

printf '\n%d s in all; failed: %s\n' "$SECONDS" "${failed[*]:-nothing}"
[ ${#failed[@]} = 0 ]
