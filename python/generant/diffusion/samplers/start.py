"""Multistep plans: one driver for every method whose step is a linear combination of x and what past levels left.

`multistep` lays out the stages; the method brings only its coefficients. The one idea is the start: a method of order p
that begins with Euler steps never exceeds order 2, so the first steps can be taken by a Runge-Kutta method whose extra
calls leave no trace in the history: that holds exactly one entry per level, at the level.
Not here: the coefficients (exponential, multistep).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from ..plan import Plan, Stage
from .single import euler_step, heun_step, rk4_step

__all__ = ["checked_choice", "checked_order", "multistep", "rk_start"]

Step = Callable[[float, float], list[Stage]]


def checked_order(sampler: str, order: int, most: int) -> int:
    """order, if it is one of 1 ... most; ValueError else."""
    if order not in range(1, most + 1):
        raise ValueError(f"{sampler}: order must be 1 ... {most}, got {order!r}")
    return int(order)


def checked_choice(sampler: str, argument: str, value: str, choices: Sequence[str]) -> str:
    """value, if it is among choices; ValueError else."""
    if value not in choices:
        raise ValueError(f"{sampler}: {argument} must be one of {', '.join(choices)}, got {value!r}")
    return value


def rk_start(sampler: str, levels: Sequence[float], order: int) -> list[Step]:
    """The steps that start a method of this order: order - 1 of them, each with a local error of that order or less.

    Order 1 and 2 need none better than Euler, order 3 takes Heun's (two calls each), order 4 RK4 (four calls each).
    ValueError where there are fewer steps than `order`: the method itself would not take one before the last.
    """
    if len(levels) - 1 < order:
        raise ValueError(
            f"{sampler}: order {order} started by Runge-Kutta steps needs at least {order} steps ({order + 1} noise "
            f"levels), got {len(levels) - 1}; take a lower order or the other start"
        )
    return [{1: euler_step, 2: euler_step, 3: heun_step, 4: rk4_step}[order]] * (order - 1)


def multistep(
    name: str,
    levels: Sequence[float],
    row: Callable[[int], tuple[float, Sequence[float]]],
    *,
    order: int,
    start: Sequence[Step] = (),
    slopes: bool = False,
) -> Plan:
    """The plan of x_{i+1} = c_x x_i + sum_k c_k f_{i-k}, where row(i) = (c_x, (c_0, c_1, ...)) at levels[i].

    f is D, or with slopes=True d = (x - D) / sigma. start: what takes the first len(start) steps instead. A step to
    level 0 is x' = D always.
    """
    stages: list[Stage] = []
    at: list[int] = []  # the stage that was called at each level
    for i, (s, t) in enumerate(pairwise(levels)):
        at.append(len(stages))
        if t == 0:
            steps = euler_step(s, t)
        elif i < len(start):
            steps = start[i](s, t)
        else:
            c_x, (c_0, *past) = row(i)
            terms = tuple(("h", at[i] - at[i - 1 - k], c) for k, c in enumerate(past))
            steps = [Stage(s, c_x=c_x + c_0 / s if slopes else c_x, c_d=-c_0 / s if slopes else c_0, terms=terms)]
        if slopes:
            steps[0] = steps[0]._replace(g_x=1 / s, g_d=-1 / s)
        stages += steps
    return Plan(name, stages, order=order, final=(1.0, levels[-1]))
