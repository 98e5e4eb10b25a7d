"""Adam and AdamW, and the clipping of a gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from .state import Stateful, arrays, bounded, flat

__all__ = ["Adam", "AdamW", "clip"]


class Adam(Stateful):
    """Adam with decoupled weight decay (AdamW); `weight_decay=0` is Adam. Kingma and Ba (2015).

    params: flat, changed in place by `step(grads, ok)`. Memory: twice the parameters.
    """

    def __init__(self, params: Any, *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999,
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        name = type(self).__name__
        bounded(name, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
        self.params = flat(name, params)
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m, self.v = _device.zeros_like(params), _device.zeros_like(params)
        self.count = _device.full(params, (1,), 0, np.int64)  # steps done
        self.lr = _device.full(params, (1,), lr, np.float64)

    @property
    def state(self) -> dict[str, Any]:          # type: ignore[override]
        """m, v, count, lr: everything but the parameters that a step reads or changes."""
        return {"m": self.m, "v": self.v, "count": self.count, "lr": self.lr}

    def step(self, grads: Any, ok: Any = None, *, at: dict[str, Any] | None = None) -> None:
        """One update. grads: flat, like params. Nothing changes if ok (1 uint8, from `clip`) is 0.

        at: the arrays to work on instead of its own, by the names of `state` and "params".
        """
        a = arrays(self, at)
        ops.adam_(a["params"], a["m"], a["v"], grads, a["count"], a["lr"], ok, beta1=self.beta1, beta2=self.beta2,
                  eps=self.eps, weight_decay=self.weight_decay)


class AdamW(Adam):
    """Adam with a decoupled weight decay of 0.01. Loshchilov and Hutter (2019), algorithm 2."""

    def __init__(self, params: Any, *, weight_decay: float = 0.01, **options: float) -> None:
        super().__init__(params, weight_decay=weight_decay, **options)


def clip(grads: Any, limit: float = math.inf) -> tuple[Any, Any]:
    """Scale a flat gradient in place to norm <= limit; returns (ok, norm), the flag for `step` and `update`."""
    if not limit > 0:
        raise ValueError(f"clip: limit must be positive, got {limit}")
    return ops.clip_norm_(grads, limit=limit)
