"""Noising, the loss of denoising and sampler steps, Numba: noise is made a block at a time and used while in cache.

Fused multiply-adds stand where the native kernels have them, so both backends give the same bits.
"""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel
from .random import fill_normal32, fill_normal64, fma

BLOCK = 4096                                           # elements of noise at a time, a multiple of 4


def _each_block(fill_normal, per_run):
    """run(...): blocks of noise, cut at the ends of samples; per_run does a piece."""

    @jit
    def run(a, b, row, c0, c1, key, out, kept):
        z = np.empty(BLOCK, a.dtype)
        for begin in range(0, len(a), BLOCK):
            end = min(begin + BLOCK, len(a))
            fill_normal(z[: end - begin], key[0], key[1], np.uint64(begin // 4))
            e = begin
            while e < end:
                i = e // row
                stop = min(end, (i + 1) * row)
                per_run(a, b, z[e - begin :], c0[i], c1[i], e, stop, out, i, kept)
                e = stop

    return run


@jit
def noised(x, unused, z, a, s, begin, end, out, i, kept):
    for k in range(begin, end):
        out[k] = fma(a, x[k], s * z[k - begin])


@jit
def squares(prediction, x, z, b_x, b_z, begin, end, out, i, kept):
    total = 0.0
    for k in range(begin, end):
        d = prediction[k] - fma(b_x, x[k], b_z * z[k - begin])
        total += np.float64(d * d)
        if len(kept):
            kept[k] = d
    out[i] += total


q_sample32, q_sample64 = _each_block(fill_normal32, noised), _each_block(fill_normal64, noised)
loss32, loss64 = _each_block(fill_normal32, squares), _each_block(fill_normal64, squares)


@kernel
def q_sample(x, alpha, sigma, key, out):
    if x.size:
        run = q_sample32 if x.dtype == np.float32 else q_sample64
        flat = x.reshape(-1)
        run(flat, flat, x.size // len(x), alpha, sigma, key, out.reshape(-1), flat)


@jit
def add_rows(x, noise, alpha, sigma, out):
    for i in range(len(x)):
        for k in range(x.shape[1]):
            out[i, k] = fma(alpha[i], x[i, k], sigma[i] * noise[i, k])


def _rows(x):
    return x.reshape(len(x), x.size // max(len(x), 1))


@kernel
def add_noise(x, noise, alpha, sigma, out):
    add_rows(_rows(x), _rows(noise), alpha, sigma, _rows(out))


@kernel
def denoising_loss(prediction, x, b_x, b_z, weight, key, out, residual):
    if x.size:
        sums, row, flat = np.zeros(len(x)), x.size // len(x), x.reshape(-1)
        run = loss32 if x.dtype == np.float32 else loss64
        kept = flat[:0] if residual is None else residual.reshape(-1)
        run(prediction.reshape(-1), flat, row, b_x, b_z, key, sums, kept)
        out[...] = weight * (sums / row)


@kernel
def denoising_loss_bwd(g, weight, residual, out):
    scale = g * weight * g.dtype.type(2.0 / max(residual.size // max(len(g), 1), 1))
    np.multiply(_rows(residual), scale[:, None], out=_rows(out))


# ---- one step of a sampler ----


@jit
def step_row(x, prediction, uncond, c, clip, limit, out, kept, keep):
    a_x, a_p, a_u, c_x, c_d, g_x, g_d = c[0], c[1], c[2], c[3], c[4], c[11], c[12]
    guided = len(uncond) > 0
    for k in range(len(x)):
        d = fma(a_p, prediction[k], a_x * x[k])
        if guided:
            d = fma(a_u, uncond[k], d)
        if d > clip:
            d = clip
        if d < -clip:
            d = -clip
        if limit != 0:
            d = d / limit
        if keep:
            kept[k] = fma(g_d, d, g_x * x[k])
        out[k] = fma(c_d, d, c_x * x[k])


@jit
def add_scaled(out, c, h):
    for k in range(len(out)):
        out[k] = fma(c, h[k], out[k])


def _noise_adder(fill_normal):
    @jit
    def run(out, c_noise, keys, number):
        row = out.shape[1]
        z = np.empty(min(row, BLOCK), out.dtype)
        for i in range(len(out)):
            for begin in range(0, row, BLOCK):
                end = min(begin + BLOCK, row)
                fill_normal(z[: end - begin], keys[i, 0], keys[i, 1] + number, np.uint64(begin // 4))
                for k in range(begin, end):
                    out[i, k] = fma(c_noise, z[k - begin], out[i, k])

    return run


add_noise32, add_noise64 = _noise_adder(fill_normal32), _noise_adder(fill_normal64)


def _limit(x, prediction, uncond, c, threshold, threshold_max):
    """The quantile of |D| of one sample, kept in [1, threshold_max]."""
    none = x.dtype.type(np.inf)
    d = np.empty_like(x)
    identity = c.copy()
    identity[3], identity[4] = 0, 1
    step_row(x, prediction, uncond, identity, none, x.dtype.type(0), d, d, False)
    d = np.sort(np.abs(d))
    at = (len(d) - 1) * threshold
    low = int(at)
    high = min(low + 1, len(d) - 1)
    quantile = d[low] + d.dtype.type(at - low) * (d[high] - d[low])
    return quantile.clip(d.dtype.type(1), d.dtype.type(threshold_max))


def _guidance_scale(prediction, uncond, a_p, a_u, rescale):
    guided = (a_p * prediction.astype(np.float64) + a_u * uncond).std()
    ratio = abs(a_p + a_u) * prediction.astype(np.float64).std() / guided if guided > 0 else 1.0
    return prediction.dtype.type(rescale * ratio + (1 - rescale))


@kernel
def sampler_step(
    x, prediction, uncond, h1, h2, h3, h4, keys, coef, out, kept, clip, threshold, threshold_max, rescale
):
    if not x.size:
        return
    c, rows, y = coef.astype(x.dtype), _rows(x), _rows(out)
    said, other = _rows(prediction), None if uncond is None else _rows(uncond)
    h, zero = y if kept is None else _rows(kept), x.dtype.type(0)
    if threshold is None and not (rescale and uncond is not None):
        limit = x.dtype.type(np.inf if clip is None else clip)
        absent = rows.reshape(-1)[:0]
        step_row(rows.reshape(-1), said.reshape(-1), absent if other is None else other.reshape(-1), c, limit, zero,
                 y.reshape(-1), h.reshape(-1), kept is not None)
    else:
        for i in range(len(rows)):
            own, limit, divide = c.copy(), x.dtype.type(np.inf if clip is None else clip), zero
            row_other = rows[i][:0] if other is None else other[i]
            if rescale and other is not None:
                own[1:3] *= _guidance_scale(said[i], other[i], coef[1], coef[2], rescale)
            if threshold is not None:
                limit = divide = _limit(rows[i], said[i], row_other, own, threshold, threshold_max)
            step_row(rows[i], said[i], row_other, own, limit, divide, y[i], h[i], kept is not None)
    for k, earlier in ((5, h1), (6, h2), (7, h3), (8, h4)):
        if earlier is not None:
            add_scaled(y.reshape(-1), c[k], earlier.reshape(-1))
    if keys is not None and c[9] != 0:
        add = add_noise32 if x.dtype == np.float32 else add_noise64
        add(y, c[9], keys, np.uint64(int(coef[10])))
