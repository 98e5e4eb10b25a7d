"""Elementwise functions: activations, elementary functions, power, clip and affine.

One declaration is one row of three ops, closed under differentiation to every order:
    name(x)            = f(x)
    name_bwd(g, r)     = g * f'(x)
    name_bwd2(h, g, r) = h * g * d/dr f'(x)
f' is written in r, which is x or, where that is cheaper or keeps less memory alive, the value y = f(x); `ref` says
which. Orders above the second come from the definition of name_bwd2, so `d2f` is written in operators and ops that also
accept traced arrays. A row without `d2f` has f'' = 0.

Not here: functions of two arrays (arithmetic.py), and f fused into a matrix product (matmul.py).
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ._table import op, rule
from .layout import full_like

__all__ = [
    "abs", "affine", "clip", "cos", "erf", "exp", "gelu", "leaky_relu", "log", "power", "reciprocal", "relu", "rsqrt",
    "sigmoid", "silu", "sin", "softplus", "sqrt", "square", "tanh",
]

SIZES: list[dict[str, Any]] = [dict(_=()), dict(_=(1,)), dict(_=(37,)), dict(_=(5, 4099))]


def elementwise(
    *,
    df: Callable,
    d2f: Callable | None = None,
    ref: str = "x",
    domain: dict[str, str] | None = None,
    attrs: list[dict] | None = None,
    check: Callable | None = None,
) -> Callable[[Callable], Any]:
    """Declare the row of the decorated f(x, *, ...): f itself, f_bwd and f_bwd2, in the module that defines f.

    df(r, **attrs) is f' and d2f(r, **attrs) its derivative in r; r is x or y = f(x), as `ref` says. `domain` and
    `attrs` say where and with which attributes the generated tests evaluate the row.
    """

    def declare(f):
        name, module = f.__name__, sys.modules[f.__module__]
        extra = list(inspect.signature(f).parameters.values())[1:]
        defaults = {p.name: p.default for p in extra if p.default is not p.empty}
        options: dict[str, Any] = dict(sizes=SIZES, attrs=attrs or [{}], elementwise=True)

        def row(suffix, args, doc, body, keep, **more):
            body.__name__ = body.__qualname__ = name + suffix
            body.__module__ = f.__module__
            body.__doc__ = doc
            body.__signature__ = inspect.Signature(
                [inspect.Parameter(a, inspect.Parameter.POSITIONAL_OR_KEYWORD) for a in args] + extra
            )
            domains = {ref: (domain or {})["x"]} if domain and ref in args else None
            spec = ", ".join(f"{a}: ..." for a in args) + " -> ..."
            made = op(spec, keep=keep, domain=domains, **options, **more)(body)
            if suffix:
                setattr(module, name + suffix, made)
            return made

        f_op: Any = op("x: ... -> ...", keep=ref, domain=domain, check=check, **options)(f)
        bwd = row(
            "_bwd",
            ("g", ref),
            f"g * d{name}/dx, written in {ref}: the gradient of {name}.",
            lambda g, r, **a: g * df(r, **{**defaults, **a}),
            "x",
        )
        f_op.ref = ref
        if ref == "x":
            rule(f_op, lambda gys, ys, needs, x, **a: [bwd(gys[0], x, **a)])
        else:
            rule(f_op, lambda gys, ys, needs, x, **a: [bwd(gys[0], ys[0], **a)])
        if d2f is None:
            rule(bwd, lambda hs, ys, needs, g, r, **a: [bwd(hs[0], r, **a) if needs[0] else None, None])
            return f_op
        bwd2 = row(
            "_bwd2",
            ("h", "g", ref),
            f"h * g * the derivative in {ref} of d{name}/dx: the gradient of {name}_bwd in {ref}.",
            lambda h, g, r, **a: h * g * d2f(r, **{**defaults, **a}),
            "x",
            composite=True,
        )
        rule(
            bwd,
            lambda hs, ys, needs, g, r, **a: [
                bwd(hs[0], r, **a) if needs[0] else None,
                bwd2(hs[0], g, r, **a) if needs[1] else None,
            ],
        )
        return f_op

    return declare


# ---- activations ----------------------------------------------------------------------------------------------------


@elementwise(df=lambda y: y > 0, ref="y")
def relu(x: Any) -> Any:
    """max(x, 0). Its derivative at 0 is 0.

    x (...). Returns (...).
    """
    return np.maximum(x, 0)


def _check_slope(*arrays, slope=0.2):
    if not slope >= 0:
        raise ValueError(f"leaky_relu: slope is {slope}, wanted slope >= 0 (the gradient is read off the sign of y)")


@elementwise(
    df=lambda y, *, slope: np.where(y > 0, np.ones_like(y), slope).astype(y.dtype),
    ref="y",
    attrs=[{}, dict(slope=0.01)],
    check=_check_slope,
)
def leaky_relu(x: Any, *, slope: float = 0.2) -> Any:
    """x where x > 0, slope * x elsewhere. Its derivative at 0 is slope.

    x (...); slope >= 0. Returns (...).
    """
    return np.where(x > 0, x, x * slope)


def _sigmoid(x):
    e = np.exp(-np.abs(x))                                  # never overflows
    return np.where(x < 0, e, np.ones_like(e)) / (1 + e)


@elementwise(df=lambda y: y * (1 - y), d2f=lambda y: 1 - 2 * y, ref="y")
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)).

    x (...). Returns (...), in [0, 1].
    """
    return _sigmoid(x)


