"""Does a model repeat its training data? Distances of samples to training rows against what honest samples have.

All of them are nearest-neighbour searches. Distances are exact near 0, so copies are found by comparing with 0, and a
training row is never its own neighbour, by its index and not by its distance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.neighbours import knn, nearest
from ._points import as_points, positive_integer, unit_rows
from .frechet import frechet_distance

STATISTICS: dict[str, Any] = {"median": np.median, "mean": np.mean}
REFERENCES = ("kth", "mean")
AVERAGES = ("fake", "real")
MAX_ROUNDS, SHIFT = 300, 1e-4  # k-means stops when centres move by less than this share of the variance, squared


def nearest_distance(samples: ArrayLike, train: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Distance from every sample to its nearest training row, and that row's index.

    samples (n, d), train (m, d). Returns (n,) distances, exactly 0 for a copy, and (n,) int64 indices.
    Time n m d, memory O(n + m). Raises ValueError for other shapes and for values that are not finite.
    """
    samples, train = as_points("nearest_distance", samples=samples, train=train)
    return nearest(samples, train)


def memorised_fraction(samples: ArrayLike, train: ArrayLike, *, ratio: float = 1 / 3) -> float:
    """Fraction of samples much nearer to one training row than to any other: d1 < ratio d2, or d1 = 0.

    samples (n, d), train (m, d) with m >= 2; d1 and d2 are the distances to the two nearest training rows.
    Time n m d, memory O(n + m). Raises ValueError for other shapes and unless 0 < ratio <= 1.
    Yoon et al., Diffusion probabilistic models generalize when they fail to memorize, 2023, sec. 3.
    """
    samples, train = as_points("memorised_fraction", samples=samples, train=train)
    _at_least_two("memorised_fraction", train)
    if not 0 < ratio <= 1:
        raise ValueError(f"memorised_fraction: ratio must be in (0, 1], got {ratio!r}")
    return float(np.mean(much_nearer(knn(samples, train, k=2)[0], ratio)))


def much_nearer(distance: NDArray[Any], ratio: float) -> NDArray[np.bool_]:
    """Which samples memorised_fraction counts, from the distances (n, 2) to their two nearest training rows."""
    return (distance[:, 0] < ratio * distance[:, 1]) | (distance[:, 0] == 0)


def memorisation_ratio(samples: ArrayLike, train: ArrayLike, *, k: int = 2, to: str = "kth") -> NDArray[Any]:
    """d1 / dk of every sample, or d1 / mean(d1 ... dk) with to="mean": near 0 for a copy, near 1 for anything else.

    samples (n, d), train (m, d) with m >= k >= 2; d1 <= ... <= dk are the distances to the nearest training rows.
    Returns (n,) in the points' dtype, exactly 0 for copies (of duplicated training rows too).
    Time n m d, memory O(n k + m). Raises ValueError for other shapes and names and unless 2 <= k <= m.
    Yoon et al., Diffusion probabilistic models generalize when they fail to memorize, 2023, sec. 3 (k = 2).
    """
    samples, train = as_points("memorisation_ratio", samples=samples, train=train)
    _at_least_two("memorisation_ratio", train)
    if to not in REFERENCES:
        raise ValueError(f"memorisation_ratio: to must be one of {', '.join(REFERENCES)}, got {to!r}")
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 2 <= k <= len(train):
        raise ValueError(f"memorisation_ratio: k must be an integer in 2..{len(train)}, the rows of train, got {k!r}")
    distance, _ = knn(samples, train, k=int(k))
    reference = distance[:, -1] if to == "kth" else distance.mean(axis=1)
    return np.divide(distance[:, 0], reference, out=np.zeros_like(reference), where=distance[:, 0] > 0)


def authenticity(samples: ArrayLike, train: ArrayLike) -> float:
    """Fraction of samples farther from their nearest training row than that row is from its own nearest.

    samples (n, d), train (m, d) with m >= 2. About 1/2 or more for a model that generalises, towards 0 for copies.
    fld's AuthPct is 100 times this, minus 50.
    Time (n m + m^2 / 2) d, memory O(n + m). Raises ValueError for other shapes and values that are not finite.
    Alaa et al., How faithful is your synthetic data?, ICML 2022, sec. 4.3.
    """
    samples, train = as_points("authenticity", samples=samples, train=train)
    _at_least_two("authenticity", train)
    distance, index = nearest(samples, train)
    return float(np.mean(knn(train, k=1)[0][index, 0] < distance))


