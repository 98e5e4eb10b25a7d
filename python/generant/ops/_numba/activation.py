"""Numba twins of the elementwise rows: one compiled function per row holds f, its gradient and its second gradient.

`order` picks among them: 0 writes f(r), 1 writes g f'(r), 2 writes h g f''(r); unused arrays are given as any array.
Literals are doubles, so float32 is computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ._kernel import jit, kernel


def row(loop: Callable) -> Callable:
    """Register `name`, `name_bwd` and `name_bwd2` from loop(order, h, g, r, y, *attributes)."""
    name, compiled = loop.__name__.strip("_"), jit(loop)

    def numbers(attrs: Any) -> list[float]:
        return [math.nan if a is None else float(a) for a in attrs]

    def f(x, y, *attrs):
        x = x.reshape(-1)
        compiled(0, x, x, x, y.reshape(-1), *numbers(attrs))

    def bwd(g, r, y, *attrs):
        r = r.reshape(-1)
        compiled(1, r, g.reshape(-1), r, y.reshape(-1), *numbers(attrs))

    def bwd2(h, g, r, y, *attrs):
        compiled(2, h.reshape(-1), g.reshape(-1), r.reshape(-1), y.reshape(-1), *numbers(attrs))

    for function, suffix in ((f, ""), (bwd, "_bwd"), (bwd2, "_bwd2")):
        function.__name__ = name + suffix
        kernel(function)
    return loop


@row
def relu(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = 0.0 if v <= 0 else v
        else:
            y[i] = g[i] * (1.0 if v > 0 else 0.0)


@row
def leaky_relu(order, h, g, r, y, slope):
    for i in range(y.size):
        v = r[i]
        y[i] = (v if order == 0 else g[i]) * (1.0 if v > 0 else slope)


@row
def sigmoid(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = 1.0 / (1.0 + math.exp(-v))
        elif order == 1:
            y[i] = g[i] * (v * (1.0 - v))
        else:
            y[i] = h[i] * g[i] * (1.0 - 2.0 * v)


@row
def silu(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        s = 1.0 / (1.0 + math.exp(-v))
        if v < -1e30:
            v = -1e30                                       # -inf * 0 is NaN, the limit is 0
        elif v > 1e30 and order:
            v = 1e30
        if order == 0:
            y[i] = v * s
        elif order == 1:
            y[i] = g[i] * (s * (1.0 + v * (1.0 - s)))
        else:
            y[i] = h[i] * g[i] * (s * (1.0 - s) * (2.0 + v * (1.0 - 2.0 * s)))


@row
def gelu(order, h, g, r, y):
    for i in range(y.size):
        v = float(r[i])
        if v < -1e18:
            v = -1e18
        elif v > 1e18 and order:
            v = 1e18
        if order == 0:
            y[i] = v * (0.5 * (1.0 + math.erf(v * 0.7071067811865476)))
        else:
            density = math.exp(-0.5 * v * v) * 0.3989422804014327
            if order == 1:
                y[i] = g[i] * (0.5 * (1.0 + math.erf(v * 0.7071067811865476)) + v * density)
            else:
                y[i] = h[i] * g[i] * (density * (2.0 - v * v))


@row
def tanh(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = math.tanh(v)
        elif order == 1:
            y[i] = g[i] * (1.0 - v * v)
        else:
            y[i] = h[i] * g[i] * (-2.0 * v)


@row
def softplus(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = (0.0 if v <= 0 else v) + math.log1p(math.exp(-abs(v)))
        else:
            s = 1.0 / (1.0 + math.exp(-v))
            y[i] = g[i] * s if order == 1 else h[i] * g[i] * (s * (1.0 - s))


@row
def exp(order, h, g, r, y):
    for i in range(y.size):
        y[i] = math.exp(r[i]) if order == 0 else g[i] * r[i] if order == 1 else h[i] * g[i]


@row
def log(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        y[i] = math.log(v) if order == 0 else g[i] / v if order == 1 else h[i] * g[i] * (-1.0 / (v * v))


@row
def sqrt(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        y[i] = math.sqrt(v) if order == 0 else g[i] * (0.5 / v) if order == 1 else h[i] * g[i] * (-0.5 / (v * v))


@row
def rsqrt(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = 1.0 / math.sqrt(v)
        else:
            y[i] = g[i] * (-0.5 * v * v * v) if order == 1 else h[i] * g[i] * (-1.5 * v * v)


@row
def square(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        y[i] = v * v if order == 0 else g[i] * (2.0 * v) if order == 1 else h[i] * g[i] * 2.0


@row
def reciprocal(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        y[i] = 1.0 / v if order == 0 else g[i] * (-(v * v)) if order == 1 else h[i] * g[i] * (-2.0 * v)


@row
def _abs(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = abs(v)
        else:
            y[i] = g[i] * (1.0 if v > 0 else -1.0 if v < 0 else v)


@row
def sin(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        y[i] = math.sin(v) if order == 0 else g[i] * math.cos(v) if order == 1 else h[i] * g[i] * -math.sin(v)


@row
def cos(order, h, g, r, y):
    for i in range(y.size):
        v = r[i]
        y[i] = math.cos(v) if order == 0 else g[i] * -math.sin(v) if order == 1 else h[i] * g[i] * -math.cos(v)


@row
def erf(order, h, g, r, y):
    for i in range(y.size):
        v = float(r[i])
        if order == 0:
            y[i] = math.erf(v)
        else:
            if abs(v) > 1e18:
                v = math.copysign(1e18, v)
            density = math.exp(-v * v) * 1.1283791670955126
            y[i] = g[i] * density if order == 1 else h[i] * g[i] * (-2.0 * v * density)


@row
def power(order, h, g, r, y, exponent):
    k = 1.0
    if order >= 1:
        k *= exponent
        exponent -= 1.0
    if order == 2:
        k *= exponent
        exponent -= 1.0
    for i in range(y.size):
        v = 0.0 if k == 0 else k * float(r[i]) ** exponent
        y[i] = v if order == 0 else g[i] * v if order == 1 else h[i] * g[i] * v


@row
def clip(order, h, g, r, y, low, high):
    for i in range(y.size):
        v = r[i]
        if order == 0:
            y[i] = low if v < low else high if v > high else v
        else:
            y[i] = g[i] * (0.0 if v < low or v > high or v != v else 1.0)


@row
def affine(order, h, g, r, y, scale, shift):
    for i in range(y.size):
        y[i] = r[i] * scale + shift
