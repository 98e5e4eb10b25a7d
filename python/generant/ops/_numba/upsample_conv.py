"""Numba twins of upsample_conv2d and its partners: a product of matrices per phase and place, as in the kernels."""

from __future__ import annotations

import numpy as np

from ._kernel import kernel
from .matmul import _product

ROWS = (((0,), (1, 2)), ((0, 1), (2,)))  # ROWS[a][u]: the rows of w that meet at place u of phase a


def _folds():
    """(a, b, u, v, the taps of w that are summed there) for every phase (a, b) and place (u, v)."""
    for k in range(16):
        a, b, u, v = k >> 3, k >> 2 & 1, k >> 1 & 1, k & 1
        yield a, b, u, v, [(i, j) for i in ROWS[a][u] for j in ROWS[b][v]]


def _sum(w, taps):
    return np.sum([w[t] for t in taps], axis=0, dtype=np.float64).astype(w.dtype)


def _times(a, b):
    """a @ b over the last axis of a."""
    y = np.empty((*a.shape[:-1], b.shape[1]), a.dtype)
    m = int(np.prod(a.shape[:-1]))
    _product(np.ascontiguousarray(a).reshape(m, a.shape[-1]), np.ascontiguousarray(b), y.reshape(m, b.shape[1]))
    return y


def _bordered(x):
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


@kernel
def upsample_conv2d(x, w, y):
    _, h, width, _ = x.shape
    z = _bordered(x)
    y[:] = 0
    for a, b, u, v, taps in _folds():
        y[:, a::2, b::2] += _times(z[:, a + u : a + u + h, b + v : b + v + width], _sum(w, taps))


@kernel
def upsample_conv2d_dx(g, w, dx):
    _, h, width, _ = dx.shape
    z = _bordered(np.zeros_like(dx))
    for a, b, u, v, taps in _folds():
        z[:, a + u : a + u + h, b + v : b + v + width] += _times(g[:, a::2, b::2], _sum(w, taps).T)
    dx[:] = z[:, 1:-1, 1:-1]


@kernel
def upsample_conv2d_dw(x, g, dw):
    n, h, width, c = x.shape
    z, m = _bordered(x), n * h * width
    total = np.zeros(dw.shape)
    for a, b, u, v, taps in _folds():
        patch = z[:, a + u : a + u + h, b + v : b + v + width].reshape(m, c)
        share = _times(patch.T, g[:, a::2, b::2].reshape(m, g.shape[3]))
        for t in taps:
            total[t] += share
    dw[:] = total
