"""Ops that move or fill but do not compute, and their adjoints.

reshape, full_like and stop_gradient have no kernels: every backend runs their bodies, NumPy's own.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ._table import op, rule

__all__ = [
    "assign_", "cast", "concat", "concatenate", "full_like", "pad_axis", "reshape", "slice_axis", "split",
    "stop_gradient", "transpose",
]


def _reshaped(shapes: tuple, attrs: dict) -> tuple:
    (old,), new = shapes, tuple(attrs["shape"])
    n = int(np.prod(old, dtype=np.int64))
    known = int(np.prod([s for s in new if s != -1], dtype=np.int64))
    if new.count(-1) == 1 and known > 0 and n % known == 0:
        new = tuple(n // known if s == -1 else s for s in new)
    if int(np.prod(new, dtype=np.int64)) != n or min(new, default=0) < 0:
        raise ValueError(f"reshape: x has shape {old} ({n} elements), which does not fit shape {tuple(attrs['shape'])}")
    return (new,)


@op("x: ... -> ...", shape=_reshaped, sizes=[dict(_=(2, 3, 5))], attrs=[dict(shape=(5, -1)), dict(shape=(30,))],
    native=False, keep="")
def reshape(x: Any, *, shape: tuple[int, ...]) -> Any:
    """x with the same elements in the same order, in another shape. One dimension may be -1: what is left."""
    return np.reshape(x, shape)


rule(reshape, lambda gys, ys, needs, x, shape: [reshape(gys[0], shape=x.shape)])


def _axes(x_ndim: int, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(x_ndim))[::-1]
    found = tuple(a % x_ndim if -x_ndim <= a < x_ndim else a for a in axes)
    if sorted(found) != list(range(x_ndim)):
        raise ValueError(f"transpose: axes must be a permutation of 0..{x_ndim - 1}, got {axes}")
    return found


@op("x: ... -> ...", shape=lambda shapes, a: (tuple(shapes[0][i] for i in _axes(len(shapes[0]), a["axes"])),),
    sizes=[dict(_=s) for s in ((2, 3, 5), (70, 131, 3), (35, 18, 6), (2, 65, 4, 16), (3, 1, 2, 4, 5, 2))],
    attrs=[dict(), *(dict(axes=a) for a in ((1, 2, 0), (1, 0, -1), (0, 2, 1, 3), (0, 3, 1, 4, -1, 2)))],
    keep="")
def transpose(x: Any, *, axes: tuple[int, ...] | None = None) -> Any:
    """x with its axes permuted, as a dense copy; reversed by default."""
    return np.ascontiguousarray(np.transpose(x, axes))


rule(transpose, lambda gys, ys, needs, x, axes=None: [
    transpose(gys[0], axes=tuple(int(i) for i in np.argsort(_axes(len(x.shape), axes))))
])


def _axis(op_name: str, ndim: int, axis: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"{op_name}: axis must be from {-ndim} to {ndim - 1} for {ndim} dimensions, got {axis}")
    return axis % ndim


def _joined(shapes: tuple, attrs: dict) -> tuple:
    a, b = shapes
    axis = _axis("concat", len(a), attrs["axis"])
    if len(a) != len(b) or any(i != axis and n != m for i, (n, m) in enumerate(zip(a, b, strict=True))):
        raise ValueError(f"concat: b has shape {b}, which does not fit a with shape {a} along axis {attrs['axis']}")
    return (a[:axis] + (a[axis] + b[axis],) + a[axis + 1 :],)


@op(
    "a: ..., b: ... -> ...", shape=_joined,
    sizes=[dict(_=(2, 3)), dict(_=(37, 18, 33)), dict(_0=(5, 1100), _1=(5, 3)), dict(_0=(2, 9), _1=(3, 9))],
    attrs=[dict(), dict(axis=0)], keep="",
)
def concat(a: Any, b: Any, *, axis: int = -1) -> Any:
    """a, then b along one axis."""
    return np.concatenate([a, b], axis)


def _concat_rule(gys: Any, ys: Any, needs: Any, a: Any, b: Any, axis: int = -1) -> list:
    at = a.shape[axis]
    return [
        slice_axis(gys[0], start=0, stop=at, axis=axis) if needs[0] else None,
        slice_axis(gys[0], start=at, stop=at + b.shape[axis], axis=axis) if needs[1] else None,
    ]


rule(concat, _concat_rule)


def _sliced(shapes: tuple, attrs: dict) -> tuple:
    (s,) = shapes
    axis, start, stop = _axis("slice_axis", len(s), attrs["axis"]), attrs["start"], attrs["stop"]
    if not 0 <= start <= stop <= s[axis]:
        raise ValueError(f"slice_axis: wanted 0 <= start <= stop <= {s[axis]} on axis {axis}, got {start}, {stop}")
    return (s[:axis] + (stop - start,) + s[axis + 1 :],)


@op("x: ... -> ...", shape=_sliced, sizes=[dict(_=(2, 7)), dict(_=(40, 5, 131)), dict(_=(9, 2100))],
    attrs=[dict(start=1, stop=5), dict(start=2, stop=2), dict(start=0, stop=3, axis=0), dict(start=1, stop=4, axis=-2)],
    keep="")
def slice_axis(x: Any, *, start: int, stop: int, axis: int = -1) -> Any:
    """x[..., start:stop, ...] along one axis, as a dense copy."""
    at = [slice(None)] * x.ndim
    at[axis] = slice(start, stop)
    return np.ascontiguousarray(x[tuple(at)])


def _padded(shapes: tuple, attrs: dict) -> tuple:
    (s,) = shapes
    axis, before, after = _axis("pad_axis", len(s), attrs["axis"]), attrs["before"], attrs["after"]
    if min(before, after) < 0:
        raise ValueError(f"pad_axis: before and after must be at least 0, got {before}, {after}")
    return (s[:axis] + (before + s[axis] + after,) + s[axis + 1 :],)


@op("x: ... -> ...", shape=_padded, sizes=[dict(_=(2, 7)), dict(_=(40, 5, 131))],
    attrs=[dict(before=1, after=2), dict(before=0, after=3, axis=0), dict(before=4, after=0, axis=-2)], keep="")
def pad_axis(x: Any, *, before: int, after: int, axis: int = -1) -> Any:
    """Zeros, x, zeros along one axis: the adjoint of slice_axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return np.pad(x, widths)


