"""The kernel functions k(x, y) = phi(q), as NumPy defines them: value, first and second derivative.

q is |x - y|^2, |x - y|_1 or <x, y>. Every op that has a `kernel` attribute reads it here, so the formulas stand once
per language: here, in _numba/_kernel_function.py and in csrc/kernel_function.h. All arithmetic is that of q's dtype,
long double included.

    rbf                 exp(-s / (2 h^2)), s = |x - y|^2
    laplace             exp(-r / h), r = |x - y|_2 (Matern 1/2)
    laplacian           exp(-|x - y|_1 / h)
    polynomial          (gamma <x, y> + coef0)^degree; gamma = 1/d if None
    energy              -r
    rational_quadratic  (1 + s / (2 alpha h^2))^-alpha; alpha = 1/2: inverse multiquadric
    matern32            (1 + c) exp(-c), c = sqrt(3) r / h
    matern52            (1 + c + c^2 / 3) exp(-c), c = sqrt(5) r / h
    exp_dot             exp(gamma <x, y>); gamma = 1/d if None

h is the bandwidth; of several bandwidths the kernel is the sum.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

KERNELS = (
    "rbf", "laplace", "laplacian", "polynomial", "energy", "rational_quadratic", "matern32", "matern52", "exp_dot",
)  # the order that csrc/kernel_function.h counts in
INNER = ("polynomial", "exp_dot")  # q = <x, y>
WITH_LOGS = ("rbf", "laplace", "exp_dot")  # k = exp(something), so logarithms of weights can go into the exponent
MOST_BANDWIDTHS = 16


def bandwidths(bandwidth: Any) -> tuple[float, ...]:
    """A bandwidth or several of them, as a tuple of floats."""
    given = bandwidth if isinstance(bandwidth, (tuple, list, np.ndarray)) else (bandwidth,)
    return tuple([float(h) for h in given])


def check_kernel(
    op: str, *, kernel: str = "rbf", degree: int = 3, gamma: float | None = None, coef0: float = 1.0,
    alpha: float = 1.0, bandwidth: Any = 1.0, logs: bool = False, **_: Any,
) -> None:
    """Refuse parameters no kernel function has. logs: whether logarithms of weights are given."""
    widths = bandwidths(bandwidth)
    if not 1 <= len(widths) <= MOST_BANDWIDTHS:
        raise ValueError(f"{op}: bandwidth must be a number or 1 to {MOST_BANDWIDTHS} of them, got {len(widths)}")
    if not all(0 < h < math.inf for h in widths):
        raise ValueError(f"{op}: bandwidth must be positive and finite, got {bandwidth!r}")
    if degree < 1:
        raise ValueError(f"{op}: degree must be at least 1, got {degree!r}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"{op}: alpha must be positive and finite, got {alpha!r}")
    if not (gamma is None or math.isfinite(gamma)) or not math.isfinite(coef0):
        raise ValueError(f"{op}: gamma and coef0 must be finite, got {gamma!r} and {coef0!r}")
    if logs and (kernel not in WITH_LOGS or (kernel == "rbf" and len(widths) > 1)):
        raise ValueError(
            f"{op}: x_log and y_log go into the exponent of the kernel, so it must be rbf with one bandwidth, laplace "
            f"or exp_dot, got {kernel!r} with {len(widths)} bandwidth{'s' if len(widths) > 1 else ''}"
        )


class KernelFunction:
    """phi with its parameters, for points of d coordinates."""

    def __init__(
        self, d: int, *, kernel: str, degree: int, gamma: float | None, coef0: float, alpha: float, bandwidth: Any
    ) -> None:
        self.kernel, self.degree, self.coef0, self.alpha = kernel, int(degree), float(coef0), float(alpha)
        self.gamma = 1 / d if gamma is None else float(gamma)
        self.bandwidths = bandwidths(bandwidth)

    def argument(self, row: np.ndarray, points: np.ndarray) -> np.ndarray:
        """q of one row (d,) and every one of the points (m, d)."""
        if self.kernel in INNER:
            return (points * row).sum(axis=1)
        if self.kernel == "laplacian":
            return np.abs(row - points).sum(axis=1)
        return ((row - points) ** 2).sum(axis=1)

    def gradient(self, row: np.ndarray, points: np.ndarray) -> np.ndarray:
        """dq / d row (m, d); 0 where a coordinate of |x - y|_1 is 0."""
        if self.kernel in INNER:
            return points
        if self.kernel == "laplacian":
            return np.sign(row - points)
        return 2 * (row - points)

    def __call__(self, q: np.ndarray, order: int = 0, log: np.ndarray | None = None) -> np.ndarray:
        """exp(log) times phi(q), or its first or second derivative in q; log only for kernels in WITH_LOGS.

        At q = 0 a derivative that does not exist is 0: first and second of laplace, laplacian and energy, second of
        matern32 (where it meets a factor that is 0).
        """
        one = q.dtype.type(1)
        logs: Any = 0 if log is None else log.astype(q.dtype)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
            if self.kernel == "polynomial":
                base, n, factor = self.gamma * q + self.coef0, self.degree, one
                for _ in range(order):
                    factor, n = factor * self.gamma * n, n - 1
                return factor * base ** max(n, 0)
            if self.kernel == "exp_dot":
                return np.exp(self.gamma * q + logs) * self.gamma**order
            if self.kernel == "energy":
                r = np.sqrt(q)
                return -r if order == 0 else _smooth(q, -0.5 / r if order == 1 else 0.25 / (q * r))
            total: Any = sum(self._radial(q, order, logs, one * h) for h in self.bandwidths)
            return total

    def _radial(self, q: np.ndarray, order: int, log: Any, h: Any) -> np.ndarray:
        """The kernels with a bandwidth, for one of them."""
        if self.kernel == "rbf":
            return np.exp(log - q / (2 * h * h)) * (-1 / (2 * h * h)) ** order
        if self.kernel == "laplacian":
            value = np.exp(-q / h) * (-1 / h) ** order
            return value if order == 0 else _smooth(q, value)
        if self.kernel == "rational_quadratic":
            a = self.alpha
            factor = (1, -1 / (2 * h * h), (a + 1) / (4 * a * h**4))[order]
            return factor * (1 + q / (2 * a * h * h)) ** (-a - order)
        if self.kernel == "laplace":
            r = np.sqrt(q)
            value = np.exp(log - r / h)
            if order == 0:
                return value
            return _smooth(q, -value / (2 * h * r) if order == 1 else value * (1 + h / r) / (4 * h * h * q))
        if self.kernel == "matern32":
            c = np.sqrt(3 * q) / h
            value, slope = np.exp(-c), 3 / (2 * h * h)
            return (1 + c) * value if order == 0 else -slope * value if order == 1 else _smooth(q, slope**2 * value / c)
        if self.kernel == "matern52":
            c = np.sqrt(5 * q) / h
            value, slope = np.exp(-c), 5 / (6 * h * h)
            factor = (1 + c + c * c / 3, -slope * (1 + c), 3 * slope**2)[order]
            return factor * value
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")


def _smooth(q: np.ndarray, value: np.ndarray) -> np.ndarray:
    """value where q is not 0."""
    return np.where(q == 0, q.dtype.type(0), value)
