"""What this installation runs on, and how many threads it may use."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Any

from . import __version__
from .ops import _device, _dispatch

__all__ = ["get_num_threads", "set_num_threads", "show_config", "trim"]


class Config(dict):
    """A dict that prints as a table."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in self.items())


def show_config() -> Config:
    """Version, backend and why, instruction set, threads, CUDA state; a dict that prints as a table."""
    native: Any = _dispatch.native_module()
    config = Config(generant=__version__, python=platform.python_version(), backend=_dispatch.backend())
    if native is None:
        config["native kernels"] = f"not available: {_dispatch.native_error[0]}"
        config["ISA"] = "-"
    else:
        config["native kernels"] = len(native.kernels())
        cap = os.environ.get("GENERANT_ISA")
        capped = f"; capped by GENERANT_ISA={cap}" if cap else ""
        config["ISA"] = f"{native.isa} (this CPU: {', '.join(native.supported_isas)}{capped})"
    config["threads"] = get_num_threads()
    config["numba"] = _version("numba")
    config["CUDA"] = _cuda()
    config["torch interchange"] = "active" if "torch" in sys.modules else "torch not imported"
    return config


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda() -> str:
    """CUDA kernels, GPUs and CuPy, as far as there are any."""
    module: Any = _device.cuda_module()
    if module is None:
        return f"no CUDA kernels in this build; {_driver()}"
    kernels = f"{len(module.kernels())} kernels"
    answer = module.devices()
    if not answer["devices"]:
        return f"{kernels}; no GPU: {answer['reason'] or 'the driver knows none'}"
    found = [
        f"{d['name']} (sm_{d['capability'][0]}{d['capability'][1]}, {d['memory'] >> 30} GB)" for d in answer["devices"]
    ]
    packages = [name for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy") if _version(name) != "not installed"]
    cupy = f"CuPy {_version(packages[0])}" if packages else "CuPy is not installed: pip install 'generant[cuda13]'"
    return f"{kernels}; {', '.join(found)}; {cupy}"


def _driver() -> str:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no driver found"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return "the driver does not answer"
    return f"{count.value} device(s) present"


def get_num_threads() -> int:
    """How many threads a kernel may use."""
    native: Any = _dispatch.native_module()
    return native.get_num_threads() if native is not None else 1


def set_num_threads(n: int) -> None:
    """Let kernels use at most n threads. Results do not depend on it."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"set_num_threads: n must be an integer of at least 1, got {n!r}")
    native: Any = _dispatch.native_module()
    if native is not None:
        native.set_num_threads(n)


def trim() -> None:
    """Give the memory cached for reuse back to the system."""
    native: Any = _dispatch.native_module()
    if native is not None:
        native.trim()
