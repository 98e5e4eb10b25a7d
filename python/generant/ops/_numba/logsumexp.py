"""Numba twins of logsumexp and softmax_matmul: blocks of y with a running maximum per row, in float64."""

import numpy as np

from ._kernel import jit, kernel
from ._kernel_function import POLYNOMIAL, RBF, argument

BLOCK = 512


@jit
def _softmax(x, y, v, bias, number, scale, root, out, lse):
    """The averages of v (m, e) into out (n, e), unless e = 0, and the log-sum-exp into lse (n,)."""
    top, total = np.full(x.shape[0], -np.inf), np.zeros(x.shape[0])
    out[:] = 0
    scores = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        columns = np.ascontiguousarray(y[begin : min(begin + BLOCK, y.shape[0])].T)
        score = scores[: columns.shape[1]]
        for i in range(x.shape[0]):
            argument(x[i], columns, number, score)
            highest, bad = top[i], False
            for j in range(score.shape[0]):
                s = np.sqrt(score[j]) if root else score[j]
                s = s * scale + bias[begin + j]
                score[j] = s
                bad = bad or s != s
                highest = max(s, highest) if s == s else highest
            if bad:
                total[i] = np.nan
            if highest == -np.inf:
                continue  # nothing to add so far
            if highest > top[i]:
                shrink = np.exp(top[i] - highest)
                top[i] = highest
                total[i] *= shrink
                for c in range(v.shape[1]):
                    out[i, c] *= shrink
            for j in range(score.shape[0]):
                weight = np.exp(score[j] - highest)
                total[i] += weight
                for c in range(v.shape[1]):
                    out[i, c] += weight * v[begin + j, c]
    for i in range(x.shape[0]):
        lse[i] = np.inf if top[i] == np.inf else top[i] + np.log(total[i])
        for c in range(v.shape[1]):
            out[i, c] /= total[i]


def _run(x, y, v, bias, scale, cost, lse):
    out = np.empty((x.shape[0], v.shape[1]))
    bias = np.zeros(y.shape[0]) if bias is None else bias
    scale = float(scale) if cost == "dot" else -float(scale)
    _softmax(
        x.astype(np.float64), y.astype(np.float64), v, bias, POLYNOMIAL if cost == "dot" else RBF, scale,
        cost == "euclidean", out, lse,
    )  # fmt: skip
    return out


@kernel
def logsumexp(x, y, bias, lse, scale, cost):
    _run(x, y, np.empty((y.shape[0], 0)), bias, scale, cost, lse)


@kernel
def softmax_matmul(x, y, v, bias, out, lse, scale, cost):
    out[...] = _run(x, y, v.astype(np.float64), bias, scale, cost, np.empty(x.shape[0]) if lse is None else lse)
