"""Pseudo numerical methods: four-step Adams-Bashforth of the noise, maybe with a Runge-Kutta start. Liu et al. (2022).

The history is what the network said; for v-prediction, too, the combination is made first and turned into noise at the
sample it starts from, as diffusers does. skip_prk_steps: the second timestep is called twice instead of the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .registry import BETAS, Family, Grid, Program, Setting, register
from .vp_grid import alpha_bar, spaced_times, vp_before, vp_prediction

__all__ = ["PNDM"]

NAME = "PNDMScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "skip_prk_steps": False, "set_alpha_to_one": False, "prediction_type": "epsilon", "timestep_spacing": "leading",
    "steps_offset": 0,
}  # fmt: skip
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
PRK = 12  # calls of the start: three steps of four


def _grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    if n is None:
        raise ValueError(f"{NAME}.set_timesteps: num_inference_steps must be given")
    rising = spaced_times(NAME, setting, n, rising=True)
    if setting.config["skip_prk_steps"]:
        times = np.concatenate([rising[:-1], rising[-2:-1], rising[-1:]])[::-1]
        return Grid(np.ascontiguousarray(times), None, "vp", table_noise=True)
    if n < 4:
        raise ValueError(f"{NAME}.set_timesteps: the Runge-Kutta start takes 3 of at least 4 steps, got {n}; or set "
                         "skip_prk_steps")  # fmt: skip
    half = int(setting.config["num_train_timesteps"]) // n // 2
    start = (rising[-4:].repeat(2) + np.tile([0, half], 4))[:-1].repeat(2)[1:-1][::-1]
    return Grid(np.concatenate([start, rising[:-3][::-1]]).astype(np.int64), None, "vp", table_noise=True)


def _step(setting: Setting, counter: int, i: int, times: list[int], n: int) -> tuple[int, int, int, dict[int, float]]:
    """(from timestep, to timestep, which earlier x it starts from, weights of what the network said by stages back)."""
    total, exact = int(setting.config["num_train_timesteps"]), not setting.compat
    stride, t, skip = total // n, times[i], setting.config["skip_prk_steps"]
    following = times[i + 1] if i + 1 < len(times) else -1
    if not skip and counter < PRK:
        quarter = counter % 4
        weights = {k: KUTTA[quarter - k] for k in range(4)} if quarter == 3 else {0: 1.0}
        return times[i - quarter], t - (0 if counter % 2 else stride // 2), quarter, weights
    if skip and counter == 0:
        return t, following if exact and following >= 0 else t - stride, 0, {0: 1.0}
    if skip and counter == 1:
        return times[i - 1] if exact else t + stride, t, 1, {0: 0.5, 1: 0.5}
    said = [0, *range(2, counter + 1)] if skip else [0, 4, 8, *range(PRK, counter + 1)]
    recent = said[-4:][::-1]
    weights = {counter - k: w for k, w in zip(recent, ADAMS[len(recent) - 1], strict=True)}
    return t, following if exact else t - stride, 0, weights


def _program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    assert setting.tables is not None
    table, times = setting.table, grid.timesteps.tolist()
    n = len(times) - 1 if setting.config["skip_prk_steps"] else len(times) - 9
    if len(times) == 1:
        n = 1
    end, velocity = (
        table.dtype.type(1) if setting.config["set_alpha_to_one"] else table[0],
        setting.config["prediction_type"] == "v_prediction",
    )
    stages = []
    for i in range(begin, len(times)):
        start, to, back, weights = _step(setting, i - begin, i, times, n)
        here = float(table[times[i]])
        alpha, sigma = here**0.5, (1 - here) ** 0.5
        # what the network said, from x and D
        g_x, g_d = (alpha / sigma, -1 / sigma) if velocity else (1 / sigma, -alpha / sigma)
        a, b = float(table[min(start, len(table) - 1)]), float(alpha_bar(setting, to, end))
        keep = (b / a) ** 0.5
        turn = -(b - a) / (a * (1 - b) ** 0.5 + (a * (1 - a) * b) ** 0.5)  # times the noise
        if velocity:
            keep, turn = keep + turn * (1 - a) ** 0.5, turn * a**0.5
        now = turn * weights.get(0, 0.0)
        terms = tuple(("h", k, turn * w) for k, w in weights.items() if k > 0)
        if back:
            terms = (("x", back, keep), *terms)
        stages.append(
            Stage(
                sigma, alpha, float(times[i]), c_x=now * g_x + (0.0 if back else keep), c_d=now * g_d, terms=terms,
                g_x=g_x, g_d=g_d,
            )
        )  # fmt: skip
    return Program(Plan("pndm", stages, form="vp", order=1, final=(b**0.5, (1 - b) ** 0.5)))


PNDM = register(
    Family(
        NAME, DEFAULTS, grid=_grid, program=_program,
        prediction=vp_prediction(NAME, {"epsilon": "epsilon", "v_prediction": "v"}),
        start=vp_before,
    )
)  # fmt: skip
