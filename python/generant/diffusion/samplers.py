"""Samplers as tables. A sampler is a function from noise levels to a list of steps; one driver runs any of them.

Every deterministic sampler for dx/dsigma = (x - D(x; sigma)) / sigma moves x to a linear combination of itself, the
denoised D and earlier Ds, with coefficients that depend on the noise levels only. They are computed here once, in
float64, and each step is a single call of ops.sampler_step, which also turns the network's prediction into D.

In this form (data plus sigma times noise) DDIM is `euler`. Not here: stochastic samplers, guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import ops

__all__ = ["SAMPLERS", "Step", "dpmpp_2m", "euler", "heun", "sample"]


class Step(NamedTuple):
    """x <- c_x x + c_d D + c_1 D' + c_2 D'' + c_3 D''', where D is called at `sigma` and D', .. come from the steps
    before this one."""

    sigma: float
    c_x: float
    c_d: float
    c_1: float = 0.0
    c_2: float = 0.0
    c_3: float = 0.0


def _checked(sigmas: Any) -> list[float]:
    levels = np.asarray(sigmas, np.float64)
    if levels.ndim != 1 or len(levels) < 2:
        raise ValueError(f"sigmas must be a vector of at least 2 noise levels, got shape {levels.shape}")
    if not (np.isfinite(levels).all() and (np.diff(levels) < 0).all() and levels[-1] >= 0):
        raise ValueError("sigmas must be finite, fall strictly and end at or above 0")
    return levels.tolist()


def euler(sigmas: Any) -> list[Step]:
    """x' = x + (t - s) (x - D) / s from level s to t: first order, one call per level (DDIM). Song et al. (2021)."""
    return [Step(s, t / s, 1 - t / s) for s, t in pairwise(_checked(sigmas))]


def heun(sigmas: Any) -> list[Step]:
    """An Euler step, then a second call at its end to average both slopes: second order, two calls per level.

    With x1 the Euler result, x' = x1 + (s - t) / (2 t) (D1 - D): the correction needs the first D, not the first x.
    The last step, to 0, stays Euler. Karras et al. (2022), algorithm 1.
    """
    steps = []
    for s, t in pairwise(_checked(sigmas)):
        steps.append(Step(s, t / s, 1 - t / s))
        if t > 0:
            steps.append(Step(t, 1.0, (s - t) / (2 * t), -(s - t) / (2 * t)))
    return steps


def dpmpp_2m(sigmas: Any) -> list[Step]:
    """DPM-Solver++(2M): D extrapolated linearly in log sigma from the last two calls: second order, one call per level.

    The first step, and a last step to 0, are Euler. Lu et al. (2022), algorithm 2.
    """
    levels = _checked(sigmas)
    steps = [Step(levels[0], levels[1] / levels[0], 1 - levels[1] / levels[0])]
    for r, s, t in zip(levels, levels[1:], levels[2:], strict=False):
        ratio = np.log(s / t) / (2 * np.log(r / s)) if t > 0 else 0.0  # half of this step over the last, in log sigma
        steps.append(Step(s, t / s, (1 - t / s) * (1 + ratio), -(1 - t / s) * ratio))
    return steps


SAMPLERS: dict[str, Callable[[Any], list[Step]]] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def sample(
    predict: Callable[[Any, float], Any],
    x: Any,
    steps: Sequence[Step],
    *,
    convert: Callable[[float], tuple[float, float]] | None = None,
    clip: float | None = None,
    callback: Callable[[int, Any], None] | None = None,
) -> Any:
    """Run x (n, ...), noise of level steps[0].sigma, through the steps; returns the result, in x's shape.

    predict(x, sigma) is D(x; sigma), or with convert(sigma) = (a_x, a_p) a prediction p such that D = a_x x + a_p p.
    D is clipped to [-clip, clip] if clip is given. callback(i, denoised) runs after step i.
    """
    earlier: list[Any] = []
    for i, step in enumerate(steps):
        a_x, a_p = convert(step.sigma) if convert is not None else (0.0, 1.0)
        c = (step.c_1, step.c_2, step.c_3)
        h1, h2, h3 = (earlier[k] if c[k] else None for k in range(3))
        coef = np.array([a_x, a_p, step.c_x, step.c_d, *c, 0.0])
        x, denoised = ops.sampler_step.all(x, predict(x, step.sigma), h1, h2, h3, None, coef, clip=clip)
        earlier = [denoised, *earlier[:2]]
        if callback is not None:
            callback(i, denoised)
    return x
