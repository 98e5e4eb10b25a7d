"""Sums over all pairs of a kernel k(x_i, y_j): in all, per row, and against a vector; and the median distance."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from ._arguments import Given, convert, limited_threads, plain, run

KERNELS = (
    "rbf", "laplace", "laplacian", "polynomial", "energy", "rational_quadratic", "inverse_multiquadric",
    "matern12", "matern32", "matern52", "dot", "cosine", "exp_dot",
)  # fmt: skip
ALIASES: dict[str, dict[str, Any]] = {
    "matern12": dict(kernel="laplace"),
    "inverse_multiquadric": dict(kernel="rational_quadratic", alpha=0.5),
    "dot": dict(kernel="polynomial", degree=1, gamma=1.0, coef0=0.0),
    "cosine": dict(kernel="polynomial", degree=1, gamma=1.0, coef0=0.0),
}
WITH_GAMMA = ("rbf", "polynomial", "exp_dot")
WITHOUT_BANDWIDTH = ("polynomial", "energy", "dot", "cosine", "exp_dot")
_TABLE = """kernel, of s = |x - y|^2, r = |x - y|, p = <x, y>, h = bandwidth:
        rbf exp(-s / (2 h^2)); laplace = matern12 exp(-r / h); laplacian exp(-|x - y|_1 / h) (L1, as in scikit-learn);
        polynomial (gamma p + coef0)^degree, gamma = 1/d if None; energy -r; rational_quadratic
        (1 + s / (2 alpha h^2))^-alpha; inverse_multiquadric (1 + s / h^2)^-1/2; matern32 (1 + c) exp(-c),
        c = sqrt(3) r / h; matern52 (1 + c + c^2 / 3) exp(-c), c = sqrt(5) r / h; dot p; cosine p / (|x| |y|), 0 for a
        row of zeros; exp_dot exp(gamma p).
    bandwidth h: a number, or several (at most 16): then k is the sum over them. Default 1. For rbf, gamma = 1/(2 h^2)
        may be given instead, as in scikit-learn. rbf bandwidths whose squares differ by powers of two cost one exp."""


def kernel_attributes(
    function: str, kernel: str, bandwidth: Any, degree: int, gamma: float | None, coef0: float, alpha: float
) -> dict[str, Any]:
    """Attributes of the ops for a kernel by its public name."""
    one = bandwidth is None or isinstance(bandwidth, (numbers.Real, str))
    widths: Any = bandwidth if one else tuple(np.ravel(_device.from_device(bandwidth)))
    return _kernel_attributes(function, kernel, widths, degree, gamma, coef0, alpha)


@lru_cache(256)
def _kernel_attributes(
    function: str, kernel: str, bandwidth: Any, degree: int, gamma: float | None, coef0: float, alpha: float
) -> dict[str, Any]:
    if kernel not in KERNELS:
        raise ValueError(f"{function}: kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if gamma is not None and kernel not in WITH_GAMMA:
        raise ValueError(f"{function}: gamma is for {', '.join(WITH_GAMMA)}, kernel {kernel!r} has none")
    if bandwidth is not None and kernel in WITHOUT_BANDWIDTH:
        raise ValueError(f"{function}: kernel {kernel!r} has no bandwidth, got {bandwidth!r}")
    if kernel == "rbf" and gamma is not None:
        if bandwidth is not None:
            raise ValueError(f"{function}: give bandwidth or gamma = 1/(2 bandwidth^2), not both")
        if not 0 < gamma < math.inf:
            raise ValueError(f"{function}: gamma must be positive and finite, got {gamma!r}")
        bandwidth, gamma = 1 / math.sqrt(2 * gamma), None
    if bandwidth is None:
        bandwidth = 1.0
    try:
        widths = tuple(map(float, bandwidth)) if isinstance(bandwidth, tuple) else (float(bandwidth),)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: bandwidth must be a positive number or several, got {bandwidth!r}") from None
    if not widths or not all(0 < h < math.inf for h in widths):
        raise ValueError(f"{function}: bandwidth must be positive and finite, got {bandwidth!r}")
    attributes = dict(kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=widths)
    return attributes | ALIASES.get(kernel, {})


def unit_rows(x: Any) -> Any:
    """Rows of length 1; rows of zeros stay zero. Differentiable: the factor that keeps squares in range is a constant,
    and a power of two, so nothing depends on it."""
    given = plain(x)
    xp = _device.namespace(given)
    exponent = xp.frexp(xp.abs(given).max(axis=-1, keepdims=True))[1]
    x = ops.mul(x, xp.ldexp(xp.ones(1, x.dtype), -exponent.clip(-120, 120)))
    square = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return ops.mul(x, ops.rsqrt(ops.clip(square, low=float(np.finfo(x.dtype).tiny), high=math.inf)))


def _prepared(kernel: str, *points: Any) -> Any:
    return points if kernel != "cosine" else tuple(None if p is None else unit_rows(p) for p in points)


def kernel_sum(
    x: Any,
    y: Any = None,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    alpha: float = 1.0,
    x_weights: Any = None,
    y_weights: Any = None,
    exclude_diagonal: bool = False,
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """Sum over all pairs sum_ij u_i v_j k(x_i, y_j), a float64 scalar per batch entry.

    x (..., n, d), y (..., m, d): points; y=None means x with itself and computes half the pairs. x_weights u (..., n),
    y_weights v (..., m): 1 if absent; without y, u weighs both sides. exclude_diagonal (y=None only) leaves out i = j.
    {table}
    Time n m d, memory O(n + m). Kernel values are rounded to the points' dtype, squared distances that would cancel
    are taken from differences, sums are float64. Differentiable in x, y and the weights, twice in x and y.
    Raises ValueError for shapes that do not fit, rows that are not finite, bandwidth <= 0.
    """
    attributes = kernel_attributes("kernel_sum", kernel, bandwidth, degree, gamma, coef0, alpha)

    def call(x: Any, y: Any, u: Any, v: Any) -> Any:
        x, y = _prepared(kernel, x, y)
        return ops.kernel_sum(x, y, u, v, exclude_diagonal=exclude_diagonal, **attributes)

    given = Given("x", x), Given("y", y, optional=True)
    weights = Given("x_weights", x_weights, 1, optional=True), Given("y_weights", y_weights, 1, optional=True)
    return run("kernel_sum", call, *given, *weights, n_threads=n_threads, out=out)


def kernel_matvec(
    x: Any,
    y: Any,
    v: Any,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    alpha: float = 1.0,
    exclude_diagonal: bool = False,
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """The kernel matrix times v without the matrix: out_i = sum_j k(x_i, y_j) v_j.

    x (..., n, d), y (..., m, d): points, y=None: x itself. v (..., m, e): e columns; returns (..., n, e) in the points'
    dtype. v (m,) gives (n,). exclude_diagonal leaves out i = j (n = m only).
    {table}
    Time n m (d + e), memory O(n + m). Differentiable in x, y and v, twice.
    Raises ValueError for shapes that do not fit, rows that are not finite, bandwidth <= 0.
    """
    attributes = kernel_attributes("kernel_matvec", kernel, bandwidth, degree, gamma, coef0, alpha)
    y = x if y is None else y
    vector = np.ndim(v) == 1 if not hasattr(v, "ndim") else v.ndim == 1

    def call(x: Any, y: Any, v: Any) -> Any:
        x, y = _prepared(kernel, x, y)
        v = ops.reshape(v, shape=(-1, 1)) if vector else v
        result = ops.kernel_matvec(x, y, v, exclude_diagonal=exclude_diagonal, **attributes)
        return ops.reshape(result, shape=(-1,)) if vector else result

    given = Given("x", x), Given("y", y), Given("v", v, 1 if vector else 2, own_width=True)
    return run("kernel_matvec", call, *given, n_threads=n_threads, out=out)


def kernel_row_sums(
    x: Any,
    y: Any = None,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    alpha: float = 1.0,
    exclude_diagonal: bool = False,
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """Row sums, column sums and the sum of squares of the kernel matrix in one pass: (n,), (m,) and a scalar, float64.

    x (..., n, d), y (..., m, d): points; y=None means x with itself and computes half the pairs (rows = columns).
    What variances of U-statistics are made of.
    {table}
    Time n m d, memory O(n + m). Raises ValueError for shapes that do not fit, rows that are not finite, bandwidth <= 0.
    """
    attributes = kernel_attributes("kernel_row_sums", kernel, bandwidth, degree, gamma, coef0, alpha)

    def call(x: Any, y: Any) -> Any:
        x, y = _prepared(kernel, x, y)
        return ops.kernel_row_sums(x, y, exclude_diagonal=exclude_diagonal, **attributes)

    given = Given("x", x), Given("y", y, optional=True)
    return run("kernel_row_sums", call, *given, n_threads=n_threads, out=out)


for _function in (kernel_sum, kernel_matvec, kernel_row_sums):
    if _function.__doc__:
        _function.__doc__ = _function.__doc__.format(table=_TABLE)


def median_distance(x: Any, y: Any = None, *, n_threads: int | None = None) -> float:
    """The median Euclidean distance over all pairs i < j of the rows of x (and y, taken together): the usual bandwidth.

    x (n, d), y (m, d): points, N = n + m >= 2 rows in all. Exact up to the rounding of one distance to float32; of an
    even number of pairs the lower of the two middle distances.
    No N x N matrix: counts of the pairs within a radius narrow down the median, from quantiles over pairs drawn with
    a fixed seed. Time about 10 N^2 d, memory O(N).
    Raises ValueError for other shapes, rows that are not finite, fewer than 2 rows.
    """
    given = Given("x", x), Given("y", y, optional=True)
    points = [a for a in convert("median_distance", given, batch=False, device=True) if a is not None]
    z = _device.namespace(points[0]).concatenate(points)
    if len(z) < 2:
        raise ValueError(f"median_distance: there must be at least 2 rows, got {len(z)}")
    with limited_threads("median_distance", n_threads):
        return _quantile_of_distances(z, rank=(len(z) * (len(z) - 1) // 2 + 1) // 2)


def _quantile_of_distances(z: Any, rank: int) -> float:
    """The rank-th (from 1) smallest distance, as the smallest float32 radius that as many pairs lie within."""

    def pairs_within(radius: float) -> int:
        balls = ops.radius_count(z, z, _device.full(z, (len(z),), radius, z.dtype), closed=True)[0]
        return (int(balls.sum()) - len(z)) // 2

    def to_bits(radius: float) -> int:  # numbers >= 0 have the order of their bits
        return int(np.float32(radius).view(np.int32))

    def to_radius(bits: int) -> float:
        return float(np.int32(bits).view(np.float32))

    below, above = to_bits(0.0), to_bits(math.inf)
    counts = {below: pairs_within(0.0), above: len(z) * (len(z) - 1) // 2}
    if counts[below] >= rank:
        return 0.0
    guesses = [to_bits(r) for r in np.quantile(_drawn_distances(z), [0.49, 0.51])]
    while above - below > 1:  # counts[below] < rank <= counts[above]
        guess = guesses.pop() if guesses else (below + above) // 2
        if not below < guess < above:
            continue
        before = above - below
        counts[guess] = pairs_within(to_radius(guess))
        below, above = (guess, above) if counts[guess] < rank else (below, guess)
        if not guesses and above - below <= before / 2:  # the last step was good: interpolate, else bisect
            share = (rank - counts[below]) / (counts[above] - counts[below])
            guesses = [min(max(below + round(share * (above - below)), below + 1), above - 1)]
    return to_radius(above)


def _drawn_distances(z: Any) -> np.ndarray:
    """Distances of up to 4096 pairs of different rows."""
    i, j = np.random.default_rng(0).integers(0, len(z), (2, 4096))
    i, j = i[i != j], j[i != j]
    if not len(i):
        i, j = np.array([0]), np.array([1])
    parts = zip(np.array_split(i, 32), np.array_split(j, 32), strict=True)
    xp = _device.namespace(z)
    drawn = [
        xp.linalg.norm(z[_device.beside(z, a)].astype(np.float64) - z[_device.beside(z, b)], axis=1) for a, b in parts
    ]
    return _device.from_device(xp.concatenate(drawn))
