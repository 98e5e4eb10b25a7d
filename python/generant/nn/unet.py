"""The U-shaped network of image diffusion models: residual blocks at several sizes, with skips across.

The one idea: what went down at a size comes back, concatenated, on the way up at that size, so that the lowest level
decides what is there and the highest where. Not here: dropout, and text (attention to a context).
"""

from __future__ import annotations

from typing import Any

from .. import ops
from ..random import Stream
from .conv import Conv2d, Downsample, Upsample
from .embedding import Embedding, FourierFeatures, SinusoidalFeatures
from .linear import Linear
from .module import Module
from .residual import AttentionBlock, ResBlock, norm_of

__all__ = ["Condition", "UNet2D"]

FEATURES = {"fourier": FourierFeatures, "sinusoidal": SinusoidalFeatures}


class Condition(Module):
    """silu(W2 silu(W1 features(c_noise)) + label): noise level and class as one vector.

    c_noise (n,); labels (n,) int64, exactly where classes > 0. Returns (n, d).
    """

    def __init__(
        self, m: int, d: int, stream: Stream, *, classes: int = 0, features: str = "fourier", dtype: Any = "float32"
    ) -> None:
        if features not in FEATURES:
            raise ValueError(f"Condition: features must be one of {', '.join(FEATURES)}, got {features!r}")
        self.features = FEATURES[features](m, dtype=dtype)
        self.layers = [Linear(m, d, stream, activation="silu", dtype=dtype), Linear(d, d, stream, dtype=dtype)]
        self.label = Embedding(classes, d, stream, dtype=dtype) if classes else None

    def __call__(self, c_noise: Any, labels: Any = None) -> Any:
        if (labels is None) != (self.label is None):
            raise ValueError(
                f"Condition: labels are {'None' if labels is None else 'given'}, but the network was made with "
                f"classes = {0 if self.label is None else self.label.table.shape[0]}"
            )
        h = self.layers[1](self.layers[0](self.features(c_noise)))
        return ops.silu(h if self.label is None else ops.add(h, self.label(labels)))


class Stage(Module):
    """A residual block, and attention after it where there is one."""

    def __init__(
        self, c: int, o: int, stream: Stream, *, attention: bool, heads: int, groups: int, dtype: Any, **options: Any
    ) -> None:
        self.block = ResBlock(c, o, stream, groups=groups, dtype=dtype, **options)
        self.attention = AttentionBlock(o, stream, heads=heads, groups=groups, dtype=dtype) if attention else None

    def __call__(self, x: Any, embedding: Any) -> Any:
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h)


class UNet2D(Module):
    """F(x; c_noise, label) for images: a U-Net, conditioned on the noise level and, with classes > 0, on a label.

    x (n, h, w, c), of any size: a level halves it, rounding up, and on the way back surplus rows and columns are cut
    off; c_noise (n,); labels (n,) int64 or None. Returns (n, h, w, out), zero before training; out is c if None.
    channels: one width per level. blocks: residual blocks per level on the way down; up_blocks: on the way up, at most
    blocks + 1, which is the default, each taking one skip. attention: the levels, negative ones counted from the last,
    with attention after every block; the middle has it unless there are none. groups: as in ResBlock, which also
    explains scale_shift (Dhariwal and Nichol, 2021); d_embedding is 4 channels[0] if None. features: "fourier" for
    c_noise of about 1, "sinusoidal" for numbered steps.

    The network of Ho et al. (2020) for CIFAR-10 (35.7 M parameters), but for its dropout, is UNet2D(3, stream,
    channels=(128, 256, 256, 256), blocks=2, attention=(1,), features="sinusoidal").
    """

    def __init__(
        self,
        c: int,
        stream: Stream,
        *,
        out: int | None = None,
        channels: tuple[int, ...] = (32, 64),
        blocks: int = 1,
        up_blocks: int | None = None,
        attention: tuple[int, ...] = (-1,),
        heads: int = 1,
        classes: int = 0,
        groups: int = 32,
        d_embedding: int | None = None,
        scale_shift: bool = False,
        features: str = "fourier",
        dtype: Any = "float32",
    ) -> None:
        n = len(channels)
        up_blocks = blocks + 1 if up_blocks is None else up_blocks
        if not n or min(channels) < 1:
            raise ValueError(f"UNet2D: channels must be one positive width per level, got {channels}")
        if channels[0] % 2:
            raise ValueError(f"UNet2D: channels[0] must be even, for as many sines as cosines, got {channels[0]}")
        if blocks < 1 or not 1 <= up_blocks <= blocks + 1:
            raise ValueError(
                f"UNet2D: blocks must be at least 1 and up_blocks from 1 to blocks + 1, got {blocks} and {up_blocks}"
            )
        if any(not -n <= level < n for level in attention):
            raise ValueError(f"UNet2D: attention must list levels from {-n} to {n - 1}, got {attention}")
        d = 4 * channels[0] if d_embedding is None else d_embedding
        levels = {level % n for level in attention}
        self.condition = Condition(channels[0], d, stream, classes=classes, features=features, dtype=dtype)

        def stage(c: int, o: int, attention: bool) -> Stage:
            return Stage(
                c, o, stream, attention=attention, heads=heads, groups=groups, d_embedding=d, scale_shift=scale_shift,
                dtype=dtype,
            )  # fmt: skip

        self.enter = Conv2d(c, channels[0], stream, dtype=dtype)
        self.down: list[list[Stage]] = []
        skips: list[list[int]] = []
        width = channels[0]
        for level, o in enumerate(channels):
            self.down.append([stage(o if i else width, o, level in levels) for i in range(blocks)])
            skips.append([width] + [o] * blocks)
            width = o
        self.shrink = [Downsample(o, o, stream, dtype=dtype) for o in channels[:-1]]
        self.middle = [stage(width, width, bool(levels)), stage(width, width, False)]
        self.up: list[list[Stage]] = []  # from the lowest level to the highest
        for level in reversed(range(n)):
            self.up.append([])
            for _ in range(up_blocks):
                self.up[-1].append(stage(width + skips[level].pop(), channels[level], level in levels))
                width = channels[level]
        self.enlarge = [Upsample(o, o, stream, dtype=dtype) for o in channels[:0:-1]]
        self.norm = norm_of(width, groups, dtype=dtype)
        self.leave = Conv2d(width, c if out is None else out, stream, gain=0.0, dtype=dtype)

    def __call__(self, x: Any, c_noise: Any, labels: Any = None) -> Any:
        embedding = self.condition(c_noise, labels)
        h = self.enter(x)
        skips = []
        for level, stages in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](h)
            skips.append([h])
            for stage in stages:
                h = stage(h, embedding)
                skips[-1].append(h)
        for stage in self.middle:
            h = stage(h, embedding)
        for i, stages in enumerate(self.up):
            if i:
                h = self.enlarge[i - 1](h, size=skips[-1][0].shape[1:3])
            saved = skips.pop()
            for stage in stages:
                h = stage(ops.concat(h, saved.pop()), embedding)
        return self.leave(self.norm(h))
