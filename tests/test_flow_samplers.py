"""Flow matching: fixed steps and Dormand-Prince, on x = (1 - t) data + t noise.

Gaussian data N(m, d^2) moves along x_t = (1 - t) m + sqrt((1 - t)^2 d^2 + t^2) z, which every method must reach at its
order; SciPy's RK45 is the same pair of methods.
Seen to fail: with Heun's correction over the wrong time, with an Euler step last, with RK4's third velocity mistaken
for its second, with a sign of the table turned, with dense output at a wrong fraction, with no step rejected, with one
step size for all samples where each should have its own, with seven arrays in a call that takes six.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from generant.diffusion.samplers import adaptive
from generant.diffusion.samplers.adaptive import dormand_prince
from generant.diffusion.samplers.flow import flow_euler, flow_heun, flow_rk4
from generant.diffusion.sampling import Stepper, sample

pytestmark = pytest.mark.once

D, M = 0.7, 0.3
SAMPLERS = {"flow_euler": flow_euler, "flow_heun": flow_heun, "flow_rk4": flow_rk4}


def spread(t: float) -> float:
    return float(np.hypot((1 - t) * D, t))


def velocity(x, t):
    """noise - data, expected: the network of flow matching."""
    return (t - (1 - t) * D**2) / spread(t) ** 2 * (x - (1 - t) * M) - M


def exact(x, s, t):
    return (1 - t) * M + spread(t) / spread(s) * (x - (1 - s) * M)


@pytest.fixture
def noise():
    return np.random.default_rng(2).standard_normal((20, 3))


@pytest.mark.parametrize("end", [0.0, 0.1])
@pytest.mark.parametrize(("name", "order"), [("flow_euler", 1), ("flow_heun", 2), ("flow_rk4", 4)])
def test_flow_samplers_converge_at_their_order(name, order, end, noise):
    errors = []
    for n in (40, 80, 160):
        plan = SAMPLERS[name](np.linspace(1, end, n + 1))
        got = sample(velocity, noise, plan, prediction="flow")
        errors.append(np.abs(got - exact(noise, 1, end)).max())
    slopes = -np.diff(np.log2(errors))
    assert slopes[-1] == pytest.approx(order, abs=0.15), (errors, slopes)
    assert plan.order == order and plan.form == "flow" and plan.final == (1 - end, end)


@pytest.mark.parametrize("end", [0.0, 0.1])
@pytest.mark.parametrize("name", SAMPLERS)
def test_flow_steps_are_the_textbook(name, end, noise):
    """In velocities v(x, t) = (x - D) / t, with times that are not even."""
    f = lambda x, t: np.sin(x) * (1 + t) - 0.2 * x
    times = [1.0, 0.8, 0.45, 0.4, end]
    plan = SAMPLERS[name](times)
    got = sample(f, noise, plan, prediction="flow")
    x, calls = noise, 0
    for t, u in pairwise(times):
        h = u - t
        k1 = f(x, t)
        if name == "flow_euler" or (name == "flow_heun" and u == 0):
            x, calls = x + h * k1, calls + 1
        elif name == "flow_heun":
            x, calls = x + h / 2 * (k1 + f(x + h * k1, u)), calls + 2
        elif u == 0:
            k2 = f(x + h / 3 * k1, t + h / 3)
            x, calls = x + h / 4 * (k1 + 3 * f(x + 2 * h / 3 * k2, t + 2 * h / 3)), calls + 3
        else:
            k2 = f(x + h / 2 * k1, t + h / 2)
            k3 = f(x + h / 2 * k2, t + h / 2)
            x, calls = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3, u)), calls + 4
    assert plan.evaluations == calls and not plan.stochastic
    np.testing.assert_allclose(got, x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_straight_paths_are_exact_in_one_step(name, noise):
    """Where D is constant the velocity is too: a step to 0 gives D, with any prediction and in float32."""
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        x = noise.astype(dtype)
        plan = SAMPLERS[name]([1.0, 0.0])
        np.testing.assert_allclose(sample(lambda x, t: 0 * x + 0.25, x, plan), 0.25, rtol=tolerance)
        got = sample(lambda x, t: x / dtype(t) - dtype(0.25 / t), x, plan, prediction="flow")
        assert got.dtype == dtype
        np.testing.assert_allclose(got, 0.25, rtol=tolerance)


def test_what_stages_keep_is_denoised_again(noise):
    """RK4 keeps velocities; Stepper.denoised gives D from them."""
    plan = flow_rk4([1.0, 0.5, 0.0])
    stepper, x = Stepper(plan, prediction="flow"), noise
    for i, stage in enumerate(plan.stages):
        v = velocity(x, stage.sigma)
        following, h = stepper.step(i, x, v)
        np.testing.assert_allclose(h, v, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(stepper.denoised(i, x, v), x - stage.sigma * v, rtol=1e-9, atol=1e-11)
        x = following


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("times", [[1.5, 0.0], [1.0], [0.5, 0.5], [0.0, 1.0], [1.0, -0.1], [np.nan, 0.0]])
def test_flow_samplers_refuse_bad_times(name, times):
    with pytest.raises(ValueError, match=name):
        SAMPLERS[name](times)


# ---- adaptive steps ----


def linear(x, sigma):
    """D of Gaussian data at data + sigma noise."""
    return x * (D**2 / (D**2 + sigma**2))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("form", ["flow", "ve"])
def test_dormand_prince_reaches_the_exact_solution(form, together, noise):
    """Error in proportion to the tolerance; calls grow slowly: fifth order."""
    x = noise[:4] if form == "flow" else noise[:4] * 40
    options = {"start": 1.0, "end": 0.01, "prediction": "flow"} if form == "flow" else {"start": 40.0, "end": 0.01}
    scale = np.sqrt((D**2 + 0.01**2) / (D**2 + 40**2))
    wanted = exact(x, 1, 0.01) if form == "flow" else x * scale
    calls, errors = [], []
    for tolerance in (1e-3, 1e-6):
        got = dormand_prince(
            velocity if form == "flow" else linear, x, form=form, rtol=tolerance, atol=tolerance, denoise=False,
            together=together, **options,
        )  # fmt: skip
        calls.append(got.evaluations)
        errors.append(np.abs(got.x - wanted).max())
        assert len(got.levels) == (1 if together else 4)
        for row in got.levels:
            assert row[0] == options["start"] and row[-1] == 0.01 and (np.diff(row) < 0).all()
    assert errors[0] < 2e-2 and errors[1] < 2e-5 and errors[0] > 50 * errors[1]
    assert calls[0] < calls[1] < 6 * calls[0]


def test_steps_are_those_of_the_pair(noise):
    """One step's stages, result, error and interpolant, from SciPy's table of the same pair."""
    rk = pytest.importorskip("scipy.integrate").RK45
    np.testing.assert_allclose(adaptive.NODES[:-1], rk.C, rtol=1e-15)
    for row, other in zip(adaptive.STAGES[:-1], rk.A[1:], strict=True):
        np.testing.assert_allclose(row, other[: len(row)], rtol=1e-14)
    np.testing.assert_allclose(adaptive.STAGES[-1], rk.B, rtol=1e-14)
    np.testing.assert_allclose(np.abs(adaptive.ERROR), np.abs(rk.E), rtol=1e-14)
    np.testing.assert_allclose(adaptive.DENSE, rk.P, rtol=1e-14)


def test_dense_output_and_last_step(noise):
    x = noise[:3]
    at = [1.0, 0.9, 0.52, 0.3, 0.05, 0.01]
    got = dormand_prince(velocity, x, form="flow", start=1.0, end=0.01, prediction="flow", rtol=1e-7, atol=1e-7, at=at)
    for level, row in zip(at, got.dense, strict=True):
        np.testing.assert_allclose(row, exact(x, 1, level), atol=2e-6)
    np.testing.assert_array_equal(got.dense[0], x)
    last = exact(x, 1, 0.01)
    np.testing.assert_allclose(got.x, last - 0.01 * velocity(last, 0.01), atol=1e-6)
    assert got.evaluations == sum(6 * (len(levels) - 1) + 3 for levels in got.levels) + 6 * got.rejected


def curved(x, sigma):
    return np.tanh(3 * x) * 0.8


def test_a_sample_does_not_depend_on_its_batch(noise):
    x = np.concatenate([noise[:2] * 9, noise[2:4] * 0.1]).astype(np.float32)
    options = {"start": 9.0, "end": 0.01, "rtol": 1e-3, "atol": 1e-3}
    labels = np.array([[0.8], [0.2], [0.5], [0.3]], np.float32)
    labelled = lambda x, sigma, labels: np.tanh(3 * x) * labels
    whole = dormand_prince(labelled, x, labels=labels, **options)
    assert whole.x.dtype == np.float32
    for rows in (slice(0, 1), slice(1, 4)):
        part = dormand_prince(labelled, x[rows], labels=labels[rows], **options)
        np.testing.assert_array_equal(part.x, whole.x[rows])
        assert part.levels == whole.levels[rows]
    assert len(set(whole.levels)) > 1  # own steps
    shared = dormand_prince(labelled, x, labels=labels, together=True, **options)
    np.testing.assert_allclose(shared.x, whole.x, atol=0.02)
    assert shared.evaluations < whole.evaluations


def test_levels_found_serve_a_plan(noise):
    found = dormand_prince(velocity, noise, form="flow", start=1.0, end=0.01, prediction="flow", together=True)
    got = sample(velocity, noise, flow_rk4([*found.levels[0], 0.0]), prediction="flow")
    np.testing.assert_allclose(got, exact(noise, 1, 0), atol=0.01)


def test_clip_bounds_the_denoised(noise):
    got = dormand_prince(lambda x, s: 50 * x, noise[:2], start=2.0, end=0.01, clip=1.0)
    np.testing.assert_array_equal(np.abs(got.x), 1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": 3}, RuntimeError, "3 steps, .* led from 9 to .* only, not to 0.01: raise max_steps"),
        ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
        ({"end": 0.0}, ValueError, "start > end > 0 must hold"),
        ({"end": 10.0}, ValueError, "start > end > 0 must hold"),
        ({"form": "vp"}, ValueError, "form must be 've' or 'flow', got 'vp'"),
        ({"form": "flow"}, ValueError, "1 >= start > end"),
        ({"rtol": 0.0, "atol": 0.0}, ValueError, "one of them positive"),
        ({"rtol": -1.0}, ValueError, "rtol and atol must be at least 0"),
        ({"at": [20.0]}, ValueError, "at must lie in end ... start"),
        ({"labels": np.zeros(5)}, ValueError, "there are 2 samples but 5 labels"),
    ],
)
def test_dormand_prince_refuses(options, error, message, noise):
    with pytest.raises(error, match=message):
        dormand_prince(curved, noise[:2], **({"start": 9.0, "end": 0.01, "rtol": 1e-9, "atol": 1e-9} | options))


def test_what_is_not_finite_is_an_error(noise):
    with pytest.raises(RuntimeError, match="not finite in the step from"):
        dormand_prince(lambda x, s: x * np.nan if s < 1 else x * 0.5, noise[:2], start=9.0, end=0.01)
    with pytest.raises(RuntimeError, match="not finite"):
        dormand_prince(lambda x, s: x * np.nan, noise[:2], start=9.0, end=0.01)
    with pytest.raises(ValueError, match="x must be n samples of at least one element"):
        dormand_prince(curved, np.zeros((0, 3)), start=9.0, end=0.01)
