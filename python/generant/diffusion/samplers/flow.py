"""Runge-Kutta methods for flow matching: x = (1 - t) data + t noise, dx/dt = velocity = (x - D) / t, from t = 1 to 0.

The plans run in x's own coordinates, so any network does whose answer gives D: "flow" is the velocity itself. At t = 0
the velocity cannot be told from D, so a last step to 0 uses methods that do not look there. Not here: steps chosen by
the error (adaptive), training of the flow (objectives).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..plan import Plan, Stage, checked_levels

__all__ = ["flow_euler", "flow_heun", "flow_rk4"]

CLASSICAL = ((0.5, (0.5,)), (0.5, (0.0, 0.5)), (1.0, (0.0, 0.0, 1.0)), (1.0, (1 / 6, 1 / 3, 1 / 3, 1 / 6)))
THIRD = ((1 / 3, (1 / 3,)), (2 / 3, (0.0, 2 / 3)), (1.0, (0.25, 0.0, 0.75)))  # Heun's: nodes below 1


def checked_times(sampler: str, times: Any) -> list[float]:
    """times as floats: from 1 or below, falling strictly, to 0 or above."""
    checked = checked_levels(sampler, times, name="times")
    if checked[0] > 1:
        raise ValueError(f"{sampler}: times must lie in 0 ... 1, got times[0] = {checked[0]}")
    return checked


def _plan(name: str, stages: list[Stage], order: int, end: float) -> Plan:
    return Plan(name, stages, form="flow", order=order, final=(1 - end, end))


def flow_euler(times: Any) -> Plan:
    """x' = x + (u - t) v, v the velocity at t: one call per step, order 1. A step to 0 gives D.

    times: (n + 1,), falling strictly, usually 1 ... 0. Liu et al. (2023), Lipman et al. (2023).
    """
    levels = checked_times("flow_euler", times)
    return _plan("flow_euler", [Stage(t, 1 - t, c_x=u / t, c_d=1 - u / t) for t, u in pairwise(levels)], 1, levels[-1])


def flow_heun(times: Any) -> Plan:
    """x' = x + (u - t) (v + v_u) / 2, v_u the velocity where Euler's step ends: two calls per step, order 2.

    A step to 0 is Euler's, one call, which does not lower the order. times: as `flow_euler`. Heun (1900).
    """
    levels = checked_times("flow_heun", times)
    stages = []
    for t, u in pairwise(levels):
        stages.append(Stage(t, 1 - t, c_x=u / t, c_d=1 - u / t))
        if u > 0:
            c = (t - u) / (2 * u)  # on x1 = x + (u - t) v: v_u - v = (D - D_u) / u
            stages.append(Stage(u, 1 - u, c_x=1.0, c_d=c, terms=(("h", 1, -c),)))
    return _plan("flow_heun", stages, 2, levels[-1])


def flow_rk4(times: Any) -> Plan:
    """x' = x + (u - t) (v1 + 2 v2 + 2 v3 + v4) / 6: the classical method, four calls per step, order 4.

    A step to 0 is Heun's third-order one, three calls, whose velocities all lie before 0: one such step does not lower
    the order. times: as `flow_euler`. Kutta (1901), Heun (1900).
    """
    levels = checked_times("flow_rk4", times)
    stages: list[Stage] = []
    for t, u in pairwise(levels):
        stages += _runge_kutta(t, u - t, CLASSICAL if u > 0 else THIRD)
    return _plan("flow_rk4", stages, 4, levels[-1])


def _runge_kutta(t: float, step: float, tableau: Sequence[tuple[float, tuple[float, ...]]]) -> list[Stage]:
    """One stage per row (node, weights of v_1 ... v_k): x + step sum of weights v, which is at t + node step.

    What stages keep is v = (x - D) / time; the first x is looked up.
    """
    stages, node = [], 0.0
    for k, (following, weights) in enumerate(tableau):
        time = t + node * step
        c = step * weights[k] / time  # step weight v_k of this stage's own x and D
        terms: list[tuple[str, int, float]] = [("x", k, 1.0)] if k else []
        terms += [("h", k - j, step * w) for j, w in enumerate(weights[:k]) if w]
        stages.append(
            Stage(time, 1 - time, c_x=c if k else 1 + c, c_d=-c, terms=tuple(terms), g_x=1 / time, g_d=-1 / time)
        )
        node = following
    return stages
