"""Heun's method, DPM-Solver-2 and its ancestral form, as scheduler classes that are stepped twice per level.

Karras et al. (2022), algorithm 1; Lu et al. (2022a) with the middle in log sigma. A run cannot begin in the middle of a
step; what a step needs of its first half is in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from ..samplers.ancestral import split_step
from ..samplers.single import heun_step
from .dpm_grid import checked_families, time_of
from .registry import BETAS, Family, Grid, Program, Setting, register
from .ve_grid import interleaved, ve_before, ve_grid, ve_levels, ve_prediction

__all__ = ["HEUN", "KDPM2", "KDPM2_ANCESTRAL", "paired"]

NAME, DPM2, ANCESTRAL = "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
SHARED: dict[str, Any] = BETAS | {
    "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon", "use_karras_sigmas": False,
    "use_exponential_sigmas": False, "use_beta_sigmas": False, "timestep_spacing": "linspace", "steps_offset": 0,
}  # fmt: skip
DEFAULTS = SHARED | {"clip_sample": False, "clip_sample_range": 1.0}


def paired(
    name: str, grid: Grid, begin: int, step: Callable[[float, float], list[Stage]], levels: list[float]
) -> list[Stage]:
    """The stages of step(level, next) for every level, one to 0, from the step `begin` on. levels: without repeats."""
    if begin % 2:
        raise ValueError(f"{name}: a run cannot begin in the middle of a step: begin index {begin} must be even")
    stages: list[Stage] = []
    for s, t in pairwise(levels[begin // 2 :]):
        stages += step(s, t) if t > 0 else [Stage(s)]
    return [s._replace(time=float(t)) for s, t in zip(stages, grid.timesteps[begin:], strict=True)]


def _once(grid: Grid) -> list[float]:
    """The levels of a grid that shows inner ones twice."""
    assert grid.sigmas is not None
    return [float(s) for s in [*grid.sigmas[: len(grid.timesteps) : 2], 0.0]]


def _heun_grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    times, sigmas = ve_levels(NAME, setting, n, given)
    return ve_grid(setting, interleaved(times, times[1:]), np.append(interleaved(sigmas, sigmas[1:]), 0.0))


def _heun_program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    stages = paired(NAME, grid, begin, heun_step, _once(grid))
    return Program(Plan("heun", stages, order=2, final=(1.0, 0.0)))


HEUN = register(
    Family(
        NAME, DEFAULTS, grid=_heun_grid, program=_heun_program, prediction=ve_prediction(NAME), order=2,
        accepts=("timesteps",), start=ve_before, check=lambda config: checked_families(NAME, config),
    )
)  # fmt: skip


def _dpm2_step(s: float, t: float, eta: float) -> list[Stage]:
    """From s to the middle of s and `down` in log sigma, then the whole step along the slope found there."""
    down, up = split_step(s, t, eta)
    if down == 0:
        return [Stage(s)]
    m = (s * down) ** 0.5
    r = (down - s) / m
    first = Stage(s, c_x=m / s, c_d=1 - m / s)
    return [first, Stage(m, c_x=r, c_d=-r, terms=(("x", 1, 1.0),), c_noise=up, span=(s, t))]


def _dpm2_grid(name: str, eta: float, setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    assert setting.tables is not None
    times, sigmas = ve_levels(name, setting, n, given, whole=True)
    if setting.compat:
        sigmas = sigmas.astype(np.float32).astype(np.float64)
    downs = np.array([split_step(s, t, eta)[0] for s, t in pairwise(sigmas)])
    middles = np.sqrt(sigmas[:-1] * downs)
    called = interleaved(sigmas, middles)
    both = interleaved(times, time_of(middles, setting.tables.sigmas))
    shown = np.append(interleaved(sigmas, sigmas[1:]), 0.0)
    return ve_grid(setting, both, np.append(shown, [0.0, 0.0]) if setting.compat else shown, called)


def _dpm2_program(name: str, eta: float, grid: Grid, begin: int) -> Program:
    stages = paired(name, grid, begin, lambda s, t: _dpm2_step(s, t, eta), _once(grid))
    return Program(Plan("dpm2_ancestral" if eta else "dpm2", stages, order=2, final=(1.0, 0.0)))


def _dpm2(name: str, eta: float) -> Family:
    return Family(
        name, SHARED, grid=lambda setting, n, given: _dpm2_grid(name, eta, setting, n, given),
        program=lambda setting, grid, begin, options: _dpm2_program(name, eta, grid, begin),
        prediction=ve_prediction(name, data=False), order=2, start=ve_before,
        check=lambda config: checked_families(name, config),
    )  # fmt: skip


KDPM2, KDPM2_ANCESTRAL = register(_dpm2(DPM2, 0.0)), register(_dpm2(ANCESTRAL, 1.0))
