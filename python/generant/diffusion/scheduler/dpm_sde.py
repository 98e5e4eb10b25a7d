"""DPM-Solver++(2S) for the ancestral SDE, as a scheduler class: a step to the middle in log sigma, then the whole step.

x = data + sigma noise. Each of the two steps goes down to sigma_down without noise and up again by sigma_up. The noise
of the whole step contains that of its first half, one Brownian path in sigma: exact mode sees to that, by finding the
first noise again in the x and D that it led to. compat takes the noise of each step as it is given, since diffusers' is
one path already (torchsde's). Lu et al. (2022b), Karras et al. (2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .dpm_grid import at_times, checked_families, curve, family_of, time_of
from .registry import BETAS, Family, Grid, Program, Setting, VpVelocity, predicted, register

__all__ = ["DPM_SDE"]

NAME = "DPMSolverSDEScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon", "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "noise_sampler_seed": None,
    "timestep_spacing": "linspace", "steps_offset": 0,
}  # fmt: skip


def grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    """2 n - 1 calls: two per level but the last. sigmas has inner levels twice; timesteps: level, middle, level, ..."""
    if n is None:
        raise ValueError(f"{NAME}: num_inference_steps must be given")
    assert setting.tables is not None
    config, table, steps = setting.config, setting.tables.sigmas, int(setting.config["num_train_timesteps"])
    spacing = config["timestep_spacing"]
    if spacing == "linspace":
        times = np.linspace(0, steps - 1, n)[::-1]
    elif spacing == "leading":
        times = np.arange(n - 1, -1, -1.0) * (steps // n) + config["steps_offset"]
    elif spacing == "trailing" and setting.compat:
        times = np.arange(steps, 0, -steps / n).round() - 1
    elif spacing == "trailing":
        times = (steps - np.arange(n) * (steps / n)).round() - 1
    else:
        raise ValueError(f"{NAME}: timestep_spacing must be linspace, leading or trailing, got {spacing!r}")
    sigmas = at_times(setting, times)
    family = family_of(config)
    if family == "flow_sigmas":
        family = None  # not a key of this class
    if family is not None:
        low, high = float(sigmas[-1]), float(sigmas[0])
        if family != "karras_sigmas":
            low, high = (
                own if own is not None else y
                for own, y in ((config.get("sigma_min"), low), (config.get("sigma_max"), high))
            )
        sigmas = curve(family, high, low, n)
        times = time_of(sigmas, table)
    middles = time_of(np.exp((np.log(sigmas[:-1]) + np.log(sigmas[1:])) / 2), table)
    both = np.empty(2 * len(times) - 1)
    both[0::2], both[1::2] = times, middles
    levels = np.concatenate([sigmas[:1], sigmas[1:].repeat(2), [0.0]])
    levels = levels.astype(np.float32) if setting.compat else levels
    called = levels[:-1].astype(np.float64)
    called[1::2] = np.sqrt(called[0:-1:2] * called[1::2])
    top = float(levels.max())
    init = math.hypot(top, 1) if spacing == "leading" else top
    return Grid(both, levels, "ve", init=init, scales=1 / np.sqrt(called**2 + 1))


def _ancestral(sigma: float, to: float) -> tuple[float, float]:
    up = min(to, math.sqrt(max(to**2 * (sigma**2 - to**2) / sigma**2, 0.0)))
    return math.sqrt(max(to**2 - up**2, 0.0)), up


def program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    """Pairs of stages, and one from the last level to 0."""
    assert grid.sigmas is not None
    if begin % 2:
        raise ValueError(f"{NAME}: a run cannot begin in the middle of a step: begin index {begin} must be even")
    s_noise = float(options["s_noise"])
    levels = [float(s) for s in grid.sigmas]
    n = len(grid.timesteps)
    stages: list[Stage] = []
    for i in range(begin, n - 1, 2):
        sigma, to = levels[i], levels[i + 1]
        middle = math.sqrt(sigma * to)
        down, up = _ancestral(sigma, middle)
        keep, up = down / sigma, up * s_noise
        stages.append(
            Stage(sigma, time=float(grid.timesteps[i]), c_x=keep, c_d=1 - keep, c_noise=up, span=(sigma, middle))
        )
        down2, up2 = _ancestral(sigma, to)
        keep2, up2 = down2 / sigma, up2 * s_noise
        x_now, terms, fresh = 0.0, [("x", 1, keep2)], up2
        if not setting.compat and up > 0:  # z = sqrt(share) z_1 + sqrt(1 - share) fresh, z_1 = (x' - keep x - ...) / up
            share = (sigma - middle) / (sigma - to)
            x_now, fresh = up2 * math.sqrt(share) / up, up2 * math.sqrt(1 - share)
            terms = [("x", 1, keep2 - x_now * keep), ("h", 1, -x_now * (1 - keep))]
        stages.append(
            Stage(
                middle, time=float(grid.timesteps[i + 1]), c_x=x_now, c_d=1 - keep2, terms=tuple(terms), c_noise=fresh,
                span=(sigma if setting.compat else middle, to),
            )
        )  # fmt: skip
    stages.append(Stage(levels[n - 1], time=float(grid.timesteps[n - 1]), c_x=0.0, c_d=1.0))
    return Program(Plan(NAME, stages, order=1, final=(1.0, 0.0)))


DPM_SDE = register(
    Family(
        NAME,
        DEFAULTS,
        grid=grid,
        program=program,
        prediction=lambda setting: predicted(NAME, setting, {"epsilon": "epsilon", "v_prediction": VpVelocity()}),
        order=2,
        options={"s_noise": 1.0},
        check=lambda config: checked_families(NAME, config),
    )
)