rule(slice_axis, lambda gys, ys, needs, x, start, stop, axis=-1: [
    pad_axis(gys[0], before=start, after=x.shape[axis] - stop, axis=axis)
])
rule(pad_axis, lambda gys, ys, needs, x, before, after, axis=-1: [
    slice_axis(gys[0], start=before, stop=before + x.shape[axis], axis=axis)
])


def split(x: Any, *, sizes: tuple[int, ...] | None = None, sections: int | None = None, axis: int = -1) -> tuple:
    """x cut along one axis into pieces of the given sizes, or into so many equal sections, as dense copies.

    Raises ValueError if the sizes do not add up to the axis, or the sections do not divide it.
    """
    n = x.shape[_axis("split", len(x.shape), axis)]
    if (sizes is None) == (sections is None):
        raise ValueError("split: give either sizes or sections")
    if sections is not None:
        if sections < 1 or n % sections:
            raise ValueError(f"split: {sections} sections do not divide axis {axis} of shape {tuple(x.shape)}")
        sizes = (n // sections,) * sections
    assert sizes is not None
    if min(sizes, default=0) < 0 or sum(sizes) != n:
        raise ValueError(f"split: sizes {tuple(sizes)} do not add up to axis {axis} of shape {tuple(x.shape)}")
    stops = list(itertools.accumulate(sizes, initial=0))
    return tuple(slice_axis(x, start=a, stop=b, axis=axis) for a, b in itertools.pairwise(stops))


def concatenate(*arrays: Any, axis: int = -1) -> Any:
    """One or more arrays, one after the other along one axis: concat of neighbours, so nothing is copied more than
    log2 of their number times."""
    if not arrays:
        raise ValueError("concatenate: got no arrays")
    while len(arrays) > 1:
        pairs = [concat(a, b, axis=axis) for a, b in zip(arrays[::2], arrays[1::2], strict=False)]
        arrays = (*pairs, *arrays[len(arrays) // 2 * 2 :])
    return arrays[0]


@op("x: ... -> ...", sizes=[dict(_=(2, 3))], attrs=[dict(value=0.5)], native=False, keep="")
def full_like(x: Any, *, value: float) -> Any:
    """An array of x's shape and dtype with every element equal to value."""
    return np.full_like(x, value)


rule(full_like, lambda gys, ys, needs, x, value: [None])


@op("x: ... -> ...", sizes=[dict(_=(2, 3))], native=False, keep="")
def stop_gradient(x: Any) -> Any:
    """x, treated as a constant by differentiation."""
    return x.copy()


rule(stop_gradient, lambda gys, ys, needs, x: [None])


@op("dst: ..., src: ... ->", effects=(0,), sizes=[dict(_=(2, 3)), dict(_=()), dict(_=(20011,))])
def assign_(dst: Any, src: Any) -> None:
    """dst <- src, in place. dst, src: arrays of one shape. Not differentiable."""
    np.copyto(dst, src)


@op("x: ... -> ...", sizes=[dict(_=(2, 3)), dict(_=(20011,))], keep="")
def cast(x: Any, *, dtype: str = "float32") -> Any:
    """x rounded to another float type ("float32" or "float64")."""
    return np.asarray(x).astype(dtype)


rule(cast, lambda gys, ys, needs, x, dtype: [cast(gys[0], dtype=x.dtype.name)])
