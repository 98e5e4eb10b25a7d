"""How a Numba twin registers itself, and how its loops are compiled.

`kernel` marks the twin of an op: a plain function (*inputs, *outputs, *attributes) that writes into the outputs; absent
inputs and unwanted outputs are None. `jit` compiles the loops inside. Never parallel: Numba's OpenMP layer dies after
fork and its workqueue aborts under Python threads. Compiled code is cached under a hash of these sources; where no
cache folder can be written, nothing is cached.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

KERNELS: dict[str, Callable[..., None]] = {}


def _cache_folder() -> str | None:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "generant"
    )
    folder = os.path.join(root, "numba-" + digest.hexdigest()[:16])
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


_CACHE = _cache_folder()


def jit(function: Callable) -> Any:
    """numba.njit with the library's settings: no GIL, no fastmath, IEEE division, cached where possible."""
    import numba

    if _CACHE is not None:
        numba.config.CACHE_DIR = _CACHE
    return numba.njit(nogil=True, fastmath=False, error_model="numpy", cache=_CACHE is not None)(function)


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Register the Numba twin of the op of the same name."""
    KERNELS[function.__name__] = function
    return function
