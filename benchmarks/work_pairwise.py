"""Sums and searches over all pairs of two point sets, and how their results are judged (see work.py).

References are float64 and row by row: of results with a row per point, some rows are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from work import Family, normal, relative


def squares(x: np.ndarray, y: np.ndarray, rows: int = 500) -> Iterator[np.ndarray]:
    """Squared distances in float64, some rows at a time."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    for i in range(0, len(x), rows):
        part = x[i : i + rows]
        yield (part * part).sum(1)[:, None] + (y * y).sum(1) - 2 * part @ y.T


def some_rows(n: int) -> slice:
    """About 200 rows out of n."""
    return slice(None, None, max(1, n // 200))


def logsumexp(s: np.ndarray) -> np.ndarray:
    top = s.max(1)
    return top + np.log(np.exp(s - top[:, None]).sum(1))


@dataclass(frozen=True)
class KernelSum(Family):
    """sum_ij exp(-|x_i - y_j|^2 / 2)."""

    n: int
    d: int

    def small(self):
        return replace(self, n=min(self.n, 300))

    def inputs(self):
        shape, scale = (self.n, self.d), self.d**-0.5
        return SimpleNamespace(x=normal(shape, 0, scale), y=normal(shape, 1, scale), v=normal((self.n, 1), 2))

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.kernel_sum(a.x, a.y, kernel="rbf", bandwidth=1.0)

    def error(self, result, a):
        return relative(result, np.array(sum(np.exp(-s / 2).sum() for s in squares(a.x, a.y))))

    def pairs(self):
        return float(self.n) ** 2

    def flop(self):
        return 2.0 * self.n * self.n * self.d if self.d >= 16 else 0.0  # below, the exponential is the work


@dataclass(frozen=True)
class KernelMatvec(KernelSum):
    """sum_j exp(-|x_i - y_j|^2 / 2) v_j for every i."""

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.kernel_matvec(a.x, a.y, a.v, kernel="rbf", bandwidth=1.0)

    def error(self, result, a):
        some = some_rows(self.n)
        (square,) = squares(a.x[some], a.y)
        return relative(np.asarray(result)[some], np.exp(-square / 2) @ a.v)


@dataclass(frozen=True)
class LogSumExp(KernelSum):
    """log sum_j exp(-|x_i - y_j|^2) for every i."""

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.logsumexp(a.x, a.y)

    def error(self, result, a):
        some = some_rows(self.n)
        (square,) = squares(a.x[some], a.y)
        return relative(np.asarray(result).ravel()[some], logsumexp(-square))


@dataclass(frozen=True)
class MmdGradient(KernelSum):
    """Unbiased MMD^2 of x and y under a sum of Gaussians, and its gradient in x: a training step of a generator."""

    bandwidths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    tolerance = 1e-3

    def inputs(self):
        a = super().inputs()
        a.y += np.float32(0.3 * self.d**-0.5)
        return a

    def ours(self, a):
        from generant import ops, value_and_grad

        n, bandwidth = self.n, self.bandwidths

        def mmd2(x):
            within = ops.kernel_sum(x, exclude_diagonal=True, bandwidth=bandwidth)
            other = ops.kernel_sum(a.y, exclude_diagonal=True, bandwidth=bandwidth)
            return (within + other) / (n * (n - 1)) - ops.kernel_sum(x, a.y, bandwidth=bandwidth) * (2 / n**2)

        f = value_and_grad(mmd2)
        return lambda: f(a.x)

    def error(self, result, a):
        """Of the value relative to the mean kernel value, of the gradient's first rows to its largest entry."""
        value, gradient = np.asarray(result[0], np.float64), np.asarray(result[1])
        n, hs = self.n, np.array(self.bandwidths)

        def total(x, y):  # the bandwidths double: one exponential, then squares of squares
            each = np.zeros(len(hs))
            for square in squares(x, y):
                k = np.exp(-square / (2 * hs[-1] ** 2))
                for i in reversed(range(len(hs))):
                    each[i] += k.sum()
                    k = k**4
            return each.sum()

        diagonal = n * len(hs)
        within = total(a.x, a.x) + total(a.y, a.y) - 2 * diagonal
        across = total(a.x, a.y)
        off = abs(value - (within / (n * (n - 1)) - 2 * across / n**2)) / (across / n**2)

        def slope(x, y):  # sum_j of the derivative of k(x_i, y_j) in x_i
            (square,) = squares(x, y)
            w = sum(np.exp(-square / (2 * h * h)) / (h * h) for h in hs)
            return w @ y.astype(np.float64) - w.sum(1)[:, None] * x

        x = a.x[:100]
        exact = slope(x, a.x) * 2 / (n * (n - 1)) - slope(x, a.y) * 2 / n**2
        return max(float(off), relative(gradient[:100], exact))

    def pairs(self):
        return 3.0 * self.n**2

    def flop(self):
        return 0.0


@dataclass(frozen=True)
class Knn(KernelSum):
    """The k nearest rows of y for every row of x."""

    k: int = 5

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.knn(a.x, a.y, k=self.k)

    def error(self, result, a):
        distance, index = map(np.asarray, result)
        some = some_rows(len(a.x))
        exact = self.exact(a, some)
        found = np.sqrt(((a.x[some, None].astype(np.float64) - a.y[index[some]]) ** 2).sum(-1))
        return max(relative(distance[some], exact), relative(found, exact))

    def exact(self, a, some):
        (square,) = squares(a.x[some], a.y)
        return np.sqrt(np.sort(np.partition(square, self.k, 1)[:, : self.k], 1))


@dataclass(frozen=True)
class SelfKnn(Knn):
    """The k nearest other rows of x for every row of x."""

    def inputs(self):
        a = super().inputs()
        a.y = a.x
        return a

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.knn(a.x, k=self.k)

    def exact(self, a, some):
        (square,) = squares(a.x[some], a.x)
        square[np.arange(len(square)), np.arange(len(a.x))[some]] = np.inf
        return np.sqrt(np.sort(np.partition(square, self.k, 1)[:, : self.k], 1))


@dataclass(frozen=True)
class Nearest(Knn):
    """The nearest of m rows of y for every row of x, and how far it is: the assignment of vector quantisation."""

    m: int = 512
    k: int = 1

    def small(self):
        return replace(self, n=min(self.n, 300), m=min(self.m, 100))

    def inputs(self):
        a = super().inputs()
        a.y = a.y[: self.m]
        return a

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.min_argmin(a.x, a.y)

    def error(self, result, a):
        return super().error([np.asarray(r).reshape(-1, 1) for r in result], a)

    def pairs(self):
        return float(self.n) * self.m

    def flop(self):
        return 2.0 * self.n * self.m * self.d


@dataclass(frozen=True)
class OffsetDistances(Family):
    """Distances to the nearest row when all points lie `offset` away from the origin.

    Coordinates are multiples of 1/1024, so that float32 holds the shifted points exactly and nothing but the
    arithmetic can be wrong. Half the rows of x have a row of y close by.
    """

    offset: float
    n: int = 2000
    d: int = 64
    tolerance = float("inf")

    def inputs(self):
        y = np.round(normal((self.n, self.d), 1) * 1024) / 1024
        x = np.round(normal((self.n, self.d), 2) * 1024) / 1024
        x[::2] = y[::2] + np.round(normal(x[::2].shape, 3, 8.0)) / 1024
        return SimpleNamespace(x=(x + self.offset).astype(np.float32), y=(y + self.offset).astype(np.float32))

    def ours(self, a):
        from generant import pairwise

        return lambda: pairwise.min_argmin(a.x, a.y)

    def exact(self, a):
        rows = [((row - a.y.astype(np.float64)) ** 2).sum(1) for row in a.x.astype(np.float64)]
        return np.array([(np.sqrt(r.min()), r.argmin()) for r in rows]).T

    def error(self, result, a):
        """Largest relative error of a distance."""
        exact, _ = self.exact(a)
        return float((np.abs(np.asarray(result[0], np.float64).ravel() - exact) / exact).max())

    def note(self, result, a):
        wrong = int((np.asarray(result[1]).ravel() != self.exact(a)[1]).sum())
        return f"{wrong} wrong neighbours"


@dataclass(frozen=True)
class SmallPairs(Family):
    """A reduction over 16 x 16 pairs: all overhead."""

    op: str

    def inputs(self):
        return SimpleNamespace(x=normal((16, 8), 0), y=normal((16, 8), 1), v=normal((16, 1), 2))

    def ours(self, a):
        from functools import partial

        from generant import pairwise

        arrays = [a.x, a.y, a.v] if self.op in ("kernel_matvec", "softmax_matmul") else [a.x, a.y]
        return partial(getattr(pairwise, self.op), *arrays)

    def error(self, result: Any, a: Any) -> float:
        (square,) = squares(a.x, a.y)
        k, p = np.exp(-square / 2), np.exp(-square)
        exact = {
            "kernel_sum": lambda: np.array(k.sum()),
            "kernel_matvec": lambda: k @ a.v,
            "logsumexp": lambda: logsumexp(-square),
            "softmax_matmul": lambda: p / p.sum(1, keepdims=True) @ a.v,
            "argmin": lambda: square.argmin(1),
            "knn": lambda: np.sqrt(np.sort(square, 1)[:, :5]),
        }[self.op]()
        return relative(result[0] if self.op == "knn" else result, exact)
