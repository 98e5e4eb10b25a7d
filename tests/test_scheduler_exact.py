"""DPM-Solver, UniPC and DEIS in exact mode: orders on Gaussian data, steps that integrate polynomials, no level twice.

Gaussian data of deviation d has D = alpha d^2 x / (alpha^2 d^2 + sigma^2), and x / sqrt(alpha^2 d^2 + sigma^2) stays
what it was along the flow, so the error at the end is known. All in float64.
Seen to fail: with diffusers' halved quadratic term (order 2), with its quadratic term of the SDE, with the order
lowered at the end of UniPC, with a block of one step at the end of the singlestep solver, with one noise for both half
steps.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from generant.diffusion.plan import Plan
from generant.diffusion.sampling import Stepper
from generant.diffusion.scheduler import (  # noqa: F401
    deis,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    edm_dpm,
    ipndm,
    unipc,
)
from generant.diffusion.scheduler.dpm_grid import Levels
from generant.diffusion.scheduler.dpm_singlestep import full_orders, shipped_orders
from generant.diffusion.scheduler.dpm_steps import ALGORITHMS, dpm_step
from generant.diffusion.scheduler.registry import FAMILIES, Grid, Setting, Tables

pytestmark = pytest.mark.once

MULTI, SINGLE, INVERSE = (f"DPMSolver{kind}Scheduler" for kind in ("Multistep", "Singlestep", "MultistepInverse"))
UNIPC, DEIS, EDM = "UniPCMultistepScheduler", "DEISMultistepScheduler", "EDMDPMSolverMultistepScheduler"
BETAS = np.linspace(1e-4, 0.02, 1000)
TABLES = Tables(BETAS, np.cumprod(1 - BETAS))
DEVIATION = 0.7


def plan_of(name: str, config: dict[str, Any], n: int | None, **given: Any) -> tuple[Plan, Grid]:
    family = FAMILIES[name]
    full = dict(family.defaults) | config
    full |= (family.check(full) if family.check else None) or {}
    setting = Setting(full, TABLES if family.has_betas else None, False)
    family.prediction(setting)
    grid = family.grid(setting, n, given)
    return family.program(setting, grid, 0, dict(family.options)).plan, grid


def ends(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """(where the plan takes standard normal numbers, where the flow takes them), for Gaussian data."""
    x = first = np.random.default_rng(0).standard_normal((2, 9))
    stepper, keys = Stepper(plan), np.array([[1, 2], [3, 4]], np.uint64)
    for i, stage in enumerate(plan.stages):
        gain = stage.alpha * DEVIATION**2 / (stage.alpha**2 * DEVIATION**2 + stage.sigma**2)
        x, _ = stepper.step(i, x, gain * x, keys=keys)
    spread = [np.hypot(alpha * DEVIATION, sigma) for alpha, sigma in (plan.initial, plan.final)]
    return x, first * (spread[1] / spread[0])


def slope(name: str, config: dict[str, Any], n: int = 80) -> float:
    errors = []
    for steps in (n, 2 * n):
        got, exact = ends(plan_of(name, config, steps)[0])
        errors.append(np.abs(got / exact - 1).max())
    return float(np.log2(errors[0] / errors[1]))


@pytest.mark.parametrize("family", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders(order, family):
    config = {"solver_order": order, "final_sigmas_type": "sigma_min", family: True}
    for algorithm, solver in itertools.product(("dpmsolver", "dpmsolver++"), ("midpoint", "heun")):
        both = config | {"algorithm_type": algorithm, "solver_type": solver}
        assert slope(MULTI, both) > order - 0.15
        assert slope(SINGLE, both) > order - 0.15
    for predict_x0, solver in itertools.product((True, False), ("bh1", "bh2")):
        assert slope(UNIPC, config | {"predict_x0": predict_x0, "solver_type": solver}) > order + 0.7
    assert slope(DEIS, {"solver_order": order, family: True}) > order - 0.15
    assert slope(INVERSE, {"solver_order": order, family: True}) > order - 0.15
    if family == "use_karras_sigmas":
        assert slope(EDM, {"solver_order": order, "final_sigmas_type": "sigma_min"}) > order - 0.15
        assert slope(SINGLE, config, 82) > order - 0.15  # a remainder of one step at order 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_steps_integrate_polynomials(algorithm):
    """pace times the integral of exp(-pace (h - u)) alpha m(u), or of exp(h - u) sigma m(u), by Gauss's rule."""
    lam = np.array([-0.9, -0.4, 0.2, 0.7, 1.5])
    alpha = 1 / np.sqrt(1 + np.exp(-2 * lam))
    levels = Levels(alpha, alpha * np.exp(-lam), lam)
    sde, data = algorithm.startswith("sde"), algorithm.endswith("++")
    for nodes, to in (([2], 3), ([2, 1], 3), ([2, 1, 0], 3), ([1, 2], 4), ([1, 2, 3], 4)):
        base = nodes[0]
        h = lam[to] - lam[base]
        at, weight = np.polynomial.legendre.leggauss(30)
        u, weight = h * (at + 1) / 2, weight * h / 2
        pace = 2.0 if sde else 1.0
        kernel = pace * alpha[to] * np.exp(-pace * (h - u)) if data else -pace * levels.sigma[to] * np.exp(h - u)
        keep, weights, noise = dpm_step(algorithm, "heun", levels, base, to, nodes, shipped=False)
        for power in range(len(nodes)):
            got = sum(w * (lam[k] - lam[base]) ** power for w, k in zip(weights, nodes, strict=True))
            assert got == pytest.approx(weight @ (kernel * u**power), rel=1e-11)
        if not sde:
            assert noise == 0
        elif data:  # data 0 leaves the noise as it should be: sigma
            assert np.hypot(keep * levels.sigma[base], noise) == pytest.approx(levels.sigma[to], rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_every_option_ends_finite_and_uses_every_level(n):
    spreads = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_flow_sigmas": True},
               {"use_karras_sigmas": True, "use_flow_sigmas": True})  # fmt: skip
    runs = []
    for spread, final, lower, order in itertools.product(spreads, ("zero", "sigma_min"), (True, False), (2, 3)):
        config = spread | {"final_sigmas_type": final, "lower_order_final": lower, "solver_order": order}
        runs += [(MULTI, config), (MULTI, config | {"algorithm_type": "sde-dpmsolver++"}), (SINGLE, config)]
        runs += [
            (UNIPC, config | {"predict_x0": x0, "solver_type": kind}) for x0 in (True, False) for kind in ("bh1", "bh2")
        ]
        if final == "sigma_min":
            runs += [(MULTI, config | {"algorithm_type": kind}) for kind in ("dpmsolver", "sde-dpmsolver")]
            runs += [(DEIS, {k: v for k, v in config.items() if k != "final_sigmas_type"})]
    for name, config in runs:
        plan, grid = plan_of(name, config, n)
        assert len(plan) == len(grid.timesteps) == n
        assert grid.sigmas is not None and (np.diff(grid.sigmas) < 0).all() and (np.diff(grid.timesteps) < 0).all()
        if grid.sigmas[-1] == 0:  # one exact denoise
            last = plan.stages[-1]
            assert (last.c_x, last.c_d, last.c_noise) == (0, 1, 0) and not any(c for *_, c in last.terms)
        got, _ = ends(plan)
        assert np.isfinite(got).all()


