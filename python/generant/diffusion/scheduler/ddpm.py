"""DDPM: the posterior of the noising process. Ho et al. (2020), eq. 7; learned variances: Nichol and Dhariwal (2021).

diffusers takes the square root of a logarithm for "fixed_large_log", which is not a number; here it is what the name
says, the same as "fixed_large".
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .registry import BETAS, Family, Grid, Program, Setting, register
from .vp_grid import alpha_bar, vp_before, vp_grid, vp_prediction

__all__ = ["DDPM"]

NAME = "DDPMScheduler"
FIXED = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
LEARNED = ("learned", "learned_range")
DEFAULTS: dict[str, Any] = BETAS | {
    "variance_type": "fixed_small", "clip_sample": True, "prediction_type": "epsilon", "thresholding": False,
    "dynamic_thresholding_ratio": 0.995, "clip_sample_range": 1.0, "sample_max_value": 1.0,
    "timestep_spacing": "leading", "steps_offset": 0, "rescale_betas_zero_snr": False,
}  # fmt: skip


def _check(config: Mapping[str, Any]) -> None:
    if config["variance_type"] not in FIXED + LEARNED:
        raise ValueError(
            f"{NAME}: variance_type must be one of {', '.join(FIXED + LEARNED)}, got {config['variance_type']!r}"
        )


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    kind = setting.config["variance_type"]
    times = [*grid.timesteps.tolist(), -1]
    one = setting.table.dtype.type(1)
    stages, draws, logs = [], [], []
    for i in range(begin, len(grid.timesteps)):
        t, following = times[i], times[i + 1]
        a, b = setting.table[t], alpha_bar(setting, following, one)
        kept = a / b
        beta = one - kept
        small = np.maximum((one - b) / (one - a) * beta, one * 1e-20)
        variance = small if kind.startswith("fixed_small") else beta
        noisy = t > 0 if setting.compat else following >= 0
        learned = kind in LEARNED
        stages.append(
            Stage(
                float((one - a) ** 0.5), float(a**0.5), time=float(t), c_x=float(kept**0.5 * (one - b) / (one - a)),
                c_d=float(b**0.5 * beta / (one - a)), c_noise=(1.0 if learned else float(variance**0.5)) * noisy,
                span=(_level(a), _level(b)),
            )
        )  # fmt: skip
        draws.append(bool(noisy))
        logs.append((float(np.log(small)), float(np.log(beta))))
    end = (float(b**0.5), float((one - b) ** 0.5))
    plan = Plan("ddpm", stages, form="vp", order=1, final=end)
    return Program(plan, draws=tuple(draws), variance=tuple(logs) if kind in LEARNED else ())


def _level(a: Any) -> float:
    """sigma / alpha; infinite where there is no signal."""
    return float(np.sqrt((1 - float(a)) / float(a))) if a > 0 else inf


DDPM = register(
    Family(
        NAME, DEFAULTS, grid=lambda setting, n, given: vp_grid(NAME, setting, n, given), program=_program,
        prediction=vp_prediction(NAME), accepts=("timesteps",), check=_check, start=vp_before, by_timestep=True,
        at_once=True,
    )
)  # fmt: skip
