"""Attention, forward and with its gradients, and how it is judged (see work.py).

The reference is float64: some pairs of sample and head are compared, a block of queries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar

import machine
import numpy as np
from layouts import in_our_order
from work import Family, normal, relative


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray | None, rows: int = 512) -> tuple:
    """softmax(q k^T / sqrt(d)) v of one head, all arrays (t, d). With a gradient g in it, also those in q, k and v."""
    q, k, v = (array.astype(np.float64) for array in (q, k, v))
    scale, y, dq, dk, dv = q.shape[1] ** -0.5, np.empty_like(q), np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    for start in range(0, len(q), rows):
        part = slice(start, start + rows)
        p = scale * q[part] @ k.T
        p = np.exp(p - p.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        y[part] = p @ v
        if g is None:
            continue
        slope = g[part].astype(np.float64)
        ds = scale * p * (slope @ v.T - (slope * y[part]).sum(1, keepdims=True))
        dq[part] = ds @ k
        dk += ds.T @ q[part]
        dv += p.T @ slope
    return (y,) if g is None else (y, dq, dk, dv)


@dataclass(frozen=True)
class Attention(Family):
    """softmax(q k^T / sqrt(d)) v for n samples and h heads of d channels, t tokens each."""

    n: int
    h: int
    t: int
    d: int
    sorts: ClassVar = dict.fromkeys("qkvg", "heads")
    results: ClassVar[tuple] = ("heads",)

    def small(self):
        return replace(self, n=min(self.n, 2), h=min(self.h, 2), t=min(self.t, 75))

    def inputs(self):
        shape = (self.n, self.t, self.h, self.d)
        return SimpleNamespace(**{name: normal(shape, seed) for seed, name in enumerate("qkvg")})

    def ours(self, a):
        from generant import ops

        return lambda: ops.attention(a.q, a.k, a.v)

    def judged(self) -> Iterator[tuple[int, int]]:
        """(sample, head): all of them where t is small, some otherwise."""
        pairs = self.n * self.h
        for p in np.linspace(0, pairs - 1, min(pairs, max(2, 2**25 // self.t**2)), dtype=int):
            yield divmod(int(p), self.h)

    def error(self, result: Any, a: Any) -> float:
        """Of the worst of the results, relative to the largest entry of its head."""
        results, worst = in_our_order(result, a, self), 0.0
        for i, h in self.judged():
            q, k, v, g = (array[i, :, h] for array in (a.q, a.k, a.v, a.g))
            exact = attention(q, k, v, g if len(results) > 1 else None)
            for r, e in zip(results, exact, strict=True):
                worst = max(worst, relative(r[i, :, h], e))
        return worst

    def flop(self):
        """Of the two products; the exponentials come on top."""
        return 4.0 * self.n * self.h * self.t**2 * self.d


@dataclass(frozen=True)
class AttentionGradients(Attention):
    """The result, and from a gradient in it those in q, k and v."""

    results: ClassVar[tuple] = ("heads",) * 4

    def ours(self, a):
        from generant import ops, vjp

        def call():
            y, pull = vjp(ops.attention, a.q, a.k, a.v)
            return y, *pull(a.g)

        return call

    def flop(self):
        """Of seven products: a backward pass that keeps no scores makes them again, and then four more."""
        return 3.5 * super().flop()


@dataclass(frozen=True)
class AttentionBf16(Attention):
    """The same from factors that are rounded to bfloat16, where the CPU multiplies them."""

    tolerance = 2e-2

    def lacks(self):
        return "" if machine.has("avx512_bf16") else "this CPU has no avx512_bf16"

    def ours(self, a):
        from generant import ops

        return lambda: ops.attention(a.q, a.k, a.v, precision="bf16")

    def flop(self):
        return 0.0  # the peak that is measured is that of float32
