"""iPNDM: Adams and Bashforth's weights on the noise, for a network that predicts v. Liu et al. (2022).

Its levels are sigma = sin^2(pi t / 2) for t = 1 ... 0, alpha = sqrt(1 - sigma^2), and its timesteps angles. The weights
are those of an even grid, which this is not, and the first step starts from alpha = 0: order 1, with a small error. At
that first level D = -v; diffusers loses it, since it finds D as 0 / 1e-8, and exact mode has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .dpm_grid import even32
from .registry import Family, Grid, Program, Setting, register

__all__ = ["IPNDM"]

NAME = "IPNDMScheduler"
WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    """Angles as timesteps, alphas and sigmas as extra. trained_betas are the sigmas if there are any, whatever n is."""
    if n is None:
        raise ValueError(f"{NAME}: num_inference_steps must be given")
    real = np.float32 if setting.compat else np.float64
    own = setting.config["trained_betas"]
    if own is not None:
        sigma = np.asarray(own, real)
        if sigma.ndim != 1 or len(sigma) < 2 or not ((sigma >= 0) & (sigma <= 1)).all():
            raise ValueError(f"{NAME}: trained_betas must be at least two numbers in 0 ... 1, got {own!r}")
    else:
        steps = even32(1, 0, n + 1) if setting.compat else np.linspace(1, 0, n + 1)
        sigma = np.sin((steps * np.pi / 2).astype(np.float64)).astype(real) ** 2
    alpha = (1 - sigma**2) ** 0.5
    times = np.arctan2(sigma.astype(np.float64), alpha) / np.pi * 2
    return Grid(times[:-1].astype(real), None, "vp", extra=(alpha.astype(real), sigma.astype(real)))


def program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    """x' = alpha' (x - sigma e) / alpha + sigma' e with e = sum w_k eps_{i-k}."""
    alpha, sigma = (np.asarray(a, np.float64) for a in grid.extra)
    stages: list[Stage] = []
    for i in range(begin, len(grid.timesteps)):
        a, s, a1, s1 = (float(y) for y in (alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]))
        if s == 0:
            raise ValueError(f"{NAME}: the level of step {i} is 0, where there is no noise to predict")
        weights = WEIGHTS[min(i - begin, 3)]
        terms: tuple[tuple[str, int, float], ...] = ()
        if a < 1e-8:
            c_x, c_d = s1 / s, 0.0 if setting.compat else a1 - a * s1 / s
        else:
            rest = s1 - a1 * s / a
            c_x, c_d = a1 / a + rest * weights[0] / s, -rest * weights[0] * a / s
            terms = tuple(("h", k, rest * w) for k, w in enumerate(weights) if k > 0)
        time = float(grid.timesteps[i])
        stages.append(Stage(s, a, time, c_x=c_x, c_d=c_d, terms=terms, g_x=1 / s, g_d=-a / s))
    return Program(Plan(NAME, stages, form="vp", order=1, final=(float(alpha[-1]), float(sigma[-1]))))


IPNDM = register(
    Family(
        NAME,
        {"num_train_timesteps": 1000, "trained_betas": None},
        grid=grid,
        program=program,
        prediction=lambda setting: "v",
        has_betas=False,
    )
)
