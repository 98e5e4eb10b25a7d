"""Losses of denoisers: one weighted loss whatever the network predicts, the laws of the levels, learned parts.

Expected values are the formulas in float64, written out with the noise; gradients are compared with differences.
Seen to fail: with the sign of a target turned, with sigma / alpha for sigma in the score, with the gain of D instead of
its square, with a gradient through the first estimate, with the noise's P2 weights taken for those of D, without the
number of bins in the importance weights, with the mean of losses for their root mean square, with the last loss for the
history, with a spacing of 1 / (n + 1), with -F for F, with the mean learning from the variational term, with the first
level's posterior variance in other coordinates, and with an infinite level refused.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from generant import nn, ops
from generant.autograd import grad, value_and_grad
from generant.diffusion import Edm
from generant.diffusion.objectives import (
    WEIGHTINGS,
    ImportanceSampler,
    Objective,
    Uncertainty,
    flow_level,
    hybrid_loss,
    logit_normal,
    lognormal,
    mode,
    target,
    uncertain,
    uniform,
    variational_terms,
)
from generant.diffusion.objectives import weightings as w
from generant.diffusion.predictions import PREDICTIONS, conversion
from generant.random import Stream, fold_in, key


class Turned(Edm):
    """A network that says -F."""

    def convert(self, sigma):
        c_skip, c_out = super().convert(sigma)
        return c_skip, -c_out


N, D = 6, 5
X = ops.normal(key(1), dtype="float64", shape=(N, D)) * 0.5
S = np.geomspace(0.01, 30, N)
Z = ops.normal(key(2), dtype="float64", shape=(N, D))
COMBINATIONS = [(p, form) for p in [*PREDICTIONS, "edm", Turned()] for form in ("ve", "vp", "flow")]


def denoiser(noisy, s):
    """Some D of data + s noise."""
    return np.tanh(noisy / (1 + s[:, None] ** 2))


def spoken(prediction, form):
    """The network that predicts `prediction` and stands for `denoiser`."""
    alpha = {"ve": 1 + 0 * S, "vp": (1 + S**2) ** -0.5, "flow": 1 / (1 + S)}[form]
    what = Edm() if prediction == "edm" else prediction

    def network(inputs, told, labels):
        s = np.exp(4 * told)
        out = np.empty_like(inputs)
        for i in range(N):
            noisy = X[i] + s[i] * Z[i]
            a_x, a_p = conversion(what, alpha[i], alpha[i] * s[i])
            x_t = alpha[i] * noisy
            shown = x_t if prediction in PREDICTIONS else noisy / np.hypot(s[i], 0.5)
            np.testing.assert_allclose(inputs[i], shown, rtol=1e-9, atol=1e-12)
            out[i] = (denoiser(noisy[None], s[i : i + 1])[0] - a_x * x_t) / a_p
        return out

    return network


@pytest.mark.parametrize("weighting", [*WEIGHTINGS.values(), partial(w.min_snr, gamma=2.0)])
def test_every_prediction_of_one_denoiser_has_the_same_loss(weighting):
    expected = weighting(S) * np.mean((denoiser(X + S[:, None] * Z, S) - X) ** 2, axis=1)
    for prediction, form in COMBINATIONS:
        objective = Objective(prediction, form=form, weighting=weighting)
        losses = objective.losses(spoken(prediction, form), X, None, S, key(2))
        np.testing.assert_allclose(losses, expected, rtol=1e-7)
        given = objective.losses(spoken(prediction, form), X, None, S, None, noise=Z)
        np.testing.assert_allclose(given, expected, rtol=1e-7)
        assert float(objective.loss(spoken(prediction, form), X, None, S, key(2))) == pytest.approx(expected.mean())


def test_names_of_weights_are_what_papers_multiply_their_own_loss_with():
    snr = S**-2.0

    def own(prediction, name, form="vp", **options):
        return Objective(prediction, form=form, weighting=partial(WEIGHTINGS[name], **options)).weight(S)

    np.testing.assert_allclose(own("epsilon", "snr"), 1)
    np.testing.assert_allclose(own("v", "snr_plus_one"), 1)
    np.testing.assert_allclose(own("flow", "flow", form="flow"), 1)
    np.testing.assert_allclose(own("edm", "edm"), 1)
    np.testing.assert_allclose(own("epsilon", "min_snr"), np.minimum(5 / snr, 1))
    np.testing.assert_allclose(own("denoised", "min_snr"), np.minimum(5, snr))
    np.testing.assert_allclose(own("v", "min_snr"), np.minimum(5, snr) / (snr + 1))
    np.testing.assert_allclose(own("epsilon", "p2", k=2.0, gamma=0.5), (2 + snr) ** -0.5)
    np.testing.assert_allclose(own("denoised", "constant"), 1)
    np.testing.assert_allclose(Objective("v").weight(S), 1)
    np.testing.assert_allclose(own("epsilon", "truncated_snr"), np.maximum(1, 1 / snr))


@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_soft_truncation_is_the_mean_over_truncations(k):
    low, high = 0.01, 10.0
    tau = np.geomspace(low, high, 20001)
    density = tau**-k
    mass = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(tau))])
    below = np.interp(S, tau, mass / mass[-1])
    np.testing.assert_allclose(w.soft_truncation(S, low=low, high=high, k=k), below / S**2, rtol=1e-5, atol=1e-12)


def objective_input(objective):
    goal = target(objective.prediction, S, form=objective.form)
    return goal.in_x[:, None] * X + goal.in_z[:, None] * Z


@pytest.mark.parametrize("prediction", ["epsilon", "v", "edm"])
def test_gradients_are_differences(prediction):
    objective = Objective(prediction, weighting="min_snr", self_conditioning=0.5)
    theta = ops.normal(key(7), dtype="float64", shape=(2 * D, D)) * 0.3

    def network(matrix, inputs, told, labels, previous):
        return ops.tanh(ops.matmul(ops.concat(inputs, previous, axis=-1), matrix))

    given = ops.normal(key(9), dtype="float64", shape=(N, D))  # said in the first pass, which gets no gradient

    def loss(matrix, noise=None):
        calls = []

        def once(inputs, told, labels, previous):
            calls.append(1)
            return given if len(calls) == 1 else network(matrix, inputs, told, labels, previous)

        return objective.loss(once, X, None, S, key(2), noise=noise)

    for noise in (None, Z):
        found = grad(loss)(theta, noise)
        direction = ops.normal(key(8), dtype="float64", shape=theta.shape)
        h = 1e-5
        slope = (float(loss(theta + h * direction, noise)) - float(loss(theta - h * direction, noise))) / (2 * h)
        assert float(np.sum(found * direction)) == pytest.approx(slope, rel=1e-7)
    given = network(theta, objective_input(objective), S * 0, None, np.zeros((N, D)))
    twice = grad(lambda matrix: objective.loss(partial(network, matrix), X, None, S, key(2)))(theta)
    np.testing.assert_allclose(twice, grad(loss)(theta), rtol=1e-10)  # the first pass is a constant


def test_self_conditioning_shows_the_first_estimate_to_a_share_of_the_samples():
    for prediction, form in COMBINATIONS:
        seen = []
        plain = spoken(prediction, form)

        def network(inputs, told, labels, previous, plain=plain, seen=seen):
            seen.append(previous)
            return plain(inputs, told, labels)

        Objective(prediction, form=form, self_conditioning=0.5).loss(network, X, None, S, key(2))
        shown = ops.uniform(fold_in(key(2), 1), dtype="float64", shape=(N,)) < 0.5
        assert 0 < shown.sum() < N
        np.testing.assert_array_equal(seen[0], 0)
        np.testing.assert_allclose(seen[1], shown[:, None] * denoiser(X + S[:, None] * Z, S), rtol=1e-6, atol=1e-9)
    calls = []
    never = Objective("v", self_conditioning=0.0)
    never.loss(lambda x, t, y, previous: calls.append(1) or x, X, None, S, key(2))
    assert len(calls) == 1
    with pytest.raises(ValueError, match="self_conditioning must be a share"):
        Objective("v", self_conditioning=1.5)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow", "edm"])
@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
def test_the_predictor_shows_the_network_what_training_did(prediction, form):
    objective = Objective(prediction, form=form)
    alpha = {"ve": 1.0, "vp": 2**-0.5, "flow": 0.5}[form]  # level 1
    seen = []
    network = lambda x, told, labels: seen.append((x, told)) or x
    objective.losses(network, X, None, np.ones(N), key(2))
    objective.predictor(network)(alpha * (X + Z), alpha)
    np.testing.assert_allclose(seen[1][0], seen[0][0], rtol=1e-12)
    np.testing.assert_allclose(seen[1][1], 0, atol=1e-15)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "edm"])
def test_a_self_conditioned_run_carries_its_estimate(prediction):
    """The network is shown what it said before as D: nothing at first, then the last denoised sample."""
    objective, shown = Objective(prediction, form="vp", self_conditioning=0.5), []
    what = Edm() if prediction == "edm" else prediction

    def network(inputs, told, labels, estimate):
        shown.append(estimate)
        s = float(np.exp(4 * told[0]))
        alpha, noisy = (1 + s**2) ** -0.5, X + s * Z
        a_x, a_p = conversion(what, alpha, alpha * s)
        return (denoiser(noisy, np.full(N, s)) - a_x * alpha * noisy) / a_p

    predict = objective.predictor(network)
    for level in (2.0, 0.5):
        alpha = (1 + level**2) ** -0.5
        predict(alpha * (X + level * Z), alpha * level)
    np.testing.assert_array_equal(shown[0], 0)
    np.testing.assert_allclose(shown[1], denoiser(X + 2.0 * Z, np.full(N, 2.0)), rtol=1e-6, atol=1e-9)


def test_float32_keeps_its_type_and_extreme_levels_their_meaning():
    x = X.astype(np.float32)
    levels = np.array([1e-5, 1e-3, 1.0, 1e3, 1e9, 2.0**53])
    network = lambda inputs, told, labels: inputs * np.float32(0.5)
    for prediction in ("epsilon", "v", "flow", "edm"):
        losses = Objective(prediction, form="flow", weighting=None).losses(network, x, None, levels, key(2))
        assert losses.dtype == np.float32 and np.isfinite(losses).all()


def test_the_level_without_data_is_noise_alone():
    table = np.array([0.1, 1.0, np.inf])  # zero terminal signal-to-noise ratio
    objective = Objective("v", weighting="snr_plus_one", told=lambda s: np.searchsorted(table, s))
    seen = []
    network = lambda x, told, labels: seen.append((x, told)) or x
    losses = objective.losses(network, X, None, table[[2, 2, 2, 1, 0, 2]], key(2))
    inputs, told = seen[0]
    assert told.tolist() == [2, 2, 2, 1, 0, 2]
    np.testing.assert_allclose(inputs[:3], Z[:3], rtol=1e-12)
    np.testing.assert_allclose(losses[:3], np.mean((Z + X) ** 2, axis=1)[:3], rtol=1e-12)  # v = -data there
    terms = variational_terms(-X, X * 0, X, np.full(N, 2), table, key(2), prediction="v")
    assert np.isfinite(terms).all()
    with pytest.raises(ValueError, match=r"levels\[0\] = inf"):
        Objective("denoised", form="ve").losses(network, X, None, S * np.inf, key(2))


# ---- levels --------------------------------------------------------------------------------------------------------


def quantile_error(levels, cdf):
    """The largest distance between the distribution of levels and a given one."""
    ranks = (np.arange(len(levels)) + 0.5) / len(levels)
    return float(np.abs(cdf(np.sort(levels)) - ranks).max())


def normal_cdf(z):
    return 0.5 * (1 + ops.erf(np.asarray(z) / np.sqrt(2)))


def test_levels_follow_their_laws():
    n, bound = 20000, 1.63 / np.sqrt(20000)  # of Kolmogorov's statistic, passed by 99 of 100 keys
    time = lambda s: s / (1 + s)
    assert quantile_error(uniform(key(1), n), time) < bound
    np.testing.assert_allclose(np.diff(np.sort(time(uniform(key(2), 50, even=True)))), 1 / 50)
    assert quantile_error(uniform(key(3), n, level=lambda t: t**2), np.sqrt) < bound
    assert quantile_error(lognormal(key(4), n, mean=0.3), lambda s: normal_cdf((np.log(s) - 0.3) / 1.2)) < bound
    logit = lambda s: normal_cdf((np.log(s) - 0.5) / 2.0)
    assert quantile_error(logit_normal(key(5), n, mean=0.5, std=2.0), logit) < bound
    same = logit_normal(key(5), 9, mean=0.5, std=2.0, level=lambda t: flow_level(t))
    np.testing.assert_allclose(same, logit_normal(key(5), 9, mean=0.5, std=2.0), rtol=1e-9)
    u = np.linspace(0, 1, 4001)
    for scale in (-1.0, 0.0, 1.29, 1.75):
        t = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        assert quantile_error(mode(key(6), n, scale=scale), lambda s, t=t: np.interp(time(s), t[::-1], u)) < bound
    counts = np.bincount((uniform(key(7), n, level=np.arange(1.0, 11.0)) - 1).astype(int), minlength=10)
    assert np.abs(counts / n - 0.1).max() < 0.01
    for draw in (uniform, lognormal, logit_normal, mode):
        assert draw(key(1), 0).shape == (0,)
        assert (draw(key(1), 9) == draw(key(1), 9)).all() and (draw(key(1), 9) != draw(key(2), 9)).all()


def test_importance_sampling_is_unbiased_and_has_less_variance():
    sampler = ImportanceSampler(bins=8, history=4)
    loss = lambda s: (s / (1 + s)) ** 6
    levels, weights, bins = sampler.draw(key(1), 64)
    assert (weights == 1).all()
    for k in range(8):  # the last four have the root mean square of the loss in the middle of the bin
        t = (k + 0.5) / 8
        sampler.update(np.full(7, k), t**6 * np.array([9, 9, 9, 1, 1, 1, 1] if k % 2 else [9, 9, 9, 0, 0, 0, 2]))
    p = sampler.probabilities()
    wanted = ((np.arange(8) + 0.5) / 8) ** 6
    np.testing.assert_allclose(p, 0.999 * wanted / wanted.sum() + 0.001 / 8, rtol=1e-12)
    levels, weights, bins = sampler.draw(key(2), 40000)
    np.testing.assert_allclose(np.bincount(bins, minlength=8) / 40000, p, atol=0.008)
    assert (np.floor(levels / (1 + levels) * 8).astype(int) == bins).all()
    np.testing.assert_allclose(weights, 1 / (8 * p[bins]))
    weighted, plain = weights * loss(levels), loss(uniform(key(3), 40000))
    assert weighted.mean() == pytest.approx(1 / 7, rel=0.02)  # the integral of t^6
    assert weighted.std() < 0.6 * plain.std()
    objective = Objective("denoised", form="flow", weighting="constant")
    network = lambda x, told, labels: x
    each = objective.losses(network, X, None, S, key(2))
    total = objective.loss(network, X, None, S, key(2), sample_weight=np.arange(N))
    assert float(total) == pytest.approx(np.mean(each * np.arange(N)))

    again = ImportanceSampler(bins=8, history=4)
    again.load({name: value.copy() for name, value in sampler.state.items()})
    np.testing.assert_array_equal(again.draw(key(5), 9)[0], sampler.draw(key(5), 9)[0])
    table = ImportanceSampler(level=[1.0, 2.0, 4.0])
    levels, _, bins = table.draw(key(1), 50)
    np.testing.assert_array_equal(levels, np.array([1.0, 2.0, 4.0])[bins])
    table.update([0, 2], [np.nan, 1.0])
    assert table.counts.tolist() == [0, 0, 1]


# ---- learned parts -------------------------------------------------------------------------------------------------


def test_learned_uncertainty_finds_the_size_of_the_loss():
    losses = np.array([0.1, 1.0, 20.0])
    at = np.log(losses)
    assert np.abs(grad(lambda u: uncertain(losses, u))(at)).max() < 1e-15
    u = np.array([0.3, -0.2, 1.0])
    np.testing.assert_allclose(grad(lambda u: uncertain(losses, u))(u), (1 - losses * np.exp(-u)) / 3)
    np.testing.assert_allclose(grad(lambda v: uncertain(v, u))(losses), np.exp(-u) / 3)
    module = Uncertainty(Stream(0), features=8)
    told = np.linspace(-1, 1, 7, dtype=np.float32)
    np.testing.assert_array_equal(module(told), np.zeros(7, np.float32))
    value, slopes = nn.value_and_grad(lambda m: uncertain(told * told, m(told)))(module)
    assert float(value) == pytest.approx(float(np.mean(told**2)), rel=1e-6)
    assert slopes[1] == pytest.approx(np.mean(1 - told**2), rel=1e-5)


TABLE = np.array([0.02, 0.1, 0.5, 2.0, 9.0])


def posterior(i, data, noisy, d):
    """In x_{i-1} = alpha data + ... of abar = 1 / (1 + s^2): mean for data, mean for d, posterior variance, beta."""
    abar = 1 / (1 + TABLE**2)
    before = abar[i - 1] if i else 1.0
    beta = 1 - abar[i] / before
    x_t = np.sqrt(abar[i]) * noisy
    mean = lambda x0: (
        np.sqrt(before) * beta / (1 - abar[i]) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - abar[i]) * x_t
    )
    clipped = (1 - abar[0]) / (1 - abar[1]) * (1 - abar[1] / abar[0])
    small = beta * (1 - before) / (1 - abar[i]) if i else clipped
    return mean(data), mean(d), small, beta


@pytest.mark.parametrize(("prediction", "form"), [("epsilon", "vp"), ("v", "vp"), ("flow", "flow"), ("denoised", "ve")])
def test_variational_terms_are_those_of_the_discrete_process(prediction, form):
    index = np.array([0, 1, 2, 3, 4, 0])
    s = TABLE[index]
    goal = target(prediction, s, form=form)
    d = denoiser(X + s[:, None] * Z, s)
    said = (d - X) / goal.gain[:, None] + goal.b_x[:, None] * X + goal.b_z[:, None] * Z
    values = ops.uniform(key(4), dtype="float64", shape=(N, D)) * 2 - 1
    found = variational_terms(said, values, X, index, TABLE, key(2), prediction=prediction, form=form)
    for row, i in enumerate(index):
        wanted, mean, small, beta = posterior(i, X[row], X[row] + s[row] * Z[row], d[row])
        v = np.exp((1 + values[row]) / 2 * np.log(beta) + (1 - values[row]) / 2 * np.log(small))
        kl = 0.5 * (np.log(v / small) + small / v + (wanted - mean) ** 2 / v - 1)
        nll = 0.5 * (np.log(2 * np.pi * v) + (X[row] - mean) ** 2 / v)
        assert float(found[row]) == pytest.approx(np.mean(kl if i else nll), rel=1e-8), i
        if i == 0:
            cdf = lambda at: normal_cdf(at / np.sqrt(v))
            bins = -np.log(np.maximum(cdf(X[row] - mean + 0.1) - cdf(X[row] - mean - 0.1), 1e-12))
            binned = variational_terms(said, values, X, index, TABLE, key(2), prediction=prediction, form=form, bin=0.2)
            assert float(binned[row]) == pytest.approx(np.mean(bins), rel=1e-6)
    x = np.full((1, 1), 1.0)  # the outermost bin has no end: far beyond it is certain
    beyond = variational_terms(
        np.full((1, 1), 5.0), np.zeros((1, 1)), x, np.zeros(1, int), TABLE, key(2), prediction="denoised", bin=0.2
    )
    assert float(beyond[0]) == pytest.approx(0, abs=1e-9)


def test_the_hybrid_loss_trains_the_prediction_by_one_term_and_the_variance_by_the_other():
    objective, index = Objective("epsilon"), np.array([0, 1, 2, 3, 4, 4])
    theta = np.array([0.3, -0.4])

    def loss(theta):
        a, b = (ops.slice_axis(theta, start=i, stop=i + 1) for i in (0, 1))
        network = lambda x, told, labels: (ops.mul(x, a), ops.mul(x, b))
        return hybrid_loss(objective, network, X, None, index, TABLE, key(2), share=0.1)

    value, found = value_and_grad(loss)(theta)
    h = 1e-6
    plain = lambda a: float(objective.loss(lambda x, t, y: x * a, X, None, TABLE[index], key(2)))
    first = (plain(0.3 + h) - plain(0.3 - h)) / (2 * h)
    move = np.array([0, h])
    second = (float(loss(theta + move)) - float(loss(theta - move))) / (2 * h)
    np.testing.assert_allclose(found, [first, second], rtol=1e-6)
    said = ops.q_sample(X, *(np.ascontiguousarray(c) for c in target("epsilon", TABLE[index])[:2]), key(2))
    terms = variational_terms(said * 0.3, said * -0.4, X, index, TABLE, key(2))
    assert float(value) == pytest.approx(plain(0.3) + 0.1 * 5 * np.mean(terms))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Objective("noise"), "prediction must be one of"),
        (lambda: Objective("v", form="sub"), "form must be one of"),
        (lambda: Objective("v", times="never"), "times must be one of uniform"),
        (lambda: Objective("v", weighting="heavy"), "weighting must be one of constant"),
        (lambda: Objective("v").losses(None, X, None, S * np.nan, key(1)), r"levels\[0\] = nan"),
        (lambda: Objective("v").losses(None, X, None, 0 * S, key(1)), r"levels\[0\] = 0.0"),
        (lambda: Objective("v").losses(None, X, None, S[:2], key(1)), "6 samples and there are 2 levels"),
        (lambda: Objective("v").losses(None, X, None, S, None, noise=Z[:2]), "noise must have x's shape"),
        (lambda: Objective("v", weighting=lambda s: 1.0).weight(S), "must return 6 numbers"),
        (lambda: mode(key(1), 3, scale=2.0), "scale must lie in"),
        (lambda: lognormal(key(1), 3, std=-1.0), "std must be at least 0"),
        (lambda: uniform(key(1), -1), "n must be at least 0"),
        (lambda: w.min_snr(S, gamma=0.0), "gamma must be positive"),
        (lambda: w.soft_truncation(S, low=2.0, high=1.0), "low must be below high"),
        (lambda: ImportanceSampler(bins=0), "must be at least 1"),
        (lambda: ImportanceSampler(level=[1.0], bins=3), "as many bins"),
        (lambda: ImportanceSampler(bins=2).update([2], [1.0]), "bins must lie in 0 ... 1"),
        (lambda: variational_terms(X, X, X, np.full(N, 9), TABLE, key(1)), "index must lie in 0 ... 4"),
        (lambda: variational_terms(X, X, X, np.zeros(N), TABLE, key(1)), "integers"),
        (lambda: variational_terms(X, X, X, np.zeros(N, int), TABLE[::-1], key(1)), "rise strictly"),
        (lambda: hybrid_loss(Objective("edm"), None, X, None, np.zeros(N, int), TABLE, key(1)), "named prediction"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
