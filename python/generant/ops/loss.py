"""Losses in one pass: mean squared error, cross-entropies from logits, Kullback-Leibler divergence of Gaussians.

Each is a `fused` op: a kernel that reads its arrays once and sums in float64 over fixed blocks, a kernel for its
gradients, and a definition in simple ops, which is what higher orders differentiate. Nothing between input and loss is
written to memory. `weight` has one number per sample; means are taken over all elements or samples, so the weights are
not normalised.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from . import _device
from ._table import fused, op
from .activation import exp, log, softplus
from .arithmetic import mul
from .gather import gather
from .layout import reshape, stop_gradient
from .reduce import max as _max
from .reduce import mean as _mean
from .reduce import sum as _sum

__all__ = [
    "bce_with_logits", "bce_with_logits_bwd", "cross_entropy", "cross_entropy_bwd", "gaussian_kl", "gaussian_kl_bwd",
    "mse", "mse_bwd",
]  # fmt: skip

SIZES: list[dict[str, Any]] = [
    dict(n=1, _=()),
    dict(n=37, _=()),
    dict(n=5, _=(1,)),
    dict(n=11, _=(3, 17)),
    dict(n=3, _=(4, 2, 700)),
]
CLASSES: list[dict[str, Any]] = [dict(n=1, k=1), dict(n=13, k=2), dict(n=7, k=10), dict(n=5, k=37), dict(n=3, k=300)]
NEEDS: list[dict[str, Any]] = [dict(need=(0, 1, 2)), dict(need=(0,)), dict(need=(1, 2))]


def _wanted(need, *gradients):
    return tuple(g if i in need else None for i, g in enumerate(gradients))


# ---- means over elements: mse, bce_with_logits ----------------------------------------------------------------------


def _some_elements(dims: dict, attrs: dict) -> dict:
    if dims["n"] * prod(dims["..."]) == 0:
        raise ValueError(f"x has shape {(dims['n'], *dims['...'])}; there is no mean of no elements")
    return {}


def _beside(weight, x):
    """One number per sample, shaped to broadcast over the sample's elements."""
    return reshape(weight, shape=(x.shape[0],) + (1,) * (len(x.shape) - 1))


def _weighted_mean(terms, weight):
    return _mean(terms if weight is None else mul(_beside(weight, terms), terms))


def _each_sample(terms):
    """The sums over everything but the first axis, and the number of elements."""
    return terms.reshape(terms.shape[0], -1).sum(1), terms.size


def _mean_gradients(g, weight, need, terms, dx, dt):
    """From the terms of a weighted mean and their derivatives: the gradients in x, target and weight."""
    sums, count = _each_sample(terms)
    scale = np.broadcast_to(g / terms.dtype.type(count), sums.shape)
    each = scale if weight is None else scale * weight
    each = each.reshape((-1,) + (1,) * (terms.ndim - 1))
    return _wanted(need, each * dx, each * dt, scale * sums)


@op("x: n ..., target: n ..., weight?: n -> scalar", sizes=SIZES, derive=_some_elements)
def mse(x: Any, target: Any, weight: Any = None) -> Any:
    """mean over all elements of weight_n (x - target)^2: the mean squared error.

    x, target (n, ...); weight (n,), one number per sample, 1 if absent. Returns a scalar.
    One pass over memory, nothing in between is written. Raises ValueError if there are no elements.
    """
    error = x - target
    return _weighted_mean(error * error, weight)


@op(
    "g: scalar, x: n ..., target: n ..., weight?: n -> n ..., n ..., n",
    sizes=SIZES,
    attrs=NEEDS,
    derive=_some_elements,
    keep="x",
)
def mse_bwd(g: Any, x: Any, target: Any, weight: Any = None, *, need: tuple[int, ...]) -> Any:
    """The gradients of mse in x, target and weight, those that `need` lists (by input number); None for the others.

    g scalar; x, target (n, ...); weight (n,) or None. Returns (n, ...), (n, ...), (n,):
    dx = 2 g weight_n (x - target) / N for N elements, dtarget = -dx, dweight_n = g sum (x - target)^2 / N.
    """
    error = x - target
    return _mean_gradients(g, weight, need, error * error, 2 * error, -2 * error)


@op("x: n ..., target: n ..., weight?: n -> scalar", sizes=SIZES, derive=_some_elements)
def bce_with_logits(x: Any, target: Any, weight: Any = None) -> Any:
    """mean over all elements of weight_n (max(x, 0) - x target + log(1 + exp(-|x|))): binary cross-entropy of logits.

    x (n, ...): log p / (1 - p) of the probability p that the element is 1; target (n, ...) in [0, 1]; weight (n,), one
    number per sample, 1 if absent. Returns a scalar in nats. The form does not overflow, and neither of -log p,
    -log (1 - p) loses its digits. One pass over memory. Raises ValueError if there are no elements.
    """
    return _weighted_mean(softplus(x) - x * target, weight)


