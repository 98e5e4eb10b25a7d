"""Numba twins of Winograd's convolution: a tile after the other, all of its products before its output."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..winograd import COLUMNS, VARIANTS, _border, _phases, matrices
from ._kernel import KERNELS, jit, kernel


@jit
def _filter(w, g, first, column, step, to):
    """to[k, c, o] = G w G' for the taps w[first + step i, column + step j]."""
    n, r = g.shape
    c, o = w.shape[2], w.shape[3]
    for ch in range(c):
        for out in range(o):
            for a in range(n):
                for b in range(n):
                    s = 0.0
                    for i in range(r):
                        for j in range(r):
                            s += g[a, i] * g[b, j] * w[first + step * i, column + step * j, ch, out]
                    to[a * n + b, out // COLUMNS, ch, out % COLUMNS] = s


@jit
def _convolve(x, u, at, bt, shifts, stride, y):
    n, h, w, c = x.shape
    p, q, o = y.shape[1:]
    m, size = at.shape
    v, t = np.empty((size * size, c), x.dtype), np.empty((size, size), x.dtype)
    d, z = np.empty((size, size), x.dtype), np.empty((size * size, o), x.dtype)
    phases = shifts.shape[0]
    for sample in range(n):
        for i0 in range(0, p, m):
            for j0 in range(0, q, m):
                z[:] = 0
                for phase in range(phases):
                    for ch in range(c):
                        for i in range(size):
                            for j in range(size):
                                row = stride * (i0 + i + shifts[phase, 0]) + phase // 2
                                column = stride * (j0 + j + shifts[phase, 1]) + phase % 2
                                inside = 0 <= row < h and 0 <= column < w
                                d[i, j] = x[sample, row, column, ch] if inside else 0
                        _sandwich(bt, d, t, v, ch)
                    for k in range(size * size):
                        for ch in range(c):
                            value = v[k, ch]
                            row_of_u = phase * size * size + k
                            for out in range(o):
                                z[k, out] += value * u[row_of_u, out // COLUMNS, ch, out % COLUMNS]
                for out in range(o):
                    for a in range(min(m, p - i0)):
                        for b in range(min(m, q - j0)):
                            s = 0.0
                            for i in range(size):
                                for j in range(size):
                                    s += at[a, i] * at[b, j] * z[i * size + j, out]
                            y[sample, i0 + a, j0 + b, out] = s


@jit
def _sandwich(b, d, t, v, ch):
    """v[:, ch] = B' d B."""
    n = b.shape[0]
    for i in range(n):
        for j in range(n):
            s = 0.0
            for k in range(n):
                s += b[i, k] * d[k, j]
            t[i, j] = s
    for i in range(n):
        for j in range(n):
            s = 0.0
            for k in range(n):
                s += t[i, k] * b[j, k]
            v[i * n + j, ch] = s


@kernel
def winograd_filter(w: Any, u: Any, padding: Any, algorithm: str) -> None:
    m, r = VARIANTS[u.shape[0]]
    g = matrices(m, r, np.float64)[1]
    u[:] = 0
    if r == 3:
        _filter(w, g, 0, 0, 1, u)
        return
    for k, (i, j, _, _) in enumerate(_phases(4, padding)):
        _filter(w, g, i, j, 2, u[25 * k : 25 * k + 25])


@kernel
def winograd_conv2d(
    x: Any, u: Any, b: Any, residual: Any, y: Any, o: int, padding: Any, activation: str
) -> None:
    m, r = VARIANTS[u.shape[0]]
    at, _, bt = matrices(m, r, np.float64)
    border = _border(padding)
    shifts = [(-border[0], -border[2])] if r == 3 else [phase[2:] for phase in _phases(4, padding)]
    _convolve(x, u, at, bt, np.array(shifts, np.int64), 1 if r == 3 else 2, y)
    if b is not None:
        y += b
    if residual is not None:
        y += residual
    if activation != "identity":
        KERNELS[activation](y, y, *((0.2,) if activation == "leaky_relu" else ()))
