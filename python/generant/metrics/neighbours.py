"""Metrics made of balls around points, each reaching to its centre's k-th nearest neighbour.

How much of one sample lies in the balls of the other (precision, recall, density, coverage), and where a single row
lies (realism, rarity).

A point is never its own neighbour, by its index and not by its distance, so duplicate rows are neighbours at distance
0. Published code takes the nearest of k + 1 with the point itself among them: the same radius, if rounding leaves the
distance of a row to itself at 0. What differs between packages is whether the rim of a ball belongs to it, `ties`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.neighbours import knn, nearest, radius_count, radius_min
from ._points import as_points, positive_integer

TIES = ("strict", "closed")
SMALLER = ", the other rows of the smaller sample"


def prdc(real: ArrayLike, fake: ArrayLike, *, k: int | Sequence[int] = 5, ties: str = "strict") -> dict[str, Any]:
    """Precision, recall, density and coverage of `fake` by balls around each point to its k-th neighbour.

    real (n, d), fake (m, d): features. Returns a dict of floats:
    precision, the fraction of fake inside some real ball; recall, of real inside some fake ball; density, the mean
    number of real balls around a fake point divided by k (may exceed 1); coverage, the fraction of real balls that
    hold a fake point. For a sequence of k a dict of float64 arrays in its order, from the same neighbour searches.
    ties: "strict" counts distance < radius (Naeem et al., package prdc), "closed" <= (Kynkaanniemi et al.,
    torch-fidelity); they differ on duplicated points and on grids only.
    Time (n^2 / 2 + m^2 / 2 + n m) d, n m d more per further k; memory O((n + m) k). Raises ValueError unless
    1 <= k < min(n, m). Kynkaanniemi et al., NeurIPS 2019, sec. 2; Naeem et al., ICML 2020, eq. 3, 5, 7.
    """
    return _prdc("prdc", real, fake, k, ties)


def _prdc(function: str, real: ArrayLike, fake: ArrayLike, k: int | Sequence[int], ties: str) -> dict[str, Any]:
    real, fake = as_points(function, rows=2, real=real, fake=fake)
    one = not isinstance(k, (Sequence, np.ndarray)) or isinstance(k, str)
    most = min(len(real), len(fake)) - 1
    given: Any = [k] if one else k
    ks = [positive_integer(function, "k", number, most, SMALLER) for number in given]
    if not ks:
        raise ValueError(f"{function}: k must hold at least one number, got {k!r}")
    closed = rim_belongs(function, ties)
    real_distance, fake_distance = knn(real, k=max(ks))[0], knn(fake, k=max(ks))[0]
    found = [_scores(count_balls(real, fake, real_distance[:, k - 1], fake_distance[:, k - 1], closed), k) for k in ks]
    return found[0] if one else {name: np.array([scores[name] for scores in found]) for name in found[0]}


def count_balls(
    real: NDArray[Any], fake: NDArray[Any], real_radius: NDArray[Any], fake_radius: NDArray[Any], closed: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(real balls around every fake, fakes in every real ball, fake balls around every real), in one pass."""
    radii = (np.ascontiguousarray(r) for r in (real_radius, fake_radius))
    return radius_count(fake, real, *radii, closed=closed)[:3]


def _scores(balls: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], k: int) -> dict[str, float]:
    around_fake, fakes_held, around_real = balls
    return {
        "precision": float(np.mean(around_fake > 0)),
        "recall": float(np.mean(around_real > 0)),
        "density": float(around_fake.sum() / (k * len(around_fake))),
        "coverage": float(np.mean(fakes_held > 0)),
    }


def rim_belongs(function: str, ties: str) -> bool:
    """What `ties` says, checked."""
    if ties not in TIES:
        raise ValueError(f"{function}: ties must be one of {', '.join(TIES)}, got {ties!r}")
    return ties == "closed"


def compute_prdc(real_features: ArrayLike, fake_features: ArrayLike, nearest_k: int) -> dict[str, float]:
    """prdc(real_features, fake_features, k=nearest_k, ties="strict"), by the name and signature of the package prdc.

    Same values as there; without the n x m matrices, and with copies at distance exactly 0.
    """
    return _prdc("compute_prdc", real_features, fake_features, nearest_k, "strict")


