"""The learning rate as a plain function of the step number, 0 for the first."""

from __future__ import annotations

import math

__all__ = ["constant", "cosine", "linear"]


def constant(step: int, *, lr: float, warmup: int = 0) -> float:
    """lr, after a linear rise over the first `warmup` steps."""
    if warmup < 0:
        raise ValueError(f"constant: warmup must be at least 0, got {warmup}")
    return lr * min(1.0, (step + 1) / warmup) if warmup else lr


def _done(name: str, step: int, total: int, warmup: int) -> float:
    """The share of the steps after the warm-up that are done, in [0, 1]."""
    if not 0 <= warmup < total:
        raise ValueError(f"{name}: warmup must lie in [0, total), got warmup = {warmup}, total = {total}")
    return min(1.0, max(0, step - warmup) / (total - warmup))


def cosine(step: int, *, lr: float, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """From lr to `final` along half a cosine over `total` steps, after a linear rise over the first `warmup`.

    Loshchilov and Hutter (2017), eq. 5.
    """
    done = _done("cosine", step, total, warmup)
    if step < warmup:
        return lr * (step + 1) / warmup
    return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * done))


def linear(step: int, *, lr: float, total: int, warmup: int = 0, final: float = 0.0) -> float:
    """From lr to `final` in a straight line over `total` steps, after a linear rise over the first `warmup`."""
    done = _done("linear", step, total, warmup)
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr + (final - lr) * done
