"""How the functions of generant.pairwise take their arguments and hand back results.

Points come as anything NumPy can read, torch tensors or CuPy arrays, with any number of leading batch axes; they are
converted once, refused if a row is not finite, and the op underneath runs once per batch entry. Arrays on a GPU stay
there, and so do results. Traced arrays go through
untouched: inside a differentiated function NaN propagates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..autograd import Var
from ..ops import _device, _dispatch

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


class Given(NamedTuple):
    """One argument: its name, value and number of dimensions without batch axes. optional: may be None. own_width: its
    columns need not be as many as those of the points. bias: float64 whatever the points are, and not checked for
    -inf, which means absent there."""

    name: str
    value: Any
    ndim: int = 2
    optional: bool = False
    own_width: bool = False
    bias: bool = False


@contextmanager
def limited_threads(function: str, n_threads: int | None) -> Iterator[None]:
    """Calls of this thread use at most n_threads."""
    if n_threads is not None and (isinstance(n_threads, bool) or not isinstance(n_threads, int) or n_threads < 1):
        raise ValueError(f"{function}: n_threads must be a positive integer or None, got {n_threads!r}")
    native: Any = _dispatch.native_module()
    if n_threads is None or native is None:
        yield
        return
    before = native.limit_threads(n_threads)
    try:
        yield
    finally:
        native.limit_threads(before)


def run(
    function: str, call: Callable, *given: Given, n_threads: int | None = None, out: Any = None, cast: bool = False
) -> Any:
    """call(*arrays) on checked arrays, once per batch entry, with results stacked. cast: float64 results in the
    points' dtype. out: where to put the result, or the results."""
    others = [g.value for g in given if type(g.value) is not np.ndarray and g.value is not None]
    traced = any([isinstance(a, Var) for a in others])
    torch = not traced and any([_dispatch.is_torch(a) for a in others])
    if torch and any([_dispatch.is_torch(a) and _device.is_device(a) for a in others]):
        with _device.stream_of(*others):
            result = run(function, call, *_without_torch(given), n_threads=n_threads, out=_device.view(out), cast=cast)
            return out if out is not None else _to_torch(result)
    arrays = [g.value for g in given] if traced else convert(function, given, device=True)
    batched = any([a is not None and len(a.shape) > g.ndim for a, g in zip(arrays, given, strict=True)])
    work = partial(each, function, call, arrays, given) if batched else partial(call, *arrays)
    if n_threads is None:
        result = work()
    else:
        with limited_threads(function, n_threads):
            result = work()
    if cast:
        result = _cast(result, arrays[0].dtype)
    if out is not None:
        return fill(function, out, result)
    return _to_torch(result) if torch else result


def _without_torch(given: Sequence[Given]) -> list[Given]:
    return [g._replace(value=_device.view(g.value)) for g in given]


def _to_torch(result: Any) -> Any:
    return tuple(map(_dispatch.to_torch, result)) if isinstance(result, tuple) else _dispatch.to_torch(result)


def convert(
    function: str, given: Sequence[Given], *, batch: bool = True, rows: int = 1, device: bool = False
) -> list[Any]:
    """The arguments as arrays of one float dtype, finite, of equally many columns; None stays None.

    batch: leading axes are welcome. rows: points must have at least so many. device: arrays on a GPU become CuPy
    arrays, and all must be there; otherwise they are copied to the host, and all arrays are NumPy's.
    """
    there = device and any([_device.is_device(g.value) for g in given])
    arrays: list[Any] = []
    number: Any = SINGLE
    first = None  # points that were given, whose columns all others must have
    for g in given:
        a = g.value
        if type(a) is not np.ndarray:
            if a is None and g.optional:
                arrays.append(None)
                continue
            a = _as_array(function, g.name, a, there)
        elif there:
            raise TypeError(
                f"{function}: {g.name} is a NumPy array on the host, but other arrays are on a GPU; move it with "
                "cupy.asarray, or the others with .get()"
            )
        shape, kind = a.shape, a.dtype
        if len(shape) != g.ndim and (len(shape) < g.ndim or not batch):
            raise ValueError(f"{function}: {g.name} {_wanted_shape(g.ndim, batch, shape)}")
        if kind is not SINGLE:
            if kind.kind not in "fiub":
                raise TypeError(f"{function}: {g.name} must be an array of real numbers, got dtype {kind}")
            if not g.bias and np.promote_types(kind, SINGLE) != SINGLE:
                number = DOUBLE
        if g.ndim == 2:
            if shape[-2] < rows or not shape[-1]:
                wanted = f"at least {rows} row{'s' * (rows > 1)} and 1 column"
                raise ValueError(f"{function}: {g.name} must have {wanted}, got shape {shape}")
            if first is None:
                first = g.name, shape[-1]
            elif shape[-1] != first[1] and not g.own_width:
                got = f"{first[0]} has {first[1]} and {g.name} has {shape[-1]}"
                raise ValueError(f"{function}: all arguments must have equally many columns, but {got}")
        arrays.append(a)
    for i, (g, a) in enumerate(zip(given, arrays, strict=True)):
        if a is None:
            continue
        dtype = DOUBLE if g.bias else number
        if a.dtype is not dtype or not a.flags.c_contiguous:
            a = arrays[i] = _device.namespace(a).asarray(a, dtype, order="C")
        if not g.bias:
            refuse_not_finite(function, g.name, a, g.ndim)
    return arrays


