"""Sums of a kernel over all pairs of two point sets, in O(n m d) time and O(n + m) memory.

The n x m matrix of kernel values is never formed: the definitions below walk over it row by row, the kernels tile by
tile. Distances are exact where it matters: a pair is measured by the differences of its raw coordinates whenever
|x|^2 + |y|^2 - 2<x, y> would cancel, so equal rows have distance 0 and a common offset of all points costs no digits.
Not here: statistics built on these sums (generant.metrics), products with the kernel matrix (kernel_matvec).
"""

from typing import Any

import numpy as np

from . import _kernel_function as kernels
from ._kernel_function import KernelFunction
from ._table import op, rule
from .activation import affine
from .arithmetic import add, mul
from .kernel_matvec import kernel_matvec, kernel_matvec_dx
from .layout import cast, full_like, reshape, slice_axis
from .reduce import sum as _sum

__all__ = ["kernel_row_sums", "kernel_sum"]

SIZES: list[dict[str, Any]] = [
    dict(n=1, m=1, d=1), dict(n=37, m=53, d=2), dict(n=130, m=67, d=3), dict(n=29, m=150, d=37),
]  # fmt: skip
KERNELS: list[dict[str, Any]] = [
    dict(bandwidth=(2.5,)),
    dict(bandwidth=(4.0,), center=0.25),
    dict(kernel="polynomial", degree=3, coef0=1.0, center=1.0),
    dict(kernel="polynomial", degree=2, gamma=0.5, coef0=0.0),
    dict(bandwidth=(1.0, 2.0, 4.0, 8.0, 5.0)),
    dict(kernel="laplace", bandwidth=(6.0,), center=0.5),
    dict(kernel="laplacian", bandwidth=(8.0, 20.0)),
    dict(kernel="energy", center=-1.5),
    dict(kernel="rational_quadratic", alpha=0.5, bandwidth=(4.0,)),
    dict(kernel="rational_quadratic", alpha=1.3, bandwidth=(4.0, 2.0)),
    dict(kernel="matern32", bandwidth=(6.0,)),
    dict(kernel="matern52", bandwidth=(4.0, 7.0)),
    dict(kernel="exp_dot", center=1.0),
]


def _check_diagonal(op_name: str, y: Any, exclude_diagonal: bool) -> None:
    if exclude_diagonal and y is not None:
        raise ValueError(f"{op_name}: exclude_diagonal=True needs y=None (pairs of x with itself), got y")


def _check_center(op_name: str, center: float) -> None:
    if not np.isfinite(center):
        raise ValueError(f"{op_name}: center must be finite, got {center!r}")


def _check_kernel_sum(
    x, y=None, x_weights=None, y_weights=None, *, exclude_diagonal=False, center=0.0, **attrs
):  # fmt: skip
    _check_diagonal("kernel_sum", y, exclude_diagonal)
    _check_center("kernel_sum", center)
    if y_weights is not None and y is None:
        raise ValueError("kernel_sum: y_weights needs y; without y, x_weights weighs both sides")
    kernels.check_kernel("kernel_sum", **attrs)


def _check_kernel_row_sums(x, y=None, *, exclude_diagonal=False, center=0.0, **attrs):
    _check_diagonal("kernel_row_sums", y, exclude_diagonal)
    _check_center("kernel_row_sums", center)
    kernels.check_kernel("kernel_row_sums", **attrs)


def _rows(x, y, exclude_diagonal, center, attrs):
    """For every row i of x: i and k(x_i, y_j) - center for all j, in float64 or wider."""
    f, points = KernelFunction(x.shape[1], **attrs), x if y is None else y
    wide = np.promote_types(x.dtype, np.float64)
    for i, row in enumerate(x):
        value = f(f.argument(row, points)).astype(wide) - center
        if exclude_diagonal:
            value[i] = 0
        yield i, value


