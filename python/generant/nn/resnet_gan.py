"""Residual generator and discriminator without normalisation, as in R3GAN. Huang, Gokaslan, Kuleshov, Tompkin (2024).

A block is x + conv(leaky(conv(x))) with its second convolution zero and its first scaled down by the root of the number
of blocks, so that depth changes nothing at first (Zhang, Dauphin, Ma 2019, "Fixup"). Sizes change between stages by
linear interpolation and by averages over 2 x 2, never by strided convolutions. Two things differ from theirs. Blocks
are two full 3 x 3 convolutions in place of grouped bottlenecks, which are slower at the widths of small images. And z
enters through a full linear layer and a rectifier, onto 4 pixels at least: from their product of a learned image and a
linear map, blocks that begin as the identity lead to samples of a few dimensions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import prod
from typing import Any

from .. import ops
from ..random import Stream
from . import init
from .conv import Conv2d
from .dcgan import AXES, cropped, halvings, start
from .gan import LEAKY_GAIN, ConditionedLatent, ProjectionHead, check_sizes, minibatch_stddev
from .linear import Linear, activated
from .module import Module
from .spectral import call, normalise

__all__ = ["FixupBlock", "ResNetDiscriminator", "ResNetGenerator"]

MOST = 8  # widest stage, in units of `width`


class FixupBlock(Module):
    """x + second(leaky_relu(first(x))), 3 x 3 convolutions, the identity before training (not if spectral).

    x (n, h, w, c). Returns the same shape. depth: the number of blocks in the network.
    """

    def __init__(self, c: int, stream: Stream, *, depth: int = 1, spectral: bool = False) -> None:
        gain = LEAKY_GAIN * (1.0 if spectral else depth**-0.5)
        self.first = normalise(Conv2d(c, c, stream, activation="leaky_relu", gain=gain), stream, spectral)
        self.second = normalise(Conv2d(c, c, stream, gain=1.0 if spectral else 0.0), stream, spectral)

    def __call__(self, x: Any, *, training: bool = False) -> Any:
        return call(self.second, call(self.first, x, training=training), x, training=training)


def _stages(h: int, w: int, width: int) -> tuple[tuple[int, int], list[int]]:
    """(size of the smallest image, channels from the largest image to it)."""
    k = halvings(h, w, least=0)
    return start(h, w, k), [width * min(1 << i, MOST) for i in range(k + 1)]


class ResNetGenerator(Module):
    """Images from z: a linear layer to a small image, then stages of residual blocks of doubling size.

    z (n, latent_dim), labels (n,) int64 if classes > 0. Returns (n, h, w, c) for shape (h, w, c). The largest stage has
    `width` channels, each smaller one twice as many, 8 width at most; `blocks` per stage. out_activation as in
    DCGANGenerator.
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        stream: Stream,
        *,
        width: int = 32,
        classes: int = 0,
        blocks: int = 1,
        out_activation: str | None = None,
    ) -> None:
        network = "ResNetGenerator"
        check_sizes(network, shape, AXES, latent_dim=latent_dim, width=width, classes=classes, blocks=blocks)
        self.shape = tuple(shape)
        size, channels = _stages(shape[0], shape[1], width)
        channels, depth = channels[::-1], len(channels) * blocks
        self.latent = ConditionedLatent(latent_dim, stream, classes=classes, network=network)
        self.start, self.out_activation = (*size, channels[0]), out_activation
        self.enter = Linear(
            self.latent.width, prod(self.start), stream, activation="leaky_relu", gain=LEAKY_GAIN
        )
        self.narrow = [Conv2d(c, o, stream, kernel=1) for c, o in itertools.pairwise(channels)]
        self.stages = [[FixupBlock(o, stream, depth=depth) for _ in range(blocks)] for o in channels]
        self.out = Conv2d(channels[-1], self.shape[2], stream)

    def __call__(self, z: Any, labels: Any = None, *, training: bool = False) -> Any:
        h = ops.reshape(self.enter(self.latent(z, labels)), shape=(z.shape[0], *self.start))
        for i, stage in enumerate(self.stages):
            if i:
                h = self.narrow[i - 1](h)  # before the interpolation: they commute, and it is a quarter of the work
                h = ops.resize(h, size=(2 * h.shape[1], 2 * h.shape[2]), mode="bilinear")
            for block in stage:
                h = block(h)
        return activated("ResNetGenerator", self.out_activation, cropped(self.out(h), *self.shape[:2]))


class ResNetDiscriminator(Module):
    """A logit per image: stages of residual blocks of halving size, a weighted sum over pixels, a projection head.

    x (n, h, w, c), labels (n,) int64 if classes > 0. Returns (n,). Channels and blocks as in ResNetGenerator; sizes
    that do not halve evenly repeat the outermost pixels first. spectral: normalise every weight but that of the sum;
    training=True then moves the vectors. stddev_group: let the last stage see minibatch_stddev of that group.
    """

    def __init__(
        self,
        shape: Sequence[int],
        stream: Stream,
        *,
        width: int = 32,
        classes: int = 0,
        blocks: int = 1,
        spectral: bool = False,
        stddev_group: int = 0,
    ) -> None:
        network = "ResNetDiscriminator"
        check_sizes(network, shape, AXES, width=width, classes=classes, blocks=blocks, stddev_group=stddev_group)
        h, w, _ = shape
        size, channels = _stages(h, w, width)
        whole = (size[0] << len(channels) - 1) - h, (size[1] << len(channels) - 1) - w
        self.padding = (whole[0] // 2, whole[0] - whole[0] // 2, whole[1] // 2, whole[1] - whole[1] // 2)
        depth, last = len(channels) * blocks, len(channels) - 1
        self.enter = []
        for i, (c, o) in enumerate(zip((shape[2], *channels), channels, strict=False)):
            extra = bool(stddev_group) and i == last
            self.enter.append(normalise(Conv2d(c + extra, o, stream, kernel=1 if i else 3), stream, spectral))
        self.stages = [
            [FixupBlock(o, stream, depth=depth, spectral=spectral) for _ in range(blocks)] for o in channels
        ]
        self.basis = init.normal((1, *size, channels[-1]), stream, std=(size[0] * size[1]) ** -0.5)
        self.head = ProjectionHead(channels[-1], stream, classes=classes, spectral=spectral, network=network)
        self.stddev_group = stddev_group

    def __call__(self, x: Any, labels: Any = None, *, training: bool = False) -> Any:
        if any(self.padding):
            x = ops.pad(x, padding=self.padding, mode="replicate")
        for i, (enter, stage) in enumerate(zip(self.enter, self.stages, strict=True)):
            x = ops.avg_pool(x) if i else x
            if self.stddev_group and i == len(self.stages) - 1:
                x = minibatch_stddev(x, group=self.stddev_group)
            x = call(enter, x, training=training)
            for block in stage:
                x = block(x, training=training)
        phi = ops.sum(ops.mul(x, self.basis), axis=(1, 2))
        return self.head(phi, labels, training=training)
