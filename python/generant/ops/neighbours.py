"""Searches over all pairs of two point sets: nearest rows, and which points lie in which balls.

All of them are exact. Distances and comparisons are those of float64 arithmetic on the given rows, whatever the common
offset of the points; ties go to the lower index; nothing depends on threads. The n x m matrix is never formed: the
definitions walk over it row by row, the kernels tile by tile. Not here: statistics made of these (generant.metrics).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Var
from ._table import op, rule
from .activation import affine
from .arithmetic import add, div, heaviside, mul, sub
from .gather import gather, scatter_add
from .layout import full_like, reshape
from .reduce import sum as sum_

__all__ = ["knn", "nearest", "radius_count", "radius_min"]

SIZES = [dict(n=1, m=7, d=1), dict(n=37, m=53, d=2), dict(n=130, m=67, d=3), dict(n=29, m=150, d=37)]


def _wide(*arrays: Any) -> list:
    """The arrays in float64, or in their own precision where that is higher."""
    return [a.astype(np.promote_types(a.dtype, np.float64)) for a in arrays]


def _check_knn(x, y=None, *, k=5):
    candidates = x.shape[0] - 1 if y is None else y.shape[0]
    if not 1 <= k <= candidates:
        of = "x without the row itself" if y is None else "y"
        raise ValueError(f"knn: k must be in 1..{candidates}, the number of rows of {of}, got {k!r}")
    if candidates >= 2**32:
        raise ValueError(f"knn: y must have fewer than 2^32 rows, got {candidates}")


@op("x: n d, y?: m d -> n k, n k int64", sizes=SIZES, attrs=[dict(k=1), dict(k=5)], check=_check_knn)
def knn(x, y=None, *, k=5):
    """d_il = |x_i - y_j|, j the l-th nearest row of y: the k smallest distances of every row of x, and the indices j.

    x (n, d), y (m, d): points. Returns Euclidean distances (n, k), ascending, in x's dtype, and indices (n, k) int64.
    y=None means x itself with every row excluded from its own neighbours by its index, so a duplicate row is a
    neighbour at distance 0. Ties go to the lower index. Distances and their order are those of float64 arithmetic on
    the given rows (relative error one rounding to x's dtype); distances that are NaN come last.
    Time n m d (half for y=None), memory O((n + m) k). The gradient of a distance is (x_i - y_j) / d_il, 0 where the
    rows are equal; its memory is n k d. Raises ValueError if there are fewer than k rows to choose from.
    """
    rows, points = _wide(x, x if y is None else y)
    distance = np.empty((x.shape[0], k), x.dtype)
    index = np.empty((x.shape[0], k), np.int64)
    for i, row in enumerate(rows):
        square = ((row - points) ** 2).sum(axis=1)
        order = np.argsort(square, kind="stable")
        best = (order[order != i] if y is None else order)[:k]
        distance[i], index[i] = np.sqrt(square[best]), best
    return distance, index


def _check_nearest(x, y, y_scale=None):
    if y.shape[0] == 0:
        raise ValueError("nearest: y must have at least 1 row, got 0")
    if isinstance(y_scale, np.ndarray) and not y_scale.min() > 0:  # on a GPU nobody waits for it
        j = int(np.argmin(np.asarray(y_scale) > 0))
        raise ValueError(f"nearest: y_scale must be positive, got y_scale[{j}] = {float(y_scale[j])}")


@op(
    "x: n d, y: m d, y_scale?: m -> n, n int64", sizes=[dict(n=1, m=1, d=1), *SIZES[1:]],
    domain={"y_scale": "positive"}, check=_check_nearest,
)
def nearest(x, y, y_scale=None):
    """min_j |x_i - y_j| / s_j and the j where it is: the nearest centre (vector quantisation), or the realism score.

    x (n, d), y (m, d): points. y_scale s (m,): positive, 1 if absent. Returns (n,) in x's dtype and indices (n,) int64.
    Compared are |x_i - y_j|^2 / s_j^2 in float64; ties go to the lower index; NaN is chosen only if there is nothing
    else. Time n m d, memory O(n + m). Differentiable in x, y and y_scale; the gradient at x_i = y_j is 0.
    Raises ValueError if y has no rows or a scale is not positive.
    Kynkaanniemi et al., NeurIPS 2019, eq. 3 (its inverse, the maximum of s_j / |x - y_j|).
    """
    rows, points = _wide(x, y)
    square_scale = 1 if y_scale is None else _wide(y_scale)[0] ** 2
    distance = np.empty(x.shape[0], x.dtype)
    index = np.empty(x.shape[0], np.int64)
    for i, row in enumerate(rows):
        square = ((row - points) ** 2).sum(axis=1) / square_scale
        j = index[i] = np.argsort(square, kind="stable")[0]  # which puts NaN last
        distance[i] = np.sqrt(square[j])
    return distance, index




@op(
    "x: n d, y: m d, radius: m, x_radius?: n -> n int64, m int64, m int64, n int64",
    sizes=[dict(n=1, m=1, d=1), *SIZES[1:]], attrs=[dict(), dict(closed=True)],
    domain={"radius": "positive", "x_radius": "positive"},
)
def radius_count(x, y, radius, x_radius=None, *, closed=False):
    """#{j : |x_i - y_j| < r_j} for every i, #{i : ...} for every j, and both again for balls around x.

    x (n, d), y (m, d): points. radius r (m,): of the balls around y; x_radius (n,): of balls around x, if given.
    Returns four int64 counts: for every row of x the balls of y that hold it (n,); for every ball of y the rows of x in
    it (m,); for every row of y the balls of x that hold it (m,); for every ball of x the rows of y in it (n,). The last
    two are zeros without x_radius.
    A point is inside if its distance, rounded to x's dtype as knn returns it, is < radius; <= if `closed`. So a ball
    that reaches exactly to a point found by knn does not hold it, and does when closed. A NaN distance or radius is
    outside. Time n m d in one pass, memory O(n + m). Distances are as exact as knn's.
    Naeem et al., ICML 2020, eq. 3, 5, 7 (density, coverage, precision and recall are these counts).
    """
    rows, points = _wide(x, y)
    balls, members = np.zeros(x.shape[0], np.int64), np.zeros(y.shape[0], np.int64)
    x_balls, x_members = np.zeros(y.shape[0], np.int64), np.zeros(x.shape[0], np.int64)
    for i, row in enumerate(rows):
        distance = np.sqrt(((row - points) ** 2).sum(axis=1)).astype(x.dtype)
        inside = distance <= radius if closed else distance < radius
        balls[i] = np.count_nonzero(inside)
        members += inside
        if x_radius is not None:
            inside = distance <= x_radius[i] if closed else distance < x_radius[i]
            x_members[i] = np.count_nonzero(inside)
            x_balls += inside
    return balls, members, x_balls, x_members


@op(  # sizes at which every row is in some ball
    "x: n d, y: m d, radius: m -> n", sizes=[dict(n=3, m=37, d=1), dict(n=37, m=53, d=2), dict(n=130, m=97, d=1)],
    attrs=[dict(), dict(closed=True)], domain={"radius": "positive"},
)
def radius_min(x, y, radius, *, closed=False):
    """min {r_j : |x_i - y_j| < r_j}: the radius of the smallest ball that holds x_i, inf if none does.

    x (n, d), y (m, d), radius r (m,): centres and radii of the balls. Returns (n,) in x's dtype. Inside means what it
    means to radius_count, `closed` too. Time n m d, memory O(n + m). Not differentiable.
    Han et al., Rarity score, ICLR 2023, def. 2.
    """
    rows, points = _wide(x, y)
    smallest = np.full(x.shape[0], np.inf, x.dtype)
    for i, row in enumerate(rows):
        distance = np.sqrt(((row - points) ** 2).sum(axis=1)).astype(x.dtype)
        inside = distance <= radius if closed else distance < radius
        smallest[i] = radius[inside].min(initial=np.inf)
    return smallest


# ---- gradients of distances ----------------------------------------------------------------------------------------


def _plain(index: Any) -> Any:
    """Indices as an array: nothing flows through them."""
    while type(index) is Var:
        index = index.value
    return index


def _slopes(g: Any, distance: Any) -> Any:
    """g / distance, 0 where the distance is 0; so are its derivatives."""
    zero = full_like(distance, value=0.0)
    away = affine(heaviside(distance, zero), scale=2.0, shift=-1.0)  # 1 off zero, 0 at zero
    return div(mul(g, away), add(distance, affine(away, scale=-1.0, shift=1.0)))


def _differences(x: Any, y: Any, index: Any) -> Any:
    """x_i - y_index[i, l], (n, k, d)."""
    (n, k), d = index.shape, x.shape[1]
    return sub(reshape(x, shape=(n, 1, d)), reshape(gather(y, index.reshape(-1)), shape=(n, k, d)))


def _pull(weights: Any, difference: Any, index: Any, m: int, needs: Any) -> tuple[Any, Any]:
    """weights_il difference_il summed over l, and minus that added up in row index[i, l] of (m, d)."""
    (n, k), d = index.shape, difference.shape[2]
    part = mul(reshape(weights, shape=(n, k, 1)), difference)
    dx = sum_(part, axis=1) if needs[0] else None
    dy = scatter_add(reshape(affine(part, scale=-1.0), shape=(n * k, d)), index.reshape(-1), m=m) if needs[1] else None
    return dx, dy


def _knn_rule(gys, ys, needs, x, y=None, *, k=5):
    if gys[0] is None:
        return [None, None]
    index = _plain(ys[1])
    itself = y is None
    points = x if itself else y
    needs = (True, True) if itself else (*needs, False)[:2]
    dx, dy = _pull(_slopes(gys[0], ys[0]), _differences(x, points, index), index, points.shape[0], needs)
    return [add(dx, dy), None] if itself else [dx, dy]


def _nearest_rule(gys, ys, needs, x, y, y_scale=None):
    if gys[0] is None:
        return [None, None, None]
    index = _plain(ys[1])
    n, m = x.shape[0], y.shape[0]
    g, distance = gys[0], ys[0]
    ds = None
    if y_scale is not None:
        scale = reshape(gather(reshape(y_scale, shape=(m, 1)), index), shape=(n,))
        if needs[2]:
            rows = reshape(affine(div(mul(g, distance), scale), scale=-1.0), shape=(n, 1))
            ds = reshape(scatter_add(rows, index, m=m), shape=(m,))
        g = div(g, mul(scale, scale))
    index = index.reshape(n, 1)
    dx, dy = _pull(reshape(_slopes(g, distance), shape=(n, 1)), _differences(x, y, index), index, m, needs)
    return [dx, dy, ds]


rule(knn, _knn_rule)
rule(nearest, _nearest_rule)
