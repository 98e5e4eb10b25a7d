"""Where the steps lie for the classes that count in training timesteps: DDPM, DDIM, PNDM, LCM, TCD.

One idea: a step leads from one of the timesteps to the next, or to the data. In compat mode the spacing is diffusers',
with its counts, and DDIM's next timestep is the last one less T // n whatever the table says; in exact mode there are
as many steps as were asked for, and the next timestep is the next of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..schedules.times import SPACINGS, timesteps
from .registry import Grid, Setting, predicted

__all__ = ["PREDICTED", "alpha_bar", "spaced_times", "vp_before", "vp_grid", "vp_prediction"]

PREDICTED = {"epsilon": "epsilon", "sample": "denoised", "v_prediction": "v"}


def vp_prediction(name: str, choices: Mapping[str, Any] = PREDICTED) -> Any:
    """The prediction of a family whose x is variance preserving."""
    return lambda setting: predicted(name, setting, choices)


def spaced_times(name: str, setting: Setting, n: int, *, rising: bool = False) -> np.ndarray:
    """n training timesteps by the config's timestep_spacing, falling unless rising. int64.

    ValueError for an unknown spacing, and in compat mode where steps_offset leads beyond the last timestep; exact mode
    lowers the offset then.
    """
    config, total = setting.config, len(setting.table)
    spacing, offset = config.get("timestep_spacing", "leading"), int(config.get("steps_offset", 0))
    if spacing not in SPACINGS:
        raise ValueError(f"{name}: timestep_spacing must be linspace, leading or trailing, got {spacing!r}")
    if not setting.compat:
        times = timesteps(total, n, spacing, offset=offset)
    elif spacing == "linspace":
        times = np.linspace(0, total - 1, n).round()[::-1].astype(np.int64)
    elif spacing == "leading":
        times = np.arange(n)[::-1] * (total // n) + offset
    else:
        times = np.arange(total, 0, -total / n).round().astype(np.int64) - 1
    if times[0] >= total:
        raise ValueError(
            f"{name}: timestep {times[0]} is beyond the last, {total - 1}: steps_offset={offset} is too large for {n} "
            "steps"
        )
    return np.ascontiguousarray(times[::-1] if rising else times)


def vp_grid(name: str, setting: Setting, n: int | None, given: Mapping[str, Any], *, rising: bool = False) -> Grid:
    """The grid of n steps, or of the timesteps that were given."""
    custom = given.get("timesteps")
    if (n is None) == (custom is None):
        raise ValueError(f"{name}.set_timesteps: give either num_inference_steps or timesteps, got {n} and {custom}")
    if custom is None:
        assert n is not None
        times = spaced_times(name, setting, n, rising=rising)
    else:
        times, total = np.asarray(custom), len(setting.table)
        if times.ndim != 1 or len(times) == 0 or (times != times.astype(np.int64)).any():
            raise ValueError(f"{name}.set_timesteps: timesteps must be a list of integers, got {custom!r}")
        if not (np.diff(times) < 0).all() or times[0] >= total or times[-1] < 0:
            raise ValueError(
                f"{name}.set_timesteps: timesteps must fall strictly and lie in 0 ... {total - 1}, got {custom!r}"
            )
        times = times.astype(np.int64)
    return Grid(times, None, "vp", table_noise=True)


def vp_before(setting: Setting) -> Grid:
    """What the scheduler shows before set_timesteps: all timesteps."""
    total = int(setting.config["num_train_timesteps"])
    return Grid(np.arange(total - 1, -1, -1), None, "vp", table_noise=True)


def alpha_bar(setting: Setting, t: int, end: Any) -> Any:
    """alphas_cumprod of timestep t, and `end` below 0, in the tables' precision."""
    assert setting.tables is not None
    return setting.tables.alphas_cumprod[t] if t >= 0 else end
