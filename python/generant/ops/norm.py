"""Layer normalisation, and RMS normalisation, which does without the mean.

The forward pass leaves mean and 1 / standard deviation of every row behind, so the backward pass reads x and g once.
Second order (gradient penalties) comes from differentiating the definition, which is written in ops.
"""

from __future__ import annotations

from typing import Any

from ._table import fused, op
from .activation import rsqrt
from .layout import reshape
from .reduce import mean as _mean

__all__ = ["layer_norm", "layer_norm_bwd", "rms_norm", "rms_norm_bwd"]

SIZES = [
    dict(d=1, _=()),
    dict(d=1, _=(3,)),
    dict(d=7, _=(5,)),
    dict(d=37, _=(2, 3)),
    dict(d=64, _=(131,)),
    dict(d=300, _=(17,)),
]


@op(
    "x: ... d, gain: d, bias: d -> ... d, ..., ...",
    sizes=SIZES,
    attrs=[dict(), dict(eps=0.1)],
    caches=2,
    keep="xy",
)
def layer_norm(x: Any, gain: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * gain + bias, mean and variance over the last axis.

    x (..., d); gain, bias (d,). Returns (..., d); `layer_norm.all` also returns mean (...) and
    1 / sqrt(var + eps) (...). One pass over memory. Ba, Kiros, Hinton (2016), eq. 3.
    """
    mean = _mean(x, axis=-1, keepdims=True)
    centred = x - mean
    rstd = rsqrt(_mean(centred * centred, axis=-1, keepdims=True) + eps)
    rows = tuple(x.shape[:-1])
    return centred * rstd * gain + bias, reshape(mean, shape=rows), reshape(rstd, shape=rows)


@op(
    "g: ... d, x: ... d, gain: d, bias: d, mean: ..., rstd: ... -> ... d, d, d",
    sizes=SIZES,
    attrs=[dict(need=(0, 1, 2)), dict(need=(0,)), dict(need=(1, 2))],
    domain={"rstd": "positive"},
    keep="x",
)
def layer_norm_bwd(
    g: Any, x: Any, gain: Any, bias: Any, mean: Any, rstd: Any, *, eps: float = 1e-5, need: tuple[int, ...]
) -> Any:
    """The gradients of layer_norm in x, gain and bias, those that `need` lists (by input number); None for the others.

    g, x (..., d); gain, bias (d,); mean, rstd (...). Returns (..., d), (d,), (d,).
    With z = (x - mean) * rstd and u = g * gain: dx = rstd * (u - mean(u) - z * mean(u * z)).
    """
    d = x.shape[-1]
    z = (x - mean[..., None]) * rstd[..., None]
    u = g * gain
    dx = rstd[..., None] * (u - u.mean(-1, keepdims=True) - z * (u * z).mean(-1, keepdims=True))
    dgain, dbias = (g * z).reshape(-1, d).sum(0), g.reshape(-1, d).sum(0)
    return tuple(v if i in need else None for i, v in enumerate((dx, dgain, dbias)))


fused(layer_norm, layer_norm_bwd, layer_norm)


@op("x: ... d, gain: d -> ... d, ...", sizes=SIZES, attrs=[dict(), dict(eps=0.1)], caches=1, keep="xy")
def rms_norm(x: Any, gain: Any, *, eps: float = 1e-6) -> Any:
    """x / sqrt(mean(x^2) + eps) * gain, the mean over the last axis.

    x (..., d); gain (d,). Returns (..., d); `rms_norm.all` also returns 1 / sqrt(mean(x^2) + eps) (...). One pass over
    memory. Zhang, Sennrich (2019), eq. 4.
    """
    rstd = rsqrt(_mean(x * x, axis=-1, keepdims=True) + eps)
    return x * rstd * gain, reshape(rstd, shape=tuple(x.shape[:-1]))


@op(
    "g: ... d, x: ... d, gain: d, rstd: ... -> ... d, d",
    sizes=SIZES,
    attrs=[dict(need=(0, 1)), dict(need=(0,)), dict(need=(1,))],
    domain={"rstd": "positive"},
    keep="x",
)
def rms_norm_bwd(g: Any, x: Any, gain: Any, rstd: Any, *, eps: float = 1e-6, need: tuple[int, ...]) -> Any:
    """The gradients of rms_norm in x and gain, those that `need` lists (by input number); None for the others.

    g, x (..., d); gain (d,); rstd (...). Returns (..., d), (d,).
    With z = x * rstd and u = g * gain: dx = rstd * (u - z * mean(u * z)).
    """
    z = x * rstd[..., None]
    u = g * gain
    dx = rstd[..., None] * (u - z * (u * z).mean(-1, keepdims=True))
    dgain = (g * z).reshape(-1, x.shape[-1]).sum(0)
    return tuple(v if i in need else None for i, v in enumerate((dx, dgain)))


fused(rms_norm, rms_norm_bwd, rms_norm)
