"""Maximum mean discrepancies between two samples: mmd2 (Gaussian kernel) and kid (polynomial kernel on features).

Both are three kernel sums. Every kernel value enters with a constant near the mean subtracted: that constant cancels
in a discrepancy, while without it the sums agree to six digits and their difference has none left. Nothing here makes
an n x m matrix, and the two samples need not have equally many rows.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.pairwise import kernel_sum
from ._points import as_points, positive_integer

ESTIMATORS = ("unbiased", "biased")


def _mmd2(real: NDArray, fake: NDArray, unbiased: bool, center: float, **kernel: Any) -> float:
    n, m = len(real), len(fake)

    def within(x: NDArray) -> float:
        pairs = len(x) * (len(x) - 1) if unbiased else len(x) ** 2
        return float(kernel_sum(x, center=center, exclude_diagonal=unbiased, **kernel)) / pairs

    return within(real) + within(fake) - 2 * float(kernel_sum(real, fake, center=center, **kernel)) / (n * m)


def median_distance(real: ArrayLike, fake: ArrayLike, *, size: int = 1000, random_state: Any = 0) -> float:
    """Median Euclidean distance between different rows of both samples together: the usual bandwidth.

    real (n, d), fake (m, d). Exact up to `size` rows in all, above that the median over `size` rows drawn without
    replacement. random_state: seed or numpy Generator. Time size^2 d, memory size^2.
    """
    real, fake = as_points("median_distance", real=real, fake=fake)
    size = positive_integer("median_distance", "size", size)
    n, m = len(real), len(fake)
    take = np.arange(n + m)
    if n + m > size:
        take = np.sort(np.random.default_rng(random_state).choice(n + m, size, replace=False))
    x = np.concatenate([real[take[take < n]], fake[take[take >= n] - n]]).astype(np.float64)
    x -= x.mean(axis=0)
    norms = np.einsum("nd,nd->n", x, x)
    square = norms[:, None] + norms - 2 * (x @ x.T)
    return float(np.sqrt(max(np.median(square[np.triu_indices(len(x), 1)]), 0.0)))


def mmd2(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    bandwidth: float | str = "median",
    estimator: str = "unbiased",
    random_state: Any = 0,
) -> float:
    """Squared maximum mean discrepancy E k(x, x') + E k(y, y') - 2 E k(x, y), k = exp(-|x - y|^2 / (2 bandwidth^2)).

    real (n, d), fake (m, d): samples. bandwidth in their unit, or "median": the median distance between rows of both
    (of 1000 rows drawn with random_state if there are more). estimator: "unbiased" (pairs i != j only; can be
    negative) or "biased" (all pairs; >= 0). Returns a float.
    Time (n^2/2 + m^2/2 + n m) d, memory O(n + m). Raises ValueError for other shapes, values that are not finite, one
    row with "unbiased", and "median" of points that mostly coincide.
    Gretton et al., A kernel two-sample test, JMLR 2012, eq. 3 and 5.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"mmd2: estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    unbiased = estimator == "unbiased"
    real, fake = as_points("mmd2", rows=2 if unbiased else 1, real=real, fake=fake)
    if isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(f"mmd2: bandwidth must be a positive number or 'median', got {bandwidth!r}")
        bandwidth = median_distance(real, fake, random_state=random_state)
        if bandwidth == 0:
            raise ValueError("mmd2: the median distance is 0 because most rows coincide; give bandwidth as a number")
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"mmd2: bandwidth must be a positive number or 'median', got {bandwidth!r}")
    some = real[:64], fake[:64]
    center = float(kernel_sum(*some, bandwidth=bandwidth)) / (len(some[0]) * len(some[1]))
    return _mmd2(real, fake, unbiased, center, bandwidth=float(bandwidth))


@overload
def kid(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    subsets: None = None,
    subset_size: int = ...,
    degree: int = ...,
    gamma: float | None = ...,
    coef0: float = ...,
    random_state: Any = ...,
) -> float: ...
@overload
def kid(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    subsets: int,
    subset_size: int = ...,
    degree: int = ...,
    gamma: float | None = ...,
    coef0: float = ...,
    random_state: Any = ...,
) -> tuple[float, float]: ...
def kid(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    random_state: Any = None,
) -> float | tuple[float, float]:
    """Kernel inception distance: the unbiased squared MMD of features under k = (gamma <x, y> + coef0)^degree.

    real (n, d), fake (m, d): features, from whatever network (nothing is downloaded here). gamma=None means 1/d.
    subsets=None (default) uses all pairs of both samples once and returns a float: as much work as 100 subsets of
    1000 at 10,000 rows, and of lower variance. subsets=s returns (mean, standard deviation) over s subsets of
    subset_size rows drawn without replacement, the protocol of published figures; random_state (a seed or a numpy
    Generator) then fixes the draw.
    Time (n^2/2 + m^2/2 + n m) d, memory O(n + m); with subsets, subset_size in place of n and m, s times. From float32
    features the result agrees with float64 to about 1e-8 of the spread of kernel values. Raises ValueError for other
    shapes, fewer than 2 rows, values that are not finite, subset_size above n or m.
    Binkowski et al., Demystifying MMD GANs, ICLR 2018, sec. 4.
    """
    real, fake = as_points("kid", rows=2, real=real, fake=fake)
    degree = positive_integer("kid", "degree", degree)
    gamma = 1 / real.shape[1] if gamma is None else float(gamma)
    kernel = dict(kernel="polynomial", degree=degree, gamma=gamma, coef0=float(coef0))
    mean = (real.mean(axis=0, dtype=np.float64) + fake.mean(axis=0, dtype=np.float64)) / 2
    center = float((gamma * (mean @ mean) + coef0) ** degree)
    if subsets is None:
        return _mmd2(real, fake, True, center, **kernel)
    subsets = positive_integer("kid", "subsets", subsets)
    subset_size = positive_integer("kid", "subset_size", subset_size, min(len(real), len(fake)), ", the rows there are")
    if subset_size < 2:
        raise ValueError("kid: subset_size must be at least 2, got 1")
    rng = np.random.default_rng(random_state)
    values = []
    for _ in range(subsets):
        some_real = real[rng.choice(len(real), subset_size, replace=False)]
        some_fake = fake[rng.choice(len(fake), subset_size, replace=False)]
        values.append(_mmd2(some_real, some_fake, True, center, **kernel))
    return float(np.mean(values)), float(np.std(values))
