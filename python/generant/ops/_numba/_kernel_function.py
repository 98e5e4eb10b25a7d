"""Numba twin of the kernel functions phi(q): value, first and second derivative, in place over a block, in float64.

One function holds all kernels, so that every op that has a `kernel` attribute compiles its loops once.
"""

import numpy as np

from .._kernel_function import INNER, KERNELS, KernelFunction
from ._kernel import jit

RBF, LAPLACE, LAPLACIAN, POLYNOMIAL, ENERGY, RATIONAL_QUADRATIC, MATERN32, MATERN52, EXP_DOT = range(len(KERNELS))


def packed(d, kernel, degree, gamma, coef0, alpha, bandwidth):
    """What `apply` and `argument` read of a kernel: (its number, (degree, gamma, coef0, alpha), bandwidths)."""
    f = KernelFunction(
        d, kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=bandwidth
    )
    widths = np.ones(1) if kernel in INNER or kernel == "energy" else np.array(f.bandwidths)
    return KERNELS.index(kernel), np.array([f.degree, f.gamma, f.coef0, f.alpha], np.float64), widths


@jit
def argument(row, columns, number, out):
    """q of a row (d,) and of points held coordinate by coordinate, columns (d, count), into out (count,)."""
    out[:] = 0
    for k in range(columns.shape[0]):
        a = row[k]
        if number == POLYNOMIAL or number == EXP_DOT:
            for j in range(columns.shape[1]):
                out[j] += a * columns[k, j]
        elif number == LAPLACIAN:
            for j in range(columns.shape[1]):
                out[j] += abs(a - columns[k, j])
        else:
            for j in range(columns.shape[1]):
                t = a - columns[k, j]
                out[j] += t * t


@jit
def _value(q, log, order, number, p, h):
    """exp(log) phi(q) or a derivative, for one bandwidth."""
    if number == RBF:
        t = -0.5 / (h * h)
        return np.exp(log + q * t) * t**order
    if number == POLYNOMIAL:
        factor, n = 1.0, int(p[0])
        for _ in range(order):
            factor, n = factor * p[1] * n, n - 1
        base = p[1] * q + p[2]
        for _ in range(n):
            factor *= base
        return factor
    if number == EXP_DOT:
        return np.exp(log + p[1] * q) * p[1] ** order
    if number == RATIONAL_QUADRATIC:
        a = p[3]
        factor = 1.0 if order == 0 else -0.5 / (h * h) if order == 1 else (a + 1) / (4 * a * h**4)
        return factor * (1 + q / (2 * a * h * h)) ** (-a - order)
    if number == MATERN52:
        c, t = np.sqrt(5 * q) / h, 5 / (6 * h * h)
        return np.exp(-c) * (1 + c + c * c / 3 if order == 0 else -t * (1 + c) if order == 1 else 3 * t * t)
    if number == MATERN32 and order < 2:
        c = np.sqrt(3 * q) / h
        return np.exp(-c) * (1 + c if order == 0 else -1.5 / (h * h))
    if q == 0 and order > 0:
        return 0.0  # the derivative does not exist
    if number == MATERN32:
        c, t = np.sqrt(3 * q) / h, 1.5 / (h * h)
        return np.exp(-c) * t * t / c
    if number == LAPLACIAN:
        return np.exp(-q / h) * (-1 / h) ** order
    r = np.sqrt(q)
    if number == ENERGY:
        return -r if order == 0 else -0.5 / r if order == 1 else 0.25 / (q * r)
    value = np.exp(log - r / h)
    return value if order == 0 else -value / (2 * h * r) if order == 1 else value * (1 + h / r) / (4 * h * h * q)


@jit
def apply(q, log, order, number, p, widths):
    """q[j] becomes exp(log[j]) times phi(q[j]) (order 0) or its derivative of that order, summed over bandwidths.

    log (count,) or (0,) for none. Where a derivative does not exist at q = 0 it is 0.
    """
    with_logs = log.shape[0] > 0
    for j in range(q.shape[0]):
        value = 0.0
        for h in widths:
            value += _value(q[j], log[j] if with_logs else 0.0, order, number, p, h)
        q[j] = value
