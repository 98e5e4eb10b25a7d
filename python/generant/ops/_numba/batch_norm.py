"""Numba twins of batch normalisation: one sample of all rows whose groups are single channels."""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel
from .group_norm import run_backward, run_forward


def _sample(x):
    c = x.shape[-1]
    return x.reshape(1, x.size // c if c else 0, c)


def _row(x):
    return None if x is None else x.reshape(1, -1)


@kernel
def batch_norm(x, gain, bias, y, mean, rstd, eps):
    run_forward(_sample(x), gain, bias, None, None, _sample(y), _row(mean), _row(rstd), x.shape[-1], eps, False)


@kernel
def batch_norm_bwd(g, x, gain, bias, mean, rstd, dx, dgain, dbias, eps, need):
    run_backward(_sample(g), _sample(x), gain, bias, None, None, _row(mean), _row(rstd),
                 None if dx is None else _sample(dx), dgain, dbias, None, None, False)


@jit
def apply_rows(x, gain, bias, mean, var, y, eps):
    n, c = x.shape
    for j in range(c):
        r = 1.0 / np.sqrt(var[j] + eps)
        for i in range(n):
            y[i, j] = (x[i, j] - mean[j]) * r * gain[j] + bias[j]


@kernel
def batch_norm_apply(x, gain, bias, mean, var, y, eps):
    apply_rows(_sample(x)[0], gain, bias, mean, var, _sample(y)[0], float(eps))


@kernel
def batch_norm_update_(running_mean, running_var, mean, rstd, count, momentum, eps):
    var = np.maximum(1 / (rstd.astype(np.float64) ** 2) - eps, 0) * (count / (count - 1))
    running_mean += (momentum * (mean - running_mean)).astype(mean.dtype)
    running_var += (momentum * (var - running_var)).astype(mean.dtype)
