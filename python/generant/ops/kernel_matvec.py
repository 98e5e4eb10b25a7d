"""Products with kernel matrices, and their derivatives, in O(n m (d + e)) time and O(n + m) memory.

The n x m matrix of kernel values is never formed. The three ops are closed under two differentiations: kernel_matvec,
its derivative in x, and the gradients of that. logsumexp, softmax_matmul, kernel_sum and sinkhorn take their gradients
from here. Logarithms of weights go into the exponent, so weights such as exp(-logsumexp) never exist as numbers that
could overflow.
"""

from typing import Any

import numpy as np

from . import _kernel_function as kernels
from ._kernel_function import KernelFunction
from ._table import op, rule
from .arithmetic import mul
from .layout import cast
from .reduce import sum as _sum

__all__ = ["kernel_matvec", "kernel_matvec_dx", "kernel_matvec_dx_bwd"]

SIZES: list[dict[str, Any]] = [
    dict(n=1, m=1, d=1, e=1), dict(n=37, m=53, d=2, e=3), dict(n=130, m=67, d=3, e=1), dict(n=41, m=41, d=5, e=2),
    dict(n=19, m=23, d=37, e=3), dict(n=29, m=150, d=67, e=19),
]  # fmt: skip
KERNELS: list[dict[str, Any]] = [
    dict(bandwidth=(5.0,)),
    dict(kernel="laplace", bandwidth=(4.0,)),
    dict(kernel="exp_dot", gamma=0.05),
    dict(kernel="rbf", bandwidth=(1.5, 3.0, 6.0)),
    dict(kernel="rbf", bandwidth=(3.0, 7.0), exclude_diagonal=True),
    dict(kernel="laplacian", bandwidth=(16.0,)),
    dict(kernel="laplacian", bandwidth=(8.0, 20.0)),
    dict(kernel="polynomial"),
    dict(kernel="polynomial", degree=1, gamma=0.5, coef0=0.0),
    dict(kernel="energy"),
    dict(kernel="rational_quadratic", alpha=0.5, bandwidth=(4.0,)),
    dict(kernel="matern32", bandwidth=(6.0,)),
    dict(kernel="matern52", bandwidth=(4.0, 7.0)),
]


def _check_points(op: str, x: Any, y: Any, x_log: Any, y_log: Any, exclude_diagonal: bool, attrs: dict) -> None:
    if exclude_diagonal and x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{op}: exclude_diagonal=True pairs row i of x with row i of y, got {x.shape[0]} and {y.shape[0]} rows"
        )
    kernels.check_kernel(op, logs=x_log is not None or y_log is not None, **attrs)


def _check_matvec(x, y, v, x_log=None, y_log=None, *, exclude_diagonal=False, **attrs):
    _check_points("kernel_matvec", x, y, x_log, y_log, exclude_diagonal, attrs)


def _check_dx(x, y, g, v, x_log=None, y_log=None, *, exclude_diagonal=False, **attrs):
    _check_points("kernel_matvec_dx", x, y, x_log, y_log, exclude_diagonal, attrs)


def _check_dx_bwd(h, x, y, g, v, x_log=None, y_log=None, *, exclude_diagonal=False, **attrs):
    _check_points("kernel_matvec_dx_bwd", x, y, x_log, y_log, exclude_diagonal, attrs)


def _rows(x, y, x_log, y_log, exclude_diagonal, orders, **attrs):
    """For every row i of x: i, its kernel function's derivatives of these orders times the weights, and dq/dx_i."""
    f = KernelFunction(x.shape[1], **attrs)
    for i, row in enumerate(x):
        log = None
        if x_log is not None or y_log is not None:
            log = (0 if x_log is None else x_log[i]) + (np.zeros(len(y)) if y_log is None else y_log)
        q = f.argument(row, y)
        values = [f(q, order, log) for order in orders]
        if exclude_diagonal:
            for value in values:
                value[i] = 0
        yield i, values, f.gradient(row, y)


