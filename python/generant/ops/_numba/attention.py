"""Numba twins of attention and its gradients: one query at a time against all keys of its head, in float64.

For "bf16" operands are rounded before, and the weights of a query between its two products.
"""

from __future__ import annotations

import numpy as np

from ._kernel import jit, kernel
from .matmul import _rounded

LOG2E = 1.4426950408889634


@jit
def _scores(query, keys, bias, last, scale, score):
    """scale <query, k_j> + bias_j for j < last; their maximum."""
    top = -np.inf
    for j in range(last):
        total = 0.0
        for c in range(query.shape[0]):
            total += float(query[c]) * keys[j, c]
        score[j] = total * scale + bias[j]
        top = max(top, score[j])
    return top


@jit
def _forward(q, k, v, bias, out, lse, causal, scale, rounds):
    n, t, heads, _ = q.shape
    s, e = k.shape[1], v.shape[3]
    score, average, weights = np.empty(s), np.empty(e), np.empty((1, s), np.float32)
    for i in range(n):
        for h in range(heads):
            for r in range(t):
                last = min(r + 1, s) if causal else s
                top = _scores(q[i, r, h], k[i, :, h], bias[i, h, r], last, scale, score)
                total = 0.0
                average[:] = 0
                for j in range(last):
                    score[j] = np.exp(score[j] - (top if top != -np.inf else 0.0))
                    total += score[j]
                if rounds:
                    weights[0, :last] = score[:last]
                    score[:last] = _rounded(weights)[0, :last]
                for j in range(last):
                    for c in range(e):
                        average[c] += score[j] * v[i, j, h, c]
                lse[i, h, r] = top + np.log(total) if total != 0 else -np.inf
                for c in range(e):
                    out[i, r, h, c] = average[c] / total if total != 0 else 0.0


@jit
def _backward(g, q, k, v, bias, out, lse, dq, dk, dv, dbias, need_bias, causal, scale):
    n, t, heads, d = q.shape
    s, e = k.shape[1], v.shape[3]
    score = np.empty(s)
    for i in range(n):
        for h in range(heads):
            for r in range(t):
                last = min(r + 1, s) if causal else s
                if lse[i, h, r] == -np.inf:
                    continue
                _scores(q[i, r, h], k[i, :, h], bias[i, h, r], last, scale, score)
                centre = 0.0
                for c in range(e):
                    centre += float(g[i, r, h, c]) * out[i, r, h, c]
                for j in range(last):
                    p, dp = np.exp(score[j] - lse[i, h, r]), 0.0
                    for c in range(e):
                        dp += float(g[i, r, h, c]) * v[i, j, h, c]
                        dv[i, j, h, c] += p * g[i, r, h, c]
                    ds = p * (dp - centre)
                    for c in range(d):
                        dq[i, r, h, c] += scale * ds * k[i, j, h, c]
                        dk[i, j, h, c] += scale * ds * q[i, r, h, c]
                    if need_bias:
                        dbias[i if dbias.shape[0] > 1 else 0, h if dbias.shape[1] > 1 else 0, r, j] += ds


def _bias_of_every_head(bias, q, k):
    """bias, or zeros, as a view of shape (n, heads, t, s) whose shared axes have stride 0."""
    zero = np.zeros((1, 1, 1, 1), q.dtype) if bias is None else bias
    return np.broadcast_to(zero, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))


def _scale_of(scale, q):
    return 1 / max(q.shape[3], 1) ** 0.5 if scale is None else float(scale)


def _rounded_heads(x):
    return _rounded(x.reshape(-1, 1)).reshape(x.shape)


@kernel
def attention(q, k, v, bias, out, lse, causal, scale, precision):
    lse = np.empty((q.shape[0], q.shape[2], q.shape[1]), q.dtype) if lse is None else lse
    scale, rounds = _scale_of(scale, q), precision == "bf16"
    if rounds:
        q, k, v = (_rounded_heads(x) for x in (q * q.dtype.type(scale * LOG2E), k, v))
        scale = 1 / LOG2E
    _forward(q, k, v, _bias_of_every_head(bias, q, k), out, lse, causal, scale, rounds)


@kernel
def attention_bwd(g, q, k, v, bias, out, lse, dq, dk, dv, dbias, causal, scale, need):
    sums = [np.zeros(x.shape) for x in (q, k, v)]
    bias_sum = np.zeros((1, 1, 1, 1) if dbias is None else dbias.shape)
    _backward(
        g, q, k, v, _bias_of_every_head(bias, q, k), out, lse, *sums, bias_sum, dbias is not None, causal,
        _scale_of(scale, q),
    )  # fmt: skip
    for to, values in zip((dq, dk, dv, dbias), (*sums, bias_sum), strict=True):
        if to is not None:
            to[:] = values
