"""Lion: steps of one length in every coordinate, along the sign of a mean of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from .state import Stateful, arrays, bounded, flat

__all__ = ["Lion"]


class Lion(Stateful):
    """Lion with decoupled weight decay. Chen et al. (2023), algorithm 2.

    params: flat, changed in place by `step(grads, ok)`. Memory: once the parameters. Wants an lr of a third to a tenth
    of Adam's, and a decay as many times larger.
    """

    def __init__(self, params: Any, *, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.99,
                 weight_decay: float = 0.0) -> None:
        bounded("Lion", lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)
        self.params = flat("Lion", params)
        self.beta1, self.beta2, self.weight_decay = beta1, beta2, weight_decay
        self.m = _device.zeros_like(params)
        self.lr = _device.full(params, (1,), lr, np.float64)

    @property
    def state(self) -> dict[str, Any]:          # type: ignore[override]
        """m, lr."""
        return {"m": self.m, "lr": self.lr}

    def step(self, grads: Any, ok: Any = None, *, at: dict[str, Any] | None = None) -> None:
        """One update, as `Adam.step`."""
        a = arrays(self, at)
        ops.lion_(a["params"], a["m"], grads, a["lr"], ok, beta1=self.beta1, beta2=self.beta2,
                  weight_decay=self.weight_decay)
