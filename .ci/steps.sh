# The steps of .ci/run. Each works on the clean copy in $src, keeps its files in $work, and stands alone: what it needs
# is made by the functions at the top when it is first asked for.

say() { printf -- '--- %s\n' "$*"; }
die() { printf 'error: %s\n' "$*"; return 1; }

# The README's second command in a fresh environment, timed: a cold build must take less than 4 minutes.
test_environment() {
  [ ! -d "$work/test" ] || return 0
  python3 -m venv "$work/test"
  local begun=$SECONDS cpu
  times >"$work/times"
  say "pip install '.[test]'"
  "$work/test/bin/pip" install -qq '.[test]'
  times >>"$work/times"
  cpu=$(python3 .ci/cpu_seconds.py "$work/times")
  say "installed, cold build included, in $((SECONDS - begun)) s; $cpu s of processor time"
  [ "$cpu" -lt 480 ] || die "a cold build takes more than 4 minutes on 2 cores"
}

# Build tools for steps that build without isolation, so that one build folder serves them all.
tools_environment() {
  [ ! -d "$work/tools" ] || return 0
  python3 -m venv "$work/tools"
  "$work/tools/bin/pip" install -qq 'scikit-build-core>=0.11' 'pybind11>=3.0' cmake ninja build ruff mypy numpy
}

suite() { # suite NAME [pytest arguments]: the tests against the installed package
  local name=$1
  shift
  test_environment
  "$work/test/bin/python" -m pytest -q -r fE -p no:cacheprovider --junitxml="$tests/$name.xml" "$@"
}

