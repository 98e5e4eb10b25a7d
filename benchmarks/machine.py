"""What the timings are to be read against: the machine, the versions, and its measured peaks.

The peak FMA rate comes from a loop of independent fused multiply-adds on registers, compiled here for this CPU (no C
compiler: no fraction of peak is printed). The peak bandwidth is NumPy's copyto over the same number of bytes as the
work touches, because a copy within the cache is many times faster than one from memory.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

PACKAGES = ("numpy", "torch", "scikit-learn", "scipy", "numba", "pykeops", "POT", "geomloss", "prdc")
FMA_SOURCE = """
#ifdef __AVX512F__
enum { BYTES = 64, CHAINS = 16 };
#elif defined __AVX__
enum { BYTES = 32, CHAINS = 12 };
#else
enum { BYTES = 16, CHAINS = 12 };
#endif
typedef float vector __attribute__((vector_size(BYTES)));

/* n rounds of CHAINS independent multiply-adds; returns how many flop a round has. */
int fma_rounds(long n, float start) {
  vector x[CHAINS], a = start - (vector){}, b = a * 0.5f;
  for (int k = 0; k < CHAINS; ++k) x[k] = a + (float)k;
  for (long i = 0; i < n; ++i)
    for (int k = 0; k < CHAINS; ++k) x[k] = x[k] * a + b;
  for (int k = 0; k < CHAINS; ++k) __asm__ volatile("" : : "x"(x[k]));
  return 2 * CHAINS * BYTES / sizeof(float);
}
"""


def _at_once(threads: int, work: Callable[[int], object]) -> float:
    """Seconds until work(i) is done on all threads, the best of fifteen."""
    with ThreadPoolExecutor(threads) as pool:
        best = float("inf")
        for _ in range(15):
            start = time.perf_counter()
            list(pool.map(work, range(threads)))
            best = min(best, time.perf_counter() - start)
    return best


@cache
def fma_peak(threads: int) -> float | None:
    """float32 flop per second of fused multiply-adds on registers, or None without a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "fma.c"), Path(folder, "fma.so")
        source.write_text(FMA_SOURCE)
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops", "-shared", "-fPIC"]
        if subprocess.run([compiler, *flags, source, "-o", library], stderr=subprocess.DEVNULL).returncode:
            return None
        rounds = ctypes.CDLL(str(library)).fma_rounds  # ctypes releases the GIL
    rounds.argtypes = [ctypes.c_long, ctypes.c_float]
    n, flop = 4_000_000, rounds(1, 0.5)
    return threads * n * flop / _at_once(threads, lambda i: rounds(n, 0.5))


@cache
def copy_peak(nbytes: int, threads: int) -> float:
    """Bytes read and written per second by copies that touch `nbytes` in all."""
    n = max(1, nbytes // (2 * threads))
    pairs = [(np.ones(n, np.uint8), np.zeros(n, np.uint8)) for _ in range(threads)]
    repeats = max(1, 300_000_000 // nbytes)

    def work(i: int) -> None:
        for _ in range(repeats):
            np.copyto(pairs[i][1], pairs[i][0])

    return 2 * n * threads * repeats / _at_once(threads, work)


@cache
def cpuinfo(key: str) -> str:
    """What Linux says about the first CPU."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(rf"^{key}\s*: (.*)$", text, re.M)
    return found[1] if found else ""


def has(flag: str) -> bool:
    """Whether the CPU has an instruction set, by Linux's name of it."""
    return flag in cpuinfo("flags").split()


def describe() -> dict[str, object]:
    """CPU model, cores, instruction sets, operating system, and the versions of everything that is measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        "family": f"{cpuinfo('cpu family')}/{cpuinfo('model')}",
        "cores": cores,
        "isa": [f for f in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16") if has(f)],
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": sys.version.split()[0],
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
