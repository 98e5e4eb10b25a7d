"""Numba twins of the sums over all pairs: rows of x against blocks of y held coordinate by coordinate.

Everything is computed in float64 from coordinate differences, so one compilation serves both float types and no pair
needs a second look. Blocks keep the inner loop over points, which vectorises without reordering any sum.
"""

import numpy as np

from ._kernel import jit, kernel
from ._kernel_function import apply, argument, packed
from .neighbours import BLOCK, columns_of


@jit
def _sums(x, y, u, v, number, p, widths, center, itself, exclude, rows, columns):
    """sum_ij u_i v_j (k_ij - center) and sum_ij (k_ij - center)^2; row and column sums into arrays unless empty."""
    total, squares = 0.0, 0.0
    values, no_log = np.empty(BLOCK), np.empty(0)
    each = rows.shape[0] > 0
    rows[:] = 0
    columns[:] = 0
    for begin in range(0, y.shape[0], BLOCK):
        block = columns_of(y, begin)
        count = block.shape[1]
        value = values[:count]
        # x with itself: rows below the block meet it later, as columns of their own block
        for i in range(min(begin + count, x.shape[0]) if itself else x.shape[0]):
            argument(x[i], block, number, value)
            apply(value, no_log, 0, number, p, widths)
            row, line, square = 0.0, 0.0, 0.0  # of this row and block: short sums lose less
            for j in range(count):
                if (itself and begin + j < i) or (exclude and begin + j == i):
                    continue
                twice = 2.0 if itself and begin + j > i else 1.0
                k = value[j] - center
                row += twice * v[begin + j] * k
                if each:
                    square += twice * k * k
                    line += k
                    columns[begin + j] += k
                    if twice == 2.0:
                        rows[begin + j] += k
            total += u[i] * row
            squares += square
            if each:
                rows[i] += line
    if each and itself:
        columns[:] = rows
    return total, squares


def _prepared(x, y, kernel, degree, gamma, coef0, alpha, bandwidth):
    itself = y is None
    x = x.astype(np.float64)
    number, p, widths = packed(x.shape[1], kernel, degree, gamma, coef0, alpha, bandwidth)
    return itself, x, x if itself else y.astype(np.float64), number, p, widths


@kernel
def kernel_sum(
    x, y, x_weights, y_weights, out, kernel, degree, gamma, coef0, alpha, exclude_diagonal, center, bandwidth
):
    itself, x, y, *function = _prepared(x, y, kernel, degree, gamma, coef0, alpha, bandwidth)
    u = np.ones(x.shape[0]) if x_weights is None else x_weights.astype(np.float64)
    v = u if itself else np.ones(y.shape[0]) if y_weights is None else y_weights.astype(np.float64)
    none = np.empty(0)
    flags = itself, bool(exclude_diagonal)
    out[()] = _sums(x, y, u, v, *function, float(center), *flags, none, none)[0]


@kernel
def kernel_row_sums(
    x, y, rows, columns, squares, kernel, degree, gamma, coef0, alpha, exclude_diagonal, center, bandwidth
):
    itself, x, y, *function = _prepared(x, y, kernel, degree, gamma, coef0, alpha, bandwidth)
    ones, flags = np.ones(max(x.shape[0], y.shape[0])), (itself, bool(exclude_diagonal))
    squares[()] = _sums(x, y, ones, ones, *function, float(center), *flags, rows, columns)[1]