def nearest_train_ratio(real: ArrayLike, fake: ArrayLike, train: ArrayLike, *, statistic: str = "median") -> float:
    """Median distance of fake to its nearest training row, divided by the same of held-out real rows.

    real (n, d): rows no model has seen, fake (m, d), train (l, d). 1 for a perfect model, 0 for one that copies at
    least half the time, above 1 for samples away from the data. statistic: "median" or "mean". inf if held-out rows
    themselves are copies of training rows (0 / 0 counts as 0: copies).
    Time (n + m) l d, memory O(n + m + l). Raises ValueError for other shapes and names and values that are not finite.
    Meehan et al., A non-parametric test to detect data-copying in generative models, AISTATS 2020, compare the same
    two distributions of distances by a rank test: see ct_score.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"nearest_train_ratio: statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
    real, fake, train = as_points("nearest_train_ratio", real=real, fake=fake, train=train)
    return ratio_of_distances(nearest(fake, train)[0], nearest(real, train)[0], statistic)


def ratio_of_distances(fake: NDArray[Any], real: NDArray[Any], statistic: str = "median") -> float:
    """nearest_train_ratio of the distances of fake and of real to train."""
    reduce = STATISTICS[statistic]
    above, below = float(reduce(fake.astype(np.float64))), float(reduce(real.astype(np.float64)))
    return above / below if below > 0 else (0.0 if above == 0 else float("inf"))


def _at_least_two(function: str, train: NDArray[Any]) -> None:
    if len(train) < 2:
        raise ValueError(f"{function}: train must have at least 2 rows, got shape {train.shape}")


# ---- C_T ----


def ct_score(
    real: ArrayLike,
    fake: ArrayLike,
    train: ArrayLike,
    *,
    cells: int = 3,
    components: int | None = 64,
    smallest: int = 20,
    random_state: Any = 0,
) -> float:
    """C_T: mean over cells of the z-score of U, how often fake is farther from train than held-out rows are.

    real (n, d): rows no model has seen, fake (m, d), train (l, d). In every cell U = #{(i, j): L(fake_i) > L(real_j)}
    + half the ties, L the distance to the nearest training row of the cell, z = (U - (n m / 2 - 1/2)) / sqrt(n m (n + m
    + 1) / 12) with the cell's n and m; C_T is the mean of z weighted by the cell's share of real, over cells with more
    than `smallest` rows of fake. Far below 0: samples stand nearer to train than unseen data does (copying); far above:
    underfitting. |C_T| < 2 or so is what chance does. Cells: k-means of train (the best of 10 starts, own
    implementation, seeded by random_state), after reducing d > components to the leading principal components of train
    (None: never). Settings and formula of the authors' code and of dgm-eval, which do not seed k-means.
    Time (n + m + l) l d + k-means, memory O((n + m + l) min(d, components)). Raises ValueError for other shapes, values
    that are not finite, a cell without rows of train or real, or no cell with enough of fake.
    Meehan et al., A non-parametric test to detect data-copying in generative models, AISTATS 2020.
    """
    real, fake, train = as_points("ct_score", real=real, fake=fake, train=train)
    cells = positive_integer("ct_score", "cells", cells, len(train), ", the rows of train")
    if isinstance(smallest, bool) or not isinstance(smallest, (int, np.integer)) or smallest < 0:
        raise ValueError(f"ct_score: smallest must be an integer of at least 0, got {smallest!r}")
    if components is not None and real.shape[1] > positive_integer("ct_score", "components", components):
        real, fake, train = _principal(components, train, real, fake, train)
    centres = _kmeans(train, cells, np.random.default_rng(random_state)).centres
    in_real, in_fake, in_train = (nearest(x, centres)[1] for x in (real, fake, train))
    total = share = 0.0
    for cell in range(cells):
        r, f, t = real[in_real == cell], fake[in_fake == cell], train[in_train == cell]
        if not len(r) or not len(t):
            empty = "real" if not len(r) else "train"
            raise ValueError(f"ct_score: cell {cell} of {cells} holds no row of {empty}; use fewer cells")
        if len(f) > smallest:
            z = _rank_z(nearest(f, t)[0], nearest(r, t)[0])
            total, share = total + z * len(r) / len(real), share + len(r) / len(real)
    if not share:
        raise ValueError(f"ct_score: no cell holds more than {smallest} rows of fake, of {len(fake)} (see smallest)")
    return total / share


def _rank_z(a: NDArray[Any], b: NDArray[Any]) -> float:
    """z-score of U = #{a > b} + #{a = b} / 2, with the continuity correction of the authors' code."""
    n, m, b = len(a), len(b), np.sort(b)
    u = 0.5 * float(np.searchsorted(b, a, "left").sum() + np.searchsorted(b, a, "right").sum())
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))


