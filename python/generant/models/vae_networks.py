"""The networks of a variational autoencoder: rows or images to a Gaussian over latents, and latents to parameters.

Each comes as a perceptron and as a convolutional network. Labels, if there are any, go in as an embedding beside the
input. Not here: what the parameters mean (likelihoods.py) and what is minimised (vae_objectives.py).
"""

from __future__ import annotations

import itertools
from typing import Any

from .. import nn, ops
from ..random import Stream
from . import likelihoods

__all__ = [
    "Autoencoder", "Classifier", "ConvDecoder", "ConvEncoder", "ConvFeatures", "Grow", "MlpDecoder", "MlpEncoder",
    "autoencoder_parts", "halves", "presented",
]  # fmt: skip

LABEL = 32  # numbers of a class embedding


def _beside(x: Any, label: nn.Embedding | None, codes: Any) -> Any:
    return x if label is None else ops.concat(x, label(codes))


class MlpEncoder(nn.Module):
    """(mu, logvar) of q(z | x, y).

    x (n, d), codes (n,) int64 or None. Returns (n, latent) twice.
    """

    def __init__(
        self, d: int, latent: int, stream: Stream, *, hidden: tuple[int, ...], classes: int = 0
    ) -> None:
        self.label = nn.Embedding(classes, LABEL, stream) if classes else None
        widths = (d + (LABEL if classes else 0), *hidden)
        self.layers = [nn.Linear(a, b, stream, activation="silu") for a, b in zip(widths, hidden, strict=False)]
        self.mu = nn.Linear(widths[-1], latent, stream)
        self.logvar = nn.Linear(widths[-1], latent, stream)

    def __call__(self, x: Any, codes: Any = None) -> tuple[Any, Any]:
        h = _beside(x, self.label, codes)
        for layer in self.layers:
            h = layer(h)
        return self.mu(h), self.logvar(h)


class MlpDecoder(nn.Module):
    """The parameters of p(x | z, y).

    z (n, latent), codes (n,) int64 or None. Returns (n, o). hidden: the widths from z to x.
    """

    def __init__(
        self, latent: int, o: int, stream: Stream, *, hidden: tuple[int, ...], classes: int = 0
    ) -> None:
        self.label = nn.Embedding(classes, LABEL, stream) if classes else None
        self.net = nn.MLP(latent + (LABEL if classes else 0), o, stream, hidden=hidden)

    def __call__(self, z: Any, codes: Any = None) -> Any:
        return self.net(_beside(z, self.label, codes))


