"""Nearest neighbours and balls: knn, argmin, min_argmin, radius_count. Exact, as float64 arithmetic on the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from ..autograd import Var
from ..ops import _device
from ._arguments import Given, convert, plain, run
from .kernels import unit_rows

METRICS = ("euclidean", "sqeuclidean", "cosine")
MODES = ("count", "any", "min")


def _check_metric(function: str, metric: str) -> None:
    if metric not in METRICS:
        raise ValueError(f"{function}: metric must be one of {', '.join(METRICS)}, got {metric!r}")


def _points(metric: str, x: Any, y: Any) -> tuple[Any, Any]:
    return (x, y) if metric != "cosine" else (unit_rows(x), None if y is None else unit_rows(y))


def _measured(metric: str, distance: Any) -> Any:
    """Euclidean distances (of unit rows for cosine) in the wanted metric."""
    if metric == "euclidean":
        return distance
    square = ops.square(distance)
    return square if metric == "sqeuclidean" else ops.affine(square, scale=0.5)


def knn(
    x: Any,
    y: Any = None,
    *,
    k: int | Sequence[int] = 5,
    metric: str = "euclidean",
    return_distance: bool = True,
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """The k nearest rows of y for every row of x, nearest first: (distances, indices), or indices alone.

    x (..., n, d), y (..., m, d): points. Returns distances (..., n, k) in the points' dtype and indices (..., n, k)
    int64. k may be several ranks, such as (3, 5, 10): one pass, and a column for each. y=None means x itself with
    every row excluded from its own neighbours by its index, so that a duplicate row is a neighbour at distance 0.
    Ties go to the lower index. metric: "euclidean" |x - y|, "sqeuclidean" |x - y|^2, "cosine" 1 - cos (of rows
    scaled to length 1 first, in the points' dtype).
    Euclidean distances and their order are those of float64 arithmetic on the given rows. Time n m d, half for y=None;
    memory O((n + m) k). Distances are differentiable (0 where the distance is 0).
    Raises ValueError for shapes that do not fit, rows that are not finite, fewer than k rows to choose from.
    """
    _check_metric("knn", metric)
    one = np.ndim(k) == 0
    ranks: tuple = (k,) if one else tuple(k)  # type: ignore[arg-type]
    if not ranks or not all(isinstance(r, (int, np.integer)) and not isinstance(r, bool) and r >= 1 for r in ranks):
        raise ValueError(f"knn: k must be a positive integer or several, got {k!r}")

    def call(x: Any, y: Any) -> Any:
        x, y = _points(metric, x, y)
        distance, index = ops.knn(x, y, k=int(max(ranks)))
        if not one:
            columns = [r - 1 for r in ranks]
            distance, index = _take(distance, columns), _take(plain(index), columns)
        return (_measured(metric, distance), index) if return_distance else index

    return run("knn", call, Given("x", x), Given("y", y, optional=True), n_threads=n_threads, out=out)


def _take(a: Any, columns: list[int]) -> Any:
    if not isinstance(a, Var):
        return _device.namespace(a).ascontiguousarray(a[:, columns])
    taken = ops.slice_axis(a, start=columns[0], stop=columns[0] + 1)
    for c in columns[1:]:
        taken = ops.concat(taken, ops.slice_axis(a, start=c, stop=c + 1))
    return taken


def min_argmin(
    x: Any, y: Any, *, metric: str = "euclidean", n_threads: int | None = None, out: Any = None
) -> tuple[Any, Any]:
    """The distance to the nearest row of y for every row of x, and its index: (n,) and (n,) int64.

    x (..., n, d), y (..., m, d): points. Ties go to the lower index. metric as in knn; exact as knn.
    Time n m d, memory O(n + m). The distance is differentiable (0 where it is 0).
    Raises ValueError for shapes that do not fit and rows that are not finite.
    """
    _check_metric("min_argmin", metric)

    def call(x: Any, y: Any) -> Any:
        distance, index = ops.nearest(*_points(metric, x, y))
        return _measured(metric, distance), index

    return run("min_argmin", call, Given("x", x), Given("y", y), n_threads=n_threads, out=out)


def argmin(x: Any, y: Any, *, metric: str = "euclidean", n_threads: int | None = None, out: Any = None) -> Any:
    """The index of the nearest row of y for every row of x, (n,) int64: the assignment of vector quantisation.

    x (..., n, d), y (..., m, d): points. Ties go to the lower index. metric as in knn; exact as knn.
    Time n m d, memory O(n + m). Raises ValueError for shapes that do not fit and rows that are not finite.
    """
    _check_metric("argmin", metric)

    def call(x: Any, y: Any) -> Any:
        return ops.nearest(*_points(metric, x, y))[1]

    return run("argmin", call, Given("x", x), Given("y", y), n_threads=n_threads, out=out)


def radius_count(
    x: Any,
    y: Any,
    radius: Any,
    *,
    mode: str = "count",
    closed: bool = False,
    n_threads: int | None = None,
    out: Any = None,
) -> Any:
    """For every row of x, the balls around rows of y that hold it.

    x (..., n, d), y (..., m, d): points and centres. radius: a number, or (..., m) one per centre. mode "count": how
    many balls, (..., n) int64; "any": whether there is one, bool; "min": the smallest radius among them, inf if none.
    A point is inside if its distance, rounded to the points' dtype, is < radius; <= if closed.
    Time n m d, memory O(n + m). Pairs too close to the border to be sure are measured again in float64.
    Raises ValueError for shapes that do not fit, rows that are not finite, a negative radius.
    """
    if mode not in MODES:
        raise ValueError(f"radius_count: mode must be one of {', '.join(MODES)}, got {mode!r}")
    scalar = np.ndim(radius) == 0

    def call(x: Any, y: Any, radius: Any) -> Any:
        if not (plain(radius) >= 0).all():
            raise ValueError(f"radius_count: radius must be at least 0, got {np.min(plain(radius))}")
        if scalar:
            radius = _device.full(x, (y.shape[0],), float(radius), x.dtype)
        else:
            radius = radius.astype(x.dtype, copy=False)
        if mode == "count":
            return ops.radius_count(x, y, radius, closed=closed)[0]
        smallest = ops.radius_min(x, y, radius, closed=closed)
        return smallest if mode == "min" else smallest < np.inf

    points = Given("x", x), Given("y", y)
    if scalar and any(_device.is_device(a) for a in (x, y)):  # a number is anywhere
        (number,) = convert("radius_count", [Given("radius", radius, 0, bias=True)])
        return run("radius_count", lambda x, y: call(x, y, number), *points, n_threads=n_threads, out=out)
    balls = Given("radius", radius, 0 if scalar else 1, bias=True)
    return run("radius_count", call, *points, balls, n_threads=n_threads, out=out)
