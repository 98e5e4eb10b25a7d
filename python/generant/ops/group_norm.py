"""Group normalisation with modulation and activation in one op, as the blocks of a diffusion model use it.

The forward pass leaves mean and 1 / standard deviation of every group behind; the backward pass works the value before
the activation out again from x, so nothing else is kept. Second order comes from the definition, which is written in
ops. instance_norm is group_norm with one channel to a group.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ._table import fused, op, rule
from .activation import rsqrt, silu
from .layout import reshape
from .reduce import mean as _mean

__all__ = ["group_norm", "group_norm_bwd", "instance_norm"]

CHOICES: dict[str, tuple[str, ...]] = {"activation": ("identity", "silu")}
SIZES: list[dict[str, Any]] = [
    dict(n=1, c=1, groups=1, _=(2,)),
    dict(n=2, c=6, groups=2, _=(3, 5)),
    dict(n=3, c=35, groups=5, _=(4, 2)),
    dict(n=2, c=64, groups=16, _=(13,)),
    dict(n=5, c=4, groups=4, _=(37,)),
]


def _check_groups(dims: dict, attrs: dict) -> dict:
    groups, c = attrs["groups"], dims["c"]
    if groups < 1 or c % groups:
        raise ValueError(f"groups is {groups}, wanted a divisor of the {c} channels of x")
    if dims.get("groups", groups) != groups:
        raise ValueError(f"groups is {groups} but mean has {dims['groups']} groups")
    return {}


@op(
    "x: n ... c, gain: c, bias: c, scale?: n c, shift?: n c -> n ... c, n groups, n groups",
    sizes=SIZES,
    attrs=[dict(), dict(activation="silu", eps=0.1)],
    choices=CHOICES,
    derive=_check_groups,
    caches=2,
    keep="xy",
)
def group_norm(
    x: Any,
    gain: Any,
    bias: Any,
    scale: Any = None,
    shift: Any = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    activation: str = "identity",
) -> Any:
    """activation(((x - mean) / sqrt(var + eps) * gain + bias) * (1 + scale) + shift), mean and variance over the
    positions and the c / groups channels of a group.

    x (n, ..., c); gain, bias (c,); scale, shift (n, c) or None: a modulation of every sample; groups divides c;
    activation "identity" or "silu". Returns (n, ..., c); `group_norm.all` also returns mean and 1 / sqrt(var + eps),
    (n, groups). x is read twice, the second time from the cache where a sample fits. The variance is right for means
    far from zero too. Wu, He (2018); modulation: Dhariwal, Nichol (2021), section 3.3.
    """
    n, c, positions = x.shape[0], x.shape[-1], prod(x.shape[1:-1])
    split = reshape(x, shape=(n, positions, groups, c // groups))
    mean = _mean(split, axis=(1, 3), keepdims=True)
    centred = split - mean
    rstd = rsqrt(_mean(centred * centred, axis=(1, 3), keepdims=True) + eps)
    y = reshape(centred * rstd, shape=(n, positions, c)) * gain + bias
    if scale is not None:
        y = y * (1.0 + reshape(scale, shape=(n, 1, c)))
    if shift is not None:
        y = y + reshape(shift, shape=(n, 1, c))
    if activation == "silu":
        y = silu(y)
    return reshape(y, shape=tuple(x.shape)), reshape(mean, shape=(n, groups)), reshape(rstd, shape=(n, groups))


@op(
    "g: n ... c, x: n ... c, gain: c, bias: c, scale?: n c, shift?: n c, mean: n groups, rstd: n groups"
    " -> n ... c, c, c, n c, n c",
    sizes=SIZES,
    attrs=[dict(), dict(need=(0,), activation="silu"), dict(need=(1, 2, 3, 4), activation="silu")],
    choices=CHOICES,
    domain={"rstd": "positive"},
    derive=_check_groups,
    keep="x",
)
def group_norm_bwd(
    g: Any,
    x: Any,
    gain: Any,
    bias: Any,
    scale: Any,
    shift: Any,
    mean: Any,
    rstd: Any,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    activation: str = "identity",
    need: tuple[int, ...],
) -> Any:
    """The gradients of group_norm in x, gain, bias, scale and shift, those that `need` lists; None for the others.

    g, x (n, ..., c); gain, bias (c,); scale, shift (n, c) or None; mean, rstd (n, groups). Returns (n, ..., c), (c,),
    (c,), (n, c), (n, c). With z = (x - mean) * rstd, u the value before the activation, du = g * activation'(u) and
    t = du * gain * (1 + scale): dx = rstd * (t - mean(t) - z * mean(t * z)), means over a group.
    """
    n, c, positions = x.shape[0], x.shape[-1], prod(x.shape[1:-1])
    by_group = (n, positions, groups, c // groups)
    m, r = mean[:, None, :, None], rstd[:, None, :, None]
    z = ((x.reshape(by_group) - m) * r).reshape(n, positions, c)
    one_scale = np.ones((n, 1, c), x.dtype) if scale is None else 1 + scale[:, None]
    du = g.reshape(n, positions, c)
    if activation == "silu":
        u = (z * gain + bias) * one_scale + (0 if shift is None else shift[:, None])
        e = np.exp(-np.abs(u))
        s = np.where(u < 0, e, np.ones_like(e)) / (1 + e)
        du = du * (s * (1 + u * (1 - s)))
    t, zg = (du * gain * one_scale).reshape(by_group), z.reshape(by_group)
    dx = r * (t - t.mean((1, 3), keepdims=True) - zg * (t * zg).mean((1, 3), keepdims=True))
    dz, dshift = (du * z).sum(1), du.sum(1)
    dscale = gain * dz + bias * dshift
    dgain, dbias = (one_scale[:, 0] * dz).sum(0), (one_scale[:, 0] * dshift).sum(0)
    made = (dx.reshape(x.shape), dgain, dbias, dscale, dshift)
    return tuple(v if i in need else None for i, v in enumerate(made))


fused(group_norm, group_norm_bwd, group_norm)
_rule: Any = group_norm.rule


def _with_modulation(gys: Any, ys: Any, needs: Any, *xs: Any, **attrs: Any) -> Any:
    """The rule of a call that may have left scale and shift out: group_norm_bwd has arguments after them."""
    return _rule(gys, ys, needs, *xs, *[None] * (5 - len(xs)), **attrs)


rule(group_norm, _with_modulation)


@op(
    "x: n ... c, gain: c, bias: c -> n ... c",
    sizes=[dict(n=2, c=3, _=(5, 3))],
    native=False,
    composite=True,
)
def instance_norm(x: Any, gain: Any, bias: Any, *, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * gain + bias, mean and variance over the positions of each sample and channel.

    x (n, ..., c); gain, bias (c,). Returns (n, ..., c). Ulyanov, Vedaldi, Lempitsky (2016).
    """
    return group_norm(x, gain, bias, groups=x.shape[-1], eps=eps)
