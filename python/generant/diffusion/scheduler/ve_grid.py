"""Where the steps lie for the classes whose x is data + sigma noise: Euler, Heun, DPM2, LMS and the SDE of 2S.

One idea: n levels from the table of training, at fractional timesteps or along a curve, then 0. Classes that call the
network twice per level show their levels and timesteps twice, or with the middles between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .dpm_grid import at_times, curve, family_of, time_of
from .registry import Grid, Setting, VpVelocity, predicted
from .vp_grid import spaced_times

__all__ = ["interleaved", "ve_before", "ve_grid", "ve_levels", "ve_prediction"]


def ve_prediction(name: str, *, data: bool = True) -> Any:
    """The prediction of a family whose x is data + sigma noise. data: the class takes "sample" too."""
    choices: dict[str, Any] = {"epsilon": "epsilon", "v_prediction": VpVelocity()}
    if data:
        choices["sample"] = "denoised"
    return lambda setting: predicted(name, setting, choices)


def _times(name: str, setting: Setting, n: int) -> np.ndarray:
    config, exact = setting.config, not setting.compat
    total, spacing = int(config["num_train_timesteps"]), config["timestep_spacing"]
    if spacing == "linspace":  # fractions, unlike those of the classes that count in timesteps
        low = total - 1 if n == 1 and exact else 0
        return np.linspace(low, total - 1, n, dtype=np.float64 if exact else np.float32)[::-1]
    return spaced_times(name, setting, n).astype(np.float64)


def ve_levels(
    name: str, setting: Setting, n: int | None, given: Mapping[str, Any], *, own_karras: bool = True,
    whole: bool = False, ends: tuple[float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(timesteps, levels) without the final 0. float64.

    given: timesteps instead of n, where the class takes them. own_karras: sigma_min and sigma_max of the config bound
    Karras' levels as well. whole: the timesteps of Karras' levels are rounded. ends: (highest, lowest) level of a
    curve, if not those of the timesteps.
    """
    assert setting.tables is not None
    config, table, custom = setting.config, setting.tables.sigmas, given.get("timesteps")
    family = family_of({key: value for key, value in config.items() if key != "use_flow_sigmas"})
    if (n is None) == (custom is None):
        raise ValueError(f"{name}.set_timesteps: give either num_inference_steps or timesteps, got {n} and {custom}")
    if custom is None:
        assert n is not None
        times = _times(name, setting, n)
    else:
        times = np.asarray(custom, np.float64)
        if times.ndim != 1 or len(times) == 0 or not (np.diff(times) < 0).all():
            raise ValueError(f"{name}.set_timesteps: timesteps must be a list that falls strictly, got {custom!r}")
        if family is not None:
            raise ValueError(f"{name}.set_timesteps: timesteps cannot be given where use_{family} is true")
    sigmas = at_times(setting, times)
    if family is None:
        return np.asarray(times, np.float64), sigmas
    high, low = (float(sigmas[0]), float(sigmas[-1])) if ends is None else ends
    if family != "karras_sigmas" or own_karras:
        low = low if config.get("sigma_min") is None else float(config["sigma_min"])
        high = high if config.get("sigma_max") is None else float(config["sigma_max"])
    sigmas = curve(family, high, low, len(times))
    times = time_of(sigmas, table)
    return times.round() if whole and family == "karras_sigmas" else times, sigmas


def ve_grid(setting: Setting, times: np.ndarray, levels: np.ndarray, called: np.ndarray | None = None) -> Grid:
    """The grid of levels, their end included. called: where the network is called, if not at levels[:-1]."""
    shown = levels.astype(np.float32) if setting.compat else levels
    called = shown[: len(times)].astype(np.float64) if called is None else called
    top = float(shown.max())
    init = math.hypot(top, 1) if setting.config["timestep_spacing"] == "leading" else top
    return Grid(
        times.astype(np.float32) if setting.compat else times, shown, "ve", init=init, scales=1 / np.sqrt(called**2 + 1)
    )


def ve_before(setting: Setting) -> Grid:
    """What the scheduler shows before set_timesteps: all timesteps and the levels of training, falling to 0."""
    assert setting.tables is not None
    levels = np.append(setting.tables.sigmas[::-1], 0.0)
    return ve_grid(setting, np.arange(len(levels) - 2, -1, -1.0), levels)


def interleaved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a_0, b_0, a_1, b_1, ..., a_last, where b is one shorter."""
    both = np.empty(len(a) + len(b), np.float64)
    both[0::2], both[1::2] = a, b
    return both
