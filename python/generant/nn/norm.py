"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .module import Module

__all__ = ["LayerNorm"]


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * gain + bias over the last axis. Ba, Kiros, Hinton (2016)."""

    def __init__(self, d: int, *, eps: float = 1e-5, dtype: Any = "float32") -> None:
        self.gain, self.bias = np.ones(d, dtype), np.zeros(d, dtype)
        self.eps = eps

    def __call__(self, x: Any) -> Any:
        return ops.layer_norm(x, self.gain, self.bias, eps=self.eps)
