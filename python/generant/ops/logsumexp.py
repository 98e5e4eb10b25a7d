"""Log-sum-exp and softmax averages over all pairs of two point sets, in O(n m (d + e)) time and O(n + m) memory.

One pass each, with a running maximum: nothing overflows whatever the magnitudes. Gradients go through kernel_matvec,
with -logsumexp and the bias inside its exponent, so they need no n x m matrix either and second order comes by itself.
"""

from typing import Any

import numpy as np

from ._table import op, rule
from .activation import affine
from .arithmetic import add, mul
from .kernel_matvec import kernel_matvec, kernel_matvec_dx
from .layout import cast, concat, full_like, reshape, slice_axis
from .reduce import sum as _sum

__all__ = ["logsumexp", "softmax_matmul"]

COSTS = ("sqeuclidean", "euclidean", "dot")
CASES: list[dict[str, Any]] = [
    dict(scale=0.1), dict(scale=0.4, cost="euclidean"), dict(scale=0.3, cost="dot"), dict(scale=0.3),
    dict(scale=-0.2, cost="dot"),
]  # fmt: skip


def _check_scale(op: str, scale: float, cost: str) -> None:
    if not np.isfinite(scale) or (cost != "dot" and scale <= 0):
        raise ValueError(f"{op}: scale must be {'finite' if cost == 'dot' else 'positive and finite'}, got {scale!r}")


def _check_logsumexp(x, y, bias=None, *, scale=1.0, cost="sqeuclidean"):
    _check_scale("logsumexp", scale, cost)


def _check_softmax(x, y, v, bias=None, *, scale=1.0, cost="sqeuclidean"):
    _check_scale("softmax_matmul", scale, cost)


def _rows(x, y, bias, scale, cost):
    """For every row i of x: i, the terms exp(bias_j + score_ij - top), and top.

    Arithmetic in x's dtype, on what is left of the bias when its maximum is taken out; top in float64.
    """
    wide = np.promote_types(x.dtype, np.float64)
    shift, rest = wide.type(0), x.dtype.type(0)
    if bias is not None:
        highest = np.max(bias, initial=-np.inf)
        shift = wide.type(highest if np.isfinite(highest) else 0)
        rest = (bias - shift).astype(x.dtype)
    for i, row in enumerate(x):
        if cost == "dot":
            score = scale * (y * row).sum(axis=1)
        else:
            square = ((row - y) ** 2).sum(axis=1)
            score = -scale * (square if cost == "sqeuclidean" else np.sqrt(square))
        score = score + rest
        top = np.max(score, initial=-np.inf)
        with np.errstate(invalid="ignore"):
            yield i, np.exp(score - top), shift + wide.type(top)


def _finish(terms, top):
    """top + log sum_j terms_j. Without a finite top it is the result: -inf (all columns left out), inf or NaN."""
    return top + np.log(terms.sum(dtype=top.dtype)) if np.isfinite(top) else top


@op(
    "x: n d, y: m d, bias?: m float64 -> n float64",
    sizes=[
        dict(n=1, m=1, d=1), dict(n=37, m=53, d=2), dict(n=130, m=67, d=3), dict(n=29, m=31, d=37),
        dict(n=29, m=150, d=67),
    ],
    attrs=CASES,
    choices={"cost": COSTS},
    check=_check_logsumexp,
)
def logsumexp(x, y, bias=None, *, scale=1.0, cost="sqeuclidean"):
    """lse_i = log sum_j exp(bias_j + score_ij).

    score = -scale |x_i - y_j|^2 (cost "sqeuclidean"), -scale |x_i - y_j| ("euclidean") or scale <x_i, y_j> ("dot").
    x (n, d), y (m, d): points. bias (m,) float64, 0 if absent; -inf leaves a column out. Returns (n,) float64.
    No overflow whatever the magnitudes; a row without any column gives -inf.
    Time n m d, memory O(n + m) beyond the arguments. Scores and what is left of the bias when its maximum is taken out
    are in x's dtype: the error is about eps times the largest |score| that counts.
    Differentiable twice. NaN in, NaN out. Raises ValueError for scale <= 0 (not for "dot") or not finite.
    """
    out = np.empty(x.shape[0], np.promote_types(x.dtype, np.float64))
    for i, terms, top in _rows(x, y, bias, scale, cost):
        out[i] = _finish(terms, top)
    return out