@op(
    "g: scalar, x: n ..., target: n ..., weight?: n -> n ..., n ..., n",
    sizes=SIZES,
    attrs=NEEDS,
    derive=_some_elements,
    keep="x",
)
def bce_with_logits_bwd(g: Any, x: Any, target: Any, weight: Any = None, *, need: tuple[int, ...]) -> Any:
    """The gradients of bce_with_logits in x, target and weight, those that `need` lists; None for the others.

    g scalar; x, target (n, ...); weight (n,) or None. Returns (n, ...), (n, ...), (n,). With p = sigmoid(x):
    dx = g weight_n ((1 - target) p - target (1 - p)) / N, exact where p is near 0 or 1; dtarget = -g weight_n x / N.
    """
    e = np.exp(-np.abs(x))
    large, rest = 1 / (1 + e), e / (1 + e)
    p, q = np.where(x >= 0, large, rest), np.where(x >= 0, rest, large)
    terms = np.maximum(x, 0) - x * target + np.log1p(e)
    return _mean_gradients(g, weight, need, terms, (1 - target) * p - target * q, -x)


# ---- cross-entropy of classes ---------------------------------------------------------------------------------------


def _check_classes(dims: dict, attrs: dict) -> dict:
    if dims["n"] == 0 or dims["k"] == 0:
        raise ValueError(f"logits has shape {(dims['n'], dims['k'])}; there is no mean of no samples or classes")
    if not 0 <= attrs["label_smoothing"] <= 1:
        raise ValueError(f"label_smoothing is {attrs['label_smoothing']}, wanted 0 <= label_smoothing <= 1")
    if 1 in attrs.get("need", ()):
        raise ValueError("need lists 1, but labels are integers and have no gradient")
    return {}


def _check_labels(labels: Any, k: int) -> None:
    if labels.min() < 0 or labels.max() >= k:
        i = int(np.argmax((labels < 0) | (labels >= k)))
        raise ValueError(f"labels[{i}] is {int(labels[i])}, wanted 0 <= label < {k} (k, the classes of logits)")


def _check_cross_entropy(logits, labels, weight=None, *, label_smoothing=0.0):
    _check_labels(labels, logits.shape[1])


def _check_cross_entropy_bwd(g, logits, labels, weight, shift, total, *, label_smoothing=0.0, need=()):
    _check_labels(labels, logits.shape[1])


@op(
    "logits: n k, labels: n int64, weight?: n -> scalar, n, n",
    sizes=CLASSES,
    attrs=[dict(), dict(label_smoothing=0.1)],
    domain={"labels": "k"},
    derive=_check_classes,
    check=_check_cross_entropy,
    caches=2,
)
def cross_entropy(logits: Any, labels: Any, weight: Any = None, *, label_smoothing: float = 0.0) -> Any:
    """mean over samples of weight_n (log sum_k exp(logit_nk) - logit_n,label): the negative log-likelihood in nats.

    logits (n, k); labels (n,) int64 in 0 ... k - 1; weight (n,), one number per sample, 1 if absent. Returns a scalar;
    `cross_entropy.all` also returns the largest logit (n,) and the sum of exp(logit - largest) (n,).
    label_smoothing s mixes the label with all classes alike: target (1 - s) [k = label] + s / k (Szegedy et al. 2016,
    section 7). Logits of any size: the largest is taken out first, and -inf is a class that cannot be.
    Raises ValueError for a label out of range, no samples, or s outside [0, 1].
    """
    n, k = logits.shape
    top = stop_gradient(_max(logits, axis=-1, keepdims=True))
    z = logits - top
    total = _sum(exp(z), axis=-1)
    xp = _device.namespace(labels)
    at = xp.asarray(_device.view(labels)) + k * xp.arange(n, dtype=np.int64)
    chosen = reshape(gather(reshape(z, shape=(n * k, 1)), at), shape=(n,))
    loss = log(total) - (1.0 - label_smoothing) * chosen
    if label_smoothing:
        loss = loss - label_smoothing * _mean(z, axis=-1)
    return _weighted_mean(loss, weight), reshape(top, shape=(n,)), total


