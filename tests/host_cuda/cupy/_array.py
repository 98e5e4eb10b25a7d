"""cupy.ndarray whose memory the host can reach: NumPy inside, CuPy's rules outside.

The rules that programs trip over are CuPy's: no implicit conversion, no numpy.ndarray as an operand, reductions and
single elements that stay arrays, views that know their base. Results, errors of indexing included, are NumPy's, so
an index array out of bounds raises here and wraps around there.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from . import _names
from .cuda import memory
from .cuda.device import Device
from .cuda.memory import MemoryPointer, host_transfers
from .cuda.runtime import streamLegacy
from .cuda.stream import get_current_stream

_OPERANDS = (np.ndarray, np.generic, bool, int, float, complex)


def garbage(host: np.ndarray) -> None:
    """What memory holds before it is written: NaN, 0x5A in every byte of an integer, True."""
    if host.dtype.kind in "fc":
        host.fill(np.nan)
    elif host.dtype.kind == "b":
        host.fill(True)
    elif host.size:
        host.ravel("K").view(np.uint8).fill(0x5A)


def unwrap(a: ndarray) -> np.ndarray:
    return a._host


def new(host: Any) -> ndarray:
    """A device array with the contents of a host array, in its order if that is C's or Fortran's."""
    host = np.asarray(host)
    a = ndarray(host.shape, host.dtype, order="F" if host.flags.fnc else "C")
    a._host[...] = host
    return a


def view_of(source: ndarray, host: np.ndarray) -> ndarray:
    """A view of source: the device array for a host array that lies in source's memory."""
    a = object.__new__(ndarray)
    a._host, a._memory = host, source._memory
    a.base = source if source.base is None else source.base
    return a


