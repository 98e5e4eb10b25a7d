"""DEIS: the noise as a polynomial in log rho, rho = sigma / alpha, through up to three steps.

d(x / alpha) / d rho = eps, so a step integrates Lagrange's polynomials in log rho over rho. A Scheduler calls the
network once per step, so a run starts with orders 1 and 2, which costs little from high noise, and the order from
elsewhere: a history started by Runge-Kutta steps needs a sampler that may call more often. Zhang and Chen (2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Stage
from .dpm_grid import (
    Levels,
    at_times,
    before,
    by_family,
    checked_families,
    dynamic_shift,
    family_of,
    finished,
    flow_shifted,
    levels_of,
    spaced,
)  # fmt: skip
from .dpm_multistep import FEW, checked_order, plan_of
from .dpm_steps import dpm_step, prediction_of, renamed, stage_of
from .registry import BETAS, Family, Grid, Program, Setting, register

__all__ = ["DEIS", "deis_weights"]

NAME = "DEISMultistepScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "solver_order": 2, "prediction_type": "epsilon", "thresholding": False, "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False,
    "flow_shift": 1.0, "timestep_spacing": "linspace", "steps_offset": 0, "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}  # fmt: skip


def grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    """As DPM-Solver's, but the end is always the lowest level, which the noise has to be divided by."""
    if n is None:
        raise ValueError(f"{NAME}: num_inference_steps must be given")
    config, compat = setting.config, setting.compat
    family, steps, shift = family_of(config), int(config["num_train_timesteps"]), dynamic_shift(NAME, setting, given)
    if config["use_flow_sigmas"] and family != "flow_sigmas" and compat:
        raise ValueError(f"{NAME}: use_flow_sigmas and use_{family} together have levels above 1 in diffusers")
    if family is None:
        assert setting.tables is not None
        times = spaced(NAME, setting, n, last=steps)
        return finished(
            setting, times, at_times(setting, times), float(setting.tables.sigmas[0]), whole=False, form="vp"
        )
    if family == "flow_sigmas":
        if compat:
            sigmas = flow_shifted((1 - np.linspace(1, 1 / steps, n + 1))[:0:-1], shift)
            sigmas = np.append(sigmas, sigmas[-1])
        else:
            sigmas = flow_shifted(np.linspace(1 - 1 / steps, 1 / steps, n + 1), shift)
        return finished(setting, sigmas[:-1] * steps, sigmas[:-1], float(sigmas[-1]), whole=False, form="flow")
    flow = bool(config["use_flow_sigmas"])
    times, sigmas, end = by_family(setting, family, n, ends_at_zero=False, flow=flow)
    whole = family == "karras_sigmas"
    return finished(setting, times, sigmas, end, whole=whole, form="flow" if flow else "vp")


def deis_weights(levels: Levels, nodes: range, to: int) -> list[float]:
    """Integral over rho, from node 0's to that of level `to`, of Lagrange's polynomials in log rho, for 2 or 3 nodes.

    With t = log rho: int 1 = rho, int t = rho (t - 1), int t^2 = rho (t^2 - 2 t + 2). Zhang and Chen (2023), eq. 15.
    """
    rho = levels.sigma / levels.alpha
    with np.errstate(divide="ignore"):
        t = np.log(rho)

    def integral(a: Any, *others: int) -> Any:
        """Of prod (t - t_k) / (t_a - t_k) over the other nodes k, at `to` less at node 0."""
        low = 1.0
        for k in others:
            low = low * (t[a] - t[k])
        values = []
        for at in (to, nodes[0]):
            if len(others) == 1:
                top = rho[at] * (t[at] - 1 - t[others[0]])
            else:
                b, c = t[others[0]], t[others[1]]
                top = rho[at] * (b * (c - t[at] + 1) - c * t[at] + c + t[at] ** 2 - 2 * t[at] + 2)
            values.append(top / low)
        return values[0] - values[1]

    order = len(nodes)  # the others in cyclic order, since rounding in float32 depends on it
    return [float(integral(nodes[k], *(nodes[(k + j) % order] for j in range(1, order)))) for k in range(order)]


def program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    """Order 1, then 2, then 3, and lower ones at the end of short runs where the config says so."""
    config, levels, n = setting.config, levels_of(setting, grid), len(grid.timesteps)
    few = config["lower_order_final"] and n < FEW
    # diffusers takes the ratio for sigma here, in the noise too
    by_ratio = setting.compat and config["prediction_type"] == "flow_prediction" and grid.form == "vp"
    stages: list[Stage] = []
    for i in range(begin, n):
        order = min(config["solver_order"], i - begin + 1)
        if few:
            order = min(order, n - i)
        keep, first, _ = dpm_step("dpmsolver", "heun", levels, i, i + 1, [i], shipped=setting.compat)
        if order > 1:
            nodes, alpha = range(i, i - order, -1), float(levels.alpha[i + 1])
            first = [alpha * w for w in deis_weights(levels, nodes, i + 1)]
        stages.append(
            stage_of(
                levels, grid, i, keep=keep, weights=dict(enumerate(first)), data=False,
                divisor=levels.ratio(i) if by_ratio else None,
            )
        )  # fmt: skip
    return Program(plan_of(NAME, stages, grid, levels, config["solver_order"]))


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replacements for values of other classes; ValueError where values do not go together."""
    checked_families(NAME, config)
    checked_order(NAME, config)
    changed = renamed(NAME, config, "algorithm_type", ("deis",), {"dpmsolver": "deis", "dpmsolver++": "deis"})
    foreign = {"midpoint": "logrho", "heun": "logrho", "bh1": "logrho", "bh2": "logrho"}
    return changed | renamed(NAME, config, "solver_type", ("logrho",), foreign)


DEIS = register(
    Family(
        NAME,
        DEFAULTS,
        grid=grid,
        program=program,
        prediction=lambda setting: prediction_of(NAME, setting, data=True),
        accepts=("mu",),
        start=before,
        check=check,
    )
)
