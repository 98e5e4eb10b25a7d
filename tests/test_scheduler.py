"""Scheduler without torch: configs, counts, refusals, keys, order of steps, and what must come out in exact mode.

With a denoiser that always says D, every deterministic method must keep the noise: x_i = alpha_i D + sigma_i z. That
holds for every family, so it is asked of all of them.
Seen to fail: with keys kept from another generator, with options that stayed, with history kept over a jump, with a
begin index that was ignored, with a predicted variance passed on, with DDIM's next timestep by its stride, with one
step too many for "trailing", with the flow shift applied twice, with LMS extrapolating to 0, with wrong weights of
PLMS, iPNDM and DDPM, with defaults taken for chosen values, with old keys not renamed, with DDIM's
timesteps read at the first step only.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from generant import random
from generant.diffusion.predictions import conversion
from generant.diffusion.scheduler import FAMILIES, Scheduler

SPACINGS = ("leading", "linspace", "trailing")
NOISY = {
    "CMStochasticIterativeScheduler", "DDPMScheduler", "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler",
}  # fmt: skip
TWICE = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
         "FlowMatchHeunDiscreteScheduler", "DPMSolverSDEScheduler")  # fmt: skip


def made(name: str, n: int | None = None, *, compat: str = "exact", **config) -> Scheduler:
    scheduler = Scheduler.from_config({"_class_name": name, **config}, compat=compat)
    if n is not None:
        scheduler.set_timesteps(n)
    return scheduler


def loop(scheduler: Scheduler, x: np.ndarray, begin: int = 0, **options) -> np.ndarray:
    for t in scheduler.timesteps[begin:]:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(0.3 * np.tanh(seen) + 0.01, t, x, **options).prev_sample
    return x


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# ---- configs ----


def test_a_config_comes_from_a_dict_a_file_a_folder_or_a_scheduler(tmp_path):
    config = {"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.0", "solver_order": 3}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    sources = (config, tmp_path, str(tmp_path), tmp_path / "scheduler_config.json", Scheduler.from_config(config))
    for source in sources:
        assert Scheduler.from_config(source).config["solver_order"] == 3
    with pytest.raises(OSError, match="missing"):
        Scheduler.from_config(tmp_path / "missing")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list"):
        Scheduler.from_config(tmp_path / "list.json")
    with pytest.raises(TypeError, match="a dict or a path, got int"):
        Scheduler.from_config(5)


def test_a_config_comes_back_as_it_was_saved(tmp_path):
    scheduler = made("DPMSolverMultistepScheduler", solver_order=1, sigma_data=0.3)  # the key of another class
    scheduler.save_config(tmp_path / "new")
    again = Scheduler.from_config(tmp_path / "new")
    assert {**again.config, "_use_default_values": []} == {**scheduler.config, "_use_default_values": []}
    assert again.hidden_config == {"sigma_data": 0.3}
    assert again.config["lambda_min_clipped"] == -math.inf
    trained = made("DDPMScheduler", trained_betas=np.linspace(0.01, 0.2, 1000))
    trained.save_config(tmp_path)
    np.testing.assert_array_equal(Scheduler.from_config(tmp_path).betas, trained.betas)
    with pytest.raises(TypeError):
        scheduler.config["solver_order"] = 2  # type: ignore[index]


def test_classes_and_keys_that_are_not_known():
    with pytest.raises(ValueError, match="no _class_name; give class_name="):
        Scheduler.from_config({})
    with pytest.raises(ValueError, match=r"'NoScheduler', wanted one of CMSt.*UniPC"):
        Scheduler.from_config({"_class_name": "NoScheduler"})
    with pytest.raises(ValueError, match="compat must be one of exact, diffusers, got 'torch'"):
        made("DDIMScheduler", compat="torch")
    with pytest.warns(UserWarning, match="unknown config keys are kept and have no effect: colour, flavour"):
        scheduler = made("DDIMScheduler", flavour=1, colour=2)
    assert scheduler.hidden_config == {"flavour": 1, "colour": 2}
    for steps in (0, 2.5, True, "9"):
        with pytest.raises(ValueError, match="num_train_timesteps must be an integer"):
            made("DDIMScheduler", num_train_timesteps=steps)


def test_values_that_were_never_chosen_follow_the_class():
    config = {"_class_name": "PNDMScheduler", "beta_end": 0.5, "steps_offset": 1, "_use_default_values": ["beta_end"]}
    assert Scheduler.from_config(config).config["beta_end"] == 0.02
    assert Scheduler.from_config(config, class_name="EulerDiscreteScheduler").config["beta_end"] == 0.02
    assert Scheduler.from_config(config, beta_end=0.1).config["beta_end"] == 0.1
    old = Scheduler.from_config({"_class_name": "GaussianDDPMScheduler", "timesteps": 50})
    assert old.family.name == "DDPMScheduler" and len(old) == 50


def test_a_config_passes_from_class_to_class():
    ddim = made("DDIMScheduler", beta_end=0.03, sigma_min=0.1)
    for source in (ddim, ddim.config):
        euler = Scheduler.from_config(source, class_name="EulerDiscreteScheduler")
        assert euler.config["timestep_spacing"] == "linspace"  # "leading" was DDIM's default, nobody's choice
        assert (euler.config["beta_end"], euler.config["sigma_min"]) == (0.03, 0.1)
        back = Scheduler.from_config(euler.config, class_name="DDIMScheduler")
        assert {key: back.config[key] for key in ddim.config} == dict(ddim.config)


def test_switching_classes_maps_what_the_other_calls_otherwise():
    deis = made("DEISMultistepScheduler")
    dpm = Scheduler.from_config(deis, class_name="DPMSolverMultistepScheduler")
    assert (dpm.config["algorithm_type"], dpm.config["solver_type"]) == ("dpmsolver++", "midpoint")
    unipc = Scheduler.from_config(dpm, class_name="UniPCMultistepScheduler")
    assert unipc.config["solver_type"] == "bh2"
    back = Scheduler.from_config(dpm, class_name="DEISMultistepScheduler")
    assert (back.config["algorithm_type"], back.config["solver_type"]) == ("deis", "logrho")
    for name in FAMILIES:  # the keys that a pipeline passes on
        shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
        Scheduler.from_config(shared, class_name=name)
    for name in FAMILIES:
        if "prediction_type" in FAMILIES[name].defaults:
            with pytest.raises(ValueError, match=r"prediction_type must be one of epsilon.*got 'score'"):
                made(name, prediction_type="score")
    for name in ("PNDMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler"):
        with pytest.raises(ValueError, match="prediction_type must be one of epsilon, v_prediction, got 'sample'"):
            made(name, prediction_type="sample")


# ---- where the steps lie ----


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_counts_that_cannot_be_had(n):
    with pytest.raises(ValueError, match=rf"num_inference_steps must lie in 1 \.\.\. 1000, got {n}"):
        made("DDIMScheduler", n)


def test_arguments_that_set_timesteps_does_not_take():
    for n in (2.5, True, "5"):
        with pytest.raises(TypeError, match="num_inference_steps must be an integer"):
            made("DDIMScheduler").set_timesteps(n)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="does not take mu, speed"):
        made("DDIMScheduler").set_timesteps(5, mu=1.0, speed=2)
    with pytest.raises(ValueError, match="either num_inference_steps or timesteps"):
        made("DDPMScheduler").set_timesteps()
    with pytest.raises(ValueError, match="either num_inference_steps or timesteps"):
        made("DDPMScheduler").set_timesteps(3, timesteps=[5, 3, 1])
    for wrong in ([1, 2], [1000, 5], [5, -1], [], [2.5, 1.0]):
        with pytest.raises(ValueError, match="timesteps must"):
            made("DDPMScheduler").set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="timestep_spacing must be linspace, leading or trailing, got 'even'"):
        made("DDIMScheduler", 5, timestep_spacing="even")
    with pytest.raises(ValueError, match="beyond the last, 999: steps_offset=999"):
        made("DDIMScheduler", 5, steps_offset=999, compat="diffusers")
    assert made("DDIMScheduler", 5, steps_offset=1).timesteps.tolist() == [801, 601, 401, 201, 1]
    for name in ("DDIMScheduler", "EulerDiscreteScheduler"):  # exact: the offset is lowered
        assert made(name, 1000, steps_offset=1, timestep_spacing="leading").timesteps[0] == 999
    made("DDIMScheduler").set_timesteps(5, device="cpu")


@pytest.mark.parametrize("name", [name for name in FAMILIES if "timestep_spacing" in FAMILIES[name].defaults])
def test_every_spacing_gives_as_many_steps_as_were_asked_for(name):
    few = name in ("LCMScheduler", "TCDScheduler")  # at most as many as the model was distilled on
    for spacing in SPACINGS:
        if name == "DDIMInverseScheduler" and spacing == "linspace":
            continue
        scheduler = made(name, timestep_spacing=spacing)
        for n in (4, 7, 50) if few else (4, 7, 61, 103, 700):
            scheduler.set_timesteps(n)
            times = scheduler.timesteps
            calls = {"PNDMScheduler": n + 9}.get(name, 2 * n - 1 if name in TWICE else n)
            assert len(times) == calls and scheduler.num_inference_steps == n
            if name in TWICE or name == "PNDMScheduler":
                assert (np.diff(times[::2] if name in TWICE else times[12:]) < 0).all()
            else:
                sign = -1 if "Inverse" in name else 1
                assert (sign * np.diff(times) < 0).all()
            assert times.min() >= 0 and times.max() <= 999


def test_the_flow_shift_is_applied_once():
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        s = made(name, 4, shift=3.0).sigmas
        once = [3 * u / (1 + 2 * u) for u in (1.0, 0.75, 0.5, 0.25)]
        np.testing.assert_allclose(np.unique(s), [0.0, *once[::-1]], rtol=1e-14)


def test_the_flow_shift_of_a_sequence_length():
    scheduler = made("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    scheduler.set_timesteps(4, image_seq_len=2176)  # half way from 256 to 4096
    m = math.exp((0.5 + 1.15) / 2)
    np.testing.assert_allclose(scheduler.sigmas, [m * u / (1 + (m - 1) * u) for u in (1, 0.75, 0.5, 0.25, 0)])
    shown = scheduler.sigmas
    scheduler.set_timesteps(4, mu=(0.5 + 1.15) / 2)
    np.testing.assert_allclose(scheduler.sigmas, shown, rtol=1e-14)
    with pytest.raises(ValueError, match="needs mu or image_seq_len"):
        scheduler.set_timesteps(4)


def test_what_a_scheduler_shows():
    scheduler = made("EulerDiscreteScheduler")
    assert len(scheduler) == 1000 and scheduler.order == 1 and made("HeunDiscreteScheduler").order == 2
    assert repr(scheduler) == "Scheduler('EulerDiscreteScheduler', compat='exact', no timesteps set)"
    scheduler.set_timesteps(20)
    assert "20 timesteps" in repr(scheduler)
    assert scheduler.init_noise_sigma == pytest.approx(scheduler.sigmas[0], rel=1e-14)
    leading = made("EulerDiscreteScheduler", 20, timestep_spacing="leading")
    assert leading.init_noise_sigma == pytest.approx(math.hypot(1, leading.sigmas[0]), rel=1e-14)
    assert made("DDIMScheduler", 20).init_noise_sigma == 1.0
    x = normal(2, 3)
    np.testing.assert_allclose(
        scheduler.scale_model_input(x, scheduler.timesteps[0]), x / math.hypot(1, scheduler.sigmas[0]), rtol=1e-14
    )
    assert made("FlowMatchEulerDiscreteScheduler").betas is None
    assert made("DDIMScheduler").alphas_cumprod.dtype == np.float64


# ---- steps ----


def test_calls_that_a_step_refuses():
    x = normal(2, 3)
    with pytest.raises(ValueError, match="call set_timesteps first"):
        made("DDIMScheduler").step(x, 999, x)
    scheduler = made("DDIMScheduler", 5)
    for call in (lambda: scheduler.step(x, None, x), lambda: made("EulerDiscreteScheduler", 5).scale_model_input(x)):
        with pytest.raises(ValueError, match="timestep must be given before the first step"):
            call()
    with pytest.raises(ValueError, match="555 is not among the 5 timesteps from 800 to 0"):
        scheduler.step(x, 555, x)
    with pytest.raises(TypeError, match="step does not take s_churn"):
        scheduler.step(x, 800, x, s_churn=1.0)
    euler = made("EulerDiscreteScheduler", 5)
    loop(euler, x)
    with pytest.raises(ValueError, match="step 5 of 5 does not exist"):
        euler.step(x, 0, x)
    with pytest.raises(ValueError, match="give one of them"):
        made("DDPMScheduler", 5).step(x, 800, x, noise=x, variance_noise=x)
    with pytest.raises(ValueError, match=r"begin_index must lie in 0 \.\.\. 4, got 5"):
        scheduler.set_begin_index(5)
    for name in TWICE:
        twice = made(name, 5)
        twice.set_begin_index(3)
        with pytest.raises(ValueError, match="begin index 3 must be even"):
            loop(twice, x, 3)


def test_options_of_a_step_hold_for_that_step_only():
    x, said = normal(2, 3), normal(2, 3, seed=1)
    scheduler = made("DDIMScheduler", 5, clip_sample=False)
    scheduler.step(said, 800, x, eta=1.0, noise=x)
    plain = made("DDIMScheduler", 5, clip_sample=False)
    plain.set_begin_index(1)
    np.testing.assert_array_equal(
        scheduler.step(said, 600, x).prev_sample, plain.step(said, 600, x).prev_sample
    )


def test_noise_on_data():
    scheduler, x, z = made("DDPMScheduler"), normal(3, 2), normal(3, 2, seed=1)
    t = np.array([0, 500, 999])
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t][:, None]
    np.testing.assert_allclose(scheduler.add_noise(x, z, t), a**0.5 * x + (1 - a) ** 0.5 * z, rtol=1e-13)
    np.testing.assert_allclose(scheduler.get_velocity(x, z, t), a**0.5 * z - (1 - a) ** 0.5 * x, rtol=1e-13)
    for wrong in (1000, -1, 2.5):
        for call in (scheduler.add_noise, scheduler.get_velocity):
            with pytest.raises(ValueError, match=r"timesteps must be integers in 0 \.\.\. 999"):
                call(x, z, wrong)
    with pytest.raises(ValueError, match="one number or 3, one per sample"):
        scheduler.add_noise(x, z, [1, 2])
    flow = made("FlowMatchEulerDiscreteScheduler", 4)
    np.testing.assert_allclose(flow.scale_noise(x, flow.timesteps[1], z), 0.25 * x + 0.75 * z, rtol=1e-14)
    with pytest.raises(ValueError, match="is not among the 4 timesteps"):
        flow.add_noise(x, z, 3.3)
    for compat in ("exact", "diffusers"):  # as an inpainting loop does between its steps
        flow = made("EulerDiscreteScheduler", 6, compat=compat)
        flow.set_begin_index(2)
        for i in (2, 3, 4):
            t = flow.timesteps[i]
            np.testing.assert_allclose(flow.add_noise(x, z, t), x + flow.sigmas[i] * z, rtol=1e-6)
            flow.step(x, t, x)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "TCDScheduler"])
def test_a_sample_depends_on_its_key_and_not_on_its_batch(name):
    keys, x = random.split(random.key(7), 5), normal(5, 2, 3)
    all_of_them = loop(made(name, 6), x, generator=keys)
    some = loop(made(name, 6), x[[3, 1]], generator=keys[[3, 1]])
    np.testing.assert_array_equal(some, all_of_them[[3, 1]])
    np.testing.assert_array_equal(loop(made(name, 6), x, generator=7), all_of_them)
    np.testing.assert_array_equal(loop(made(name, 6), x, generator=random.key(7)), all_of_them)
    assert np.abs(loop(made(name, 6), x) - loop(made(name, 6), x)).max() > 1e-3  # fresh noise for each run
    assert np.abs(loop(made(name, 6), x, generator=8) - all_of_them).max() > 1e-3
    one = made(name, 6)
    t = one.timesteps[0]
    one.step(x, t, x, generator=8)
    seventh = made(name, 6).step(x, t, x, generator=7).prev_sample
    np.testing.assert_array_equal(one.step(x, t, x, generator=7, index=0).prev_sample, seventh)
    np.testing.assert_array_equal(one.step(x[:2], t, x[:2], generator=keys[:2], index=0).prev_sample, seventh[:2])
    given = [normal(5, 2, 3, seed=s) for s in range(2)]
    first = [made(name, 6).step(x, made(name, 6).timesteps[0], x, noise=z).prev_sample for z in given]
    other = made(name, 6).step(x, made(name, 6).timesteps[0], x, variance_noise=given[1]).prev_sample
    np.testing.assert_array_equal(first[1], other)
    assert np.abs(first[0] - first[1]).max() > 1e-3
    for start in (made(name, 6).initial_noise((4, 9), generator=1), made(name, 6).initial_noise((4, 9), 1)):
        np.testing.assert_array_equal(start, made(name, 6).initial_noise((4, 9), random.key(1)))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "LMSDiscreteScheduler", "DDIMScheduler"])
def test_runs_from_the_middle_and_steps_by_number(name):
    x = normal(2, 3)
    scheduler, fresh = made(name, 8), made(name, 8)
    whole = loop(scheduler, x)
    by_number, y = made(name, 8), x
    for i, t in enumerate(by_number.timesteps):
        seen = by_number.scale_model_input(y, t)
        y = by_number.step(0.3 * np.tanh(seen) + 0.01, None, y, index=i).prev_sample
    np.testing.assert_array_equal(y, whole)
    scheduler.set_timesteps(8)  # which forgets the run
    np.testing.assert_array_equal(loop(scheduler, x), whole)
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(3)
    assert scheduler.begin_index == 3
    np.testing.assert_array_equal(loop(scheduler, x, 3), loop(fresh, x, 3))
    assert scheduler.step_index == 8
    jumped = made(name, 8)
    jumped.step(x, None, x, index=0)
    alone = made(name, 8).step(x, None, x, index=5).prev_sample
    np.testing.assert_array_equal(jumped.step(x, None, x, index=5).prev_sample, alone)


def test_what_a_step_returns():
    x, said = normal(2, 3), normal(2, 3, seed=1)
    scheduler = made("DDIMScheduler", 5, clip_sample_range=0.7)
    a = scheduler.alphas_cumprod[800]
    out = scheduler.step(said, 800, x)
    denoised = np.clip((x - (1 - a) ** 0.5 * said) / a**0.5, -0.7, 0.7)
    np.testing.assert_allclose(out.pred_original_sample, denoised, rtol=1e-12)
    np.testing.assert_array_equal(out[0], out.prev_sample)
    np.testing.assert_array_equal(out[1], out.pred_original_sample)
    again = made("DDIMScheduler", 5, clip_sample_range=0.7).step(said, 800, x, return_dict=False)
    assert isinstance(again, tuple) and len(again) == 1
    np.testing.assert_array_equal(again[0], out.prev_sample)
    small = made("DDIMScheduler", 5).step(said.astype("f4"), 800, x.astype("f4")).prev_sample
    assert out.prev_sample.dtype == np.float64 and small.dtype == np.float32


def test_a_predicted_variance():
    x, said = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    both = np.concatenate([said, normal(2, 3, 4, seed=2)], 1)
    learned = {"variance_type": "learned_range"}
    for name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverMultistepInverseScheduler"):
        expected = made(name, 5)
        for output in (both, said):  # the variance is left out; a network without one is taken as it is
            got = made(name, 5, **learned)
            t = got.timesteps[0]
            np.testing.assert_array_equal(got.step(output, t, x).prev_sample, expected.step(said, t, x, index=0)[0])
        with pytest.raises(ValueError, match="wants 6 channels of prediction and variance"):
            made(name, 5, **learned).step(both[:, :5], t, x)
    with pytest.raises(ValueError, match="wants 6 channels of prediction and variance"):
        made("DDPMScheduler", 5, **learned).step(said, 800, x)
    z = normal(2, 3, 4, seed=3)
    for edge, fixed in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        output = np.concatenate([said, np.full_like(said, edge)], 1)
        np.testing.assert_allclose(
            made("DDPMScheduler", 5, **learned).step(output, 800, x, noise=z).prev_sample,
            made("DDPMScheduler", 5, variance_type=fixed).step(said, 800, x, noise=z).prev_sample, rtol=1e-12,
        )  # fmt: skip


# ---- what must come out ----


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("n, spacing", [(1, None), (5, None), (20, None), (7, "trailing")])
def test_every_class_keeps_the_noise_and_ends_at_what_the_network_denoises_to(name, n, spacing):
    spaced = spacing is not None and "timestep_spacing" in FAMILIES[name].defaults
    config = {"timestep_spacing": spacing} if spaced else {}
    if name == "PNDMScheduler" and n == 1:
        with pytest.raises(ValueError, match="at least 4 steps, got 1"):
            made(name, 1)
    scheduler = made(name, n, **config, **({"skip_prk_steps": n in (1, 7)} if name == "PNDMScheduler" else {}))
    prediction = scheduler.family.prediction(scheduler._setting)
    data, z = 0.5 * np.tanh(normal(2, 7, seed=4)), normal(2, 7)
    plan = scheduler.family.program(scheduler._setting, scheduler._grid, 0, dict(scheduler.family.options)).plan
    bound = 1e-6 if name == "LCMScheduler" else 1e-8  # which keeps a little of x at the last timestep, too
    ends = [*((stage.alpha, stage.sigma) for stage in plan.stages[1:]), plan.final]
    if name == "CMStochasticIterativeScheduler":
        ends[-1] = (1.0, 0.0)  # the last step leaves no noise at sigma_min
    x = plan.initial[0] * data + plan.initial[1] * z
    for t, stage, (alpha, sigma) in zip(scheduler.timesteps, plan.stages, ends, strict=True):
        a_x, a_p = conversion(prediction, stage.alpha, stage.sigma)
        said = (data - a_x * x) / a_p if a_p else z  # from the data upwards, the noise is for the network to choose
        x = scheduler.step(said, t, x, generator=5).prev_sample
        if sigma == 0 or name not in NOISY:
            np.testing.assert_allclose(x, alpha * data + sigma * z, rtol=bound, atol=bound)
    assert np.isfinite(x).all() and x.dtype == np.float64


@pytest.mark.parametrize("name, options", [
    ("DDPMScheduler", {}), ("EulerAncestralDiscreteScheduler", {}), ("TCDScheduler", {"eta": 0.6}),
    ("DDIMScheduler", {"eta": 0.8}),
])  # fmt: skip
def test_noise_that_is_added_makes_up_for_what_is_taken(name, options):
    """With one datum for a data set, (c_x sigma_i)^2 + c_noise^2 = sigma_{i+1}^2."""
    s = made(name, 7, clip_sample=False)
    plan = s.family.program(s._setting, s._grid, 0, {**s.family.options, **options}).plan
    assert plan.stochastic
    ends = [*(stage.sigma for stage in plan.stages[1:]), plan.final[1]]
    for stage, sigma in zip(plan.stages, ends, strict=True):
        assert math.hypot(stage.c_x * stage.sigma, stage.c_noise) == pytest.approx(sigma, rel=1e-10, abs=1e-8)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"IPNDMScheduler", "LCMScheduler", "PNDMScheduler"}))
def test_a_step_to_no_noise_returns_what_was_denoised(name):
    scheduler = made(name, 6)
    plan = scheduler.family.program(scheduler._setting, scheduler._grid, 0, dict(scheduler.family.options)).plan
    x = normal(2, 5) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        out = scheduler.step(0.3 * np.tanh(scheduler.scale_model_input(x, t)), t, x, generator=1)
        x = out.prev_sample
    if plan.final[1] == 0:
        np.testing.assert_allclose(x, out.pred_original_sample, rtol=1e-12)


@pytest.mark.parametrize("name, order", [("DDIMScheduler", 1), ("DPMSolverMultistepScheduler", 1)])
def test_gaussian_data_is_reached(name, order):
    """D = alpha d^2 x / (alpha^2 d^2 + sigma^2); the flow takes x to x d / sqrt(alpha^2 d^2 + sigma^2)."""
    d, errors = 0.7, []
    for n in (50, 100, 200):
        scheduler = made(name, n, prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
        a, x = scheduler.alphas_cumprod, normal(2, 3)
        start = a[int(scheduler.timesteps[0])]
        truth = x * d / math.sqrt(start * d * d + 1 - start)
        for t in scheduler.timesteps:
            b = a[int(t)]
            x = scheduler.step(x * (b**0.5 * d * d / (b * d * d + 1 - b)), t, x).prev_sample
        errors.append(np.abs(x / truth - 1).max())
    assert errors[2] < 0.03 and errors[1] < 0.75 * errors[0] and errors[2] < 0.75 * errors[1]


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler"])
def test_steps_without_history_come_in_any_order(name):
    x, fresh, again = normal(2, 3), made(name, 6), made(name, 6)
    said = 0.3 * np.tanh(x)
    alone = [made(name, 6).step(said, t, x, noise=x).prev_sample for t in fresh.timesteps]
    for i in (4, 1, 5, 0, 0, 2):
        got = fresh.step(said, fresh.timesteps[i], x, noise=x).prev_sample
        np.testing.assert_allclose(got, alone[i], rtol=1e-12)
    first, second = (loop(again, x, generator=3) if name == "DDPMScheduler" else loop(again, x) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_ddpm_steps_through_all_of_training_where_no_timesteps_were_set():
    x, small = normal(2, 3), {"num_train_timesteps": 20}
    free, chosen = made("DDPMScheduler", **small), made("DDPMScheduler", 20, **small)
    np.testing.assert_array_equal(loop(free, x, generator=5), loop(chosen, x, generator=5))
    with pytest.raises(ValueError, match="call set_timesteps first"):
        made("DDIMScheduler").step(x, 10, x)
