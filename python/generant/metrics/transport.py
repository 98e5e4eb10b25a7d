"""Distances by optimal transport: sliced Wasserstein, the Monge inception distance made of it, Sinkhorn divergence.

Along a line optimal transport is sorting, exactly, for samples of any two sizes: their quantile functions are step
functions and the integral of the difference is a sum over the steps of both. Neither an n x m matrix nor a projected
copy of the data is made: projections are taken a few at a time, in float64.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import pairwise
from ..ops.matmul import matmul
from ._points import as_points, positive_integer

PROJECTED = 1 << 21  # projected values of one sample that are sorted together, but no more than
AT_ONCE = 256  # projections
ROWS = 1024  # rows that are converted to float64 together


def _directions(d: int, count: int, random_state: Any) -> NDArray[np.float64]:
    """(d, count): columns uniform on the unit sphere, the same first ones whatever the count."""
    z = np.random.default_rng(random_state).standard_normal((count, d)).T
    return z / np.linalg.norm(z, axis=0)


def _project(x: NDArray[Any], centre: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(directions, n): <x_i - centre, u>, every row sorted."""
    out = np.empty((directions.shape[1], len(x)))
    for start in range(0, len(x), ROWS):
        out[:, start : start + ROWS] = matmul(x[start : start + ROWS] - centre, directions).T
    out.sort(axis=1)
    return out


