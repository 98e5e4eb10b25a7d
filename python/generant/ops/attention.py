"""Softmax attention, whose t x s weights are never formed.

The forward pass keeps the log-sum-exp of every row, from which the backward pass makes the weights again, block by
block (Dao et al., 2022). Second order differentiates `weighted_values`, the same formula in simple ops.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..autograd import Var
from . import _device
from ._table import bilinear_triple, fused, op, rule
from .activation import affine
from .arithmetic import add
from .matmul import PRECISION, _operands, round_bf16
from .softmax import softmax

__all__ = ["attention", "attention_bwd", "attention_scores", "attention_scores_dk", "attention_scores_dq"]

SIZES: list[dict[str, Any]] = [
    dict(n=1, t=1, s=1, heads=1, d=1, e=1, b=1, g=1),
    dict(n=2, t=7, s=13, heads=3, d=5, e=4, b=2, g=1),
    dict(n=2, t=37, s=29, heads=2, d=8, e=17, b=1, g=2),
    dict(n=1, t=65, s=331, heads=2, d=40, e=33, b=1, g=1),
]
BLOCK = 128  # queries whose weights exist at a time in the definitions
LOG2E = 1.4426950408889634  # exponentials are powers of two, so this is in the factor of q


def _scale(scale: float | None, d: int) -> float:
    return 1 / max(d, 1) ** 0.5 if scale is None else scale


def _check(dims: dict[str, Any], attrs: dict[str, Any]) -> dict[str, int]:
    """Refuses a bias that does not broadcast; the sizes of a bias that is absent, whose gradient nobody gets."""
    if "b" not in dims and 3 in attrs.get("need", ()):
        raise ValueError("need lists 3, the bias, but there is no bias")
    for letter, name in (("b", "n"), ("g", "heads")):
        if dims.setdefault(letter, 1) not in (1, dims[name]):
            raise ValueError(
                f"bias must have {letter} = 1 or {name} = {dims[name]} in its shape (b, g, t, s), got {dims[letter]}"
            )
    scale = attrs["scale"]
    if scale is not None and (isinstance(scale, tuple) or not np.isfinite(scale)):
        raise ValueError(f"scale must be a finite number or None, got {scale!r}")
    return {"b": dims["b"], "g": dims["g"]}


def _blocks(
    q: Any, k: Any, bias: Any, causal: bool, scale: float | None, precision: str = "float32"
) -> Iterator[tuple]:
    """sample, head, a slice of at most BLOCK queries, and their scores, -inf where a key is hidden."""
    n, t, heads, d = q.shape
    s = k.shape[1]
    factor = _scale(scale, d)
    if precision == "bf16":
        q, k, factor = round_bf16(q * q.dtype.type(factor * LOG2E)), round_bf16(k), 1 / LOG2E
    for i, h, begin in np.ndindex(n, heads, -(-t // BLOCK)):
        rows = slice(begin * BLOCK, min((begin + 1) * BLOCK, t))
        score = (q[i, rows, h] @ k[i, :, h].T) * q.dtype.type(factor)
        if bias is not None:
            score = score + bias[i if bias.shape[0] > 1 else 0, h if bias.shape[1] > 1 else 0, rows]
        if causal:
            score = np.where(np.arange(s) > np.arange(t)[rows, None], q.dtype.type(-np.inf), score)
        yield i, h, rows, score


@op(
    "q: n t heads d, k: n s heads d, v: n s heads e, bias?: b g t s -> n t heads e, n heads t",
    sizes=SIZES,
    attrs=[dict(), dict(causal=True, scale=0.1)],
    derive=_check,
    caches=1,
    keep="xy",
    **PRECISION,
)
def attention(
    q: Any, k: Any, v: Any, bias: Any = None, *,
    causal: bool = False, scale: float | None = None, precision: str = "float32",
) -> Any:
    """out_i = sum_j p_ij v_j with p_ij = exp(scale <q_i, k_j> + bias_ij - lse_i), for every sample and head.

    q (n, t, heads, d), k (n, s, heads, d), v (n, s, heads, e): queries, keys, values. bias (b, g, t, s), b being 1 or n
    and g 1 or heads; -inf hides a key from a query. causal: query i sees the keys j <= i, counted from the first of
    each also where t != s. scale: 1 / sqrt(d) if None. Returns (n, t, heads, e); `attention.all` also returns the
    log-sum-exp (n, heads, t) of each row of scores. A query that sees no key gives 0 (and -inf), a NaN only its row.
    precision="bf16" (float32 arrays only) rounds the operands of both products to bfloat16: q scale log2(e), k,
    exp(score - largest) and v. All sums are in float32, and so is the backward pass. Scores are off by at most
    b_ij = 2^-7 |scale| sum_c |q_ic k_jc|, out_i by (2^-7 + 2 max_j b_ij) sum_j p_ij |v_j|, to first order; gradients
    come from that output and log-sum-exp, which is off by max_j b_ij. 1.4 to 1.9 times as fast with AVX512-BF16, 0.9
    times without.
    Time n heads t s (d + e), about half of it if causal; memory beyond the result O((t + s) (d + e)) per thread,
    backward too, never t x s. A second derivative forms the t x s weights of all heads.
    Raises ValueError for a bias that does not broadcast so, and for a scale that is not finite.
    Vaswani et al. (2017), eq. 1; Dao et al. (2022) and, for the running maximum, Milakov and Gimelshein (2018).
    """
    n, t, heads, _ = q.shape
    out, lse = np.zeros((n, t, heads, v.shape[3]), q.dtype), np.empty((n, heads, t), q.dtype)
    for i, h, rows, score in _blocks(q, k, bias, causal, scale, precision):
        top = np.max(score, axis=1, initial=-np.inf)
        terms = np.exp(score - np.where(top == -np.inf, 0, top)[:, None])
        total = terms.sum(axis=1)
        with np.errstate(divide="ignore"):
            lse[i, h, rows] = np.where(top == -np.inf, top, top + np.log(total))
        weights, values = _operands(precision, terms, v[i, :, h])
        out[i, rows, h] = (weights @ values) / np.where(total == 0, 1, total)[:, None]
    return out, lse


@op(
    "g: n t heads e, q: n t heads d, k: n s heads d, v: n s heads e, bias?: b g t s, out: n t heads e, lse: n heads t"
    " -> n t heads d, n s heads d, n s heads e, b g t s",
    sizes=SIZES,
    attrs=[dict(need=(0, 1, 2, 3)), dict(need=(0, 2), causal=True, scale=0.1), dict(need=(1,))],
    domain={"lse": "positive"},  # as of rows of some length: weights far above 1 would measure the exponent's error
    derive=_check,
    keep="x",
)
def attention_bwd(
    g: Any, q: Any, k: Any, v: Any, bias: Any, out: Any, lse: Any, *,
    causal: bool = False, scale: float | None = None, need: tuple[int, ...],
) -> Any:
    """The gradients of attention in q, k, v and bias, those that `need` lists (by input number); None for the others.

    g, out (n, t, heads, e): the gradient of the output, and the output; lse (n, heads, t); the rest as in attention.
    With p as there, dp_ij = <g_i, v_j> and ds_ij = p_ij (dp_ij - <g_i, out_i>):
    dq = scale ds k, dk = scale ds^T q, dv = p^T g, dbias = ds summed over what shares it.
    Returns arrays of the shapes of q, k, v and bias. Time 2.5 times that of attention, and twice that again for dbias;
    memory O((t + s) (d + e)) per thread, and at most 32 arrays of one head's q where there are few heads.
    """
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dbias = None if bias is None else np.zeros_like(bias)
    factor = q.dtype.type(_scale(scale, q.shape[3]))
    for i, h, rows, score in _blocks(q, k, bias, causal, scale):
        low = lse[i, h, rows, None]
        p = np.where(low == -np.inf, 0, np.exp(score - np.where(low == -np.inf, 0, low)))
        gi = g[i, rows, h]
        ds = p * (gi @ v[i, :, h].T - (gi * out[i, rows, h]).sum(axis=1, keepdims=True))
        dq[i, rows, h] = factor * (ds @ k[i, :, h])
        dk[i, :, h] += factor * (ds.T @ q[i, rows, h])
        dv[i, :, h] += p.T @ gi
        if dbias is not None:
            dbias[i if dbias.shape[0] > 1 else 0, h if dbias.shape[1] > 1 else 0, rows] += ds
    return tuple(x if i in need else None for i, x in enumerate((dq, dk, dv, dbias)))


# ---- the products of one head with another, for second derivatives: NumPy's matmul is the implementation -----------


def _heads_first(x: Any) -> Any:
    return np.swapaxes(x, 1, 2)


def _products(spec: str) -> Any:
    return op(spec, sizes=SIZES[1:3], native=False)


@_products("q: n t heads d, k: n s heads d -> n heads t s")
def attention_scores(q: Any, k: Any) -> Any:
    """<q_i, k_j> of every sample and head.

    q (n, t, heads, d), k (n, s, heads, d). Returns (n, heads, t, s).
    """
    return _heads_first(q) @ np.swapaxes(_heads_first(k), 2, 3)


@_products("p: n heads t s, k: n s heads d -> n t heads d")
def attention_scores_dq(p: Any, k: Any) -> Any:
    """sum_j p_ij k_j: the gradient of attention_scores in q, and what attention does with its weights.

    p (n, heads, t, s), k (n, s, heads, d). Returns (n, t, heads, d).
    """
    return _heads_first(p @ _heads_first(k)).copy()


@_products("q: n t heads d, p: n heads t s -> n s heads d")
def attention_scores_dk(q: Any, p: Any) -> Any:
    """sum_i p_ij q_i: the gradient of attention_scores in k.

    q (n, t, heads, d), p (n, heads, t, s). Returns (n, s, heads, d).
    """
    return _heads_first(np.swapaxes(p, 2, 3) @ _heads_first(q)).copy()


bilinear_triple(attention_scores, attention_scores_dq, attention_scores_dk)


def weighted_values(
    q: Any, k: Any, v: Any, bias: Any = None, *, causal: bool = False, scale: float | None = None
) -> Any:
    """attention in simple ops, with its weights as an array."""
    score = affine(attention_scores(q, k), scale=_scale(scale, q.shape[3]))
    if bias is not None:
        score = add(score, bias)
    if causal:
        t, s = q.shape[1], k.shape[1]
        hidden = np.where(np.arange(s) > np.arange(t)[:, None], -np.inf, 0).astype(q.dtype)
        while isinstance(q, Var):
            q = q.value
        score = add(score, _device.to_device(hidden) if _device.is_device(q) else hidden)
    return attention_scores_dq(softmax(score), v)


def _attention_rule(gys, ys, needs, q, k, v, bias=None, *, causal=False, scale=None, precision="float32"):
    if gys[0] is None:
        return [None] * len(needs)
    need = tuple(i for i, wanted in enumerate(needs) if wanted)
    return attention_bwd.all(gys[0], q, k, v, bias, *ys, need=need, causal=causal, scale=scale)


fused(attention, attention_bwd, weighted_values)
rule(attention, _attention_rule)  # attention_bwd wants the output too, which `fused` does not hand on
