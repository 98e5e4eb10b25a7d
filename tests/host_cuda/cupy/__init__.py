"""A stand-in for CuPy 14 whose device memory is the host's: kernels compiled for the host run on its arrays.

It keeps CuPy's rules where a program can break them (see _array), counts what crosses between host and device in
host_transfers, and finds writes out of bounds with host_check. No speed, no random numbers, no kernels of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _names, cuda, linalg
from ._array import garbage, ndarray, new, unwrap
from ._call import call, lift, ufunc
from .cuda.memory import MemoryPointer, MemoryPool, _default_pool, host_check, host_transfers

__all__ = ["cuda", "host_check", "host_transfers", "linalg", "ndarray", "ufunc"]

__version__ = "14.2.0"
newaxis = None
nan, inf, pi, e, euler_gamma = np.nan, np.inf, np.pi, np.e, np.euler_gamma


def __getattr__(name: str) -> Any:
    if name not in _names.FUNCTIONS or not hasattr(np, name):
        raise AttributeError(f"module 'cupy' has no attribute '{name}'")
    return lift(np, name)


def is_available() -> bool:
    return cuda.is_available()


def get_default_memory_pool() -> MemoryPool:
    return _default_pool


def get_array_module(*args: Any) -> Any:
    """This module if an argument is one of its arrays, else numpy."""
    import sys

    return sys.modules[__name__] if any(isinstance(a, ndarray) for a in args) else np


# Arrays from data


def _on_device(obj: Any) -> bool:
    return isinstance(obj, ndarray) or (isinstance(obj, list | tuple) and any(_on_device(x) for x in obj))


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: str | None = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """obj on the device: an array there as it is where copy allows it, anything else as a copy."""
    order = order or "K"
    if subok:
        raise NotImplementedError
    if not isinstance(obj, ndarray) and hasattr(obj, "__cuda_array_interface__"):
        obj = _foreign(obj)
    if isinstance(obj, ndarray):
        a = obj.astype(obj.dtype if dtype is None else dtype, order, copy=copy)
        if copy is False and a is not obj:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
    elif _on_device(obj):
        a = new(np.array(call(np.stack, [array(x, copy=None) for x in obj])._host, dtype))
    elif copy is False:
        raise ValueError("Unable to avoid copy while creating an array as requested.")
    else:
        host = np.array(obj, dtype, order=order)
        a = new(host)
        host_transfers["to_device"] += 1
    return a if a.ndim >= ndmin else a.reshape((1,) * (ndmin - a.ndim) + a.shape)


def asarray(
    a: Any, dtype: Any = None, order: str | None = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, copy, order, blocking=blocking)


asanyarray = asarray


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, None, "C", ndmin=1)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    """a on the host; what is there already stays as it is."""
    if hasattr(a, "__cuda_array_interface__"):
        return asarray(a).get(stream, order, out, blocking)
    if out is None:
        return np.asarray(a, order=order)
    out[...] = a
    return out


def _foreign(obj: Any) -> ndarray:
    """A device array over the memory of another library's."""
    interface = obj.__cuda_array_interface__
    dtype, shape, strides = np.dtype(interface["typestr"]), interface["shape"], interface.get("strides")
    steps = strides or [dtype.itemsize * int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
    size = sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + dtype.itemsize if 0 not in shape else 0
    return ndarray(shape, dtype, MemoryPointer(cuda.UnownedMemory(interface["data"][0], size, obj), 0), strides)


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    """The same memory as another device array; arrays of the host are refused, as by CuPy."""
    if not isinstance(array, ndarray):
        raise TypeError(
            "CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))` instead."
        )
    return array.copy() if copy else ndarray(array.shape, array.dtype, array.data, array.strides)


# Arrays of a shape


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    """An array of garbage, laid out like the prototype, which may be on the host."""
    host = unwrap(prototype) if isinstance(prototype, ndarray) else np.asarray(prototype)
    like = np.empty_like(host, dtype, order, shape=shape)
    if like.flags.forc or not like.size:
        return ndarray(like.shape, like.dtype, order="F" if like.flags.fnc else "C")
    a = ndarray(like.shape, like.dtype, cuda.alloc(like.nbytes), like.strides)
    garbage(unwrap(a))
    return a


def full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None
) -> ndarray:
    out = empty_like(a, dtype, order, subok, shape)
    out.fill(fill_value)
    return out


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    return full_like(a, 0, dtype, order, subok, shape)


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: None = None, shape: Any = None) -> ndarray:
    return full_like(a, 1, dtype, order, subok, shape)


# Memory


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if isinstance(src, np.ndarray) and src.ndim:
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    call(np.copyto, dst, src, casting=casting, where=True if where is None else where)


def may_share_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return np.may_share_memory(unwrap(a), unwrap(b))


def shares_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return np.shares_memory(unwrap(a), unwrap(b))