@op(
    "x: n d, y: m d, v: m e, bias?: m float64 -> n e, n float64",
    sizes=[
        dict(n=1, m=1, d=1, e=1), dict(n=37, m=53, d=2, e=3), dict(n=130, m=67, d=3, e=1),
        dict(n=19, m=23, d=37, e=3), dict(n=29, m=150, d=67, e=19),
    ],
    attrs=CASES,
    choices={"cost": COSTS},
    check=_check_softmax,
    caches=1,
)
def softmax_matmul(x, y, v, bias=None, *, scale=1.0, cost="sqeuclidean"):
    """Softmax-weighted averages: out_i = sum_j p_ij v_j, p_ij = exp(bias_j + score_ij - lse_i).

    Attention (cost "dot"), the barycentric map of a transport plan, the ideal denoiser of a data set.
    x (n, d), y (m, d): points. v (m, e): what is averaged. bias (m,) float64, 0 if absent; -inf leaves a column out.
    score, scale, cost: as in logsumexp. Returns (n, e) in x's dtype; `softmax_matmul.all` also returns lse (n,).
    A row without any column gives NaN. Time n m (d + e), one pass, memory O(n + m) beyond the arguments.
    Differentiable twice. NaN in, NaN out. Raises ValueError for scale <= 0 (not for "dot") or not finite.
    """
    out = np.empty((x.shape[0], v.shape[1]), x.dtype)
    lse = np.empty(x.shape[0], np.promote_types(x.dtype, np.float64))
    for i, terms, top in _rows(x, y, bias, scale, cost):
        lse[i] = _finish(terms, top)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[i] = (terms @ v) / terms.sum()
    return out, lse


def _kernel_of(scale: float, cost: str) -> dict[str, Any]:
    """The kernel exp(score), as kernel_matvec's attributes."""
    if cost == "dot":
        return dict(kernel="exp_dot", gamma=float(scale))
    if cost == "euclidean":
        return dict(kernel="laplace", bandwidth=(1 / scale,))
    return dict(kernel="rbf", bandwidth=((2 * scale) ** -0.5,))


def _column(a: Any, dtype: Any) -> Any:
    """A float64 vector as one column of that dtype."""
    return reshape(cast(a, dtype=np.dtype(dtype).name), shape=(a.shape[0], 1))


def _ones(a: Any) -> Any:
    """A column of ones beside the rows of a: made by ops from a, so that a recorded step may contain it."""
    return full_like(_sum(a, axis=-1, keepdims=True), value=1.0)


def _gradients(needs, x, y, g, v, lse, bias, attrs):
    """The gradients in x, y and v of sum_i <g_i, sum_j p_ij v_j> with lse held fixed (the caller's g allows for it)."""
    lower = affine(lse, scale=-1.0)
    return [
        kernel_matvec_dx(x, y, g, v, lower, bias, **attrs) if needs[0] else None,
        kernel_matvec_dx(y, x, v, g, bias, lower, **attrs) if needs[1] else None,
        kernel_matvec(y, x, g, bias, lower, **attrs) if needs[2] else None,
    ]


def _logsumexp_rule(gys, ys, needs, x, y, bias=None, *, scale, cost):
    ones = _ones(y)
    need_bias = len(needs) > 2 and needs[2]
    dx, dy, d_ones = _gradients(
        (needs[0], needs[1], need_bias), x, y, _column(gys[0], x.dtype), ones, ys[0], bias, _kernel_of(scale, cost)
    )
    d_bias = cast(reshape(d_ones, shape=(y.shape[0],)), dtype="float64") if need_bias else None
    return [dx, dy, d_bias]


def _softmax_rule(gys, ys, needs, x, y, v, bias=None, *, scale, cost):
    g, g_lse = gys
    e, need_bias = v.shape[1], len(needs) > 3 and needs[3]
    out, lse = ys
    if g is None:
        g = full_like(out, value=0.0)
    # d <g_i, out_i> / d score_ij = p_ij (<g_i, v_j> - <g_i, out_i>): one more column, 1 beside v_j
    centre = reshape(affine(_sum(mul(g, out), axis=-1), scale=-1.0), shape=(x.shape[0], 1))
    if g_lse is not None:
        centre = add(centre, _column(g_lse, x.dtype))
    wide_g, wide_v = concat(g, centre), concat(v, _ones(v))
    dx, dy, both = _gradients(
        (needs[0], needs[1], needs[2] or need_bias), x, y, wide_g, wide_v, lse, bias, _kernel_of(scale, cost)
    )
    d_v = slice_axis(both, start=0, stop=e) if needs[2] else None
    d_bias = cast(_sum(mul(wide_v, both), axis=-1), dtype="float64") if need_bias else None
    return [dx, dy, d_v, d_bias]


rule(logsumexp, _logsumexp_rule)
rule(softmax_matmul, _softmax_rule)
