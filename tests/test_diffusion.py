"""Plans as tables, the loop that runs them, predictions, and EDM's preconditioning and loss.

Seen to fail: with c_noise left out of to_dict, with the rescaled coefficient of an earlier x not scaled, with the noise
of every sample from the first key, with the clip taken off, with guidance weights exchanged.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from generant import diffusion, nn, ops, random
from generant.diffusion.plan import Plan, Stage, alpha_of, checked_levels, rescaled
from generant.diffusion.predictions import PREDICTIONS, conversion
from generant.diffusion.samplers import SAMPLERS, flow_rk4
from generant.diffusion.sampling import Stepper
from generant.random import Stream, key

LEVELS = [5.0, 2.0, 0.7, 0.3, 0.1, 0.0]
PLANS = [*(sampler(LEVELS) for sampler in SAMPLERS.values()), flow_rk4([1.0, 0.6, 0.2, 0.0])]


def denoise(x, sigma):
    return np.tanh(x) * (1 - 0.05 * sigma)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.name)
def test_plans_are_stored_and_printed(plan):
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and hash(again) == hash(plan)
    for one, other in zip(again.stages, plan.stages, strict=True):
        np.testing.assert_array_equal(one.c_noise, other.c_noise)
        np.testing.assert_array_equal((one.time, *one.span), (other.time, *other.span))
    text = str(plan).splitlines()
    assert plan.name in text[0] and len(text) == len(plan) + 3 and repr(plan).startswith(f"Plan('{plan.name}'")
    assert plan.evaluations == sum(stage.call for stage in plan.stages)
    assert len(plan.sigmas) == len(plan) + 1 and plan.initial[1] == plan.sigmas[0]


@pytest.mark.parametrize("form", ["vp", "flow"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_rescaled_plan_runs_the_same_samples(name, form):
    """x of another form is alpha times x of this one, at every stage, noise included."""
    plan, keys = SAMPLERS[name](LEVELS), random.split(1, 3)
    x = random.normal(key(2), (3, 4), "float64") * LEVELS[0]
    kept: list = []
    end = diffusion.sample(denoise, x, plan, keys=keys, callback=lambda i, h: kept.append(h))
    other = rescaled(plan, form)
    alpha = other.initial[0]
    assert alpha == pytest.approx(alpha_of(form, LEVELS[0]))
    network = lambda x, sigma: denoise(x / level_alpha(form, sigma), sigma / level_alpha(form, sigma))
    got = diffusion.sample(network, x * alpha, other, keys=keys)
    np.testing.assert_allclose(got, end * other.final[0], rtol=1e-9, atol=1e-11)


def level_alpha(form, sigma):
    return np.sqrt(1 - sigma**2) if form == "vp" else 1 - sigma


def test_plans_refuse_what_is_no_plan():
    good = Stage(1.0)
    for stages, options, message in (
        ([], {}, "has no stages"),
        ([good], {"form": "xx"}, "form must be one of ve, vp, flow"),
        ([Stage(np.nan)], {}, "stage 0 of it has a coefficient that is not finite"),
        ([good, good._replace(terms=(("h", 2, 1.0),))], {}, "looks back on h of 2 stages ago"),
        ([good._replace(terms=(("h", 1, 1.0),))], {}, "looks back on h of 1 stages ago"),
        ([good] * 5 + [good._replace(terms=tuple(("h", k % 4 + 1, 1.0) for k in range(5)))], {}, "at most 4"),
        ([good, good._replace(terms=(("D", 1, 1.0),))], {}, "looks back on D"),
    ):
        with pytest.raises(ValueError, match=f"Plan: .*{message}"):
            Plan("it", stages, final=(1, 0), **options)
    plan = Plan("it", [good], final=(1, 0))
    with pytest.raises(AttributeError, match="immutable"):
        plan.name = "other"
    for data in ({}, {"name": "x", "stages": 3}, {**plan.to_dict(), "stages": [{"sigma": 1}]}):
        with pytest.raises(ValueError, match="does not describe a plan"):
            Plan.from_dict(data)
    with pytest.raises(ValueError, match="is in form 'vp' already"):
        rescaled(rescaled(plan, "vp"), "flow")


@pytest.mark.parametrize(("sigmas", "message"), [
    ([1.0], r"at least 2 noise levels, got shape \(1,\)"), ([[2.0, 1.0]], r"got shape \(1, 2\)"),
    ([np.nan, 0.0], r"sigmas\[0\] = nan"), ([2.0, np.inf, 1.0], r"sigmas\[1\] = inf"),
    ([1.0, 1.0], r"fall strictly, got sigmas\[0\] = 1.0 and sigmas\[1\] = 1.0"),
    ([2.0, -1.0], "at or above 0, got -1.0"),
])  # fmt: skip
def test_bad_levels_are_named(sigmas, message):
    with pytest.raises(ValueError, match="it: sigmas must .*" + message):
        checked_levels("it", sigmas)
    for name, sampler in SAMPLERS.items():
        with pytest.raises(ValueError, match=f"{name}: "):
            sampler(sigmas)


# ---- running them ----


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_a_sample_does_not_know_its_batch(name):
    plan, keys = SAMPLERS[name](LEVELS), random.split(7, 5)
    x = diffusion.initial_noise(plan, keys, (2, 3))
    whole = diffusion.sample(denoise, x, plan, keys=keys)
    for part in (slice(0, 2), slice(2, 5), slice(4, 5)):
        alone = diffusion.initial_noise(plan, keys[part], (2, 3))
        np.testing.assert_array_equal(alone, x[part])
        np.testing.assert_array_equal(diffusion.sample(denoise, alone, plan, keys=keys[part]), whole[part])
    assert whole.dtype == np.float32


def test_keys_may_be_seeds():
    plan, x = SAMPLERS["euler_ancestral"](LEVELS), np.ones((3, 2))
    run = lambda keys: diffusion.sample(denoise, x, plan, keys=keys)
    np.testing.assert_array_equal(run(5), run(random.split(random.key(5), 3)))
    np.testing.assert_array_equal(run(random.key(5)), run(5))
    assert (run(5) != run(6)).all() and (run(5)[0] != run(5)[1]).all()


def test_noise_may_come_from_elsewhere():
    """What stands for independent numbers: an object with normal(shape, dtype); a Brownian path."""
    plan, x = SAMPLERS["euler_ancestral"](LEVELS), np.ones((2, 2), np.float32)

    class Same:
        def normal(self, shape, dtype):
            return np.full(shape, 0.5, dtype)

    got, expected = diffusion.sample(denoise, x, plan, noise=Same()), x
    for s in plan.stages:
        expected = s.c_x * expected + s.c_d * denoise(expected, s.sigma) + s.c_noise * 0.5
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.isfinite(diffusion.sample(denoise, x, plan, keys=1, noise="bridge")).all()


def test_edit_callback_and_bounds():
    plan, seen = SAMPLERS["heun"]([4.0, 1.0, 0.0]), []
    diffusion.sample(
        lambda x, s: x * 5, np.full((2, 3), 4.0), plan, clip=0.5, callback=lambda i, h: seen.append(np.abs(h).max())
    )
    assert seen == [0.5, 0.5, 0.5]
    steps: list = []
    end = diffusion.sample(denoise, np.ones((2, 3)), plan, callback=lambda i, h: steps.append(i) or i == 1)
    assert steps == [0, 1] and end.shape == (2, 3)
    fixed = diffusion.sample(denoise, np.ones((2, 3)), plan, edit=lambda i, x: np.full_like(x, i))
    np.testing.assert_array_equal(fixed, 2.0)
    bounded = diffusion.sample(lambda x, s: x * 0 + 3.0, np.ones((2, 9)), plan, threshold=0.9, threshold_max=2.0)
    np.testing.assert_allclose(bounded, 1.0)  # 3, clipped to 2 and divided by it


def test_guided_stages_are_their_formula():
    x, p, u = (random.normal(key(i), (2, 6), "float64") for i in range(3))
    plan = SAMPLERS["euler"]([2.0, 1.0])
    got, _ = Stepper(plan, prediction="epsilon").step(0, x, p, u, weight=3.0)
    guided = u + 3 * (p - u)
    np.testing.assert_allclose(got, x - guided, rtol=1e-12)


@pytest.mark.parametrize(("options", "message"), [
    ({"noise": "brown"}, "noise must be one of independent, bridge, or have normal"), ({}, "keys is None; give a seed"),
    ({"keys": np.zeros((2, 2))}, "keys must be 3 x 2 uint64"), ({"keys": -1}, "random_state must lie in"),
    ({"keys": 1, "prediction": "noise"}, "prediction must be one of denoised, epsilon"),
    ({"keys": 1, "clip": 1.0, "threshold": 0.9}, "only one of them can bound D"),
])  # fmt: skip
def test_sample_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        diffusion.sample(denoise, np.ones((3, 2)), SAMPLERS["euler_ancestral"](LEVELS), **options)


def test_what_is_no_plan_and_no_number_is_named():
    with pytest.raises(TypeError, match=r"sample: plan must be a Plan, such as dpmpp_2m\(sigmas\), got list"):
        diffusion.sample(denoise, np.ones((3, 2)), [2.0, 1.0])
    with pytest.raises(TypeError, match=r"euler: sigmas must be numbers, got \['a'\]"):
        SAMPLERS["euler"](["a"])
    with pytest.raises(ValueError, match="flow_rk4: times must fall strictly, got times"):
        flow_rk4([0.0, 1.0])
    with pytest.raises(ValueError, match=r"karras_sigmas: n must be an integer of at least 1, got 2\.5"):
        diffusion.karras_sigmas(2.5)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 2.0), (0.6, 0.8), (0.3, 0.7)])
def test_conversions_find_the_data(prediction, alpha, sigma):
    data, noise = 1.7, -0.4
    x = alpha * data + sigma * noise
    said = {
        "denoised": data, "epsilon": noise, "v": alpha * noise - sigma * data, "flow": noise - data,
        "score": -noise / sigma,
    }[prediction]  # fmt: skip
    a_x, a_p = conversion(prediction, alpha, sigma)
    assert a_x * x + a_p * said == pytest.approx(data, rel=1e-12)


def test_conversions_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="'epsilon' says nothing about the data where alpha is 0"):
        conversion("epsilon", 0.0, 1.0)
    assert conversion("v", 0.0, 1.0) == (0.0, -1.0)


# ---- EDM ----


def test_pair_has_unit_variance_and_is_the_definition():
    edm, n, d = diffusion.Edm(0.5), 4000, 8
    x = ops.normal(key(1), dtype="float64", shape=(n, d)) * 0.5
    sigma = np.exp(np.linspace(-5, 4, n))
    inputs, target = edm.pair(x, sigma, key(2))
    z = ops.normal(key(2), dtype="float64", shape=(n, d))
    c_skip, c_out, c_in, _ = (c[:, None] if np.ndim(c) else c for c in edm.scalings(sigma))
    noisy = x + sigma[:, None] * z
    np.testing.assert_allclose(inputs, c_in * noisy, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(target, (x - c_skip * noisy) / c_out, rtol=1e-6, atol=1e-8)
    for part in np.array_split(np.arange(n), 4):  # at every noise level
        assert inputs[part].var() == pytest.approx(1, rel=0.05)
        assert target[part].var() == pytest.approx(1, rel=0.05)


def test_loss_is_the_weighted_loss_of_the_paper():
    edm = diffusion.Edm(0.5)
    x = ops.normal(key(1), dtype="float64", shape=(50, 4)) * 0.5
    sigma = edm.training_sigmas(key(3), 50)
    network = lambda inputs, c_noise, labels: ops.tanh(inputs) * 0.3
    c_skip, c_out, c_in, _ = (c[:, None] for c in edm.scalings(sigma))
    s = sigma[:, None]
    noisy = x + s * ops.normal(key(2), dtype="float64", shape=x.shape)
    denoised = c_skip * noisy + c_out * np.tanh(c_in * noisy) * 0.3
    expected = np.mean((s**2 + 0.25) / (s * 0.5) ** 2 * (denoised - x) ** 2)
    assert float(edm.loss(network, x, None, sigma, key(2))) == pytest.approx(expected, rel=1e-9)


def test_training_sigmas_are_log_normal():
    log = np.log(diffusion.Edm(0.5, p_mean=-0.7, p_std=1.3).training_sigmas(key(5), 20000))
    assert log.mean() == pytest.approx(-0.7, abs=0.03) and log.std() == pytest.approx(1.3, abs=0.03)


def test_convert_and_predictor_give_the_denoiser():
    edm = diffusion.Edm(0.5)
    net = nn.MlpDenoiser(3, Stream(0), width=8, blocks=1)
    nn.pack(net).data[...] += np.float32(0.1)
    x = ops.normal(key(1), shape=(5, 3))
    c_skip, c_out, c_in, c_noise = edm.scalings(2.0)
    a_x, a_p = edm.convert(2.0)
    assert (a_x, a_p) == (float(c_skip), float(c_out))
    expected = net(x * np.float32(c_in), np.full(5, c_noise, np.float32))
    np.testing.assert_allclose(edm.predictor(net)(x, 2.0), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        diffusion.Edm(0.0)


def test_trained_on_gaussians_the_denoiser_is_the_closed_form():
    """A linear denoiser fitted by the EDM loss finds D = d^2 / (d^2 + s^2) x: F = 0 is optimal for d = sigma_data."""
    edm = diffusion.Edm(0.5)
    x = ops.normal(key(1), dtype="float64", shape=(4000, 2)) * 0.5
    losses = [
        float(edm.loss(lambda u, c, y, a=a: u * a, x, None, edm.training_sigmas(key(3), 4000), key(2)))
        for a in (-0.2, 0.0, 0.2)
    ]
    assert losses[1] == min(losses) and losses[1] == pytest.approx(1, rel=0.05)
