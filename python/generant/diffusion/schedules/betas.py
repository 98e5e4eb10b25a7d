"""Betas of the discrete forward process, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) z, and their running products.

One idea: two precisions. "float64" is the formula; "float32" repeats, operation by operation, the single-precision
arithmetic in which most published models were trained and are sampled, so that tables agree with theirs to the bit.
What is not here: noise levels of a sampling run (levels), and the process in continuous time (processes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .arrays import read_only

__all__ = ["BETA_SCHEDULES", "alphas_cumprod", "betas", "zero_terminal_snr"]

MAX_BETA = 0.999  # for schedules given by their product; the last one of the cosine schedule would be 1
F32 = np.float32


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _exp(t: float) -> float:
    return math.exp(-12.0 * t)


def _laplace(t: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6)
    snr = math.exp(log_snr)
    return math.sqrt(snr / (1 + snr))


PRODUCTS: dict[str, Callable[[float], float]] = {
    "squaredcos_cap_v2": _cosine,
    "cosine": _cosine,
    "exp": _exp,
    "laplace": _laplace,
}
BETA_SCHEDULES = ("linear", "scaled_linear", "sigmoid", *PRODUCTS)


def _linspace(start: float, end: float, n: int) -> np.ndarray:
    """n float32 from start to end, counted from the nearer end with a fused multiply-add."""
    first, last = F32(start), F32(end)
    if n == 1:
        return np.array([first])
    step = np.float64((last - first) / F32(n - 1))
    i = np.arange(n)
    # float64 holds the product exactly, so one rounding is left, as in a fused multiply-add
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(F32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float32, exp by the polynomial of the SLEEF library, the last n % 16 correctly rounded.

    Vectorised loops of 16 leave a rest that goes through the C library; the two may differ in the last bit.
    """

    def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
        return (np.multiply(a, b, dtype=np.float64) + np.asarray(c, np.float64)).astype(F32)

    minus = -x
    power = np.rint(minus * F32(1.4426950408889634)).astype(F32)  # x = power log 2 + rest
    rest = fma(power, F32(-0.693145751953125), minus)
    rest = fma(power, F32(-1.428606765330187e-06), rest)
    u = np.full_like(x, 0.000198527617612853646)
    for c in (0.00139304355252534151, 0.00833336077630519867, 0.0416664853692054749, 0.16666667163372039795, 0.5):
        u = fma(u, rest, F32(c))
    u = F32(1) + fma(rest * rest, u, rest)
    exp = np.ldexp(u, power.astype(np.int32))
    whole = x.size - x.size % 16
    exp[whole:] = np.exp(minus[whole:], dtype=np.float64).astype(F32)
    return F32(1) / (F32(1) + exp)


def betas(
    schedule: str = "linear",
    n: int = 1000,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    trained: ArrayLike | None = None,
    precision: Literal["float64", "float32"] = "float64",
) -> np.ndarray:
    """beta_t of a named schedule, t < n; or the trained ones.

    linear         from beta_start to beta_end (Ho et al. 2020)
    scaled_linear  squares of a line from sqrt(beta_start) to sqrt(beta_end) (Rombach et al. 2022)
    sigmoid        beta_start + (beta_end - beta_start) / (1 + exp(-x)), x from -6 to 6 (Xu et al. 2022, GeoDiff)
    cosine         1 - f(t + 1/n) / f(t), f = cos^2(pi/2 (t + 0.008) / 1.008) (Nichol and Dhariwal 2021, eq. 17), as
                   are the next two; "squaredcos_cap_v2" is the same one. Betas end at 0.999
    exp            f = exp(-12 t)
    laplace        f = sqrt(s / (1 + s)), log s = -1/2 sign(1/2 - t) log(1 - 2 |1/2 - t| + 1e-6): diffusers' product for
                   the Laplace noise schedule of Hang et al. (2024)

    trained: (n,) betas to take as they are; schedule, n, beta_start and beta_end are then not looked at.
    precision: "float64", or "float32" for the values of torch's float32 arithmetic on processors with fused
      multiply-add (AVX2 and later).
    Returns (n,) of that dtype, read-only.
    """
    if precision not in ("float64", "float32"):
        raise ValueError(f"betas: precision must be 'float64' or 'float32', got {precision!r}")
    dtype = np.dtype(precision)
    if trained is not None:
        return read_only(_checked("betas", np.array(trained, dtype)))
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"betas: schedule must be one of {', '.join(BETA_SCHEDULES)}, got {schedule!r}")
    if n < 1:
        raise ValueError(f"betas: n must be at least 1, got {n}")
    if not (0 <= beta_start <= 1 and 0 <= beta_end <= 1):
        raise ValueError(f"betas: beta_start and beta_end must lie in [0, 1], got {beta_start} and {beta_end}")
    if schedule in PRODUCTS:
        f = PRODUCTS[schedule]
        values = [min(1 - f((i + 1) / n) / f(i / n), MAX_BETA) for i in range(n)]
        return read_only(np.array(values, dtype))
    line = _linspace if dtype == F32 else np.linspace
    if schedule == "linear":
        return read_only(line(beta_start, beta_end, n))
    if schedule == "scaled_linear":
        return read_only(line(beta_start**0.5, beta_end**0.5, n) ** 2)
    x = line(-6, 6, n)
    share = _sigmoid(x) if dtype == F32 else 1 / (1 + np.exp(-x))
    return read_only(share * dtype.type(beta_end - beta_start) + dtype.type(beta_start))


def alphas_cumprod(betas: ArrayLike) -> np.ndarray:
    """prod_{s <= t} (1 - beta_s), the share of the data's variance at time t.

    betas (n,): float32 gives float32, with 1 - beta in float32 and products in float64 that are rounded one by one, as
    torch's cumprod does; all else gives float64. Read-only.
    """
    values = _checked("alphas_cumprod", betas)
    return read_only(np.cumprod(1 - values, dtype=np.float64).astype(values.dtype))


def zero_terminal_snr(betas: ArrayLike) -> np.ndarray:
    """Betas whose last product is 0: sqrt(alphas_cumprod) is shifted to end in 0 and scaled to keep its first value.

    betas (n,), n >= 2, of float32 (each step is then rounded to float32) or float64. Returns the same dtype, read-only;
    the last beta is 1, so that the last step holds no data at all and epsilon prediction is undefined there.
    Bit-equal to torch where its square root is correctly rounded; some processors' is off by one bit, which the
    subtraction near the end magnifies to some 1e-5 of a product there. Lin et al. (2024), algorithm 1.
    """
    values = _checked("zero_terminal_snr", betas)
    root = np.sqrt(alphas_cumprod(values))
    if values.size < 2 or root[0] <= root[-1]:
        raise ValueError(f"zero_terminal_snr: wanted at least 2 betas and one above 0 after the first, got {values}")
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    product = root**2
    if not product[:-1].all():
        raise ValueError("zero_terminal_snr: the product of 1 - beta is 0 before the last step already")
    alphas = np.append(product[:1], product[1:] / product[:-1])
    return read_only(1 - alphas)


def _checked(function: str, values: ArrayLike) -> np.ndarray:
    out = np.asarray(values)
    out = out if out.dtype == F32 else out.astype(np.float64)
    if out.ndim != 1 or out.size == 0:
        raise ValueError(f"{function}: wanted betas of shape (n,) with n >= 1, got shape {out.shape}")
    if not ((out >= 0) & (out <= 1)).all():
        raise ValueError(f"{function}: betas must lie in [0, 1], got {out[~((out >= 0) & (out <= 1))][0]}")
    return out
