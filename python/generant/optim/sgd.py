"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from .state import Stateful, arrays, bounded, flat

__all__ = ["SGD"]


class SGD(Stateful):
    """Gradient descent with (Nesterov) momentum and coupled weight decay, as torch.optim.SGD.

    params: flat, changed in place by `step(grads, ok)`. Memory: once the parameters if there is momentum.
    """

    def __init__(self, params: Any, *, lr: float = 1e-3, momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float = 0.0) -> None:
        bounded("SGD", lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs a momentum above 0, got 0")
        self.params = flat("SGD", params)
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.m = _device.zeros_like(params) if momentum else None
        self.lr = _device.full(params, (1,), lr, np.float64)

    @property
    def state(self) -> dict[str, Any]:          # type: ignore[override]
        """lr, and m if there is momentum."""
        return {"lr": self.lr} if self.m is None else {"m": self.m, "lr": self.lr}

    def step(self, grads: Any, ok: Any = None, *, at: dict[str, Any] | None = None) -> None:
        """One update, as `Adam.step`."""
        a = arrays(self, at)
        ops.sgd_(a["params"], a.get("m"), grads, a["lr"], ok, momentum=self.momentum, nesterov=self.nesterov,
                 weight_decay=self.weight_decay)
