"""Sums, means and maxima over axes, and the pair sum_to / expand by which broadcasting is differentiated.

float32 is summed in float64 and float64 in pairs of float64 (value and rounding error), in blocks that depend on the
shape only: a sum is the rounded exact sum in all but contrived cases, and the same for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._table import op, rule
from .activation import affine
from .layout import reshape

__all__ = ["expand", "max", "mean", "sum", "sum_to"]

SIZES: list[dict[str, Any]] = [
    dict(_=(1,)),
    dict(_=(7,)),
    dict(_=(3, 37)),
    dict(_=(257, 67)),
    dict(_=(2, 3, 5, 17)),
]
AXES: list[dict[str, Any]] = [
    dict(),
    dict(axis=-1),
    dict(axis=0, keepdims=True),
    dict(axis=(0, -1)),
]


def reduced_axes(name: str, ndim: int, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """`axis` (None, an int or a tuple, negative from the end) as sorted axes in 0 ... ndim - 1."""
    axes = range(ndim) if axis is None else (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"{name}: axis is {axis}, wanted axes from {-ndim} to {ndim - 1}")
    return tuple(sorted({int(a) % ndim for a in axes}))


def _kept_shape(shape, axes) -> tuple[int, ...]:
    """`shape` with 1 for the reduced axes."""
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def reduction(**options: Any) -> Callable[[Callable], Any]:
    def declare(f: Callable) -> Any:
        def shape(shapes: tuple, attrs: dict) -> tuple:
            axes = attrs["axis"] = reduced_axes(f.__name__, len(shapes[0]), attrs["axis"])  # kernels get sorted axes
            if attrs["keepdims"]:
                return (_kept_shape(shapes[0], axes),)
            return (tuple(n for i, n in enumerate(shapes[0]) if i not in axes),)

        return op("x: ... -> ...", shape=shape, sizes=SIZES, attrs=AXES, **options)(f)

    return declare


def _spread(name, g, x, axis):
    """The gradient g of a reduction over `axis`, with 1 for the reduced axes."""
    return reshape(g, shape=_kept_shape(x.shape, reduced_axes(name, len(x.shape), axis)))


@reduction(keep="")
def sum(x: Any, *, keepdims: bool = False, axis: int | tuple[int, ...] | None = None) -> Any:
    """The sum of x over `axis`.

    x (...); axis None (all), an int or a tuple. Returns x's shape without the axes, or with 1 in their place.
    """
    return np.sum(x, axis=reduced_axes("sum", x.ndim, axis), keepdims=keepdims)


@reduction(keep="")
def mean(x: Any, *, keepdims: bool = False, axis: int | tuple[int, ...] | None = None) -> Any:
    """The mean of x over `axis`; NaN if there are no elements.

    x (...); axis None (all), an int or a tuple. Returns x's shape without the axes, or with 1 in their place.
    """
    axes = reduced_axes("mean", x.ndim, axis)
    count = math.prod(x.shape[i] for i in axes)
    return np.sum(x, axis=axes, keepdims=keepdims) / x.dtype.type(count or np.nan)


def _check_max(x, *, keepdims=False, axis=None):
    if 0 in x.shape and math.prod(_kept_shape(x.shape, reduced_axes("max", x.ndim, axis))) > 0:
        raise ValueError(f"max: x has shape {x.shape}; there is no maximum of no elements (axis is {axis})")


@reduction(keep="xy", check=_check_max)
def max(x: Any, *, keepdims: bool = False, axis: int | tuple[int, ...] | None = None) -> Any:
    """The largest value of x over `axis`, NaN if there is one. Equal maxima share the gradient equally.

    x (...); axis None (all), an int or a tuple. Returns x's shape without the axes, or with 1 in their place.
    """
    return np.max(x, axis=reduced_axes("max", x.ndim, axis), keepdims=keepdims)


def _broadcasts(shape, target) -> bool:
    """Whether an array of `shape` can be broadcast to the shape `target`."""
    lead = len(target) - len(shape)
    return lead >= 0 and all(n in (1, m) for n, m in zip(shape, target[lead:], strict=True))


def _sum_to_shape(shapes, attrs):
    shape, target = tuple(shapes[0]), tuple(attrs["shape"])
    if not _broadcasts(target, shape):
        raise ValueError(f"sum_to: x has shape {shape}, which shape {target} cannot be broadcast to")
    return (target,)


def _expand_shape(shapes, attrs):
    shape, target = tuple(shapes[0]), tuple(attrs["shape"])
    if not _broadcasts(shape, target):
        raise ValueError(f"expand: x has shape {shape}, which cannot be broadcast to shape {target}")
    return (target,)


@op(
    "x: ... -> ...",
    shape=_sum_to_shape,
    sizes=[dict(_=(3, 37)), dict(_=(1031, 5))],
    attrs=[dict(shape=s) for s in ((1,), (), (1, 1))],
    keep="",
)
def sum_to(x: Any, *, shape: tuple[int, ...]) -> Any:
    """x summed over the axes along which an array of `shape` would be broadcast to x's shape: the adjoint of expand.

    x (...); shape a tuple. Returns an array of that shape.
    """
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1)
    return np.sum(x, axis=axes, keepdims=True).reshape(shape)


@op(
    "x: ... -> ...",
    shape=_expand_shape,
    sizes=[dict(_=(1,)), dict(_=(7, 1)), dict(_=())],
    attrs=[dict(shape=s) for s in ((5, 7, 3), (7, 2500))],
    keep="",
)
def expand(x: Any, *, shape: tuple[int, ...]) -> Any:
    """x broadcast to `shape`, as an array of its own.

    x (...); shape a tuple x's shape broadcasts to. Returns an array of that shape.
    """
    return np.broadcast_to(x, shape).copy()


def _sum_rule(gys, ys, needs, x, *, keepdims=False, axis=None):
    return [expand(_spread("sum", gys[0], x, axis), shape=tuple(x.shape))]


def _mean_rule(gys, ys, needs, x, *, keepdims=False, axis=None):
    g = _spread("mean", gys[0], x, axis)
    count = math.prod(x.shape) // (math.prod(g.shape) or 1)
    return [expand(affine(g, scale=1.0 / (count or 1)), shape=tuple(x.shape))]


def _max_rule(gys, ys, needs, x, *, keepdims=False, axis=None):
    from .arithmetic import div, heaviside, mul  # arithmetic.py needs sum_to from here

    half = heaviside(x, _spread("max", ys[0], x, axis))     # 1/2 at the maxima, 0 elsewhere
    g = _spread("max", gys[0], x, axis)
    return [mul(half, div(g, sum_to(half, shape=tuple(g.shape))))]


rule(sum, _sum_rule)
rule(mean, _mean_rule)
rule(max, _max_rule)
rule(sum_to, lambda gys, ys, needs, x, *, shape: [expand(gys[0], shape=tuple(x.shape))])
rule(expand, lambda gys, ys, needs, x, *, shape: [sum_to(gys[0], shape=tuple(x.shape))])