class Flags:
    """c_contiguous, f_contiguous, owndata, fnc and forc, as attributes and as items."""

    def __init__(self, host: np.ndarray, owndata: bool):
        self.c_contiguous, self.f_contiguous, self.owndata = host.flags.c_contiguous, host.flags.f_contiguous, owndata
        self.fnc, self.forc = host.flags.fnc, host.flags.forc

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        return getattr(self, name.lower())

    def __repr__(self) -> str:
        return "\n".join(f"  {n} : {self[n]}" for n in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"))


class ndarray:
    """An array on the device, of garbage unless memptr says where its contents are."""

    __slots__ = ("__weakref__", "_host", "_memory", "base")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: Any = "C"):
        shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(s) for s in shape)
        dtype = np.dtype(dtype)
        if min(shape, default=0) < 0:
            raise ValueError("Negative dimensions are not allowed")
        if dtype.kind in "OSUmM":
            raise ValueError(f"Unsupported dtype {dtype}")
        if order not in (None, "C", "F"):
            raise ValueError(f"order not understood. order={order}")
        if strides is not None and memptr is None:
            raise ValueError("memptr is required if strides is given.")
        pointer = memory.alloc(int(np.prod(shape, dtype=object)) * dtype.itemsize) if memptr is None else memptr
        self._memory, self.base = pointer.mem, None
        self._host = memory._view(pointer, shape, dtype, strides, order or "C")
        if memptr is None:
            self._memory._label = f"array of shape {shape} and dtype {dtype}"
            garbage(self._host)

    # What it is

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host, self.base is None))
    device = property(lambda self: Device(self._memory.device_id))
    T = property(lambda self: self if self.ndim < 2 else self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))
    real = property(lambda self: self if self.dtype.kind != "c" else view_of(self, self._host.real))
    imag = property(lambda self: new(self._host.imag) if self.dtype.kind != "c" else view_of(self, self._host.imag))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        host = self._host.view()
        try:
            reshaped = host.reshape(shape)
        except ValueError:
            raise ValueError(f"cannot reshape array of size {self.size} into shape {shape}") from None
        if self.size and not np.shares_memory(reshaped, host):
            raise AttributeError("Incompatible shape for in-place modification. Use `.reshape()` to make a copy.")
        self._host = reshaped

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self._memory, self._host.ctypes.data - self._memory.ptr)

    # What others see of it

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": get_current_stream().ptr or streamLegacy,
            "version": 3,
            "strides": None if self._host.flags.c_contiguous else self.strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        return self._host.__dlpack__(max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self) -> tuple[int, int]:
        """The CPU, which is not what CuPy says, but where the memory is."""
        return 1, 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, function: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        module = _module()
        if function.__name__ not in _names.FUNCTIONS:
            return NotImplemented
        if "out" in kwargs:
            if len(kwargs["out"]) != 1:
                raise ValueError("The 'out' parameter must have exactly one array value")
            kwargs["out"] = kwargs["out"][0]
        for x in (*inputs, *([kwargs["out"]] if "out" in kwargs else [])):
            if method == "__call__" and not isinstance(x, (ndarray, *_OPERANDS)):
                return NotImplemented
        if function.__name__ in _names.COMPARISONS.values():
            inputs = tuple(x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs)
        return getattr(getattr(module, function.__name__), method)(*inputs, **kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        try:
            path = function.__module__.split(".")[1:]
            own = getattr(functools.reduce(getattr, path, _module()), function.__name__)
        except AttributeError:
            return NotImplemented
        if own is function or not all(t in (ndarray, np.ndarray) for t in types):
            return NotImplemented
        return own(*args, **kwargs)

    # To the host and back

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy on the host."""
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
            if self.dtype != out.dtype:
                raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
            if self.shape != out.shape:
                raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        elif order.upper() not in ("A", "C", "F"):
            raise ValueError(f"unsupported order: {order}")
        host_transfers["to_host"] += 1
        if out is None:
            return self._host.copy(order.upper())
        out[...] = self._host
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self._host.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        host_transfers["to_device"] += 1
        self._host[...] = arr

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get()) if self.size else False

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __reduce__(self) -> Any:
        return _module().array, (self.get(),)

    # Elements

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Any:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        key = _index(key)
        host = self._host[key]
        if isinstance(host, np.generic):  # an element: where it is, rather than a copy of it
            host = self._host[(*(key if isinstance(key, tuple) else (key,)), ...)]
        return view_of(self, host) if np.may_share_memory(host, self._host) else new(host)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_index(key)] = _filling(value)

    def fill(self, value: Any) -> None:
        if isinstance(value, ndarray) and value.ndim:
            raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
        self._host.fill(_filling(value))

    # Copies and views

    def astype(self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: Any = True) -> ndarray:
        if not copy and self.dtype == dtype and (order == "K" or self._host.flags[order]):
            return self
        return new(self._host.astype(dtype, order=order))

    def copy(self, order: str = "C") -> ndarray:
        return new(self._host.copy(order))

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        return view_of(self, self._host.view() if dtype is None else self._host.view(dtype))

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> ndarray:
        shape = shape[0] if len(shape) == 1 else shape
        host = self._host.reshape(shape, order=order)
        if copy or not (self.size == 0 or np.may_share_memory(host, self._host)):
            if copy is False:
                raise ValueError("Unable to avoid creating a copy while reshaping.")
            return new(host)
        return view_of(self, host)

    def transpose(self, *axes: Any) -> ndarray:
        return view_of(self, self._host.transpose(*axes))

    def squeeze(self, axis: Any = None) -> ndarray:
        host = self._host.squeeze(axis)
        return self if host.ndim == self.ndim else view_of(self, host)

    def sort(self, axis: int = -1, kind: Any = None) -> None:
        self._host.sort(axis, kind="stable")

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()


def _module() -> Any:
    """The package itself, under whatever name it was imported."""
    import importlib

    return importlib.import_module(__package__)


def _index(key: Any) -> Any:
    """An index for the host. Index arrays and lists of the host's are copied to the device first, as by CuPy."""
    if isinstance(key, tuple):
        return tuple(_index(k) for k in key)
    if isinstance(key, np.ndarray | list):
        host_transfers["to_device"] += 1
    return key._host if isinstance(key, ndarray) else key


def _filling(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value._host
    if np.ndim(value):
        raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
    return value


def _binary(function: np.ufunc, swapped: bool) -> Any:
    def operator(self: ndarray, other: Any) -> Any:
        if isinstance(other, ndarray):
            return getattr(_module(), function.__name__)(self, other)
        if hasattr(other, "__array_ufunc__"):
            defer = other.__array_ufunc__ is None
        else:
            defer = getattr(other, "__array_priority__", 0) > self.__array_priority__
        if defer:
            return NotImplemented
        if function in (np.equal, np.not_equal) and (other is None or type(other).__eq__ is object.__eq__):
            return new(np.full(self.shape, function is np.not_equal))
        return function(other, self) if swapped else function(self, other)

    return operator


def _in_place(function: np.ufunc) -> Any:
    def operator(self: ndarray, other: Any) -> ndarray:
        return getattr(_module(), function.__name__)(self, other, self)

    return operator


def _unary(function: np.ufunc) -> Any:
    return lambda self: getattr(_module(), function.__name__)(self)


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        from ._call import call

        return call(getattr(np.ndarray, name) if name != "ptp" else np.ptp, self, *args, **kwargs)

    method.__name__ = name
    return method


for _name, _function in _names.BINARY.items():
    setattr(ndarray, f"__{_name}__", _binary(getattr(np, _function), False))
    setattr(ndarray, f"__r{_name}__", _binary(getattr(np, _function), True))
    if _name not in ("matmul", "divmod"):
        setattr(ndarray, f"__i{_name}__", _in_place(getattr(np, _function)))
for _name, _function in _names.COMPARISONS.items():
    setattr(ndarray, f"__{_name}__", _binary(getattr(np, _function), False))
for _name, _function in _names.UNARY.items():
    setattr(ndarray, f"__{_name}__", _unary(getattr(np, _function)))
for _name in _names.METHODS:
    setattr(ndarray, _name, _method(_name))
ndarray.__module__ = "cupy"