def _steps(n: int, m: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Where the quantile functions of n and of m points are constant: (index in n, index in m, width of the step)."""
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m), so exact
    begins = np.concatenate([[0], ends[:-1]])
    return begins // m, begins // n, (ends - begins) / (n * m)


def _sliced(real: NDArray[Any], fake: NDArray[Any], directions: NDArray[np.float64], p: float) -> NDArray[np.float64]:
    """W_p^p between the projections on every direction."""
    centre = (real.mean(axis=0, dtype=np.float64) + fake.mean(axis=0, dtype=np.float64)) / 2
    same = len(real) == len(fake)
    if not same:
        i, j, width = _steps(len(real), len(fake))
    out, count = [], min(AT_ONCE, max(1, PROJECTED // max(len(real), len(fake))))
    for start in range(0, directions.shape[1], count):
        some = np.ascontiguousarray(directions[:, start : start + count])
        x, y = _project(real, centre, some), _project(fake, centre, some)
        gap = np.abs(x - y if same else x[:, i] - y[:, j])
        if p != 1:
            gap **= p
        out.append(gap.mean(axis=1) if same else gap @ width)
    return np.concatenate(out)


def sliced_wasserstein(
    real: ArrayLike, fake: ArrayLike, *, p: float = 2.0, n_projections: int = 1000, random_state: Any = 0
) -> float:
    """Sliced Wasserstein distance (mean over unit vectors u of W_p(<real, u>, <fake, u>)^p)^(1/p), in the data's unit.

    real (n, d), fake (m, d): samples, n and m need not agree. p >= 1. n_projections directions are drawn uniformly on
    the sphere with random_state (a seed or a numpy Generator); for d = 1 the one direction there is is used and the
    result is the Wasserstein distance itself. Exact for the directions drawn; their number alone leaves a relative
    error of about 1 / sqrt(2 n_projections).
    Time n_projections (n + m) (d + log(n + m)), memory O(n + m): up to 256 projections are held at once. Raises
    ValueError for other shapes, values that are not finite, p < 1.
    Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015, sec. 3.
    """
    real, fake = as_points("sliced_wasserstein", real=real, fake=fake)
    n_projections = positive_integer("sliced_wasserstein", "n_projections", n_projections)
    if isinstance(p, bool) or not isinstance(p, (int, float, np.number)) or not 1 <= p < math.inf:
        raise ValueError(f"sliced_wasserstein: p must be a number of at least 1, got {p!r}")
    d = real.shape[1]
    directions = np.ones((1, 1)) if d == 1 else _directions(d, n_projections, random_state)
    return float(_sliced(real, fake, directions, p).mean() ** (1 / p))


def mind(real: ArrayLike, fake: ArrayLike, *, n_projections: int = 1000, random_state: Any = 0) -> float:
    """Monge inception distance 3 d times the mean over unit vectors u of W_2(<real, u>, <fake, u>)^2.

    real (n, d), fake (m, d): features. The factor 3 d makes a common shift by s cost 3 |s|^2. Directions as in
    sliced_wasserstein. Samples of different sizes are compared through their quantile functions, which uses every row;
    torch-fidelity, whose formula this is at n = m, drops rows of the larger sample at random, and draws other
    directions, so figures agree to the error of the directions, about 1 / sqrt(n_projections) relative.
    Time n_projections (n + m) (d + log(n + m)), memory O(n + m): up to 256 projections are held at once. Raises
    ValueError for other shapes and for values that are not finite.
    Berthet et al., MIND: Monge inception distance for generative models evaluation, 2026, sec. 2.
    """
    real, fake = as_points("mind", real=real, fake=fake)
    n_projections = positive_integer("mind", "n_projections", n_projections)
    d = real.shape[1]
    directions = np.ones((1, 1)) if d == 1 else _directions(d, n_projections, random_state)
    return float(3 * d * _sliced(real, fake, directions, 2).mean())


def sinkhorn_divergence(
    real: ArrayLike, fake: ArrayLike, *, reg: float | None = None, tol: float = 1e-3, max_iter: int = 1000
) -> float:
    """Debiased entropic transport cost S = T(real, fake) - T(real, real) / 2 - T(fake, fake) / 2, in squared units.

    T(x, y) = min over couplings P of <C, P> + reg KL(P | uniform), C = |x - y|^2. real (n, d), fake (m, d). 0 for equal
    samples and positive otherwise, up to what tol leaves; near the squared Wasserstein distance for small reg, and near
    |difference of means|^2 for large. Two samples of one distribution are some way apart, more in more dimensions and
    at smaller reg: compare values of equal n, m and reg. reg: in the unit of C; None is 1/20 of the mean of C over all
    pairs, so that the result scales with the data. geomloss's "sinkhorn" with p = 2 is half of this at reg = 2 blur^2.
    Iterates until the plans' marginals are met to tol (L1, of mass 1), at most max_iter times, and warns if that was
    not enough; generant.pairwise.sinkhorn also returns potentials and weighs points.
    Time iterations (n^2 + m^2 + n m) d, memory O(n + m). Raises ValueError for other shapes, values that are not
    finite, reg <= 0.
    Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS 2019, eq. 3.
    """
    real, fake = as_points("sinkhorn_divergence", real=real, fake=fake)
    if reg is None:
        reg = _mean_square_distance(real, fake) / 20
        if reg == 0:  # all points coincide
            return 0.0
    if isinstance(reg, bool) or not isinstance(reg, (int, float, np.number)) or not 0 < reg < math.inf:
        raise ValueError(f"sinkhorn_divergence: reg must be a positive number or None, got {reg!r}")
    max_iter = positive_integer("sinkhorn_divergence", "max_iter", max_iter)
    found = pairwise.sinkhorn(real, fake, reg=float(reg), tol=float(tol), max_iter=max_iter, debias=True)
    if not math.isfinite(found.value):
        raise ValueError(f"sinkhorn_divergence: squared distances of these samples overflow {real.dtype}; rescale them")
    if not found.converged:
        warnings.warn(
            f"sinkhorn_divergence: the marginals are off by {float(found.marginal_error):.2g} after {max_iter} "
            f"iterations, wanted {tol:.2g}; give more iterations or a larger reg than {reg:.3g}",
            RuntimeWarning,
            stacklevel=2,
        )
    return float(found.value)


def _mean_square_distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Mean of |x_i - y_j|^2 over all pairs: the squared distance of the means and both variances."""
    gap = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    return float(gap @ gap + x.var(axis=0, dtype=np.float64).sum() + y.var(axis=0, dtype=np.float64).sum())
