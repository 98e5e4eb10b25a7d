"""The linear layer, with an activation in its epilogue where one is asked for."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..data.checks import check_counts
from ..ops.matmul import ACTIVATIONS
from ..random import Stream
from . import init
from .module import Module

__all__ = ["Linear", "activated"]


def activated(layer: str, activation: str | None, x: Any) -> Any:
    """x after the activation of that name, or x; ValueError, naming the layer, if there is none so called."""
    if activation is None:
        return x
    if activation not in ACTIVATIONS:
        raise ValueError(f"{layer}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return getattr(ops, activation)(x)


class Linear(Module):
    """activation(x @ weight + bias).

    x (..., d). Returns (..., o). weight (d, o) begins as normals of variance gain^2 / d, bias (o,) as zeros; bias=False
    does without. `activation` is a name that ops.linear_act knows, or None.
    """

    def __init__(
        self,
        d: int,
        o: int,
        stream: Stream,
        *,
        activation: str | None = None,
        gain: float = 1.0,
        bias: bool = True,
        dtype: Any = "float32",
    ) -> None:
        check_counts("Linear", d=d, o=o)
        self.weight = init.lecun_normal((d, o), stream, gain=gain, dtype=dtype)
        self.bias = init.zeros((o,), dtype=dtype) if bias else None
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        if self.bias is None:
            return activated("Linear", self.activation, ops.matmul(x, self.weight))
        if self.activation is None:
            return ops.linear(x, self.weight, self.bias)
        return ops.linear_act(x, self.weight, self.bias, activation=self.activation)
