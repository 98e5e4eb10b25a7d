"""What watches a generator for mode collapse: how much of the data it reaches, and how far apart its samples lie.

Two figures that fall for different reasons. Recall, the fraction of data inside balls around samples, falls when parts
of the data are dropped; the nearest-neighbour distance falls when many samples are nearly one. Both are measured on few
rows, as this happens during training. Not here: how good samples look (generant.metrics).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ..metrics import prdc
from .estimator import check_count, check_real

__all__ = ["Diversity", "collapse_warning", "modes_found"]

LOW_RECALL = 0.1
FALLEN = 0.5  # of the best diversity so far
SETTLED = 4  # measurements before a low recall counts: a generator begins far from all data


def _rows(where: str, name: str, x: Any) -> np.ndarray:
    """x (n, ...) as finite float rows (n, d)."""
    x = np.asarray(x)
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"{where}: {name} must have at least 2 rows and a feature, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    if not np.isfinite(x).all():
        raise ValueError(f"{where}: {name} must be finite")
    return np.ascontiguousarray(x, np.float64 if x.dtype == np.float64 else np.float32)


def _thinned(x: np.ndarray, n: int) -> np.ndarray:
    """n rows of x, evenly spaced."""
    return x if len(x) <= n else np.ascontiguousarray(x[np.arange(n) * len(x) // n])


class Diversity:
    """Recall and relative spread of samples against a reference set.

    reference (m, ...): data, at least k + 1 distinct rows; at most `rows` of them, evenly spaced, are used, so their
    order should mean nothing. k: the neighbour that a ball around a sample reaches to.
    """

    def __init__(self, reference: Any, *, k: int = 5, rows: int = 1000) -> None:
        self.k, self.rows = check_count("Diversity", "k", k), check_count("Diversity", "rows", rows, at_least=2)
        self.reference = _thinned(_rows("Diversity", "reference", reference), rows)
        if len(np.unique(self.reference, axis=0)) <= self.k:
            raise ValueError(f"Diversity: reference must have at least k + 1 = {k + 1} distinct rows")

    def measure(self, samples: Any) -> dict[str, float]:
        """recall, the fraction of data within a sample's distance to its k-th neighbour (Kynkaanniemi et al. 2019), and
        diversity, the median nearest-neighbour distance of samples over that of as many rows of data.

        samples (n, ...), at least k + 1. Both figures are near 1 for a perfect generator, up to the luck of few rows;
        diversity is 0 for one that repeats itself. Where most data have copies, distances are those of distinct rows.
        Time rows^2 d.
        """
        x = _rows("Diversity.measure", "samples", samples)
        if x.shape[1] != self.reference.shape[1]:
            raise ValueError(
                f"Diversity.measure: samples have {x.shape[1]} features, the reference has {self.reference.shape[1]}"
            )
        if len(x) <= self.k:
            raise ValueError(f"Diversity.measure: samples must have at least k + 1 = {self.k + 1} rows, got {len(x)}")
        n = min(len(x), len(self.reference))
        x, data = _thinned(x, n), _thinned(self.reference, n)
        x = x.astype(data.dtype, copy=False)
        recall = prdc(data, x, k=self.k)["recall"]
        spread = float(np.median(ops.knn(data, k=1)[0]))
        if spread == 0:
            spread = float(np.median(ops.knn(np.unique(self.reference, axis=0), k=1)[0]))
        return {"recall": recall, "diversity": float(np.median(ops.knn(x, k=1)[0])) / spread}


def collapse_warning(history: Sequence[dict[str, float]]) -> str | None:
    """What to warn of after the last of some measurements, each with recall and diversity; None if there is no reason.

    The rule: at two measurements running, diversity is below half of the best so far, or of the data's own, 1, if that
    is less (where data are in clusters, a generator begins too diverse); or, from the fifth measurement on, recall is
    below 0.1.
    """
    if len(history) < 2:
        return None
    last = history[-2:]
    best = min(1.0, max(h["diversity"] for h in history))
    if all(h["diversity"] < FALLEN * best for h in last):
        return (
            f"mode collapse: the nearest-neighbour distance of samples is {last[1]['diversity']:.2g} of the data's, "
            f"after {best:.2g} at its best"
        )
    if len(history) > SETTLED and all(h["recall"] < LOW_RECALL for h in last):
        return f"mode collapse: samples reach {100 * last[1]['recall']:.2g} % of the data, less than 10 %"
    return None


def modes_found(
    samples: Any, centres: Any, sigma: float, *, at_least: int = 20, within: float = 3.0
) -> tuple[int, float]:
    """(number of modes found, fraction of samples within `within` sigma of a centre). Srivastava et al. (2017).

    samples (n, d), centres (m, d) of a mixture of Gaussians of deviation sigma. A sample belongs to the nearest centre;
    a mode is found if at_least samples (they ask for one) lie within `within` sigma of it. Time n m d.
    """
    sigma = check_real("modes_found", "sigma", sigma, 0, np.inf)
    within = check_real("modes_found", "within", within, 0, np.inf)
    at_least = check_count("modes_found", "at_least", at_least)
    x, centres = np.asarray(samples, np.float64), np.asarray(centres, np.float64)
    if x.ndim != 2 or centres.ndim != 2 or x.shape[1] != centres.shape[1] or not len(x):
        raise ValueError(f"modes_found: samples (n, d) and centres (m, d), got shapes {x.shape} and {centres.shape}")
    distance, mode = ops.nearest(np.ascontiguousarray(x), np.ascontiguousarray(centres))
    near = distance <= within * sigma
    counts = np.bincount(mode[near], minlength=len(centres))
    return int(np.sum(counts >= at_least)), float(near.mean())
