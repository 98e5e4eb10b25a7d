"""Feature likelihood divergence: how likely held-out features are under Gaussians around the generated ones.

Each generated row carries an isotropic Gaussian whose width is fitted to the training rows. A copy of a training row is
rewarded there with a width near 0, and that Gaussian then explains no held-out row: so the score falls with bad, with
missing and with copied samples alike. Squared distances are kept where they fit into CACHE bytes and are measured
again in every epoch otherwise; the n x m matrix of likelihoods never exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.matmul import matmul
from ._points import as_points, positive_integer

# The settings of the authors' package.
RATE, BETA1, BETA2, EPS = 0.5, 0.9, 0.999, 1e-8
LOWEST, HIGHEST = -40.0, 20.0  # of a log variance
FLOOR = 1e-3  # added to the nearest squared distance a width starts from
ORIGIN = 0.9**2  # squared distances to the mean are taken this much shorter
CACHE = 1 << 29  # bytes of squared distances kept between epochs
PIECE = 1 << 18  # pairs that are worked on together
OF = ("test", "train", "gap")


def fld(
    real: ArrayLike,
    fake: ArrayLike,
    train: ArrayLike,
    *,
    of: str = "test",
    epochs: int = 50,
    batch: int = 10_000,
    random_state: Any = 0,
) -> float:
    """100 (nll - nll0): mean negative log likelihood per dimension of held-out rows, above what half of train reaches.

    log p(x) = log (1 / m) sum_j N(x; fake_j, v_j I); nll = -mean_i log p(real_i) / d. real (n, d): held-out features,
    which no model has seen; fake (m, d); train (l, d), l >= 4. All are first scaled to mean 0 and variance 1 of the
    real columns (constant columns are only centred). The variances v minimise the nll of train: Adam (rate 0.5) on
    log v for `epochs` passes in batches of `batch` rows, from log v_j = log((distance to the nearest train row)^2 +
    1e-3) / d); while fitting, a Gaussian at the mean of train gives every row some likelihood. nll0 is the same with
    min(m, l // 2) rows of train in place of fake, fitted to the others.
    of: "test" (default) as above; "train": train in place of real in nll; "gap": 100 (nll of train - nll of real), far
    below 0 for a model that copies. About 0 for a perfect model, up to 100 for usual ones, larger for copies.
    random_state (a seed or a numpy Generator) draws that half and the batches. The package draws 10,000 of more fake
    rows; pass fake[:10000] for its figures. Distances are float64, kept in x's dtype.
    Time epochs l m (d or, up to 512 MiB of distances, 1), memory O(n + m + l) + 512 MiB. Raises ValueError for other
    shapes, values that are not finite, other names.
    Jiralerspong et al., Feature likelihood divergence, NeurIPS 2023, sec. 3; settings of the
    authors' package.
    """
    if of not in OF:
        raise ValueError(f"fld: of must be one of {', '.join(OF)}, got {of!r}")
    epochs, batch = positive_integer("fld", "epochs", epochs), positive_integer("fld", "batch", batch)
    real, fake, train = as_points("fld", real=real, fake=fake, train=train)
    for name, x, rows in (("real", real, 2), ("train", train, 4)):
        if len(x) < rows:
            raise ValueError(f"fld: {name} must have at least {rows} rows, got shape {x.shape}")
    rng = np.random.default_rng(random_state)
    real, fake, train = _standardise(real, fake, train)
    centres = _Centres(fake)
    log_variance = _fit(centres, train, epochs, batch, rng)
    if of == "gap":
        return 100 * (_nll(centres, log_variance, train) - _nll(centres, log_variance, real))
    nll = _nll(centres, log_variance, real if of == "test" else train)
    order = rng.permutation(len(train))
    half = min(len(fake), len(train) // 2)
    centres, others = _Centres(train[order[:half]]), train[order[half:]]
    return 100 * (nll - _nll(centres, _fit(centres, others, epochs, batch, rng), real))


def _standardise(real: NDArray[Any], *others: NDArray[Any]) -> list[NDArray[Any]]:
    mean, scale = real.mean(axis=0, dtype=np.float64), real.std(axis=0, ddof=1, dtype=np.float64)
    scale[scale == 0] = 1
    return [((x - mean) / scale).astype(x.dtype) for x in (real, *others)]


def _pieces(begin: int, end: int, m: int) -> Iterator[slice]:
    rows = max(1, PIECE // m)
    for start in range(begin, end, rows):
        yield slice(start, min(end, start + rows))


class _Centres:
    """Points that squared distances are taken to: float64, by rows and by columns."""

    def __init__(self, points: NDArray[Any]) -> None:
        self.points = points
        self._columns = np.ascontiguousarray(points.T, np.float64)
        self._norms = np.einsum("dn,dn->n", self._columns, self._columns)

    def __len__(self) -> int:
        return len(self.points)

    def squares(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """|x_i - y_j|^2, exact for equal rows: where the sum of norms and product cancels, differences are taken."""
        wide = x.astype(np.float64)
        norms = np.einsum("nd,nd->n", wide, wide)[:, None] + self._norms
        out = matmul(wide, self._columns)
        out *= -2
        out += norms
        near = np.flatnonzero(out < 1e-6 * norms)
        for start in range(0, len(near), 4096):
            some = near[start : start + 4096]
            i, j = np.divmod(some, len(self))
            out.reshape(-1)[some] = ((wide[i] - self.points[j]) ** 2).sum(axis=1)
        return out


def _scores(square: NDArray[Any], log_variance: NDArray[Any], d: int) -> NDArray[Any]:
    """log(N(x_i; y_j, v_j I) / m) up to the constant d/2 log(2 pi)."""
    out = square * (-0.5 * np.exp(-log_variance))
    out -= 0.5 * d * log_variance + np.log(len(log_variance), dtype=log_variance.dtype)
    return out


def _nll(centres: _Centres, log_variance: NDArray[np.float64], x: NDArray[Any]) -> float:
    """Mean negative log likelihood of x per dimension, in float64."""
    d, total = x.shape[1], 0.0
    for rows in _pieces(0, len(x), len(centres)):
        score = _scores(centres.squares(x[rows]), log_variance, d)
        top = score.max(axis=1)
        total += float((top + np.log(np.exp(score - top[:, None]).sum(axis=1))).sum())
    return -total / (len(x) * d) + 0.5 * float(np.log(2 * np.pi))


def _fit(centres: _Centres, x: NDArray[Any], epochs: int, batch: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Log variances that make x likely: Adam on -mean log p(x) / d."""
    n, d = x.shape
    m, dtype = len(centres), x.dtype
    if n > batch:
        x = x[rng.permutation(n)]
    ends = [min(n, start + batch) for start in range(0, n, batch)]
    pieces = [rows for begin, end in zip([0, *ends], ends, strict=False) for rows in _pieces(begin, end, m)]
    cache: list[NDArray[Any]] | None = [] if n * m * dtype.itemsize <= CACHE else None

    nearest, to_mean, mean = np.full(m, np.inf), np.empty(n, dtype), x.mean(axis=0, dtype=np.float64)
    for rows in pieces:
        square = centres.squares(x[rows]).astype(dtype, copy=False)
        np.minimum(nearest, square.min(axis=0), out=nearest)
        to_mean[rows] = ORIGIN * ((x[rows] - mean) ** 2).sum(axis=1)
        if cache is not None:
            cache.append(square)
    parameters = np.append(np.log((nearest + FLOOR) / d), 0.0)  # the last one: the Gaussian at the mean

    first, second = np.zeros(m + 1), np.zeros(m + 1)
    gradient, begin, step = np.zeros(m + 1), 0, 0
    for _ in range(epochs):
        for number, rows in enumerate(pieces):
            square = cache[number] if cache is not None else centres.squares(x[rows]).astype(dtype, copy=False)
            _add_gradient(gradient, square, to_mean[rows], parameters.astype(dtype), d)
            if rows.stop in ends:
                gradient /= (rows.stop - begin) * d
                begin, step = rows.stop % n, step + 1
                first += (1 - BETA1) * (gradient - first)
                second += (1 - BETA2) * (gradient**2 - second)
                root = np.sqrt(second / (1 - BETA2**step)) + EPS
                parameters -= RATE / (1 - BETA1**step) * first / root
                np.clip(parameters[:m], LOWEST, HIGHEST, out=parameters[:m])
                gradient[:] = 0
    return parameters[:m]


def _add_gradient(
    gradient: NDArray[np.float64], square: NDArray[Any], to_mean: NDArray[Any], parameters: NDArray[Any], d: int
) -> None:
    """Add the gradient of -sum_i log p(x_i) with respect to the log variances of the centres and of the mean."""
    log_variance, of_mean = parameters[:-1], parameters[-1]
    score = _scores(square, log_variance, d)
    score_mean = -0.5 * to_mean * np.exp(-of_mean) - 0.5 * d * of_mean
    top = np.maximum(score.max(axis=1), score_mean)
    score -= top[:, None]
    share = np.exp(score, out=score)
    share_mean = np.exp(score_mean - top)
    total = share.sum(axis=1) + share_mean
    share /= total[:, None]
    share_mean /= total
    # d log N / d log v = |x - y|^2 / (2 v) - d / 2
    weight = share.sum(axis=0, dtype=np.float64)
    gradient[:-1] += 0.5 * d * weight
    share *= square
    gradient[:-1] -= 0.5 * np.exp(-log_variance.astype(np.float64)) * share.sum(axis=0, dtype=np.float64)
    gradient[-1] += 0.5 * d * share_mean.sum(dtype=np.float64)
    gradient[-1] -= 0.5 * float(np.exp(-np.float64(of_mean))) * float((share_mean * to_mean).sum(dtype=np.float64))