@op(
    "x: n d, y: m d, v: m e, x_log?: n float64, y_log?: m float64 -> n e",
    sizes=SIZES,
    attrs=KERNELS,
    choices={"kernel": kernels.KERNELS},
    check=_check_matvec,
)
def kernel_matvec(
    x, y, v, x_log=None, y_log=None, *, kernel="rbf", degree=3, gamma=None, coef0=1.0, alpha=1.0,
    exclude_diagonal=False, bandwidth=(1.0,),
):  # fmt: skip
    """A kernel matrix times vectors: out_i = sum_j exp(x_log_i + y_log_j) k(x_i, y_j) v_j.

    x (n, d), y (m, d): points. v (m, e): e vectors. x_log (n,), y_log (m,) float64: logarithms of weights, 0 if absent;
    -inf leaves a row out. Returns (n, e) in x's dtype.
    kernel, degree, gamma, coef0, alpha, bandwidth: see generant.ops._kernel_function; several bandwidths: the sum over
    them. exclude_diagonal leaves out i = j (n = m).
    The logs are added inside the exponent: nothing overflows where exp(x_log + y_log) k does not. So they need a kernel
    that is an exponential: rbf with one bandwidth, laplace, exp_dot.
    Time n m (d + e), memory O(n + m) beyond the arguments. Error: that of the definition in the same precision.
    Differentiable twice; where |x - y| has a kink the derivative is 0. NaN in, NaN out.
    Raises ValueError for exclude_diagonal with n != m, logs with another kernel, bandwidth or alpha <= 0, degree < 1.
    """
    attrs = dict(kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=bandwidth)
    out = np.empty((x.shape[0], v.shape[1]), x.dtype)
    for i, (value,), _ in _rows(x, y, x_log, y_log, exclude_diagonal, (0,), **attrs):
        out[i] = value @ v
    return out


@op(
    "x: n d, y: m d, g: n e, v: m e, x_log?: n float64, y_log?: m float64 -> n d",
    sizes=SIZES,
    attrs=KERNELS,
    choices={"kernel": kernels.KERNELS},
    check=_check_dx,
    keep="x",
)
def kernel_matvec_dx(
    x, y, g, v, x_log=None, y_log=None, *, kernel="rbf", degree=3, gamma=None, coef0=1.0, alpha=1.0,
    exclude_diagonal=False, bandwidth=(1.0,),
):  # fmt: skip
    """The gradient of <g, kernel_matvec> in x: out_i = sum_j <g_i, v_j> exp(x_log_i + y_log_j) d k(x_i, y_j) / d x_i.

    x (n, d), y (m, d), g (n, e), v (m, e); x_log (n,), y_log (m,) float64. Returns (n, d) in x's dtype.
    Attributes and errors: those of kernel_matvec. The gradient in y is the same op with the sides swapped.
    At x = y the derivative of the kernels with a kink (laplace, laplacian, energy) is taken as 0.
    Time n m (d + e), memory O(n + m) beyond the arguments. Differentiable once more.
    """
    attrs = dict(kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=bandwidth)
    out = np.empty_like(x)
    for i, (slope,), direction in _rows(x, y, x_log, y_log, exclude_diagonal, (1,), **attrs):
        out[i] = ((v @ g[i]) * slope) @ direction
    return out


