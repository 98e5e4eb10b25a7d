"""generant beside torch on a GPU, timed by device events: python benchmarks/gpu.py [FAMILY ...] [--json FILE]

Contenders take turns on one stream and on the same numbers; agreement is checked first. Before the table the card's own
measures are taken: the bandwidth of a copy and of a fill, and the rate of a large float32 and bf16 matrix product. A
row that loses is printed losing. `--small` runs tiny sizes, on torch's CPU tensors where there is no GPU, to see that
everything works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

ROUNDS, TARGET_MS = 7, 20.0  # of timing, and how long one round of a contender should take


class Clock:
    """Milliseconds between two points of the current stream."""

    def __init__(self, cp: Any) -> None:
        self.cp = cp

    def time(self, call: Any, repeats: int) -> float:
        """Milliseconds per call."""
        first, last = self.cp.cuda.Event(), self.cp.cuda.Event()
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        last.synchronize()
        return self.cp.cuda.get_elapsed_time(first, last) / repeats

    def repeats(self, call: Any) -> int:
        for _ in range(3):
            call()
        return max(1, min(1000, int(TARGET_MS / max(self.time(call, 3), 1e-3))))


def measure(clock: Clock, contenders: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Median and least milliseconds of every contender; they take turns."""
    counts = {name: clock.repeats(call) for name, call in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            times[name].append(clock.time(call, counts[name]))
    return {name: {"median_ms": statistics.median(t), "min_ms": min(t)} for name, t in times.items()}


def machine(cp: Any, torch: Any, clock: Clock, small: bool) -> dict[str, float]:
    """What this card can do, as torch reaches it."""
    n = 1 << (16 if small else 28)
    a = torch.zeros(n, device=_where(torch))
    b = torch.empty_like(a)
    m = 128 if small else 8192
    x = torch.randn(m, m, device=a.device)
    half = x.to(torch.bfloat16)
    found = {}
    for name, call, work in (
        ("copy_bytes_per_s", lambda: b.copy_(a), 8.0 * n),
        ("fill_bytes_per_s", lambda: b.fill_(1), 4.0 * n),
        ("float32_flops", lambda: x @ x, 2.0 * m**3),
        ("bf16_flops", lambda: half @ half, 2.0 * m**3),
    ):
        found[name] = work / (measure(clock, {"torch": call})["torch"]["min_ms"] * 1e-3)
    return found


def _where(torch: Any) -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def agreement(case: Any, cp: Any) -> float | None:
    """The largest difference to torch, of the largest value."""
    if case.tolerance is None:
        return None
    ours = _numbers(case.ours())
    worst = 0.0
    for call in case.torch.values():
        theirs = _numbers(case.compare(call()))
        if ours.shape != theirs.shape:
            raise AssertionError(f"{case.name}: shape {ours.shape}, torch has {theirs.shape}")
        worst = max(worst, float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)))
    if not worst <= case.tolerance:
        raise AssertionError(f"{case.name}: differs from torch by {worst:.2e} of the largest value")
    return worst


def _numbers(y: Any) -> np.ndarray:
    y = y.detach().float().cpu().numpy() if hasattr(y, "detach") else y.get()
    return y.astype(np.float64)


def row(case: Any, cp: Any, clock: Clock, peak: dict[str, float]) -> dict[str, Any]:
    """One case measured, as it goes into the JSON file."""
    error = agreement(case, cp)
    times = measure(clock, {"generant": case.ours, **case.torch})
    seconds = times["generant"]["median_ms"] * 1e-3
    made: dict[str, Any] = {
        "name": case.name,
        "goal": case.goal,
        "like": case.like,
        "difference": error,
        "times": times,
    }
    made["ratios"] = {
        name: t["median_ms"] / times["generant"]["median_ms"] for name, t in times.items() if name != "generant"
    }
    if case.bytes:
        made["of_memory"] = case.bytes / seconds / peak[f"{case.like}_bytes_per_s"]
    if case.flops:
        made["tflops"] = case.flops / seconds / 1e12
        made["of_products"] = case.flops / seconds / peak["bf16_flops" if "bf16" in case.name else "float32_flops"]
    if case.pairs:
        made["pairs_per_s"] = case.pairs / seconds
    return made


def line(made: dict[str, Any]) -> str:
    parts = [f"{made['times']['generant']['median_ms']:9.4f} ms"]
    parts += [f"{ratio:5.2f}x {name}" for name, ratio in made["ratios"].items()]
    if "of_memory" in made:
        parts.append(f"{100 * made['of_memory']:.0f} % of {made['like']}")
    if "tflops" in made:
        parts.append(f"{made['tflops']:.1f} TFLOP/s, {100 * made['of_products']:.0f} % of a large product")
    if "pairs_per_s" in made:
        parts.append(f"{made['pairs_per_s']:.2e} pairs/s")
    if made["goal"]:
        parts.append(f"goal {made['goal']}")
    return f"{made['name']:<64} " + ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    import torch

    if os.environ.get("GENERANT_CUDA_HOST"):  # the simulation of the tests: says nothing about time
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
        import cuda_device

        cuda_device.device()
    from gpu_cases import FAMILIES as KERNELS
    from gpu_models import model_cases

    families = {**KERNELS, "models": model_cases}

    from generant import show_config
    from generant.ops import _device

    cp = _device.cupy("gpu.py")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    clock = Clock(cp)
    peak = machine(cp, torch, clock, arguments.small)
    config = {k: str(v) for k, v in show_config().items()}
    print(config["CUDA"], f"torch {torch.__version__}")
    print(", ".join(f"{name} {value:.3g}" for name, value in peak.items()))
    about: dict[str, Any] = {"config": config, "torch": torch.__version__, "python": platform.python_version()}
    about |= {"machine": peak, "small": arguments.small}
    rows, failed = [], 0
    for family in arguments.families or families:
        if family not in families:
            parser.error(f"no family {family!r}; there are: {', '.join(families)}")
        try:
            cases = families[family](cp, torch, arguments.small)
        except Exception as error:  # the other families are still worth their time
            print(f"{family}: FAILED: {type(error).__name__}: {error}")
            failed += 1
            continue
        for case in cases:
            try:
                rows.append(row(case, cp, clock, peak))
                print(line(rows[-1]), flush=True)
            except Exception as error:
                print(f"{case.name}: FAILED: {type(error).__name__}: {error}", flush=True)
                failed += 1
        del cases
        cp.get_default_memory_pool().free_all_blocks()
        if arguments.json:  # after every family: a run that is cut off has written what it measured
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
