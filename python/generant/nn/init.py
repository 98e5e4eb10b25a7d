"""First values of parameters, drawn from counter-based random numbers: the same seed gives the same bits anywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..random import Stream

__all__ = ["lecun_normal", "normal", "zeros"]


def normal(shape: tuple[int, ...], stream: Stream, *, std: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Independent normals of the given standard deviation."""
    return ops.normal(next(stream), shape=tuple(shape), dtype=str(np.dtype(dtype))) * np.dtype(dtype).type(std)


def lecun_normal(shape: tuple[int, int], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Normals of variance gain^2 / d for a weight (d, o): x @ w keeps the scale of x. LeCun et al. (1998), 4.6."""
    return normal(shape, stream, std=gain / np.sqrt(shape[0]), dtype=dtype)


def zeros(shape: tuple[int, ...], *, dtype: Any = "float32") -> np.ndarray:
    """Zeros: biases, and the last layer of a residual branch, which then begins as the identity."""
    return np.zeros(shape, dtype)
