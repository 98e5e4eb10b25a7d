"""Log-sum-exp and softmax averages over all pairs: what attention, kernel density estimates, entropic transport and
the ideal denoiser of a data set have in common."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from ._arguments import Given, plain, run


def _check_scale(function: str, scale: Any) -> float:
    if not isinstance(scale, numbers.Real) or not math.isfinite(scale):
        raise ValueError(f"{function}: scale must be a finite number, got {scale!r}")
    return float(scale)


def logsumexp(
    x: Any,
    y: Any,
    bias: Any = None,
    *,
    scale: float = 1.0,
    cost: str = "sqeuclidean",
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """log sum_j exp(bias_j + score_ij) for every row of x, (..., n) in the points' dtype.

    x (..., n, d), y (..., m, d): points. bias (..., m): added to every score, -inf leaves a row of y out; kept in
    float64. cost: score = -scale |x - y|^2 ("sqeuclidean"), -scale |x - y| ("euclidean") or scale <x, y> ("dot").
    Exponentials never overflow; a score beyond the range of the dtype counts as infinite. Time n m d, memory O(n + m).
    Differentiable in x, y and bias, twice.
    Raises ValueError for shapes that do not fit and rows that are not finite.
    """
    scale = _check_scale("logsumexp", scale)

    def call(x: Any, y: Any, bias: Any) -> Any:
        return ops.logsumexp(x, y, bias, scale=scale, cost=cost)

    given = Given("x", x), Given("y", y), Given("bias", bias, 1, optional=True, bias=True)
    return run("logsumexp", call, *given, n_threads=n_threads, out=out, cast=True)


def softmax_matmul(
    x: Any,
    y: Any,
    v: Any,
    bias: Any = None,
    *,
    scale: float = 1.0,
    cost: str = "sqeuclidean",
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """Averages sum_j p_ij v_j with p_i = softmax_j(bias_j + score_ij): (..., n, e).

    x (..., n, d), y (..., m, d): points, v (..., m, e): what is averaged. bias, scale, cost as in logsumexp.
    cost="dot" with scale = d^-1/2 is attention; v = y with cost="sqeuclidean" is the barycentric map, and with
    scale = 1 / (2 sigma^2) the ideal denoiser E[y | x] of the data set y at noise level sigma.
    Time n m (d + e), memory O(n + m). Differentiable in x, y, v and bias, twice.
    Raises ValueError for shapes that do not fit and rows that are not finite.
    """
    scale = _check_scale("softmax_matmul", scale)

    def call(x: Any, y: Any, v: Any, bias: Any) -> Any:
        return ops.softmax_matmul(x, y, v, bias, scale=scale, cost=cost)

    points = Given("x", x), Given("y", y), Given("v", v, own_width=True)
    given = *points, Given("bias", bias, 1, optional=True, bias=True)
    return run("softmax_matmul", call, *given, n_threads=n_threads, out=out)


def kde_logpdf(
    x: Any, centers: Any, bandwidth: Any, *, weights: Any = None, n_threads: int | None = None, out: Any = None
) -> Any:
    """Log density, in nats, of a mixture of isotropic Gaussians at every row of x: a kernel density estimate.

    x (..., n, d), centers (..., m, d). bandwidth, the standard deviation: one number, or (m,) one per centre. weights
    (m,) >= 0 are divided by their sum; equal if absent. Returns (..., n) in the points' dtype.
    One bandwidth: float32 points are computed in float32. One per centre: the squared distance is an inner product of
    d + 1 columns, computed in float64.
    Time n m d, memory O(n + m). Differentiable in x and centers. Raises ValueError for shapes that do not fit, rows
    that are not finite, bandwidth <= 0, weights that are negative or all zero.
    """
    try:
        h = np.asarray(_device.from_device(bandwidth), np.float64)
    except (TypeError, ValueError):
        h = np.full((), np.nan)
    if h.ndim > 1 or not (np.isfinite(h).all() and (h > 0).all()):
        raise ValueError(f"kde_logpdf: bandwidth must be positive and finite, a number or (m,), got {bandwidth!r}")

    def log_shares(m: int, d: int) -> np.ndarray:
        """log of weight / sum of weights / normaliser of the Gaussian, per centre."""
        if h.ndim and h.shape != (m,):
            raise ValueError(f"kde_logpdf: bandwidth has shape {h.shape}, but there are {m} centers")
        share = np.full(m, 1 / m)
        if weights is not None:
            share = np.asarray(_device.from_device(weights), np.float64)
            if share.shape != (m,) or not (np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0):
                raise ValueError(f"kde_logpdf: weights must be {m} numbers >= 0 with a positive sum")
            share = share / share.sum()
        with np.errstate(divide="ignore"):
            return np.log(share) - d * np.log(h) - 0.5 * d * math.log(2 * math.pi)

    def call(x: Any, centers: Any) -> Any:
        m, d = centers.shape
        points = plain(centers)
        bias = _device.beside(points, log_shares(m, d))
        if not h.ndim:
            return ops.logsumexp(x, centers, bias, scale=float(0.5 / h**2))
        # -|x - y|^2 / (2 h^2) = <(x, |x|^2), (y / h^2, -1 / (2 h^2))> - |y|^2 / (2 h^2)
        x, centers = ops.cast(x, dtype="float64"), ops.cast(centers, dtype="float64")
        mean = ops.mean(centers, axis=0, keepdims=True)
        x, centers = ops.sub(x, mean), ops.sub(centers, mean)
        precision = _device.beside(points, 1 / h[:, None] ** 2)
        left = ops.concat(x, ops.sum(ops.square(x), axis=1, keepdims=True))
        right = ops.concat(ops.mul(centers, precision), -0.5 * precision)
        norms = ops.reshape(ops.mul(ops.sum(ops.square(centers), axis=1, keepdims=True), 0.5 * precision), shape=(m,))
        return ops.logsumexp(left, right, ops.sub(bias, norms), cost="dot")

    given = Given("x", x), Given("centers", centers)
    return run("kde_logpdf", call, *given, n_threads=n_threads, out=out, cast=True)
