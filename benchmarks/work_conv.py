"""Convolutions, forward and with their gradients, and resampling (see work.py).

The references are float64 and follow the definition: one product of matrices for every position of the kernel, on the
pixels it meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from layouts import rms_error
from work import Family, normal

# ---------------------------------------------------------------- float64 references


def _taps(padded: np.ndarray, kernel: tuple, out: tuple, stride: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(i, j, the pixels that position (i, j) of the kernel meets, a view n oh ow c)."""
    for i, j in np.ndindex(*kernel):
        yield i, j, padded[:, i : i + stride * out[0] : stride, j : j + stride * out[1] : stride]


def _pad(x: np.ndarray, padding: int) -> np.ndarray:
    return np.pad(x.astype(np.float64), [(0, 0), (padding, padding), (padding, padding), (0, 0)])


def _by_group(v: np.ndarray, groups: int) -> np.ndarray:
    """... c -> groups, rows, channels of a group."""
    return v.reshape(-1, groups, v.shape[-1] // groups).swapaxes(0, 1)


def conv(x: np.ndarray, w: np.ndarray, stride: int = 1, padding: int = 1, groups: int = 1) -> np.ndarray:
    """x n h w c, w kh kw c/groups o -> n oh ow o."""
    padded, w = _pad(x, padding), w.astype(np.float64)
    out = tuple((padded.shape[d] - w.shape[d - 1]) // stride + 1 for d in (1, 2))
    y = sum(_by_group(v, groups) @ _by_group(w[i, j], groups) for i, j, v in _taps(padded, w.shape[:2], out, stride))
    return y.swapaxes(0, 1).reshape(len(x), *out, -1)


def conv_dx(
    g: np.ndarray, w: np.ndarray, size: tuple, stride: int = 1, padding: int = 1, groups: int = 1
) -> np.ndarray:
    """The gradient in x (h, w = size) from that in the result: each product goes back to the pixels it came from."""
    g, w = g.astype(np.float64), w.astype(np.float64)
    dx = np.zeros((len(g), size[0] + 2 * padding, size[1] + 2 * padding, w.shape[2] * groups))
    for i, j, part in _taps(dx, w.shape[:2], g.shape[1:3], stride):
        product = _by_group(g, groups) @ _by_group(w[i, j], groups).swapaxes(1, 2)
        part += product.swapaxes(0, 1).reshape(part.shape)
    return dx[:, padding : padding + size[0], padding : padding + size[1]]


def conv_dw(
    x: np.ndarray, g: np.ndarray, kernel: tuple, stride: int = 1, padding: int = 1, groups: int = 1
) -> np.ndarray:
    """The gradient in w."""
    padded, g = _pad(x, padding), g.astype(np.float64)
    dw = np.empty((*kernel, x.shape[-1] // groups, g.shape[-1]))
    for i, j, part in _taps(padded, kernel, g.shape[1:3], stride):
        product = _by_group(part, groups).swapaxes(1, 2) @ _by_group(g, groups)
        dw[i, j] = product.swapaxes(0, 1).reshape(dw.shape[2:])
    return dw


# ---------------------------------------------------------------- convolutions


@dataclass(frozen=True)
class Conv(Family):
    """n images of size x size with c channels to o channels."""

    n: int
    c: int
    o: int
    size: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    groups: int = 1
    unit = " rms"
    sorts: ClassVar = {"x": "image", "g": "image", "w": "weights"}
    results: ClassVar[tuple] = ("image",)

    def small(self):
        c, o = min(self.c, 32), min(self.o, 32)
        groups = c if self.groups == self.c else self.groups
        return replace(self, n=min(self.n, 2), c=c, o=o, size=min(self.size, 11), groups=groups)

    @property
    def out(self):
        """Height and width of the result."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    def inputs(self):
        fan_in = self.kernel**2 * self.c // self.groups
        shape = (self.kernel, self.kernel, self.c // self.groups, self.o)
        return SimpleNamespace(
            x=normal((self.n, self.size, self.size, self.c)),
            w=normal(shape, 1, fan_in**-0.5),
            g=normal((self.n, self.out, self.out, self.o), 2),
        )

    def apply(self, ops, x, w):
        return ops.conv2d(x, w, stride=(self.stride, self.stride), padding=self.padding, groups=self.groups)

    def ours(self, a):
        from generant import ops

        return partial(self.apply, ops, a.x, a.w)

    def options(self):
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    def exact(self, a):
        return [conv(a.x, a.w, **self.options())]

    def error(self, result, a):
        return rms_error(result, self.exact(a), a, self)

    def flop(self):
        """Of the definition: an algorithm that makes fewer products can be above the peak."""
        return 2.0 * self.n * self.out**2 * self.kernel**2 * self.c / self.groups * self.o


@dataclass(frozen=True)
class ConvGradients(Conv):
    """The result, and from a gradient in it those in x and w."""

    tolerance = 5e-5  # the gradient in w is a sum over all pixels
    results: ClassVar[tuple] = ("image", "image", "weights")

    def ours(self, a):
        from generant import ops, vjp

        def call():
            y, pull = vjp(partial(self.apply, ops), a.x, a.w)
            return y, *pull(a.g)

        return call

    def exact(self, a):
        dx = conv_dx(a.g, a.w, (self.size, self.size), **self.options())
        return [*super().exact(a), dx, conv_dw(a.x, a.g, a.w.shape[:2], **self.options())]

    def flop(self):
        return 3 * super().flop()


@dataclass(frozen=True)
class FirstLayer(Conv):
    """The result and the gradient in w: nothing lies before x."""

    tolerance = ConvGradients.tolerance
    results: ClassVar[tuple] = ("image", "weights")

    def ours(self, a):
        from generant import ops, vjp

        def call():
            y, pull = vjp(partial(self.apply, ops, a.x), a.w)
            return y, *pull(a.g)

        return call

    def exact(self, a):
        return [*super().exact(a), conv_dw(a.x, a.g, a.w.shape[:2], **self.options())]

    def flop(self):
        return 2 * super().flop()


@dataclass(frozen=True)
class ConvTranspose(Conv):
    """The gradient of a convolution with o channels in and c out, as a layer that enlarges images."""

    kernel: int = 4
    stride: int = 2

    @property
    def out(self):
        return (self.size - 1) * self.stride + self.kernel - 2 * self.padding

    def inputs(self):
        a = super().inputs()
        taps = self.kernel / self.stride  # that meet a pixel of the result, in each direction
        a.w = normal((self.kernel, self.kernel, self.o, self.c), 1, (taps**2 * self.c) ** -0.5)
        return a

    def apply(self, ops, x, w):
        return ops.conv_transpose2d(x, w, stride=(self.stride, self.stride), padding=self.padding)

    def exact(self, a):
        return [conv_dx(a.x, a.w, (self.out, self.out), self.stride, self.padding)]

    def flop(self):
        return 2.0 * self.n * self.size**2 * self.kernel**2 * self.c * self.o


@dataclass(frozen=True)
class UpsampleConv(Conv):
    """Every pixel twice in each direction, then a 3x3 convolution."""

    @property
    def out(self):
        return 2 * self.size

    def apply(self, ops, x, w):
        return ops.upsample_conv2d(x, w)

    def exact(self, a):
        return [conv(a.x.repeat(2, 1).repeat(2, 2), a.w)]


# ---------------------------------------------------------------- resampling


@dataclass(frozen=True)
class MaxPool(Family):
    """The largest of 2x2 pixels."""

    n: int
    c: int
    size: int
    unit = " rms"
    sorts: ClassVar = {"x": "image"}
    results: ClassVar[tuple] = ("image",)

    def small(self):
        return replace(self, n=min(self.n, 2), c=min(self.c, 19), size=min(self.size, 10))

    def inputs(self):
        return SimpleNamespace(x=normal((self.n, self.size, self.size, self.c)))

    def apply(self, ops, x):
        return ops.max_pool(x, window=(2, 2))

    def ours(self, a):
        from generant import ops

        return partial(self.apply, ops, a.x)

    def windows(self, a):
        half = self.size // 2
        return a.x.astype(np.float64).reshape(self.n, half, 2, half, 2, self.c)

    def exact(self, a):
        return self.windows(a).max((2, 4))

    def error(self, result, a):
        return rms_error(result, [self.exact(a)], a, self)

    def bytes(self):
        return 5.0 * self.n * self.size**2 * self.c


@dataclass(frozen=True)
class AvgPool(MaxPool):
    """The mean of 2x2 pixels."""

    def apply(self, ops, x):
        return ops.avg_pool(x, window=(2, 2))

    def exact(self, a):
        return self.windows(a).mean((2, 4))


@dataclass(frozen=True)
class Resize(MaxPool):
    """Twice as many rows and columns by bilinear interpolation, the outermost pixels continued."""

    def apply(self, ops, x):
        return ops.resize(x, size=(2 * self.size, 2 * self.size), mode="bilinear")

    def exact(self, a):
        x = a.x.astype(np.float64)
        for axis in (1, 2):
            x = np.moveaxis(x, axis, 0)
            before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
            x = np.stack([x + (before - x) / 4, x + (after - x) / 4], 1).reshape(-1, *x.shape[1:])
            x = np.moveaxis(x, 0, axis)
        return x

    def bytes(self):
        return 20.0 * self.n * self.size**2 * self.c
