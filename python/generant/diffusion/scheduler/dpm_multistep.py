"""DPM-Solver from earlier steps, and the same run upwards in noise.

Exact mode differs from compat in two coefficients of order 3 (see dpm_steps) and in its levels (see dpm_grid). A
Scheduler has one call of the network per step, so the first steps are of order 1 and 2; from high noise, where D hardly
changes, that costs little. diffusers has no "sde-dpmsolver" of order 3, exact mode has. Lu et al. (2022a, 2022b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Plan, Stage
from .dpm_grid import (
    Levels,
    at_times,
    before,
    by_family,
    checked_families,
    custom_times,
    dynamic_shift,
    family_of,
    finished,
    flow_shifted,
    levels_of,
    spaced,
    training_steps,
)  # fmt: skip
from .dpm_steps import ALGORITHMS, dpm_step, prediction_of, renamed, stage_of
from .registry import BETAS, Family, Grid, Program, Setting, register

__all__ = ["INVERSE", "MULTISTEP", "checked_order", "dpm_check", "dpm_grid", "multistep_program", "plan_of"]

DEFAULTS: dict[str, Any] = BETAS | {
    "solver_order": 2, "prediction_type": "epsilon", "thresholding": False, "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True,
    "euler_at_final": False, "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "use_lu_lambdas": False, "use_flow_sigmas": False, "flow_shift": 1.0, "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf, "variance_type": None, "timestep_spacing": "linspace", "steps_offset": 0,
    "rescale_betas_zero_snr": False, "use_dynamic_shifting": False, "time_shift_type": "exponential",
}  # fmt: skip
FOREIGN_SOLVERS = {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
FEW = 15  # lower_order_final lowers the order of runs of fewer steps than this


def checked_order(name: str, config: Mapping[str, Any]) -> None:
    """ValueError unless solver_order is 1, 2 or 3."""
    order = config["solver_order"]
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= 3:
        raise ValueError(f"{name}: solver_order must be 1, 2 or 3, got {order!r}")


def dpm_check(name: str, config: Mapping[str, Any], algorithms: tuple[str, ...], final: Any) -> dict[str, Any]:
    """Replacements for values of other classes; ValueError where values do not go together."""
    if "use_karras_sigmas" in config:
        checked_families(name, config)
    checked_order(name, config)
    changed = renamed(name, config, "algorithm_type", algorithms, {"deis": "dpmsolver++"})
    changed |= renamed(name, config, "solver_type", ("midpoint", "heun"), FOREIGN_SOLVERS)
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"{name}: final_sigmas_type must be zero or sigma_min, got {final!r}")
    algorithm = changed.get("algorithm_type", config["algorithm_type"])
    if final == "zero" and not algorithm.endswith("++"):
        raise ValueError(
            f"{name}: algorithm_type={algorithm!r} works on the noise and cannot end at 0; set "
            "final_sigmas_type='sigma_min'"
        )
    if config.get("variance_type") not in (None, "learned", "learned_range"):
        raise ValueError(
            f"{name}: variance_type must be None, learned or learned_range, got {config['variance_type']!r}"
        )
    return changed


def dpm_grid(name: str, setting: Setting, n: int | None, given: Mapping[str, Any], *, single: bool = False) -> Grid:
    """The grid of DPM-Solver, multistep or singlestep."""
    config, compat = setting.config, setting.compat
    shift = dynamic_shift(name, setting, given)
    times = custom_times(name, setting, given, lu=not single)
    if (times is None) == (n is None):
        raise ValueError(f"{name}: give either num_inference_steps or timesteps, got {n} and {given.get('timesteps')}")
    family, zero = family_of(config, lu=not single), config["final_sigmas_type"] == "zero"
    if config["use_flow_sigmas"] and family != "flow_sigmas" and compat:
        raise ValueError(f"{name}: use_flow_sigmas and use_{family} together have levels above 1 in diffusers")
    assert setting.tables is not None
    steps, end = int(config["num_train_timesteps"]), 0.0 if zero else float(setting.tables.sigmas[0])
    if family == "flow_sigmas":
        count = len(times) if n is None and times is not None else int(n or 0)
        if compat or zero:
            base = (1 - np.linspace(1, 1 / steps, count + 1))[:0:-1]
        else:
            base = np.linspace(1 - 1 / steps, 1 / steps, count + 1)
        sigmas = flow_shifted(base, shift)
        if not compat and not zero:
            sigmas, end = sigmas[:-1], float(sigmas[-1])
        return finished(setting, sigmas * steps, sigmas, end, whole=False, form="flow")
    if family is None:
        if times is None:
            spacing = "linspace" if single else None
            times = spaced(name, setting, int(n or 0), last=training_steps(setting), spacing=spacing)
        return finished(setting, times, at_times(setting, times), end, whole=False, form="vp")
    flow = bool(config["use_flow_sigmas"])
    times, sigmas, last = by_family(setting, family, int(n or 0), ends_at_zero=zero, flow=flow)
    whole = family in ("karras_sigmas", "lu_lambdas") and (single or config["beta_schedule"] != "squaredcos_cap_v2")
    if not compat and not zero:
        end = last
    return finished(setting, times, sigmas, end, whole=whole, form="flow" if flow else "vp")


def multistep_program(name: str, setting: Setting, grid: Grid, begin: int) -> Program:
    """The steps of the multistep solver: order 1, then 2, then 3; lower ones at the end where the config says so."""
    config, levels, n = setting.config, levels_of(setting, grid), len(grid.timesteps)
    algorithm, solver, wanted = config["algorithm_type"], config["solver_type"], config["solver_order"]
    few = config["lower_order_final"] and n < FEW
    sde = algorithm.startswith("sde")
    if setting.compat and wanted == 3 and algorithm == "sde-dpmsolver":
        raise ValueError(f"{name}: diffusers has no solver_order=3 of algorithm_type='sde-dpmsolver'")
    stages: list[Stage] = []
    for i in range(begin, n):
        order = min(wanted, i - begin + 1)
        if i == n - 1 and (config["euler_at_final"] or few or levels.sigma[n] == 0):
            order = 1
        if i == n - 2 and few:
            order = min(order, 2)
        keep, weights, noise = dpm_step(
            algorithm, solver, levels, i, i + 1, range(i, i - order, -1), shipped=setting.compat,
            halved_curve=setting.compat,
        )  # fmt: skip
        stages.append(
            stage_of(
                levels, grid, i, keep=keep, weights=dict(enumerate(weights)), noise=noise,
                data=algorithm.endswith("++"),
            )
        )  # fmt: skip
    plan = plan_of(name, stages, grid, levels, 1 if sde else wanted)
    return Program(plan, draws=(True,) * len(stages) if sde else ())


def plan_of(name: str, stages: list[Stage], grid: Grid, levels: Levels, order: int) -> Plan:
    """The plan of stages that end at the last level."""
    end = len(grid.timesteps)
    return Plan(name, stages, form=grid.form, order=order, final=(float(levels.alpha[end]), float(levels.sigma[end])))


def _prediction(name: str) -> Any:
    return lambda setting: prediction_of(name, setting, data=setting.config["algorithm_type"].endswith("++"))


MULTISTEP = register(
    Family(
        "DPMSolverMultistepScheduler",
        DEFAULTS,
        grid=lambda setting, n, given: dpm_grid("DPMSolverMultistepScheduler", setting, n, given),
        program=lambda setting, grid, begin, options: multistep_program(
            "DPMSolverMultistepScheduler", setting, grid, begin
        ),
        prediction=_prediction("DPMSolverMultistepScheduler"),
        accepts=("timesteps", "mu"),
        floor=True,
        start=before,
        check=lambda config: dpm_check("DPMSolverMultistepScheduler", config, ALGORITHMS, config["final_sigmas_type"]),
    )
)


def inverse_grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    """Levels that rise from the lowest to the highest: from data to noise."""
    name, config, compat = "DPMSolverMultistepInverseScheduler", setting.config, setting.compat
    if n is None:
        raise ValueError(f"{name}: num_inference_steps must be given")
    assert setting.tables is not None
    family, steps, last = family_of(config), int(config["num_train_timesteps"]), training_steps(setting)
    if config["use_flow_sigmas"] and family != "flow_sigmas" and compat:
        raise ValueError(f"{name}: use_flow_sigmas and use_{family} together have levels above 1 in diffusers")
    form = "flow" if config["use_flow_sigmas"] else "vp"
    if family == "flow_sigmas" and compat:  # these fall in diffusers
        sigmas = flow_shifted((1 - np.linspace(1, 1 / steps, n + 1))[:0:-1], config["flow_shift"])
        times, end, whole = sigmas * steps, float(sigmas[-1]), False
    elif family == "flow_sigmas":
        sigmas = flow_shifted(np.linspace(1 / steps, 1 - 1 / steps, n + 1), config["flow_shift"])
        times, sigmas, end, whole = sigmas[:-1] * steps, sigmas[:-1], float(sigmas[-1]), False
    elif family is not None:
        times, sigmas, end = by_family(setting, family, n, ends_at_zero=False, flow=form == "flow", rising=True)
        whole = family == "karras_sigmas"
    else:
        times = _rising_times(name, setting, n, last)
        sigmas, whole = at_times(setting, times), False
        end = float(setting.tables.sigmas[last - 1])
    if compat:  # the network is told each timestep once, but no level is left out
        grid = finished(setting, times, sigmas, end, whole=whole, form=form)
        first = np.unique(times.round() if whole else times, return_index=True)[1]
        return grid._replace(timesteps=grid.timesteps[np.sort(first)])
    return finished(setting, times, sigmas, end, whole=whole, form=form)


def _rising_times(name: str, setting: Setting, n: int, last: int) -> np.ndarray:
    config = setting.config
    down = spaced(name, setting, n, last=last)  # raises where there is no room, and for an unknown spacing
    if config["timestep_spacing"] == "trailing":
        if setting.compat:
            return down[::-1]
        if down[-1] > 0:  # exact: the last timestep is where the run ends, so it starts at 0 instead
            return np.append(0, down[:0:-1])
    elif config["timestep_spacing"] == "leading":
        return np.arange(n) * (last // (n + 1)) + config["steps_offset"]
    t = np.linspace(0, last - 1, n + 1)[:-1]
    rounded = t.round().astype(np.int64)
    return rounded if setting.compat or (np.diff(rounded) > 0).all() else t


def _inverse_check(config: Mapping[str, Any]) -> dict[str, Any]:
    name = "DPMSolverMultistepInverseScheduler"
    changed = dpm_check(name, config, ALGORITHMS, "sigma_min")
    if changed.get("algorithm_type", config["algorithm_type"]).startswith("sde"):
        raise ValueError(f"{name}: algorithm_type={config['algorithm_type']!r} cannot run from data to noise")
    return changed


INVERSE = register(
    Family(
        "DPMSolverMultistepInverseScheduler",
        {
            key: value for key, value in DEFAULTS.items()
            if key not in (
                "use_lu_lambdas", "final_sigmas_type", "rescale_betas_zero_snr", "use_dynamic_shifting",
                "time_shift_type",
            )
        },
        grid=inverse_grid,
        program=lambda setting, grid, begin, options: multistep_program(
            "DPMSolverMultistepInverseScheduler", setting, grid, begin
        ),
        prediction=_prediction("DPMSolverMultistepInverseScheduler"),
        start=before,
        check=_inverse_check,
    )
)  # fmt: skip
