"""Numba twins of the reductions: the same passes as csrc/cpu/reduce.cpp, each over (batch, reduced, kept).

Sums are double with their rounding errors carried along, so they agree with the kernels to the last bit but for
contrived inputs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._kernel import jit, kernel


@jit
def _pass(largest, x, y, divisor):
    batch, reduced, kept = x.shape
    s, e = np.empty(kept), np.empty(kept)
    for b in range(batch):
        for j in range(kept):
            s[j] = -np.inf if largest else 0.0
            e[j] = 0.0
        for r in range(reduced):
            for j in range(kept):
                v = float(x[b, r, j])
                if largest:
                    if v > s[j] or v != v:
                        s[j] = v
                else:
                    t = s[j] + v
                    z = t - s[j]
                    e[j] += (s[j] - (t - z)) + (v - z)
                    s[j] = t
        for j in range(kept):
            y[b, j] = (s[j] + e[j] if np.isfinite(s[j]) else s[j]) / divisor


def _reduce(x: Any, y: Any, axes: tuple[int, ...], largest: bool = False, mean: bool = False) -> None:
    count = math.prod(x.shape[i] for i in axes)
    groups: list[tuple[bool, int]] = []                     # neighbouring axes of one kind, merged
    for i, n in enumerate(x.shape):
        kind = i in axes
        if groups and groups[-1][0] == kind:
            groups[-1] = (kind, groups[-1][1] * n)
        elif n != 1:
            groups.append((kind, n))
    passes = [k for k, (kind, _) in enumerate(groups) if kind]
    if not passes:                                          # nothing to reduce: a copy
        passes, groups = [0], [(True, 1), *groups]
    for k in reversed(passes):
        parts = groups[:k], groups[k : k + 1], groups[k + 1 :]
        batch, reduced, kept = (math.prod(n for _, n in part) for part in parts)
        groups = groups[:k] + groups[k + 1 :]
        final = k == passes[0]
        to = y.reshape(batch, kept) if final else np.empty((batch, kept))
        _pass(largest, x.reshape(batch, reduced, kept), to, float(count) if mean and final else 1.0)
        x = to


@kernel
def sum(x, y, keepdims, axis):
    _reduce(x, y, axis)


@kernel
def mean(x, y, keepdims, axis):
    _reduce(x, y, axis, mean=True)


@kernel
def max(x, y, keepdims, axis):
    _reduce(x, y, axis, largest=True)


@kernel
def sum_to(x, y, shape):
    lead = x.ndim - len(shape)
    _reduce(x, y, tuple(i for i in range(x.ndim) if i < lead or shape[i - lead] == 1))


@kernel
def expand(x, y, shape):
    np.copyto(y, x)
