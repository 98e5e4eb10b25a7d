"""Metrics made of nearest neighbours: precision, recall, density, coverage, and checks for memorised training data.

All of them are knn and radius_count. A point is never its own neighbour, by its index and not by its distance, so
duplicate rows are neighbours at distance 0; published code that drops the nearest of k + 1 gets those wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.pairwise import knn, radius_count
from ._points import as_points, positive_integer

TIES = ("strict", "closed")


def prdc(real: ArrayLike, fake: ArrayLike, *, k: int = 5, ties: str = "strict") -> dict[str, float]:
    """Precision, recall, density and coverage of `fake` by balls around each point to its k-th neighbour.

    real (n, d), fake (m, d): features. Returns a dict of floats:
    precision, the fraction of fake inside some real ball; recall, of real inside some fake ball; density, the mean
    number of real balls around a fake point divided by k (may exceed 1); coverage, the fraction of real balls that
    hold a fake point. ties: "strict" counts distance < radius (Naeem et al.), "closed" <= (Kynkaanniemi et al.); they
    differ on duplicated points only.
    Time (n^2 + m^2 + 2 n m) d, memory O((n + m) k). Raises ValueError unless 1 <= k < min(n, m).
    Kynkaanniemi et al., NeurIPS 2019, sec. 2; Naeem et al., ICML 2020, eq. 3, 5, 7.
    """
    real, fake = as_points("prdc", rows=2, real=real, fake=fake)
    k = positive_integer("prdc", "k", k, min(len(real), len(fake)) - 1, ", the other rows of the smaller sample")
    if ties not in TIES:
        raise ValueError(f"prdc: ties must be one of {', '.join(TIES)}, got {ties!r}")
    closed = ties == "closed"
    real_radius, fake_radius = knn(real, k=k)[0][:, -1], knn(fake, k=k)[0][:, -1]
    real_balls, fakes_held = radius_count(fake, real, real_radius, closed=closed)
    fake_balls, _ = radius_count(real, fake, fake_radius, closed=closed)
    return {
        "precision": float(np.mean(real_balls > 0)),
        "recall": float(np.mean(fake_balls > 0)),
        "density": float(real_balls.sum() / (k * len(fake))),
        "coverage": float(np.mean(fakes_held > 0)),
    }


def nearest_distance(samples: ArrayLike, train: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Distance from every sample to its nearest training row, and that row's index.

    samples (n, d), train (m, d). Returns (n,) distances, exactly 0 for a copy, and (n,) int64 indices.
    Time n m d, memory O(n + m). Raises ValueError for other shapes and for values that are not finite.
    """
    samples, train = as_points("nearest_distance", samples=samples, train=train)
    distance, index = knn(samples, train, k=1)
    return distance[:, 0], index[:, 0]


def memorised_fraction(samples: ArrayLike, train: ArrayLike, *, ratio: float = 1 / 3) -> float:
    """Fraction of samples much nearer to one training row than to any other: d1 < ratio d2, or d1 = 0.

    samples (n, d), train (m, d) with m >= 2; d1 and d2 are the distances to the two nearest training rows.
    Time n m d, memory O(n + m). Raises ValueError for other shapes and unless 0 < ratio <= 1.
    Yoon et al., Diffusion probabilistic models generalize when they fail to memorize, 2023, sec. 3.
    """
    samples, train = as_points("memorised_fraction", samples=samples, train=train)
    if len(train) < 2:
        raise ValueError(f"memorised_fraction: train must have at least 2 rows, got shape {train.shape}")
    if not 0 < ratio <= 1:
        raise ValueError(f"memorised_fraction: ratio must be in (0, 1], got {ratio!r}")
    distance, _ = knn(samples, train, k=2)
    return float(np.mean((distance[:, 0] < ratio * distance[:, 1]) | (distance[:, 0] == 0)))


def authenticity(samples: ArrayLike, train: ArrayLike) -> float:
    """Fraction of samples farther from their nearest training row than that row is from its own nearest.

    samples (n, d), train (m, d) with m >= 2. About 1/2 or more for a model that generalises, towards 0 for copies.
    Time (n m + m^2) d, memory O(n + m). Alaa et al., How faithful is your synthetic data?, ICML 2022, sec. 4.3.
    """
    samples, train = as_points("authenticity", samples=samples, train=train)
    if len(train) < 2:
        raise ValueError(f"authenticity: train must have at least 2 rows, got shape {train.shape}")
    distance, index = knn(samples, train, k=1)
    return float(np.mean(knn(train, k=1)[0][index[:, 0], 0] < distance[:, 0]))