def precision_recall(real: ArrayLike, fake: ArrayLike, *, k: int = 3, ties: str = "closed") -> dict[str, float]:
    """Improved precision and recall, with f_score = 2 p r / (p + r): prdc at the settings of its authors.

    real (n, d), fake (m, d): features. Returns a dict of floats: precision, recall, f_score (0 if both are 0). k=3 and
    ties="closed" are those of Kynkaanniemi's code and of torch-fidelity, whose key names these are.
    Time (n^2 / 2 + m^2 / 2 + n m) d, memory O((n + m) k). Raises ValueError unless 1 <= k < min(n, m).
    Kynkaanniemi et al., Improved precision and recall metric, NeurIPS 2019, sec. 2.
    """
    if isinstance(k, (Sequence, np.ndarray)):
        raise ValueError(f"precision_recall: k must be one integer, got {k!r}; prdc takes several")
    found = _prdc("precision_recall", real, fake, k, ties)
    p, r = found["precision"], found["recall"]
    return {"precision": p, "recall": r, "f_score": 2 * p * r / max(1e-5, p + r)}


def realism(real: ArrayLike, fake: ArrayLike, *, k: int = 3) -> NDArray[Any]:
    """max_j r_j / |fake_i - real_j| for every row of fake: >= 1 inside some real ball, below 1 the farther outside.

    real (n, d), fake (m, d): features; r_j is the distance of real_j to its k-th neighbour, and only balls of at most
    the median radius count: large balls stand where data are few and hold anything. Returns (m,) in the points' dtype;
    inf on a real point itself, balls of radius 0 left out (0 if all are).
    The authors' code compares squared distances, and so returns the square of this formula of their paper.
    Time (n^2 / 2 + n m / 2) d, memory O(n k + m). Raises ValueError unless 1 <= k < n.
    Kynkaanniemi et al., Improved precision and recall metric, NeurIPS 2019, eq. 3.
    """
    return realism_in_balls(*_real_balls("realism", real, fake, k))


def realism_in_balls(real: NDArray[Any], radius: NDArray[Any], fake: NDArray[Any]) -> NDArray[Any]:
    """realism of fake, when the radius of every ball is known."""
    keep = (radius <= np.median(radius)) & (radius > 0)
    if not keep.any():
        return np.zeros(len(fake), fake.dtype)
    distance = nearest(fake, real[keep], radius[keep])[0]  # in radii
    return np.divide(1, distance, out=np.full_like(distance, np.inf), where=distance > 0)


def rarity(real: ArrayLike, fake: ArrayLike, *, k: int = 3, ties: str = "strict") -> NDArray[Any]:
    """Radius of the smallest real ball that holds fake_i, for every row of fake: large where real data are few.

    real (n, d), fake (m, d): features; a ball reaches to its centre's k-th neighbour. Returns (m,) in the points'
    dtype and unit, NaN for rows in no ball, which have no rarity: summarise with np.nanmean. ties as for prdc.
    Time (n^2 / 2 + n m) d, memory O(n k + m). Raises ValueError unless 1 <= k < n.
    Han et al., Rarity score: a new metric to evaluate the uncommonness of synthesized images, ICLR 2023, sec. 3.
    """
    closed = rim_belongs("rarity", ties)
    return rarity_in_balls(*_real_balls("rarity", real, fake, k), closed)


def rarity_in_balls(
    real: NDArray[Any], radius: NDArray[Any], fake: NDArray[Any], closed: bool
) -> NDArray[Any]:
    """rarity of fake, when the radius of every ball is known."""
    smallest = radius_min(fake, real, radius, closed=closed)
    return np.where(np.isinf(smallest), smallest.dtype.type(np.nan), smallest)


def _real_balls(
    function: str, real: ArrayLike, fake: ArrayLike, k: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    real, fake = as_points(function, real=real, fake=fake)
    if len(real) < 2:
        raise ValueError(f"{function}: real must have at least 2 rows, got shape {real.shape}")
    k = positive_integer(function, "k", k, len(real) - 1, ", the other rows of real")
    return real, np.ascontiguousarray(knn(real, k=k)[0][:, -1]), fake
