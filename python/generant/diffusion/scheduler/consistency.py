"""Multistep consistency sampling, as a scheduler class: D, noise to the next level, D. Song et al. (2023), alg. 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from ..samplers.few_step import ConsistencyScaling
from .registry import Family, Grid, Program, Setting, register

__all__ = ["CONSISTENCY"]

NAME = "CMStochasticIterativeScheduler"
DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "s_noise": 1.0, "rho": 7.0,
    "clip_denoised": True,
}  # fmt: skip


def _grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    config, custom = setting.config, given.get("timesteps")
    total, low, high, rho = (config[key] for key in ("num_train_timesteps", "sigma_min", "sigma_max", "rho"))
    if (n is None) == (custom is None):
        raise ValueError(f"{NAME}.set_timesteps: give either num_inference_steps or timesteps, got {n} and {custom}")
    if custom is None:
        numbers = np.arange(int(n or 0))[::-1] * (total // int(n or 1))
    else:
        numbers = np.asarray(custom, np.int64)
        if numbers.ndim != 1 or len(numbers) == 0 or not (np.diff(numbers) < 0).all() or numbers[0] >= total:
            raise ValueError(
                f"{NAME}.set_timesteps: timesteps must fall strictly and lie below {total}, got {custom!r}"
            )
    ramp = numbers[::-1] / max(total - 1, 1)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    levels = np.append(sigmas, low)
    levels = levels.astype(np.float32) if setting.compat else levels
    scales = 1 / np.sqrt(levels[:-1].astype(np.float64) ** 2 + config["sigma_data"] ** 2)
    return Grid(250 * np.log(sigmas + 1e-44), levels, "ve", init=high, scales=scales)


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    config, levels, stages = setting.config, [float(s) for s in grid.sigmas], []
    low, high, several = config["sigma_min"], config["sigma_max"], len(grid.timesteps) > 1
    for i in range(begin, len(grid.timesteps)):
        t = min(max(levels[i + 1], low), high)
        noise = config["s_noise"] * math.sqrt(max(t**2 - low**2, 0.0)) if several else 0.0
        stages.append(Stage(levels[i], time=float(grid.timesteps[i]), c_noise=noise, span=(levels[i], t)))
    plan = Plan("consistency", stages, final=(1.0, levels[-1]))
    return Program(plan, draws=(several,) * len(stages))


def _check(config: Mapping[str, Any]) -> None:
    if not 0 < config["sigma_min"] < config["sigma_max"] < math.inf:
        raise ValueError(
            f"{NAME}: wanted 0 < sigma_min < sigma_max, got {config['sigma_min']} and {config['sigma_max']}"
        )


CONSISTENCY = register(
    Family(
        NAME, DEFAULTS, grid=_grid, program=_program,
        prediction=lambda setting: ConsistencyScaling(
            setting.config["sigma_data"], sigma_min=setting.config["sigma_min"]
        ),
        accepts=("timesteps",), has_betas=False, check=_check,
        bounds=lambda config: {"clip": 1.0} if config["clip_denoised"] else {},
    )
)  # fmt: skip