def test_counts_and_fractions():
    plan, grid = plan_of(MULTI, {"timestep_spacing": "trailing"}, 61)
    assert len(plan) == 61 and grid.timesteps[0] == 999
    assert len(plan_of(MULTI, {}, 1000)[0]) == 1000
    _, grid = plan_of(MULTI, {"use_karras_sigmas": True}, 7)
    at = np.interp(grid.timesteps, np.arange(1000), np.log(TABLES.sigmas))
    assert grid.sigmas is not None
    np.testing.assert_allclose(at, np.log(grid.sigmas[:-1]), atol=1e-9)
    _, up = plan_of(INVERSE, {"use_karras_sigmas": True}, 7)
    assert up.sigmas is not None and (np.diff(up.sigmas) > 0).all()
    assert up.sigmas[[0, -1]] == pytest.approx(TABLES.sigmas[[0, -1]], rel=1e-14)


def test_orders_of_blocks():
    assert full_orders(7, 3, zero=True) == [1, 2, 3, 1, 2, 3, 1]
    assert full_orders(7, 3, zero=False) == [1, 2, 3, 1, 2, 1, 2]
    assert full_orders(5, 3, zero=False) == [1, 2, 3, 1, 2]
    assert full_orders(1, 3, zero=True) == [1] and full_orders(1, 3, zero=False) == [1]
    assert shipped_orders(6, 3, lower_final=True, zero=True) == [1, 2, 3, 1, 2, 1]
    for n, order, zero in itertools.product(range(1, 20), (1, 2, 3), (True, False)):
        assert len(full_orders(n, order, zero=zero)) == len(shipped_orders(n, order, lower_final=False, zero=zero)) == n


