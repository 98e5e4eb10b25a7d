"""Maximum mean discrepancies between two samples: mmd2 (any kernel), kid, cmmd and the energy distance.

All are three kernel sums, over pairs within each sample and over pairs of both. Every kernel value enters with a
constant near the mean subtracted: that constant cancels in a discrepancy, while without it the sums agree to six digits
and their difference has none left. Nothing here makes an n x m matrix, and the samples need not have equally many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import pairwise
from ..ops._kernel_function import KernelFunction, check_kernel
from ..ops.pairwise import kernel_row_sums, kernel_sum
from ..pairwise.kernels import KERNELS as ALL_KERNELS
from ..pairwise.kernels import WITHOUT_BANDWIDTH, kernel_attributes
from ._points import as_points, positive_integer, unit_rows

ESTIMATORS = ("unbiased", "biased", "u")
PRECISIONS = ("float32", "exact")
KERNELS = tuple(name for name in ALL_KERNELS if name != "cosine")  # which needs rows of unit length: give those to dot
FEW = 64  # rows of either sample that give a typical kernel value
FEW_PAIRS = 2**22  # kernel values that kid takes in float64 in any case
ROWS = 2048  # rows whose float64 copy is held at once


class Score(NamedTuple):
    """A value with how far it may be off: the mean and standard deviation of repetitions, or a standard error."""

    mean: float
    std: float


def one_of(function: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless value is among the choices."""
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(choices)}, got {value!r}")


def median_distance(real: ArrayLike, fake: ArrayLike, *, size: int | None = 1000, random_state: Any = 0) -> float:
    """Median Euclidean distance between different rows of both samples together: the usual bandwidth.

    real (n, d), fake (m, d). Exact up to `size` rows in all, above that the median over `size` rows drawn without
    replacement. random_state: seed or numpy Generator. Time size^2 d, memory size^2. size=None takes all rows, as
    generant.pairwise.median_distance does: time about 10 (n + m)^2 d, memory O(n + m).
    """
    real, fake = as_points("median_distance", real=real, fake=fake)
    if size is None:
        return pairwise.median_distance(real, fake)
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


def kernel_of(
    function: str, real: NDArray[Any], fake: NDArray[Any], random_state: Any, *, kernel: str, bandwidth: Any,
    degree: int, gamma: float | None, coef0: float, alpha: float,
) -> dict[str, Any]:  # fmt: skip
    """The kernel attributes an op takes: checked, and with a number for bandwidth="median"."""
    one_of(function, "kernel", kernel, KERNELS)
    if kernel in WITHOUT_BANDWIDTH or (kernel == "rbf" and gamma is not None and bandwidth == "median"):
        bandwidth = None
    elif isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(f"{function}: bandwidth must be positive numbers or 'median', got {bandwidth!r}")
        bandwidth = median_distance(real, fake, random_state=random_state)
        if bandwidth == 0:
            raise ValueError(f"{function}: the median distance is 0, most rows coincide; give bandwidth as a number")
    degree = positive_integer(function, "degree", degree)
    attrs = kernel_attributes(function, kernel, bandwidth, degree, gamma, float(coef0), float(alpha))
    check_kernel(function, **attrs)
    return attrs


def refuse_overflow(function: str, value: Any) -> Any:
    """What was given, a value or several, unless kernel values left the range of the arithmetic: inf and NaN."""
    if not np.isfinite(value).all():
        advice = "rescale them (or try precision='exact')"
        raise ValueError(f"{function}: kernel values of these samples are not finite; {advice}")
    return value


