"""Numba twins of the kernel matrix products: rows of x against blocks of y held coordinate by coordinate.

Everything is computed in float64 from coordinate differences, so one compilation serves both float types.
"""

import numpy as np

from ._kernel import jit, kernel
from ._kernel_function import EXP_DOT, LAPLACIAN, POLYNOMIAL, apply, argument, packed

BLOCK = 512


@jit
def _block(y, begin):
    """Up to BLOCK rows of y from `begin`, as columns."""
    return np.ascontiguousarray(y[begin : min(begin + BLOCK, y.shape[0])].T)


@jit
def _logs(x_log, y_log, i, begin, count, out):
    """The logarithms of the weights of row i and of the block's rows; none if y_log has no elements."""
    if y_log.shape[0] == 0:
        return out[:0]
    for j in range(count):
        out[j] = x_log[i] + y_log[begin + j]
    return out[:count]


@jit
def _matvec(x, y, v, x_log, y_log, number, p, widths, exclude, out):
    out[:] = 0
    q, logs = np.empty(BLOCK), np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        columns = _block(y, begin)
        value = q[: columns.shape[1]]
        for i in range(x.shape[0]):
            argument(x[i], columns, number, value)
            apply(value, _logs(x_log, y_log, i, begin, value.shape[0], logs), 0, number, p, widths)
            if exclude and begin <= i < begin + value.shape[0]:
                value[i - begin] = 0
            for j in range(value.shape[0]):
                for c in range(v.shape[1]):
                    out[i, c] += value[j] * v[begin + j, c]


@jit
def _dx_bwd(h, x, y, g, v, x_log, y_log, number, p, widths, exclude, second, out, dx, dy, dg, dv):
    """kernel_matvec_dx into out (n, d), or where `second` the gradients of <h, that> into dx, dy, dg, dv."""
    n, d = x.shape
    q, bends, logs = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    direction = np.empty(d)
    inner = number == POLYNOMIAL or number == EXP_DOT
    for begin in range(0, y.shape[0], BLOCK):
        columns = _block(y, begin)
        count = columns.shape[1]
        slope, bend = q[:count], bends[:count]
        for i in range(n):
            argument(x[i], columns, number, slope)
            bend[:] = slope
            log = _logs(x_log, y_log, i, begin, count, logs)
            apply(slope, log, 1, number, p, widths)
            if second:
                apply(bend, log, 2, number, p, widths)
            if exclude and begin <= i < begin + count:
                slope[i - begin] = bend[i - begin] = 0
            for j in range(count):
                row = begin + j
                weight, along = 0.0, 0.0
                for c in range(v.shape[1]):
                    weight += g[i, c] * v[row, c]
                for k in range(d):  # dq / dx
                    delta = x[i, k] - y[row, k]
                    direction[k] = y[row, k] if inner else np.sign(delta) if number == LAPLACIAN else 2 * delta
                turn = weight * slope[j]
                if not second:
                    for k in range(d):
                        out[i, k] += turn * direction[k]
                    continue
                for k in range(d):
                    along += direction[k] * h[i, k]
                for c in range(v.shape[1]):
                    dg[i, c] += slope[j] * along * v[row, c]
                    dv[row, c] += slope[j] * along * g[i, c]
                along *= weight * bend[j]
                if inner:
                    for k in range(d):
                        dx[i, k] += along * direction[k]
                        dy[row, k] += along * x[i, k] + turn * h[i, k]
                else:
                    turn *= 0.0 if number == LAPLACIAN else 2.0
                    for k in range(d):
                        each = along * direction[k] + turn * h[i, k]
                        dx[i, k] += each
                        dy[row, k] -= each


def _wide(*arrays):
    return [a.astype(np.float64) for a in arrays]


def _weights(n, m, x_log, y_log):
    """Both logs, or two empty arrays."""
    if x_log is None and y_log is None:
        return np.empty(0), np.empty(0)
    return np.zeros(n) if x_log is None else x_log, np.zeros(m) if y_log is None else y_log


def _function(x, kernel, degree, gamma, coef0, alpha, exclude_diagonal, bandwidth):
    return *packed(x.shape[1], kernel, degree, gamma, coef0, alpha, bandwidth), bool(exclude_diagonal)


@kernel
def kernel_matvec(x, y, v, x_log, y_log, out, *attrs):
    logs = _weights(x.shape[0], y.shape[0], x_log, y_log)
    total = np.empty(out.shape)
    _matvec(*_wide(x, y, v), *logs, *_function(x, *attrs), total)
    out[...] = total


@kernel
def kernel_matvec_dx(x, y, g, v, x_log, y_log, out, *attrs):
    logs = _weights(x.shape[0], y.shape[0], x_log, y_log)
    total, none = np.zeros(out.shape), np.empty((0, 0))
    _dx_bwd(none, *_wide(x, y, g, v), *logs, *_function(x, *attrs), False, total, none, none, none, none)
    out[...] = total


@kernel
def kernel_matvec_dx_bwd(h, x, y, g, v, x_log, y_log, dx, dy, dg, dv, *attrs):
    logs = _weights(x.shape[0], y.shape[0], x_log, y_log)
    totals = [np.zeros(a.shape) for a in (x, y, g, v)]
    _dx_bwd(*_wide(h, x, y, g, v), *logs, *_function(x, *attrs[:-1]), True, np.empty((0, 0)), *totals)
    for out, total in zip((dx, dy, dg, dv), totals, strict=True):
        if out is not None:
            out[...] = total
