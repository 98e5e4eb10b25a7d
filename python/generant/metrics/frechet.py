"""The Frechet distance between Gaussians fitted to two samples, and the statistics it needs, kept in one pass.

With covariances S = R^T R the trace of sqrt(S1 S2) is the nuclear norm of R1 R2^T: a sum of singular values of a matrix
that is never squared. A square root of the product S1 S2, which published code takes, loses half the digits (it
answers 1e-6 for a sample and itself) and turns complex when the product is singular; this form does neither.
"""

from __future__ import annotations

import io as _bytes
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..io import FormatError, write
from ..ops.matmul import matmul_dw
from ..pairwise._arguments import Given, convert
from ._points import as_points

ROWS, COLUMNS = 2048, 512  # a block of rows is converted to float64 at once; a scatter matrix is made of such squares
SYMMETRIC, SEMIDEFINITE = 1e-6, 1e-6  # how far a covariance may be from either, relative to its largest entry


class GaussianStatistics:
    """Mean and covariance of a sample that arrives in batches: float64, one pass, mergeable.

    n: rows so far (None if read from a file that does not say). mean (d,), covariance (d, d): float64, the latter with
    n - 1 in the denominator. Every batch is centred on its own mean before it is multiplied, so an offset common to all
    rows costs no digits; batches are joined by Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for
    computing sample variances, 1979, eq. 2.1. Time n d^2 (half of a full product), memory O(d^2) whatever n.

        real = GaussianStatistics()
        for batch in batches:
            real.update(batch)
        real.save("real.npz")
        frechet_distance("real.npz", fake)
    """

    def __init__(self, features: ArrayLike | None = None) -> None:
        self.n: int | None = 0
        self._mean: NDArray[np.float64] | None = None
        self._scatter: NDArray[np.float64] | None = None  # sum of (x - mean)(x - mean)^T, blocks above the diagonal
        self._covariance: NDArray[np.float64] | None = None  # the whole matrix, once it was asked for
        if features is not None:
            self.update(features)

    @classmethod
    def from_moments(cls, mean: ArrayLike, covariance: ArrayLike, n: int | None = None) -> GaussianStatistics:
        """Statistics whose mean (d,) and covariance (d, d) are known. n: rows they come from, where that is known."""
        new = cls()
        moments = _moments("GaussianStatistics", "mean", mean, "covariance", covariance)
        new._mean, new._covariance = moments[0].copy(), moments[1].copy()
        if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 2):
            raise ValueError(f"GaussianStatistics: n must be an integer of at least 2, or None, got {n!r}")
        new.n = None if n is None else int(n)
        return new

    def update(self, batch: ArrayLike) -> GaussianStatistics:
        """Take in a batch (k, d) of features; returns itself. ValueError for other shapes and rows not finite."""
        (x,) = as_points("GaussianStatistics.update", batch=batch)
        self._check_open("update", x.shape[1], "batch")
        d, n = x.shape[1], self._rows("update")
        if self._mean is None:
            self._mean = x[0].astype(np.float64)  # any point of the sample will do to be measured from
        scatter, mean = self._open_scatter(d), self._mean
        blocks = _blocks(d)
        panels = [np.empty((min(ROWS, len(x)) + 1, block.stop - block.start)) for block in blocks]
        for start in range(0, len(x), ROWS):
            rows = x[start : start + ROWS]
            k = len(rows)
            shift = np.empty(d)
            for block, panel in zip(blocks, panels, strict=True):
                np.subtract(rows[:, block], mean[block], out=panel[:k])
                panel[:k].mean(axis=0, out=shift[block])
                panel[:k] -= shift[block]
                np.multiply(shift[block], np.sqrt(n * k / (n + k)), out=panel[k])  # a row that adds what joining adds
            for i, a in enumerate(blocks):
                for j, b in enumerate(blocks[i:], i):
                    scatter[a, b] += matmul_dw(panels[i][: k + 1], panels[j][: k + 1])
            n += k
            mean = mean + shift * (k / n)
        self.n, self._mean = n, mean
        return self

    def merge(self, other: GaussianStatistics) -> GaussianStatistics:
        """Take in the statistics of other rows; returns itself. Order does not matter beyond rounding."""
        if not isinstance(other, GaussianStatistics):
            raise TypeError(f"GaussianStatistics.merge: other must be GaussianStatistics, got {type(other).__name__}")
        n, m = self._rows("merge"), other._rows("merge")
        if other._mean is None:
            return self
        self._check_open("merge", len(other._mean), "other")
        scatter = self._open_scatter(len(other._mean))
        with_other = other.covariance * (m - 1) if other._scatter is None else other._scatter
        if self._mean is None:
            self._mean, self.n = other._mean, m
            scatter += with_other
            return self
        shift = other._mean - self._mean
        scatter += with_other
        scatter += np.outer(shift * (n * m / (n + m)), shift)
        self._mean, self.n = self._mean + shift * (m / (n + m)), n + m
        return self

    @property
    def mean(self) -> NDArray[np.float64]:
        """(d,) float64."""
        if self._mean is None:
            raise ValueError("GaussianStatistics: there is no mean of 0 rows")
        return self._mean

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(d, d) float64, sum of (x - mean)(x - mean)^T / (n - 1). ValueError for fewer than 2 rows."""
        if self._covariance is None:
            if self.n is None or self.n < 2 or self._scatter is None:
                raise ValueError(f"GaussianStatistics: a covariance needs at least 2 rows, got {self.n}")
            whole = self._scatter / (self.n - 1)
            blocks = _blocks(len(whole))
            for i, a in enumerate(blocks):
                for b in blocks[i + 1 :]:
                    whole[b, a] = whole[a, b].T
            self._covariance = whole
        return self._covariance

    def save(self, path: str | os.PathLike) -> None:
        """Write an .npz with mu, sigma (pytorch-fid's names) and n: whole or not at all, the same bytes every time."""
        arrays = {"mu": self.mean, "sigma": self.covariance}
        if self.n is not None:
            arrays["n"] = np.array(self.n)
        data = _bytes.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:  # np.savez would write the time of day
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        write(path, data.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> GaussianStatistics:
        """Statistics from an .npz that holds mu and sigma. FormatError if it is something else."""
        path = Path(path)
        try:
            with open(path, "rb") as stream:  # np.load leaves a path it cannot parse open
                file = np.load(stream, allow_pickle=False)
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise FormatError(f"{path} must hold mu and sigma, but it holds one array")
                if not {"mu", "sigma"} <= set(file):
                    raise FormatError(f"{path} must hold mu and sigma, but it holds {', '.join(file) or 'nothing'}")
                mean, covariance, n = file["mu"], file["sigma"], int(file["n"]) if "n" in file else None
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist") from None
        except FormatError:
            raise
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise FormatError(f"{path} is not a readable .npz file: {error}") from None
        try:
            return cls.from_moments(mean, covariance, n)
        except (TypeError, ValueError) as error:
            raise FormatError(f"{path}: {error}") from None

    def _rows(self, method: str) -> int:
        if self.n is None:
            raise ValueError(f"GaussianStatistics.{method}: statistics from a file without n cannot be added to others")
        return self.n

    def _check_open(self, method: str, d: int, name: str) -> None:
        if self._mean is not None and len(self._mean) != d:
            raise ValueError(f"GaussianStatistics.{method}: {name} has {d} columns, the rows so far {len(self._mean)}")

    def _open_scatter(self, d: int) -> NDArray[np.float64]:
        """The scatter matrix, ready to be added to."""
        if self._scatter is None:
            self._scatter = np.zeros((d, d))
            if self._covariance is not None:
                self._scatter += self._covariance * (self._rows("update") - 1)
        self._covariance = None
        return self._scatter


def _blocks(d: int) -> list[slice]:
    """0 ... d in runs of COLUMNS."""
    return [slice(i, min(i + COLUMNS, d)) for i in range(0, d, COLUMNS)]


class _Gaussian(NamedTuple):
    """What one side brings to the distance."""

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]  # R^T (d, r), where R^T R is the covariance


def frechet_distance(real: Any, fake: Any) -> float:
    """Squared Frechet distance of the Gaussians fitted to two samples: |mu1 - mu2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)).

    real, fake: each one of features (n, d); a GaussianStatistics; a tuple (mu (d,), sigma (d, d)); the path of an .npz
    with mu and sigma, as pytorch-fid and its kin write them. With Inception features this is the FID. Returns a float,
    >= 0.
    The last trace is the nuclear norm of R1 R2^T, S = R^T R (Cholesky; eigenvectors where S is singular; the centred
    features themselves where n <= d, so that no d x d matrix is made). All arithmetic is float64; the error is about
    1e-15 of tr S1 + tr S2, and the distance of a sample to itself is 0 to that. Covariances that are singular to
    rounding determine the distance to about 1e-8 of the trace only; features with n <= d do better.
    Time (n + m) d^2 / 2 + O(d^3), memory O(d^2 + min(n, d) d).
    Warns (RuntimeWarning) if n or m is known and not above d: the covariance is singular and the distance too large by
    an amount that depends on n. Raises ValueError for other shapes, values that are not finite, fewer than 2 rows, a
    sigma that is not symmetric or has an eigenvalue below -1e-6 of the largest; FormatError for other files.
    Dowson and Landau, The Frechet distance between multivariate normal distributions, 1982, eq. 4; Heusel et al.,
    GANs trained by a two time-scale update rule, NeurIPS 2017, eq. 6.
    """
    a, b = _gaussian("frechet_distance", "real", real), _gaussian("frechet_distance", "fake", fake)
    if len(a.mean) != len(b.mean):
        raise ValueError(
            f"frechet_distance: both arguments must have equally many columns, but real has {len(a.mean)} and fake has "
            f"{len(b.mean)}"
        )
    return _distance(a, b)


def calculate_frechet_distance(
    mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike, eps: float = 1e-6
) -> float:
    """frechet_distance((mu1, sigma1), (mu2, sigma2)) with the signature of pytorch-fid's function of this name.

    eps is accepted and not used: there it is added to covariances whose product has no square root.
    """
    sides = []
    for number, (mu, sigma) in enumerate(((mu1, sigma1), (mu2, sigma2)), 1):
        moments = f"mu{number}", np.atleast_1d(mu), f"sigma{number}", np.atleast_2d(sigma)
        mean, covariance = _moments("calculate_frechet_distance", *moments)
        sides.append(_Gaussian(mean, _factor("calculate_frechet_distance", f"sigma{number}", covariance)))
    if len(sides[0].mean) != len(sides[1].mean):
        lengths = f"{len(sides[0].mean)} and {len(sides[1].mean)}"
        raise ValueError(f"calculate_frechet_distance: mu1 and mu2 must have equal lengths, got {lengths}")
    return _distance(*sides)


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    shift = a.mean - b.mean
    # Both traces are those of the factors, so that what a factor left out is missing from all three terms.
    traces = np.vdot(a.factor, a.factor) + np.vdot(b.factor, b.factor)
    singular = np.linalg.svd(matmul_dw(a.factor, b.factor), compute_uv=False)
    return max(float(shift @ shift + (traces - 2 * singular.sum())), 0.0)


def _gaussian(function: str, name: str, given: Any) -> _Gaussian:
    """One argument of frechet_distance, whatever it is."""
    if isinstance(given, (str, os.PathLike)):
        given = GaussianStatistics.load(given)
    if isinstance(given, (tuple, list)) and len(given) == 2 and np.ndim(given[0]) == 1 and np.ndim(given[1]) == 2:
        mean, covariance = _moments(function, f"mu of {name}", given[0], f"sigma of {name}", given[1])
        return _Gaussian(mean, _factor(function, f"sigma of {name}", covariance))
    if not isinstance(given, GaussianStatistics):
        (x,) = as_points(function, rows=2, **{name: given})
        if len(x) <= x.shape[1]:
            _warn_singular(function, name, len(x), x.shape[1])
            z = x - x[0].astype(np.float64)
            shift = z.mean(axis=0)
            z -= shift
            return _Gaussian(x[0] + shift, np.ascontiguousarray(z.T) / np.sqrt(len(x) - 1))
        given = GaussianStatistics(x)
    if given.n is not None and 2 <= given.n <= len(given.mean):
        _warn_singular(function, name, given.n, len(given.mean))
    return _Gaussian(given.mean, _factor(function, f"the covariance of {name}", given.covariance))


def _warn_singular(function: str, name: str, n: int, d: int) -> None:
    warnings.warn(
        f"{function}: {name} has {n} rows for {d} columns, so its covariance is singular and the distance is biased "
        "upwards; compare it only with others of the same n",
        RuntimeWarning,
        stacklevel=4,
    )


def _moments(
    function: str, mean_name: str, mean: ArrayLike, name: str, covariance: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A mean (d,) and a symmetric covariance (d, d) as finite float64 arrays."""
    given = Given(mean_name, mean, 1), Given(name, covariance, 2)
    mu, sigma = (a.astype(np.float64, copy=False) for a in convert(function, given, batch=False))
    if sigma.shape != (mu.size, mu.size):
        wanted = f"({mu.size}, {mu.size}), as {mean_name} has {mu.size} entries"
        raise ValueError(f"{function}: {name} must have shape {wanted}, got {sigma.shape}")
    blocks, largest = _blocks(len(sigma)), max(sigma.max(), -sigma.min())
    apart = max(np.abs(sigma[a, b] - sigma[b, a].T).max() for i, a in enumerate(blocks) for b in blocks[i:])
    if apart > SYMMETRIC * largest:
        raise ValueError(f"{function}: {name} must be symmetric, but differs from its transpose by {apart:.2g}")
    return mu, (sigma + sigma.T) / 2 if apart else sigma


def _factor(function: str, name: str, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """R^T (d, r), R^T R = covariance to rounding: Cholesky's where it is positive definite, else from eigenvectors.

    What is below d eps of the largest eigenvalue is rounding and left out: its square root would be 1e-8, not 1e-16.
    """
    noise = len(covariance) * np.finfo(np.float64).eps
    try:
        lower = np.linalg.cholesky(covariance)
        if lower.diagonal().min() ** 2 > noise * covariance.diagonal().max():
            return np.asarray(lower, np.float64)
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -SEMIDEFINITE * max(values[-1], -values[0]):
        raise ValueError(
            f"{function}: {name} must be positive semidefinite, but has the eigenvalue {values[0]:.2g} beside "
            f"{values[-1]:.2g}"
        )
    kept = values > noise * values[-1]
    factor: NDArray[np.float64] = vectors[:, kept] * np.sqrt(values[kept])
    return factor