def _principal(count: int, of: NDArray[Any], *points: NDArray[Any]) -> list[NDArray[Any]]:
    """Every array's coordinates along the `count` leading principal components of one."""
    mean = of.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((of.shape[1], of.shape[1]))
    for start in range(0, len(of), 1024):
        some = of[start : start + 1024] - mean
        covariance += some.T @ some
    axes = np.linalg.eigh(covariance)[1][:, : -count - 1 : -1]
    return [
        np.concatenate([(x[s : s + 1024] - mean) @ axes for s in range(0, len(x), 1024)]).astype(x.dtype)
        for x in points
    ]


class _Clusters(NamedTuple):
    centres: NDArray[Any]
    inertia: float  # sum of squared distances to the nearest centre


def _kmeans(x: NDArray[Any], k: int, rng: np.random.Generator, starts: int = 10) -> _Clusters:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007), the best of some starts."""
    return min((_lloyd(x, _seeds(x, k, rng)) for _ in range(starts)), key=lambda found: found.inertia)


def _seeds(x: NDArray[Any], k: int, rng: np.random.Generator) -> NDArray[Any]:
    chosen = [int(rng.integers(len(x)))]
    square = np.full(len(x), np.inf)
    while len(chosen) < k:
        square = np.minimum(square, nearest(x, x[chosen[-1:]])[0].astype(np.float64) ** 2)
        total = square.sum()
        chosen.append(int(rng.choice(len(x), p=square / total) if total > 0 else rng.integers(len(x))))
    return x[chosen]


def _lloyd(x: NDArray[Any], centres: NDArray[Any]) -> _Clusters:
    enough = SHIFT * float(x.var(axis=0, dtype=np.float64).mean())
    before, shift = np.full(len(x), -1), np.inf
    for _ in range(MAX_ROUNDS):
        distance, label = nearest(x, centres)
        if shift <= enough or np.array_equal(label, before):
            break
        means = []
        for i, centre in enumerate(centres):
            members = x[label == i]
            means.append(members.mean(axis=0, dtype=np.float64) if len(members) else centre)
        moved = np.stack(means).astype(x.dtype)
        shift, before, centres = float(((moved - centres) ** 2).sum()), label, moved
    return _Clusters(centres, float((distance.astype(np.float64) ** 2).sum()))


# ---- MiFID ----


def mifid(
    real: ArrayLike,
    fake: ArrayLike,
    train: ArrayLike | None = None,
    *,
    threshold: float = 0.1,
    average: str = "fake",
) -> float:
    """Frechet distance divided by the memorisation distance m = mean_i min_j (1 - |cos(fake_i, train_j)|).

    real (n, d), fake (m, d): features; train (l, d) or None for real. m counts as 1 where it is `threshold` or more, so
    only models that copy are punished; with a Frechet distance below 1e-8 the result is 0. average="fake" takes the
    mean over fake, as defined; "real" the mean over train of the minimum over fake, as torchmetrics does. Rows of
    zeros, which have no direction, are left out (torchmetrics leaves out rows whose SUM is 0).
    Time m l d + frechet_distance's, memory O(m + l) rows of unit length. Raises ValueError for other shapes and names,
    values that are not finite, samples of zeros only.
    Bai et al., On training sample memorization: lessons from benchmarking generative modeling with a large-scale
    competition, KDD 2021.
    """
    if average not in AVERAGES:
        raise ValueError(f"mifid: average must be one of {', '.join(AVERAGES)}, got {average!r}")
    if not 0 < threshold <= 1:
        raise ValueError(f"mifid: threshold must be in (0, 1], got {threshold!r}")
    given: dict[str, Any] = dict(real=real, fake=fake) if train is None else dict(real=real, fake=fake, train=train)
    real, fake, *rest = as_points("mifid", rows=2, **given)
    distance = frechet_distance(real, fake)
    if distance < 1e-8:
        return 0.0
    ones, others = _directions("mifid", "fake", fake), _directions("mifid", "train", rest[0] if rest else real)
    memorised = _cosine_distance(*((ones, others) if average == "fake" else (others, ones)))
    return distance / (memorised + 1e-14 if memorised < threshold else 1.0)


def _directions(function: str, name: str, x: NDArray[Any]) -> NDArray[Any]:
    """Rows scaled to unit length, without rows of zeros."""
    there = x.any(axis=1)
    if not there.any():
        raise ValueError(f"{function}: {name} holds only rows of zeros, which have no direction")
    return unit_rows(function, name, x if there.all() else x[there])


def _cosine_distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    """mean_i min_j (1 - |cos|) of unit rows: |x -+ y|^2 = 2 (1 -+ cos), which is exact near 0."""
    distance = np.minimum(nearest(x, y)[0], nearest(x, -y)[0]).astype(np.float64)
    return float((distance**2).mean() / 2)
