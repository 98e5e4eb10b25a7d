"""Likelihoods: the log-density of the probability flow, and bits per dimension in one call.

Along dx/dlog(sigma) = x - D the log-density changes by minus the divergence, d - tr dD/dx. Both are integrated in
y = x / sqrt(sigma^2 + sigma_data^2), in which little moves: for Gaussian data of that deviation nothing does. Steps are
even in log sigma and the same for all samples, so a sample's value does not depend on its batch.
Not here: the variational bound (variational).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi, prod
from typing import Any, NamedTuple

import numpy as np

from .. import ops, random
from ..autograd import vjp
from .samplers.adaptive import NODES
from .samplers.adaptive import STAGES as SLOPES
from .sampling import sample_keys
from .variational import variational_bound

__all__ = ["LogLikelihood", "bits_per_dim", "dequantise", "log_likelihood"]

Denoiser = Callable[[Any, float], Any]
TRACES = ("exact", "hutchinson")
STAGES, WEIGHTS = ((), *SLOPES[:-1]), SLOPES[-1]  # of order 5; the last stage of the pair is for its error
PROBES = 1 << 50  # the stream numbers of the probes, beyond all others


class LogLikelihood(NamedTuple):
    """nats: log-density of each sample, (n,) float64. bits_per_dim: -nats / (d log 2). standard_error: of nats, from
    the probes; 0 for the exact trace, NaN for a single probe. latent: the sample at sigma_max. evaluations: of the
    denoiser."""

    nats: np.ndarray
    bits_per_dim: np.ndarray
    standard_error: np.ndarray
    latent: np.ndarray
    evaluations: int


def _vjp_traces(denoiser: Denoiser, directions: Sequence[np.ndarray]) -> Callable[[Any, float], tuple[Any, Any]]:
    """(x, sigma) -> D and v^T (dD/dx) v of each row and direction, (n, k): a forward and a backward pass for each.

    The rows stay as they are: a denoiser may hold something for every row. directions: k arrays that broadcast to x.
    """

    def of(x: Any, sigma: float) -> tuple[Any, Any]:
        products = []
        for v in directions:
            denoised, pull = vjp(lambda z: denoiser(z, sigma), x)
            (slope,) = pull(np.ascontiguousarray(np.broadcast_to(v, x.shape), x.dtype))
            if slope is None:
                raise TypeError(
                    "log_likelihood: the denoiser's result does not depend on x through generant.ops; write it in ops "
                    "or give divergence="
                )
            products.append((np.asarray(slope, np.float64) * v).reshape(len(x), -1).sum(1))
        return denoised, np.stack(products, 1)

    return of


def log_likelihood(
    denoiser: Denoiser,
    x: Any,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 1.0,
    n_steps: int = 100,
    trace: str = "exact",
    divergence: Callable[[Any, float], Any] | None = None,
    key: Any = None,
    probes: int = 1,
    prior: Callable[[Any], Any] | None = None,
) -> LogLikelihood:
    """log p(x), p the density of data + sigma_min noise that the probability flow of a denoiser has.

    denoiser(x, sigma): D of x = data + sigma noise, x (n, ...) as given; see `predictions.denoiser_of` for networks
    that predict something else. trace: "exact" pulls d unit vectors back, one after the other; "hutchinson"
    takes `probes` random signs from key, a standard error with more than one; divergence(x, sigma) -> (n,), the trace
    of dD/dx, replaces both. prior(x) -> (n,): the log-density at sigma_max; by default that of N(m, sigma_max^2 +
    sigma_data^2) with m = D(0; sigma_max), the mean of the data up to 1 / sigma_max^2; what it lacks falls like d
    sigma_data^2 / sigma_max^2. sigma_data: roughly the deviation of the data.
    Cost: 6 n_steps times d or `probes` passes of the denoiser, forward and backward. Accuracy: order 5 in the step,
    log(sigma_max / sigma_min) / n_steps. Song et al. (2021), eq. 39 and 40; Grathwohl et al. (2019) for the probes.
    """
    name = "log_likelihood"
    x = np.asarray(x) if not hasattr(x, "dtype") else x
    if len(x.shape) < 2 or prod(x.shape[1:]) == 0:
        raise ValueError(f"{name}: x must be n samples of at least one number each, got shape {tuple(x.shape)}")
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f"{name}: wanted 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"{name}: sigma_data must be positive and finite, got {sigma_data}")
    if n_steps < 1 or probes < 1:
        raise ValueError(f"{name}: n_steps and probes must be at least 1, got {n_steps} and {probes}")
    if trace not in TRACES:
        raise ValueError(f"{name}: trace must be one of {', '.join(TRACES)}, got {trace!r}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: x has values that are NaN or infinite")
    n, shape, d = x.shape[0], tuple(x.shape[1:]), prod(x.shape[1:])
    if divergence is not None:
        evaluate = lambda z, sigma: (denoiser(z, sigma), divergence(z, sigma)[:, None])
    elif trace == "exact":
        evaluate = _vjp_traces(denoiser, np.eye(d).reshape(d, *shape))
    else:
        if key is None:
            raise ValueError(f"{name}: trace='hutchinson' draws probes, and key is None; give a seed or a key")
        keys = sample_keys(key, n)
        signs = [
            np.sign(ops.normals(keys, np.array([PROBES + k], np.uint64), np.ones(1), shape=shape, dtype="float64"))
            for k in range(probes)
        ]
        evaluate = _vjp_traces(denoiser, signs)

    def slopes(y: np.ndarray, at: float) -> tuple[np.ndarray, np.ndarray]:
        """dy / dlog sigma and the traces, (n, 1) or a column per probe, less what sigma_data alone would give."""
        sigma = float(np.exp(at))
        r, share = np.hypot(sigma, sigma_data), sigma_data**2 / (sigma**2 + sigma_data**2)
        denoised, traces = evaluate((y * r).astype(x.dtype), sigma)
        denoised, traces = np.asarray(denoised, np.float64), np.asarray(traces, np.float64)
        if trace == "exact" and divergence is None:
            traces = traces.sum(1, keepdims=True)
        return (share * (y * r) - denoised) / r, traces - share * d

    y = np.asarray(x, np.float64) / np.hypot(sigma_min, sigma_data)
    total, at = np.zeros((n, 1)), log(sigma_min)
    h = (log(sigma_max) - at) / n_steps
    for i in range(n_steps):
        ks: list[tuple[np.ndarray, np.ndarray]] = []
        for node, row in zip(NODES[:-1], STAGES, strict=True):
            z = y + h * sum(a * k[0] for a, k in zip(row, ks, strict=True)) if row else y
            ks.append(slopes(z, at + (i + node) * h))
        y = y + h * sum(w * k[0] for w, k in zip(WEIGHTS, ks, strict=True))
        total = total + h * sum(w * k[1] for w, k in zip(WEIGHTS, ks, strict=True))
    r_max = float(np.hypot(sigma_max, sigma_data))
    latent = y * r_max
    if prior is None:
        mean = np.asarray(denoiser(np.zeros((n, *shape), x.dtype), float(sigma_max)), np.float64)
        rest = (y - mean / r_max).reshape(n, -1)
        at_max = -0.5 * (rest**2).sum(1) - d * (0.5 * log(2 * pi) + log(r_max))
    else:
        at_max = np.asarray(prior(latent.astype(x.dtype)), np.float64)
        if at_max.shape != (n,):
            raise ValueError(f"{name}: prior must return one log-density per sample, ({n},), got {at_max.shape}")
    each = at_max[:, None] + d * log(r_max / np.hypot(sigma_min, sigma_data)) - total
    nats = each.mean(1)
    if each.shape[1] > 1:
        error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
    else:
        error = np.full(n, np.nan if trace == "hutchinson" and divergence is None else 0.0)
    return LogLikelihood(nats, -nats / (d * log(2)), error, latent.astype(x.dtype), 6 * n_steps + (prior is None))


def dequantise(x: Any, key: Any, *, levels: int = 256, dtype: str = "float32") -> tuple[np.ndarray, float]:
    """(2 (x + u - 1/2) / (levels - 1) - 1, d log(2 / (levels - 1))): whole numbers made continuous, and the log-volume.

    x: (n, ...) integers in 0 ... levels - 1, which a network knows as 2 x / (levels - 1) - 1; u: uniform on [0, 1).
    log P(x) >= E log p(y) + log-volume, p the density of the results y.
    ValueError for other values. Theis, van den Oord and Bethge (2016), section 3.1.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "iu" or (x.size and not (0 <= x.min() and x.max() < levels)):
        raise ValueError(f"dequantise: x must be integers in 0 ... {levels - 1}, got {x.dtype}" +
                         (f" from {x.min()} to {x.max()}" if x.size else ""))  # fmt: skip
    u = random.uniform(key, x.shape, "float64")
    return (2 * (x + u - 0.5) / (levels - 1) - 1).astype(dtype), prod(x.shape[1:]) * log(2 / (levels - 1))


