"""Exponential moving average of the parameters, with a decay that may start small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from .state import Stateful, arrays, flat

__all__ = ["EMA"]


class EMA(Stateful):
    """Exponential moving average of a flat parameter buffer, in `average`.

    warmup=True: the decay of update t = 0, 1, ... is min(decay, (1 + t) / (10 + t)), so that the start is soon
    forgotten. With power as well it is 1 - (1 + t / inv_gamma)^-power, kept in [min_decay, decay] but for the first,
    which is 0, as in diffusers; 2 / 3 is for runs of a million steps, 3 / 4 for shorter ones.
    """

    def __init__(
        self,
        params: Any,
        *,
        decay: float = 0.999,
        warmup: bool = False,
        power: float | None = None,
        inv_gamma: float = 1.0,
        min_decay: float = 0.0,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA: decay must lie in [0, 1], got {decay}")
        if power is not None and not warmup:
            raise ValueError(f"EMA: power is of the warm-up, got power = {power} and warmup = {warmup}")
        for name, value in (("power", 1.0 if power is None else power), ("inv_gamma", inv_gamma)):
            if not 0 < value < math.inf:
                raise ValueError(f"EMA: {name} must be positive and finite, got {value}")
        if not 0 <= min_decay <= decay:
            raise ValueError(f"EMA: min_decay must lie in [0, decay], got {min_decay}")
        self.params, self.warmup, self.max_decay = flat("EMA", params), warmup, decay
        self.power, self.inv_gamma, self.min_decay = power, inv_gamma, min_decay
        self.average = params.copy()
        self.count = _device.full(params, (1,), 0, np.int64)  # updates done
        self.decay = _device.full(params, (1,), decay, np.float64)  # of the coming update
        self._known: int | None = 0  # count, where reading it would wait for the GPU

    @property
    def state(self) -> dict[str, Any]:  # type: ignore[override]
        """average, count, decay."""
        return {"average": self.average, "count": self.count, "decay": self.decay}

    def _decay(self, t: int) -> float:
        if not self.warmup:
            return self.max_decay
        if self.power is None:
            return max(self.min_decay, min(self.max_decay, (1 + t) / (10 + t)))
        rising = 1 - (1 + t / self.inv_gamma) ** -self.power
        return max(self.min_decay, min(self.max_decay, rising)) if t else 0.0

    def prepare(self) -> None:
        """Set `decay` for the coming update and count it: the part of `update` that is not recorded."""
        if self._known is None or isinstance(self.count, np.ndarray):
            self._known = int(self.count[0])
        self.decay[0] = self._decay(self._known)
        self.count += 1
        self._known += 1

    def reread(self) -> None:
        """To be called after `count` was changed from outside."""
        self._known = None

    def load(self, state: dict[str, Any]) -> None:
        """As `Stateful.load`."""
        super().load(state)
        self.reread()

    def apply(self, ok: Any = None, at: dict[str, Any] | None = None) -> None:
        """average <- decay average + (1 - decay) params, unless ok (1 uint8) is 0.

        at: the arrays to work on instead of its own, by the names of `state` and "params".
        """
        a = arrays(self, at)
        ops.ema_(a["average"], a["params"], a["decay"], ok)

    def update(self, ok: Any = None, *, at: dict[str, Any] | None = None) -> None:
        """One update."""
        self.prepare()
        self.apply(ok, at)
