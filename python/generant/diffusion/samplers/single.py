"""Samplers that start every step afresh: Euler (DDIM) and its inverse, Heun, DPM-Solver-2, DPM-Solver++(2S), RK4.

A step from level s to t is a short list of stages, made by a function of (s, t) alone; `start` uses the same functions
to begin multistep methods. None of them looks back on an h, so a caller may keep in h what it likes. Not here: anything
that uses values of earlier steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from ..plan import Plan, Stage, checked_levels

__all__ = [
    "ddim_inverse", "dpm2", "dpm2_step", "dpmpp_2s", "dpmpp_2s_step", "euler", "euler_step", "heun", "heun_step", "rk4",
    "rk4_step",
]  # fmt: skip


def euler_step(s: float, t: float) -> list[Stage]:
    """x' = x + (t - s) (x - D) / s. To t = 0 that is x' = D."""
    return [Stage(s, c_x=t / s, c_d=1 - t / s)]


def heun_step(s: float, t: float) -> list[Stage]:
    """x1 = x + (t - s) d, x' = x + (t - s) (d + d1) / 2 = (x + x1 + (t - s) d1) / 2, where d1 = (x1 - D1) / t."""
    half = (t - s) / 2
    return [*euler_step(s, t), Stage(t, c_x=0.5 + half / t, c_d=-half / t, terms=(("x", 1, 0.5),))]


def dpm2_step(s: float, t: float) -> list[Stage]:
    """x1 = x + (m - s) d, x' = x + (t - s) (x1 - D1) / m with m = sqrt(s t)."""
    middle = float(np.sqrt(s) * np.sqrt(t))
    slope = (t - s) / middle
    return [*euler_step(s, middle), Stage(middle, c_x=slope, c_d=-slope, terms=(("x", 1, 1.0),))]


def dpmpp_2s_step(s: float, t: float) -> list[Stage]:
    """x1 = m/s x + (1 - m/s) D, x' = t/s x + (1 - t/s) D1 with m = sqrt(s t)."""
    middle = float(np.sqrt(s) * np.sqrt(t))
    return [*euler_step(s, middle), Stage(middle, c_x=0.0, c_d=1 - t / s, terms=(("x", 1, t / s),))]


def rk4_step(s: float, t: float, middle: float | None = None) -> list[Stage]:
    """x' = x + (t - s) (d1 + 2 d2 + 2 d3 + d4) / 6: the classical Runge-Kutta step, its slopes read off the stages' x.

    middle: the level of d2 and d3, (s + t) / 2 by default; another one costs the order.
    """
    m = (s + t) / 2 if middle is None else middle
    whole, part = t - s, m - s
    r = whole / (3 * part)  # d1 = (x2 - x1) / part, d2 = (x3 - x1) / part, d3 = (x4 - x1) / whole
    c = whole / (6 * t)
    return [
        *euler_step(s, m),
        Stage(m, c_x=part / m, c_d=-part / m, terms=(("x", 1, 1.0),)),
        Stage(m, c_x=whole / m, c_d=-whole / m, terms=(("x", 2, 1.0),)),
        Stage(t, c_x=1 / 3 + c, c_d=-c, terms=(("x", 1, r), ("x", 2, r / 2), ("x", 3, 2 / 3 - 1.5 * r))),
    ]


def _plan(name: str, order: int, step: Callable[[float, float], list[Stage]], sigmas: Any) -> Plan:
    """The plan of a one-step method: `step` between levels above 0, then D."""
    levels = checked_levels(name, sigmas)
    stages = [stage for s, t in pairwise(levels) for stage in (step(s, t) if t > 0 else euler_step(s, t))]
    return Plan(name, stages, order=order, final=(1.0, levels[-1]))


def euler(sigmas: Any) -> Plan:
    """x' = x + (t - s) (x - D) / s from level s to t: first order, one call per level. It is DDIM without noise.

    sigmas: (n + 1,) noise levels, falling strictly, ending at or above 0. Raises ValueError where they are not.
    Song, Meng and Ermon (2021), eq. 13.
    """
    return _plan("euler", 1, euler_step, sigmas)


def ddim_inverse(sigmas: Any) -> Plan:
    """x' = x + (t - s) (x - D) / s with t above s: data to noise, by the levels that `euler` would run down.

    sigmas: as for `euler`, falling; they are run from the last to the first. If the last is 0 the input is clean data:
    D is called with it at the lowest level s above 0, and x' = x + (x - D) starts the run, what undoes Euler's last
    step x' = D to second order in s. First order, one call per level above 0. `euler` on the same sigmas leads back, up
    to an error of first order. Raises ValueError as `euler` does.
    Song, Meng and Ermon (2021), section 4.3.
    """
    levels = checked_levels("ddim_inverse", sigmas)[::-1]
    stages = []
    if levels[0] == 0:
        levels = levels[1:]
        stages = [Stage(0.0, c_x=1.0, c_d=0.0, call=False), Stage(levels[0], c_x=2.0, c_d=-1.0)]
    stages += [stage for s, t in pairwise(levels) for stage in euler_step(s, t)]
    return Plan("ddim_inverse", stages, order=1, final=(1.0, levels[-1]))


def heun(sigmas: Any) -> Plan:
    """An Euler step, then a call at its end to average both slopes: second order, two calls per step.

    sigmas: as for `euler`. A last step to 0 is one call. Raises ValueError as there. Karras et al. (2022), algorithm 1.
    """
    return _plan("heun", 2, heun_step, sigmas)


def dpm2(sigmas: Any) -> Plan:
    """The midpoint rule x' = x + (t - s) d(m) with m = sqrt(s t): DPM-Solver-2. Second order, two calls per step.

    sigmas: as for `euler`. A last step to 0 is one call. Raises ValueError as there. Lu et al. (2022a), algorithm 1.
    """
    return _plan("dpm2", 2, dpm2_step, sigmas)


def dpmpp_2s(sigmas: Any) -> Plan:
    """The exponential midpoint rule x' = t/s x + (1 - t/s) D(m) with m = sqrt(s t): DPM-Solver++(2S), r = 1/2.

    Second order, two calls per step. sigmas: as for `euler`. A last step to 0 is one call. Raises ValueError as there.
    Lu et al. (2022b), algorithm 1.
    """
    return _plan("dpmpp_2s", 2, dpmpp_2s_step, sigmas)


def rk4(sigmas: Any) -> Plan:
    """The classical Runge-Kutta method in sigma: fourth order, four calls per step.

    sigmas: as for `euler`. A last step to 0 is one call. Raises ValueError as there. Kutta (1901).
    """
    return _plan("rk4", 4, rk4_step, sigmas)
