"""The device of the CUDA tests: a GPU with CuPy, or its simulation on the host.

GENERANT_CUDA_HOST names the compiled module `_cuda_host` (CMake: -DGENERANT_CUDA=HOST); it then takes the place of
`generant._cuda`, and tests/host_cuda/cupy the place of CuPy. Otherwise a GPU, CuPy and a build with CUDA are wanted.
GENERANT_RAW_ALLOCATOR=1 takes every array from the driver, so that compute-sanitizer knows where it ends.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

HOST = os.environ.get("GENERANT_CUDA_HOST", "")


def load_host_module(path: str) -> Any:
    """The simulated CUDA module as `generant._cuda`."""
    spec = importlib.util.spec_from_file_location("_cuda_host", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["generant._cuda"] = module
    from generant.ops import _device

    _device.cuda_module.cache_clear()  # pytest's header has asked already
    return module


def device() -> Any:
    """CuPy, or what stands in for it; the module that asks is skipped where there is neither."""
    if HOST:
        if "generant._cuda" not in sys.modules:
            load_host_module(HOST)
            sys.path.insert(0, str(Path(__file__).with_name("host_cuda")))
    elif importlib.util.find_spec("generant._cuda") is None:
        pytest.skip(
            "this build has no CUDA kernels, and GENERANT_CUDA_HOST names no simulation", allow_module_level=True
        )
    cupy = pytest.importorskip("cupy")
    if not HOST and not cupy.cuda.is_available():
        pytest.skip("no GPU here", allow_module_level=True)
    if os.environ.get("GENERANT_RAW_ALLOCATOR"):
        cupy.cuda.set_allocator(None)
    return cupy


def guards_hold(cupy: Any) -> None:
    """On the host: nothing was written beside an array."""
    if HOST:
        cupy.host_check()