wheel_of() { # wheel_of FOLDER: the one wheel in it
  local wheels=("$1"/*.whl)
  [ ${#wheels[@]} = 1 ] && [ -e "${wheels[0]}" ] || die "wanted one wheel in $1, found: ${wheels[*]}" || return 1
  echo "${wheels[0]}"
}

smaller() { # smaller FILE KILOBYTES
  local kilobytes=$(($(stat -c %s "$1") / 1000))
  say "$(basename "$1"): $kilobytes kB"
  [ "$kilobytes" -lt "$2" ] || die "$1 is larger than $2 kB"
}

fresh() { # fresh NAME: an empty virtual environment
  rm -rf "${work:?}/$1"
  python3 -m venv "$work/$1"
}

# One line in the form of pytest's own, over every run of pytest.
closing_line() {
  python3 - "$tests" <<'PY'
import sys
from pathlib import Path
from xml.etree import ElementTree

total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
for path in sorted(Path(sys.argv[1]).glob("*.xml")):
    for run in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in total:
            total[name] += int(run.get(name, 0))
bad = total["failures"] + total["errors"]
print(f"{total['tests'] - bad - total['skipped']} passed, {bad} failed, {total['skipped']} skipped")
PY
}

# ---- the tests ------------------------------------------------------------------------------------------------------

step_test_command() { # pip install '.[test]' && pytest
  suite native
  "$work/test/bin/generant" info
}

step_suite_numba() {
  GENERANT_BACKEND=numba suite numba -m "not once"
}

step_suite_isas() { # the widest one the machine has is what step_test_command ran on
  test_environment
  local isa widest
  widest=$("$work/test/bin/python" -c 'from generant import _native; print(_native.supported_isas[0])')
  for isa in base avx2 avx512 avx512bf16; do
    if [ "$isa" = "$widest" ]; then
      say "$isa: the widest here, run already"
    elif "$work/test/bin/python" -c "from generant import _native; assert '$isa' in _native.supported_isas" 2>/dev/null; then
      say "GENERANT_ISA=$isa"
      GENERANT_ISA=$isa suite "$isa" -m "not once"
    else
      say "$isa: skipped, this CPU does not have it"
    fi
  done
}

step_torch() { # parity with torch and diffusers, in an environment of its own: the others must not depend on it
  test_environment
  fresh torch
  "$work/torch/bin/pip" install -qq torch==2.13.0
  "$work/torch/bin/pip" install -qq diffusers==0.42.0 || say "diffusers cannot be installed here: its tests are skipped"
  local files
  mapfile -t files < <(grep -lE 'importorskip\("torch"\)' tests/*.py)
  say "${files[*]}"
  local packages
  packages=$("$work/test/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$packages" >"$("$work/torch/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/test.pth"
  "$work/torch/bin/python" -m pytest -q -r fE -p no:cacheprovider --junitxml="$tests/torch.xml" "${files[@]}"
}

step_demo() { # pip install '.[demo]' && generant demo, two more seeds, and the smoke run on both backends
  fresh demo
  say "pip install '.[demo]' && generant demo"
  "$work/demo/bin/pip" install -qq '.[demo]'
  demo
  demo --seed 1 --out runs/seed-1
  demo --seed 2 --out runs/seed-2
  python3 .ci/demo_scores.py "$work"/runs/{demo,seed-1,seed-2}/metrics.json
  demo --quick --out runs/quick
  "$work/demo/bin/pip" install -qq numba
  demo --quick --backend numba --out runs/numba
  local folder file
  for folder in demo quick numba; do
    for file in samples.png loss.png metrics.json model.safetensors config.json; do
      [ -s "$work/runs/$folder/$file" ] || die "the demo wrote no $folder/$file"
    done
  done
}

demo() { # demo [arguments]: the command, its progress bar kept out of the log
  say "generant demo $*"
  (cd "$work" && demo/bin/generant demo "$@") 2>"$work/demo.log" || { tail -c 2000 "$work/demo.log"; return 1; }
}

step_lint() {
  tools_environment
  test_environment
  "$work/tools/bin/ruff" check .
  "$work/tools/bin/mypy" --python-executable "$work/test/bin/python"
}

# ---- packaging ------------------------------------------------------------------------------------------------------

built_wheel() { # the wheel, built from the sdist: whatever it needs must be in there
  if [ ! -d "$work/wheel" ]; then
    tools_environment
    "$work/tools/bin/python" -m build -q --no-isolation --sdist --outdir "$work/sdist" . >&2
    mkdir -p "$work/unpacked"
    tar -xzf "$work"/sdist/*.tar.gz --strip-components=1 -C "$work/unpacked"
    PATH=$work/tools/bin:$PATH "$work/tools/bin/pip" wheel -qq --no-deps --no-build-isolation -Cbuild-dir="$work/build" \
      -w "$work/wheel" "$work/unpacked" >&2
  fi
  wheel_of "$work/wheel"
}

step_wheel() {
  local wheel
  wheel=$(built_wheel)
  smaller "$work"/sdist/*.tar.gz 1000 || { tar -tzvf "$work"/sdist/*.tar.gz | sort -nrk3 | sed 10q; return 1; }
  smaller "$wheel" 3000
  python3 -m zipfile -l "$wheel" >"$work/listing"
  grep -q '^generant/_native\..*\.so ' "$work/listing" || die "the wheel holds no compiled module"
  if grep -E '\.(cpp|h|o) |^tests/|^benchmarks/' "$work/listing"; then die "the wheel holds what only a build needs"; fi
}

step_editable() { # and an edited kernel is compiled at the next import
  tools_environment
  fresh editable
  "$work/editable/bin/pip" install -qq 'scikit-build-core>=0.11' 'pybind11>=3.0' cmake ninja
  cp -r "$src" "$work/edited"
  (
    cd "$work/edited"
    export PATH=$work/editable/bin:$PATH
    pip install -qq --no-build-isolation -Ceditable.rebuild=true -Cbuild-dir=build -e .
    cd "$work"
    python -c 'import generant, numpy as np; assert generant.ops.square(np.full(3, 2.0)).tolist() == [4, 4, 4]'
    sed -i 's/m.doc() = "/&Edited. /' "$work/edited/csrc/bind.cpp"
    python -c 'from generant import _native; assert _native.__doc__.startswith("Edited."), _native.__doc__' >/dev/null
  )
}

step_objects() { # what the instruction sets' object files may not contain
  built_wheel >/dev/null
  GENERANT_BUILD_DIR=$work/build suite objects tests/test_layout.py
}

step_pure() { # GENERANT_PURE=1 and a compiler that fails both give a wheel without kernels, which says so
  tools_environment
  local how wheel
  for how in GENERANT_PURE=1 CXX=/bin/false; do
    rm -rf "$work/pure" "$work/copy"
    cp -r "$src" "$work/copy"
    env PATH="$work/tools/bin:$PATH" "$how" "$work/tools/bin/pip" wheel -qq --no-deps --no-build-isolation -w "$work/pure" "$work/copy"
    wheel=$(wheel_of "$work/pure")
    say "$how: $(basename "$wheel")"
    [[ $wheel == *-py3-none-any.whl ]] || die "$how gave $wheel"
  done
  fresh without
  "$work/without/bin/pip" install -qq "$wheel"
  (
    cd "$work"
    unset GENERANT_STRICT
    "$work/without/bin/generant" info | tee "$work/info"
    grep -q 'backend *definition' "$work/info" || die "the definitions should serve"
    "$work/without/bin/pip" install -qq "$wheel[numba]"
    "$work/without/bin/generant" info | grep -E 'backend *numba' || die "numba should serve"
    "$work/without/bin/python" -c 'from generant import ops; import numpy as np; print(ops.matmul(np.ones((2, 3)), np.ones((3, 2))))'
  )
}

# ---- CUDA ---------------------------------------------------------------------------------------------------------

cuda_configured() { # cuda_configured FOLDER [cmake arguments]
  local folder=$1
  shift
  PATH=$work/tools/bin:$PATH cmake -G Ninja -S "$src" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DGENERANT_ISAS=base \
    -Dpybind11_DIR="$("$work/tools/bin/python" -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$work/test/bin/python" "$@" >"$folder.log" || { cat "$folder.log"; return 1; }
}

step_cuda() { # the kernels over a simulated GPU; and compiled for a real one, where there is nvcc, to see what they need
  tools_environment
  test_environment
  cuda_configured "$work/cuda_host" -DGENERANT_CUDA=HOST
  "$work/tools/bin/ninja" -C "$work/cuda_host" --quiet _cuda_host
  GENERANT_CUDA_HOST=$(echo "$work"/cuda_host/_cuda_host*.so) suite cuda tests/test_cuda_*.py tests/test_cupy_stand_in.py
  if ! command -v nvcc >/dev/null; then
    say "compiling for sm_90a: skipped, nvcc is not installed"
    return 0
  fi
  # Kernels may spill nothing and have a budget of registers.
  cuda_configured "$work/cuda" -DGENERANT_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a-real \
    -DCMAKE_CUDA_FLAGS="-Werror=all-warnings -Xptxas=-v"
  "$work/tools/bin/ninja" -v -C "$work/cuda" _cuda >"$work/ptxas" 2>&1 || { grep -vE 'ptxas info|bytes stack' "$work/ptxas" | tail -50; return 1; }
  python3 .ci/cuda_registers.py "$work/ptxas"
  (cd "$work/cuda" && "$work/test/bin/python" -c 'import _cuda; print(len(_cuda.kernels()), "kernels;", _cuda.devices())')
}

# ---- memory, undefined behaviour, old CPUs --------------------------------------------------------------------------

step_sanitizers() { # the kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer
  tools_environment
  test_environment
  local python=$work/test/bin/python
  PATH=$work/tools/bin:$PATH cmake -G Ninja -S "$src" -B "$work/asan" -DCMAKE_BUILD_TYPE=Release \
    -DGENERANT_SANITIZE=address,undefined -Dpybind11_DIR="$("$work/tools/bin/python" -m pybind11 --cmakedir)" \
    -DPython_EXECUTABLE="$python" >"$work/asan.log" || { cat "$work/asan.log"; return 1; }
  "$work/tools/bin/ninja" -C "$work/asan" --quiet
  mkdir -p "$work/sanitized"
  cp -r "$src/python/generant" "$work/sanitized/"
  cp "$work"/asan/_native*.so "$work/sanitized/generant/"
  local preload isa
  preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
  for isa in $("$python" -c 'from generant import _native; print(*_native.supported_isas)'); do
    say "GENERANT_ISA=$isa"
    local sanitized=(env LD_PRELOAD="$preload" PYTHONMALLOC=malloc PYTHONPATH="$work/sanitized" GENERANT_ISA="$isa"
      ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "$python")
    # The gate works: a kernel that is made to write past its output is caught.
    if "${sanitized[@]}" .ci/overrun.py >"$work/overrun.log" 2>&1 || ! grep -q heap-buffer-overflow "$work/overrun.log"; then
      cat "$work/overrun.log"
      die "AddressSanitizer did not see an overrun"
    fi
    "${sanitized[@]}" -m pytest -q -r fE -p no:cacheprovider -p no:faulthandler --junitxml="$tests/sanitizers-$isa.xml" \
      tests/kernels_asan.py
  done
}

step_old_cpu() { # the baseline imports and runs where there is no AVX
  test_environment
  if ! command -v qemu-x86_64 >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "apt-get install qemu-user"
    (apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends qemu-user) >"$work/apt.log" 2>&1 ||
      tail -3 "$work/apt.log"
  fi
  if [ "$(uname -m)" != x86_64 ]; then
    say "skipped: this is no x86-64 machine"
  elif ! command -v qemu-x86_64 >/dev/null; then
    say "skipped: qemu-x86_64 is not installed and cannot be installed here"
  else
    local cpu python packages
    python=$("$work/test/bin/python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    packages=$("$work/test/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for cpu in Nehalem Haswell; do
      PYTHONPATH=$packages qemu-x86_64 -cpu "$cpu" "$python" .ci/old_cpu.py "$cpu" 2>&1 |
        { grep -v 'TCG doesn' || true; }
    done
  fi
}
