"""Softmax and its logarithm along one axis, with backward kernels that are ops of any order themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._table import op, rule
from .activation import exp
from .arithmetic import mul, sub
from .reduce import sum as _sum

__all__ = ["log_softmax", "log_softmax_bwd", "softmax", "softmax_bwd"]

SIZES: list[dict[str, Any]] = [
    dict(_=(1,)),
    dict(_=(3, 37)),
    dict(_=(5, 64)),
    dict(_=(67, 21)),
    dict(_=(2, 3, 19)),
    dict(_=(3, 1031)),
]


def along_one_axis(*names: str) -> Callable[[Callable], Any]:
    """Declare an op of arrays of one shape, of which `axis` names a dimension; kernels get it counted from 0."""

    def declare(f: Callable) -> Any:
        def shape(shapes: tuple, attrs: dict) -> tuple:
            first, axis = shapes[0], attrs["axis"]
            for name, other in zip(names[1:], shapes[1:], strict=True):
                if other != first:
                    raise ValueError(f"{name} has shape {other}, wanted {first}, the shape of {names[0]}")
            if not -len(first) <= axis < len(first):
                raise ValueError(f"axis must be from {-len(first)} to {len(first) - 1} for shape {first}, got {axis}")
            attrs["axis"] = axis % len(first)
            return (first,)

        spec = ", ".join(f"{name}: ..." for name in names) + " -> ..."
        keep = "y" if len(names) == 1 else "x"
        return op(spec, shape=shape, sizes=SIZES, attrs=[dict(), dict(axis=0)], keep=keep)(f)

    return declare


def _shifted(x: Any, axis: int) -> Any:
    """x - max x, -inf where all of a row is -inf."""
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    return x - np.where(top == -np.inf, 0, top)


@along_one_axis("x")
def softmax(x: Any, *, axis: int = -1) -> Any:
    """exp(x) / sum exp(x), the sum over one axis.

    x (...). Returns (...). Neither overflows nor underflows as a whole; a row of -inf alone (all of it masked) gives
    zeros, not NaN. Along the last axis two readings of a row, of which one is from cache.
    """
    terms = np.exp(_shifted(x, axis))
    total = terms.sum(axis=axis, keepdims=True)
    return terms / np.where(total == 0, 1, total)


@along_one_axis("g", "y")
def softmax_bwd(g: Any, y: Any, *, axis: int = -1) -> Any:
    """y (g - sum(g y)): the gradient of softmax in x.

    g (...): the gradient of its output y (...). Returns (...).
    """
    return y * (g - (g * y).sum(axis=axis, keepdims=True))


@along_one_axis("x")
def log_softmax(x: Any, *, axis: int = -1) -> Any:
    """x - log sum exp(x), the sum over one axis: the logarithm of softmax where that would have lost its digits.

    x (...). Returns (...). A row of -inf alone gives -inf.
    """
    z = _shifted(x, axis)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(z).sum(axis=axis, keepdims=True))
    return z - np.where(total == -np.inf, 0, total)


@along_one_axis("g", "y")
def log_softmax_bwd(g: Any, y: Any, *, axis: int = -1) -> Any:
    """g - exp(y) sum(g): the gradient of log_softmax in x.

    g (...): the gradient of its output y (...). Returns (...).
    """
    return g - np.exp(y) * g.sum(axis=axis, keepdims=True)


def _softmax_bwd_rule(gys, ys, needs, g, y, *, axis=-1):
    h = gys[0]
    to_y = None
    if needs[1]:
        to_y = sub(mul(h, sub(g, _sum(mul(g, y), axis=axis, keepdims=True))),
                   mul(g, _sum(mul(h, y), axis=axis, keepdims=True)))
    return [softmax_bwd(h, y, axis=axis) if needs[0] else None, to_y]


def _log_softmax_bwd_rule(gys, ys, needs, g, y, *, axis=-1):
    h = gys[0]
    weighted = mul(h, exp(y))
    return [
        sub(h, _sum(weighted, axis=axis, keepdims=True)) if needs[0] else None,
        mul(weighted, _sum(g, axis=axis, keepdims=True)) * -1.0 if needs[1] else None,
    ]


rule(softmax, lambda gys, ys, needs, x, *, axis=-1: [softmax_bwd(gys[0], ys[0], axis=axis)])
rule(log_softmax, lambda gys, ys, needs, x, *, axis=-1: [log_softmax_bwd(gys[0], ys[0], axis=axis)])
rule(softmax_bwd, _softmax_bwd_rule)
rule(log_softmax_bwd, _log_softmax_bwd_rule)
