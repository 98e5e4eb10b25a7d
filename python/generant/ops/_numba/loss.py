"""Numba twins of the losses: the formulas of csrc/cpu/loss.cpp, element by element, sums in float64.

Sums carry their rounding errors along, so the order of the terms does not show.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._kernel import jit, kernel

SQUARED, LOGISTIC = 0, 1


@jit
def _add(s, e, v):
    """v added to the sum s with the rounding error e (Knuth's two-sum)."""
    a = s + v
    z = a - s
    return a, e + ((s - (a - z)) + (v - z))


@jit
def _value(number, x, t):
    if number == SQUARED:
        return (x - t) * (x - t)
    return max(x, 0.0) - x * t + math.log1p(math.exp(-abs(x)))


@jit
def _slope(number, x, t):
    if number == SQUARED:
        return 2 * (x - t)
    e = math.exp(-abs(x))
    p, q = 1 / (1 + e), e / (1 + e)
    if x < 0:
        p, q = q, p
    return (1 - t) * p - t * q


@jit
def _sums(number, x, t, sums):
    for i in range(x.shape[0]):
        s = e = 0.0
        for j in range(x.shape[1]):
            s, e = _add(s, e, _value(number, float(x[i, j]), float(t[i, j])))
        sums[i] = s + e if np.isfinite(s) else s


@jit
def _slopes(number, x, t, scale, dx, dt, need_x, need_t):
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            a, b = float(x[i, j]), float(t[i, j])
            if need_x:
                dx[i, j] = scale[i] * _slope(number, a, b)
            if need_t:
                dt[i, j] = scale[i] * (-2 * (a - b) if number == SQUARED else -a)


def _matrix(x: Any) -> Any:
    """(n, ...) as (n, elements of a sample)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _mean(number, x, target, weight, y):
    sums = np.empty(x.shape[0])
    _sums(number, _matrix(x), _matrix(target), sums)
    y[...] = (sums if weight is None else sums * weight).sum() / x.size


def _mean_gradients(number, g, x, target, weight, dx, dt, dweight):
    scale = np.full(x.shape[0], float(g) / x.size)
    if dweight is not None:
        sums = np.empty(x.shape[0])
        _sums(number, _matrix(x), _matrix(target), sums)
        dweight[:] = scale * sums
    if dx is None and dt is None:
        return
    if weight is not None:
        scale *= weight
    none = np.empty((0, 0), x.dtype)
    _slopes(
        number, _matrix(x), _matrix(target), scale, none if dx is None else _matrix(dx),
        none if dt is None else _matrix(dt), dx is not None, dt is not None,
    )


@kernel
def mse(x, target, weight, y):
    _mean(SQUARED, x, target, weight, y)


@kernel
def mse_bwd(g, x, target, weight, dx, dtarget, dweight, need):
    _mean_gradients(SQUARED, g, x, target, weight, dx, dtarget, dweight)


@kernel
def bce_with_logits(x, target, weight, y):
    _mean(LOGISTIC, x, target, weight, y)


@kernel
def bce_with_logits_bwd(g, x, target, weight, dx, dtarget, dweight, need):
    _mean_gradients(LOGISTIC, g, x, target, weight, dx, dtarget, dweight)


@jit
def _tops(logits, shift, total):
    for i in range(logits.shape[0]):
        top = logits[i, 0]
        for j in range(1, logits.shape[1]):
            top = max(top, logits[i, j])
        s = 0.0
        for j in range(logits.shape[1]):
            s += math.exp(float(logits[i, j] - top))
        shift[i], total[i] = top, s


@jit
def _losses(logits, labels, shift, total, smoothing, losses):
    n, k = logits.shape
    for i in range(n):
        losses[i] = math.log(float(total[i])) - (1 - smoothing) * float(logits[i, labels[i]] - shift[i])
        if smoothing != 0:
            s = 0.0
            for j in range(k):
                s += float(logits[i, j] - shift[i])
            losses[i] -= smoothing / k * s


@jit
def _softmax_slopes(logits, labels, shift, total, scale, smoothing, dlogits):
    n, k = logits.shape
    for i in range(n):
        for j in range(k):
            p = math.exp(float(logits[i, j] - shift[i])) / float(total[i])
            target = smoothing / k + (1 - smoothing if j == labels[i] else 0.0)
            dlogits[i, j] = scale[i] * (p - target)


@kernel
def cross_entropy(logits, labels, weight, y, shift, total, label_smoothing):
    n = logits.shape[0]
    tops, totals, losses = np.empty(n, logits.dtype), np.empty(n), np.empty(n)
    _tops(logits, tops, totals)
    _losses(logits, labels, tops, totals, float(label_smoothing), losses)
    y[...] = (losses if weight is None else losses * weight).sum() / n
    if shift is not None:
        shift[:], total[:] = tops, totals


@kernel
def cross_entropy_bwd(g, logits, labels, weight, shift, total, dlogits, dlabels, dweight, label_smoothing, need):
    scale = np.full(logits.shape[0], float(g) / logits.shape[0])
    if dweight is not None:
        losses = np.empty(logits.shape[0])
        _losses(logits, labels, shift, total.astype(np.float64), float(label_smoothing), losses)
        dweight[:] = scale * losses
    if dlogits is not None:
        each = scale if weight is None else scale * weight
        _softmax_slopes(logits, labels, shift, total, each, float(label_smoothing), dlogits)


@jit
def _divergence(mu, logvar, mu2, logvar2, y):
    for i in range(mu.shape[0]):
        s = e = 0.0
        for j in range(mu.shape[1]):
            d, u = float(mu[i, j]) - float(mu2[i, j]), float(logvar[i, j]) - float(logvar2[i, j])
            s, e = _add(s, e, (math.expm1(u) - u) + d * d * math.exp(-float(logvar2[i, j])))
        y[i] = 0.5 * (s + e if np.isfinite(s) else s)


@jit
def _divergence_slopes(g, mu, logvar, mu2, logvar2, slope, spread, spread2):
    for i in range(mu.shape[0]):
        for j in range(mu.shape[1]):
            d, u = float(mu[i, j]) - float(mu2[i, j]), float(logvar[i, j]) - float(logvar2[i, j])
            less, along = math.expm1(u), d * math.exp(-float(logvar2[i, j]))
            slope[i, j] = g[i] * along
            spread[i, j] = 0.5 * g[i] * less
            spread2[i, j] = -0.5 * g[i] * (less + d * along)


def _standard(mu, mu2, logvar2):
    """The second distribution as matrices, N(0, 1) where it is absent."""
    return [np.zeros(_matrix(mu).shape, mu.dtype) if a is None else _matrix(a) for a in (mu2, logvar2)]


@kernel
def gaussian_kl(mu, logvar, mu2, logvar2, y):
    _divergence(_matrix(mu), _matrix(logvar), *_standard(mu, mu2, logvar2), y)


@kernel
def gaussian_kl_bwd(g, mu, logvar, mu2, logvar2, dmu, dlogvar, dmu2, dlogvar2, need):
    made = np.empty((3, *_matrix(mu).shape), mu.dtype)
    _divergence_slopes(g, _matrix(mu), _matrix(logvar), *_standard(mu, mu2, logvar2), *made)
    slope, spread, spread2 = (a.reshape(mu.shape) for a in made)
    for to, value in ((dmu, slope), (dlogvar, spread), (dlogvar2, spread2)):
        if to is not None:
            to[...] = value
    if dmu2 is not None:
        np.negative(slope, out=dmu2)
