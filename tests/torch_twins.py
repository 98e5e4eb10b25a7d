"""The networks of generant.nn written in PyTorch, with the same names, and a copy of our weights into them.

For parity tests and as the rivals of benchmarks: written as one writes them in torch, with NCHW and one product for
q, k and v. `as_ours` is a view of a torch parameter, or of its gradient, with our name and in our layout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class TorchUpsample(nn.Conv2d):
    def __init__(self, c: int, o: int) -> None:
        super().__init__(c, o, 3, padding=1)

    def forward(self, x, size=None):
        y = super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y if size is None or tuple(size) == tuple(y.shape[2:]) else y[:, :, : size[0], : size[1]]


class TorchDownsample(nn.Module):
    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, o, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class TorchAttention(nn.Module):
    """Self-attention of tokens (n, t, d)."""

    def __init__(self, d: int, heads: int = 1) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


def torch_norm(c: int, groups: int = 32) -> nn.GroupNorm:
    groups = min(groups, max(c // 4, 1))
    return nn.GroupNorm(next(g for g in range(groups, 0, -1) if c % g == 0), c, eps=1e-5)


class TorchAttentionBlock(nn.Module):
    def __init__(self, c: int, heads: int = 1, groups: int = 32) -> None:
        super().__init__()
        self.norm, self.attention = torch_norm(c, groups), TorchAttention(c, heads)

    def forward(self, x):
        n, c, h, w = x.shape
        y = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + y.transpose(1, 2).view(n, c, h, w)


class TorchResBlock(nn.Module):
    def __init__(
        self, c: int, o: int, d_embedding: int | None = None, groups: int = 32, scale_shift: bool = True,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.norm_in, self.conv_in = torch_norm(c, groups), nn.Conv2d(c, o, 3, padding=1)
        self.shift = nn.Linear(d_embedding, o) if d_embedding else None
        self.scale = nn.Linear(d_embedding, o) if d_embedding and scale_shift else None
        self.norm_out, self.conv_out = torch_norm(o, groups), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(c, o, 1) if c != o else None
        self.resample = resample

    def forward(self, x, embedding=None):
        h = F.silu(self.norm_in(x))
        if self.resample == "up":
            h, x = (F.interpolate(a, scale_factor=2.0, mode="nearest") for a in (h, x))
        elif self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv_in(h)
        if self.scale is not None:
            scale, shift = (layer(embedding)[:, :, None, None] for layer in (self.scale, self.shift))
            h = self.norm_out(h) * (1 + scale) + shift
        elif self.shift is not None:
            h = self.norm_out(h + self.shift(embedding)[:, :, None, None])
        else:
            h = self.norm_out(h)
        return (x if self.skip is None else self.skip(x)) + self.conv_out(F.silu(h))


class TorchFeatures(nn.Module):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.zeros(1, m // 2))

    def forward(self, t):
        angle = t[:, None] * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], 1)


class TorchCondition(nn.Module):
    def __init__(self, m: int, d: int, classes: int = 0) -> None:
        super().__init__()
        self.features = TorchFeatures(m)
        self.layers = nn.ModuleList([nn.Linear(m, d), nn.Linear(d, d)])
        self.label = nn.Embedding(classes, d) if classes else None

    def forward(self, c_noise, labels=None):
        h = self.layers[1](F.silu(self.layers[0](self.features(c_noise))))
        return F.silu(h if self.label is None else h + self.label(labels))


class TorchStage(nn.Module):
    def __init__(self, c: int, o: int, attention: bool, heads: int, groups: int, **options: Any) -> None:
        super().__init__()
        self.block = TorchResBlock(c, o, groups=groups, **options)
        self.attention = TorchAttentionBlock(o, heads, groups) if attention else None

    def forward(self, x, embedding):
        h = self.block(x, embedding)
        return h if self.attention is None else self.attention(h)


class TorchUNet2D(nn.Module):
    """nn.UNet2D for images (n, c, h, w); the arguments are those of ours."""

    def __init__(
        self, c: int, *, out: int | None = None, channels: tuple[int, ...] = (32, 64), blocks: int = 1,
        up_blocks: int | None = None, attention: tuple[int, ...] = (-1,), heads: int = 1, classes: int = 0,
        groups: int = 32, d_embedding: int | None = None, scale_shift: bool = False, features: str = "fourier",
    ) -> None:  # fmt: skip
        super().__init__()
        n, d = len(channels), d_embedding or 4 * channels[0]
        levels = {level % n for level in attention}
        self.condition = TorchCondition(channels[0], d, classes)

        def stage(c, o, attention):
            return TorchStage(c, o, attention, heads, groups, d_embedding=d, scale_shift=scale_shift)

        self.enter = nn.Conv2d(c, channels[0], 3, padding=1)
        self.down, self.up, skips, width = nn.ModuleList(), nn.ModuleList(), [], channels[0]
        for level, o in enumerate(channels):
            self.down.append(nn.ModuleList([stage(o if i else width, o, level in levels) for i in range(blocks)]))
            skips.append([width] + [o] * blocks)
            width = o
        self.shrink = nn.ModuleList([TorchDownsample(o, o) for o in channels[:-1]])
        self.middle = nn.ModuleList([stage(width, width, bool(levels)), stage(width, width, False)])
        for level in reversed(range(n)):
            stages = []
            for _ in range(up_blocks or blocks + 1):
                stages.append(stage(width + skips[level].pop(), channels[level], level in levels))
                width = channels[level]
            self.up.append(nn.ModuleList(stages))
        self.enlarge = nn.ModuleList([TorchUpsample(o, o) for o in channels[:0:-1]])
        self.norm, self.leave = torch_norm(width, groups), nn.Conv2d(width, out or c, 3, padding=1)

    def forward(self, x, c_noise, labels=None):
        embedding, h, skips = self.condition(c_noise, labels), self.enter(x), []
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
                h = self.enlarge[i - 1](h, skips[-1][0].shape[2:])
            saved = skips.pop()
            for stage in stages:
                h = stage(torch.cat([h, saved.pop()], 1), embedding)
        return self.leave(F.silu(self.norm(h)))


def as_ours(theirs: nn.Module, path: str, *, grad: bool = False) -> torch.Tensor:
    """The parameter or buffer of `theirs` that ours calls `path`, or its gradient, as a view in our layout."""
    head, _, last = path.rpartition(".")
    owner, _, part = head.rpartition(".")
    fused = part in ("query", "key", "value") and hasattr(theirs.get_submodule(owner), "qkv")
    module = theirs.get_submodule(f"{owner}.qkv".lstrip(".") if fused else head)
    tensor = getattr(module, {"gain": "weight", "table": "weight"}.get(last, last))
    tensor = tensor.grad if grad else tensor.detach()
    if fused:
        tensor = tensor.chunk(3)[("query", "key", "value").index(part)]
    if isinstance(module, nn.Linear) and last == "weight":
        return tensor.T
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def copy_state(ours: Any, theirs: nn.Module) -> None:
    """Every parameter and buffer of a model of ours into its torch twin, which must have no others."""
    from generant.nn import state

    arrays = state(ours)
    for path, array in arrays.items():
        as_ours(theirs, path).copy_(torch.from_numpy(array.copy()))
    numbers = sum(t.numel() for t in theirs.state_dict().values())
    assert numbers == sum(a.size for a in arrays.values()), "the twin has other parameters"
