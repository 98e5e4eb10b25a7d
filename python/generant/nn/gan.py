"""What generators and discriminators share, and the two for rows of numbers.

A generator is conditioned by a vector of the class beside z, a discriminator by the projection of its features on one;
minibatch_stddev shows it how much the samples of a batch differ. No part looks across a batch otherwise, so a sample
does not depend on its neighbours. The convolutional networks are in dcgan.py and resnet_gan.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod, sqrt
from typing import Any

import numpy as np

from .. import ops
from ..random import Stream
from . import init
from .embedding import Embedding
from .linear import Linear
from .module import Buffer, Module
from .spectral import call, normalise

__all__ = ["ConditionedLatent", "MlpDiscriminator", "MlpGenerator", "ProjectionHead", "minibatch_stddev"]

LEAKY_GAIN = sqrt(2 / (1 + 0.2**2))  # keeps the scale through a leaky rectifier of slope 0.2: He et al. (2015), eq. 14
FREQUENCY = 3.0  # deviation of w for 2 features, in radians per standard deviation of the data


def check_sizes(network: str, shape: Sequence[int], axes: str, **sizes: int) -> None:
    """Refuse a shape without those axes, and sizes below 1 (classes: below 0)."""
    if len(shape) != len(axes.split()) or min(shape) < 1:
        raise ValueError(f"{network}: shape must be ({axes.replace(' ', ', ')}), each at least 1, got {tuple(shape)}")
    for name, size in sizes.items():
        least = 0 if name in ("classes", "stddev_group", "frequencies") else 1
        if size < least:
            raise ValueError(f"{network}: {name} must be at least {least}, got {size}")


def check_labels(network: str, classes: int, labels: Any) -> None:
    """Labels are given where a network has classes, and only there."""
    if classes and labels is None:
        raise ValueError(f"{network}: labels (n,) are needed, as it was made with classes={classes}")
    if labels is not None and not classes:
        raise ValueError(f"{network}: labels were given, but it was made without classes")


def minibatch_stddev(x: Any, *, group: int = 4) -> Any:
    """x with a further channel: the mean over all features of their standard deviation in groups of samples.

    x (n, d) or (n, h, w, c). Returns (n, d + 1) or (n, h, w, c + 1). Sample i is in a group with i + m, i + 2 m, ...
    for the m = n / group groups; where group does not divide n, its largest divisor below serves. A discriminator
    that sees it tells a batch without variety from data. Twice differentiable. Karras et al. (2018), sec. 3.
    """
    if group < 1:
        raise ValueError(f"minibatch_stddev: group must be at least 1, got {group}")
    n, rest = x.shape[0], tuple(x.shape[1:])
    size = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
    grouped = ops.reshape(x, shape=(size, n // size, prod(rest)))
    centred = ops.sub(grouped, ops.mean(grouped, axis=0, keepdims=True))
    deviation = ops.sqrt(ops.affine(ops.mean(ops.square(centred), axis=0), shift=1e-8))
    each = ops.reshape(ops.mean(deviation, axis=-1), shape=(1, n // size, 1))
    column = ops.reshape(ops.expand(each, shape=(size, n // size, prod(rest[:-1]))), shape=(n, *rest[:-1], 1))
    return ops.concat(x, column, axis=-1)


class ConditionedLatent(Module):
    """z, and beside it a learned vector of the label's class where there are classes.

    z (n, latent_dim), labels (n,) int64 or None. Returns (n, width), width = latent_dim or 2 latent_dim.
    """

    def __init__(self, latent_dim: int, stream: Stream, *, classes: int = 0, network: str) -> None:
        self.label = Embedding(classes, latent_dim, stream) if classes else None
        self.width, self.classes, self.network = latent_dim * (2 if classes else 1), classes, network

    def __call__(self, z: Any, labels: Any = None) -> Any:
        check_labels(self.network, self.classes, labels)
        return z if self.label is None else ops.concat(z, self.label(labels), axis=-1)


class ProjectionHead(Module):
    """phi v + b + <phi, e_label>: a logit of features phi; the inner product only where there are classes.

    phi (n, d), labels (n,) int64 or None. Returns (n,). Miyato, Koyama (2018), eq. 3. The vectors e begin with length
    about 1, so that both terms weigh the same. Errors name the `network` that this is a part of.
    """

    def __init__(
        self, d: int, stream: Stream, *, classes: int = 0, spectral: bool = False, network: str
    ) -> None:
        self.out = normalise(Linear(d, 1, stream), stream, spectral)
        self.label = None
        if classes:
            table = Embedding(classes, d, stream)
            table.table *= d**-0.5
            self.label = normalise(table, stream, spectral)
        self.classes, self.network = classes, network

    def __call__(self, phi: Any, labels: Any = None, *, training: bool = False) -> Any:
        check_labels(self.network, self.classes, labels)
        logits = ops.reshape(call(self.out, phi, training=training), shape=(phi.shape[0],))
        if self.label is None:
            return logits
        return ops.add(logits, ops.sum(ops.mul(phi, call(self.label, labels, training=training)), axis=-1))


class MlpGenerator(Module):
    """Rows, or arrays of any shape, from z by a multilayer perceptron of leaky rectifiers.

    z (n, latent_dim), labels (n,) int64 if classes > 0. Returns (n, *shape).
    """

    def __init__(
        self,
        latent_dim: int,
        shape: Sequence[int],
        stream: Stream,
        *,
        hidden: Sequence[int] = (128, 128, 128),
        classes: int = 0,
    ) -> None:
        check_sizes("MlpGenerator", shape, " ".join("d" * len(shape)), latent_dim=latent_dim, classes=classes)
        self.shape = tuple(shape)
        self.latent = ConditionedLatent(latent_dim, stream, classes=classes, network="MlpGenerator")
        widths = (self.latent.width, *hidden)
        self.layers = [
            Linear(d, o, stream, activation="leaky_relu", gain=LEAKY_GAIN) for d, o in zip(widths, hidden, strict=False)
        ]
        self.out = Linear(widths[-1], prod(self.shape), stream)

    def __call__(self, z: Any, labels: Any = None, *, training: bool = False) -> Any:
        h = self.latent(z, labels)
        for layer in self.layers:
            h = layer(h)
        return ops.reshape(self.out(h), shape=(z.shape[0], *self.shape))


class MlpDiscriminator(Module):
    """A logit per row: leaky rectifiers, then a projection head.

    x (n, *shape), labels (n,) int64 if classes > 0. Returns (n,). spectral: normalise every weight; training=True then
    moves its vectors. stddev_group: let the last hidden layer see minibatch_stddev of that group, 0 for none.
    frequencies: so many random Fourier features sin(x w), cos(x w) of data of unit variance are seen beside x, without
    which details far below the data's extent are learned late. Tancik et al. (2020).
    """

    def __init__(
        self,
        shape: Sequence[int],
        stream: Stream,
        *,
        hidden: Sequence[int] = (128, 128, 128),
        classes: int = 0,
        spectral: bool = False,
        stddev_group: int = 0,
        frequencies: int = 0,
    ) -> None:
        network, d = "MlpDiscriminator", prod(shape)
        check_sizes(
            network, shape, " ".join("d" * len(shape)), classes=classes, stddev_group=stddev_group,
            frequencies=frequencies,
        )  # fmt: skip
        self.waves: Buffer | None = None
        if frequencies:  # sin and cos as one: the second half of the phases is shifted by a quarter of a turn
            waves = init.normal((d, frequencies), stream, std=FREQUENCY * sqrt(2 / d))  # phases vary alike for any d
            self.waves = Buffer(np.concatenate([waves, waves], axis=1))
            self.phases = Buffer(np.repeat(np.array([0, pi / 2], np.float32), frequencies))
        widths, self.stddev_group = [d + 2 * frequencies, *hidden], stddev_group
        self.layers = []
        for i, (d, o) in enumerate(zip(widths, hidden, strict=False)):
            d += bool(stddev_group) and i == len(hidden) - 1
            layer = Linear(d, o, stream, activation="leaky_relu", gain=LEAKY_GAIN)
            self.layers.append(normalise(layer, stream, spectral))
        self.head = ProjectionHead(widths[-1], stream, classes=classes, spectral=spectral, network=network)

    def __call__(self, x: Any, labels: Any = None, *, training: bool = False) -> Any:
        h = ops.reshape(x, shape=(x.shape[0], prod(x.shape[1:])))
        if self.waves is not None:
            h = ops.concat(h, ops.sin(ops.linear(h, self.waves.value, self.phases.value)))
        for i, layer in enumerate(self.layers):
            if self.stddev_group and i == len(self.layers) - 1:
                h = minibatch_stddev(h, group=self.stddev_group)
            h = call(layer, h, training=training)
        return self.head(h, labels, training=training)
