"""Multistep samplers that integrate D in log sigma: DPM-Solver++(2M), (3M) and UniPC.

With v = log sigma the equation is solved by x(t) = t/s x(s) - integral from log s to log t of exp(log t - v) D dv. The
linear part is exact; D is replaced by a polynomial through the last calls. All history is D. Not here: methods that
integrate the slope (multistep), noise (sde).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plan import Plan, checked_levels
from .quadrature import integrals
from .single import rk4_step
from .start import checked_choice, checked_order, multistep, rk_start

__all__ = ["dpmpp_2m", "dpmpp_3m", "exponential_weights", "unipc"]

STARTS = ("rk", "lower")
VARIANTS = ("bh1", "bh2")


def exponential_weights(nodes: Sequence[float], s: float, t: float) -> list[float]:
    """w_j such that x(t) = t/s x(s) + sum_j w_j D(nodes[j]): exact for polynomials in log sigma through nodes."""
    v = np.log([*nodes, s, t]).tolist()
    return [-w for w in integrals(v[:-2], v[-2], v[-1], rate=-1.0)]


def _past(levels: Sequence[float], i: int, most: int) -> list[float]:
    """Levels i, i - 1, ..., at most `most` of them."""
    return list(levels[max(0, i + 1 - most) : i + 1])[::-1]


def _2m(nodes: Sequence[float], t: float) -> list[float]:
    """D0 + h / (2 h_before) (D0 - D1), times 1 - t/s; D0 alone where there is no D1."""
    s = nodes[0]
    whole = 1 - t / s
    if len(nodes) == 1:
        return [whole]
    slope = whole * np.log(s / t) / (2 * np.log(nodes[1] / s))
    return [float(whole + slope), float(-slope)]


def dpmpp_2m(sigmas: Any) -> Plan:
    """DPM-Solver++(2M): x' = t/s x + (1 - t/s) (D0 + h / (2 h_before) (D0 - D1)) with h = log(s / t).

    Second order, one call per step. sigmas: (n + 1,) noise levels, falling strictly, ending at or above 0, n >= 1. The
    first step is Euler, which costs no order. Raises ValueError where sigmas are not that. Lu et al.
    (2022b), algorithm 2.
    """
    levels = checked_levels("dpmpp_2m", sigmas)
    row = lambda i: (levels[i + 1] / levels[i], _2m(_past(levels, i, 2), levels[i + 1]))
    return multistep("dpmpp_2m", levels, row, order=2)


def _damped(nodes: Sequence[float], t: float) -> list[float]:
    """The published row of 3M: the second derivative enters with half of its Taylor coefficient."""
    exact, v = exponential_weights(nodes, nodes[0], t), np.log(nodes).tolist()
    square = sum(w * (u - v[0]) ** 2 for w, u in zip(exact, v, strict=True))  # the integral of (v - log s)^2
    return [
        w - square / 2 / float(np.prod([u - other for k, other in enumerate(v) if k != j]))
        for j, (w, u) in enumerate(zip(exact, v, strict=True))
    ]


def dpmpp_3m(sigmas: Any, *, damped: bool = False, start: str | None = None) -> Plan:
    """DPM-Solver++(3M): D is a parabola in log sigma through the last three calls. Order 3, one call per step.

    sigmas: as for `dpmpp_2m`. damped: the row as published and as in wide use, whose term in D'' is half of the Taylor
    term; that limits it to order 2, and can be the better choice for few steps. start: "rk" (default) takes the
    first two steps by Heun, two more calls in all; "lower" (default if damped) by Euler and 2M, which limits the order
    to 2. Raises ValueError where sigmas are not that, or for start="rk" with fewer than 3 steps. Lu et al. (2022b),
    and the solver they published with it.
    """
    levels = checked_levels("dpmpp_3m", sigmas)
    start = checked_choice("dpmpp_3m", "start", start or ("lower" if damped else "rk"), STARTS)
    third = _damped if damped else lambda nodes, t: exponential_weights(nodes, nodes[0], t)

    def row(i: int) -> tuple[float, list[float]]:
        nodes, t = _past(levels, i, 3), levels[i + 1]
        return t / levels[i], third(nodes, t) if len(nodes) == 3 else _2m(nodes, t)

    first = rk_start("dpmpp_3m", levels, 3) if start == "rk" else []
    return multistep("dpmpp_3m", levels, row, order=2 if damped or start == "lower" else 3, start=first)


def _predictor(nodes: Sequence[float], t: float, variant: str) -> list[float]:
    """UniP: the exponential Adams weights of D, except that order 2 takes 1/2 for its one coefficient, times B(h)."""
    s = nodes[0]
    if len(nodes) != 2:
        return exponential_weights(nodes, s, t)
    slope = 0.5 * _b(s, t, variant) / np.log(nodes[1] / s) * np.log(s / t)
    return [float(1 - t / s + slope), float(-slope)]


def _corrector(nodes: Sequence[float], t: float, variant: str) -> list[float]:
    """UniC: weights of D(t), D(nodes[0]), ...; order 1 takes 1/2 for its one coefficient, times B(h)."""
    s = nodes[0]
    if len(nodes) != 1:
        return exponential_weights([t, *nodes], s, t)
    half = 0.5 * _b(s, t, variant)
    return [half, 1 - t / s - half]


def _b(s: float, t: float, variant: str) -> float:
    """|B(h)|, h = log(s / t): h or 1 - exp(-h)."""
    return float(np.log(s / t)) if variant == "bh1" else 1 - t / s


def unipc(sigmas: Any, *, order: int = 2, variant: str = "bh2", start: str | None = None) -> Plan:
    """UniPC-p: a predictor of order p, whose end the next call corrects with no call of its own. Order p + 1.

    sigmas: as for `dpmpp_2m`. order: p = 1, 2, 3. variant: "bh1" takes B(h) = h, "bh2" B(h) = exp(h) - 1; they differ
    where the published coefficient is the fixed 1/2, in the predictor of order 2 and the corrector of order 1. start:
    "lower" (default for p < 3) raises p from 1 step by step, which costs no order for p < 3, and one for p = 3; "rk"
    (default for p = 3) takes the first step by RK4, three more calls. A start from high levels hides that loss, where D
    hardly changes. The corrector works up to the last level at which the network is called. The corrected x is x +
    sum_k (q_k - p_k) D_k with q its weights and p the predictor's, so both are one stage and no x is kept. Raises
    ValueError where sigmas or options are not that, or for start="rk" with fewer than `order` steps. Zhao et al.
    (2023).
    """
    levels = checked_levels("unipc", sigmas)
    order = checked_order("unipc", order, 3)
    checked_choice("unipc", "variant", variant, VARIANTS)
    start = checked_choice("unipc", "start", start or ("rk" if order > 2 else "lower"), STARTS)
    first = [rk4_step] if start == "rk" else []
    if first:
        rk_start("unipc", levels, order)  # refuses too few steps

    def row(i: int) -> tuple[float, list[float]]:
        s, t = levels[i], levels[i + 1]
        weights = np.zeros(order + 1)  # of D at levels i, i - 1, ...
        if i > len(first):  # what took x here was a predictor: correct it
            nodes = _past(levels, i - 1, order)
            weights[: len(nodes) + 1] += _corrector(nodes, s, variant)
            weights[1 : len(nodes) + 1] -= _predictor(nodes, s, variant)
            weights *= t / s
        nodes = _past(levels, i, order)
        weights[: len(nodes)] += _predictor(nodes, t, variant)
        return t / s, weights[: i + 1].tolist()

    return multistep("unipc", levels, row, order=order + (order < 3 or start == "rk"), start=first)
