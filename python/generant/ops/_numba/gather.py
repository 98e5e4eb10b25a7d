"""Numba twins of gather (NumPy's own loop) and scatter_add."""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel


@jit
def _scatter_add(g, index, y):
    y[:] = 0
    for i in range(g.shape[0]):
        row = index[i]
        for j in range(g.shape[1]):
            y[row, j] += g[i, j]


@kernel
def gather(table, index, y):
    np.take(table, index, axis=0, out=y, mode="clip")         # checked already; "raise" would buffer


@kernel
def scatter_add(g, index, y, m):
    _scatter_add(g.reshape(index.size, y.shape[1]), index.reshape(-1), y)
