"""Normalisation layers. Only BatchNorm behaves differently in training, and it is told so by its caller."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import ops
from ..data.checks import check_counts
from .linear import activated
from .module import Buffer, Module

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * gain + bias over the last axis. Ba, Kiros, Hinton (2016).

    x (..., d). affine=False fixes gain at 1 and bias at 0.
    """

    def __init__(self, d: int, *, eps: float = 1e-5, affine: bool = True, dtype: Any = "float32") -> None:
        check_counts("LayerNorm", d=d)
        gain, bias = np.ones(d, dtype), np.zeros(d, dtype)
        self.gain: Any = gain if affine else Buffer(gain)
        self.bias: Any = bias if affine else Buffer(bias)
        self.eps = eps

    def __call__(self, x: Any) -> Any:
        gain, bias = [a.value if isinstance(a, Buffer) else a for a in (self.gain, self.bias)]
        return ops.layer_norm(x, gain, bias, eps=self.eps)


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last axis. Zhang, Sennrich (2019), eq. 4.

    x (..., d).
    """

    def __init__(self, d: int, *, eps: float = 1e-6, dtype: Any = "float32") -> None:
        check_counts("RMSNorm", d=d)
        self.gain, self.eps = np.ones(d, dtype), eps

    def __call__(self, x: Any) -> Any:
        return ops.rms_norm(x, self.gain, eps=self.eps)


class GroupNorm(Module):
    """activation(((x - mean) / sqrt(var + eps) * gain + bias) * (1 + scale) + shift), statistics over the positions and
    the channels of a group. Wu, He (2018).

    x (n, ..., c); scale, shift (n, c) or None: a modulation of every sample. `groups` is clipped to the
    largest divisor of c that is not above it. activation "identity" or "silu".
    """

    def __init__(
        self, c: int, *, groups: int = 32, eps: float = 1e-5, activation: str = "identity", dtype: Any = "float32"
    ) -> None:
        check_counts("GroupNorm", c=c, groups=groups)
        self.gain, self.bias = np.ones(c, dtype), np.zeros(c, dtype)
        self.groups = next(g for g in range(min(groups, c), 0, -1) if c % g == 0)
        self.eps, self.activation = eps, activation

    def __call__(self, x: Any, scale: Any = None, shift: Any = None) -> Any:
        return ops.group_norm(
            x, self.gain, self.bias, scale, shift, groups=self.groups, eps=self.eps, activation=self.activation
        )


class BatchNorm(Module):
    """activation((x - mean) / sqrt(var + eps) * gain + bias) per channel. Ioffe, Szegedy (2015).

    x (..., c). training=True takes the statistics of the batch and moves the running ones, Buffers `mean` and `var`,
    by `momentum` towards them (the unbiased variance); otherwise those are taken. `activation`: the name of an op.
    """

    def __init__(
        self, c: int, *, momentum: float = 0.1, eps: float = 1e-5, activation: str | None = None, dtype: Any = "float32"
    ) -> None:
        self.gain, self.bias = np.ones(c, dtype), np.zeros(c, dtype)
        check_counts("BatchNorm", c=c)
        self.mean, self.var = Buffer(np.zeros(c, dtype)), Buffer(np.ones(c, dtype))
        self.momentum, self.eps, self.activation = momentum, eps, activation

    def __call__(self, x: Any, *, training: bool = False) -> Any:
        running = self.mean.value, self.var.value
        if training:
            y, mean, rstd = ops.batch_norm.all(x, self.gain, self.bias, eps=self.eps)
            count = prod(x.shape[:-1])
            ops.batch_norm_update_(*running, mean, rstd, count=count, momentum=self.momentum, eps=self.eps)
        else:
            y = ops.batch_norm_apply(x, self.gain, self.bias, *running, eps=self.eps)
        return activated("BatchNorm", self.activation, y)
