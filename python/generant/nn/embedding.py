"""Vectors for things that are not vectors: classes, and noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..data.checks import check_counts
from ..random import Stream
from . import init
from .module import Buffer, Module

__all__ = ["Embedding", "FourierFeatures", "SinusoidalFeatures"]


class Embedding(Module):
    """Row index[i] of a table (m, d) that begins as standard normals."""

    def __init__(self, m: int, d: int, stream: Stream, *, dtype: Any = "float32") -> None:
        check_counts("Embedding", m=m, d=d)
        self.table = init.normal((m, d), stream, dtype=dtype)

    def __call__(self, index: Any) -> Any:
        return ops.gather(self.table, index)


class _Waves(Module):
    """(sin(f t), cos(f t)) of a scalar t at fixed frequencies f."""

    frequencies: Buffer

    def __call__(self, t: Any) -> Any:
        angle = ops.mul(ops.reshape(t, shape=(t.shape[0], 1)), self.frequencies.value)
        return ops.concat(ops.sin(angle), ops.cos(angle), axis=-1)


def _check_even(layer: str, d: int) -> None:
    if d < 2 or d % 2:
        raise ValueError(f"{layer}: d must be even and at least 2, got {d}")


class FourierFeatures(_Waves):
    """(sin(f t), cos(f t)) of a scalar t at d / 2 frequencies f, spaced geometrically from low to high.

    t (n,). Returns (n, d). Tancik et al. (2020); the fixed frequencies replace their random ones.
    """

    def __init__(self, d: int, *, low: float = 1.0, high: float = 32.0, dtype: Any = "float32") -> None:
        _check_even("FourierFeatures", d)
        self.frequencies = Buffer(np.geomspace(low, high, d // 2).astype(dtype)[None, :])


class SinusoidalFeatures(_Waves):
    """(sin(t f_k), cos(t f_k)), f_k = period^(-2 k / d) for k < d / 2: for steps that are numbered.

    t (n,). Returns (n, d). Vaswani et al. (2017), 3.5, with all sines first as in Ho et al. (2020).
    """

    def __init__(self, d: int, *, period: float = 10000.0, dtype: Any = "float32") -> None:
        _check_even("SinusoidalFeatures", d)
        self.frequencies = Buffer((period ** (-2 * np.arange(d // 2) / d)).astype(dtype)[None, :])
