"""Optimisers on one flat parameter buffer: Adam, exponential moving average, clipping, learning-rate schedules.

A model's parameters are one contiguous 1-d array (nn.Module keeps them so), and so are its gradients. An optimiser owns
the arrays a step changes; they are listed in `state`, which is what a recorded step declares and a checkpoint saves.
The learning rate and the decay are arrays too, so that changing them never needs a new recording. Schedules are plain
functions of the step number: `opt.lr[0] = cosine(step, ...)`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import ops

__all__ = ["EMA", "Adam", "clip", "constant", "cosine"]


def _flat(owner: str, params: Any) -> np.ndarray:
    if not isinstance(params, np.ndarray):
        raise TypeError(f"{owner}: params must be a flat array, got {type(params).__name__}")
    if params.ndim != 1 or params.dtype not in (np.float32, np.float64) or not params.flags.carray:
        raise ValueError(
            f"{owner}: params must be 1-d, contiguous, writeable and float32 or float64, "
            f"got shape {params.shape}, {params.dtype}"
        )
    return params


class _Stateful:
    """Arrays by name, all of them changed in place only."""

    state: dict[str, np.ndarray]

    def load(self, state: dict[str, Any]) -> None:
        """Copy saved arrays into this object's own. KeyError or ValueError if they are not the ones of `state`."""
        if set(state) != set(self.state):
            raise KeyError(f"{type(self).__name__}: state has {sorted(state)}, wanted {sorted(self.state)}")
        new = {name: np.asarray(value) for name, value in state.items()}
        for name, value in self.state.items():
            if new[name].shape != value.shape or new[name].dtype != value.dtype:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {new[name].shape} and dtype {new[name].dtype}, "
                    f"wanted {value.shape} and {value.dtype}"
                )
        for name, value in self.state.items():
            value[...] = new[name]


class Adam(_Stateful):
    """Adam with decoupled weight decay (AdamW); `weight_decay=0` is Adam. Kingma and Ba (2015).

    params: flat, changed in place by `step(grads, ok)`. Memory: twice the parameters.
    """

    def __init__(self, params: np.ndarray, *, lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999,
                 eps: float = 1e-8, weight_decay: float = 0.0) -> None:
        for name, value, top in (("lr", lr, math.inf), ("beta1", beta1, 1.0), ("beta2", beta2, 1.0),
                                 ("eps", eps, math.inf), ("weight_decay", weight_decay, math.inf)):
            if not 0 <= value < top:
                raise ValueError(f"Adam: {name} must lie in [0, {top:g}), got {value}")
        self.params = _flat("Adam", params)
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.m, self.v = np.zeros_like(params), np.zeros_like(params)
        self.count = np.zeros(1, np.int64)             # steps done
        self.lr = np.array([lr], np.float64)

    @property
    def state(self) -> dict[str, np.ndarray]:          # type: ignore[override]
        """m, v, count, lr: everything but the parameters that a step reads or changes."""
        return {"m": self.m, "v": self.v, "count": self.count, "lr": self.lr}

    def step(self, grads: Any, ok: Any = None) -> None:
        """One update. grads: flat, like params. Nothing changes if ok (1 uint8, from `clip`) is 0."""
        ops.adam_(self.params, self.m, self.v, grads, self.count, self.lr, ok, beta1=self.beta1, beta2=self.beta2,
                  eps=self.eps, weight_decay=self.weight_decay)


class EMA(_Stateful):
    """Exponential moving average of a flat parameter buffer, in `average`.

    warmup=True: the decay of update t is min(decay, (1 + t) / (10 + t)), so that the start is soon forgotten.
    """

    def __init__(self, params: np.ndarray, *, decay: float = 0.999, warmup: bool = False) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA: decay must lie in [0, 1], got {decay}")
        self.params, self.warmup, self.max_decay = _flat("EMA", params), warmup, decay
        self.average = params.copy()
        self.count = np.zeros(1, np.int64)             # updates done
        self.decay = np.array([decay], np.float64)     # of the coming update

    @property
    def state(self) -> dict[str, np.ndarray]:          # type: ignore[override]
        """average, count, decay."""
        return {"average": self.average, "count": self.count, "decay": self.decay}

    def prepare(self) -> None:
        """Set `decay` for the coming update and count it: the part of `update` that is not recorded."""
        t = int(self.count[0])
        self.decay[0] = min(self.max_decay, (1 + t) / (10 + t)) if self.warmup else self.max_decay
        self.count += 1

    def apply(self, ok: Any = None) -> None:
        """average <- decay average + (1 - decay) params, unless ok (1 uint8) is 0."""
        ops.ema_(self.average, self.params, self.decay, ok)

    def update(self, ok: Any = None) -> None:
        """One update."""
        self.prepare()
        self.apply(ok)


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
