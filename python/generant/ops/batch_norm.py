"""Batch normalisation: with the statistics of the batch, with given ones, and the update of running statistics.

batch_norm is the training form and leaves mean and 1 / standard deviation behind (`batch_norm.all`); the effect
batch_norm_update_ moves running estimates towards them, outside of any gradient; batch_norm_apply is the form for
sampling, with the running estimates.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ._table import fused, op
from .activation import rsqrt
from .layout import reshape
from .reduce import mean as _mean

__all__ = ["batch_norm", "batch_norm_apply", "batch_norm_bwd", "batch_norm_update_"]

SIZES: list[dict[str, Any]] = [
    dict(c=1, _=(2,)),
    dict(c=3, _=(2, 3, 5)),
    dict(c=37, _=(41,)),
    dict(c=8, _=(2, 19, 31)),
]


@op("x: ... c, gain: c, bias: c -> ... c, c, c", sizes=SIZES, attrs=[dict(), dict(eps=0.1)], caches=2, keep="xy")
def batch_norm(x: Any, gain: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * gain + bias, mean and (biased) variance over all axes but the last.

    x (..., c); gain, bias (c,). Returns (..., c); `batch_norm.all` also returns mean (c,) and 1 / sqrt(var + eps)
    (c,), which batch_norm_update_ takes. x is read twice. Ioffe, Szegedy (2015), algorithm 1.
    """
    rows = reshape(x, shape=(prod(x.shape[:-1]), x.shape[-1]))
    mean = _mean(rows, axis=0)
    centred = rows - mean
    rstd = rsqrt(_mean(centred * centred, axis=0) + eps)
    return reshape(centred * rstd * gain + bias, shape=tuple(x.shape)), mean, rstd


@op(
    "g: ... c, x: ... c, gain: c, bias: c, mean: c, rstd: c -> ... c, c, c",
    sizes=SIZES,
    attrs=[dict(), dict(need=(0,)), dict(need=(1, 2))],
    domain={"rstd": "positive"},
    keep="x",
)
def batch_norm_bwd(
    g: Any, x: Any, gain: Any, bias: Any, mean: Any, rstd: Any, *, eps: float = 1e-5, need: tuple[int, ...]
) -> Any:
    """The gradients of batch_norm in x, gain and bias, those that `need` lists; None for the others.

    g, x (..., c); gain, bias, mean, rstd (c,). Returns (..., c), (c,), (c,).
    With z = (x - mean) * rstd: dx = gain * rstd * (g - mean(g) - z * mean(g * z)), means over the rows.
    """
    c = x.shape[-1]
    z, rows = ((x - mean) * rstd).reshape(-1, c), g.reshape(-1, c)
    dx = gain * rstd * (rows - rows.mean(0) - z * (rows * z).mean(0))
    made = (dx.reshape(x.shape), (rows * z).sum(0), rows.sum(0))
    return tuple(v if i in need else None for i, v in enumerate(made))


fused(batch_norm, batch_norm_bwd, batch_norm)


@op(
    "x: ... c, gain: c, bias: c, mean: c, var: c -> ... c",
    sizes=SIZES,
    domain={"var": "positive"},
    composite=True,
)
def batch_norm_apply(x: Any, gain: Any, bias: Any, mean: Any, var: Any, *, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * gain + bias with given statistics.

    x (..., c); gain, bias, mean, var (c,). Returns (..., c). One pass. Differentiable in all five.
    """
    return (x - mean) * rsqrt(var + eps) * gain + bias


def _check_count(*arrays: Any, count: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
    if count < 2:
        raise ValueError(f"batch_norm_update_: count is {count}, wanted the number of rows in the batch, at least 2")


@op(
    "running_mean: c, running_var: c, mean: c, rstd: c ->",
    effects=(0, 1),
    sizes=[dict(c=1), dict(c=37)],
    attrs=[dict(count=10), dict(count=2, momentum=1.0, eps=0.01)],
    domain={"rstd": "positive"},
    check=_check_count,
)
def batch_norm_update_(
    running_mean: Any, running_var: Any, mean: Any, rstd: Any, *, count: int, momentum: float = 0.1, eps: float = 1e-5
) -> None:
    """running_mean <- (1 - momentum) running_mean + momentum mean, and running_var likewise towards the unbiased
    variance of the batch, in place.

    running_mean, running_var (c,); mean, rstd (c,) from `batch_norm.all` with the same eps; count: the rows it was
    taken over, at least 2. The variance is (1 / rstd^2 - eps) count / (count - 1), never below 0.
    Not differentiable. Ioffe, Szegedy (2015), section 3.1.
    """
    var = np.maximum(1 / (rstd * rstd) - eps, 0) * (count / (count - 1))
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var - running_var)
