"""Arithmetic of two arrays with NumPy's broadcasting: + - * /, maximum, minimum.

A gradient is computed in the broadcast shape and summed back to the shape of its input (sum_to). Numbers are not arrays
here: x + 1.5 and 2 * x are `affine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._table import op, rule
from .activation import affine
from .reduce import sum_to

__all__ = ["add", "div", "heaviside", "maximum", "minimum", "mul", "sub"]

# Shapes of a and b: equal, 0-d, row, column, both, and up to six dimensions.
SIZES: list[dict[str, Any]] = [
    dict(_0=(1,), _1=(1,)),
    dict(_0=(7,), _1=(7,)),
    dict(_0=(3, 37), _1=()),
    dict(_0=(), _1=(5,)),
    dict(_0=(3, 37), _1=(37,)),
    dict(_0=(3, 37), _1=(3, 1)),
    dict(_0=(37,), _1=(3, 37)),
    dict(_0=(3, 1), _1=(1, 19)),
    dict(_0=(5, 4099), _1=(5, 4099)),
    dict(_0=(2, 3, 1, 2, 1, 5), _1=(3, 4, 1, 2, 1)),
]


def binary(**options: Any) -> Callable[[Callable], Any]:
    def declare(f: Callable) -> Any:
        def shape(shapes: tuple, attrs: dict) -> tuple:
            a, b = shapes
            if a == b:
                return (a,)
            try:
                return (np.broadcast_shapes(a, b),)
            except ValueError:
                raise ValueError(f"{f.__name__}: a with shape {a} and b with shape {b} do not broadcast") from None

        return op("a: ..., b: ... -> ...", shape=shape, sizes=SIZES, elementwise=True, **options)(f)

    return declare


def _to(g, x):
    """The gradient g, in the broadcast shape, as a gradient of x."""
    return g if tuple(g.shape) == tuple(x.shape) else sum_to(g, shape=tuple(x.shape))


@binary(keep="")
def add(a: Any, b: Any) -> Any:
    """a + b.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    return np.add(a, b)


@binary(keep="")
def sub(a: Any, b: Any) -> Any:
    """a - b.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    return np.subtract(a, b)


@binary(keep="x")
def mul(a: Any, b: Any) -> Any:
    """a * b.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    return np.multiply(a, b)


@binary(keep="xy", domain={"b": "positive"})
def div(a: Any, b: Any) -> Any:
    """a / b, by the IEEE rules at b = 0.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b)


@binary(keep="x")
def maximum(a: Any, b: Any) -> Any:
    """The larger of a and b, NaN if either is. Where they are equal each gets half of the gradient.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    return np.maximum(a, b)


@binary(keep="x")
def minimum(a: Any, b: Any) -> Any:
    """The smaller of a and b, NaN if either is. Where they are equal each gets half of the gradient.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    return np.minimum(a, b)


@binary(keep="")
def heaviside(a: Any, b: Any) -> Any:
    """1 where a > b, 1/2 where a == b, 0 elsewhere: a's share of the gradient of `maximum`. Its own gradient is zero.

    a, b: shapes that broadcast. Returns their broadcast shape.
    """
    a, b = np.broadcast_arrays(a, b)
    return (a > b).astype(a.dtype) + (a == b) * a.dtype.type(0.5)


def _add_rule(gys, ys, needs, a, b):
    g = gys[0]
    return [_to(g, a) if needs[0] else None, _to(g, b) if needs[1] else None]


def _sub_rule(gys, ys, needs, a, b):
    g = gys[0]
    return [_to(g, a) if needs[0] else None, affine(_to(g, b), scale=-1.0) if needs[1] else None]


def _mul_rule(gys, ys, needs, a, b):
    g = gys[0]
    return [_to(mul(g, b), a) if needs[0] else None, _to(mul(g, a), b) if needs[1] else None]


def _div_rule(gys, ys, needs, a, b):
    g = div(gys[0], b)
    return [_to(g, a) if needs[0] else None, affine(_to(mul(g, ys[0]), b), scale=-1.0) if needs[1] else None]


def _maximum_rule(gys, ys, needs, a, b):
    g = gys[0]
    return [
        _to(mul(g, heaviside(a, b)), a) if needs[0] else None,
        _to(mul(g, heaviside(b, a)), b) if needs[1] else None,
    ]


def _minimum_rule(gys, ys, needs, a, b):
    g = gys[0]
    return [
        _to(mul(g, heaviside(b, a)), a) if needs[0] else None,
        _to(mul(g, heaviside(a, b)), b) if needs[1] else None,
    ]


rule(add, _add_rule)
rule(sub, _sub_rule)
rule(mul, _mul_rule)
rule(div, _div_rule)
rule(maximum, _maximum_rule)
rule(minimum, _minimum_rule)
rule(heaviside, lambda gys, ys, needs, a, b: [None, None])
