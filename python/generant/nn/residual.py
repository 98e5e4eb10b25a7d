"""The residual block of diffusion models, and attention between pixels as one.

Norm, modulation and activation are one op, convolution, bias and residual another. ops.group_norm_conv2d, which is
both, is no faster forwards at the sizes of these networks, and makes the normalised image twice where a gradient is
wanted. Both blocks begin as the identity (up to the change of channels): their last layer begins as zero.
"""

from __future__ import annotations

from typing import Any

from .. import ops
from ..random import Stream
from .attention import Attention
from .conv import Conv2d
from .linear import Linear
from .module import Module
from .norm import GroupNorm

__all__ = ["AttentionBlock", "ResBlock"]


def norm_of(c: int, groups: int, *, activation: str = "silu", dtype: Any = "float32") -> GroupNorm:
    """GroupNorm with at least four channels to a group, as in Karras et al. (2022)."""
    return GroupNorm(c, groups=min(groups, max(c // 4, 1)), activation=activation, dtype=dtype)


class ResBlock(Module):
    """skip(x) + conv(silu(norm(conv(silu(norm(x))); embedding))).

    x (n, h, w, c); embedding (n, d_embedding), activated already, so that one activation serves all blocks. Returns
    (n, h, w, o). The embedding gives scale and shift of the second norm, or with scale_shift=False a vector that is
    added before it (Ho et al., 2020). resample "up" doubles the size by repeating pixels and "down" halves it by means
    of 2 x 2, in the residual and in the skip. The skip is a 1 x 1 convolution where c != o; the second convolution
    begins as zero. He et al. (2016), arXiv 1603.05027; Dhariwal, Nichol (2021), section 3.
    """

    def __init__(
        self,
        c: int,
        o: int,
        stream: Stream,
        *,
        d_embedding: int | None = None,
        groups: int = 32,
        scale_shift: bool = True,
        resample: str | None = None,
        dtype: Any = "float32",
    ) -> None:
        if resample not in (None, "up", "down"):
            raise ValueError(f'ResBlock: resample must be None, "up" or "down", got {resample!r}')
        self.norm_in = norm_of(c, groups, dtype=dtype)
        self.conv_in = Conv2d(c, o, stream, dtype=dtype)
        self.shift = Linear(d_embedding, o, stream, dtype=dtype) if d_embedding else None
        self.scale = Linear(d_embedding, o, stream, dtype=dtype) if d_embedding and scale_shift else None
        self.norm_out = norm_of(o, groups, dtype=dtype)
        self.conv_out = Conv2d(o, o, stream, gain=0.0, dtype=dtype)
        self.skip = Conv2d(c, o, stream, kernel=1, dtype=dtype) if c != o else None
        self.resample = resample

    def __call__(self, x: Any, embedding: Any = None) -> Any:
        if (embedding is None) != (self.shift is None):
            raise ValueError(
                f"ResBlock: embedding is {'None' if embedding is None else 'given'}, but d_embedding was "
                f"{'None' if self.shift is None else self.shift.weight.shape[0]}"
            )
        scale = None if self.scale is None else self.scale(embedding)
        shift = None if self.shift is None else self.shift(embedding)
        h = self.norm_in(x)
        if self.resample == "up":
            h = ops.add(ops.upsample_conv2d(h, self.conv_in.weight), self.conv_in.bias)
        elif self.resample == "down":
            h, x = self.conv_in(ops.avg_pool(h)), ops.avg_pool(x)
        else:
            h = self.conv_in(h)
        if shift is not None and scale is None:
            h, shift = ops.add(h, ops.reshape(shift, shape=(shift.shape[0], 1, 1, shift.shape[1]))), None
        x = x if self.skip is None else self.skip(x)
        if self.resample == "up":
            x = ops.resize(x, size=(2 * x.shape[1], 2 * x.shape[2]))
        return self.conv_out(self.norm_out(h, scale, shift), x)


class AttentionBlock(Module):
    """x + attention(norm(x)) between the pixels of an image; the output projection begins as zero.

    x (n, h, w, c). Returns (n, h, w, c). Time as in ops.attention with t = h w. Ho et al. (2020), appendix B.
    """

    def __init__(self, c: int, stream: Stream, *, heads: int = 1, groups: int = 32, dtype: Any = "float32") -> None:
        self.norm = norm_of(c, groups, activation="identity", dtype=dtype)
        self.attention = Attention(c, stream, heads=heads, out_gain=0.0, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        n, h, w, c = x.shape
        tokens = ops.reshape(self.norm(x), shape=(n, h * w, c))
        return ops.add(x, ops.reshape(self.attention(tokens), shape=(n, h, w, c)))