def bits_per_dim(denoiser: Denoiser, x: Any, *, method: str = "flow", key: Any = None, **options: Any) -> Any:
    """The likelihood of data in bits per dimension, in one call: LogLikelihood or VariationalBound.

    x: (n, ...); integers (8 bit, 0 ... 255) are dequantised, and bits are per number of 8 bits; floats are taken as
    they are. denoiser(x, sigma): D of x = data + sigma noise, for data scaled to [-1, 1] where x is integer. method:
    "flow", with options of `log_likelihood`, or "bound", with those of `variational_bound`. key: a seed or a key.
    """
    if method not in ("flow", "bound"):
        raise ValueError(f"bits_per_dim: method must be flow or bound, got {method!r}")
    x = np.asarray(x) if not hasattr(x, "dtype") else x
    whole = str(x.dtype).removeprefix("torch.").startswith(("int", "uint"))
    if method == "bound":
        return variational_bound(denoiser, x, key=key, **options)
    if not whole:
        return log_likelihood(denoiser, x, key=key, **options)
    if key is None:
        raise ValueError("bits_per_dim: integers are dequantised with random numbers, and key is None; give a seed")
    one = random.key(random.seed_from(key)) if np.ndim(key) == 0 else key
    y, volume = dequantise(x, random.fold_in(one, 0))
    found = log_likelihood(denoiser, y, key=random.fold_in(one, 1), **options)
    nats = found.nats + volume
    return found._replace(nats=nats, bits_per_dim=-nats / (prod(x.shape[1:]) * log(2)))