def _finite_below(x):
    return np.maximum(x, -1e30)                             # -inf * 0 would be NaN; the limit is 0


def _silu_df(x):
    s = _sigmoid(x)
    return s * (1 + np.clip(x, -1e30, 1e30) * (1 - s))


def _silu_d2f(x):
    s = sigmoid(x)
    return s * (1 - s) * (2 + clip(x, low=-1e30, high=1e30) * (1 - 2 * s))


@elementwise(df=_silu_df, d2f=_silu_d2f)
def silu(x: Any) -> Any:
    """x * sigmoid(x).

    x (...). Returns (...). Elfwing, Uchibe, Doya (2018); also called swish.
    """
    return _finite_below(x) * _sigmoid(x)


def _erf(x):
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x)).astype(x.dtype)


def _gelu_d2f(x):
    x = clip(x, low=-1e18, high=1e18)
    x2 = x * x
    return exp(-0.5 * x2) * (2 - x2) * (1 / math.sqrt(2 * math.pi))


def _gelu_df(x):
    x = np.clip(x, -1e18, 1e18)
    return 0.5 * (1 + _erf(x * math.sqrt(0.5))) + x * np.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi))


@elementwise(df=_gelu_df, d2f=_gelu_d2f)
def gelu(x: Any) -> Any:
    """x * Phi(x) = x * (1 + erf(x / sqrt(2))) / 2, the exact form and not its tanh approximation.

    x (...). Returns (...). Hendrycks, Gimpel (2016).
    """
    x = np.maximum(x, -1e18)
    return x * (0.5 * (1 + _erf(x * math.sqrt(0.5))))


@elementwise(df=lambda y: 1 - y * y, d2f=lambda y: -2 * y, ref="y")
def tanh(x: Any) -> Any:
    """tanh(x).

    x (...). Returns (...), in [-1, 1].
    """
    return np.tanh(x)


def _softplus_d2f(x):
    s = sigmoid(x)
    return s * (1 - s)


@elementwise(df=_sigmoid, d2f=_softplus_d2f)
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), without overflow.

    x (...). Returns (...).
    """
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


# ---- elementary functions -------------------------------------------------------------------------------------------


@elementwise(df=lambda y: y, d2f=lambda y: full_like(y, value=1.0), ref="y")
def exp(x: Any) -> Any:
    """exp(x).

    x (...). Returns (...). float32 results below 1.2e-38 are 0.
    """
    return np.exp(x)


@elementwise(df=lambda x: 1 / x, d2f=lambda x: -1 / (x * x), domain={"x": "positive"})
def log(x: Any) -> Any:
    """The natural logarithm of x: -inf at 0, NaN below.

    x (...). Returns (...).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


@elementwise(df=lambda y: 0.5 / y, d2f=lambda y: -0.5 / (y * y), ref="y", domain={"x": "positive"})
def sqrt(x: Any) -> Any:
    """The square root of x; NaN below 0. Its gradient at 0 is inf.

    x (...). Returns (...).
    """
    with np.errstate(invalid="ignore"):
        return np.sqrt(x)


