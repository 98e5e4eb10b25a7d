"""Numba twins of layer and RMS normalisation, row by row as in csrc/cpu/norm.cpp; sums in float64."""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel


@jit
def _forward(x, gain, bias, y, mean, rstd, eps):
    n, d = x.shape
    for i in range(n):
        s = 0.0
        for j in range(d):
            s += x[i, j]
        m = s / d
        s = 0.0
        for j in range(d):
            s += (x[i, j] - m) ** 2
        r = 1.0 / np.sqrt(s / d + eps)
        for j in range(d):
            y[i, j] = (x[i, j] - m) * r * gain[j] + bias[j]
        mean[i], rstd[i] = m, r


@jit
def _backward(g, x, gain, mean, rstd, dx, dgain, dbias, need_x):
    n, d = x.shape
    for i in range(n):
        m, r = float(mean[i]), float(rstd[i])
        u = uz = 0.0
        for j in range(d):
            z = (x[i, j] - m) * r
            u += float(g[i, j]) * gain[j]
            uz += float(g[i, j]) * gain[j] * z
            dgain[j] += g[i, j] * z
            dbias[j] += g[i, j]
        if need_x:
            for j in range(d):
                z = (x[i, j] - m) * r
                dx[i, j] = r * (float(g[i, j]) * gain[j] - u / d - z * (uz / d))


@kernel
def layer_norm(x, gain, bias, y, mean, rstd, eps):
    d = x.shape[-1]
    n = x.size // d if d else 0
    _forward(
        x.reshape(n, d), gain, bias, y.reshape(n, d),
        np.empty(n, x.dtype) if mean is None else mean.reshape(n),
        np.empty(n, x.dtype) if rstd is None else rstd.reshape(n),
        float(eps),
    )


@kernel
def layer_norm_bwd(g, x, gain, bias, mean, rstd, dx, dgain, dbias, eps, need):
    d = x.shape[-1]
    n = x.size // d if d else 0
    sums = np.zeros((2, d))
    _backward(
        g.reshape(n, d), x.reshape(n, d), gain, mean.reshape(n), rstd.reshape(n),
        np.empty((0, d), x.dtype) if dx is None else dx.reshape(n, d), sums[0], sums[1], dx is not None,
    )
    if dgain is not None:
        dgain[:] = sums[0]
    if dbias is not None:
        dbias[:] = sums[1]


@jit
def _rms_forward(x, gain, y, rstd, eps):
    n, d = x.shape
    for i in range(n):
        s = 0.0
        for j in range(d):
            s += float(x[i, j]) ** 2
        r = 1.0 / np.sqrt(s / d + eps)
        for j in range(d):
            y[i, j] = x[i, j] * r * gain[j]
        rstd[i] = r


@jit
def _rms_backward(g, x, gain, rstd, dx, dgain, need_x):
    n, d = x.shape
    for i in range(n):
        r = float(rstd[i])
        uz = 0.0
        for j in range(d):
            gz = float(g[i, j]) * (x[i, j] * r)
            uz += gz * gain[j]
            dgain[j] += gz
        if need_x:
            for j in range(d):
                dx[i, j] = r * (float(g[i, j]) * gain[j] - x[i, j] * r * (uz / d))


@kernel
def rms_norm(x, gain, y, rstd, eps):
    d = x.shape[-1]
    n = x.size // d if d else 0
    _rms_forward(
        x.reshape(n, d), gain, y.reshape(n, d), np.empty(n, x.dtype) if rstd is None else rstd.reshape(n), float(eps)
    )


@kernel
def rms_norm_bwd(g, x, gain, rstd, dx, dgain, eps, need):
    d = x.shape[-1]
    n = x.size // d if d else 0
    sums = np.zeros(d)
    _rms_backward(
        g.reshape(n, d), x.reshape(n, d), gain, rstd.reshape(n),
        np.empty((0, d), x.dtype) if dx is None else dx.reshape(n, d), sums, dx is not None,
    )
    if dgain is not None:
        dgain[:] = sums
