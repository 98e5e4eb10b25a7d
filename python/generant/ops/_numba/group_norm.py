"""Numba twins of group normalisation: sample by sample as in csrc/norm_sample.h; sums in float64."""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel


@jit
def moments(x, each, eps, mean, rstd):
    """Mean and 1 / sqrt(variance + eps) of the groups of one sample (positions, c), into float64 arrays."""
    p, c = x.shape
    count = p * each
    mean[:], rstd[:] = 0.0, 0.0
    for i in range(p):
        for j in range(c):
            mean[j // each] += x[i, j]
    mean /= count
    for i in range(p):
        for j in range(c):
            rstd[j // each] += (x[i, j] - mean[j // each]) ** 2
    for k in range(len(mean)):
        rstd[k] = 1.0 / np.sqrt(rstd[k] / count + eps)


@jit
def forward(x, gain, bias, scale, shift, y, means, rstds, eps, silu):
    n, p, c = x.shape
    groups = means.shape[1]
    each = c // groups
    mean, rstd = np.empty(groups), np.empty(groups)
    for i in range(n):
        moments(x[i], each, eps, mean, rstd)
        means[i], rstds[i] = mean, rstd
        for k in range(p):
            for j in range(c):
                u = (x[i, k, j] - mean[j // each]) * rstd[j // each] * gain[j] + bias[j]
                u = u * (1.0 + scale[i, j]) + shift[i, j]
                y[i, k, j] = max(u, -1e30) / (1.0 + np.exp(-u)) if silu else u


@jit
def backward(g, x, gain, bias, scale, shift, means, rstds, dx, dgain, dbias, dscale, dshift, silu, need_x):
    n, p, c = x.shape
    groups = means.shape[1]
    each = c // groups
    du = np.empty((p, c))
    t, tz = np.empty(groups), np.empty(groups)
    for i in range(n):
        t[:], tz[:] = 0.0, 0.0
        s0, s1 = np.zeros(c), np.zeros(c)
        for k in range(p):
            for j in range(c):
                z = (float(x[i, k, j]) - means[i, j // each]) * rstds[i, j // each]
                d = float(g[i, k, j])
                if silu:
                    u = (z * gain[j] + bias[j]) * (1.0 + scale[i, j]) + shift[i, j]
                    s = 1.0 / (1.0 + np.exp(-u))
                    d *= s * (1.0 + min(max(u, -1e30), 1e30) * (1.0 - s))
                du[k, j] = d
                s0[j] += d
                s1[j] += d * z
        for j in range(c):
            a = 1.0 + scale[i, j]
            t[j // each] += gain[j] * a * s0[j] / (p * each)
            tz[j // each] += gain[j] * a * s1[j] / (p * each)
            dgain[j] += a * s1[j]
            dbias[j] += a * s0[j]
            dscale[i, j] = gain[j] * s1[j] + bias[j] * s0[j]
            dshift[i, j] = s0[j]
        if need_x:
            for k in range(p):
                for j in range(c):
                    r = float(rstds[i, j // each])
                    z = (float(x[i, k, j]) - means[i, j // each]) * r
                    v = du[k, j] * gain[j] * (1.0 + scale[i, j])
                    dx[i, k, j] = r * (v - t[j // each] - z * tz[j // each])


def run_forward(x, gain, bias, scale, shift, y, mean, rstd, groups, eps, silu):
    """x, y (n, positions, c); what is absent is made up."""
    n, _, c = x.shape
    zero = np.zeros((n, c), x.dtype)
    forward(
        x, gain, bias, zero if scale is None else scale, zero if shift is None else shift, y,
        np.empty((n, groups), x.dtype) if mean is None else mean,
        np.empty((n, groups), x.dtype) if rstd is None else rstd,
        float(eps), silu,
    )


def run_backward(g, x, gain, bias, scale, shift, mean, rstd, dx, dgain, dbias, dscale, dshift, silu):
    """g, x, dx (n, positions, c); what is absent or not wanted is made up."""
    n, _, c = x.shape
    zero, sums, per_sample = np.zeros((n, c), x.dtype), np.zeros((2, c)), np.empty((2, n, c))
    backward(
        g, x, gain, bias, zero if scale is None else scale, zero if shift is None else shift, mean, rstd,
        np.empty((0, 0, c), x.dtype) if dx is None else dx, sums[0], sums[1], per_sample[0], per_sample[1],
        silu, dx is not None,
    )
    for out, made in zip((dgain, dbias, dscale, dshift), (*sums, *per_sample), strict=True):
        if out is not None:
            out[...] = made


def _samples(x):
    n, c = x.shape[0], x.shape[-1]
    return x.reshape(n, int(np.prod(x.shape[1:-1])), c)


@kernel
def group_norm(x, gain, bias, scale, shift, y, mean, rstd, groups, eps, activation):
    run_forward(_samples(x), gain, bias, scale, shift, _samples(y), mean, rstd, groups, eps, activation == "silu")


@kernel
def group_norm_bwd(g, x, gain, bias, scale, shift, mean, rstd, dx, dgain, dbias, dscale, dshift, groups, eps,
                   activation, need):
    run_backward(_samples(g), _samples(x), gain, bias, scale, shift, mean, rstd, None if dx is None else _samples(dx),
                 dgain, dbias, dscale, dshift, activation == "silu")
