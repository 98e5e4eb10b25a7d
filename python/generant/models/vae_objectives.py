"""What a variational autoencoder minimises: the evidence lower bound, its importance-weighted form, and M2's.

All are functions of a network (an Autoencoder), arrays and a key, made of ops, so they can be recorded. A bound is a
loss: negated, in nats per row, weighted by row. `score` is the importance-sampled log-likelihood and runs on plain
arrays.

Not here: data, labels, steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from .priors import gaussian_log_prob

__all__ = ["elbo", "importance_log_prob", "iwae", "log_mean_exp", "m2"]

LOG_2PI = math.log(2 * math.pi)


def _mean(values: Any, weight: Any) -> Any:
    return ops.mean(ops.mul(values, weight))


def _repeat(x: Any, k: int) -> Any:
    """Row i of x (n, ...) k times over, (n k, ...)."""
    n, rest = x.shape[0], tuple(x.shape[1:])
    return ops.reshape(ops.expand(ops.reshape(x, shape=(n, 1, *rest)), shape=(n, k, *rest)), shape=(n * k, *rest))


def _draw(mu: Any, logvar: Any, noise: Any) -> Any:
    return ops.add(mu, ops.mul(ops.exp(ops.affine(logvar, scale=0.5)), noise))


def _log_q(logvar: Any, noise: Any) -> Any:
    """log q(z | x), (n,), of z = mu + exp(logvar / 2) noise."""
    terms = ops.affine(ops.add(ops.square(noise), logvar), scale=-0.5, shift=-0.5 * LOG_2PI)
    return ops.sum(terms, axis=1)


def _log_prior(net: Any, z: Any) -> Any:
    """log p(z), (n,)."""
    if net.prior is None:
        return gaussian_log_prob(z)
    return net.prior.log_prob(z, net.encode_pseudo)


def log_mean_exp(x: Any) -> Any:
    """log (1/k sum_j exp(x_ij)) of x (n, k), (n,)."""
    top = ops.stop_gradient(ops.max(x, axis=1, keepdims=True))
    total = ops.log(ops.mean(ops.exp(ops.sub(x, top)), axis=1))
    return ops.add(total, ops.reshape(top, shape=(x.shape[0],)))


def _free(mu: Any, logvar: Any, weight: Any, free_bits: float) -> Any:
    """sum_j max(free_bits, mean_i KL_ij): what is below the threshold has no gradient. Kingma et al. (2016), eq. 15."""
    n, latent = mu.shape
    each = ops.gaussian_kl(ops.reshape(mu, shape=(n * latent, 1)), ops.reshape(logvar, shape=(n * latent, 1)))
    each = ops.mul(ops.reshape(each, shape=(n, latent)), ops.reshape(weight, shape=(n, 1)))
    return ops.sum(ops.relu(ops.affine(ops.mean(each, axis=0), shift=-free_bits))) + free_bits * latent


def elbo(
    net: Any, x: Any, codes: Any, each: Any, weight: Any, key: Any, beta: Any, *, samples: int = 1,
    free_bits: float = 0.0,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """-E_q log p(x | z, y) + beta KL(q(z | x, y) || p(z)), averaged over rows with their weights.

    x (n, d), codes (n,) int64 or None, each (n samples,) every code so many times over, weight (n,), key 2 uint64, beta
    () an array. samples: draws of z per row; the divergence is exact where the prior is normal, and estimated with the
    same draws otherwise. free_bits: nats per latent dimension, averaged over the batch, below which the divergence
    costs nothing more (normal prior).
    Returns (loss, reconstruction, kl). Kingma and Welling (2014), equations 8, 10; Higgins et al. (2017) for beta.
    """
    mu, logvar = net.encode(x, codes)
    if samples > 1:
        x, weight, mu, logvar = (_repeat(a, samples) for a in (x, weight, mu, logvar))
    noise = ops.normal(key, shape=tuple(mu.shape))
    z = _draw(mu, logvar, noise)
    reconstruction = net.cost(x, net.decode(z, each), weight)
    if net.prior is not None:
        kl = penalty = _mean(ops.sub(_log_q(logvar, noise), _log_prior(net, z)), weight)
    else:
        kl = penalty = _mean(ops.gaussian_kl(mu, logvar), weight)
        if free_bits:
            penalty = _free(mu, logvar, weight, free_bits)
    return ops.add(reconstruction, ops.mul(beta, penalty)), reconstruction, kl


def _log_weights(net: Any, x: Any, codes: Any, each: Any, noise: Any, beta: Any = None) -> tuple[Any, Any]:
    """log p(x, z_j) / q(z_j | x) and its part log p(z_j) / q(z_j | x), each (n, k); noise (n, k, latent)."""
    n, k, latent = noise.shape
    mu, logvar = net.encode(x, codes)
    mu, logvar, x = _repeat(mu, k), _repeat(logvar, k), _repeat(x, k)
    noise = ops.reshape(noise, shape=(n * k, latent))
    z = _draw(mu, logvar, noise)
    ratio = ops.sub(_log_prior(net, z), _log_q(logvar, noise))
    total = ops.add(net.log_prob(x, net.decode(z, each)), ratio if beta is None else ops.mul(beta, ratio))
    return ops.reshape(total, shape=(n, k)), ops.reshape(ratio, shape=(n, k))


def iwae(
    net: Any, x: Any, codes: Any, each: Any, weight: Any, key: Any, beta: Any, *, samples: int, latent: int
) -> tuple[Any, Any, Any]:
    """-log 1/k sum_j p(x, z_j | y) / q(z_j | x, y), averaged over rows with their weights: the bound of k draws.

    Returns (loss, reconstruction, kl), the latter two as in `elbo`, estimated. beta other than 1 weighs p(z) / q(z | x)
    and is no bound. Burda, Grosse and Salakhutdinov (2016), equation 8.
    """
    noise = ops.normal(key, shape=(x.shape[0], samples, latent))
    log_weights, ratio = _log_weights(net, x, codes, each, noise, beta)
    loss = ops.affine(_mean(log_mean_exp(log_weights), weight), scale=-1.0)
    kl = ops.affine(_mean(ops.mean(ratio, axis=1), weight), scale=-1.0)
    joint = ops.affine(_mean(ops.mean(log_weights, axis=1), weight), scale=-1.0)
    return loss, ops.sub(joint, ops.mul(beta, kl)), kl


def importance_log_prob(net: Any, x: Any, codes: Any, noise: Any) -> np.ndarray:
    """log 1/k sum_j p(x, z_j | y) / q(z_j | x, y), (n,) float64: of plain arrays x (n, d) and noise (n, k, latent).

    Below log p(x | y) on average, and rising to it with k. Burda, Grosse and Salakhutdinov (2016), theorem 1.
    """
    each = None if codes is None else np.repeat(codes, noise.shape[1])
    weights = np.asarray(_log_weights(net, x, codes, each, noise)[0], np.float64)
    top = weights.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(weights - top).mean(axis=1))


def m2(
    net: Any, x: Any, known: Any, onehot: Any, weight: Any, key: Any, beta: Any, log_priors: Any, classes: Any,
    strength: Any,
) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """Kingma et al. (2014), "Semi-supervised learning with deep generative models", equations 6, 7 and 9.

    With L(x, y) = elbo + log p(y): L(x, y) + strength log q(y | x) of rows whose label is known, and
    sum_y q(y | x) (L(x, y) - log q(y | x)) of the others; negated and averaged over rows with their weights.
    x (n, d); known (n,) 1 or 0; onehot (n, m), 0 where unknown; log_priors (1, m); classes (n m,) int64: 0 ... m - 1
    for every row; strength () the paper's alpha. Returns (loss, reconstruction, kl, cross_entropy).
    """
    n, m = onehot.shape
    log_q = ops.log_softmax(net.class_logits(x))
    unknown = ops.reshape(ops.affine(known, scale=-1.0, shift=1.0), shape=(n, 1))
    share = ops.add(onehot, ops.mul(ops.exp(log_q), unknown))  # of each class in the row's bound
    every = _repeat(x, m)
    mu, logvar = net.encode(every, classes)
    noise = ops.normal(key, shape=tuple(mu.shape))
    z = _draw(mu, logvar, noise)
    log_p = net.log_prob(every, net.decode(z, classes))
    kl = ops.gaussian_kl(mu, logvar) if net.prior is None else ops.sub(_log_q(logvar, noise), _log_prior(net, z))
    log_p, kl = (ops.reshape(a, shape=(n, m)) for a in (log_p, kl))
    bound = ops.add(ops.sub(log_p, ops.mul(beta, kl)), log_priors)
    bound = ops.sub(bound, ops.mul(log_q, unknown))
    labelled = ops.sum(ops.mul(onehot, log_q), axis=1)
    value = ops.add(ops.sum(ops.mul(share, bound), axis=1), ops.mul(strength, labelled))

    def reported(a: Any) -> Any:
        return _mean(ops.sum(ops.mul(share, a), axis=1), weight)

    loss, reconstruction, cross_entropy = (
        ops.affine(a, scale=-1.0) for a in (_mean(value, weight), reported(log_p), _mean(labelled, weight))
    )
    return loss, reconstruction, reported(kl), cross_entropy
