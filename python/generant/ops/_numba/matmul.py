"""Numba twins of the matrix products: one compiled loop nest, to which transposed operands come as copies.

As in the native kernels every element is a sum over k in order, in blocks of 256 whose sums are added in order, so a
row does not depend on the rows it came with. NumPy's own product is not used: its bits depend on the BLAS and its
threads. The inner loops run over slices: an index that is a sum could be negative for all the compiler knows, and would
not be vectorised.
"""

import numpy as np

from . import activation as _activation  # noqa: F401  (registers the activations that linear_act calls)
from ._kernel import KERNELS, jit, kernel

DEPTH, COLUMNS = 256, 256


@jit
def _product(a, b, c):
    m, k = a.shape
    n = b.shape[1]
    s0, s1 = np.empty(COLUMNS, c.dtype), np.empty(COLUMNS, c.dtype)
    c[:] = 0
    for j0 in range(0, n, COLUMNS):
        w = min(COLUMNS, n - j0)
        for p0 in range(0, k, DEPTH):
            p1 = min(p0 + DEPTH, k)
            p4 = p0 + (p1 - p0) // 4 * 4
            for i in range(0, m, 2):
                e = min(i + 1, m - 1)  # the last odd row is computed twice
                for j in range(w):
                    s0[j] = 0
                    s1[j] = 0
                for p in range(p0, p4, 4):
                    x0, x1, x2, x3 = a[i, p], a[i, p + 1], a[i, p + 2], a[i, p + 3]
                    y0, y1, y2, y3 = a[e, p], a[e, p + 1], a[e, p + 2], a[e, p + 3]
                    b0, b1, b2, b3 = b[p, j0:], b[p + 1, j0:], b[p + 2, j0:], b[p + 3, j0:]
                    for j in range(w):
                        s0[j] = (((s0[j] + x0 * b0[j]) + x1 * b1[j]) + x2 * b2[j]) + x3 * b3[j]
                        s1[j] = (((s1[j] + y0 * b0[j]) + y1 * b1[j]) + y2 * b2[j]) + y3 * b3[j]
                for p in range(p4, p1):
                    x0, y0, b0 = a[i, p], a[e, p], b[p, j0:]
                    for j in range(w):
                        s0[j] += x0 * b0[j]
                        s1[j] += y0 * b0[j]
                c0, c1 = c[i, j0:], c[e, j0:]
                for j in range(w):
                    c0[j] += s0[j]
                if e > i:
                    for j in range(w):
                        c1[j] += s1[j]


@jit
def _rounded(x):
    """x (rows, columns) float32, rounded to bfloat16: to nearest, ties to even; NaN stays NaN."""
    y = np.empty_like(x)
    bits = x.view(np.uint32)
    made = y.view(np.uint32)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            u = bits[i, j]
            if x[i, j] == x[i, j]:
                u += np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))
            made[i, j] = u & np.uint32(0xFFFF0000) if x[i, j] == x[i, j] else u
    return y


def _product_in(precision, a, b, c):
    """a @ b into c; the operands rounded first for "bf16". Products of such numbers are exact in float32."""
    if precision == "bf16":
        a, b = _rounded(a), _rounded(b)
    _product(a, b, c)


def _matrix(x):
    columns = x.shape[-1]
    return x.reshape(x.size // columns if columns else int(np.prod(x.shape[:-1])), columns)


@kernel
def matmul(x, w, y, precision):
    _product_in(precision, _matrix(x), w, _matrix(y))


@kernel
def matmul_dx(g, w, dx, precision):
    _product_in(precision, _matrix(g), np.ascontiguousarray(w.T), _matrix(dx))


@kernel
def matmul_dw(x, g, dw, precision):
    _product_in(precision, np.ascontiguousarray(_matrix(x).T), _matrix(g), dw)


@kernel
def linear(x, w, b, y, precision):
    _product_in(precision, _matrix(x), w, _matrix(y))
    y += b


@kernel
def linear_act(x, w, b, y, h, activation, precision):
    h = y if h is None else h
    linear(x, w, b, h, precision)
    KERNELS[activation](h, y, *((0.2,) if activation == "leaky_relu" else ()))
