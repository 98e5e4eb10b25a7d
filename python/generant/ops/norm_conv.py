"""Half a ResNet block as one op: the convolution of a normalised, activated image.

The normalised image is never written: rows of it are made in the cache where the convolution reads them. The rule is
made of parts (the triple of conv2d and the backward kernel of group_norm) and makes that image again.
He et al. (2016), arXiv 1603.05027 (pre-activation); Ho et al. (2020), arXiv 2006.11239, appendix B.
"""

from __future__ import annotations

from typing import Any

from ._table import op, rule
from .conv import conv2d, conv2d_dw, conv2d_dx
from .group_norm import CHOICES, _check_groups, group_norm, group_norm_bwd
from .reduce import sum_to

__all__ = ["group_norm_conv2d"]


SIZES = [
    dict(n=1, h=2, w=3, c=2, o=1, groups=1),
    dict(n=3, h=5, w=4, c=6, o=9, groups=3),
    dict(n=2, h=7, w=3, c=20, o=17, groups=2),
]


@op(
    "x: n h w c, gain: c, bias: c, scale?: n c, shift?: n c, w: 3 3 c o, b?: o, residual?: n h w o "
    "-> n h w o, n groups, n groups",
    sizes=SIZES,
    attrs=[dict(), dict(activation="identity", eps=0.1)],
    choices=CHOICES,
    derive=_check_groups,
    caches=2,
    keep="xy",
)
def group_norm_conv2d(
    x: Any,
    gain: Any,
    bias: Any,
    scale: Any,
    shift: Any,
    w: Any,
    b: Any = None,
    residual: Any = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
    activation: str = "silu",
) -> Any:
    """conv2d(activation(group_norm(x)), w, padding=1) + b + residual, the bits of conv2d_act after group_norm.

    x (n, h, w, c); gain, bias (c,); scale, shift (n, c) modulate the normalised image as in group_norm, or None;
    w (3, 3, c, o); b (o,) and residual (n, h, w, o), or None; activation "silu" or "identity". Returns (n, h, w, o);
    `.all` also returns mean and 1 / sqrt(variance + eps), (n, groups). One reading pass over x for the statistics, one
    for the rest; where conv2d does not run by Winograd's algorithm a sample at a time is activated into scratch.
    Raises ValueError if groups does not divide c.
    """
    norm = dict(groups=groups, eps=eps, activation=activation)
    u, mean, rstd = group_norm.definition(x, gain, bias, scale, shift, **norm)
    y = conv2d.definition(u, w, stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=1)
    y = y if b is None else y + b
    return y if residual is None else y + residual, mean, rstd


def _rule(gys, ys, needs, x, gain, bias, scale, shift, w, b=None, residual=None, *, groups, eps, activation):
    g, (_, mean, rstd) = gys[0], ys
    needs = [*needs, False, False][:8]
    out: list[Any] = [None] * 8
    norm = dict(groups=groups, eps=eps, activation=activation)
    of_norm = tuple([i for i in range(5) if needs[i]])
    if g is None:
        return out
    if of_norm:
        du = conv2d_dx(g, w, size=tuple(x.shape[1:3]), padding=(1, 1, 1, 1))
        parts = group_norm_bwd.all(du, x, gain, bias, scale, shift, mean, rstd, need=of_norm, **norm)
        out[:5] = parts
    if needs[5]:
        u = group_norm(x, gain, bias, scale, shift, **norm)
        out[5] = conv2d_dw(u, g, kernel=(3, 3), padding=(1, 1, 1, 1))
    if needs[6]:
        out[6] = sum_to(g, shape=b.shape)
    if needs[7]:
        out[7] = g
    return out


rule(group_norm_conv2d, _rule)
