"""Numba twins of softmax, log-softmax and their gradients: every line along the axis on its own, sums in float64."""

from __future__ import annotations

import math

import numpy as np

from ._kernel import jit, kernel


@jit
def _forward(x, y, logarithm):
    outer, n, inner = x.shape
    for o in range(outer):
        for c in range(inner):
            top = -np.inf
            for j in range(n):
                top = max(top, x[o, j, c])
            if top == -np.inf:
                top = x.dtype.type(0)
            total = 0.0
            for j in range(n):
                total += np.exp(x[o, j, c] - top)
            shift = np.log(total) if total != 0 else 0.0
            for j in range(n):
                if logarithm:
                    y[o, j, c] = (x[o, j, c] - top) - shift
                else:
                    y[o, j, c] = np.exp(x[o, j, c] - top) / total if total != 0 else 0.0


@jit
def _backward(g, y, dx, logarithm):
    outer, n, inner = y.shape
    for o in range(outer):
        for c in range(inner):
            total = 0.0
            for j in range(n):
                total += g[o, j, c] if logarithm else float(g[o, j, c]) * y[o, j, c]
            for j in range(n):
                if logarithm:
                    dx[o, j, c] = g[o, j, c] - np.exp(float(y[o, j, c])) * total
                else:
                    dx[o, j, c] = y[o, j, c] * (g[o, j, c] - total)


def _lines(x, axis):
    """x as (outer, n, inner), n being the axis."""
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


@kernel
def softmax(x, y, axis):
    _forward(_lines(x, axis), _lines(y, axis), False)


@kernel
def log_softmax(x, y, axis):
    _forward(_lines(x, axis), _lines(y, axis), True)


@kernel
def softmax_bwd(g, y, dx, axis):
    _backward(_lines(g, axis), _lines(y, axis), _lines(dx, axis), False)


@kernel
def log_softmax_bwd(g, y, dx, axis):
    _backward(_lines(g, axis), _lines(y, axis), _lines(dx, axis), True)
