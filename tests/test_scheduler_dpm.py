"""DPM-Solver, UniPC, DEIS and iPNDM in compat mode against the installed diffusers: timesteps, levels and whole loops.

The network is cheap, bounded and not linear; both sides get the same float32 numbers from it and the same noise.
Seen to fail: with the quadratic term of order 3 not halved, with UniPC's corrector one step late, with DEIS's integrals
over log rho, with iPNDM's first D kept, with timesteps rounded instead of cut, with singlestep blocks started one late.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from generant.diffusion.scheduler import Scheduler  # noqa: E402
from generant.diffusion.scheduler.registry import Tables  # noqa: E402

MULTI, SINGLE, INVERSE = (f"DPMSolver{kind}Scheduler" for kind in ("Multistep", "Singlestep", "MultistepInverse"))
UNIPC, DEIS, EDM = "UniPCMultistepScheduler", "DEISMultistepScheduler", "EDMDPMSolverMultistepScheduler"
SHAPE = (2, 3, 4, 5)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
# The first steps of Beta levels are long: epsilon would be divided by an alpha of 0.006 and lose digits on both sides.
SPREADS: list[dict[str, Any]] = [
    {"use_karras_sigmas": True}, {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True, "prediction_type": "sample"}, FLOW,
]  # fmt: skip


def network(x: np.ndarray, t: float) -> np.ndarray:
    return (np.float32(0.7) * np.tanh(1.3 * x + np.float32(0.2)) - x * float(0.1 * math.cos(t / 300))).astype(
        np.float32
    )


def start(n: int, scale: float = 1.0) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(n)
    x, *noises = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2 * n + 3))
    return x * np.float32(scale), noises


def theirs(cls: Any, config: dict, n: int | None, x: Any, noises: list, begin: int, given: dict) -> tuple[Any, list]:
    scheduler = cls(**config)
    scheduler.set_timesteps(n, **given) if n is not None else scheduler.set_timesteps(**given)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    module, left, xs = importlib.import_module(cls.__module__), iter(noises[begin:]), []
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *_, **__: torch.from_numpy(next(left))
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = lambda *_: torch.from_numpy(next(left))
    x = torch.from_numpy(x)
    for t in scheduler.timesteps[begin:]:
        said = network(scheduler.scale_model_input(x, t).numpy(), float(t))
        x = scheduler.step(torch.from_numpy(said), t, x).prev_sample
        xs.append(x.numpy())
    return scheduler, xs


def compare(
    cls: Any, config: dict, n: int | None, *, begin: int = 0, given: dict | None = None, scale: float = 1.0,
    bound: float = 1e-5,
) -> None:  # fmt: skip
    """Both loops; every x of ours within `bound` of theirs, relative to its largest number."""
    x, noises = start(n or 20, scale)
    name, given = cls.__name__, given or {}
    reference, xs = theirs(cls, config, n, x, noises, begin, given)
    scheduler = Scheduler.from_config({"_class_name": name, **config}, compat="diffusers")
    if config.get("rescale_betas_zero_snr"):  # the last bit of torch's square root depends on the processor
        tables = Tables(reference.betas.numpy(), reference.alphas_cumprod.numpy())
        scheduler._setting = scheduler._setting._replace(tables=tables)
    scheduler.set_timesteps(n, **given)
    scheduler.set_begin_index(begin)
    times = scheduler.timesteps
    np.testing.assert_allclose(times, reference.timesteps.numpy(), rtol=1e-6, atol=3e-7)
    assert scheduler.betas is None or name == "DPMSolverSDEScheduler" or times.dtype == np.int64
    if scheduler.sigmas is not None:
        sigmas = reference.sigmas.numpy()
        assert (np.abs(scheduler.sigmas - sigmas) <= 1.01 * np.spacing(sigmas)).all()
        assert scheduler.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma), rel=1e-6)
    for i, wanted in enumerate(xs, begin):
        said = network(scheduler.scale_model_input(x, times[i]), float(times[i]))
        x = scheduler.step(said, times[i], x, noise=noises[i]).prev_sample
        error = np.abs(x - wanted).max() / np.abs(wanted).max()
        assert error < bound, f"step {i} of {n}: {error:.1e}"


def each(name: str, config: dict, ns: tuple[int, ...] = (5, 12, 20), **rest: Any) -> None:
    for n in ns:
        compare(getattr(diffusers, name), config, n, **rest)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"])
def test_multistep(algorithm, solver, order):
    config = {
        "algorithm_type": algorithm,
        "solver_type": solver,
        "solver_order": order,
        "final_sigmas_type": "sigma_min",
    }
    if algorithm == "sde-dpmsolver" and order == 3:
        scheduler = Scheduler.from_config(config, class_name=MULTI, compat="diffusers")
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match="solver_order=3"):
            scheduler.step(np.ones(SHAPE), 999, np.ones(SHAPE))
        return
    each(MULTI, config)
    each(MULTI, config | {"lower_order_final": False, "euler_at_final": True}, (12,))
    if algorithm.endswith("++"):
        each(MULTI, config | {"final_sigmas_type": "zero"}, (12, 20))
    if solver == "midpoint":
        for spread in [*SPREADS, {"use_lu_lambdas": True}]:
            if algorithm.endswith("++") or not ("use_flow_sigmas" in spread or "use_beta_sigmas" in spread):
                each(MULTI, config | spread, (12,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_spacings_and_predictions(prediction, spacing):
    config = {
        "prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": 1, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "beta_end": 0.012, "thresholding": True, "sample_max_value": 1.5,
    }  # fmt: skip
    each(MULTI, config, (5, 20))
    each(UNIPC, config, (5, 20))
    each(DEIS, config, (5, 12), bound=2e-5)  # the ratio in place of sigma, see the program of DEIS
    if prediction != "flow_prediction":
        each(MULTI, config | {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, (12,))
        each(UNIPC, config | {"predict_x0": False, "final_sigmas_type": "sigma_min"}, (12,))
    each(SINGLE, {key: config[key] for key in ("prediction_type", "thresholding", "sample_max_value")}, (12,))
    each(INVERSE, config | {"prediction_type": prediction}, (12,), bound=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_multistep_quirks():
    each(
        MULTI,
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True, "prediction_type": "v_prediction"},
        (12,),
    )
    cosine = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "prediction_type": "v_prediction"}
    each(MULTI, cosine | {"solver_order": 3, "euler_at_final": True})
    each(
        MULTI,
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        (12,),
    )
    each(MULTI, {"solver_order": 3}, (12,), begin=3)
    each(MULTI, FLOW | {"use_dynamic_shifting": True}, (12,), given={"mu": 0.7})
    each(MULTI, {"use_flow_sigmas": True, "prediction_type": "v_prediction"}, (12,))
    each(MULTI, {"timestep_spacing": "trailing"}, (61,))  # which takes 62 steps
    compare(getattr(diffusers, MULTI), {}, None, given={"timesteps": [900, 700, 400, 300, 100, 20]})
    each(MULTI, {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"}, (5,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_inverse(algorithm, order):
    config = {"algorithm_type": algorithm, "solver_order": order, "prediction_type": "sample"}
    each(INVERSE, config)
    for spread in SPREADS[:3]:
        each(INVERSE, config | spread, (12,), bound=2e-5)
    if algorithm == "dpmsolver++":
        each(INVERSE, config | FLOW, (12,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++", "sde-dpmsolver++"])
def test_singlestep(algorithm, solver, order):
    config = {
        "algorithm_type": algorithm,
        "solver_type": solver,
        "solver_order": order,
        "final_sigmas_type": "sigma_min",
    }
    each(SINGLE, config, (1, 2, 3, 5, 12), bound=2e-5)
    each(SINGLE, config | {"lower_order_final": True}, (12, 20))
    if algorithm.endswith("++"):
        each(SINGLE, config | {"final_sigmas_type": "zero"}, (5, 12))
        for spread in SPREADS if solver == "heun" else []:
            each(SINGLE, config | spread, (12,))
    each(SINGLE, config, (12,), begin=1)
    each(SINGLE, config, (12,), begin=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc(predict_x0, solver, order):
    config = {"predict_x0": predict_x0, "solver_type": solver, "solver_order": order, "final_sigmas_type": "sigma_min"}
    each(UNIPC, config)
    each(UNIPC, config | {"lower_order_final": False}, (12, 20))
    each(UNIPC, config | {"disable_corrector": [0, 1, 4]}, (12,))
    each(UNIPC, config, (12,), begin=3)
    if predict_x0:
        if solver == "bh2":  # diffusers' bh1 gives NaN for a step to 0
            each(UNIPC, config | {"final_sigmas_type": "zero"}, (5, 20))
        for spread in SPREADS:
            each(UNIPC, config | spread, (12,))


@pytest.mark.filterwarnings("ignore")
def test_unipc_flows():
    each(UNIPC, FLOW | {"use_karras_sigmas": True}, (12,))
    each(UNIPC, FLOW | {"use_dynamic_shifting": True, "shift_terminal": 0.1}, given={"mu": 0.7})
    each(UNIPC, FLOW | {"use_dynamic_shifting": True, "time_shift_type": "linear"}, given={"mu": 0.7})
    given = {"sigmas": np.array([0.9, 0.7, 0.5, 0.4, 0.2, 0.1])}
    compare(getattr(diffusers, UNIPC), FLOW, None, given=given)
    each(UNIPC, {"sigma_min": 0.05, "sigma_max": 50.0, "use_karras_sigmas": True}, (12,))
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    each(UNIPC, zero | {"solver_order": 3}, (12,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    for lower in (True, False):
        each(DEIS, {"solver_order": order, "lower_order_final": lower})
    each(DEIS, {"solver_order": order, "use_karras_sigmas": True})
    each(DEIS, {"solver_order": order, "use_exponential_sigmas": True}, (12,))
    # from alpha = 0.001, x and the noise cancel to a thousandth: diffusers' own rounding is beyond 1e-5
    each(DEIS, {"solver_order": order} | FLOW, (12,), bound=5e-5)
    each(DEIS, {"solver_order": order}, (12,), begin=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_edm(algorithm, order):
    if algorithm.startswith("sde") and order == 3:
        pytest.skip("diffusers has no order 3 of this")
    for solver in ("midpoint", "heun"):
        config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver}
        each(EDM, config, scale=80.0)
        other = {"final_sigmas_type": "sigma_min", "sigma_schedule": "exponential", "prediction_type": "v_prediction"}
        each(EDM, config | other | {"thresholding": True, "rho": 5.0}, (12,), scale=80.0)


@pytest.mark.filterwarnings("ignore")
def test_ipndm():
    each("IPNDMScheduler", {}, (2, 5, 20))
    each("IPNDMScheduler", {"trained_betas": [0.9, 0.7, 0.5, 0.2, 0.0]}, (4,))
    each("IPNDMScheduler", {}, (12,), begin=2)


@pytest.mark.filterwarnings("ignore")
def test_sde(monkeypatch):
    """The noise is given, so torchsde, which diffusers' module imports for its Brownian path, need not be there."""
    if "torchsde" not in sys.modules:
        monkeypatch.setitem(sys.modules, "torchsde", types.ModuleType("torchsde"))
    cls = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    for config in (
        {}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "steps_offset": 1},
    ):  # fmt: skip
        for n in (1, 5, 12):
            compare(cls, config, n, scale=14.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [MULTI, SINGLE, INVERSE])
def test_a_predicted_variance_is_left_out(name):
    config = {"variance_type": "learned_range", "prediction_type": "epsilon"}
    reference = getattr(diffusers, name)(**config)
    scheduler = Scheduler.from_config(config, class_name=name, compat="diffusers")
    x, noises = start(6)
    wanted = torch.from_numpy(x)
    reference.set_timesteps(6)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps:
        said = np.concatenate([network(x, float(t)), noises[0]], 1)
        wanted = reference.step(torch.from_numpy(said), torch.tensor(t), wanted).prev_sample
        x = scheduler.step(said, t, x).prev_sample
    np.testing.assert_allclose(x, wanted.numpy(), rtol=0, atol=1e-5 * np.abs(x).max())
