"""Noising and sampler steps, Numba: noise is made a block at a time and used while it is in cache."""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel
from .random import fill_normal32, fill_normal64

BLOCK = 4096                                           # elements of noise at a time, a multiple of 4


def _q_sample(fill_normal):
    @jit
    def run(x, alpha, sigma, key, out):
        row = len(x) // len(alpha)
        z = np.empty(BLOCK, x.dtype)
        for begin in range(0, len(x), BLOCK):
            end = min(begin + BLOCK, len(x))
            fill_normal(z[: end - begin], key[0], key[1], np.uint64(begin // 4))
            e = begin
            while e < end:
                i = e // row
                stop = min(end, (i + 1) * row)
                a, s = alpha[i], sigma[i]
                for k in range(e, stop):
                    out[k] = a * x[k] + s * z[k - begin]
                e = stop

    return run


def _add_noise(fill_normal):
    @jit
    def run(out, c_noise, key):
        z = np.empty(BLOCK, out.dtype)
        for begin in range(0, len(out), BLOCK):
            end = min(begin + BLOCK, len(out))
            fill_normal(z[: end - begin], key[0], key[1], np.uint64(begin // 4))
            for k in range(begin, end):
                out[k] += c_noise * z[k - begin]

    return run


q_sample32, q_sample64 = _q_sample(fill_normal32), _q_sample(fill_normal64)
add_noise32, add_noise64 = _add_noise(fill_normal32), _add_noise(fill_normal64)


@kernel
def q_sample(x, alpha, sigma, key, out):
    if x.size:
        run = q_sample32 if x.dtype == np.float32 else q_sample64
        run(x.reshape(-1), alpha, sigma, key, out.reshape(-1))


@jit
def step_rows(x, prediction, c, clip, out, denoised, keep):
    for i in range(len(x)):
        d = c[0] * x[i] + c[1] * prediction[i]
        if d > clip:
            d = clip
        if d < -clip:
            d = -clip
        out[i] = c[2] * x[i] + c[3] * d
        if keep:
            denoised[i] = d


@jit
def add_history(out, c, h):
    for i in range(len(out)):
        out[i] += c * h[i]


@kernel
def sampler_step(x, prediction, h1, h2, h3, key, coef, out, denoised, clip):
    c, y = coef.astype(x.dtype), out.reshape(-1)
    d = y if denoised is None else denoised.reshape(-1)
    limit = x.dtype.type(np.inf if clip is None else clip)
    step_rows(x.reshape(-1), prediction.reshape(-1), c, limit, y, d, denoised is not None)
    for k, h in ((4, h1), (5, h2), (6, h3)):
        if h is not None:
            add_history(y, c[k], h.reshape(-1))
    if key is not None and c[7] != 0:
        (add_noise32 if x.dtype == np.float32 else add_noise64)(y, c[7], key)
