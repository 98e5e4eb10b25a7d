"""From vectors to a finite set of codes and back: a codebook that follows its vectors, and a grid that does not move.

Both are modules with the same three methods: `bound` (what is done to the encoder's output first), `codebook` (the
vectors of all codes), `observe_` (what a training step changes). The nearest row of the codebook is found by one op,
without the matrix of distances. The gradient goes past it: z + stop_gradient(quantised - z).

Not here: networks, and the distribution of the codes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import nn, ops
from ..random import Stream
from .estimator import check_count

__all__ = ["EmaCodebook", "FiniteScalar", "perplexity", "quantise"]


def quantise(quantiser: Any, z: Any) -> tuple[Any, Any, Any]:
    """The codes of vectors z (n, d): (straight-through vectors (n, d), bounded z (n, d), codes (n,) int64)."""
    z = quantiser.bound(z)
    codebook = quantiser.codebook()
    codes = ops.nearest(ops.stop_gradient(z), codebook)[1]
    step = ops.sub(ops.gather(codebook, codes), ops.stop_gradient(z))  # codebooks are Buffers: it has no gradient
    return ops.add(z, step), z, codes


def _counted(z: Any, codes: Any, m: int) -> Any:
    """How often each of m codes occurs in codes (n,), (m, 1); the ones are made of z (n, d), to be of the step."""
    return ops.scatter_add(ops.full_like(ops.slice_axis(z, start=0, stop=1), value=1.0), codes, m=m)


def perplexity(z: Any, codes: Any, m: int) -> Any:
    """exp of the entropy of how often each of m codes occurs in codes (n,): the number of codes in use, softly."""
    share = ops.affine(_counted(z, codes, m), scale=1 / codes.shape[0])
    entropy = ops.sum(ops.mul(share, ops.log(ops.affine(share, shift=1e-10))))
    return ops.exp(ops.affine(entropy, scale=-1.0))


class EmaCodebook(nn.Module):
    """Code j is sums_j / counts_j, moving averages of the vectors that were assigned to it and of how many there were.

    m codes of d numbers. decay: of the averages. Where counts has fallen below `threshold` times what it would be if
    all codes were used alike, the code is dead and becomes a vector of the batch. All are dead in the first step.
    van den Oord, Vinyals and Kavukcuoglu (2017), appendix A.1; Dhariwal et al. (2020), "Jukebox", for dead codes.
    """

    def __init__(self, m: int, d: int, stream: Stream, *, decay: float = 0.99, threshold: float = 0.1) -> None:
        self.m, self.d, self.threshold = m, d, threshold
        self.decay, self.at_once = nn.Buffer(np.array([decay])), nn.Buffer(np.zeros(1))
        self.counts = nn.Buffer(np.full(m, 1e-3, np.float32))
        self.sums = nn.Buffer((1e-3 * ops.normal(next(stream), shape=(m * d,))).astype(np.float32))

    def bound(self, z: Any) -> Any:
        """z as it is."""
        return z

    def codebook(self) -> Any:
        """(m, d)."""
        sums = ops.reshape(self.sums.value, shape=(self.m, self.d))
        return ops.div(sums, ops.reshape(self.counts.value, shape=(self.m, 1)))

    def observe_(self, z: Any, codes: Any, candidates: Any, ok: Any = None) -> None:
        """Move the averages towards vectors z (n, d) with these codes (n,), then revive the dead.

        candidates (m,) int64: the row of z that each code would become. Nothing changes if ok (1 uint8) is 0. Effects:
        nothing is returned.
        """
        counts, sums, n = self.counts.value, self.sums.value, z.shape[0]
        seen = _counted(z, codes, self.m)
        total = ops.scatter_add(z, codes, m=self.m)
        ops.ema_(counts, ops.reshape(seen, shape=(self.m,)), self.decay.value, ok)
        ops.ema_(sums, ops.reshape(total, shape=(self.m * self.d,)), self.decay.value, ok)
        alike = n / self.m
        dead = ops.heaviside(ops.full_like(counts, value=self.threshold * alike), counts)
        column = ops.reshape(dead, shape=(self.m, 1))
        fresh = ops.affine(ops.gather(z, candidates), scale=alike)
        old = ops.reshape(sums, shape=(self.m, self.d))
        new_sums = ops.add(old, ops.mul(column, ops.sub(fresh, old)))
        new_counts = ops.add(counts, ops.mul(dead, ops.affine(counts, scale=-1.0, shift=alike)))
        ops.ema_(sums, ops.reshape(new_sums, shape=(self.m * self.d,)), self.at_once.value, ok)
        ops.ema_(counts, new_counts, self.at_once.value, ok)


class FiniteScalar(nn.Module):
    """A grid of levels_i values in every dimension i, on -1 ... 1; vectors are bounded into it. There is no loss.

    bound: (tanh(z + s) h - o) / (levels // 2) with h = (levels - 1) 1.001 / 2, o = 1/2 for even levels and else 0,
    s = atanh(o / h). Code j of a vector of digits c is sum_i c_i prod_{k<i} levels_k. Mentzer, Minnen, Agustsson and
    Tschannen (2024), "Finite scalar quantization", appendix A.1.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        for i, level in enumerate(levels):
            check_count("FSQ", f"levels[{i}]", level, 2)
        each = np.array(levels)
        self.m, self.d = math.prod(levels), len(levels)
        digits = np.arange(self.m)[:, None] // np.cumprod([1, *levels[:-1]]) % each
        half = each // 2
        self.grid = nn.Buffer(((digits - half) / half).astype(np.float32))
        reach = (each - 1) * 1.001 / 2
        offset = np.where(each % 2 == 0, 0.5, 0.0)
        self.shift = nn.Buffer(np.arctanh(offset / reach).astype(np.float32)[None])
        self.scale = nn.Buffer((reach / half).astype(np.float32)[None])
        self.offset = nn.Buffer((offset / half).astype(np.float32)[None])

    def bound(self, z: Any) -> Any:
        """z (n, d) within the grid."""
        inside = ops.tanh(ops.add(z, self.shift.value))
        return ops.sub(ops.mul(inside, self.scale.value), self.offset.value)

    def codebook(self) -> Any:
        """(m, d)."""
        return self.grid.value

    def observe_(self, z: Any, codes: Any, candidates: Any, ok: Any = None) -> None:
        """A grid does not move."""
