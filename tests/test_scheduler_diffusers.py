"""Scheduler in compat mode against the installed diffusers: tables, timesteps, levels, noise and whole loops.

The network is cheap, bounded and not linear; both sides get the same noise. The DPM-Solver family has a file of its
own. Seen to fail: with DDIM's direction taken from the clipped D, with its next timestep from the table, with Heun's
second slope at the first level, with PLMS's second call counted as history, with the flow shift applied once,
with bounds of another class's levels dropped, with defaults passed on as choices, with a timestep of -1 taken for the
data, with Euler's velocity at the right level.
"""

from __future__ import annotations

import importlib
import math
from itertools import product
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from generant.diffusion.mersenne import TorchCpuNoise  # noqa: E402
from generant.diffusion.scheduler import Scheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 3, 4, 5)
VE = tuple(f"{kind}Discrete" for kind in ("Euler", "EulerAncestral", "Heun", "KDPM2", "KDPM2Ancestral", "LMS"))
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
FAMILIES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def network(x: np.ndarray, t: float) -> np.ndarray:
    return (np.float32(0.7) * np.tanh(1.3 * x + np.float32(0.2)) - x * float(0.1 * math.cos(t / 300))).astype("f4")


class Recorded:
    """Noise that was drawn before, in order."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self.left = iter(arrays)

    def normal(self, shape: tuple, dtype: str) -> np.ndarray:
        return next(self.left)


def both(name: str, config: dict, n: int | None, given: dict) -> tuple[Any, Scheduler]:
    theirs = getattr(diffusers, name)(**config)
    ours = Scheduler.from_config({"_class_name": name, **config}, compat="diffusers")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(n, **given)
    return theirs, ours


def compare(
    name: str, config: dict | None = None, n: int | None = 8, *, begin: int = 0, given: dict | None = None,
    twice: bool = False, bound: float = 1e-5, ulps: int = 1, **options: Any,
) -> None:  # fmt: skip
    """Whole loops from the same noise; every x of ours within `bound` of theirs, relative to its largest number.

    twice: the network predicts a variance as well. ulps: of the levels. options: of step.
    """
    theirs, ours = both(name, config or {}, n, given or {})
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps.numpy(), rtol=1e-6, atol=2e-4)
    assert len(ours) == len(theirs) and ours.order == theirs.order
    if hasattr(theirs, "sigmas") and ours.sigmas is not None:
        sigmas = theirs.sigmas.numpy()
        assert (np.abs(ours.sigmas - sigmas) <= 1.01 * ulps * np.spacing(np.abs(sigmas))).all()
    if hasattr(theirs, "init_noise_sigma"):
        assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    rng = np.random.default_rng(1)
    x0 = rng.standard_normal(SHAPE).astype(np.float32) * np.float32(ours.init_noise_sigma)
    noises = [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(3 * len(ours.timesteps))]
    drawn, noise = iter(noises), Recorded(noises)
    module = importlib.import_module(type(theirs).__module__)
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *_, **__: torch.from_numpy(next(drawn))
    x, y = torch.from_numpy(x0), x0
    if begin:
        theirs.set_begin_index(begin)
        ours.set_begin_index(begin)
    for i in range(begin, len(ours.timesteps)):
        t, s = theirs.timesteps[i], ours.timesteps[i]
        seen = theirs.scale_model_input(x, t).numpy() if hasattr(theirs, "scale_model_input") else x.numpy()
        said = [network(seen, float(t)), network(ours.scale_model_input(y, s), float(t))]
        if twice:
            said = [np.concatenate([m, np.tanh(m)], 1) for m in said]
        theirs_next = theirs.step(torch.from_numpy(said[0]), t, x, **options)
        ours_next = ours.step(said[1], s, y, generator=noise, **options)
        denoised = getattr(theirs_next, "pred_original_sample", None)
        if denoised is not None and "s_churn" not in options:  # theirs has seen the noise
            error = np.abs(ours_next.pred_original_sample - denoised.numpy()).max()
            assert error <= 5 * bound * max(1.0, float(denoised.abs().max())), f"D of step {i}: {error:.1e}"
        x, y = theirs_next.prev_sample, ours_next.prev_sample
        error = np.abs(y - x.numpy()).max() / float(x.abs().max())
        assert error < bound, f"step {i}: {error:.1e}"


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_tables_are_equal_to_the_bit(schedule, steps):
    theirs, ours = both("DDPMScheduler", {"beta_schedule": schedule, "num_train_timesteps": steps}, 5, {})
    if schedule == "sigmoid":  # torch's exp has no documented rounding
        np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=2e-7)
    else:
        np.testing.assert_array_equal(ours.betas, theirs.betas.numpy())
        np.testing.assert_array_equal(ours.alphas_cumprod, theirs.alphas_cumprod.numpy())


@pytest.mark.parametrize("kind, spacing", list(product(PREDICTIONS, SPACINGS)))
def test_ddpm_and_ddim(kind, spacing):
    for clip in (True, False):
        config = {"timestep_spacing": spacing, "prediction_type": kind, "clip_sample": clip}
        compare("DDPMScheduler", config)
        compare("DDIMScheduler", config)
        compare("DDIMScheduler", config, 7, eta=0.7)
        if spacing != "linspace" and kind != "sample":  # from the data, diffusers divides by 0
            compare("DDIMInverseScheduler", config)


def test_more_of_ddpm_and_ddim():
    bounded = {"thresholding": True, "sample_max_value": 1.5, "beta_schedule": "squaredcos_cap_v2"}
    for variance in ("fixed_small_log", "fixed_large", "learned", "learned_range"):
        if variance != "learned":  # half of the "variances" of this network are negative
            compare("DDPMScheduler", {"variance_type": variance}, twice=variance == "learned_range")
    compare("DDPMScheduler", bounded)
    compare("DDIMScheduler", bounded | {"set_alpha_to_one": False, "steps_offset": 1})
    compare("DDIMScheduler", {}, eta=0.3, use_clipped_model_output=True)
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    compare("DDIMScheduler", zero)
    compare("DDPMScheduler", zero)
    compare("DDPMScheduler", {"trained_betas": np.linspace(1e-3, 0.02, 50).tolist(), "num_train_timesteps": 50})
    compare("DDPMScheduler", {}, None, given={"timesteps": [900, 500, 450, 3]})


@pytest.mark.parametrize("name, spacing", list(product(VE, SPACINGS)))
def test_levels_of_data_plus_noise(name, spacing):
    for kind in PREDICTIONS:
        if kind != "sample" or name in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete"):
            compare(f"{name}Scheduler", {"timestep_spacing": spacing, "prediction_type": kind})
    if name != "EulerAncestralDiscrete" and spacing == "linspace":
        for family in FAMILIES:
            compare(f"{name}Scheduler", {family: True})


def test_more_of_euler_heun_and_lms():
    name = "EulerDiscreteScheduler"
    compare(name, {}, s_churn=5.0, s_noise=1.003)
    compare(name, {"prediction_type": "v_prediction"}, s_churn=5.0)
    compare(name, {"prediction_type": "sample"}, s_churn=5.0, s_tmax=10.0)
    compare(name, {"final_sigmas_type": "sigma_min"})
    compare(name, {"interpolation_type": "log_linear"})
    compare(name, {"timestep_type": "continuous", "prediction_type": "v_prediction"})
    # torch's square root is not correctly rounded everywhere, and the rescaling takes differences of roots
    compare(name, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, ulps=8)
    compare(name, {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0})
    compare(name, {}, None, given={"timesteps": [900.0, 500.0, 450.0, 3.0]})
    compare(name, {}, None, given={"sigmas": [10.0, 3.0, 1.0, 0.0]})
    compare("HeunDiscreteScheduler", {"clip_sample": True})
    for begin in (2, 4):
        for which in (name, "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"):
            compare(which, {}, begin=begin)
    compare("LMSDiscreteScheduler", {}, order=2)


@pytest.mark.parametrize("config", [
    {}, {"prediction_type": "v_prediction"}, {"sigma_schedule": "exponential"}, {"final_sigmas_type": "sigma_min"},
])  # fmt: skip
def test_edm_euler(config):
    compare("EDMEulerScheduler", config)
    compare("EDMEulerScheduler", config, s_churn=5.0)


@pytest.mark.parametrize("config", [
    {}, {"shift": 3.0}, {"stochastic_sampling": True}, {"invert_sigmas": True}, {"shift_terminal": 0.1},
    *({family: True} for family in FAMILIES),
])  # fmt: skip
def test_flow_matching(config):
    compare("FlowMatchEulerDiscreteScheduler", config)
    compare("FlowMatchEulerDiscreteScheduler", config, None, given={"sigmas": [1.0, 0.7, 0.2]})
    if set(config) <= {"shift"}:
        compare("FlowMatchHeunDiscreteScheduler", config)
        compare("FlowMatchEulerDiscreteScheduler", config, begin=3)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_dynamic_shift(kind):
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    compare("FlowMatchEulerDiscreteScheduler", config, given={"mu": 0.8})


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_few_steps(kind):
    config = {"prediction_type": kind}
    for n in (1, 4):
        compare("LCMScheduler", config, n)
        compare("TCDScheduler", config, n)
    compare("TCDScheduler", config, 4, eta=0.0)
    compare("LCMScheduler", config | {"clip_sample": True}, 4, given={"strength": 0.5})
    compare("LCMScheduler", config, None, given={"timesteps": [999, 499, 19]})


def test_consistency():
    compare("CMStochasticIterativeScheduler", {})
    compare("CMStochasticIterativeScheduler", {"clip_denoised": False}, 2)
    compare("CMStochasticIterativeScheduler", {}, 1)
    compare("CMStochasticIterativeScheduler", {}, None, given={"timesteps": [22, 0]})


@pytest.mark.parametrize("kind, skip, spacing", list(product(("epsilon", "v_prediction"), (True, False), SPACINGS)))
def test_pndm(kind, skip, spacing):
    config = {"prediction_type": kind, "skip_prk_steps": skip, "timestep_spacing": spacing}
    compare("PNDMScheduler", config, 12)
    if skip:
        compare("PNDMScheduler", config | {"set_alpha_to_one": True, "steps_offset": 1}, 4)


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "EulerDiscrete", "LMSDiscrete", "PNDM", "DPMSolverMultistep", "LCM"])
def test_noise_on_data(name):
    theirs, ours = both(f"{name}Scheduler", {}, 10, {})
    rng = np.random.default_rng(2)
    x, noise = (rng.standard_normal((3, 2, 5)).astype(np.float32) for _ in range(2))
    t = ours.timesteps[[1, 4, 7]]
    expected = theirs.add_noise(torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(ours.add_noise(x, noise, t), expected, rtol=2e-6, atol=2e-6)
    if name in ("DDPM", "DDIM", "LCM", "EulerDiscrete"):
        expected = theirs.get_velocity(torch.from_numpy(x), torch.from_numpy(noise), torch.from_numpy(t)).numpy()
        np.testing.assert_allclose(ours.get_velocity(x, noise, t), expected, rtol=2e-6, atol=2e-6)


def test_noise_along_straight_lines():
    theirs, ours = both("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 10, {})
    x, noise = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
    t = ours.timesteps[[2, 6]]
    expected = theirs.scale_noise(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(ours.scale_noise(x, t, noise), expected, rtol=2e-6)


def test_a_run_of_diffusers_is_repeated_without_torch():
    """The start and the noise of every step from torch.manual_seed(7)."""
    name, generator = "EulerAncestralDiscreteScheduler", torch.Generator().manual_seed(7)
    theirs, ours = both(name, {}, 6, {})
    module = importlib.import_module(type(theirs).__module__)
    module.randn_tensor = diffusers.utils.torch_utils.randn_tensor
    noise = TorchCpuNoise(7)
    x = torch.randn(SHAPE, generator=generator) * theirs.init_noise_sigma
    y = ours.initial_noise(SHAPE, noise)
    for t, s in zip(theirs.timesteps, ours.timesteps, strict=True):
        x = theirs.step(
            torch.from_numpy(network(theirs.scale_model_input(x, t).numpy(), float(t))), t, x, generator=generator
        ).prev_sample
        y = ours.step(network(ours.scale_model_input(y, s), float(s)), s, y, generator=noise).prev_sample
    np.testing.assert_allclose(y, x.numpy(), rtol=0, atol=2e-5 * float(x.abs().max()))


CLASSES = ("DDPM", "DDIM", "PNDM", "DEISMultistep", "DPMSolverMultistep", "UniPCMultistep", *VE)


@pytest.mark.parametrize("name", CLASSES)
def test_a_config_passes_from_class_to_class(name):
    """What was not chosen takes the defaults of the new class, what was is kept, levels keep their bounds."""
    chosen = {"beta_end": 0.03, "steps_offset": 1}
    theirs, ours = both(f"{name}Scheduler", chosen, 5, {})
    for other in CLASSES:
        wanted = getattr(diffusers, f"{other}Scheduler").from_config(theirs.config).config
        got = Scheduler.from_config(ours.config, class_name=f"{other}Scheduler", compat="diffusers").config
        assert {key: wanted[key] for key in got if key in wanted and key[0] != "_"} == {
            key: value for key, value in got.items() if key in wanted and key[0] != "_"
        }
        assert set(wanted["_use_default_values"]) == set(got["_use_default_values"])


@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscrete", *[n for n in CLASSES if n not in ("DDPM", "DDIM", "PNDM", "EulerAncestralDiscrete")]],
)
def test_levels_keep_the_bounds_of_another_class(name, key):
    config = {"sigma_min": 0.1, "sigma_max": 0.9, key: True}
    theirs = getattr(diffusers, f"{name}Scheduler").from_config(diffusers.EulerDiscreteScheduler(**config).config)
    euler = Scheduler.from_config({"_class_name": "EulerDiscreteScheduler", **config})
    ours = Scheduler.from_config(euler, class_name=f"{name}Scheduler", compat="diffusers")
    theirs.set_timesteps(6)
    ours.set_timesteps(6)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas.numpy(), rtol=2e-7)


def test_counts_and_curves_that_are_easily_missed():
    for name in ("DDPM", "DDIM", "PNDM"):  # rounding gives a last timestep of -1, which counts from the end
        compare(f"{name}Scheduler", {"timestep_spacing": "trailing"}, 61)
    for key, spacing in product(FAMILIES, ("leading", "linspace")):
        config = {"interpolation_type": "log_linear", key: True, "timestep_spacing": spacing}
        compare("EulerDiscreteScheduler", config, ulps=2)  # torch's exp of the ends may be one off
