"""Matrix products and the linear layer.

matmul, matmul_dx and matmul_dw contract one trilinear form sum_nij x_ni w_ij g_nj over a different index each, so
together they are closed under differentiation. linear and linear_act are matmul with an epilogue; they are not
`fused`: their derivative is the activation's own row followed by the triple, so no backward kernel is written for
them. Leading dimensions of x are rows; there is no batch of weight matrices here (attention has products of its own).

Every element is one chain of fused multiply-adds over the contracted index in blocks of fixed length, so row i of a
result does not depend on the rows it came with, nor on the number of threads.
"""

from math import prod

from . import activation as _activation
from ._table import bilinear_triple, op, rule
from .arithmetic import add
from .reduce import sum_to

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


@op("x: ... d, w: d o -> ... o", sizes=SIZES)
def matmul(x, w):
    """x @ w: every row of x times one matrix.

    x (..., d); w (d, o). Returns (..., o). Time O(n d o) for n rows; memory: the result.
    """
    return x @ w


@op("g: ... o, w: d o -> ... d", sizes=SIZES)
def matmul_dx(g, w):
    """g @ w.T: the gradient of matmul in x.

    g (..., o); w (d, o). Returns (..., d). Time O(n d o) for n rows; w is not transposed in memory.
    """
    return g @ w.T


@op("x: ... d, g: ... o -> d o", sizes=SIZES)
def matmul_dw(x, g):
    """x.T @ g, summed over all rows: the gradient of matmul in w.

    x (..., d); g (..., o). Returns (d, o). Time O(n d o) for n rows; the sum over rows runs in their order.
    """
    return _matrix(x).T @ _matrix(g)


bilinear_triple(matmul, matmul_dx, matmul_dw)


@op("x: ... d, w: d o, b: o -> ... o", sizes=SIZES, keep="x")
def linear(x, w, b):
    """x @ w + b: the linear layer.

    x (..., d); w (d, o); b (o,). Returns (..., o). Time O(n d o) for n rows; the bias costs no further pass.
    """
    return x @ w + b


@op(
    "x: ... d, w: d o, b: o -> ... o, ... o",
    sizes=SIZES,
    attrs=[dict(activation=a) for a in ACTIVATIONS],
    choices={"activation": ACTIVATIONS},
    caches=1,
    keep="xy",
)
def linear_act(x, w, b, *, activation="silu"):
    """activation(x @ w + b): the linear layer with its activation, bit-equal to the two ops one after the other.

    x (..., d); w (d, o); b (o,). Returns (..., o); `linear_act.all` also returns h = x @ w + b.
    Time O(n d o) for n rows; bias and activation are applied to results still in registers.
    """
    h = x @ w + b
    return getattr(_activation, activation)(h), h


def _products(g, needs, x, w, b):
    """Gradients of x @ w + b in x, w, b for the gradient g of the sum."""
    return [
        matmul_dx(g, w) if needs[0] else None,
        matmul_dw(x, g) if needs[1] else None,
        sum_to(g, shape=b.shape) if needs[2] else None,
    ]


def _linear_rule(gys, ys, needs, x, w, b):
    return _products(gys[0], needs, x, w, b)


def _linear_act_rule(gys, ys, needs, x, w, b, *, activation="silu"):
    gy, gh = gys
    if gy is not None:
        row = getattr(_activation, activation + "_bwd")
        g = row(gy, ys[1] if getattr(_activation, activation).ref == "x" else ys[0])
        gh = g if gh is None else add(gh, g)
    return _products(gh, needs, x, w, b)


rule(linear, _linear_rule)
rule(linear_act, _linear_act_rule)
