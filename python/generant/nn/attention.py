"""Multi-head attention of tokens to themselves, or to a context. The residual connection is its caller's."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..random import Stream
from .linear import Linear
from .module import Module

__all__ = ["Attention"]


class Attention(Module):
    """out(softmax(q k^T / sqrt(d / heads)) v) with q = query(x), k = key(context), v = value(context), per head.

    x (n, t, d); context (n, s, d_context), or None: x itself. Returns (n, t, d). The three projections are products of
    their own: cutting one product in three would copy it, here and again in the gradient. Vaswani et al. (2017), 3.2.
    """

    def __init__(
        self,
        d: int,
        stream: Stream,
        *,
        heads: int = 1,
        d_context: int | None = None,
        out_gain: float = 1.0,
        dtype: Any = "float32",
    ) -> None:
        if heads < 1 or d % heads:
            raise ValueError(f"Attention: heads must divide d = {d}, got {heads}")
        s = d if d_context is None else d_context
        self.query = Linear(d, d, stream, dtype=dtype)
        self.key, self.value = Linear(s, d, stream, dtype=dtype), Linear(s, d, stream, dtype=dtype)
        self.out = Linear(d, d, stream, gain=out_gain, dtype=dtype)
        self.heads = heads

    def __call__(self, x: Any, context: Any = None) -> Any:
        if len(x.shape) != 3:
            raise ValueError(f"Attention: x must have 3 dimensions (n t d), got shape {tuple(x.shape)}")
        n, t, d = x.shape
        source = x if context is None else context
        q = ops.reshape(self.query(x), shape=(n, t, self.heads, d // self.heads))
        k, v = (
            ops.reshape(layer(source), shape=(n, source.shape[1], self.heads, d // self.heads))
            for layer in (self.key, self.value)
        )
        return self.out(ops.reshape(ops.attention(q, k, v), shape=(n, t, d)))
