"""Guidance on mixtures of Gaussians, where conditional and unconditional denoisers and classifiers are closed forms.

Seen to fail: with the interval compared to sigma, with alpha missing from the classifier's push, with sigma in place of
sigma^2 there, with the two halves of a batched call exchanged, with the second denoiser called at weight 1.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from generant import ops
from generant.diffusion.guidance import Guidance, classifier_free, classifier_guidance
from generant.diffusion.plan import Plan, Stage, alpha_of, rescaled
from generant.diffusion.predictions import PREDICTIONS, conversion
from generant.diffusion.sampling import initial_noise, sample
from generant.random import split

pytestmark = pytest.mark.once

CENTRES = np.array([[-1.5, 0.5], [2.0, 0.0], [0.5, -2.0]])
SHARES = np.array([0.5, 0.3, 0.2])
SPREAD = 0.6  # of every class
LEVELS = [20.0, 6.0, 2.0, 0.7, 0.2, 0.05]
N = 12


def class_logs(x, s):
    """log of share_k N(x; centre_k, SPREAD^2 + s^2), up to a constant: (n, classes), in ops."""
    far = ops.sum(ops.square(ops.sub(ops.reshape(x, shape=(x.shape[0], 1, 2)), CENTRES[None])), axis=-1)
    return ops.add(ops.affine(far, scale=-0.5 / (SPREAD**2 + s**2)), np.log(SHARES))


def conditional(x, s, labels):
    """E[data | x, label] for labels 0 ... 2; label 3 stands for any class."""
    keep = SPREAD**2 / (SPREAD**2 + s**2)
    logs = class_logs(x, s)
    posterior = np.exp(logs - logs.max(axis=1, keepdims=True))
    posterior = posterior / posterior.sum(axis=1, keepdims=True)
    means = np.where((labels < 3)[:, None], np.append(CENTRES, [[0, 0]], axis=0)[labels], posterior @ CENTRES)
    return means + keep * (x - means)


def ladder(levels=LEVELS):
    """Euler's plan, written out here."""
    stages = [Stage(s, c_x=t / s, c_d=1 - t / s) for s, t in pairwise(levels)]
    return Plan("euler", stages, order=1, final=(1.0, levels[-1]))


LABELS = np.arange(N) % 3
NULL = np.full(N, 3)
START = np.random.default_rng(4).standard_normal((N, 2)) * LEVELS[0]


def run_by_hand(denoised):
    x = START
    for s, t in pairwise(LEVELS):
        x = x + (t - s) * (x - denoised(x, s)) / s
    return x


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_is_the_combination(weight, batched):
    denoiser, guidance = classifier_free(conditional, LABELS, NULL, weight=weight, batched=batched)
    blend = lambda x, s: (1 - weight) * conditional(x, s, NULL) + weight * conditional(x, s, LABELS)
    got = sample(denoiser, START, ladder(), guidance=guidance)
    np.testing.assert_allclose(got, run_by_hand(blend), rtol=1e-11, atol=1e-12)


def test_the_guided_score_is_that_of_the_tilted_density():
    """D = x + s^2 d/dx [(1 - w) log p(x) + w log p(x, y)], by central differences of the log-densities."""
    s, w, step = 0.9, 2.5, 1e-5
    x = np.random.default_rng(5).standard_normal((N, 2)) * 2

    def tilted(x):
        logs = class_logs(x, s)
        return (1 - w) * np.log(np.exp(logs).sum(axis=1)) + w * logs[np.arange(N), LABELS]

    slope = np.stack([(tilted(x + step * e) - tilted(x - step * e)) / (2 * step) for e in np.eye(2)], axis=1)
    denoiser, guidance = classifier_free(conditional, LABELS, NULL, weight=w)
    to_zero = Plan("one", [Stage(s)], final=(1.0, 0.0))
    np.testing.assert_allclose(sample(denoiser, x, to_zero, guidance=guidance), x + s**2 * slope, rtol=1e-6, atol=1e-7)


def counted(f, calls):
    def count(*args):
        calls.append(args)
        return f(*args)

    return count


def test_batched_is_one_call_of_twice_the_rows():
    calls: list = []
    denoiser, guidance = classifier_free(counted(conditional, calls), LABELS, NULL, weight=2.0, batched=True)
    sample(denoiser, START, ladder(), guidance=guidance)
    assert [x.shape for x, _, _ in calls] == [(2 * N, 2)] * 5
    np.testing.assert_array_equal(calls[0][2], np.append(LABELS, NULL))


@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
@pytest.mark.parametrize("batched", [False, True])
def test_interval_and_schedule_are_in_levels(form, batched):
    """Levels 6, 2, 0.7 are inside whatever sigma is called there; the second denoiser is not called elsewhere."""
    calls: list = []
    seen: list = []
    plan = rescaled(ladder(), form) if form != "ve" else ladder()
    second = counted(lambda x, s: x * 0, calls)
    weight = lambda level: seen.append(level) or 1.0 + level
    guidance = Guidance(weight, second, batched=batched, interval=(0.5, 10.0))
    for stage, level in zip(plan.stages, LEVELS, strict=False):
        before = len(calls)
        said, uncond, w = guidance.predict(lambda x, s: x, START, stage)
        inside = 0.5 <= level <= 10
        assert len(calls) - before == inside and (uncond is not None) == inside and said.shape == START.shape
        assert w == pytest.approx(1 + level if inside else 1.0, rel=1e-12)
    assert seen == pytest.approx([6.0, 2.0, 0.7], rel=1e-12)


