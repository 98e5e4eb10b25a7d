"""Twins of broadcast arithmetic: NumPy's own compiled loops, told where to write; Numba could only match them."""

from __future__ import annotations

import numpy as np

from ._kernel import kernel


@kernel
def add(a, b, y):
    np.add(a, b, out=y)


@kernel
def sub(a, b, y):
    np.subtract(a, b, out=y)


@kernel
def mul(a, b, y):
    np.multiply(a, b, out=y)


@kernel
def div(a, b, y):
    with np.errstate(all="ignore"):
        np.divide(a, b, out=y)


@kernel
def maximum(a, b, y):
    np.maximum(a, b, out=y)


@kernel
def minimum(a, b, y):
    np.minimum(a, b, out=y)


@kernel
def heaviside(a, b, y):
    np.greater(a, b, out=y)
    y += np.equal(a, b) * y.dtype.type(0.5)
