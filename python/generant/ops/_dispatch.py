"""Which backend runs, and how foreign arrays come in and go out.

The only place that looks at array types, beside _device.py for arrays on a GPU. NumPy arrays go straight to the
kernels; torch CPU tensors enter by DLPack without a copy and results leave as torch tensors, and torch is never
imported here: a tensor can only exist if the user imported it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

BACKENDS = ("native", "numba", "definition")
FLOATS = ("float32", "float64")
ISAS = ("base", "avx2", "avx512", "avx512bf16")


@cache
def native_module() -> ModuleType | None:
    """The compiled module, or None (see `native_error`)."""
    cap = os.environ.get("GENERANT_ISA", "")
    if cap and cap not in ISAS:
        raise ValueError(f"GENERANT_ISA is {cap!r}, wanted one of {', '.join(ISAS)}")
    try:
        from .. import _native
    except ImportError as error:
        native_error.append(str(error))
        return None
    from .. import _threadpoolctl

    _threadpoolctl.announce()
    return _native


native_error: list[str] = []  # why the compiled module could not be imported


@cache
def numba_kernels() -> dict[str, Callable[..., None]] | None:
    """The Numba twins by op name, or None where Numba is not installed."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return None
    from ._numba import KERNELS

    return KERNELS


@cache
def backend() -> str:
    """The backend in use: GENERANT_BACKEND if set, else native, else numba, else definition."""
    asked = os.environ.get("GENERANT_BACKEND", "")
    if asked and asked not in BACKENDS:
        raise ValueError(f"GENERANT_BACKEND is {asked!r}, wanted one of {', '.join(BACKENDS)}")
    if asked == "native" and native_module() is None:
        raise ImportError(f"GENERANT_BACKEND=native, but the compiled module cannot be imported: {native_error[0]}")
    if asked == "numba" and numba_kernels() is None:
        raise ImportError("GENERANT_BACKEND=numba, but numba is not installed: pip install 'generant[numba]'")
    if asked:
        return asked
    if native_module() is not None:
        return "native"
    if strict():
        raise ImportError(f"GENERANT_STRICT=1 and the compiled module cannot be imported: {native_error[0]}")
    return "numba" if numba_kernels() is not None else "definition"


def strict() -> bool:
    """Whether a fallback to a slower backend is an error (GENERANT_STRICT=1)."""
    return os.environ.get("GENERANT_STRICT", "") not in ("", "0")


def is_torch(x: Any) -> bool:
    """Whether x is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def from_torch(op: str, name: str, x: Any) -> np.ndarray:
    """A torch CPU tensor as a NumPy array over the same memory."""
    if x.device.type != "cpu":
        raise TypeError(f"{op}: {name} is a torch tensor on {x.device}, wanted cpu; call .cpu() first")
    if x.layout is not sys.modules["torch"].strided:
        raise TypeError(f"{op}: {name} is a torch tensor with layout {x.layout}; call .to_dense() first")
    try:
        return np.from_dlpack(x.detach().resolve_conj().resolve_neg())
    except (TypeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{op}: {name} is a torch tensor of {x.dtype}, wanted float32 or float64") from error


def to_host(where: str, name: str, x: Any) -> Any:
    """x, or its NumPy array on the host if it is a torch CPU tensor or a CuPy array."""
    if is_torch(x):
        return from_torch(where, name, x)
    return x.get() if type(x).__module__.split(".")[0] == "cupy" else x


def to_torch(x: Any) -> Any:
    """A NumPy or CuPy array as a torch tensor over the same memory."""
    foreign = isinstance(x, np.ndarray) or (hasattr(type(x), "__cuda_array_interface__") and not is_torch(x))
    return sys.modules["torch"].from_dlpack(x) if foreign else x


def as_dense(op: str, name: str, x: Any, dtype: np.dtype | None, in_place: bool) -> np.ndarray:
    """x as a dense NumPy array of native byte order: as it is where possible, a copy if strided."""
    if is_torch(x):
        x = from_torch(op, name, x)
    elif isinstance(x, (int, float, np.generic)) and not isinstance(x, bool) and not in_place:
        return scalar(op, name, x, dtype)
    elif not isinstance(x, np.ndarray):
        kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
        hint = "; call cupy.asnumpy first" if kind.startswith("cupy") else "; call numpy.asarray first"
        raise TypeError(f"{op}: {name} must be an array, got {kind}{hint}")
    if x.dtype.kind not in "fiu" or x.dtype == np.float16:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {x.dtype}; convert it with .astype first")
    if in_place:
        if not (x.flags.c_contiguous and x.flags.aligned and x.flags.writeable and x.dtype.isnative):
            raise ValueError(f"{op}: {name} is changed in place and must be contiguous, aligned and writeable")
        return x if type(x) is np.ndarray else x.view(np.ndarray)
    dense = np.require(x, x.dtype.newbyteorder("="), ["C", "A"])
    return dense if type(dense) is np.ndarray else dense.view(np.ndarray)


def scalar(op: str, name: str, x: Any, dtype: np.dtype | None) -> np.ndarray:
    """A number as an array without dimensions: Python's of the dtype that is wanted, NumPy's of their own."""
    if not isinstance(x, (int, float)):
        return np.asarray(x)
    try:
        made = np.asarray(x, dtype or np.float64)
    except (OverflowError, ValueError):
        made = None
    if made is None or (made.dtype.kind in "iu" and made != x):
        raise ValueError(f"{op}: {name} must be a number of dtype {np.dtype(dtype or np.float64)}, got {x!r}")
    return made


def float_type_of(arrays: Sequence[Any]) -> np.dtype | None:
    """The float dtype of the first array that has one, to give Python numbers a dtype."""
    for a in arrays:
        if isinstance(a, np.ndarray) and a.dtype.kind == "f":
            return a.dtype
        if is_torch(a) or hasattr(type(a), "__cuda_array_interface__"):
            name = str(a.dtype).removeprefix("torch.")
            if name in FLOATS:
                return np.dtype(name)
    return None