@op(
    "g: scalar, logits: n k, labels: n int64, weight?: n, shift: n, total: n -> n k, n, n",
    sizes=CLASSES,
    attrs=[dict(need=(0, 2)), dict(need=(0,)), dict(need=(2,)), dict(need=(0, 2), label_smoothing=0.1)],
    domain={"labels": "k", "total": "positive"},
    derive=_check_classes,
    check=_check_cross_entropy_bwd,
    keep="x",
)
def cross_entropy_bwd(
    g: Any, logits: Any, labels: Any, weight: Any, shift: Any, total: Any, *, label_smoothing: float = 0.0,
    need: tuple[int, ...],
) -> Any:  # fmt: skip
    """The gradients of cross_entropy in logits (0) and weight (2), those that `need` lists; None for the others.

    g scalar; logits (n, k); labels (n,) int64; weight (n,) or None; shift, total (n,): what cross_entropy left behind.
    Returns (n, k), None, (n,): dlogits = g weight_n (softmax(logits) - target) / n, dweight_n = g loss_n / n.
    """
    n, k = logits.shape
    rows = np.arange(n)
    z = logits - shift[:, None]
    with np.errstate(under="ignore"):
        p = np.exp(z) / total[:, None]
    p[rows, labels] -= 1.0 - label_smoothing
    loss = np.log(total) - (1.0 - label_smoothing) * z[rows, labels]
    if label_smoothing:
        p -= label_smoothing / k
        loss = loss - label_smoothing * z.mean(1)
    scale = np.broadcast_to(g / logits.dtype.type(n), (n,))
    return _wanted(need, (scale if weight is None else scale * weight)[:, None] * p, None, scale * loss)


# ---- divergence of Gaussians ----------------------------------------------------------------------------------------


@op("mu: n ..., logvar: n ..., mu2?: n ..., logvar2?: n ... -> n", sizes=SIZES)
def gaussian_kl(mu: Any, logvar: Any, mu2: Any = None, logvar2: Any = None) -> Any:
    """KL(N(mu, exp(logvar)) || N(mu2, exp(logvar2))), summed over each sample's elements, in nats.

    1/2 sum (logvar2 - logvar + exp(logvar - logvar2) + (mu - mu2)^2 exp(-logvar2) - 1).
    mu, logvar, mu2, logvar2 (n, ...): independent normal distributions; mu2 and logvar2 are 0 if absent, the standard
    normal of a VAE. Returns (n,). One pass over memory. Kingma, Welling (2014), appendix B.
    """
    distance = mu if mu2 is None else mu - mu2
    ratio = logvar if logvar2 is None else logvar - logvar2
    square = distance * distance
    if logvar2 is not None:
        square = square * exp(-1.0 * logvar2)
    terms = 0.5 * (exp(ratio) + square - ratio - 1.0)
    return _sum(terms, axis=tuple(range(1, len(terms.shape)))) if len(terms.shape) > 1 else terms


@op(
    "g: n, mu: n ..., logvar: n ..., mu2?: n ..., logvar2?: n ... -> n ..., n ..., n ..., n ...",
    sizes=SIZES,
    attrs=[dict(need=(0, 1, 2, 3)), dict(need=(0, 1)), dict(need=(2,)), dict(need=(3,))],
    keep="x",
)
def gaussian_kl_bwd(
    g: Any, mu: Any, logvar: Any, mu2: Any = None, logvar2: Any = None, *, need: tuple[int, ...]
) -> Any:
    """The gradients of gaussian_kl in mu, logvar, mu2 and logvar2, those that `need` lists; None for the others.

    g (n,); mu, logvar, mu2, logvar2 (n, ...), the last two 0 if None. Returns four arrays (n, ...). With
    r = exp(logvar - logvar2) and d = mu - mu2: dmu = g d exp(-logvar2) = -dmu2, dlogvar = g (r - 1) / 2,
    dlogvar2 = g (1 - r - d^2 exp(-logvar2)) / 2.
    """
    mu2, logvar2 = (np.zeros_like(mu) if a is None else a for a in (mu2, logvar2))
    distance, precision, less = mu - mu2, np.exp(-logvar2), np.expm1(logvar - logvar2)
    g = g.reshape((-1,) + (1,) * (mu.ndim - 1))
    dmu = g * (distance * precision)
    return _wanted(need, dmu, g / 2 * less, -dmu, -g / 2 * (less + distance * distance * precision))


fused(mse, mse_bwd, mse)
fused(bce_with_logits, bce_with_logits_bwd, bce_with_logits)
fused(cross_entropy, cross_entropy_bwd, cross_entropy)
fused(gaussian_kl, gaussian_kl_bwd, gaussian_kl)