@op(
    "h: n d, x: n d, y: m d, g: n e, v: m e, x_log?: n float64, y_log?: m float64 -> n d, m d, n e, m e",
    sizes=SIZES,
    attrs=[{**a, "need": (0, 1, 2, 3)} for a in KERNELS] + [{**KERNELS[i], "need": (i, 2 + i)} for i in (0, 1)],
    choices={"kernel": kernels.KERNELS},
    check=_check_dx_bwd,
    keep="",
)
def kernel_matvec_dx_bwd(
    h, x, y, g, v, x_log=None, y_log=None, *, kernel="rbf", degree=3, gamma=None, coef0=1.0, alpha=1.0,
    exclude_diagonal=False, bandwidth=(1.0,), need,
):  # fmt: skip
    """The gradients of S = <h, kernel_matvec_dx(x, y, g, v)> in x, y, g and v, those that `need` lists by number.

    h, x (n, d); y (m, d); g (n, e); v (m, e); x_log (n,), y_log (m,) float64. Returns (n, d), (m, d), (n, e), (m, e);
    None for those not in need. With S = sum_ij w_ij <h_i, grad k_ij>, w_ij = <g_i, v_j> exp(x_log_i + y_log_j), and
    delta = x_i - y_j, for k = phi(|delta|^2):
        dx_i = sum_j w_ij (4 phi'' <h_i, delta> delta + 2 phi' h_i), dy_j = -sum_i of the same,
        dg_i = sum_j v_j exp(..) 2 phi' <h_i, delta>, dv_j = sum_i g_i exp(..) 2 phi' <h_i, delta>.
    Attributes and errors: those of kernel_matvec. Time n m (d + e), memory O(n + m) beyond the arguments.
    Not differentiable.
    """
    attrs = dict(kernel=kernel, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha, bandwidth=bandwidth)
    dx, dy, dg, dv = (np.zeros_like(a) for a in (x, y, g, v))
    for i, (slope, curvature), direction in _rows(x, y, x_log, y_log, exclude_diagonal, (1, 2), **attrs):
        along, weight = direction @ h[i], v @ g[i]
        dg[i] = (slope * along) @ v
        dv += np.outer(slope * along, g[i])
        bend, turn = weight * curvature * along, weight * slope
        if kernel in kernels.INNER:  # dq/dx = y
            dx[i] = bend @ direction
            dy += np.outer(bend, x[i]) + np.outer(turn, h[i])
        else:  # q depends on x - y; d(dq/dx)/dx is 2 for a square, 0 for |x - y|_1
            each = bend[:, None] * direction + np.outer((0 if kernel == "laplacian" else 2) * turn, h[i])
            dx[i] = each.sum(axis=0)
            dy -= each
    return tuple(a if i in need else None for i, a in enumerate((dx, dy, dg, dv)))


def _log_gradient(g: Any, out: Any) -> Any:
    """sum_e g_ie out_ie in float64, as the logarithms are."""
    return cast(_sum(mul(g, out), axis=-1), dtype="float64")


def _matvec_rule(gys, ys, needs, x, y, v, x_log=None, y_log=None, **a):
    g = gys[0]
    need_x, need_y, need_v, need_x_log, need_y_log = [*needs, False, False][:5]
    dv = kernel_matvec(y, x, g, y_log, x_log, **a) if need_v or need_y_log else None
    return [
        kernel_matvec_dx(x, y, g, v, x_log, y_log, **a) if need_x else None,
        kernel_matvec_dx(y, x, v, g, y_log, x_log, **a) if need_y else None,
        dv if need_v else None,
        _log_gradient(g, ys[0]) if need_x_log else None,
        _log_gradient(v, dv) if need_y_log else None,
    ]


def _dx_rule(gys, ys, needs, x, y, g, v, x_log=None, y_log=None, **a):
    need_x, need_y, need_g, need_v, need_x_log, need_y_log = [*needs, False, False][:6]
    wanted = (need_x, need_y, need_g or need_x_log, need_v or need_y_log)
    need = tuple([i for i, wants in enumerate(wanted) if wants])
    dx, dy, dg, dv = kernel_matvec_dx_bwd.all(gys[0], x, y, g, v, x_log, y_log, need=need, **a)
    return [
        dx, dy, dg if need_g else None, dv if need_v else None,
        _log_gradient(g, dg) if need_x_log else None,
        _log_gradient(v, dv) if need_y_log else None,
    ]  # fmt: skip


rule(kernel_matvec, _matvec_rule)
rule(kernel_matvec_dx, _dx_rule)
