"""Data whose diffusion is known in closed form: Gaussians, mixtures of them, and a finite data set.

One idea: convolved with noise, a mixture of Gaussians stays one, with cov_k + sigma^2 in place of cov_k. Density,
score, ideal denoiser and, for one Gaussian, the flow between noise levels follow from the eigenvalues of the
covariances, so samplers and likelihoods can be measured against the truth, not against finer runs of themselves:
`convergence` does so for the order, `moments` for what a sampler, noise included, makes of Gaussian data. Everything is
float64; x and what is like it come back in x's dtype, as `sampling.sample` wants it.

Not here: likelihoods under a network's denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import pairwise, random
from .plan import Plan
from .sampling import Stepper, sample
from .schedules import karras_sigmas

__all__ = ["Gaussian", "GaussianMixture", "convergence", "fit_order", "gaussian_w2", "ideal_denoiser", "moments"]

EPS = float(np.finfo(np.float64).eps)
GRIDS = ("karras", "uneven")
HIGHEST, LOWEST = 20.0, 0.05  # levels of `convergence`


def _eigen(where: str, cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (..., d), at rounding level set to 0, and eigenvectors in columns, of symmetric cov (..., d, d)."""
    size = np.abs(cov).max(initial=0.0)
    if not np.allclose(cov, np.swapaxes(cov, -1, -2), rtol=0, atol=1e-10 * size):
        raise ValueError(f"{where} must be symmetric")
    values, vectors = np.linalg.eigh(cov)
    level = 4 * cov.shape[-1] * EPS * np.abs(values).max(axis=-1, keepdims=True, initial=0.0)
    if (values < -1e-10 * size).any():
        raise ValueError(f"{where} must have no negative eigenvalue, got {values.min():.6g}")
    return np.where(values > level, values, 0.0), vectors


