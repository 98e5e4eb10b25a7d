"""Adam, the clipping of its gradient, and its learning rate as a function of the step number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from .state import Stateful, flat

__all__ = ["Adam", "clip", "constant", "cosine"]


class Adam(Stateful):
    """Adam with decoupled weight decay (AdamW); `weight_decay=0` is Adam. Kingma and Ba (2015).

    params: flat, changed in place by `step(grads, ok)`. Memory: twice the parameters.
    """

    def __init__(self, params: np.ndarray, *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999,
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        for name, value, top in (("lr", lr, math.inf), ("beta1", beta1, 1.0), ("beta2", beta2, 1.0),
                                 ("eps", eps, math.inf), ("weight_decay", weight_decay, math.inf)):
            if not 0 <= value < top:
                raise ValueError(f"Adam: {name} must lie in [0, {top:g}), got {value}")
        self.params = flat("Adam", params)
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m, self.v = np.zeros_like(params), np.zeros_like(params)
        self.count = np.zeros(1, np.int64)             # steps done
        self.lr = np.array([lr], np.float64)

    @property
    def state(self) -> dict[str, np.ndarray]:          # type: ignore[override]
        """m, v, count, lr: everything but the parameters that a step reads or changes."""
        return {"m": self.m, "v": self.v, "count": self.count, "lr": self.lr}

    def step(self, grads: Any, ok: Any = None, at: dict[str, Any] | None = None) -> None:
        """One update. grads: flat, like params. Nothing changes if ok (1 uint8, from `clip`) is 0.

        at: the arrays of `state` and "params" to work on, if not its own.
        """
        own = {**self.state, "params": self.params} if at is None else at
        ops.adam_(own["params"], own["m"], own["v"], grads, own["count"], own["lr"], ok, beta1=self.beta1,
                  beta2=self.beta2, eps=self.eps, weight_decay=self.weight_decay)


def clip(grads: Any, limit: float = math.inf) -> tuple[Any, Any]:
    """Scale a flat gradient in place to norm <= limit; returns (ok, norm), the flag for `step` and `update`."""
    if not limit > 0:
        raise ValueError(f"clip: limit must be positive, got {limit}")
    return ops.clip_norm_(grads, limit=limit)


def constant(step: int, *, lr: float, warmup: int = 0) -> float:
    """lr, after a linear rise over the first `warmup` steps. step: 0 for the first."""
    return lr * min(1.0, (step + 1) / warmup) if warmup else lr


def cosine(step: int, *, lr: float, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """From lr to `final` along half a cosine over `total` steps, after a linear rise over the first `warmup`.

    Loshchilov and Hutter (2017), eq. 5.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"cosine: warmup must lie in [0, total), got warmup = {warmup}, total = {total}")
    if step < warmup:
        return lr * (step + 1) / warmup
    done = min(1.0, (step - warmup) / (total - warmup))
    return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * done))
