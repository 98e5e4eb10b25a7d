"""Euler's method on EDM's levels and preconditioning, as a scheduler class. Karras et al. (2022), algorithm 2.

Churn as in `euler`: the network is called before the noise is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..objectives import Edm
from ..plan import Plan, Stage
from .dpm_grid import even32
from .edm_dpm import EdmVelocity, checked_levels_of
from .euler import CHURN, churned
from .registry import Family, Grid, Program, Setting, predicted, register

__all__ = ["EDM_EULER"]

NAME = "EDMEulerScheduler"
DEFAULTS: dict[str, Any] = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rho": 7.0, "final_sigmas_type": "zero",
}  # fmt: skip


def _grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    config, compat = setting.config, setting.compat
    low, high, rho = config["sigma_min"], config["sigma_max"], config["rho"]
    ramp = given.get("sigmas")
    if (n is None) == (ramp is None):
        raise ValueError(f"{NAME}.set_timesteps: give either num_inference_steps or sigmas, got {n} and {ramp}")
    zero = config["final_sigmas_type"] == "zero"
    u = np.linspace(0, 1, int(n or 0) + (not compat and not zero)) if ramp is None else np.asarray(ramp, np.float64)
    if config["sigma_schedule"] == "karras":
        sigmas = (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    else:
        linear = even32 if compat else np.linspace
        sigmas = np.exp(linear(math.log(low), math.log(high), len(u)).astype(np.float64))[::-1]
    if not compat and ramp is None:
        sigmas = np.append(high, sigmas[1:])
    steps = len(u) if compat or zero or ramp is not None else len(u) - 1
    levels = np.append(sigmas[:steps], 0.0 if zero else sigmas[-1]).astype(np.float32 if compat else np.float64)
    times = (0.25 * np.log(levels[:steps].astype(np.float64))).astype(levels.dtype)
    scales = 1 / np.sqrt(levels[:steps].astype(np.float64) ** 2 + config["sigma_data"] ** 2)
    return Grid(times, levels, "ve", init=math.hypot(high, 1), scales=scales)


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    levels, d, stages, draws = [float(s) for s in grid.sigmas], setting.config["sigma_data"], [], []
    for i in range(begin, len(grid.timesteps)):
        s, t = levels[i], levels[i + 1]
        hat = churned(s, len(levels) - 1, options)
        noise, r = options["s_noise"] * math.sqrt(max(hat**2 - s**2, 0.0)), (t - hat) / hat
        c_noise = noise * (1 + r * (1 - d**2 / (hat**2 + d**2)))
        stages.append(Stage(hat, time=float(grid.timesteps[i]), c_x=1 + r, c_d=-r, c_noise=c_noise, span=(hat, s)))
        draws.append(hat > s)
    plan = Plan("euler", stages, order=1, final=(1.0, levels[len(grid.timesteps)]))
    return Program(plan, draws=tuple(draws) if any(draws) else ())


EDM_EULER = register(
    Family(
        NAME, DEFAULTS, grid=_grid, program=_program,
        prediction=lambda setting: predicted(
            NAME, setting,
            {"epsilon": Edm(setting.config["sigma_data"]), "v_prediction": EdmVelocity(setting.config["sigma_data"])},
        ),
        accepts=("sigmas",), options=CHURN, has_betas=False, check=lambda config: checked_levels_of(NAME, config),
    )
)  # fmt: skip
