"""DPM-Solver++ from earlier steps on EDM's levels and preconditioning: x = data + sigma noise. Karras et al. (2022).

The steps are those of dpm_multistep. diffusers has no order 3 with noise here; we take that of its multistep class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..objectives import Edm
from .dpm_grid import even32
from .dpm_multistep import dpm_check, multistep_program
from .registry import Family, Grid, Setting, predicted, register

__all__ = ["EDM_DPM", "EdmVelocity", "checked_levels_of"]

NAME = "EDMDPMSolverMultistepScheduler"
DEFAULTS: dict[str, Any] = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rho": 7.0, "solver_order": 2, "thresholding": False,
    "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0, "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, "final_sigmas_type": "zero",
}  # fmt: skip


class EdmVelocity(Edm):
    """EDM's preconditioning with the sign of the network's output turned."""

    def convert(self, sigma: float) -> tuple[float, float]:
        """(c_skip, -c_out)."""
        c_skip, c_out = super().convert(sigma)
        return c_skip, -c_out


def grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    """n levels and their end. Exact mode: an end at sigma_min is a level of its own, not the last one again."""
    if n is None:
        raise ValueError(f"{NAME}: num_inference_steps must be given")
    config, compat = setting.config, setting.compat
    low, high, rho = config["sigma_min"], config["sigma_max"], config["rho"]
    zero = config["final_sigmas_type"] == "zero"
    count = n if compat or zero else n + 1
    linear = even32 if compat else np.linspace
    if config["sigma_schedule"] == "karras":
        a, b = high ** (1 / rho), low ** (1 / rho)
        sigmas = (a + linear(0, 1, count) * (b - a)).astype(np.float64) ** rho
    else:
        sigmas = np.exp(linear(math.log(low), math.log(high), count).astype(np.float64))[::-1]
    if not compat:
        sigmas = np.array(sigmas)
        sigmas[0] = high
        if count > 1:
            sigmas[-1] = low
    levels = np.append(sigmas[:n], 0.0 if zero else low).astype(np.float32 if compat else np.float64)
    scales = 1 / (levels[:n] ** 2 + config["sigma_data"] ** 2) ** 0.5
    times = (0.25 * np.log(levels[:n].astype(np.float64))).astype(levels.dtype)
    return Grid(times, levels, "ve", init=math.hypot(high, 1), scales=scales)


def checked_levels_of(name: str, config: Mapping[str, Any]) -> None:
    """ValueError where sigma_min, sigma_max, sigma_schedule or final_sigmas_type make no sense."""
    if not 0 < config["sigma_min"] < config["sigma_max"] < math.inf:
        raise ValueError(
            f"{name}: wanted 0 < sigma_min < sigma_max, got {config['sigma_min']} and {config['sigma_max']}"
        )
    for key, choices in (("sigma_schedule", ("karras", "exponential")), ("final_sigmas_type", ("zero", "sigma_min"))):
        if config[key] not in choices:
            raise ValueError(f"{name}: {key} must be {' or '.join(choices)}, got {config[key]!r}")


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replacements for values of other classes; ValueError where values do not go together."""
    checked_levels_of(NAME, config)
    return dpm_check(NAME, config, ("dpmsolver++", "sde-dpmsolver++"), config["final_sigmas_type"])


EDM_DPM = register(
    Family(
        NAME,
        DEFAULTS,
        grid=grid,
        program=lambda setting, grid, begin, options: multistep_program(NAME, setting, grid, begin),
        prediction=lambda setting: predicted(
            NAME, setting,
            {
                "epsilon": Edm(setting.config["sigma_data"]),
                "v_prediction": EdmVelocity(setting.config["sigma_data"]),
            },
        ),
        has_betas=False,
        check=check,
    )
)  # fmt: skip