def _as_array(function: str, name: str, a: Any, there: bool) -> Any:
    if _device.is_device(a):
        return _device.dense(a) if there else _device.from_device(a)
    if there:
        raise TypeError(f"{function}: {name} must be on a GPU, where other arrays are, got {type(a).__name__}")
    if _dispatch.is_torch(a):
        return _dispatch.from_torch(function, name, a)
    if a is None:
        raise TypeError(f"{function}: {name} must be an array, got None")
    if isinstance(a, np.ma.MaskedArray) and np.ma.is_masked(a):
        raise ValueError(f"{function}: {name} has masked entries; fill them or leave their rows out first")
    try:
        return np.asarray(a)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{function}: {name} must be an array of real numbers: {error}") from None


def _wanted_shape(ndim: int, batch: bool, got: tuple[int, ...]) -> str:
    if batch:
        return f"must have at least {ndim} dimensions, got shape {got}"
    hint = ", flatten it with reshape(len(x), -1)" if len(got) > ndim > 1 else ""
    return f"must have shape {'(n, d)' if ndim == 2 else '(n,)'}, got {got}{hint}"


def refuse_not_finite(function: str, name: str, a: Any, ndim: int) -> None:
    """ValueError naming the first row (of fewer than 2 dimensions: entry) with NaN or inf."""
    if _device.is_device(a):
        if bool(_device.namespace(a).isfinite(a).all()):
            return
        a = _device.from_device(a)
    if math.isfinite(np.vdot(a, a)) or np.isfinite(a).all():  # a sum that is finite has finite terms
        return
    bad = ~np.isfinite(a)
    bad = bad.any(axis=-1) if ndim == 2 else bad
    first = np.unravel_index(int(bad.argmax()), bad.shape)
    where = int(first[0]) if len(first) == 1 else tuple(int(i) for i in first)
    many, (one, more) = int(bad.sum()), ("row", "rows") if ndim == 2 else ("entry", "entries")
    found = f"{many} {one} is" if many == 1 else f"{many} {more} are"
    raise ValueError(f"{function}: {name} must be finite, but {found} not (first: {one} {where})")


def each(function: str, call: Callable, arrays: Sequence[Any], given: Sequence[Given]) -> Any:
    """call on every entry of the broadcast leading axes, results stacked along them."""
    leads = [() if a is None else tuple(a.shape[: len(a.shape) - g.ndim]) for a, g in zip(arrays, given, strict=True)]
    try:
        lead = np.broadcast_shapes(*leads)
    except ValueError:
        got = ", ".join(f"{g.name}: {lead}" for g, lead in zip(given, leads, strict=True) if lead)
        raise ValueError(f"{function}: the leading axes do not fit together ({got})") from None
    results = []
    for index in itertools.product(*map(range, lead)):
        results.append(call(*(_entry(a, own, index) for a, own in zip(arrays, leads, strict=True))))
    if not results:
        raise ValueError(f"{function}: a leading axis is empty, the leading axes are {lead}")
    if isinstance(results[0], tuple):
        return tuple(_stack([r[i] for r in results], lead) for i in range(len(results[0])))
    return _stack(results, lead)


def _entry(a: Any, lead: tuple[int, ...], index: tuple[int, ...]) -> Any:
    if a is None or not lead:
        return a
    at = tuple(0 if n == 1 else i for n, i in zip(lead, index[len(index) - len(lead) :], strict=True))
    if not isinstance(a, Var):
        return a[at]
    core = tuple(a.shape[len(lead) :])
    flat = int(np.ravel_multi_index(at, lead))
    rows = ops.reshape(a, shape=(math.prod(lead), *core))
    return ops.reshape(ops.slice_axis(rows, start=flat, stop=flat + 1, axis=0), shape=core)


def _stack(results: list[Any], lead: tuple[int, ...]) -> Any:
    if not any(isinstance(r, Var) for r in results):
        xp = _device.namespace(results[0])
        return xp.stack(results).reshape(lead + tuple(np.shape(results[0])))
    core = tuple(results[0].shape)
    stacked = ops.reshape(results[0], shape=(1, *core))
    for r in results[1:]:
        stacked = ops.concat(stacked, ops.reshape(r, shape=(1, *core)), axis=0)
    return ops.reshape(stacked, shape=lead + core)


def plain(a: Any) -> Any:
    """The array inside a traced one: indices, counts and errors are not differentiated."""
    while isinstance(a, Var):
        a = a.value
    return a if _device.is_device(a) else np.asarray(a)


def _cast(result: Any, dtype: np.dtype) -> Any:
    if isinstance(result, tuple):
        return tuple(_cast(r, dtype) for r in result)
    if isinstance(result, Var):
        return ops.cast(result, dtype=dtype.name) if result.dtype != dtype else result
    return result.astype(dtype, copy=False) if result.dtype.kind == "f" else result


def fill(function: str, out: Any, result: Any) -> Any:
    """Copy the result into `out`, which must fit exactly; returns out."""
    if isinstance(result, tuple):
        if not isinstance(out, (tuple, list)) or len(out) != len(result):
            raise TypeError(f"{function}: out must be a tuple of {len(result)} arrays, got {type(out).__name__}")
        return tuple(fill(function, o, r) for o, r in zip(out, result, strict=True))
    there = _device.is_device(result)
    if isinstance(result, Var) or not (_device.is_device(out) if there else isinstance(out, np.ndarray)):
        wanted = "an array on the GPU" if there else "a NumPy array"
        raise TypeError(f"{function}: out must be {wanted} (and no argument traced), got {type(out).__name__}")
    if out.shape != result.shape or out.dtype != result.dtype:
        wanted = f"shape {result.shape} and dtype {result.dtype}"
        raise ValueError(f"{function}: out must have {wanted}, got shape {out.shape} and dtype {out.dtype}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(f"{function}: out is read-only")
    out[...] = result
    return out
