"""The variational bound of a diffusion model in discrete time: bits per dimension, term by term.

-log p(x_0) <= KL(q(x_T | x_0) || N(0, I)) + sum_t KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) - log p(x_0 | x_1).
Each term is a closed form given x_t; x_t itself is drawn, once per term and sample. Ho et al. (2020), eq. 5; Nichol and
Dhariwal (2021) for learned variances.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf, log, pi, prod
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from .sampling import sample_keys

__all__ = ["VARIANCES", "VariationalBound", "gaussian_kl", "variational_bound"]

VARIANCES = ("fixed_small", "fixed_large", "learned_range")
DATA_LEVELS = 256


class VariationalBound(NamedTuple):
    """In bits per dimension, (n,) float64: the bound, and its parts that add up to it. terms: (T - 1, n), of
    t = T .. 2. nats: the bound on log p(x), (n,). evaluations: of the denoiser."""

    bits_per_dim: np.ndarray
    prior: np.ndarray
    terms: np.ndarray
    decoder: np.ndarray
    nats: np.ndarray
    evaluations: int


def gaussian_kl(mean: Any, log_v: Any, other_mean: Any, other_log_v: Any) -> np.ndarray:
    """KL(N(mean, v) || N(other_mean, other_v)) of every number: (log_v' - log_v + e^(log_v - log_v') + (m - m')^2 /
    v' - 1) / 2. In nats, float64."""
    ratio = np.asarray(log_v, np.float64) - other_log_v
    precision = np.exp(-np.asarray(other_log_v, np.float64))
    return 0.5 * (-1.0 - ratio + np.exp(ratio) + (mean - other_mean) ** 2 * precision)


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    try:
        from scipy.special import ndtr  # type: ignore[import-untyped]
    except ImportError:
        return 0.5 * (1 + np.vectorize(erf, otypes=[float])(z / np.sqrt(2)))
    return np.asarray(ndtr(z))


def _decoder(x: np.ndarray, mean: np.ndarray, log_v: Any, whole: bool) -> np.ndarray:
    """-log p(x_0 | x_1) of every number: of its interval of 2 / 255 where data are whole, of its density where not."""
    spread = np.exp(0.5 * np.asarray(log_v, np.float64))
    z = (x - mean) / spread
    if not whole:
        return 0.5 * (z * z + log(2 * pi)) + np.log(spread)
    half = 1 / (DATA_LEVELS - 1) / spread
    upper = np.where(x > 0.999, 1.0, _normal_cdf(z + half))
    lower = np.where(x < -0.999, 0.0, _normal_cdf(z - half))
    return -np.log(np.maximum(upper - lower, 1e-12))


def variational_bound(
    denoiser: Callable[[Any, float], Any],
    x: Any,
    *,
    alphas_cumprod: Any,
    variance: str = "fixed_small",
    clip: float | None = None,
    key: Any = None,
) -> VariationalBound:
    """-log p(x) <= prior + terms + decoder, in bits per dimension, for every sample.

    denoiser(x, sigma): D of x = data + sigma noise, sigma = sqrt((1 - a_t) / a_t) of alphas_cumprod a, (T,); for
    variance "learned_range" it returns (D, v), v in [-1, 1] between the logarithms of the posterior's variance and
    beta. clip: D is kept in [-clip, clip]. x: (n, ...): 8-bit integers are scaled to [-1, 1] and decoded by a
    discretised Gaussian; floats by a Gaussian density. key: a seed, a key or a key per sample. T denoiser calls.
    """
    name = "variational_bound"
    a = np.asarray(alphas_cumprod, np.float64)
    if a.ndim != 1 or len(a) < 2 or not ((np.diff(a) < 0).all() and 0 < a[-1] and a[0] < 1):
        raise ValueError(f"{name}: alphas_cumprod must be a vector that falls strictly within (0, 1), got {a}")
    if variance not in VARIANCES:
        raise ValueError(f"{name}: variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    if key is None:
        raise ValueError(f"{name}: the bound draws noise, and key is None; give a seed or a key")
    x = np.asarray(x)
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"{name}: x must be n samples of at least one number each (n, ...), got shape {x.shape}")
    whole = x.dtype.kind in "iu"
    if whole and not (0 <= x.min() and x.max() < DATA_LEVELS):
        raise ValueError(f"{name}: integers must lie in 0 ... {DATA_LEVELS - 1}, got {x.min()} to {x.max()}")
    dtype = np.dtype("float32" if whole else x.dtype)
    data = x * (2 / (DATA_LEVELS - 1)) - 1 if whole else x.astype(np.float64)
    n, shape, d = len(x), x.shape[1:], prod(x.shape[1:])
    keys, total = sample_keys(key, n), len(a)
    per_dim = lambda v: np.broadcast_to(v, x.shape).reshape(n, -1).sum(1) / (d * log(2))
    prior = per_dim(gaussian_kl(a[-1] ** 0.5 * data, log(1 - a[-1]), 0.0, 0.0))
    before = np.append(1.0, a[:-1])
    beta = 1 - a / before
    small = (1 - before) / (1 - a) * beta
    small[0] = small[1]  # the last step has no posterior: its neighbour's variance, as Ho et al. (2020)
    terms = []
    for t in range(total - 1, -1, -1):
        number = np.array([t + 1], np.uint64)
        z = ops.normals(keys, number, np.ones(1), shape=shape, dtype=dtype.name)
        level = float(np.sqrt((1 - a[t]) / a[t]))
        said = denoiser((data + level * z).astype(dtype), level)
        denoised, values = said if variance == "learned_range" else (said, None)
        denoised = np.asarray(denoised, np.float64)
        if clip is not None:
            denoised = np.clip(denoised, -clip, clip)
        c_d = before[t] ** 0.5 * beta[t] / (1 - a[t])
        c_x = (1 - beta[t]) ** 0.5 * (1 - before[t]) / (1 - a[t])
        noised = a[t] ** 0.5 * (data + level * z)
        mean = c_x * noised + c_d * denoised
        log_v: Any = log(beta[t] if variance == "fixed_large" else small[t])
        if values is not None:
            share = (np.asarray(values, np.float64) + 1) / 2
            log_v = share * log(beta[t]) + (1 - share) * log(small[t])
        if t == 0:
            decoder = per_dim(_decoder(data, mean, log_v, whole))
        else:
            terms.append(per_dim(gaussian_kl(c_x * noised + c_d * data, log(small[t]), mean, log_v)))
    bits = prior + np.sum(terms, axis=0) + decoder
    return VariationalBound(bits, prior, np.array(terms), decoder, -bits * d * log(2), total)
