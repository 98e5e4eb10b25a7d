"""Moving without computing, Numba: NumPy's own copies, into arrays that are there."""

from __future__ import annotations

import numpy as np

from ._kernel import kernel


@kernel
def assign_(dst, src):
    np.copyto(dst, src)


@kernel
def concat(a, b, y, axis):
    np.concatenate([a, b], axis, out=y)


def _part(x, start, stop, axis):
    return np.moveaxis(x, axis, 0)[start:stop]


@kernel
def slice_axis(x, y, start, stop, axis):
    np.copyto(np.moveaxis(y, axis, 0), _part(x, start, stop, axis))


@kernel
def pad_axis(x, y, before, after, axis):
    y.fill(0)
    np.copyto(_part(y, before, y.shape[axis] - after, axis), np.moveaxis(x, axis, 0))


@kernel
def transpose(x, y, axes):
    np.copyto(y, np.transpose(x, axes))


@kernel
def cast(x, y):
    np.copyto(y, x, casting="same_kind")
