"""What GANs and moment matching share: a generator that turns noise into rows or images, and what watches it.

`latents` is the noise, GeneratorModel an estimator whose samples are the averaged generator's, row by row. Not here:
what the generator is trained on (gan.py, gmmn.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import metrics, nn, ops
from ..ops import _device
from ..random import Stream, normals, split
from .diversity import Diversity, collapse_warning
from .estimator import check_count, check_widths
from .generative import EVALUATE, VALIDATION, GenerativeModel
from .scaling import Scaling

__all__ = ["GeneratorModel", "latents"]

ARCHITECTURES = ("auto", "mlp", "dcgan", "resnet")
SPREAD = 0.3  # of normal coordinates beside signs: the pieces lie apart
WATCHED, NEIGHBOURS = 500, 5  # rows that are compared, and the neighbour of recall


def latents(z: Any, signs: int) -> Any:
    """z (n, d) normal, with signs in place of its first coordinates and, if there are any, the others reduced."""
    if not signs:
        return z
    d = z.shape[1]
    first = ops.slice_axis(z, start=0, stop=signs)
    bits = ops.affine(ops.heaviside(first, ops.affine(first, scale=0.0)), scale=2.0, shift=-1.0)
    if signs == d:
        return bits
    return ops.concat(bits, ops.affine(ops.slice_axis(z, start=signs, stop=d), scale=SPREAD), axis=-1)


class GeneratorModel(GenerativeModel):
    """Base of GAN and GMMN; see there for the parameters."""

    latent_dim: int
    latent_signs: int
    architecture: str
    hidden: Sequence[int]
    width: int
    watch_every: int

    bounded = False  # whether images lie in [-1, 1] inside and the generator ends in tanh

    # ---- checks, networks ----

    def _choice(self, name: str, known: Sequence[str]) -> None:
        if getattr(self, name) not in known:
            where = type(self).__name__
            raise ValueError(f"{where}: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def _check(self) -> None:
        where = type(self).__name__
        for count, least in (("latent_dim", 1), ("latent_signs", 0), ("width", 1), ("watch_every", 0)):
            check_count(where, count, getattr(self, count), least)
        if self.latent_signs > self.latent_dim:
            raise ValueError(f"{where}: latent_signs must be at most latent_dim, got {self.latent_signs}")
        check_widths(where, "hidden", self.hidden)
        self._choice("architecture", ARCHITECTURES)

    @property
    def _images(self) -> bool:
        """Whether the networks are convolutional."""
        return self.architecture in ("dcgan", "resnet") or (
            self.architecture == "auto" and self.scaling_.image is not None
        )

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of a sample, as the networks see it."""
        image = self.scaling_.image
        return image if self._images and image else self.scaling_.shape

    def _scale(self, X: np.ndarray) -> Scaling:
        scaling = Scaling.standard(X)
        if self.architecture in ("dcgan", "resnet") and scaling.image is None:
            raise ValueError(
                f"{type(self).__name__}.fit: architecture {self.architecture!r} needs images, n h w or n h w c, "
                f"got X of shape {X.shape}"
            )
        if self.architecture == "mlp" or scaling.image is None or not self.bounded:
            return scaling
        return Scaling.to_range(X, -1.0, 1.0)

    def _generator(self, stream: Stream) -> Any:
        d, shape, classes = self.latent_dim, self._shape, self._n_classes
        if not self._images:
            return nn.MlpGenerator(d, shape, stream, hidden=self.hidden, classes=classes)
        if self.architecture == "resnet":
            return nn.ResNetGenerator(d, shape, stream, width=self.width, classes=classes)
        end = "tanh" if self.bounded else None
        return nn.DCGANGenerator(d, shape, stream, width=self.width, classes=classes, out_activation=end)

    # ---- training ----

    def _order(self, weight: np.ndarray, key: np.ndarray) -> np.ndarray:
        """A loss that compares samples with a batch cannot weigh rows, so they are drawn: systematic resampling."""
        n = len(weight)
        if weight.min() == weight.max():
            return np.arange(n)
        marks = (np.arange(n) + float(ops.uniform(key, dtype="float64", shape=()))) / n
        edges = np.cumsum(weight.astype(np.float64))
        return np.searchsorted(edges[:-1] / edges[-1], marks, "right")

    def _fake(self, generator: Any, n: int, key: Any, codes: Any) -> Any:
        """n samples of one key, as networks see them: what a step draws."""
        return generator(latents(ops.normal(key, shape=(n, self.latent_dim)), self.latent_signs), codes)

    # ---- samples ----

    def _pushed(self, generator: Any, codes: Any, keys: Any) -> Any:
        """A scaled row per key, (m, d)."""
        z = normals(keys, (self.latent_dim,))
        return generator(latents(z, self.latent_signs), codes).reshape(len(keys), -1)

    def _sample(self, codes: Any, keys: Any) -> Any:
        return self._pushed(self.networks_["generator"], codes, keys)

    def _present(self, rows: Any) -> Any:
        return self.scaling_.back(rows, clip=self.scaling_.image is not None)

    def _validate(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray) -> float:
        fake = self._sample(codes, _device.beside(x, split(self._stream(VALIDATION).at(0), len(x))))
        x, fake = _device.from_device(x), _device.from_device(fake)
        return metrics.energy_distance(x, fake, estimator="unbiased" if len(x) > 1 else "biased")

    def _observe(self, epoch: int, last: int) -> dict[str, float]:
        """recall and diversity of samples, every watch_every epochs and at the end; warns where they begin to fall."""
        if not self.watch_every or (epoch % self.watch_every and epoch != last):
            return {}
        x, codes = self._training.x, self._training.codes
        at = np.unique(np.linspace(0, len(x) - 1, WATCHED).astype(np.int64))
        if len(np.unique(x[at], axis=0)) <= NEIGHBOURS:
            return {}  # too few rows to say anything
        keys, labels = split(self._stream(EVALUATE).at(epoch), len(at)), None if codes is None else codes[at]
        if self._training.device == "cuda":
            keys, labels = _device.to_device(keys), None if labels is None else _device.to_device(labels)
        generator = self._training.learners["generator"].finish()
        fake = _device.from_device(self._pushed(generator, labels, keys))
        found = Diversity(x[at], k=NEIGHBOURS).measure(fake)
        history = [entry for entry in self.history_ if "recall" in entry]
        message = collapse_warning([*history, found])
        if message and not collapse_warning(history):
            warnings.warn(f"{type(self).__name__}.fit: epoch {epoch}: {message}", RuntimeWarning, stacklevel=4)
        return found
