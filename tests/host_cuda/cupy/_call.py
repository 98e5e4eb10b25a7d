"""NumPy's functions on device arrays: unwrap the arguments, compute on the host, wrap what comes out.

A result that lies in an argument's memory becomes a view of that argument, an argument itself comes back as the same
object, and everything else gets memory of its own. A numpy.ndarray among the arguments is refused, as CuPy does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ._array import ndarray, new, unwrap, view_of

# Reductions have no where or initial in CuPy; where NumPy answers these with Python's numbers, CuPy gives an array.
REDUCTIONS = frozenset("sum prod mean std var max min amax amin all any".split())
ARRAYS = frozenset("allclose array_equal array_equiv count_nonzero".split())


def _unwrap(value: Any, sources: list[ndarray]) -> Any:
    """value with host arrays in place of device arrays, which are put into sources."""
    if isinstance(value, ndarray):
        sources.append(value)
        return unwrap(value)
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if type(value) in (tuple, list):
        return type(value)(_unwrap(v, sources) for v in value)
    return value


def wrap(value: Any, sources: Iterable[ndarray] = ()) -> Any:
    """value with device arrays in place of host arrays and scalars."""
    if isinstance(value, tuple | list):
        return (list if isinstance(value, list) else tuple)(wrap(v, sources) for v in value)
    if isinstance(value, np.ndarray):
        for source in sources:
            if value is unwrap(source):
                return source
        for source in sources:
            if np.may_share_memory(value, unwrap(source)):
                return view_of(source, value)
    return new(value) if isinstance(value, np.ndarray | np.generic) else value


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs) on device arrays."""
    name = function.__name__
    for keyword in ("where", "initial"):
        if name in REDUCTIONS and keyword in kwargs:
            raise TypeError(f"{name}() got an unexpected keyword argument '{keyword}'")
    sources: list[ndarray] = []
    host_args = _unwrap(args, sources)
    host_kwargs = {k: _unwrap(v, sources) for k, v in kwargs.items()}
    result = function(*host_args, **host_kwargs)
    return new(np.asarray(result)) if name in ARRAYS else wrap(result, sources)


class ufunc:
    """One of CuPy's elementwise functions, which is NumPy's of that name on the host."""

    def __init__(self, function: np.ufunc):
        self._function = function
        self.__name__ = self.name = f"cupy_{function.__name__}"
        self.nin, self.nout, self.nargs = function.nin, function.nout, function.nargs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for arg in args:
            if not isinstance(arg, ndarray | np.generic | bool | int | float | complex | None):
                raise TypeError(f"Unsupported type {type(arg)}")
        return call(self._function, *args, **kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        return call(self._function.reduce, *args, **kwargs)

    def accumulate(self, *args: Any, **kwargs: Any) -> Any:
        return call(self._function.accumulate, *args, **kwargs)

    def outer(self, *args: Any, **kwargs: Any) -> Any:
        return call(self._function.outer, *args, **kwargs)

    def reduceat(self, *args: Any, **kwargs: Any) -> Any:
        return call(self._function.reduceat, *args, **kwargs)

    def at(self, *args: Any, **kwargs: Any) -> Any:
        if self._function.__name__ not in ("add", "subtract", "maximum", "minimum"):
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        return call(self._function.at, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<ufunc '{self.name}'>"


@functools.cache
def lift(module: Any, name: str) -> Any:
    """What CuPy has under the name of something of NumPy's."""
    value = getattr(module, name)
    if isinstance(value, np.ufunc):
        return ufunc(value)
    if isinstance(value, type) or not callable(value):
        return value

    def function(*args: Any, **kwargs: Any) -> Any:
        return call(value, *args, **kwargs)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "cupy"
    return function
