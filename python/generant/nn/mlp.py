"""Multilayer perceptrons: the plain one, and a residual one that predicts what noise hides, for rows of numbers."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..random import Stream
from .embedding import Embedding, FourierFeatures
from .linear import Linear
from .module import Module
from .norm import LayerNorm

__all__ = ["MLP", "MlpDenoiser", "ResidualBlock"]


class MLP(Module):
    """Linear layers with an activation between them.

    x (..., d). Returns (..., o). hidden: the widths between. out_gain: the gain of the last layer, 0 for one that
    begins as zero.
    """

    def __init__(
        self,
        d: int,
        o: int,
        stream: Stream,
        *,
        hidden: tuple[int, ...] = (256, 256),
        activation: str = "silu",
        out_gain: float = 1.0,
        dtype: Any = "float32",
    ) -> None:
        widths = (d, *hidden)
        self.layers = [
            Linear(a, b, stream, activation=activation, dtype=dtype) for a, b in zip(widths, hidden, strict=False)
        ]
        self.out = Linear(widths[-1], o, stream, gain=out_gain, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


class ResidualBlock(Module):
    """h + out(silu(hidden(norm(h)) + shift(condition))); `out` begins as zero, so the block begins as the identity."""

    def __init__(self, width: int, stream: Stream) -> None:
        self.norm = LayerNorm(width)
        self.hidden = Linear(width, width, stream)
        self.shift = Linear(width, width, stream)
        self.out = Linear(width, width, stream, gain=0.0)

    def __call__(self, h: Any, condition: Any) -> Any:
        return h + self.out(ops.silu(self.hidden(self.norm(h)) + self.shift(condition)))


class MlpDenoiser(Module):
    """F(x; c_noise, label): residual blocks conditioned on the noise level and, with classes > 0, on a label.

    x (n, d), c_noise (n,), labels (n,) int64 or None. Returns (n, d), zero before training.
    """

    def __init__(self, d: int, stream: Stream, *, classes: int = 0, width: int = 256, blocks: int = 4) -> None:
        self.features = FourierFeatures(32)
        self.noise = [Linear(32, width, stream, activation="silu"), Linear(width, width, stream)]
        self.label = Embedding(classes, width, stream) if classes else None
        self.enter = Linear(d, width, stream)
        self.blocks = [ResidualBlock(width, stream) for _ in range(blocks)]
        self.norm = LayerNorm(width)
        self.leave = Linear(width, d, stream, gain=0.0)

    def __call__(self, x: Any, c_noise: Any, labels: Any = None) -> Any:
        if (labels is None) != (self.label is None):
            raise ValueError(
                f"MlpDenoiser: labels are {'None' if labels is None else 'given'}, but it was made with "
                f"classes = {0 if self.label is None else self.label.table.shape[0]}"
            )
        condition = self.features(c_noise)
        for layer in self.noise:
            condition = layer(condition)
        if self.label is not None:
            condition = condition + self.label(labels)
        condition = ops.silu(condition)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.leave(ops.silu(self.norm(h)))
