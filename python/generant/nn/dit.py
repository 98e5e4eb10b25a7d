"""The diffusion transformer: patches as tokens, conditioned by the scale, shift and gate of every block."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..random import Stream
from .attention import Attention
from .linear import Linear
from .module import Buffer, Module
from .norm import LayerNorm
from .unet import Condition

__all__ = ["DiT"]


def _modulated(x: Any, scale: Any, shift: Any) -> Any:
    """x (1 + scale) + shift, x (n, t, d); scale, shift (n, d)."""
    row = (scale.shape[0], 1, scale.shape[1])
    return ops.add(ops.mul(x, ops.reshape(ops.affine(scale, shift=1.0), shape=row)), ops.reshape(shift, shape=row))


class _Block(Module):
    """x + gate attention(norm(x) (1 + scale) + shift), then the same with two linear layers."""

    def __init__(self, width: int, stream: Stream, *, heads: int, dtype: Any) -> None:
        self.norm = LayerNorm(width, affine=False, eps=1e-6, dtype=dtype)
        self.attention = Attention(width, stream, heads=heads, dtype=dtype)
        self.hidden = Linear(width, 4 * width, stream, activation="gelu", dtype=dtype)
        self.out = Linear(4 * width, width, stream, dtype=dtype)
        self.modulation = [Linear(width, width, stream, gain=0.0, dtype=dtype) for _ in range(6)]

    def __call__(self, x: Any, condition: Any) -> Any:
        scale, shift, gate, scale_out, shift_out, gate_out = [layer(condition) for layer in self.modulation]
        row = (gate.shape[0], 1, gate.shape[1])
        h = self.attention(_modulated(self.norm(x), scale, shift))
        x = ops.add(x, ops.mul(h, ops.reshape(gate, shape=row)))
        h = self.out(self.hidden(_modulated(self.norm(x), scale_out, shift_out)))
        return ops.add(x, ops.mul(h, ops.reshape(gate_out, shape=row)))


def _positions(rows: int, columns: int, d: int) -> np.ndarray:
    """(rows columns, d): sines and cosines of the row in one half of the numbers, of the column in the other."""
    frequencies = 10000.0 ** (-4 * np.arange(d // 4) / d)
    halves = []
    for place in np.indices((rows, columns)).reshape(2, -1, 1):
        halves += [np.sin(place * frequencies), np.cos(place * frequencies)]
    return np.concatenate(halves, axis=1)


class DiT(Module):
    """F(x; c_noise, label) for images of one shape: a transformer over patches, conditioned as UNet2D is.

    x (n, h, w, c), c_noise (n,), labels (n,) int64 or None. Returns (n, h, w, c), zero before training. patch divides h
    and w; width is a multiple of heads and of 4. Blocks begin as the identity (adaLN-Zero); positions are fixed.
    Peebles, Xie (2023), arXiv 2212.09748, section 3.2.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        stream: Stream,
        *,
        patch: int = 2,
        width: int = 128,
        blocks: int = 4,
        heads: int = 4,
        classes: int = 0,
        features: str = "fourier",
        dtype: Any = "float32",
    ) -> None:
        h, w, c = shape
        if patch < 1 or h % patch or w % patch:
            raise ValueError(f"DiT: patch must divide the {h} rows and {w} columns of an image, got {patch}")
        if width < 4 or width % 4:
            raise ValueError(f"DiT: width must be a multiple of 4, got {width}")
        self.shape, self.patch = (h, w, c), patch
        self.condition = Condition(min(width, 256), width, stream, classes=classes, features=features, dtype=dtype)
        self.enter = Linear(patch * patch * c, width, stream, dtype=dtype)
        self.positions = Buffer(_positions(h // patch, w // patch, width).astype(dtype))
        self.blocks = [_Block(width, stream, heads=heads, dtype=dtype) for _ in range(blocks)]
        self.norm = LayerNorm(width, affine=False, eps=1e-6, dtype=dtype)
        self.modulation = [Linear(width, width, stream, gain=0.0, dtype=dtype) for _ in range(2)]
        self.leave = Linear(width, patch * patch * c, stream, gain=0.0, dtype=dtype)

    def __call__(self, x: Any, c_noise: Any, labels: Any = None) -> Any:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"DiT: x must be images (n, h, w, c) of shape {self.shape}, got {tuple(x.shape)}")
        (n, h, w, c), p = x.shape, self.patch
        condition = self.condition(c_noise, labels)
        patches = ops.transpose(ops.reshape(x, shape=(n, h // p, p, w // p, p, c)), axes=(0, 1, 3, 2, 4, 5))
        tokens = self.enter(ops.reshape(patches, shape=(n, h * w // (p * p), p * p * c)))
        tokens = ops.add(tokens, self.positions.value)
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = [layer(condition) for layer in self.modulation]
        patches = self.leave(_modulated(self.norm(tokens), scale, shift))
        patches = ops.transpose(ops.reshape(patches, shape=(n, h // p, w // p, p, p, c)), axes=(0, 1, 3, 2, 4, 5))
        return ops.reshape(patches, shape=(n, h, w, c))
