"""Euler's method and its ancestral form, as scheduler classes. Karras et al. (2022), algorithm 2; Song et al. (2021).

Churn: a step first adds noise to reach sigma_hat > sigma, but the network was called before, at sigma, so its
prediction is used as if it had seen the noise. `samplers.edm_churn` calls it after; a scheduler cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from ..samplers.ancestral import split_step
from .dpm_grid import checked_families, time_of
from .registry import BETAS, Family, Grid, Program, Setting, register
from .ve_grid import ve_before, ve_grid, ve_levels, ve_prediction

__all__ = ["CHURN", "EULER", "EULER_ANCESTRAL", "churned"]

NAME, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
FAMILIES = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
SHARED: dict[str, Any] = BETAS | {
    "prediction_type": "epsilon", "timestep_spacing": "linspace", "steps_offset": 0, "rescale_betas_zero_snr": False,
}  # fmt: skip
DEFAULTS = SHARED | FAMILIES | {
    "interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete",
    "final_sigmas_type": "zero",
}  # fmt: skip
CHURN: dict[str, float] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}


def _check(config: Mapping[str, Any]) -> None:
    checked_families(NAME, config)
    for key, choices in (
        ("interpolation_type", ("linear", "log_linear")), ("timestep_type", ("discrete", "continuous")),
        ("final_sigmas_type", ("zero", "sigma_min")),
    ):  # fmt: skip
        if config[key] not in choices:
            raise ValueError(f"{NAME}: {key} must be one of {', '.join(choices)}, got {config[key]!r}")


def _grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    assert setting.tables is not None
    config, table = setting.config, setting.tables.sigmas
    continuous = config["timestep_type"] == "continuous" and config["prediction_type"] == "v_prediction"
    if given.get("sigmas") is not None:
        levels = np.asarray(given["sigmas"], np.float64)
        if n is not None or given.get("timesteps") is not None:
            raise ValueError(f"{NAME}.set_timesteps: sigmas say everything; give no steps or timesteps beside them")
        if levels.ndim != 1 or len(levels) < 2 or not (np.diff(levels) < 0).all() or levels[-1] < 0:
            raise ValueError(f"{NAME}.set_timesteps: sigmas must fall strictly and end at or above 0, got {levels}")
        times = time_of(levels[:-1], table)
    else:
        logarithmic = config["interpolation_type"] == "log_linear"
        ends = (float(table[-1]), float(table[0])) if logarithmic else None
        times, sigmas = ve_levels(NAME, setting, n, given, ends=ends)
        if logarithmic and not any(config[key] for key in FAMILIES):
            sigmas = np.exp(np.linspace(math.log(table[-1]), math.log(table[0]), len(times) + 1))
            sigmas = sigmas if setting.compat else sigmas[:-1]
            times = times if setting.compat else time_of(sigmas, table)
        end = 0.0 if config["final_sigmas_type"] == "zero" else float(table[0])
        if not setting.compat and end > 0 and sigmas[-1] <= end:
            sigmas = sigmas[:-1] if len(sigmas) > 1 else sigmas * 2  # the end is a level of its own
            times = times[: len(sigmas)]
        levels = np.append(sigmas, end)
    if continuous:
        times = 0.25 * np.log(levels[: len(times)])
    return ve_grid(setting, times, levels)


def churned(level: float, steps: int, options: Mapping[str, Any]) -> float:
    """sigma_hat: the level that a step's noise leads to."""
    active = options["s_tmin"] <= level <= options["s_tmax"]
    return level * (1 + (min(options["s_churn"] / steps, math.sqrt(2) - 1) if active else 0.0))


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    levels, kind = [float(s) for s in grid.sigmas], setting.config["prediction_type"]
    share = {"epsilon": lambda s: 1.0, "v_prediction": lambda s: 1 / (s * s + 1)}.get(kind, lambda s: 0.0)
    stages, draws = [], []
    for i in range(begin, len(grid.timesteps)):
        s, t = levels[i], levels[i + 1]
        hat = churned(s, len(levels) - 1, options)
        noise = options["s_noise"] * math.sqrt(max(hat**2 - s**2, 0.0))
        r = (t - hat) / (s if kind == "epsilon" else hat)  # of the slope, which epsilon is itself
        c_noise = noise * (1.0 if kind == "epsilon" else 1 + r * (1 - share(s)))
        stages.append(
            Stage(s, time=float(grid.timesteps[i]), c_x=1 + r, c_d=-r, c_noise=c_noise, span=(hat, s))
        )  # fmt: skip
        draws.append(hat > s)
    plan = Plan("euler", stages, order=1, final=(1.0, levels[len(grid.timesteps)]))
    return Program(plan, draws=tuple(draws) if any(draws) else ())


EULER = register(
    Family(
        NAME, DEFAULTS, grid=_grid, program=_program, prediction=ve_prediction(NAME), accepts=("timesteps", "sigmas"),
        options=CHURN, floor=True, start=ve_before, check=_check,
    )
)  # fmt: skip


def _ancestral_grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    times, sigmas = ve_levels(ANCESTRAL, setting, n, given)
    return ve_grid(setting, times, np.append(sigmas, 0.0))


def _ancestral_program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    levels, stages = [float(s) for s in grid.sigmas], []
    for i in range(begin, len(grid.timesteps)):
        s, t = levels[i], levels[i + 1]
        down, up = split_step(s, t, 1.0)
        r = down / s
        stages.append(Stage(s, time=float(grid.timesteps[i]), c_x=r, c_d=1 - r, c_noise=up, span=(s, t)))
    plan = Plan("euler_ancestral", stages, order=1, final=(1.0, levels[len(grid.timesteps)]))
    return Program(plan, draws=(True,) * len(stages))


EULER_ANCESTRAL = register(
    Family(
        ANCESTRAL, SHARED, grid=_ancestral_grid, program=_ancestral_program,
        prediction=ve_prediction(ANCESTRAL, data=False),
        floor=True, start=ve_before,
    )
)  # fmt: skip
