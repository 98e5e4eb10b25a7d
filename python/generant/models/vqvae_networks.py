"""The networks of autoencoders with discrete latents: a vector per position, a position per pixel of a small image.

Not here: how vectors become codes (quantisers.py).
"""

from __future__ import annotations

import itertools
from typing import Any

from .. import nn, ops
from ..random import Stream
from .vae_networks import Grow, halves, presented

__all__ = ["CodedAutoencoder", "ConvCoder", "ConvDecoder", "coded_parts"]


class ConvCoder(nn.Module):
    """A strided convolution for each of `channels`, a residual block, and d numbers for every pixel that is left.

    x (n, h, w, c). Returns (n, h', w', d).
    """

    def __init__(self, c: int, d: int, stream: Stream, *, channels: tuple[int, ...]) -> None:
        widths = (c, *channels)
        self.layers = [nn.Conv2d(a, b, stream, stride=2, activation="silu") for a, b in itertools.pairwise(widths)]
        self.block = nn.ResBlock(widths[-1], widths[-1], stream, groups=8)
        self.leave = nn.Conv2d(widths[-1], d, stream, kernel=1)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.leave(self.block(x))


class ConvDecoder(nn.Module):
    """The mirror image: z (n, h', w', d) to o numbers per pixel of an image of `size`."""

    def __init__(
        self, d: int, size: tuple[int, int], o: int, stream: Stream, *, channels: tuple[int, ...]
    ) -> None:
        self.enter = nn.Conv2d(d, channels[0], stream)
        self.block = nn.ResBlock(channels[0], channels[0], stream, groups=8)
        self.grow = Grow(halves(size, len(channels))[::-1], o, stream, channels=channels)

    def __call__(self, z: Any) -> Any:
        return self.grow(ops.silu(self.block(self.enter(z))))


class CodedAutoencoder(nn.Module):
    """encoder, quantiser, decoder and likelihood of samples of `shape`; `grid`: the shape of a sample's codes."""

    def __init__(
        self, shape: tuple[int, ...], grid: tuple[int, ...], likelihood: Any, encoder: Any, decoder: Any, quantiser: Any
    ) -> None:
        self.shape, self.grid, self.likelihood = shape, grid, likelihood
        self.encoder, self.decoder, self.quantiser = encoder, decoder, quantiser

    def encode(self, x: Any) -> Any:
        """Vectors (n t, d), sample by sample, before they are quantised; x (n, features)."""
        x = presented(self.likelihood, ops.reshape(x, shape=(x.shape[0], *self.shape)))
        return ops.reshape(self.encoder(x), shape=(-1, self.quantiser.d))

    def decode(self, z: Any) -> Any:
        """The parameters of p(x | codes) from the vectors (n t, d) of codes."""
        inner = (*self.grid, self.quantiser.d) if len(self.shape) == 3 else (self.grid[0] * self.quantiser.d,)
        return self.decoder(ops.reshape(z, shape=(-1, *inner)))

    def cost(self, x: Any, out: Any, weight: Any) -> Any:
        """-log p(x | out), averaged over rows with their weights, a scalar."""
        return self.likelihood.cost(ops.reshape(x, shape=(x.shape[0], *self.shape)), out, weight)

    def log_prob(self, x: Any, out: Any) -> Any:
        """log p(x | out), (n,)."""
        return self.likelihood.log_prob(ops.reshape(x, shape=(x.shape[0], *self.shape)), out)


def coded_parts(
    shape: tuple[int, ...], width: int, o: int, d: int, stream: Stream, *, hidden: tuple[int, ...],
    channels: tuple[int, ...], positions: int,
) -> tuple[Any, Any, tuple[int, ...]]:  # fmt: skip
    """(encoder, decoder, shape of a sample's codes) for samples of shape (d,) or (h, w, c)."""
    if len(shape) == 1:
        encoder: Any = nn.MLP(width, positions * d, stream, hidden=hidden)
        return encoder, nn.MLP(positions * d, o, stream, hidden=hidden[::-1]), (positions,)
    size = (shape[0], shape[1])
    encoder = ConvCoder(width, d, stream, channels=channels)
    return encoder, ConvDecoder(d, size, o, stream, channels=channels[::-1]), halves(size, len(channels))[-1]
