"""p(z) of a VAE: standard normal, a learned mixture of Gaussians, and the VampPrior.

One interface. z (n, d) latents; encode(x) -> (mu, logvar), each (k, d), is the model's encoder; only the VampPrior
asks it.
    log_prob(z, encode)        (n,) nats: ops only, differentiable in z and in what the prior learns
    sample(key, n, encode)     n latents (n, d), on plain arrays; fewer are a prefix of more
Without a closed form for KL(q || p) a VAE takes log q(z) - log p(z) at its sample. Not here: flows, hierarchies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops, random
from ..data.checks import check_count
from ..nn import Module, init
from ..random import Stream
from .likelihoods import draw_levels

__all__ = ["MixturePrior", "StandardNormal", "VampPrior", "gaussian_log_prob", "mixture_log_prob"]

Encode = Callable[[Any], tuple[Any, Any]] | None


def gaussian_log_prob(z: Any, mu: Any = None, logvar: Any = None) -> Any:
    """log N(z; mu, exp(logvar)) = -1/2 sum (log 2 pi + logvar + (z - mu)^2 exp(-logvar)), for every row.

    z, mu, logvar (n, d); mu and logvar are 0 if absent. Returns (n,).
    """
    terms = ops.square(z if mu is None else ops.sub(z, mu))
    if logvar is not None:
        terms = ops.add(ops.mul(terms, ops.exp(ops.affine(logvar, scale=-1.0))), logvar)
    return ops.affine(ops.sum(terms, axis=-1), scale=-0.5, shift=-0.5 * z.shape[-1] * math.log(2 * math.pi))


def mixture_log_prob(z: Any, mu: Any, logvar: Any, logits: Any = None) -> Any:
    """log sum_k softmax(logits)_k N(z; mu_k, exp(logvar_k)), for every row.

    z (n, d); mu, logvar (k, d); logits (k,), equal weights if absent. Returns (n,) in z's dtype.
    One logsumexp over the scores <(z^2, z), (-1/2, mu) / var>: time n k d, memory O(n + k), differentiable twice. The
    squares are taken apart, so this is done in float64, in which they lose nothing that z's dtype holds.
    """
    dtype, (k, d) = z.dtype.name, mu.shape
    z, mu, logvar = (ops.cast(a, dtype="float64") for a in (z, mu, logvar))
    precision = ops.exp(ops.affine(logvar, scale=-1.0))
    linear = ops.mul(mu, precision)
    bias = ops.affine(
        ops.sum(ops.add(ops.mul(linear, mu), logvar), axis=-1), scale=-0.5, shift=-0.5 * d * math.log(2 * math.pi)
    )
    if logits is None:
        bias = ops.affine(bias, shift=-math.log(k))
    else:
        bias = ops.add(bias, ops.log_softmax(ops.cast(logits, dtype="float64")))
    points, components = ops.concat(ops.square(z), z), ops.concat(ops.affine(precision, scale=-0.5), linear)
    return ops.cast(ops.logsumexp(points, components, bias, scale=1.0, cost="dot"), dtype=dtype)


class StandardNormal(Module):
    """N(0, 1) in d dimensions. Kingma and Welling (2014)."""

    def __init__(self, d: int) -> None:
        self.d = check_count("StandardNormal", "d", d)

    def log_prob(self, z: Any, encode: Encode = None) -> Any:
        return gaussian_log_prob(z)

    def sample(self, key: Any, n: int, encode: Encode = None) -> Any:
        return ops.normal(key, shape=(n, self.d))


class Mixture(Module):
    """What mixtures of k Gaussians share; a subclass says which: components(encode) -> mu, logvar (k, d), logits (k,)
    or None."""

    def components(self, encode: Encode = None) -> tuple[Any, Any, Any]:
        raise TypeError(f"{type(self).__name__} has no components")

    def log_prob(self, z: Any, encode: Encode = None) -> Any:
        return mixture_log_prob(z, *self.components(encode))

    def sample(self, key: Any, n: int, encode: Encode = None) -> Any:
        mu, logvar, logits = self.components(encode)
        which_key, noise_key = random.split(key, 2)
        u = ops.uniform(which_key, shape=(n,), dtype="float64")
        which = draw_levels(u, np.zeros(len(mu), np.float32) if logits is None else logits)
        noise = ops.normal(noise_key, shape=(n, mu.shape[1]), dtype=mu.dtype.name)
        return mu[which] + np.exp(0.5 * logvar[which]) * noise


class MixturePrior(Mixture):
    """sum_k softmax(logits)_k N(mu_k, exp(logvar_k)) with all three learned; begins with mu from N(0, 1), unit
    variances and equal weights. Needs no encoder."""

    def __init__(self, d: int, k: int, stream: Stream, *, dtype: str = "float32") -> None:
        shape = (check_count("MixturePrior", "k", k), check_count("MixturePrior", "d", d))
        self.mu = init.normal(shape, stream, dtype=dtype)
        self.logvar = np.zeros(shape, dtype)
        self.logits = np.zeros(k, dtype)

    def components(self, encode: Encode = None) -> tuple[Any, Any, Any]:
        return self.mu, self.logvar, self.logits


class VampPrior(Mixture):
    """1/k sum_k q(z | u_k): the encoder's Gaussians of k learned pseudo-inputs u.

    x (k, ...): the first pseudo-inputs, say random training data, copied. low, high: pseudo-inputs beyond count as on
    the limit, and have no gradient there: 0 and 1 are the paper's hardtanh for pixels.
    Tomczak and Welling (2018), "VAE with a VampPrior", equation 9.
    """

    def __init__(self, x: Any, *, low: float | None = None, high: float | None = None) -> None:
        self.pseudo_inputs = np.array(x)
        self.low, self.high = low, high

    def components(self, encode: Encode = None) -> tuple[Any, Any, Any]:
        if encode is None:
            raise ValueError("VampPrior: encode is None, but its components are the encoder's")
        u = self.pseudo_inputs
        if self.low is not None or self.high is not None:
            u = ops.clip(u, low=self.low, high=self.high)
        return (*encode(u), None)