def test_noise_of_a_step_contains_that_of_its_first_half():
    """With D = 0 two stages come to keep x + up (sqrt(share) z_1 + sqrt(1 - share) z_2)."""
    plan, grid = plan_of("DPMSolverSDEScheduler", {"use_exponential_sigmas": True}, 4)
    assert grid.sigmas is not None and len(plan) == 7
    x = z1 = z2 = np.zeros((1, 3))
    x, z1, z2 = (np.random.default_rng(k).standard_normal((1, 3)) for k in range(3))
    stepper = Stepper(plan)
    y, _ = stepper.step(0, x, 0 * x, noise=z1)
    y, _ = stepper.step(1, y, 0 * x, noise=z2)
    s, to = grid.sigmas[:2]
    up = to * np.sqrt(s**2 - to**2) / s
    share = (s - np.sqrt(s * to)) / (s - to)
    keep = np.sqrt(to**2 - up**2) / s
    np.testing.assert_allclose(y, keep * x + up * (np.sqrt(share) * z1 + np.sqrt(1 - share) * z2), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (MULTI, {"prediction_type": "score"}, "prediction_type must be one of epsilon, sample"),
        (MULTI, {"algorithm_type": "dpmsolver"}, "cannot end at 0"),
        (MULTI, {"algorithm_type": "unknown"}, "algorithm_type must be one of"),
        (MULTI, {"solver_type": "rk4"}, "solver_type must be one of"),
        (MULTI, {"solver_order": 4}, "solver_order must be 1, 2 or 3"),
        (MULTI, {"final_sigmas_type": "one"}, "final_sigmas_type must be"),
        (MULTI, {"timestep_spacing": "even"}, "timestep_spacing must be"),
        (MULTI, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of"),
        (MULTI, {"variance_type": "fixed"}, "variance_type must be"),
        (SINGLE, {"algorithm_type": "sde-dpmsolver"}, "algorithm_type must be one of"),
        (INVERSE, {"algorithm_type": "sde-dpmsolver++"}, "cannot run from data to noise"),
        (UNIPC, {"predict_x0": False, "prediction_type": "flow_prediction"}, "prediction_type must be"),
        (UNIPC, {"use_dynamic_shifting": True}, "needs mu"),
        (UNIPC, {"shift_terminal": 0.1}, "needs use_flow_sigmas"),
        (UNIPC, {"solver_p": {}}, "solver_p must be None"),
        (EDM, {"prediction_type": "sample"}, "prediction_type must be"),
        (EDM, {"sigma_min": 90.0}, "sigma_min < sigma_max"),
        ("DPMSolverSDEScheduler", {"prediction_type": "sample"}, "prediction_type must be"),
        ("IPNDMScheduler", {"trained_betas": [2.0, 1.0]}, "trained_betas must be"),
    ],
)
def test_refusals(name, config, message):
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        plan_of(name, config, 10)


def test_refusals_of_set_timesteps():
    with pytest.raises(ValueError, match="no room for 1000 steps"):
        plan_of(MULTI, {"timestep_spacing": "leading"}, 1000)
    with pytest.raises(ValueError, match="fall strictly"):
        plan_of(MULTI, {}, None, timesteps=[1, 2])
    with pytest.raises(ValueError, match="either num_inference_steps or timesteps"):
        plan_of(MULTI, {}, 2, timesteps=[2, 1])
    with pytest.raises(ValueError, match="cannot be given where use_karras_sigmas"):
        plan_of(MULTI, {"use_karras_sigmas": True}, None, timesteps=[2, 1])
    with pytest.raises(ValueError, match="mu needs use_dynamic_shifting"):
        plan_of(MULTI, {}, 5, mu=1.0)
