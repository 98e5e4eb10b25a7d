"""Generator and discriminator of strided convolutions, for images of any size. Radford, Metz, Chintala (2016).

Two things differ from the paper. Nothing is normalised by default: batch statistics make a sample depend on its
neighbours, and a discriminator under a gradient penalty trains better without. And sizes that are no power of two are
had by beginning at ceil(h / 2^k) and cropping.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from .. import ops
from ..random import Stream
from .conv import Conv2d, ConvTranspose2d
from .gan import LEAKY_GAIN, ConditionedLatent, ProjectionHead, check_sizes, minibatch_stddev
from .linear import Linear, activated
from .module import Module
from .norm import BatchNorm, GroupNorm
from .spectral import call, normalise

__all__ = ["DCGANDiscriminator", "DCGANGenerator"]

RELU_GAIN = 2**0.5  # He et al. (2015), eq. 10
LARGEST_START = 7  # rows or columns of the smallest image inside a network
NORMS = ("group", "batch", None)
AXES = "h w c"


def halvings(h: int, w: int, *, least: int = 2) -> int:
    """How often a network halves an image: until its shorter side has 7 pixels or less, `least` times, not below 2."""
    side, k = min(h, w), 0
    while side >> (k + 1) > 1 and (k < least or -(-side >> k) > LARGEST_START):
        k += 1
    return k


def start(h: int, w: int, k: int) -> tuple[int, int]:
    """(ceil(h / 2^k), ceil(w / 2^k))."""
    return -(-h >> k), -(-w >> k)


def cropped(x: Any, h: int, w: int) -> Any:
    """The middle h rows and w columns."""
    below, right = x.shape[1] - h, x.shape[2] - w
    if not (below or right):
        return x
    return ops.pad(x, padding=(-(below // 2), below // 2 - below, -(right // 2), right // 2 - right))


class DCGANGenerator(Module):
    """Images from z: a linear layer to a small image, then transposed convolutions (4 x 4, stride 2) with rectifiers.

    z (n, latent_dim), labels (n,) int64 if classes > 0. Returns (n, h, w, c) for shape (h, w, c). Channels halve as
    sizes double and are `width` before the last layer. norm "group" or "batch" normalises before every rectifier, the
    latter with the statistics of the batch if training=True and running ones otherwise. out_activation="tanh" is the
    paper's, for data in [-1, 1]; None leaves the range open.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        stream: Stream,
        *,
        width: int = 32,
        classes: int = 0,
        norm: str | None = None,
        out_activation: str | None = None,
    ) -> None:
        check_sizes("DCGANGenerator", shape, AXES, latent_dim=latent_dim, width=width, classes=classes)
        if norm not in NORMS:
            raise ValueError(f"DCGANGenerator: norm must be 'group', 'batch' or None, got {norm!r}")
        h, w, c = self.shape = tuple(shape)
        k = halvings(h, w)
        channels = [width << (k - 1 - i) for i in range(k)] or [width]
        self.start = (*start(h, w, k), channels[0])
        self.latent = ConditionedLatent(latent_dim, stream, classes=classes, network="DCGANGenerator")
        self.enter = Linear(
            self.latent.width, prod(self.start), stream, gain=RELU_GAIN, activation=None if norm else "relu"
        )
        self.layers = []
        for i in range(1, k):
            self.layers.append(ConvTranspose2d(
                channels[i - 1], channels[i], stream, activation=None if norm else "relu", gain=RELU_GAIN
            ))
        self.norms: list[Any] = []
        if norm:
            self.norms = [GroupNorm(o) if norm == "group" else BatchNorm(o) for o in channels]
        self.out = ConvTranspose2d(channels[-1], c, stream) if k else Conv2d(channels[-1], c, stream)
        self.out_activation = out_activation

    def _normalised(self, h: Any, i: int, training: bool) -> Any:
        if not self.norms:
            return h
        norm = self.norms[i]
        return ops.relu(norm(h, training=training) if isinstance(norm, BatchNorm) else norm(h))

    def __call__(self, z: Any, labels: Any = None, *, training: bool = False) -> Any:
        h = ops.reshape(self.enter(self.latent(z, labels)), shape=(z.shape[0], *self.start))
        h = self._normalised(h, 0, training)
        for i, layer in enumerate(self.layers):
            h = self._normalised(layer(h), i + 1, training)
        return activated("DCGANGenerator", self.out_activation, cropped(self.out(h), *self.shape[:2]))


class DCGANDiscriminator(Module):
    """A logit per image: strided convolutions (4 x 4, stride 2) with leaky rectifiers, then a projection head.

    x (n, h, w, c), labels (n,) int64 if classes > 0. Returns (n,). Channels begin at `width` and double as sizes halve.
    spectral: normalise every weight; training=True then moves its vectors. stddev_group: let the last convolution see
    minibatch_stddev of that group, 0 for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        stream: Stream,
        *,
        width: int = 32,
        classes: int = 0,
        spectral: bool = False,
        stddev_group: int = 0,
    ) -> None:
        network = "DCGANDiscriminator"
        check_sizes(network, shape, AXES, width=width, classes=classes, stddev_group=stddev_group)
        h, w, c = shape
        k = halvings(h, w)
        window = dict(kernel=4, stride=2, padding=1) if k else dict(kernel=3)
        self.layers = []
        for i in range(k or 1):
            extra = bool(stddev_group) and i == (k or 1) - 1
            layer = Conv2d(
                c + extra, width << i, stream, activation="leaky_relu", gain=LEAKY_GAIN, **window  # type: ignore[arg-type]
            )
            self.layers.append(normalise(layer, stream, spectral))
            c = width << i
        features = (h >> k) * (w >> k) * c  # a convolution halves rounding down
        self.head = ProjectionHead(features, stream, classes=classes, spectral=spectral, network=network)
        self.stddev_group = stddev_group

    def __call__(self, x: Any, labels: Any = None, *, training: bool = False) -> Any:
        for i, layer in enumerate(self.layers):
            if self.stddev_group and i == len(self.layers) - 1:
                x = minibatch_stddev(x, group=self.stddev_group)
            x = call(layer, x, training=training)
        return self.head(ops.reshape(x, shape=(x.shape[0], -1)), labels, training=training)
