"""DPM-Solver within a step: blocks of up to three calls of the network, each block as good as its number of calls.

Within a block every call starts again from the block's first x: to the first inner level with order 1, to the second
with order 2, and on to the end of the block with order 3. diffusers ends with blocks of orders 2 and 1; exact mode does
that only below 15 steps, where it steadies, and else fills the run with blocks of full order: a remainder of one step
takes one from the block before it. Lu et al. (2022a, 2022b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..plan import Stage
from .dpm_grid import before, levels_of
from .dpm_multistep import FEW, dpm_check, dpm_grid, plan_of
from .dpm_steps import dpm_step, prediction_of, stage_of
from .registry import BETAS, Family, Grid, Program, Setting, register

__all__ = ["SINGLESTEP", "full_orders", "shipped_orders"]

NAME = "DPMSolverSinglestepScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "solver_order": 2, "prediction_type": "epsilon", "thresholding": False, "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": False,
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False,
    "flow_shift": 1.0, "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf, "variance_type": None,
    "use_dynamic_shifting": False, "time_shift_type": "exponential",
}  # fmt: skip


def shipped_orders(n: int, order: int, *, lower_final: bool, zero: bool) -> list[int]:
    """The order of each of n steps as diffusers chooses it. zero: the last level is 0."""
    if not (lower_final or zero or n % order):
        return [*range(1, order + 1)] * (n // order)
    if order == 1:
        return [1] * n
    blocks, rest = divmod(n, order)
    block = [*range(1, order + 1)]
    if rest:
        orders = block * blocks + [*range(1, rest + 1)]
    elif order == 3:
        orders = block * (blocks - 1) + [1, 2, 1]
    else:
        orders = block * (blocks - 1) + [1, 1]
    if zero:
        orders[-1] = 1
    return orders


def full_orders(n: int, order: int, *, zero: bool) -> list[int]:
    """The order of each of n steps such that every block is of full order, or of order 2 if it takes two to fill 4."""
    steps = n - 1 if zero else n  # the step to 0 is exact with order 1
    blocks, rest = divmod(steps, order)
    block = [*range(1, order + 1)]
    if order == 3 and rest == 1 and blocks:
        orders = block * (blocks - 1) + [1, 2, 1, 2]
    else:
        orders = block * blocks + [*range(1, rest + 1)]
    return orders + [1] * (n - steps)


def program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    """The steps by their list of orders; a run that begins inside a block starts a block there."""
    config, levels, n = setting.config, levels_of(setting, grid), len(grid.timesteps)
    algorithm, order, solver = config["algorithm_type"], config["solver_order"], config["solver_type"]
    zero, lower = config["final_sigmas_type"] == "zero", config["lower_order_final"]
    if setting.compat or (lower and n < FEW):
        orders = shipped_orders(n, order, lower_final=lower, zero=zero)
    else:
        orders = full_orders(n, order, zero=zero)
    stages: list[Stage] = []
    for i in range(begin, n):
        back = min(orders[i], i - begin + 1) - 1
        nodes, rule = [i - back, *range(i - back + 1, i + 1)], solver
        if back == 2 and solver == "midpoint":  # the slope from the first and last of three
            nodes, rule = [i - 2, i], "heun"
        keep, weights, noise = dpm_step(algorithm, rule, levels, i - back, i + 1, nodes, shipped=setting.compat)
        stages.append(
            stage_of(
                levels, grid, i, keep=keep, weights={i - k: w for k, w in zip(nodes, weights, strict=True)},
                noise=noise, data=algorithm.endswith("++"), base=back, start=i - back,
            )
        )  # fmt: skip
    sde = algorithm.startswith("sde")
    plan = plan_of(NAME, stages, grid, levels, 1 if sde else order)
    return Program(plan, draws=(True,) * len(stages) if sde else ())


SINGLESTEP = register(
    Family(
        NAME,
        DEFAULTS,
        grid=lambda setting, n, given: dpm_grid(NAME, setting, n, given, single=True),
        program=program,
        prediction=lambda setting: prediction_of(NAME, setting, data=setting.config["algorithm_type"].endswith("++")),
        accepts=("timesteps", "mu"),
        start=before,
        check=lambda config: dpm_check(
            NAME, config, ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"), config["final_sigmas_type"]
        ),
    )
)
