"""Matrix products and the linear layer.

matmul, matmul_dx and matmul_dw contract one trilinear form sum_nij x_ni w_ij g_nj over a different index each, so
together they are closed under differentiation. linear and linear_act are matmul with an epilogue; they are not
`fused`: their derivative is the activation's own row followed by the triple, so no backward kernel is written for
them. Leading dimensions of x are rows; there is no batch of weight matrices here (attention has products of its own).

Every element is one chain of fused multiply-adds over the contracted index in blocks of fixed length, so row i of a
result does not depend on the rows it came with, nor on the number of threads.

precision="bf16" (float32 arrays only) rounds both operands to bfloat16, 8 significant bits, and sums in float32; bias
and activation stay in float32. The products of the derivative are taken in the same precision, and rounding itself
counts as the identity there. Each factor is off by at most 2^-8 of itself. It pays on processors with AVX512-BF16
(`generant info`: avx512bf16), from some tens of rows on; elsewhere the numbers are the same, and the speed is at best
that of float32.
"""

from math import prod
from typing import Any

import numpy as np

from . import activation as _activation
from ._table import bilinear_triple, op, rule
from .arithmetic import add
from .reduce import sum_to

__all__ = ["linear", "linear_act", "matmul", "matmul_dw", "matmul_dx"]

PRECISIONS = ("float32", "bf16")
PRECISION: dict[str, Any] = dict(choices={"precision": PRECISIONS}, float32_only={"precision": "bf16"})
ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid", "softplus")

SIZES = [
    dict(d=1, o=1, _=()),
    dict(d=3, o=2, _=(4,)),
    dict(d=17, o=33, _=(13,)),
    dict(d=64, o=48, _=(2, 3, 5)),
    dict(d=300, o=37, _=(29,)),
]


def _matrix(x):
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def round_bf16(x):
    """x rounded to bfloat16, to nearest and ties to even, in x's own dtype. Beyond 3.39e38 it is inf; NaN stays NaN."""
    bits = np.array(x, np.float32, order="C").view(np.uint32)
    up = (bits + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), np.float32(np.nan), up.view(np.float32)).astype(x.dtype)


def _operands(precision, *arrays):
    return [round_bf16(a) for a in arrays] if precision == "bf16" else arrays


@op("x: ... d, w: d o -> ... o", sizes=SIZES, **PRECISION)
def matmul(x, w, *, precision="float32"):
    """x @ w: every row of x times one matrix.

    x (..., d); w (d, o). Returns (..., o). precision: "float32" (that of the arrays) or "bf16" (see above).
    Time O(n d o) for n rows; memory: the result.
    """
    x, w = _operands(precision, x, w)
    return x @ w


@op("g: ... o, w: d o -> ... d", sizes=SIZES, **PRECISION)
def matmul_dx(g, w, *, precision="float32"):
    """g @ w.T: the gradient of matmul in x.

    g (..., o); w (d, o). Returns (..., d). precision: as in matmul.
    Time O(n d o) for n rows; w is not transposed in memory.
    """
    g, w = _operands(precision, g, w)
    return g @ w.T


@op("x: ... d, g: ... o -> d o", sizes=SIZES, **PRECISION)
def matmul_dw(x, g, *, precision="float32"):
    """x.T @ g, summed over all rows: the gradient of matmul in w.

    x (..., d); g (..., o). Returns (d, o). precision: as in matmul.
    Time O(n d o) for n rows; the sum over rows runs in their order.
    """
    x, g = _operands(precision, x, g)
    return _matrix(x).T @ _matrix(g)


bilinear_triple(matmul, matmul_dx, matmul_dw)


@op("x: ... d, w: d o, b: o -> ... o", sizes=SIZES, keep="x", **PRECISION)
def linear(x, w, b, *, precision="float32"):
    """x @ w + b: the linear layer.

    x (..., d); w (d, o); b (o,). Returns (..., o). precision: as in matmul.
    Time O(n d o) for n rows; the bias costs no further pass.
    """
    x, w = _operands(precision, x, w)
    return x @ w + b


@op(
    "x: ... d, w: d o, b: o -> ... o, ... o",
    sizes=SIZES,
    attrs=[dict(activation=a) for a in ACTIVATIONS],
    choices={"activation": ACTIVATIONS, "precision": PRECISIONS},
    float32_only={"precision": "bf16"},
    caches=1,
    keep="xy",
)
def linear_act(x, w, b, *, activation="silu", precision="float32"):
    """activation(x @ w + b): the linear layer with its activation, bit-equal to the two ops one after the other.

    x (..., d); w (d, o); b (o,). Returns (..., o); `linear_act.all` also returns h = x @ w + b.
    precision: as in matmul. Time O(n d o) for n rows; bias and activation are applied to results still in registers.
    """
    x, w = _operands(precision, x, w)
    h = x @ w + b
    return getattr(_activation, activation)(h), h


def _products(g, needs, x, w, b, precision):
    """Gradients of x @ w + b in x, w, b for the gradient g of the sum."""
    return [
        matmul_dx(g, w, precision=precision) if needs[0] else None,
        matmul_dw(x, g, precision=precision) if needs[1] else None,
        sum_to(g, shape=b.shape) if needs[2] else None,
    ]


def _linear_rule(gys, ys, needs, x, w, b, *, precision="float32"):
    return _products(gys[0], needs, x, w, b, precision)


def _linear_act_rule(gys, ys, needs, x, w, b, *, activation="silu", precision="float32"):
    gy, gh = gys
    if gy is not None:
        row = getattr(_activation, activation + "_bwd")
        g = row(gy, ys[1] if getattr(_activation, activation).ref == "x" else ys[0])
        gh = g if gh is None else add(gh, g)
    return _products(gh, needs, x, w, b, precision)


rule(linear, _linear_rule)
rule(linear_act, _linear_act_rule)
