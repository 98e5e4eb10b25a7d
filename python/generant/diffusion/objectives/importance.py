"""Noise levels drawn where the loss is large, with the weights that keep the expected loss unchanged.

Not here: distributions of the levels that are fixed (times).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops, random
from ...optim import Stateful
from .times import flow_level, level_of

__all__ = ["ImportanceSampler"]


class ImportanceSampler(Stateful):
    """Bin k with probability proportional to sqrt(mean of its last squared losses); weights 1 / (bins probability).

    The times (0, 1) are cut into equal bins; a draw chooses a bin, then a time uniform in it, then level(time) (see
    `times.uniform`; a table of levels has one bin per entry). Until every bin has `history` losses all are as likely.
    uniform: the share of draws that go to all bins alike. What it remembers is in `state`, for checkpoints.
    Nichol and Dhariwal (2021), section 3.4.
    """

    def __init__(
        self, *, level: Any = flow_level, bins: int | None = None, history: int = 10, uniform: float = 1e-3
    ) -> None:
        if not callable(level):
            level = np.array(level, np.float64)
            if bins not in (None, len(level)):
                raise ValueError(f"ImportanceSampler: a table of {len(level)} levels has as many bins, got {bins}")
            bins = len(level)
        bins = 100 if bins is None else bins
        if bins < 1 or history < 1:
            raise ValueError(f"ImportanceSampler: bins and history must be at least 1, got {bins} and {history}")
        if not 0 < uniform <= 1:
            raise ValueError(f"ImportanceSampler: uniform must lie in (0, 1], got {uniform}")
        self.level, self.bins, self.uniform = level, int(bins), uniform
        self.losses, self.counts = np.zeros((bins, history)), np.zeros(bins, np.int64)

    @property
    def state(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """losses (bins, history): the last ones, in a ring; counts (bins,): how many there have been."""
        return {"losses": self.losses, "counts": self.counts}

    def probabilities(self) -> np.ndarray:
        """Of the bins, (bins,) float64."""
        even = np.full(self.bins, 1 / self.bins)
        if (self.counts < self.losses.shape[1]).any():
            return even
        largest = self.losses.max()
        size = np.sqrt(np.mean((self.losses / (largest or 1)) ** 2, axis=1))
        total = size.sum()
        return even if total == 0 else (1 - self.uniform) * size / total + self.uniform * even

    def draw(self, key: Any, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(levels, weights, bins) of n samples, each (n,): weights go to `Objective.loss`, bins to `update`."""
        p = self.probabilities()
        numbers = ops.uniform(random.fold_in(key, 0), dtype="float64", shape=(n,))
        ends = np.cumsum(p)
        chosen = np.minimum(np.searchsorted(ends / ends[-1], numbers, side="right"), self.bins - 1)
        within = ops.uniform(random.fold_in(key, 1), dtype="float64", shape=(n,))
        t = np.clip((chosen + within) / self.bins, 2.0**-54, 1 - 2.0**-53)
        levels = level_of(self.level, t) if callable(self.level) else self.level[chosen]
        return levels, 1 / (self.bins * p[chosen]), chosen.astype(np.int64)

    def update(self, bins: Any, losses: Any) -> None:
        """Remember losses (n,), without importance weights, of samples in bins (n,). Those not finite are left out."""
        bins, losses = np.asarray(bins), np.asarray(losses, np.float64)
        if bins.shape != losses.shape or bins.ndim != 1:
            raise ValueError(f"update: bins and losses must be vectors of one length, got {bins.shape}, {losses.shape}")
        if len(bins) and not (0 <= bins.min() and bins.max() < self.bins):
            raise ValueError(f"update: bins must lie in 0 ... {self.bins - 1}, got {bins.min()} ... {bins.max()}")
        for k, loss in zip(bins.tolist(), losses.tolist(), strict=True):
            if np.isfinite(loss):
                self.losses[k, self.counts[k] % self.losses.shape[1]] = loss
                self.counts[k] += 1
