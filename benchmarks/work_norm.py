"""Normalisation: alone, and in the ResNet block of diffusion models (see work.py). References are float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from layouts import rms_error
from work import Family, normal, relative
from work_conv import conv, conv_dw, conv_dx

EPS = 1e-5


def _silu(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """silu(h) and its derivative."""
    s = 1 / (1 + np.exp(-h))
    return h * s, s * (1 + h * (1 - s))


def _standard(x: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """x n h w c less its mean over image and group and divided by its deviation; and one over the deviation."""
    x = x.astype(np.float64).reshape(len(x), -1, groups, x.shape[-1] // groups)
    r = 1 / np.sqrt(x.var((1, 3), keepdims=True) + EPS)
    return (x - x.mean((1, 3), keepdims=True)) * r, r


def norm_silu(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, groups: int) -> np.ndarray:
    z, _ = _standard(x, groups)
    return _silu(z.reshape(x.shape) * gain + bias)[0]


def norm_silu_gradients(g: np.ndarray, x: np.ndarray, gain: np.ndarray, bias: np.ndarray, groups: int) -> tuple:
    """Of norm_silu in x, gain and bias, from the gradient g in its result."""
    z, r = _standard(x, groups)
    flat = z.reshape(x.shape)
    gh = g * _silu(flat * gain + bias)[1]
    gz = (gh * gain).reshape(z.shape)
    dx = r * (gz - gz.mean((1, 3), keepdims=True) - z * (gz * z).mean((1, 3), keepdims=True))
    return dx.reshape(x.shape), (gh * flat).sum((0, 1, 2)), gh.sum((0, 1, 2))


# ---------------------------------------------------------------- group_norm and the ResNet block


@dataclass(frozen=True)
class GroupNormSilu(Family):
    """silu(group_norm(x)) of n images of size x size with c channels."""

    n: int
    c: int
    size: int
    groups: int = 32
    unit = " rms"
    sorts: ClassVar = {"x": "image", "g": "image"}
    results: ClassVar[tuple] = ("image",)

    def small(self):
        return replace(self, n=min(self.n, 2), c=min(self.c, 64), size=min(self.size, 7))

    def inputs(self):
        shape = (self.n, self.size, self.size, self.c)
        gain, bias = 1 + normal(self.c, 1, 0.1), normal(self.c, 2, 0.1)
        return SimpleNamespace(x=normal(shape) + np.float32(0.5), gain=gain, bias=bias, g=normal(shape, 3))

    def apply(self, ops, x, gain, bias):
        return ops.group_norm(x, gain, bias, groups=self.groups, eps=EPS, activation="silu")

    def ours(self, a):
        from generant import ops

        return partial(self.apply, ops, a.x, a.gain, a.bias)

    def exact(self, a):
        return [norm_silu(a.x, a.gain, a.bias, self.groups)]

    def error(self, result, a):
        return rms_error(result, self.exact(a), a, self)

    def bytes(self):
        return 8.0 * self.n * self.size**2 * self.c


@dataclass(frozen=True)
class GroupNormSiluGradients(GroupNormSilu):
    """The result, and from a gradient in it those in x, gain and bias."""

    tolerance = 5e-5
    results: ClassVar[tuple] = ("image", "image", "vector", "vector")

    def ours(self, a):
        from generant import ops, vjp

        def call():
            y, pull = vjp(partial(self.apply, ops), a.x, a.gain, a.bias)
            return y, *pull(a.g)

        return call

    def exact(self, a):
        return [*super().exact(a), *norm_silu_gradients(a.g, a.x, a.gain, a.bias, self.groups)]

    def bytes(self):
        return 20.0 * self.n * self.size**2 * self.c


PARAMETERS = ("x", "gain1", "bias1", "w1", "b1", "gain2", "bias2", "w2", "b2")


@dataclass(frozen=True)
class ResBlock(GroupNormSilu):
    """x + conv(silu(norm(conv(silu(norm(x)))))), both convolutions 3x3 with a bias."""

    sorts: ClassVar = {"x": "image", "g": "image", "w1": "weights", "w2": "weights"}

    def inputs(self):
        a, c = super().inputs(), self.c
        for i in (1, 2):
            weights = normal((3, 3, c, c), 10 * i, (9 * c) ** -0.5)
            gain, bias, b = (normal(c, 10 * i + k, 0.1) for k in (1, 2, 3))
            vars(a).update({f"gain{i}": 1 + gain, f"bias{i}": bias, f"w{i}": weights, f"b{i}": b})
        return a

    def apply(self, ops, x, gain1, bias1, w1, b1, gain2, bias2, w2, b2):
        half = partial(ops.group_norm_conv2d, groups=self.groups, eps=EPS, activation="silu")
        h = half(x, gain1, bias1, None, None, w1, b1, None)
        return half(h, gain2, bias2, None, None, w2, b2, x)

    def unfused(self, ops, x, gain1, bias1, w1, b1, gain2, bias2, w2, b2):
        """The same from ops that each read and write whole images."""
        norm = partial(ops.group_norm, groups=self.groups, eps=EPS, activation="silu")
        h = ops.conv2d(norm(x, gain1, bias1), w1, padding=1) + b1
        return ops.conv2d(norm(h, gain2, bias2), w2, padding=1) + b2 + x

    def call(self, block, a):
        return partial(block, *(getattr(a, name) for name in PARAMETERS))

    def ours(self, a):
        from generant import ops

        return self.call(partial(self.apply, ops), a)

    def middle(self, a):
        """What the first half gives."""
        return conv(norm_silu(a.x, a.gain1, a.bias1, self.groups), a.w1) + a.b1

    def exact(self, a):
        return [conv(norm_silu(self.middle(a), a.gain2, a.bias2, self.groups), a.w2) + a.b2 + a.x]

    def flop(self):
        """Of the convolutions, by their definition: an algorithm that makes fewer products can be above the peak."""
        return 2 * 2.0 * self.n * self.size**2 * 9 * self.c**2


@dataclass(frozen=True)
class ResBlockGradients(ResBlock):
    """The result, and from a gradient in it those in x and all parameters."""

    tolerance = 5e-5  # gradients in parameters are sums over all pixels
    results: ClassVar[tuple] = ("image", "image", *("vector", "vector", "weights", "vector") * 2)

    def call(self, block, a):
        from generant import vjp

        xs = [getattr(a, name) for name in PARAMETERS]

        def call():
            y, pull = vjp(block, *xs)
            return y, *pull(a.g)

        return call

    def exact(self, a):
        def half(g, x, gain, bias, w):
            """The gradients of one half, that in x first."""
            h = norm_silu(x, gain, bias, self.groups)
            dh, dw = conv_dx(g, w, h.shape[1:3]), conv_dw(h, g, w.shape[:2])
            return [*norm_silu_gradients(dh, x, gain, bias, self.groups), dw, g.sum((0, 1, 2))]

        g = a.g.astype(np.float64)
        dmiddle, *second = half(g, self.middle(a), a.gain2, a.bias2, a.w2)
        dx, *first = half(dmiddle, a.x, a.gain1, a.bias1, a.w1)
        return [*super().exact(a), dx + g, *first, *second]

    def flop(self):
        return 3 * super().flop()


# ---------------------------------------------------------------- rows and channels


@dataclass(frozen=True)
class LayerNorm(Family):
    """Every row of x (n, d) less its mean, divided by its deviation, times gain, plus bias."""

    n: int
    d: int
    op: ClassVar = "layer_norm"
    arrays: ClassVar[tuple] = ("x", "gain", "bias")
    keywords: ClassVar[dict] = {"eps": EPS}

    def small(self):
        return replace(self, n=min(self.n, 50), d=min(self.d, 37))

    def inputs(self):
        gain, bias = 1 + normal(self.d, 1, 0.1), normal(self.d, 2, 0.1)
        return SimpleNamespace(x=normal((self.n, self.d)) + np.float32(0.5), gain=gain, bias=bias)

    def ours(self, a):
        from generant import ops

        return partial(getattr(ops, self.op), *(getattr(a, name) for name in self.arrays), **self.keywords)

    def exact(self, a):
        x = a.x.astype(np.float64)
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS) * a.gain + a.bias

    def error(self, result, a):
        return relative(result, self.exact(a))

    def bytes(self):
        return 8.0 * self.n * self.d


@dataclass(frozen=True)
class RmsNorm(LayerNorm):
    """Every row of x divided by its root mean square, times gain."""

    op: ClassVar = "rms_norm"
    arrays: ClassVar[tuple] = ("x", "gain")

    def exact(self, a):
        x = a.x.astype(np.float64)
        return x / np.sqrt((x * x).mean(1, keepdims=True) + EPS) * a.gain


@dataclass(frozen=True)
class BatchNorm(LayerNorm):
    """As in training: every channel (column) less its mean, divided by its deviation, times gain, plus bias."""

    op: ClassVar = "batch_norm"

    def exact(self, a):
        x = a.x.astype(np.float64)
        return (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * a.gain + a.bias

    def error(self, result, a):
        return relative(result[0] if isinstance(result, list) else result, self.exact(a))


@dataclass(frozen=True)
class Softmax(LayerNorm):
    """exp(x) of every row over its sum."""

    op: ClassVar = "softmax"
    arrays: ClassVar[tuple] = ("x",)
    keywords: ClassVar[dict] = {}

    def exact(self, a):
        e = np.exp(a.x.astype(np.float64))
        return e / e.sum(1, keepdims=True)
