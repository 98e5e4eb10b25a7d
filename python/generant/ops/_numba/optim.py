"""Optimiser steps, Numba: one loop each over the flat buffers."""

from __future__ import annotations

import math

import numpy as np

from ..optim import BLOCK
from ._kernel import jit, kernel


@jit
def adam_rows(p, m, v, g, c):
    b1, a1, b2, a2, keep, rate, scale, eps = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    for i in range(len(p)):
        mi = b1 * m[i] + a1 * g[i]
        vi = b2 * v[i] + a2 * (g[i] * g[i])
        m[i], v[i] = mi, vi
        p[i] = keep * p[i] - rate * mi / (np.sqrt(vi) * scale + eps)


@kernel
def adam_(p, m, v, g, step, lr, ok, beta1, beta2, eps, weight_decay):
    if ok is not None and not ok[0]:
        return
    step += 1
    t, rate = int(step[0]), float(lr[0])
    c = [beta1, 1 - beta1, beta2, 1 - beta2, 1 - rate * weight_decay]
    c += [rate / (1 - beta1**t), (1 - beta2**t) ** -0.5, eps]
    adam_rows(p, m, v, g, np.array(c, p.dtype))


@jit
def lion_rows(p, m, g, c):
    b1, a1, b2, a2, keep, rate = c[0], c[1], c[2], c[3], c[4], c[5]
    for i in range(len(p)):
        mean = b1 * m[i] + a1 * g[i]
        move = rate if mean > 0 else -rate if mean < 0 else mean
        m[i] = b2 * m[i] + a2 * g[i]
        p[i] = keep * p[i] - move


@kernel
def lion_(p, m, g, lr, ok, beta1, beta2, weight_decay):
    if ok is None or ok[0]:
        rate = float(lr[0])
        lion_rows(p, m, g, np.array([beta1, 1 - beta1, beta2, 1 - beta2, 1 - rate * weight_decay, rate], p.dtype))


@jit
def sgd_rows(p, m, g, nesterov, c):
    rate, momentum, decay = c[0], c[1], c[2]
    for i in range(len(p)):
        move = g[i] + decay * p[i]
        if len(m):
            m[i] = momentum * m[i] + move
            move = move + momentum * m[i] if nesterov else m[i]
        p[i] -= rate * move


@kernel
def sgd_(p, m, g, lr, ok, momentum, nesterov, weight_decay):
    if ok is None or ok[0]:
        sgd_rows(p, p[:0] if m is None else m, g, nesterov, np.array([lr[0], momentum, weight_decay], p.dtype))


@jit
def ema_rows(e, p, rate):
    for i in range(len(e)):
        e[i] += rate * (p[i] - e[i])


@kernel
def ema_(e, p, decay, ok):
    if ok is None or ok[0]:
        ema_rows(e, p, e.dtype.type(1 - float(decay[0])))


@jit
def square_sum(g):
    total = 0.0
    for begin in range(0, len(g), BLOCK):
        s0 = s1 = s2 = s3 = 0.0
        end = min(begin + BLOCK, len(g))
        for i in range(begin, end - 3, 4):
            a, b, c, d = np.float64(g[i]), np.float64(g[i + 1]), np.float64(g[i + 2]), np.float64(g[i + 3])
            s0, s1, s2, s3 = s0 + a * a, s1 + b * b, s2 + c * c, s3 + d * d
        for i in range(end - (end - begin) % 4, end):
            s0 += np.float64(g[i]) * np.float64(g[i])
        total += (s0 + s1) + (s2 + s3)
    return total


@jit
def scale_rows(g, factor):
    for i in range(len(g)):
        g[i] *= factor


@kernel
def clip_norm_(g, ok, norm, limit):
    norm[0] = math.sqrt(square_sum(g))
    ok[0] = np.isfinite(norm[0])
    if ok[0] and norm[0] > limit:
        scale_rows(g, g.dtype.type(limit / norm[0]))