def _array(where: str, x: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """A float64 copy of x that cannot be written to; None in shape stands for any length above 0."""
    array = np.array(x, np.float64)
    if array.ndim != len(shape) or any(n == 0 or w not in (None, n) for n, w in zip(array.shape, shape, strict=True)):
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{where} must have shape {wanted}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{where} must be finite")
    array.flags.writeable = False
    return array


def _level(where: str, sigma: Any) -> float:
    level = float(sigma)
    if not 0 <= level < math.inf:
        raise ValueError(f"{where}: sigma must be a finite number >= 0, got {sigma!r}")
    return level


class GaussianMixture:
    """p(x) = sum_k weights_k N(x; means_k, covs_k), and the same data with noise of any level.

    weights (K,) >= 0 are divided by their sum; means (K, d); covs (K, d, d) symmetric, without negative eigenvalues.
    x is (n, d) throughout and sigma one number. Immutable. Raises ValueError for anything else.
    """

    __slots__ = ("_squares", "_vectors", "covs", "means", "weights")
    weights: np.ndarray
    means: np.ndarray
    covs: np.ndarray
    _squares: np.ndarray
    _vectors: np.ndarray

    def __init__(self, weights: Any, means: Any, covs: Any) -> None:
        name = type(self).__name__
        means = _array(f"{name}: means", means, (None, None))
        k, d = means.shape
        weights = _array(f"{name}: weights", weights, (k,))
        covs = _array(f"{name}: covs", covs, (k, d, d))
        if (weights < 0).any() or weights.sum() <= 0:
            raise ValueError(f"{name}: weights must be >= 0 with a positive sum, got {weights}")
        squares, vectors = _eigen(f"{name}: every cov", covs)
        weights = weights / weights.sum()
        for array in (weights, squares, vectors):
            array.flags.writeable = False
        values = {"weights": weights, "means": means, "covs": covs, "_squares": squares, "_vectors": vectors}
        for slot, value in values.items():
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.weights)} components, dim={self.dim})"

    @property
    def dim(self) -> int:
        """d, the length of a row of x."""
        return self.means.shape[1]

    def _parts(self, where: str, x: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(K, n) log of weight times density, (K, n, d) x in the axes of every cov, (K, d) squares at this level."""
        x, level = np.asarray(x), _level(where, sigma)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"{where}: x must have shape n x {self.dim}, got {x.shape}")
        squares = self._squares + level**2
        if not (squares > 0).all():
            raise ValueError(f"{where}: at sigma = 0 a singular covariance has no density; give sigma > 0")
        along = (x.astype(np.float64, copy=False) - self.means[:, None]) @ self._vectors
        constant = 0.5 * np.log(squares).sum(axis=1) + 0.5 * self.dim * math.log(2 * math.pi)
        with np.errstate(divide="ignore"):
            constant = np.log(self.weights) - constant
        return constant[:, None] - 0.5 * (along**2 / squares[:, None]).sum(axis=2), along, squares

    def _shares(self, logs: np.ndarray) -> np.ndarray:
        """(K, n): the probability that x came from component k."""
        shares = np.exp(logs - logs.max(axis=0))
        return shares / shares.sum(axis=0)

    def _back(self, along: np.ndarray) -> np.ndarray:
        return along @ np.swapaxes(self._vectors, 1, 2)

    def log_density(self, x: Any, sigma: float = 0.0) -> np.ndarray:
        """log p(x) of data + sigma noise, in nats. (n,) float64."""
        logs, _, _ = self._parts(f"{type(self).__name__}.log_density", x, sigma)
        top = logs.max(axis=0)
        return top + np.log(np.exp(logs - top).sum(axis=0))

    def score(self, x: Any, sigma: float) -> np.ndarray:
        """grad log p(x) of data + sigma noise. (n, d) in x's dtype, float64 if that is no float."""
        logs, along, squares = self._parts(f"{type(self).__name__}.score", x, sigma)
        found = -(self._shares(logs)[:, :, None] * self._back(along / squares[:, None])).sum(axis=0)
        return _like(x, found)

    def _denoised(self, where: str, x: Any, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(K, n) shares, (K, n, d) E[data | x] of every component, (K, d) what it keeps of x along its axes."""
        logs, along, squares = self._parts(where, x, sigma)
        kept = self._squares / squares
        return self._shares(logs), self.means[:, None] + self._back(along * kept[:, None]), kept

    def denoiser(self, x: Any, sigma: float) -> np.ndarray:
        """E[data | data + sigma noise = x] = x + sigma^2 score (Robbins, 1956; Tweedie). (n, d) in x's dtype."""
        if sigma == 0:
            return np.array(x)
        shares, each, _ = self._denoised(f"{type(self).__name__}.denoiser", x, sigma)
        return _like(x, (shares[:, :, None] * each).sum(axis=0))

    def divergence(self, x: Any, sigma: float) -> np.ndarray:
        """sum_i dD_i/dx_i of the denoiser D, which is tr Cov[data | x] / sigma^2. (n,) float64.

        The covariance is that within the components and that between their denoisers, both sums of squares: nothing
        cancels.
        """
        if sigma == 0:
            return np.full(len(x), float(self.dim))
        shares, each, kept = self._denoised(f"{type(self).__name__}.divergence", x, sigma)
        between = ((each - (shares[:, :, None] * each).sum(axis=0)) ** 2).sum(axis=2)
        return (shares * (kept.sum(axis=1)[:, None] + between / float(sigma) ** 2)).sum(axis=0)

    def sample(self, key: Any, n: int) -> np.ndarray:
        """n draws of the data from a key (2 uint64) or a seed. (n, d) float64; row i is the same for every n > i."""
        z = random.normal(random.fold_in(key, 1), (n, self.dim), "float64")
        edges = np.cumsum(self.weights)
        u = random.uniform(random.fold_in(key, 0), (n,), "float64")
        which = np.searchsorted(edges / edges[-1], u, side="right")
        out = np.empty((n, self.dim))
        for k in range(len(edges)):
            rows = which == k
            scaled = z[rows] * np.sqrt(self._squares[k])
            out[rows] = self.means[k] + np.einsum("nj,ij->ni", scaled, self._vectors[k])  # BLAS rounds by the batch
        return out


class Gaussian(GaussianMixture):
    """N(mean, cov), and the same data with noise of any level: D = mean + cov (cov + sigma^2)^-1 (x - mean).

    mean (d,); cov (d, d) symmetric, without negative eigenvalues. See `GaussianMixture` for the methods.
    """

    __slots__ = ()

    def __init__(self, mean: Any, cov: Any) -> None:
        mean = _array("Gaussian: mean", mean, (None,))
        cov = _array("Gaussian: cov", cov, (len(mean), len(mean)))
        super().__init__([1.0], mean[None], cov[None])

    def __repr__(self) -> str:
        return f"Gaussian(dim={self.dim})"

    @property
    def mean(self) -> np.ndarray:
        """(d,) float64."""
        return self.means[0]

    @property
    def cov(self) -> np.ndarray:
        """(d, d) float64."""
        return self.covs[0]

    def flow(self, x: Any, start: float, end: float) -> np.ndarray:
        """x carried along dx/dsigma = (x - D) / sigma from level start to level end, exactly. (n, d) in x's dtype.

        Along an axis of variance v, x - mean grows as sqrt(v + sigma^2).
        """
        _, along, before = self._parts("Gaussian.flow", x, start)
        growth = np.sqrt((self._squares + _level("Gaussian.flow", end) ** 2) / before)
        return _like(x, self.mean + self._back(along * growth[:, None])[0])


def _like(x: Any, found: np.ndarray) -> np.ndarray:
    dtype = np.asarray(x).dtype
    return found.astype(dtype, copy=False) if dtype.kind == "f" else found


def ideal_denoiser(data: Any, *, sigma_floor: float = 1e-3) -> Callable[[Any, float], np.ndarray]:
    """D(x, sigma) = sum_j p_j y_j, p = softmax_j(-|x - y_j|^2 / (2 sigma^2)): the best denoiser for a finite data set.

    data (m, ...): the points y. sigma_floor: smaller levels count as this one, where D is the nearest point unless
    points lie that close together. Returns a denoiser of x (n, ...) and one sigma that computes in float64 if x is
    float64, else in float32, and returns x's dtype. Time n m d, memory O(n + m).
    """
    points = np.asarray(data)
    if points.ndim < 2 or not points.size or points.dtype.kind not in "fiu" or not np.isfinite(points).all():
        raise ValueError(f"ideal_denoiser: data must be m >= 1 finite rows, got {points.dtype} {points.shape}")
    if not 0 < sigma_floor < math.inf:
        raise ValueError(f"ideal_denoiser: sigma_floor must be a finite number > 0, got {sigma_floor!r}")
    shape = points.shape[1:]
    by_dtype: dict[np.dtype, np.ndarray] = {}

    def denoiser(x: Any, sigma: float) -> np.ndarray:
        if x.shape[1:] != shape:
            raise ValueError(f"ideal_denoiser: x must be n rows of shape {shape}, got {x.shape}")
        level = max(_level("ideal_denoiser", sigma), sigma_floor)
        dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
        if dtype not in by_dtype:
            by_dtype[dtype] = np.array(points.reshape(len(points), -1), dtype)
        y = by_dtype[dtype]
        rows = np.ascontiguousarray(x.reshape(len(x), -1), dtype)
        found = pairwise.softmax_matmul(rows, y, y, scale=0.5 / level**2)
        return found.reshape(x.shape).astype(x.dtype, copy=False)

    return denoiser


def gaussian_w2(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    """W_2 = sqrt(|mean_a - mean_b|^2 + min_U |A - B U|^2), A A^T = cov_a, B B^T = cov_b, U orthogonal.

    The distance of Wasserstein between two Gaussians (Dowson and Landau, 1982), usually written with
    tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)). Here the best U comes from singular values and the difference is taken
    first: near-equal Gaussians lose no digits. mean (d,), cov (d, d).
    """
    mean_a = _array("gaussian_w2: mean_a", mean_a, (None,))
    d = len(mean_a)
    mean_b = _array("gaussian_w2: mean_b", mean_b, (d,))
    roots = []
    for name, cov in (("cov_a", cov_a), ("cov_b", cov_b)):
        values, vectors = _eigen(f"gaussian_w2: {name}", _array(f"gaussian_w2: {name}", cov, (d, d)))
        roots.append(vectors * np.sqrt(values))
    a, b = roots
    left, _, right = np.linalg.svd(b.T @ a)
    return float(np.hypot(np.linalg.norm(mean_a - mean_b), np.linalg.norm(a - b @ (left @ right))))


# ---- samplers against the truth ----


def _grid(grid: str, n: int) -> np.ndarray:
    """n steps from HIGHEST to LOWEST. No step to 0: it returns D, which is Euler's step for every sampler."""
    if grid == "karras":
        return karras_sigmas(n + 1, sigma_min=LOWEST, sigma_max=HIGHEST)[:-1]
    lengths = np.where(np.arange(n) % 2, 1.0, 3.0)  # in log sigma, alternately long and short
    return HIGHEST * (LOWEST / HIGHEST) ** (np.append(0.0, np.cumsum(lengths)) / lengths.sum())


def _alpha(form: str, sigma: float) -> float:
    """alpha of x = alpha data + sigma noise."""
    return 1.0 if form == "ve" else 1 - sigma if form == "flow" else math.sqrt((1 - sigma) * (1 + sigma))


def convergence(
    sampler: Callable[[np.ndarray], Plan],
    *,
    widths: Sequence[float] = (0.3, 0.7, 2.0),
    ns: Sequence[int] = (10, 20, 40, 80, 160, 320),
    grid: str = "karras",
) -> np.ndarray:
    """Errors of a sampler in n steps, for every n: its samples of Gaussian data against `Gaussian.flow`, in float64.

    sampler: levels sigma / alpha -> Plan, without noise. widths: standard deviations of the data, one per coordinate.
    For one width, terms of the error may cancel and feign another order, so the error is the root mean square over
    all of them, in units of the result's own. ns: numbers of steps, from 20 to 0.05. grid: "karras", a smooth function
    of the step, or "uneven", steps in log sigma by turns thrice as long. Returns (len(ns),) float64.
    Raises ValueError for an unknown grid, n < 1 and a sampler that adds noise.
    """
    if grid not in GRIDS:
        raise ValueError(f"convergence: grid must be one of {', '.join(GRIDS)}, got {grid!r}")
    if any(n < 1 for n in ns):
        raise ValueError(f"convergence: every n must be at least 1, got {list(ns)}")
    width = np.asarray(widths, np.float64)
    data = Gaussian(width, np.diag(width**2))  # a mean of its own for every width
    start = data.mean + np.sqrt(width**2 + HIGHEST**2)[None]
    truth = data.flow(start, HIGHEST, LOWEST)
    errors = []
    for n in ns:
        plan = sampler(_grid(grid, n))
        if plan.stochastic:
            raise ValueError(f"convergence: {plan.name} adds noise, so its samples have no single truth")
        if abs(plan.final[1] / plan.final[0] - LOWEST) > 1e-9:
            raise ValueError(f"convergence: {plan.name} ends at {plan.final[1]:.6g}, not at the last of its levels")

        def denoiser(x: np.ndarray, sigma: float, form: str = plan.form) -> np.ndarray:
            alpha = _alpha(form, sigma)
            return data.denoiser(x / alpha, sigma / alpha)

        found = sample(denoiser, plan.initial[0] * start, plan) / plan.final[0]
        errors.append(np.sqrt(np.mean((found - truth) ** 2 / (width**2 + LOWEST**2))))
    return np.array(errors)


def fit_order(ns: Sequence[int], errors: Any, *, rounding: float = 1e-12, last: int = 3) -> float:
    """p of errors ~ c n^-p: the slope of log error over log n where the asymptotic range is, NaN if there is none.

    Left out: errors that are not finite, those below `rounding`, and what comes after them, as there the error no
    longer follows the method. Of the rest the `last` ones count, as a method reaches its order only for large n.
    ns: rising; errors: as many.
    """
    n, e = np.asarray(ns, np.float64), np.asarray(errors, np.float64)
    if n.ndim != 1 or n.shape != e.shape or not ((n > 0).all() and (np.diff(n) > 0).all()):
        raise ValueError(f"fit_order: ns must rise and errors be as many, got {n.tolist()} and {e.tolist()}")
    if last < 2:
        raise ValueError(f"fit_order: last must be at least 2, got {last}")
    small = np.isfinite(e) & (e < rounding)
    if small.any():
        n, e = n[: small.argmax()], e[: small.argmax()]
    n, e = n[np.isfinite(e)][-last:], e[np.isfinite(e)][-last:]
    return float(-np.polyfit(np.log(n), np.log(e), 1)[0]) if len(n) > 1 else math.nan


def moments(
    plan: Plan, data: Gaussian, *, network: Callable[[np.ndarray, float], np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of what a plan makes of noise at its first level, exactly, with its own noise.

    For Gaussian data every stage is affine in x, so the result is a + sum_k b_k z_k over all standard normal numbers z
    that are drawn. Row 0 of the x run here is a, and each other row is the b of one z: no number is drawn.
    network(x, level): what to call in place of data.denoiser, affine in x.
    """
    d, drawn = data.dim, sum(stage.c_noise != 0 for stage in plan.stages)
    call = data.denoiser if network is None else network
    x = np.zeros((1 + d * (1 + drawn), d))
    x[1 : 1 + d] = plan.initial[1] * np.eye(d)
    stepper = Stepper(plan)
    place = 1 + d
    for i, stage in enumerate(plan.stages):
        said, noise = x, None
        if stage.call:
            level = stage.sigma / stage.alpha
            said = call(x / stage.alpha, level)
            said[1:] -= call(np.zeros((1, d)), level)
        if stage.c_noise != 0:
            noise = np.zeros_like(x)
            noise[place : place + d] = np.eye(d)
            place += d
        x, _ = stepper.step(i, x, said, noise=noise)
    x = x / plan.final[0]
    return x[0], x[1:].T @ x[1:]
