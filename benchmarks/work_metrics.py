"""Scores of generated samples, entropic transport, and how their results are judged (see work.py).

Features are non-negative with a mean far from 0, as those of image networks are. What takes seconds to compare with a
float64 reference is judged at a smaller size with as many columns.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from work import Family, normal
from work_pairwise import logsumexp, squares


def features(n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) float32 with decaying, correlated columns."""
    z = np.abs(normal((n, d), seed)) * (0.2 + 0.8 / (1 + np.arange(d, dtype=np.float32) / 50))
    z[:, 1:] += np.float32(0.3) * z[:, :-1]
    return z


@dataclass(frozen=True)
class Prdc(Family):
    """Precision, recall, density and coverage from balls to the fifth neighbour."""

    n: int
    d: int
    judged_small = True
    tolerance, unit = 1e-9, " absolute"

    def small(self):
        return replace(self, n=min(self.n, 300))

    def inputs(self):
        real, fake = features(self.n, self.d, 0), features(self.n, self.d, 1)
        fake[: self.n // 2] *= np.float32(1.02)
        return SimpleNamespace(real=real, fake=fake)

    def ours(self, a):
        from generant import metrics

        return lambda: metrics.prdc(a.real, a.fake, k=5)

    def error(self, result, a):
        def radii(x):
            square = np.concatenate(list(squares(x, x)))
            np.fill_diagonal(square, np.inf)
            return np.sort(square, 1)[:, 4]

        real, fake = radii(a.real), radii(a.fake)
        across = np.concatenate(list(squares(a.real, a.fake)))
        inside = across < real[:, None]
        exact = {
            "precision": inside.any(0).mean(),
            "recall": (across < fake).any(1).mean(),
            "density": inside.sum(0).mean() / 5,
            "coverage": inside.any(1).mean(),
        }
        return max(abs(float(result[name]) - value) for name, value in exact.items())

    def pairs(self):
        return 3.0 * self.n**2

    def flop(self):
        return 4.0 * self.n * self.n * self.d  # the sets with themselves by symmetry


def poly_sums(x: np.ndarray, y: np.ndarray, center: float) -> tuple[float, float]:
    """Sum of (<x, y>/d + 1)^3 - center over all pairs, and over i = j alone, in float64."""
    k = (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3 - center
    return k.sum(), np.trace(k)


def exact_kid(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The U-statistic of all rows, and the mean kernel value."""
    n, m = len(x), len(y)
    mean = float((x[0].astype(np.float64) @ y[0] / x.shape[1] + 1) ** 3)
    (xx, tx), (yy, ty), (xy, _) = (poly_sums(*p, mean) for p in ((x, x), (y, y), (x, y)))
    return (xx - tx) / (n * (n - 1)) + (yy - ty) / (m * (m - 1)) - 2 * xy / (n * m), xy / (n * m) + mean


@dataclass(frozen=True)
class Kid(Family):
    """KID: mean MMD^2 of `subsets` subsets of `size` rows, k = (<x, y>/d + 1)^3. Judged where all rows are drawn."""

    n: int
    d: int
    subsets: int = 100
    size: int = 1000
    judged_small = True
    tolerance, unit = 1e-5, " of the mean kernel value"

    def small(self):
        return replace(self, n=300, size=300, subsets=2)

    def inputs(self):
        fake = features(self.n, self.d, 1) * np.float32(1.01)
        return SimpleNamespace(real=features(self.n, self.d, 0), fake=fake)

    def ours(self, a):
        from generant import metrics

        options = dict(subsets=self.subsets, subset_size=self.size, random_state=0)
        return lambda: metrics.kid(a.real, a.fake, **options)[0]

    def error(self, result, a):
        exact, scale = exact_kid(a.real, a.fake)
        return abs(float(result) - exact) / scale

    def pairs(self):
        return 3.0 * self.subsets * self.size**2

    def flop(self):
        return 4.0 * self.subsets * self.size**2 * self.d  # xx and yy by symmetry


@dataclass(frozen=True)
class KidAll(Kid):
    """KID of all rows, with its standard error."""

    subsets: int = 1

    def small(self):
        return replace(self, n=300)

    def ours(self, a):
        from generant import metrics

        return lambda: first(metrics.kid(a.real, a.fake, subsets=None))

    def pairs(self):
        return 3.0 * self.n**2

    def flop(self):
        return 4.0 * self.n**2 * self.d


def first(result: Any) -> Any:
    """The value of a score that comes with an error bar."""
    return result[0] if isinstance(result, tuple) else result


@dataclass(frozen=True)
class KidAccuracy(Family):
    """KID of n float32 rows, as far as it is from float64, relative to the mean kernel value."""

    n: int
    d: int
    tolerance, unit = float("inf"), " of the mean kernel value"

    def inputs(self):
        fake = features(self.n, self.d, 1) * np.float32(1.001)
        return SimpleNamespace(real=features(self.n, self.d, 0), fake=fake)

    def ours(self, a):
        from generant import metrics

        return lambda: first(metrics.kid(a.real, a.fake, subsets=None))

    def error(self, result, a):
        exact, scale = exact_kid(a.real, a.fake)
        return abs(float(result) - exact) / scale

    def note(self, result, a):
        return f"KID {float(result):.6g}"


@dataclass(frozen=True)
class KidExact(KidAccuracy):
    """The same with products in float64, relative to the KID itself."""

    unit = ""

    def ours(self, a):
        from generant import metrics

        return lambda: first(metrics.kid(a.real, a.fake, subsets=None, precision="exact"))

    def error(self, result, a):
        exact, _ = exact_kid(a.real, a.fake)
        return abs(float(result) - exact) / abs(exact)


@dataclass(frozen=True)
class Sinkhorn(Family):
    """The transport cost <P, |x - y|^2> of the entropic plan after a number of iterations in the log domain."""

    n: int
    d: int
    iterations: int = 100
    reg: float = 0.2
    judged_small = True
    tolerance = 1e-4

    def small(self):
        return replace(self, n=min(self.n, 200))

    def inputs(self):
        shape, scale = (self.n, self.d), self.d**-0.5
        return SimpleNamespace(x=normal(shape, 0, scale), y=normal(shape, 1, scale) + np.float32(0.5 * scale))

    def ours(self, a):
        from generant import pairwise

        options = dict(reg=self.reg, max_iter=self.iterations, tol=0.0)
        return lambda: pairwise.sinkhorn(a.x, a.y, **options).value_linear

    def error(self, result, a):
        cost = np.concatenate(list(squares(a.x, a.y)))
        f, g = potentials(cost, self.reg, self.iterations)
        plan = np.exp((f[:, None] + g - cost) / self.reg) / cost.size
        return abs(float(result) / (plan * cost).sum() - 1)

    def pairs(self):
        return 2.0 * self.iterations * self.n**2


def potentials(cost: np.ndarray, reg: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Dual potentials (f, g) of equal weights after Sinkhorn's iterations, each updating g and then f."""
    n, m = cost.shape
    f = np.zeros(n)
    for _ in range(iterations):
        g = -reg * (logsumexp((f - cost.T) / reg) - np.log(n))
        f = -reg * (logsumexp((g - cost) / reg) - np.log(m))
    return f, g


@dataclass(frozen=True)
class SinkhornDivergence(Sinkhorn):
    """Debiased entropic transport cost S(x, y) under |x - y|^2/2 at temperature blur^2, to convergence."""

    blur: float = 0.5
    tolerance = 0.1

    def inputs(self):
        a = super().inputs()
        a.y += np.float32(0.5 * self.d**-0.5)
        return a

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.sinkhorn(a.x, a.y, blur=self.blur, debias=True).value / 2

    def error(self, result, a):
        def cost(x, y):
            c = np.concatenate(list(squares(x, y))) / 2
            f, g = potentials(c, self.blur**2, 1000)
            return f.mean() + g.mean()

        exact = cost(a.x, a.y) - (cost(a.x, a.x) + cost(a.y, a.y)) / 2
        return abs(float(result) / exact - 1)

    def pairs(self):
        return 0.0  # contenders differ in how many iterations they do


@dataclass(frozen=True)
class FrechetMoments(Family):
    """The Frechet distance of two Gaussians from their means and covariances."""

    d: int
    judged_small = True
    tolerance = 1e-5

    def small(self):
        return replace(self, d=min(self.d, 64))

    def inputs(self):
        moments = {}
        for i in (1, 2):
            x = features(2 * self.d, self.d, i)
            moments |= {f"mu{i}": x.mean(0, np.float64), f"sigma{i}": np.cov(x, rowvar=False)}
        return SimpleNamespace(**moments)

    def ours(self, a):
        from generant import metrics

        return lambda: metrics.calculate_frechet_distance(a.mu1, a.sigma1, a.mu2, a.sigma2)

    def error(self, result, a):
        exact = frechet(a.mu1, a.sigma1, a.mu2, a.sigma2)
        return abs(float(result) / exact - 1)


def frechet(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """By the square root of the first covariance, for covariances of full rank."""
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ sigma2 @ root)
    trace = np.sqrt(np.maximum(inner, 0)).sum()
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * trace)


@dataclass(frozen=True)
class FrechetFeatures(Family):
    """The Frechet distance of two samples of features."""

    n: int
    d: int
    judged_small = True
    tolerance = 1e-5

    def small(self):
        return replace(self, n=min(self.n, 500), d=min(self.d, 64))

    def inputs(self):
        return SimpleNamespace(real=features(self.n, self.d, 0), fake=features(self.n, self.d, 1) * np.float32(1.1))

    def ours(self, a):
        from generant import metrics

        return lambda: metrics.frechet_distance(a.real, a.fake)

    def error(self, result, a):
        moments = [m for x in (a.real, a.fake) for m in (x.mean(0, np.float64), np.cov(x, rowvar=False))]
        return abs(float(result) / frechet(*moments) - 1)


@dataclass(frozen=True)
class FrechetSelf(FrechetFeatures):
    """The Frechet distance of a sample and itself, which is 0, relative to the trace of its covariance."""

    judged_small = False
    tolerance, unit = float("inf"), " of the trace"

    def small(self):
        return self

    def inputs(self):
        x = features(self.n, self.d, 0)
        return SimpleNamespace(real=x, fake=x)

    def ours(self, a):
        from generant import metrics

        def call():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the covariance is singular
                return metrics.frechet_distance(a.real, a.fake)

        return call

    def error(self, result, a):
        return abs(float(result)) / float(a.real.var(0, np.float64, ddof=1).sum())