def halves(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """The sizes of an image that is halved so many times, rounded up."""
    sizes = [size]
    for _ in range(times):
        h, w = sizes[-1]
        sizes.append((-(-h // 2), -(-w // 2)))
    return sizes


class ConvFeatures(nn.Module):
    """A strided convolution for each of `channels`: x (n, h, w, c) of this shape. Returns (n, width)."""

    def __init__(self, shape: tuple[int, int, int], stream: Stream, *, channels: tuple[int, ...]) -> None:
        widths = (shape[2], *channels)
        self.layers = [
            nn.Conv2d(a, b, stream, stride=2, activation="silu") for a, b in zip(widths, channels, strict=False)
        ]
        h, w = halves(shape[:2], len(channels))[-1]
        self.width = h * w * widths[-1]

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return ops.reshape(x, shape=(x.shape[0], self.width))


class ConvEncoder(nn.Module):
    """(mu, logvar) of q(z | x, y) for images: convolutions, then linear layers.

    x (n, h, w, c). Returns (n, latent) twice.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent: int,
        stream: Stream,
        *,
        channels: tuple[int, ...],
        hidden: int,
        classes: int = 0,
    ) -> None:
        self.features = ConvFeatures(shape, stream, channels=channels)
        self.head = MlpEncoder(self.features.width, latent, stream, hidden=(hidden,), classes=classes)

    def __call__(self, x: Any, codes: Any = None) -> tuple[Any, Any]:
        return self.head(self.features(x), codes)


class Classifier(nn.Module):
    """Logits of q(y | x), (n, classes), for x of shape (n, width) or (n, h, w, width)."""

    def __init__(
        self, shape: tuple[int, ...], width: int, classes: int, stream: Stream, *, hidden: tuple[int, ...],
        channels: tuple[int, ...],
    ) -> None:  # fmt: skip
        image = len(shape) == 3
        self.features = ConvFeatures((shape[0], shape[1], width), stream, channels=channels) if image else None
        self.net = nn.MLP(
            self.features.width if self.features else width, classes, stream, hidden=hidden[-1:] if image else hidden
        )

    def __call__(self, x: Any) -> Any:
        return self.net(x if self.features is None else self.features(x))


class Grow(nn.Module):
    """From images (n, h, w, c) of the first of `sizes` to (n, h, w, o) of the last, doubling at each step.

    A convolution of the doubled image at each step but the last, which is a transposed convolution: most of the work of
    a decoder would be at full size.
    """

    def __init__(
        self, sizes: list[tuple[int, int]], o: int, stream: Stream, *, channels: tuple[int, ...]
    ) -> None:
        self.sizes = sizes
        self.layers = [nn.Upsample(a, b, stream) for a, b in itertools.pairwise(channels)]
        self.leave = nn.ConvTranspose2d(channels[-1], o, stream)

    def __call__(self, h: Any) -> Any:
        for layer, size in zip(self.layers, self.sizes[1:-1], strict=True):
            h = ops.silu(layer(h, size=size))
        out = self.leave(h)
        for axis, n in zip((1, 2), self.sizes[-1], strict=True):  # odd sizes were rounded up
            out = out if out.shape[axis] == n else ops.slice_axis(out, start=0, stop=n, axis=axis)
        return out


class ConvDecoder(nn.Module):
    """The parameters of p(x | z, y) for images: linear layers, then a doubling of the size for each of `channels`.

    z (n, latent). Returns (n, h, w, o): o parameters per pixel.
    """

    def __init__(
        self,
        latent: int,
        size: tuple[int, int],
        o: int,
        stream: Stream,
        *,
        channels: tuple[int, ...],
        hidden: int,
        classes: int = 0,
    ) -> None:
        self.sizes = halves(size, len(channels))[::-1]
        self.start = (*self.sizes[0], channels[0])
        h, w, c = self.start
        self.enter = MlpDecoder(latent, h * w * c, stream, hidden=(hidden,), classes=classes)
        self.grow = Grow(self.sizes, o, stream, channels=channels)

    def __call__(self, z: Any, codes: Any = None) -> Any:
        return self.grow(ops.silu(ops.reshape(self.enter(z, codes), shape=(z.shape[0], *self.start))))


def autoencoder_parts(
    shape: tuple[int, ...], width: int, o: int, latent: int, stream: Stream, *, hidden: tuple[int, ...],
    channels: tuple[int, ...], classes: int = 0,
) -> tuple[Any, Any]:  # fmt: skip
    """(encoder, decoder) of samples of a shape: perceptrons for (d,), convolutional for (h, w, c).

    width, o: numbers that the encoder is given and the decoder gives per row, or per pixel.
    """
    if len(shape) == 1:
        encoder: Any = MlpEncoder(width, latent, stream, hidden=hidden, classes=classes)
        return encoder, MlpDecoder(latent, o, stream, hidden=hidden[::-1], classes=classes)
    size, last = (shape[0], shape[1]), hidden[-1]
    encoder = ConvEncoder((*size, width), latent, stream, channels=channels, hidden=last, classes=classes)
    return encoder, ConvDecoder(latent, size, o, stream, channels=channels[::-1], hidden=last, classes=classes)


def presented(likelihood: Any, x: Any) -> Any:
    """x (..., d) as an encoder sees it: levels within -1 ... 1, categories one-hot, counts as a direction.

    Returns (..., width). Other data is left as it is. Liang et al. (2018), section 2.2, for counts.
    """
    if isinstance(likelihood, likelihoods.DiscretisedLogistic):
        return ops.affine(x, scale=2.0 / (likelihood.levels - 1), shift=-1.0)
    if isinstance(likelihood, likelihoods.Categorical):
        distance = ops.abs(ops.sub(ops.reshape(x, shape=(*x.shape, 1)), likelihood.levels.value))
        chosen = ops.relu(ops.affine(distance, scale=-1.0, shift=1.0))
        return ops.reshape(chosen, shape=(*x.shape[:-1], x.shape[-1] * likelihood.k))
    if isinstance(likelihood, likelihoods.Multinomial):
        square = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return ops.mul(x, ops.rsqrt(ops.affine(square, shift=1e-12)))
    if isinstance(likelihood, likelihoods.Mixed):
        columns = ops.split(x, sizes=likelihood.sizes)
        parts = zip(likelihood.parts, columns, strict=True)
        return ops.concatenate(*[presented(part, column) for part, column in parts])
    return x


class Autoencoder(nn.Module):
    """encoder, decoder, likelihood, and what else is trained with them: a prior, a classifier; None if there is none.

    shape: of a sample as the decoder and the likelihood see it, (d,) or (h, w, c). pseudo_codes (k,) int64: the classes
    of a VampPrior's pseudo-inputs, in a conditional model.
    """

    def __init__(
        self, shape: tuple[int, ...], likelihood: Any, encoder: Any, decoder: Any, prior: Any = None,
        pseudo_codes: Any = None, classifier: Any = None,
    ) -> None:  # fmt: skip
        self.shape, self.likelihood, self.encoder, self.decoder = shape, likelihood, encoder, decoder
        self.prior, self.classifier = prior, classifier
        self.pseudo_codes = None if pseudo_codes is None else nn.Buffer(pseudo_codes)

    def encode(self, x: Any, codes: Any = None) -> tuple[Any, Any]:
        """(mu, logvar) of q(z | x, y), x (n, d)."""
        return self.encoder(self._seen(x), codes)

    def encode_pseudo(self, x: Any) -> tuple[Any, Any]:
        """(mu, logvar) of the pseudo-inputs of a VampPrior."""
        return self.encode(x, None if self.pseudo_codes is None else self.pseudo_codes.value)

    def _seen(self, x: Any) -> Any:
        return presented(self.likelihood, ops.reshape(x, shape=(x.shape[0], *self.shape)))

    def decode(self, z: Any, codes: Any = None) -> Any:
        """The parameters of p(x | z, y)."""
        return self.decoder(z, codes)

    def cost(self, x: Any, out: Any, weight: Any) -> Any:
        """-log p(x | out), averaged over rows with their weights, a scalar."""
        return self.likelihood.cost(ops.reshape(x, shape=(x.shape[0], *self.shape)), out, weight)

    def log_prob(self, x: Any, out: Any) -> Any:
        """log p(x | out), (n,), for x (n, d)."""
        return self.likelihood.log_prob(ops.reshape(x, shape=(x.shape[0], *self.shape)), out)

    def class_logits(self, x: Any) -> Any:
        """Logits of q(y | x), (n, classes)."""
        return self.classifier(self._seen(x))
