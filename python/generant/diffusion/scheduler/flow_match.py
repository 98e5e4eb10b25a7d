"""Euler's and Heun's methods along straight lines, as scheduler classes: x = (1 - s) data + s noise.

Levels are times from 1 down, shifted towards noise. diffusers shifts its range of training times first and the times in
it again, so a shift is applied twice, and its last time is that of the last training step; exact mode takes n equal
steps from 1 to 0 and shifts once. Lipman et al. (2023); Esser et al. (2024), eq. 23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from ..samplers.single import heun_step
from ..schedules.times import dynamic_mu, shift_of_mu
from .dpm_grid import checked_families, curve, family_of, flow_shifted
from .heun import paired
from .registry import Family, Grid, Program, Setting, register
from .ve_grid import interleaved

__all__ = ["FLOW_EULER", "FLOW_HEUN"]

NAME, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
SHARED: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 1.0}
DEFAULTS = SHARED | {
    "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
    "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None, "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "time_shift_type": "exponential",
    "stochastic_sampling": False,
}  # fmt: skip


def _base(setting: Setting, n: int, shift: float) -> np.ndarray:
    """n times before the shift, falling from 1."""
    if not setting.compat:
        return 1 - np.arange(n) / n
    total = int(setting.config["num_train_timesteps"])
    trained = flow_shifted(np.array([total, 1], np.float32) / np.float32(total), np.float32(shift))
    return np.linspace(float(trained[0]) * total, float(trained[1]) * total, n) / total


def _check(config: Mapping[str, Any]) -> None:
    checked_families(NAME, config)
    if config["time_shift_type"] not in ("exponential", "linear"):
        raise ValueError(f"{NAME}: time_shift_type must be exponential or linear, got {config['time_shift_type']!r}")
    if not config["shift"] > 0:
        raise ValueError(f"{NAME}: shift must be positive, got {config['shift']}")


def _mu(config: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    """mu as given, or on the line of the config through (base_image_seq_len, base_shift) and (max_.., max_shift)."""
    if given.get("mu") is not None:
        return float(given["mu"])
    length = given.get("image_seq_len")
    if length is None:
        raise ValueError(f"{NAME}.set_timesteps: use_dynamic_shifting=True needs mu or image_seq_len")
    return dynamic_mu(
        length, base_tokens=config["base_image_seq_len"], max_tokens=config["max_image_seq_len"],
        base_shift=config["base_shift"], max_shift=config["max_shift"],
    )  # fmt: skip


def _grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    config, compat, total = setting.config, setting.compat, int(setting.config["num_train_timesteps"])
    sigmas, times = given.get("sigmas"), given.get("timesteps")
    counts = {len(v) for v in (sigmas, times) if v is not None} | ({n} if n is not None else set())
    if len(counts) != 1:
        raise ValueError(f"{NAME}.set_timesteps: give num_inference_steps, sigmas or timesteps, of one length")
    s: np.ndarray
    if sigmas is not None:
        s = np.asarray(sigmas, np.float32 if compat else np.float64)
    elif times is not None:
        s = np.asarray(times, np.float64) / total
    else:
        s = _base(setting, int(n or 0), 1.0 if config["use_dynamic_shifting"] else config["shift"])
    if s.ndim != 1 or not (np.diff(s) < 0).all() or not (s[0] <= 1 and s[-1] > 0):
        raise ValueError(f"{NAME}.set_timesteps: sigmas must fall strictly and lie in (0, 1], got {s}")
    if config["use_dynamic_shifting"]:
        factor = shift_of_mu(_mu(config, given), config["time_shift_type"])
        s = factor / (factor + (1 / s - 1))
    else:
        s = flow_shifted(s, config["shift"])
    if config["shift_terminal"]:
        s = 1 - (1 - s) * (1 - config["shift_terminal"]) / (1 - s[-1])
    family = family_of({key: value for key, value in config.items() if key != "use_flow_sigmas"})
    if family is not None:
        ends = (s[0] if config.get("sigma_max") is None else config["sigma_max"],
                s[-1] if config.get("sigma_min") is None else config["sigma_min"])  # fmt: skip
        s = curve(family, float(ends[0]), float(ends[1]), len(s))
    s = s.astype(np.float32) if compat else s
    levels = np.append(1 - s, s.dtype.type(1)) if config["invert_sigmas"] else np.append(s, s.dtype.type(0))
    own = times is not None and not config["invert_sigmas"]
    told = np.asarray(times, levels.dtype) if own else levels[:-1] * levels.dtype.type(total)
    return Grid(told, levels, "flow")


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    levels, noisy, stages, raw = [float(s) for s in grid.sigmas], setting.config["stochastic_sampling"], [], []
    for i in range(begin, len(grid.timesteps)):
        s, t, time = levels[i], levels[i + 1], float(grid.timesteps[i])
        direct = 0.0
        if noisy:
            stage = Stage(s, 1 - s, time, c_x=0.0, c_d=1 - t, c_noise=t)
        elif s > 0:
            r = (t - s) / s
            stage = Stage(s, 1 - s, time, c_x=1 + r, c_d=-r)
        else:  # from the data upwards, where x says nothing about the noise
            stage, direct = Stage(s, 1 - s, time, c_x=1.0, c_d=0.0), t - s
        stages.append(stage)
        raw.append(direct)
    end = levels[len(grid.timesteps)]
    plan = Plan("flow_euler", stages, form="flow", order=1, final=(1 - end, end))
    return Program(plan, raw=tuple(raw) if any(raw) else (), draws=(True,) * len(stages) if noisy else ())


FLOW_EULER = register(
    Family(
        NAME, DEFAULTS, grid=_grid, program=_program, prediction=lambda setting: "flow",
        accepts=("sigmas", "timesteps", "mu", "image_seq_len"), has_betas=False, check=_check,
        start=lambda setting: _training(setting),
    )
)  # fmt: skip


def _training(setting: Setting) -> Grid:
    """What the scheduler shows before set_timesteps: the times of training."""
    total = int(setting.config["num_train_timesteps"])
    real = np.float32 if setting.compat else np.float64
    shift = 1.0 if setting.config.get("use_dynamic_shifting") else setting.config["shift"]
    s = flow_shifted(np.arange(total, 0, -1, dtype=real) / real(total), real(shift))
    return Grid(s * real(total), s, "flow")


def _heun_grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    if n is None:
        raise ValueError(f"{HEUN}.set_timesteps: num_inference_steps must be given")
    real, shift = np.float32 if setting.compat else np.float64, setting.config["shift"]
    s = flow_shifted(_base(setting, n, shift), shift).astype(real)
    told = s * real(setting.config["num_train_timesteps"])
    levels = np.append(interleaved(s, s[1:]), 0.0).astype(real)
    return Grid(interleaved(told, told[1:]).astype(real), levels, "flow")


def _heun_program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    levels = [float(s) for s in [*grid.sigmas[: len(grid.timesteps) : 2], 0.0]]
    stages = [s._replace(alpha=1 - s.sigma) for s in paired(HEUN, grid, begin, heun_step, levels)]
    return Program(Plan("flow_heun", stages, form="flow", order=2, final=(1.0, 0.0)))


FLOW_HEUN = register(
    Family(
        HEUN, SHARED, grid=_heun_grid, program=_heun_program, prediction=lambda setting: "flow", order=2,
        has_betas=False, start=_training,
    )
)  # fmt: skip
