"""Sums and searches over all pairs of two point sets, in O(n m d) time and O(n + m) memory.

The n x m matrix of distances or kernel values is never formed: the definitions below walk over it row by row, the
kernels tile by tile. Distances are exact where it matters: a pair is measured by the differences of its raw
coordinates whenever |x|^2 + |y|^2 - 2<x, y> would cancel, so equal rows have distance 0 and a common offset of all
points costs no digits. Not here: statistics built on these sums (generant.metrics) and gradients.
"""

import numpy as np

from ._table import op


def _check_kernel_sum(
    x, y=None, x_weights=None, y_weights=None, *, degree=3, bandwidth=1.0, exclude_diagonal=False, **_
):
    if exclude_diagonal and y is not None:
        raise ValueError("kernel_sum: exclude_diagonal=True needs y=None (pairs of x with itself), got y")
    if y_weights is not None and y is None:
        raise ValueError("kernel_sum: y_weights needs y; without y, x_weights weighs both sides")
    if degree < 1:
        raise ValueError(f"kernel_sum: degree must be at least 1, got {degree!r}")
    if not bandwidth > 0:
        raise ValueError(f"kernel_sum: bandwidth must be positive, got {bandwidth!r}")


def _check_knn(x, y=None, *, k=5):
    candidates = x.shape[0] - 1 if y is None else y.shape[0]
    if not 1 <= k <= candidates:
        of = "x without the row itself" if y is None else "y"
        raise ValueError(f"knn: k must be in 1..{candidates}, the number of rows of {of}, got {k!r}")


@op(
    "x: n d, y?: m d, x_weights?: n, y_weights?: m -> float64",
    sizes=[dict(n=1, m=1, d=1), dict(n=37, m=53, d=2), dict(n=130, m=67, d=3), dict(n=29, m=150, d=37)],
    attrs=[
        dict(bandwidth=2.5),
        dict(bandwidth=4.0, center=0.25),
        dict(kernel="polynomial", degree=3, coef0=1.0, center=1.0),
        dict(kernel="polynomial", degree=2, gamma=0.5, coef0=0.0),
    ],
    domain={"x_weights": "positive", "y_weights": "positive"},
    choices={"kernel": ("rbf", "polynomial")},
    check=_check_kernel_sum,
)
def kernel_sum(
    x,
    y=None,
    x_weights=None,
    y_weights=None,
    *,
    kernel="rbf",
    bandwidth=1.0,
    degree=3,
    gamma=None,
    coef0=1.0,
    center=0.0,
    exclude_diagonal=False,
):
    """Sum over all pairs of a kernel: sum_ij u_i v_j (k(x_i, y_j) - center).

    x (n, d), y (m, d): points. x_weights u (n,), y_weights v (m,): 1 if absent. Returns a float64 scalar.
    kernel "rbf": k = exp(-|x - y|^2 / (2 bandwidth^2)); "polynomial": k = (gamma <x, y> + coef0)^degree, gamma = 1/d
    if None. y=None means x with itself (u weighs both sides, half the pairs are computed); exclude_diagonal then
    leaves out i = j, which is not the same as subtracting n k(x, x) afterwards: that cancels.
    `center` near the mean kernel value keeps the digits of differences of such sums (MMD, KID).
    Time n m d (half for y=None), memory O(n + m); kernel values are rounded to x's dtype and summed in float64. The
    native kernel rounds a polynomial after taking out the value at the common mean, so the error is relative to how
    much kernel values differ. NaN in, NaN out.
    Raises ValueError for exclude_diagonal or y_weights with the wrong y, degree < 1, bandwidth <= 0.
    """
    d = x.shape[1]
    wide = np.promote_types(x.dtype, np.float64)
    u, points, v = x_weights, (x if y is None else y), (x_weights if y is None else y_weights)
    total = wide.type(0)
    for i, row in enumerate(x):
        if kernel == "rbf":
            square = ((row - points) ** 2).sum(axis=1)
            value = np.exp(square * (-0.5 / (bandwidth * bandwidth)))
        else:
            value = ((points * row).sum(axis=1) * (1 / d if gamma is None else gamma) + coef0) ** int(degree)
        value = value.astype(wide) - center
        if exclude_diagonal:
            value[i] = 0
        if v is not None:
            value = value * v
        total += value.sum() * (1 if u is None else u[i])
    return total


@op(
    "x: n d, y?: m d -> n k, n k int64",
    sizes=[dict(n=1, m=7, d=1), dict(n=37, m=53, d=2), dict(n=130, m=67, d=3), dict(n=29, m=150, d=37)],
    attrs=[dict(k=1), dict(k=5)],
    check=_check_knn,
)
def knn(x, y=None, *, k=5):
    """The k nearest rows of y for every row of x, nearest first: (Euclidean distances, indices).

    x (n, d), y (m, d): points. Returns distances (n, k) in x's dtype and indices (n, k) int64.
    y=None means x itself with every row excluded from its own neighbours by its index, so a duplicate row is a
    neighbour at distance 0. Ties go to the lower index. Distances and their order are those of float64 arithmetic on
    the given rows. Distances that are NaN come last.
    Time n m d, memory O((n + m) k). Raises ValueError if there are fewer than k rows to choose from.
    """
    wide = np.promote_types(x.dtype, np.float64)
    points = (x if y is None else y).astype(wide)
    distance = np.empty((x.shape[0], k), x.dtype)
    index = np.empty((x.shape[0], k), np.int64)
    for i, row in enumerate(x.astype(wide)):
        square = ((row - points) ** 2).sum(axis=1)
        order = np.argsort(square, kind="stable")
        nearest = (order[order != i] if y is None else order)[:k]
        distance[i], index[i] = np.sqrt(square[nearest]), nearest
    return distance, index


@op(
    "x: n d, y: m d, radius: m -> n int64, m int64",
    sizes=[dict(n=1, m=1, d=1), dict(n=37, m=53, d=2), dict(n=130, m=67, d=3), dict(n=29, m=150, d=37)],
    attrs=[dict(), dict(closed=True)],
    domain={"radius": "positive"},
)
def radius_count(x, y, radius, *, closed=False):
    """Which points lie in which balls: (for every row of x the balls that hold it, for every ball the rows in it).

    x (n, d): points. y (m, d), radius (m,): centres and radii of the balls. Returns counts (n,) and (m,) int64.
    A point is inside if its distance, rounded to x's dtype as knn returns it, is < radius; <= if `closed`. So a ball
    that reaches exactly to a point found by knn does not hold it, and does when closed.
    Time n m d, memory O(n + m). Distances are as exact as knn's: pairs too close to the border are measured again.
    """
    wide = np.promote_types(x.dtype, np.float64)
    points = y.astype(wide)
    balls, rows = np.zeros(x.shape[0], np.int64), np.zeros(y.shape[0], np.int64)
    for i, row in enumerate(x.astype(wide)):
        distance = np.sqrt(((row - points) ** 2).sum(axis=1)).astype(x.dtype)
        inside = distance <= radius if closed else distance < radius
        balls[i] = np.count_nonzero(inside)
        rows += inside
    return balls, rows