@elementwise(df=lambda y: -0.5 * (y * y * y), d2f=lambda y: -1.5 * (y * y), ref="y", domain={"x": "positive"})
def rsqrt(x: Any) -> Any:
    """1 / sqrt(x): inf at 0, NaN below.

    x (...). Returns (...).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 / np.sqrt(x)


@elementwise(df=lambda x: 2 * x, d2f=lambda x: full_like(x, value=2.0))
def square(x: Any) -> Any:
    """x * x.

    x (...). Returns (...).
    """
    return x * x


@elementwise(df=lambda y: -(y * y), d2f=lambda y: -2 * y, ref="y", domain={"x": "positive"})
def reciprocal(x: Any) -> Any:
    """1 / x.

    x (...). Returns (...).
    """
    with np.errstate(divide="ignore"):
        return 1 / x


@elementwise(df=np.sign)
def abs(x: Any) -> Any:
    """|x|. Its derivative at 0 is 0.

    x (...). Returns (...).
    """
    return np.abs(x)


def _sin_d2f(x):
    return -1 * sin(x)


def _cos_d2f(x):
    return -1 * cos(x)


@elementwise(df=np.cos, d2f=_sin_d2f)
def sin(x: Any) -> Any:
    """sin(x), x in radians.

    x (...). Returns (...).
    """
    return np.sin(x)


@elementwise(df=lambda x: -np.sin(x), d2f=_cos_d2f)
def cos(x: Any) -> Any:
    """cos(x), x in radians.

    x (...). Returns (...).
    """
    return np.cos(x)


def _erf_d2f(x):
    x = clip(x, low=-1e18, high=1e18)
    return x * exp(-1 * (x * x)) * (-4 / math.sqrt(math.pi))


@elementwise(df=lambda x: np.exp(-(x * x)) * (2 / math.sqrt(math.pi)), d2f=_erf_d2f)
def erf(x: Any) -> Any:
    """The error function, 2 / sqrt(pi) * the integral of exp(-t^2) from 0 to x.

    x (...). Returns (...), in [-1, 1].
    """
    return _erf(x)


# ---- functions with parameters --------------------------------------------------------------------------------------


def _monomial(coefficient, x, exponent):
    """coefficient * x ** exponent; 0 where the coefficient is, at x = 0 too."""
    return coefficient * power(x, exponent=exponent) if coefficient else full_like(x, value=0.0)


@elementwise(
    df=lambda x, *, exponent: _monomial(exponent, x, exponent - 1),
    d2f=lambda x, *, exponent: _monomial(exponent * (exponent - 1), x, exponent - 2),
    domain={"x": "positive"},
    attrs=[dict(exponent=e) for e in (0.5, -0.5, 1.0, 2.0, 3.0, -2.0, 1.7, 0.0)],
)
def power(x: Any, *, exponent: float) -> Any:
    """x ** exponent; NaN for x < 0 unless the exponent is an integer.

    x (...); exponent a real number. Returns (...).
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return x**exponent


def _inside(x, *, low, high):
    inside = np.ones(x.shape, x.dtype)
    if low is not None:
        inside = inside * (x >= low)
    if high is not None:
        inside = inside * (x <= high)
    return inside


@elementwise(df=_inside, attrs=[dict(low=-0.5, high=0.7), dict(low=0.1), dict(high=0.1)])
def clip(x: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """x limited to [low, high]; None is no limit. Its derivative is 1 on the limits and between, 0 beyond.

    x (...). Returns (...).
    """
    if low is not None:
        x = np.maximum(x, low)
    if high is not None:
        x = np.minimum(x, high)
    return np.array(x)


@op(
    "x: ... -> ...",
    sizes=SIZES,
    attrs=[dict(scale=2.5, shift=-0.75), dict(scale=-1.0), dict(shift=3.0)],
    keep="",
    elementwise=True,
)
def affine(x: Any, *, scale: float = 1.0, shift: float = 0.0) -> Any:
    """scale * x + shift.

    x (...); scale and shift are numbers, part of the op and not arrays. Returns (...).
    """
    return x * scale + shift


rule(affine, lambda gys, ys, needs, x, *, scale=1.0, shift=0.0: [affine(gys[0], scale=scale)])
