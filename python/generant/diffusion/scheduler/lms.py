"""Linear multistep in sigma, as a scheduler class: the slopes of up to four levels, integrated exactly.

The first steps are of lower order. In exact mode a step to 0 returns D; diffusers extrapolates the slopes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from ..samplers.quadrature import integrals
from .dpm_grid import checked_families
from .registry import BETAS, Family, Grid, Program, Setting, register
from .ve_grid import ve_before, ve_grid, ve_levels, ve_prediction

__all__ = ["LMS"]

NAME = "LMSDiscreteScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "prediction_type": "epsilon", "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "timestep_spacing": "linspace", "steps_offset": 0,
}  # fmt: skip


def _grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    times, sigmas = ve_levels(NAME, setting, n, given, own_karras=False)
    return ve_grid(setting, times, np.append(sigmas, 0.0))


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert grid.sigmas is not None
    levels, wanted, stages = [float(s) for s in grid.sigmas], options["order"], []
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= 4:
        raise ValueError(f"{NAME}.step: order must be 1, 2, 3 or 4, got {wanted!r}")
    for i in range(begin, len(grid.timesteps)):
        s, t, time = levels[i], levels[i + 1], float(grid.timesteps[i])
        if t == 0 and not setting.compat:
            stages.append(Stage(s, time=time, g_x=1 / s, g_d=-1 / s))
            continue
        # diffusers counts the order from the start of the schedule, and drops the slopes that a later start lacks
        order = min(wanted, i + 1 if setting.compat else i - begin + 1)
        weights = integrals([levels[i - k] for k in range(order)], s, t, rate=0.0)[: i - begin + 1]
        r = weights[0] / s
        terms = tuple(("h", k, w) for k, w in enumerate(weights) if k > 0)
        stages.append(Stage(s, time=time, c_x=1 + r, c_d=-r, terms=terms, g_x=1 / s, g_d=-1 / s))
    return Program(Plan("lms", stages, order=min(wanted, 2), final=(1.0, levels[len(grid.timesteps)])))


LMS = register(
    Family(
        NAME, DEFAULTS, grid=_grid, program=_program, prediction=ve_prediction(NAME), options={"order": 4},
        start=ve_before, check=lambda config: checked_families(NAME, config),
    )
)  # fmt: skip