def _typical(function: str, real: NDArray[Any], fake: NDArray[Any], kernel: dict[str, Any]) -> float:
    """The mean kernel value of a few pairs."""
    some = [np.ascontiguousarray(x[:: -(-len(x) // FEW)]) for x in (real, fake)]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(kernel_sum(*some, **kernel)) / (len(some[0]) * len(some[1]))
    return float(refuse_overflow(function, mean))


def _paired_sum(x: NDArray[Any], y: NDArray[Any], center: float, kernel: dict[str, Any]) -> float:
    """sum_i k(x_i, y_i) - center, in float64."""
    phi = KernelFunction(x.shape[1], **kernel)
    total = 0.0
    for i in range(0, len(x), ROWS):
        a, b = x[i : i + ROWS].astype(np.float64), y[i : i + ROWS].astype(np.float64)
        total += float((phi(phi.argument(a, b)) - center).sum())
    return total


def _mmd2(real: NDArray[Any], fake: NDArray[Any], estimator: str, center: float, kernel: dict[str, Any]) -> float:
    n, m, unbiased = len(real), len(fake), estimator != "biased"

    def within(x: NDArray[Any]) -> float:
        pairs = len(x) * (len(x) - 1) if unbiased else len(x) ** 2
        return float(kernel_sum(x, center=center, exclude_diagonal=unbiased, **kernel)) / pairs

    with np.errstate(over="ignore", invalid="ignore"):
        across, pairs = float(kernel_sum(real, fake, center=center, **kernel)), n * m
        if estimator == "u":
            across, pairs = across - _paired_sum(real, fake, center, kernel), n * (n - 1)
        value = within(real) + within(fake) - 2 * across / pairs
    return value if unbiased else max(value, 0.0)


def _mmd2_and_error(real: NDArray[Any], fake: NDArray[Any], center: float, kernel: dict[str, Any]) -> Score:
    """The unbiased estimate and its standard error, from row sums and sums of squares.

    With Hoeffding's projections f(x) = E k(x, x'), g(x) = E k(x, y) the variance is Var(f - g) 4 / n + the same of y,
    and terms of second order: 2 / (n (n - 1)) Var of what k(x, x') has beyond f(x) + f(x'), the same of y, and
    4 / (n m) Var of what k(x, y) has beyond both. Every product of expectations is estimated without bias, over tuples
    of different rows; each of the five variances that comes out negative counts as 0.
    """

    def within(x: NDArray[Any]) -> tuple[NDArray[np.float64], np.float64, float, float, float]:
        n = len(x)
        rows, _, squares = kernel_row_sums(x, exclude_diagonal=True, center=center, **kernel)
        total, shared = rows.sum(), rows @ rows
        mean_squared = (total**2 - 4 * shared + 2 * squares) / (n * (n - 1) * (n - 2) * (n - 3))
        first = (shared - squares) / (n * (n - 1) * (n - 2)) - mean_squared
        second = squares / (n * (n - 1)) - mean_squared - 2 * first
        return rows, total, float(total) / (n * (n - 1)), float(first), float(second)

    def with_across(n: int, m: int, rows: NDArray, total: Any, first: float, across: NDArray, own: float) -> float:
        """Var(f - g) of one side."""
        shared = float(rows @ across)
        product = (total * across.sum() - 2 * shared) / (n * (n - 1) * (n - 2) * m)
        return max(first + own - 2 * (shared / (n * (n - 1) * m) - product), 0.0)

    n, m = len(real), len(fake)
    if min(n, m) < 4:
        return Score(_mmd2(real, fake, "unbiased", center, kernel), float("nan"))
    rx, sx, xx, x1, x2 = within(real)
    ry, sy, yy, y1, y2 = within(fake)
    cx, cy, squares = kernel_row_sums(real, fake, center=center, **kernel)
    s, cx2, cy2 = cx.sum(), float(cx @ cx), float(cy @ cy)
    mean_squared = (s**2 - cx2 - cy2 + squares) / (n * (n - 1) * m * (m - 1))
    cross_x = (cx2 - squares) / (n * m * (m - 1)) - mean_squared
    cross_y = (cy2 - squares) / (n * m * (n - 1)) - mean_squared
    cross_2 = squares / (n * m) - mean_squared - cross_x - cross_y
    variance = (
        4 / n * with_across(n, m, rx, sx, x1, cx, cross_x)
        + 4 / m * with_across(m, n, ry, sy, y1, cy, cross_y)
        + 2 / (n * (n - 1)) * max(x2, 0.0)
        + 2 / (m * (m - 1)) * max(y2, 0.0)
        + 4 / (n * m) * max(float(cross_2), 0.0)
    )
    return Score(float(xx + yy - 2 * s / (n * m)), float(np.sqrt(variance)))


def mmd2(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    kernel: str = "rbf",
    bandwidth: float | str | Sequence[float] = "median",
    estimator: str = "unbiased",
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    alpha: float = 1.0,
    precision: str = "float32",
    random_state: Any = 0,
) -> float:
    """Squared maximum mean discrepancy E k(x, x') + E k(y, y') - 2 E k(x, y).

    real (n, d), fake (m, d): samples. kernel: rbf exp(-|x - y|^2 / (2 bandwidth^2)), laplace, laplacian, polynomial,
    energy, rational_quadratic, inverse_multiquadric, matern12, matern32, matern52, dot, exp_dot; formulas and degree,
    gamma, coef0, alpha as in generant.pairwise.kernel_sum. bandwidth in the unit of the samples; several: the kernels'
    sum; "median": the median distance between rows of both (of 1000 rows drawn with random_state if there are more).
    estimator: "unbiased" leaves out pairs of a row with itself and can be negative; "biased" takes all pairs, >= 0;
    "u" leaves out pairs of equal index across the samples too (n = m), the U-statistic of the pairs (x_i, y_i).
    precision: "exact" computes in float64; otherwise in the samples' own type. Returns a float.
    Time (n^2/2 + m^2/2 + n m) d, memory O(n + m). From float32 samples of 500 rows or more the error is below 4e-9
    of the mean kernel value (2e-8 where d = 512 and bandwidths are far below the median distance), far below what the
    samples determine; exact, 1e-14 of it. Raises ValueError for other shapes,
    values that are not finite, one row unless "biased", n != m with "u", parameters no kernel has, and "median" of
    points that mostly coincide.
    Gretton et al., A kernel two-sample test, JMLR 2012, eq. 3 (unbiased), 4 (u) and 5 (biased).
    """
    one_of("mmd2", "estimator", estimator, ESTIMATORS)
    one_of("mmd2", "precision", precision, PRECISIONS)
    real, fake = as_points("mmd2", rows=1 if estimator == "biased" else 2, real=real, fake=fake)
    if estimator == "u" and len(real) != len(fake):
        raise ValueError(f"mmd2: estimator 'u' needs equally many rows, got {len(real)} and {len(fake)}")
    attrs = kernel_of(
        "mmd2", real, fake, random_state,
        kernel=kernel, bandwidth=bandwidth, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha,
    )  # fmt: skip
    if precision == "exact":
        real, fake = real.astype(np.float64, copy=False), fake.astype(np.float64, copy=False)
    return refuse_overflow("mmd2", _mmd2(real, fake, estimator, _typical("mmd2", real, fake, attrs), attrs))


def kid(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    subsets: int | None = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    precision: str = "float32",
    random_state: Any = 2020,
) -> Score:
    """Kernel inception distance: the unbiased squared MMD of features under k = (gamma <x, y> + coef0)^degree.

    real (n, d), fake (m, d): features, from whatever network (nothing is downloaded here). gamma=None means 1/d.
    Returns (mean, std). Published figures are the mean over 100 subsets of 1000 rows, drawn without replacement, and
    their standard deviation: the default. An integer random_state seeds the stream of draws that torch-fidelity makes,
    fake then real; with its default 2020, its figures come out. A numpy Generator or RandomState is used as it is.
    subsets=None takes all pairs of both samples once, and the std is the standard error of that value: as much work
    as 100 subsets of 1000 at 10,000 rows, of much lower variance, and no draw to report. (The std over subsets is that
    of one subset, not of their mean.) The standard error is nan below 4 rows.
    precision: "exact" forms products in float64, relative error 1e-7 where the value is 1e-6. Otherwise they are of the
    features' type if there are more than 4 million pairs, where exactness would take time: from float32 features the
    error is then below 2e-10 of the mean kernel value by the default protocol, below 1e-9 with subsets=None.
    Time subsets subset_size^2 2 d, or (n^2/2 + m^2/2 + n m) d; memory O(n + m), and a float64 copy of the rows in use
    if exact. Raises ValueError for other shapes, fewer than 2 rows, values that are not finite, subset_size above n or
    m, degree < 1.
    Binkowski et al., Demystifying MMD GANs, ICLR 2018, sec. 4; Sutherland et al., Generative models and model criticism
    via optimized MMD, ICLR 2017, eq. 5, here for any two sizes.
    """
    real, fake = as_points("kid", rows=2, real=real, fake=fake)
    one_of("kid", "precision", precision, PRECISIONS)
    kernel = kernel_of(
        "kid", real, fake, None, kernel="polynomial", bandwidth=None, degree=degree,
        gamma=1 / real.shape[1] if gamma is None else float(gamma), coef0=coef0, alpha=1.0,
    )  # fmt: skip
    mean = (real.mean(axis=0, dtype=np.float64) + fake.mean(axis=0, dtype=np.float64)) / 2
    with np.errstate(over="ignore"):
        center = refuse_overflow("kid", float(np.float64(kernel["gamma"] * (mean @ mean) + coef0) ** degree))

    def dtype_for(pairs: float) -> Any:
        return np.float64 if precision == "exact" or pairs <= FEW_PAIRS else real.dtype

    if subsets is None:
        dtype = dtype_for((len(real) + len(fake)) ** 2 / 2)
        with np.errstate(over="ignore", invalid="ignore"):
            found = _mmd2_and_error(real.astype(dtype, copy=False), fake.astype(dtype, copy=False), center, kernel)
        return found._replace(mean=refuse_overflow("kid", found.mean))
    subsets, subset_size = _checked_subsets(subsets, subset_size, min(len(real), len(fake)))
    dtype = dtype_for(subsets * 2.0 * subset_size**2)
    drawing = hasattr(random_state, "choice")
    rng = random_state if drawing else np.random.RandomState(random_state)  # the stream is part of the protocol
    values = []
    for _ in range(subsets):
        some_fake = fake[rng.choice(len(fake), subset_size, replace=False)].astype(dtype, copy=False)
        some_real = real[rng.choice(len(real), subset_size, replace=False)].astype(dtype, copy=False)
        values.append(_mmd2(some_real, some_fake, "unbiased", center, kernel))
    return Score(float(np.mean(refuse_overflow("kid", values))), float(np.std(values)))


def _checked_subsets(subsets: Any, subset_size: Any, most: int) -> tuple[int, int]:
    subsets = positive_integer("kid", "subsets", subsets)
    if isinstance(subset_size, (int, np.integer)) and subset_size > most:
        raise ValueError(
            f"kid: subset_size must be at most {most}, the rows there are, got {subset_size}; subsets=None needs none"
        )
    subset_size = positive_integer("kid", "subset_size", subset_size)
    if subset_size < 2:
        raise ValueError("kid: subset_size must be at least 2, got 1")
    return subsets, subset_size


def cmmd(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    normalize: bool = False,
    bandwidth: float = 10.0,
    scale: float = 1000.0,
    precision: str = "exact",
) -> float:
    """CMMD: 1000 times the squared MMD of CLIP embeddings, k = exp(-|x - y|^2 / (2 bandwidth^2)).

    real (n, d), fake (m, d): embeddings of unit length; normalize=True divides every row by its length first. Returns a
    float, >= 0. All pairs count: this is the biased estimator of the authors' program, though the paper calls it
    unbiased. Sizes may differ.
    precision: "exact" (default) computes in float64: between unit vectors k lies in [0.98, 1], and the figure is made
    of the last digits; "float32" takes the embeddings' own type, about twice as fast.
    Time (n^2/2 + m^2/2 + n m) d, memory O(n + m) and a float64 copy of the embeddings if exact. Raises ValueError for
    other shapes, values that are not finite, rows of length 0 with normalize.
    Jayasumana et al., Rethinking FID, CVPR 2024, arXiv 2401.09603, eq. 5.
    """
    one_of("cmmd", "precision", precision, PRECISIONS)
    x, y = as_points("cmmd", real=real, fake=fake)
    if precision == "exact":
        x, y = x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)
    if normalize:
        x, y = unit_rows("cmmd", "real", x), unit_rows("cmmd", "fake", y)
    kernel = kernel_of(
        "cmmd", x, y, None, kernel="rbf", bandwidth=bandwidth, degree=3, gamma=None, coef0=1.0, alpha=1.0
    )
    return scale * _mmd2(x, y, "biased", _typical("cmmd", x, y, kernel), kernel)


def energy_distance(
    real: ArrayLike, fake: ArrayLike, *, estimator: str = "biased", squared: bool = True, precision: str = "float32"
) -> float:
    """Energy distance D^2 = 2 E|x - y| - E|x - x'| - E|y - y'|: the squared MMD of the kernel -|x - y|.

    real (n, d), fake (m, d). Euclidean distances. estimator "biased" is the V-statistic (all pairs, >= 0, the energy of
    the two empirical distributions), "unbiased" the U-statistic (no row with itself; can be negative), "u" leaves out
    pairs of equal index across the samples too. squared=False returns the root D, of "biased" only: for d = 1 that is
    scipy.stats.energy_distance. (geomloss's "energy" is half of D^2.) precision as in mmd2.
    Time (n^2/2 + m^2/2 + n m) d, memory O(n + m); for d = 1 by sorting, O((n + m) log(n + m)) and float64.
    Raises ValueError for other shapes, values that are not finite, one row unless "biased", n != m with "u".
    Szekely and Rizzo, Energy statistics, J. Stat. Plan. Inference 2013, eq. 2.5 and 6.1.
    """
    one_of("energy_distance", "estimator", estimator, ESTIMATORS)
    one_of("energy_distance", "precision", precision, PRECISIONS)
    if not squared and estimator != "biased":
        raise ValueError(f"energy_distance: squared=False needs estimator 'biased', got {estimator!r}: no root below 0")
    real, fake = as_points("energy_distance", rows=1 if estimator == "biased" else 2, real=real, fake=fake)
    if estimator == "u" and len(real) != len(fake):
        raise ValueError(f"energy_distance: estimator 'u' needs equally many rows, got {len(real)} and {len(fake)}")
    if real.shape[1] == 1:
        value = _energy_on_a_line(real[:, 0].astype(np.float64), fake[:, 0].astype(np.float64), estimator)
    else:
        if precision == "exact":
            real, fake = real.astype(np.float64, copy=False), fake.astype(np.float64, copy=False)
        kernel: dict[str, Any] = dict(kernel="energy", bandwidth=(1.0,), degree=3, gamma=None, coef0=1.0, alpha=1.0)
        center = _typical("energy_distance", real, fake, kernel)
        value = refuse_overflow("energy_distance", _mmd2(real, fake, estimator, center, kernel))
    return value if squared else float(np.sqrt(value))


def _energy_on_a_line(x: NDArray[np.float64], y: NDArray[np.float64], estimator: str) -> float:
    """2 integral (F - G)^2 over the line, F and G the empirical distribution functions; then without the diagonals."""
    pairs = (x, y)
    x, y = np.sort(x), np.sort(y)
    both = np.sort(np.concatenate([x, y]))
    apart = np.searchsorted(x, both[:-1], "right") / len(x) - np.searchsorted(y, both[:-1], "right") / len(y)
    value = 2 * float((apart**2) @ np.diff(both))
    if estimator == "biased":
        return value

    def mean_distance(x: NDArray[np.float64]) -> float:
        """Mean |x_i - x_j| over all pairs, i = j included."""
        n = len(x)
        return float((2 * np.arange(n) - (n - 1)) @ (x - x[n // 2])) * 2 / n**2

    n, m, own, other = len(x), len(y), mean_distance(x), mean_distance(y)
    value -= own / (n - 1) + other / (m - 1)
    if estimator == "u":  # the mean across over n (n - 1) pairs in place of n^2
        across = (value + own * n / (n - 1) + other * m / (m - 1)) / 2
        value += 2 * (across - float(np.abs(pairs[0] - pairs[1]).mean())) / (n - 1)
    return value
