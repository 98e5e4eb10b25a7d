"""p(codes | y) of a VQVAE: a small causal transformer over the positions of a sample, one after the other.

It draws a code at a time, so a sample of t positions costs t passes. Two blocks of width 64 know which codes go
together on small images; they do not make up for the large priors of the literature (van den Oord et al., 2017, used a
PixelCNN), and samples are as good as this prior is, however good reconstructions are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import nn, ops
from ..ops import _device
from ..random import Stream, normals

__all__ = ["CodePrior"]


class Block(nn.Module):
    """h + attention(norm(h)) to earlier positions and itself, then h + mlp(norm(h)); begins as the identity."""

    def __init__(self, width: int, stream: Stream, *, heads: int) -> None:
        self.norms = [nn.LayerNorm(width), nn.LayerNorm(width)]
        self.query, self.key, self.value = (nn.Linear(width, width, stream) for _ in range(3))
        self.out = nn.Linear(width, width, stream, gain=0.0)
        self.mlp = nn.MLP(width, width, stream, hidden=(4 * width,), out_gain=0.0)
        self.heads = heads

    def __call__(self, h: Any) -> Any:
        n, t, width = h.shape
        x = self.norms[0](h)
        q, k, v = (
            ops.reshape(layer(x), shape=(n, t, self.heads, width // self.heads))
            for layer in (self.query, self.key, self.value)
        )
        h = ops.add(h, self.out(ops.reshape(ops.attention(q, k, v, causal=True), shape=(n, t, width))))
        return ops.add(h, self.mlp(self.norms[1](h)))


class CodePrior(nn.Module):
    """Logits of every position's code, given the codes before it and the class.

    m codes, t positions.
    """

    def __init__(
        self, m: int, t: int, stream: Stream, *, classes: int = 0, width: int = 64, blocks: int = 2, heads: int = 4
    ) -> None:
        self.m, self.t, self.width = m, t, width
        self.code = nn.Embedding(m, width, stream)
        self.start = nn.Embedding(max(classes, 1), width, stream)
        self.place = nn.Embedding(t, width, stream)
        self.blocks = [Block(width, stream, heads=heads) for _ in range(blocks)]
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, m, stream, gain=0.1)

    def _logits(self, before: Any, labels: Any) -> Any:
        """Logits (n, t, m) of the first t positions, from vectors (n, t - 1, width) of the codes before them."""
        n, t = labels.shape[0], before.shape[1] + 1
        h = ops.concat(ops.reshape(self.start(labels), shape=(n, 1, self.width)), before, axis=1)
        place = ops.slice_axis(self.place.table, start=0, stop=t, axis=0)
        h = ops.add(h, ops.reshape(place, shape=(1, t, self.width)))
        for block in self.blocks:
            h = block(h)
        return self.leave(self.norm(h))

    def _all_logits(self, codes: Any, labels: Any) -> Any:
        h = ops.reshape(self.code(codes), shape=(labels.shape[0], self.t, self.width))
        return self._logits(ops.slice_axis(h, start=0, stop=self.t - 1, axis=1), labels)

    def loss(self, codes: Any, labels: Any, weight: Any) -> Any:
        """-log p(codes | label), averaged over samples with their weights (n,).

        codes (n t,) int64, sample by sample; labels (n,) int64, zeros if there are none.
        """
        n = labels.shape[0]
        logits = ops.reshape(self._all_logits(codes, labels), shape=(n * self.t, self.m))
        each = ops.reshape(ops.expand(ops.reshape(weight, shape=(n, 1)), shape=(n, self.t)), shape=(n * self.t,))
        return ops.affine(ops.cross_entropy(logits, codes, each), scale=float(self.t))

    def log_prob(self, codes: Any, labels: Any) -> Any:
        """log p(codes | label) of plain arrays, (n,) float64; codes (n, t)."""
        log_p = ops.log_softmax(self._all_logits(codes.reshape(-1), labels).astype(np.float64))
        return _device.namespace(log_p).take_along_axis(log_p, codes[:, :, None], axis=2).sum((1, 2))

    def sample(self, keys: Any, labels: Any) -> Any:
        """Codes (n, t) int64; row i depends on keys[i] (2 uint64) and labels[i] only."""
        xp, z = _device.namespace(keys), normals(keys, (self.t,), "float64")
        u = 0.5 * (1 + ops.erf(z / 2**0.5))
        codes = xp.zeros((len(keys), 0), np.int64)
        for t in range(self.t):
            logits = self._logits(self.code.table[codes], labels)[:, t].astype(np.float64)
            edges = xp.cumsum(ops.softmax(logits), axis=1)
            drawn = (edges < u[:, t : t + 1] * edges[:, -1:]).sum(axis=1)
            codes = xp.concatenate([codes, drawn[:, None]], axis=1)
        return codes