@op(
    "x: n d, y?: m d, x_weights?: n, y_weights?: m -> float64",
    sizes=SIZES,
    attrs=KERNELS,
    domain={"x_weights": "positive", "y_weights": "positive"},
    choices={"kernel": kernels.KERNELS},
    check=_check_kernel_sum,
    keep="x",
)
def kernel_sum(
    x, y=None, x_weights=None, y_weights=None, *, kernel="rbf", degree=3, gamma=None, coef0=1.0, alpha=1.0,
    exclude_diagonal=False, center=0.0, bandwidth=(1.0,),
):  # fmt: skip
    """Sum over all pairs of a kernel: sum_ij u_i v_j (k(x_i, y_j) - center).

    x (n, d), y (m, d): points. x_weights u (n,), y_weights v (m,): 1 if absent. Returns a float64 scalar.
    kernel, degree, gamma, coef0, alpha, bandwidth: see generant.ops._kernel_function; several bandwidths: the sum over
    them, for rbf, laplace and laplacian by squaring where they are powers of two apart (of h^2 for rbf).
    y=None means x with itself (u weighs both sides, half the pairs are computed); exclude_diagonal then leaves out
    i = j, which is not the same as subtracting n k(x, x) afterwards: that cancels.
    `center` near the mean kernel value keeps the digits of differences of such sums (MMD, KID).
    Time n m d (half for y=None), memory O(n + m). Kernel values are rounded to x's dtype and summed in float64, so the
    error of a mean is about that of one value over sqrt(n m). The native kernel rounds a polynomial after taking out
    the value at the common mean, so there the error is relative to how much kernel values differ.
    Differentiable twice, through kernel_matvec. NaN in, NaN out.
    Raises ValueError for exclude_diagonal or y_weights with the wrong y, and for parameters out of range.
    """
    attrs = dict(kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=bandwidth)
    u, v = x_weights, x_weights if y is None else y_weights
    total = np.promote_types(x.dtype, np.float64).type(0)
    for i, value in _rows(x, y, exclude_diagonal, center, attrs):
        total += (value if v is None else value * v).sum() * (1 if u is None else u[i])
    return total


@op(
    "x: n d, y?: m d -> n float64, m float64, float64",
    sizes=SIZES,
    attrs=[*KERNELS, dict(kernel="polynomial", degree=5, gamma=0.1)],
    choices={"kernel": kernels.KERNELS},
    derive=lambda dims, attrs: {"m": dims.get("m", dims["n"])},
    check=_check_kernel_row_sums,
)
def kernel_row_sums(
    x, y=None, *, kernel="rbf", degree=3, gamma=None, coef0=1.0, alpha=1.0, exclude_diagonal=False, center=0.0,
    bandwidth=(1.0,),
):  # fmt: skip
    """Sums over the rows, over the columns and of the squares of K_ij = k(x_i, y_j) - center, in one pass.

    x (n, d), y (m, d): points. Returns (sum_j K_ij (n,), sum_i K_ij (m,), sum_ij K_ij^2), all float64.
    y=None means x with itself: half the pairs are computed, and rows and columns are the same; exclude_diagonal then
    leaves out i = j. Parameters, errors and digits: those of kernel_sum. What the variance of an MMD estimate needs.
    Time n m d (half for y=None), memory O(n + m) (8 MB at most beyond). Not differentiable. NaN in, NaN out.
    """
    attrs = dict(kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=bandwidth)
    wide = np.promote_types(x.dtype, np.float64)
    rows, columns, squares = np.zeros(len(x), wide), np.zeros(len(x if y is None else y), wide), wide.type(0)
    for i, value in _rows(x, y, exclude_diagonal, center, attrs):
        rows[i] = value.sum()
        columns += value
        squares += (value * value).sum()
    return rows, columns, squares


def _kernel_sum_rule(gys, ys, needs, x, y=None, u=None, v=None, *, exclude_diagonal, center, **attrs):
    need_x, need_y, need_u, need_v = [*needs, False, False, False][:4]
    g = reshape(cast(gys[0], dtype=x.dtype.name), shape=(1, 1))
    itself = y is None
    y, v = (x, u) if itself else (y, v)
    attrs["exclude_diagonal"] = exclude_diagonal
    both = 2.0 if itself else 1.0  # what moves a row of x moves it on both sides

    def column(weights, points):
        if weights is None:
            return full_like(slice_axis(points, start=0, stop=1), value=1.0)  # made of an array, as `record` wants it
        return reshape(weights, shape=(points.shape[0], 1))

    def scaled(gradient):
        return affine(mul(gradient, g), scale=both) if itself else mul(gradient, g)

    def of_weights(points, others, weights):
        """sum_j v_j (k_ij - center), for every i."""
        sums, weights = kernel_matvec(points, others, column(weights, others), **attrs), column(weights, others)
        if center != 0:
            total = _sum(weights, axis=0, keepdims=True)
            sums = add(sums, affine(total, scale=-center))
            if exclude_diagonal:
                sums = add(sums, affine(weights, scale=center))
        return reshape(scaled(sums), shape=(points.shape[0],))

    return [
        scaled(kernel_matvec_dx(x, y, column(u, x), column(v, y), **attrs)) if need_x else None,
        scaled(kernel_matvec_dx(y, x, column(v, y), column(u, x), **attrs)) if need_y and not itself else None,
        of_weights(x, y, v) if need_u else None,
        of_weights(y, x, u) if need_v and not itself else None,
    ]


rule(kernel_sum, _kernel_sum_rule)
