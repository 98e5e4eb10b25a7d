"""Latent consistency and trajectory consistency models, as scheduler classes. Luo et al. (2023); Zheng et al. (2024).

Their timesteps are a subset of the few that the model was distilled on: k, 2 k, ... less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .ddim import ddim_stage
from .registry import BETAS, Family, Grid, Program, Setting, register
from .vp_grid import vp_before, vp_prediction

__all__ = ["LCM", "TCD"]

NAME, TRAJECTORY = "LCMScheduler", "TCDScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "original_inference_steps": 50,
    "clip_sample": False, "clip_sample_range": 1.0, "set_alpha_to_one": True, "steps_offset": 0,
    "prediction_type": "epsilon", "thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0,
    "timestep_spacing": "leading", "timestep_scaling": 10.0, "rescale_betas_zero_snr": False,
}  # fmt: skip
SIGMA_DATA = 0.5


def _grid(name: str, setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    total, custom = int(setting.config["num_train_timesteps"]), given.get("timesteps")
    strength = float(given.get("strength", 1.0))
    if (n is None) == (custom is None):
        raise ValueError(f"{name}.set_timesteps: give either num_inference_steps or timesteps, got {n} and {custom}")
    if not 0 < strength <= 1:
        raise ValueError(f"{name}.set_timesteps: strength must lie in (0, 1], got {strength}")
    if custom is not None:
        times = np.asarray(custom, np.int64)
        if times.ndim != 1 or len(times) == 0 or not (np.diff(times) < 0).all() or times[0] >= total or times[-1] < 0:
            raise ValueError(
                f"{name}.set_timesteps: timesteps must fall strictly and lie in 0 ... {total - 1}, got {custom!r}"
            )
        return Grid(times[len(times) - min(int(len(times) * strength), len(times)) :], None, "vp", table_noise=True)
    original = given.get("original_inference_steps")
    if original is not None and name == TRAJECTORY:
        origin = np.arange(int(total * strength))
    else:
        original = int(setting.config["original_inference_steps"] if original is None else original)
        if not 1 <= original <= total:
            raise ValueError(f"{name}: original_inference_steps must lie in 1 ... {total}, got {original}")
        origin = np.arange(1, int(original * strength) + 1) * (total // original) - 1
    assert n is not None
    if n > len(origin):
        raise ValueError(
            f"{name}.set_timesteps: num_inference_steps={n} is more than the {len(origin)} steps that the model was "
            "distilled on (original_inference_steps times strength)"
        )
    index = np.floor(np.linspace(0, len(origin), n, endpoint=False)).astype(np.int64)
    return Grid(origin[::-1][index], None, "vp", table_noise=True)


def _lcm_program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert setting.tables is not None
    table, times, stages = setting.table, grid.timesteps.tolist(), []
    for i in range(begin, len(times)):
        t, last = times[i], i == len(times) - 1
        a, b = float(table[t]), 1.0 if last else float(table[times[i + 1]])
        scaled = t * float(setting.config["timestep_scaling"])
        r = np.hypot(scaled, SIGMA_DATA)
        c_skip, c_out, after = float((SIGMA_DATA / r) ** 2), float(scaled / r), b**0.5
        noise = 0.0 if last else (1 - b) ** 0.5
        stages.append(
            Stage((1 - a) ** 0.5, a**0.5, float(t), c_x=after * c_skip, c_d=after * c_out, c_noise=noise)
        )
    plan = Plan("lcm", stages, form="vp", final=(1.0, 0.0))
    return Program(plan, draws=tuple(i < len(times) - 1 for i in range(begin, len(times))))


LCM = register(
    Family(
        NAME, DEFAULTS, grid=lambda setting, n, given: _grid(NAME, setting, n, given), program=_lcm_program,
        prediction=vp_prediction(NAME), accepts=("timesteps", "original_inference_steps", "strength"),
        start=vp_before,
    )
)  # fmt: skip


def _tcd_program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert setting.tables is not None
    table, times, eta, stages = setting.table, grid.timesteps.tolist(), float(options["eta"]), []
    if not 0 <= eta <= 1:
        raise ValueError(f"{TRAJECTORY}.step: eta must lie in 0 ... 1, got {eta}")
    for i in range(begin, len(times)):
        last = i == len(times) - 1
        following = 0 if last else times[i + 1]
        b, c = table[following], table[int(np.floor((1 - eta) * following))]
        stage, _ = ddim_stage(setting.config["prediction_type"], table[times[i]], c, t=times[i])
        if eta > 0 and not last:  # from the time s in between up again to the next timestep
            up = float((b / c) ** 0.5)
            noise = float(max(1 - b / c, 0) ** 0.5)
            stage = stage._replace(c_x=stage.c_x * up, c_d=stage.c_d * up, c_noise=noise)
        stages.append(stage)
    plan = Plan("tcd", stages, form="vp", final=(float(c) ** 0.5, float(1 - c) ** 0.5))
    return Program(plan, draws=tuple(eta > 0 and i < len(times) - 1 for i in range(begin, len(times))))


TCD = register(
    Family(
        TRAJECTORY, DEFAULTS, grid=lambda setting, n, given: _grid(TRAJECTORY, setting, n, given), program=_tcd_program,
        prediction=vp_prediction(TRAJECTORY), accepts=("timesteps", "original_inference_steps", "strength"),
        options={"eta": 0.3}, bounds=lambda config: {}, start=vp_before,
    )
)  # fmt: skip