def test_autoguidance_extrapolates_from_the_bad_denoiser():
    good, bad = (lambda x, s: conditional(x, s, NULL)), (lambda x, s: 0.8 * conditional(x, 1.3 * s, NULL))
    got = sample(good, START, ladder(), guidance=Guidance(1.7, bad))
    expected = run_by_hand(lambda x, s: bad(x, s) + 1.7 * (good(x, s) - bad(x, s)))
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescale_restores_the_standard_deviation(rescale):
    """Lin et al. (2023), eq. 15 and 16, on images, per sample."""
    rng = np.random.default_rng(6)
    cond, uncond, x = rng.standard_normal((3, 4, 5, 5, 2))
    guided = uncond + 5.0 * (cond - uncond)
    ratio = cond.std(axis=(1, 2, 3), keepdims=True) / guided.std(axis=(1, 2, 3), keepdims=True)
    guidance = Guidance(5.0, lambda x, s: uncond, rescale=rescale)
    got = sample(lambda x, s: cond, x, Plan("one", [Stage(2.0)], final=(1.0, 0.0)), guidance=guidance)
    np.testing.assert_allclose(got, guided * (rescale * ratio + 1 - rescale), rtol=1e-12)


def log_class(x, s):
    """log p(label | x), at the noise level s."""
    return ops.sum(ops.mul(ops.log_softmax(class_logs(x, s)), np.eye(3)[LABELS]), axis=1)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
def test_classifier_guidance_is_bayes_rule(form, prediction):
    """The denoiser of all classes and the exact classifier give the class's own denoiser, in every parametrisation."""
    times = {s: 1000.0 + i for i, s in enumerate(LEVELS)} if form == "vp" else None
    plan = rescaled(ladder(), form, times) if form != "ve" else ladder()
    level = {stage.told: s for stage, s in zip(plan.stages, LEVELS, strict=False)}

    def said(labels):
        def denoiser(x, told):
            s = level[told]
            alpha = alpha_of(form, s)
            a_x, a_p = conversion(prediction, alpha, alpha * s)
            return (conditional(x / alpha, s, labels) - a_x * x) / a_p

        return denoiser

    def log_prob(x, told):
        return log_class(ops.affine(x, scale=1 / alpha_of(form, level[told])), level[told])

    guided = classifier_guidance(said(NULL), log_prob, prediction=prediction, plan=plan)
    for stage in plan.stages:
        x = START * stage.sigma / LEVELS[0]
        np.testing.assert_allclose(guided(x, stage.told), said(LABELS)(x, stage.told), rtol=1e-8, atol=1e-9)
    x = START * plan.initial[1] / LEVELS[0]
    np.testing.assert_allclose(
        sample(guided, x, plan, prediction=prediction), sample(said(LABELS), x, plan, prediction=prediction), rtol=1e-8
    )


def test_classifier_guidance_composes_with_guidance():
    """Classifier-free to weight 2 on top of a classifier of scale 3: the scores add."""
    denoiser, guidance = classifier_free(conditional, LABELS, NULL, weight=2.0)
    guided = classifier_guidance(denoiser, log_class, scale=3.0)
    push = lambda x, s: conditional(x, s, LABELS) - conditional(x, s, NULL)
    expected = run_by_hand(lambda x, s: conditional(x, s, NULL) + 2 * (push(x, s) + 3 * push(x, s)))
    np.testing.assert_allclose(sample(guided, START, ladder(), guidance=guidance), expected, rtol=1e-9)


def test_guided_samples_are_of_the_class():
    """With weight 3 nearly all of 300 samples are nearest to their own centre; without guidance, to anyone's."""
    n = 300
    labels = np.arange(n) % 3
    denoiser, guidance = classifier_free(conditional, labels, np.full(n, 3), weight=3.0)
    plan = ladder([*(20 * (0.02 / 20) ** np.linspace(0, 1, 25)), 0.0])
    x = initial_noise(plan, split(8, n), (2,), "float64")
    nearest = lambda y: ((y[:, None] - CENTRES) ** 2).sum(axis=2).argmin(axis=1)
    hits = [(nearest(sample(denoiser, x, plan, guidance=g)) == labels).mean() for g in (guidance, None)]
    assert hits[0] > 0.99 > hits[1] > 0.85


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Guidance(2.0, conditional, rescale=1.5), "rescale must lie in 0"),
        (lambda: Guidance(2.0, conditional, interval=(2.0, 1.0)), r"interval must be \(low, high\)"),
        (lambda: Guidance(np.nan, conditional), "weight must be finite, got nan"),
        (lambda: Guidance(lambda level: np.inf, conditional).weight_at(2.0), "got inf at level 2"),
        (lambda: classifier_free(conditional, LABELS, NULL[:3], weight=2.0), "must have one shape"),
        (
            lambda: Guidance(2.0, lambda x, s: x[:3], batched=True).predict(lambda x, s: x, START, Stage(1.0)),
            "must return 24 predictions for x twice, got 3",
        ),
        (
            lambda: classifier_guidance(lambda x, s: x, log_class, plan=ladder())(START, 3.0),
            "euler never tells the denoiser 3.0",
        ),
        (
            lambda: classifier_guidance(
                lambda x, s: x, log_class, plan=Plan("p", [Stage(2.0, time=1), Stage(1.0, time=1)], final=(1, 0))
            ),
            "tells the denoiser 1 at two noise levels",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
