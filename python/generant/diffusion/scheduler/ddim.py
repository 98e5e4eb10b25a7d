"""DDIM, with or without noise, and its inverse, from data to noise. Song, Meng and Ermon (2021), eq. 12 and 16.

Where D is clipped, the direction back to x still has the network's own noise, unless use_clipped_model_output: a stage
then adds a multiple of the prediction itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .registry import BETAS, Family, Grid, Program, Setting, common_bounds, register
from .vp_grid import alpha_bar, vp_before, vp_grid, vp_prediction

__all__ = ["DDIM", "DDIM_INVERSE"]

NAME, INVERSE = "DDIMScheduler", "DDIMInverseScheduler"
SHARED: dict[str, Any] = BETAS | {
    "clip_sample": True, "set_alpha_to_one": True, "steps_offset": 0, "prediction_type": "epsilon",
    "clip_sample_range": 1.0, "timestep_spacing": "leading", "rescale_betas_zero_snr": False,
}  # fmt: skip
DEFAULTS = SHARED | {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}


def ddim_stage(
    kind: str, a: Any, b: Any, *, t: float, eta: float = 0.0, bounded: bool = False
) -> tuple[Stage, float]:
    """(the stage from alphas_cumprod a to b, what it adds times the prediction). kind: the prediction_type."""
    one = type(a)(1)
    alpha, sigma = float(a**0.5), float((one - a) ** 0.5)
    deviation = eta * float(np.sqrt((one - b) / (one - a) * (one - a / b))) if eta else 0.0
    direction = float(np.sqrt(max(float(one - b) - deviation**2, 0.0)))
    keep, ahead, raw = 0.0, float(b**0.5), 0.0
    if not bounded and sigma > 0:  # the noise is (x - alpha D) / sigma
        keep = direction / sigma
        ahead -= keep * alpha
    elif kind == "epsilon":
        raw = direction
    elif kind == "v_prediction":
        keep, raw = direction * sigma, direction * alpha
    elif sigma > 0:
        keep, raw = direction / sigma, -direction * alpha / sigma
    start, to = (float(np.sqrt((1 - float(v)) / float(v))) if v > 0 else float("inf") for v in (a, b))
    stage = Stage(sigma, alpha, time=t, c_x=keep, c_d=ahead, c_noise=deviation, span=(start, to))
    return stage, raw


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    config, table = setting.config, setting.table
    eta, times, total = float(options["eta"]), grid.timesteps.tolist(), len(table)
    if not eta >= 0:
        raise ValueError(f"{NAME}.step: eta must be at least 0, got {eta}")
    end = table.dtype.type(1) if config["set_alpha_to_one"] else table[0]
    bounded = bool(common_bounds(config)) and not options["use_clipped_model_output"]
    stages, raw = [], []
    for i in range(begin, len(times)):
        if setting.compat:
            following = times[i] - total // len(times)
        else:
            following = times[i + 1] if i + 1 < len(times) else -1
        b = alpha_bar(setting, following, end)
        stage, direct = ddim_stage(
            config["prediction_type"], table[times[i]], b, t=times[i], eta=eta, bounded=bounded
        )
        stages.append(stage)
        raw.append(direct)
    plan = Plan("ddim", stages, form="vp", order=1, final=(float(b**0.5), float((1 - b) ** 0.5)))
    return Program(plan, raw=tuple(raw) if any(raw) else (), draws=(eta > 0,) * len(stages))


DDIM = register(
    Family(
        NAME, DEFAULTS, grid=lambda setting, n, given: vp_grid(NAME, setting, n, given), program=_program,
        prediction=vp_prediction(NAME), options={"eta": 0.0, "use_clipped_model_output": False}, start=vp_before,
        by_timestep=True,
    )
)  # fmt: skip


def _inverse_grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    if setting.config["timestep_spacing"] not in ("leading", "trailing"):
        raise ValueError(
            f"{INVERSE}: timestep_spacing must be leading or trailing, got {setting.config['timestep_spacing']!r}"
        )
    return vp_grid(INVERSE, setting, n, given, rising=True)


def _inverse_program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    config, table = setting.config, setting.table
    times, total = grid.timesteps.tolist(), len(table)
    first = table.dtype.type(1) if config["set_alpha_to_one"] else table[0]
    stages, raw = [], []
    for i in range(begin, len(times)):
        if setting.compat:
            here = min(times[i] - total // len(times), total - 1)
        else:
            here = times[i - 1] if i else -1
        b = table[times[i]]
        stage, direct = ddim_stage(
            config["prediction_type"], alpha_bar(setting, here, first), b, t=times[i], bounded=True
        )
        stages.append(stage)
        raw.append(direct)
    plan = Plan("ddim_inverse", stages, form="vp", order=1, final=(float(b**0.5), float((1 - b) ** 0.5)))
    return Program(plan, raw=tuple(raw))


DDIM_INVERSE = register(
    Family(
        INVERSE, SHARED, grid=_inverse_grid, program=_inverse_program, prediction=vp_prediction(INVERSE),
        by_timestep=True,
        start=lambda setting: Grid(np.arange(len(setting.table)), None, "vp", table_noise=True),
    )
)  # fmt: skip
