"""p(x | decoder output): each sums to one over all x, keeps its digits far out, and draws what it scores.

Seen to fail: without 2 pi; with the mass of an inner bin given to the outer ones; with the last level one too low; with
1 - exp(-t) as it stands; without the bound of log s; with a variance for a deviation; with gaussian columns that share
a variance; without the sum in the multinomial coefficient; with logits of a level, not of a feature, side by side; with
outputs that broadcast; with the mean half a bin off; with fractions as codes; with a draw below instead of up to the
cumulative probability.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from generant import nn, ops, optim
from generant.autograd import grad, value_and_grad
from generant.models.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    Likelihood,
    Mixed,
    Multinomial,
    draw_levels,
    likelihood,
)
from generant.random import Stream, key
from generant.recording import record

MIXED = ["gaussian", "gaussian", ("categorical", 3), "bernoulli", ("logistic", 5), "multinomial", "multinomial"]


def outputs(p, n, d, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal((n, p.n_outputs(d))).astype(dtype)


def every(*levels):
    return np.array(list(itertools.product(*[range(k) for k in levels])), np.float64)


def softclip(v):
    return np.log1p(np.exp(v + 12)) - 12


# ---- densities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p, support",
    [
        (Bernoulli(), every(2, 2, 2)),
        (Categorical(3), every(3, 3)),
        (DiscretisedLogistic(2), every(2, 2)),
        (DiscretisedLogistic(7), every(7, 7)),
        (Mixed([("categorical", 3), "bernoulli", ("logistic", 4)]), every(3, 2, 4)),
        (Multinomial(4), np.array([x for x in every(5, 5, 5) if x.sum() == 4])),
        (Mixed(["bernoulli", "multinomial", "multinomial"]), np.array([x for x in every(2, 3, 3) if x[1:].sum() == 2])),
    ],
)
def test_probabilities_add_up_to_one(p, support):
    d = support.shape[1]
    out = 2 * np.repeat(outputs(p, 1, d), len(support), 0)
    p.check("test", support)
    log_prob = p.log_prob(support, out) + p.log_constant(support)
    assert np.exp(log_prob).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("spec", ["gaussian", ("gaussian", 0.3), "gaussian_features", "bernoulli", ("logistic", 4)])
def test_cost_is_the_mean_of_what_log_prob_says(spec, rng):
    """Value and gradients in outputs, weights and learned variances, in float64."""
    p, x, weight = likelihood(spec, 3), rng.integers(0, 2, (6, 2, 3)).astype(np.float64), rng.random(6)
    if isinstance(getattr(p, "logvar", None), np.ndarray):
        p.logvar = p.logvar.astype(np.float64) - 0.7
    out = rng.standard_normal((6, 2, p.n_outputs(3)))
    plain = lambda p, out, w: ops.affine(ops.mean(ops.mul(p.log_prob(x, out), w)), scale=-1.0)
    fused = lambda p, out, w: p.cost(x, out, w)
    for at in (0, 1):
        one = lambda f: grad(lambda a: f(p, *([a, weight], [out, a])[at]))((out, weight)[at])
        found, want = one(fused), one(plain)
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-12)
    if nn.named_parameters(p):
        found, want = (nn.value_and_grad(f)(p, out, weight) for f in (fused, plain))
        assert float(found[0]) == pytest.approx(float(want[0]), rel=1e-9)
        np.testing.assert_allclose(found[1][0], want[1][0], rtol=1e-9)


def test_gaussian_is_its_formula(rng):
    x, mu = rng.standard_normal((2, 5, 3))
    for logvar in (np.array(0.3), np.array([-1.0, 0.5, 2.0])):
        v = np.broadcast_to(softclip(logvar), 3)
        want = -0.5 * (math.log(2 * math.pi) + v + (x - mu) ** 2 / np.exp(v)).sum(1)
        np.testing.assert_allclose(Gaussian(logvar).log_prob(x, mu), want, rtol=1e-12)
        np.testing.assert_allclose(Gaussian().log_prob(x, np.hstack([mu, 0 * mu + logvar])), want, rtol=1e-12)
    want = -0.5 * (math.log(2 * math.pi) + math.log(0.01) + (x - mu) ** 2 / 0.01).sum(1)
    np.testing.assert_allclose(likelihood(("gaussian", 0.1), 3).log_prob(x, mu), want, rtol=1e-6)
    np.testing.assert_allclose(Gaussian(np.array(-1e4)).log_prob(x, x), 3 * (6 - 0.5 * math.log(2 * math.pi)))


def test_learned_variances_get_gradients(rng):
    """The best shared variance is the mean squared error: there its gradient is zero."""
    x, mu = rng.standard_normal((2, 50, 3))
    mse = ((x - mu) ** 2).mean()
    p = Gaussian(np.array(math.log(mse)))
    p.logvar += math.log(mse) - softclip(p.logvar)
    _, (g,) = nn.value_and_grad(lambda p: ops.mean(p.log_prob(x, mu)))(p)
    assert abs(g) < 1e-8
    p.logvar -= 0.1
    assert nn.value_and_grad(lambda p: ops.mean(p.log_prob(x, mu)))(p)[1][0] > 0.1
    mixed = likelihood(MIXED, 7)
    assert {name: a.shape for name, a in nn.named_parameters(mixed).items()} == {"parts.0.logvar": (2,)}


def test_images_are_summed_over_all_axes(rng):
    x = rng.integers(0, 2, (2, 3, 4, 2)).astype(np.float64)
    for p in (Gaussian(np.zeros(2)), Gaussian(), Bernoulli(), Categorical(2), DiscretisedLogistic(4)):
        out = rng.standard_normal((2, 3, 4, p.n_outputs(2)))
        rows = p.log_prob(x.reshape(24, 2), out.reshape(24, -1))
        np.testing.assert_allclose(p.log_prob(x, out), rows.reshape(2, 12).sum(1), rtol=1e-12)


def test_mixed_columns_are_the_sum_of_their_parts(rng):
    p = likelihood(MIXED, 7)
    assert p.n_outputs(7) == 2 + 3 + 1 + 2 + 2 and p.sizes == (2, 1, 1, 1, 2)
    x = np.array([[0.3, -1.2, 2, 1, 4, 3, 1], [0.1, 0.7, 0, 0, 0, 2, 2]], np.float32)
    out = outputs(p, 2, 7, "float32")
    want = sum(
        part.log_prob(a, o)
        for part, a, o in zip(p.parts, np.split(x, [2, 3, 4, 5], 1), np.split(out, [2, 5, 6, 8], 1), strict=True)
    )
    np.testing.assert_allclose(p.log_prob(x, out), want, rtol=1e-6)
    np.testing.assert_allclose(np.exp(p.log_constant(x)), [4, 6])
    assert p.mean(out).shape == p.mode(out).shape == (2, 7)
    p.check("test", p.mode(out))


# ---- far out --------------------------------------------------------------------------------------------------------


def exact_logistic(k, levels, mu, log_s):
    """log P(x = k), the mass as the difference of the smaller tails, in long double."""
    mu, s, h = np.longdouble(mu), np.exp(np.longdouble(max(log_s, -7))), 1 / np.longdouble(levels - 1)
    y = 2 * k * h - 1
    a, b = (y + h - mu) / s, (y - h - mu) / s
    tail = lambda t: 1 / (1 + np.exp(-t))
    if a + b > 0:  # right of the middle: masses from the right
        a, b, k = -b, -a, levels - 1 - k
    if k == 0:
        return float(np.log(tail(a)))
    if k == levels - 1:
        return float(np.log1p(-tail(b)))
    return float(np.log(tail(a) - tail(b)))


@pytest.mark.parametrize("log_s", [-9.0, -7.0, -4.0, 0.0, 3.0])
@pytest.mark.parametrize("mu", [-5.0, -1.0, 0.1, 2.0])
def test_logistic_keeps_its_digits_in_float32(mu, log_s):
    p = DiscretisedLogistic(256)
    x = np.array([[0], [1], [100], [254], [255]], np.float32)
    out = np.tile(np.array([mu, log_s], np.float32), (5, 1))
    got = p.log_prob(x, out)
    for k, value in zip(x[:, 0], got, strict=True):
        want = exact_logistic(int(k), 256, np.float32(mu), log_s)
        assert value == pytest.approx(want, rel=2e-5, abs=2e-5)
    g = grad(lambda o: ops.sum(p.log_prob(x, o)))(out)
    assert np.isfinite(g).all()


def test_extreme_outputs_are_finite():
    one = np.ones((1, 1), np.float32)
    for p in (Bernoulli(), Categorical(2), DiscretisedLogistic(256), Gaussian(), Gaussian(np.zeros((), np.float32))):
        for scale in (1e3, -1e3):
            out = np.full((1, p.n_outputs(1)), scale, np.float32)
            out[0, 1:] *= -1
            out[0, 1:] = np.clip(out[0, 1:], -80, 80)
            value, g = value_and_grad(lambda o, p=p: ops.sum(p.log_prob(one, o)))(out)
            assert np.isfinite(value) and np.isfinite(g).all(), (p, scale)
    np.testing.assert_allclose(Bernoulli().log_prob(one, np.full((1, 1), -1e3, np.float32)), -1e3)


# ---- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["gaussian", "gaussian_features", "gaussian_outputs", "bernoulli", ("categorical", 4), "multinomial",
             ("logistic", 4), ["gaussian_outputs", ("categorical", 4), ("logistic", 4)]], ids=str
)  # fmt: skip
def test_first_and_second_derivatives(spec, rng):
    p = likelihood(spec, 3)
    for part in getattr(p, "parts", [p]):
        if getattr(part, "logvar", None) is not None:
            part.logvar = part.logvar.astype(np.float64) - 0.3
    x = rng.integers(0, 2 if spec == "bernoulli" else 4, (2, 3)).astype(np.float64)
    out, v = outputs(p, 2, 3), rng.standard_normal((2, p.n_outputs(3)))
    f = lambda o: ops.sum(ops.square(p.log_prob(x, o)))
    slope = lambda o: ops.sum(ops.mul(grad(f)(o), v))
    h = 1e-6
    assert (grad(f)(out) * v).sum() == pytest.approx((f(out + h * v) - f(out - h * v)) / (2 * h), rel=1e-6)
    second = (slope(out + h * v) - slope(out - h * v)) / (2 * h)
    assert (grad(slope)(out) * v).sum() == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("spec", ["gaussian_outputs", ("gaussian", 0.3), "multinomial", MIXED], ids=str)
def test_a_training_step_can_be_recorded(spec, rng):
    """`record` compares its replays with the step; a density that made arrays of its own would be refused."""
    network = nn.Module()
    network.p = likelihood(spec, 7)
    network.decoder = nn.Linear(3, network.p.n_outputs(7), Stream(0))
    learner = nn.Learner(network, lambda p: optim.Adam(p, lr=1e-2))
    learner.prepare(1e-2)

    def step(state, x, z):
        loss = lambda m: ops.affine(ops.mean(m.p.log_prob(x, m.decoder(z))), scale=-1.0)
        value, gradients = nn.value_and_grad(loss)(learner.network(state))
        learner.update(state, gradients)
        return value

    run = record(step, learner.state, check=2)
    x, z = rng.integers(0, 2, (8, 7)).astype(np.float32), rng.standard_normal((8, 3)).astype(np.float32)
    losses = [float(run(x, z)) for _ in range(5)]
    assert sorted(losses, reverse=True) == losses and losses[4] < losses[0]


# ---- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p, support",
    [
        (Bernoulli(), every(2, 2)),
        (Categorical(3), every(3, 3)),
        (DiscretisedLogistic(4), every(4, 4)),
        (Multinomial(3), np.array([x for x in every(4, 4, 4) if x.sum() == 3])),
        (Mixed(["bernoulli", ("categorical", 3)]), every(2, 3)),
    ],
)
def test_draws_come_as_often_as_scored(p, support):
    n, d = 20000, support.shape[1]
    out = outputs(p, 1, d, "float32")
    x = p.sample(key(3), np.repeat(out, n, 0))
    assert x.shape == (n, d) and x.dtype == np.float32
    each = np.repeat(out.astype(np.float64), len(support), 0)
    want = np.exp(p.log_prob(support, each) + p.log_constant(support))
    got = (x[:, None] == support).all(-1).mean(0)
    assert (abs(got - want) < 4.5 * np.sqrt(want * (1 - want) / n)).all()
    np.testing.assert_allclose(p.mean(out)[0], (want[:, None] * support).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(p.sample(key(3), np.repeat(out, n, 0)), x)
    assert (p.sample(key(4), np.repeat(out, n, 0)) != x).any()


@pytest.mark.parametrize("p", [Gaussian(np.array([-1.0, 1.0])), Gaussian()])
def test_gaussian_draws(p):
    n = 20000
    out = np.array([[1.0, -2.0, -1.0, 1.0]])[:, : p.n_outputs(2)]
    z = (p.sample(key(1), np.repeat(out, n, 0)) - [1, -2]) / np.exp([-0.5, 0.5])
    assert abs(z.mean(0)).max() < 4.5 / math.sqrt(n) and abs((z**2).mean(0) - 1).max() < 4.5 * math.sqrt(2 / n)
    np.testing.assert_array_equal(p.mean(out), [[1, -2]])


def test_modes_are_the_likeliest_data():
    for p, k in ((Bernoulli(), 2), (Categorical(4), 4), (DiscretisedLogistic(6), 6)):
        support = every(k, k)
        out = outputs(p, 1, 2, seed=5)
        best = support[p.log_prob(support, np.repeat(out, len(support), 0)).argmax()]
        np.testing.assert_array_equal(p.mode(out)[0], best)


def test_a_level_of_probability_zero_is_never_drawn():
    out = np.tile(np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32), (50000, 1))
    assert set(Categorical(5).sample(key(0), out)[:, 0]) == {1, 3}
    np.testing.assert_array_equal(draw_levels(np.array([0, 1 - 2.0**-53]), out[:2]), [1, 3])


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p, x, message",
    [
        (Bernoulli(), [[0.5, 1.5]], r"fit: x must hold numbers in 0 ... 1, got 1.5 at x\[0, 1\]"),
        (Categorical(3), [[0, 1], [3, 0]], r"fit: x must hold whole numbers 0 ... 2, got 3.0 at x\[1, 0\]"),
        (Categorical(3), [[0.5]], "whole numbers"),
        (DiscretisedLogistic(4), [[-1]], "whole numbers 0 ... 3, got -1"),
        (Multinomial(), [[-1, 2]], "counts of at least 0"),
        (Mixed(["bernoulli", ("categorical", 2)]), [[1, 2]], "fit: categorical columns 1 ... 1: x must hold whole"),
        (Mixed(["bernoulli", ("categorical", 2)]), [[1, 2, 3]], "2 columns are described, x has 3"),
    ],
)
def test_data_outside_the_support_are_refused(p, x, message):
    with pytest.raises(ValueError, match=message):
        p.check("fit", np.array(x, np.float64))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("normal", "unknown likelihood 'normal'; there are bernoulli"),
        ("categorical", "categorical takes a number"),
        (("bernoulli", 2), "unknown likelihood"),
        (("categorical", 1), "Categorical: k must be at least 2, got 1"),
        (("gaussian", 0), "sigma must lie in"),
        (["bernoulli"], "1 columns are described, x has 3"),
        ([], "columns is empty"),
    ],
)
def test_specs_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        likelihood(spec, 3)


def test_specs_may_come_from_json_and_outputs_must_fit():
    assert isinstance(likelihood(["categorical", 5], 3), Categorical)
    assert likelihood([["categorical", 5], "gaussian"], 2).n_outputs(2) == 6
    p = Bernoulli()
    assert likelihood(p, 3) is p and isinstance(p, Likelihood)
    with pytest.raises(ValueError, match=r"Categorical: out has shape \(2, 3\), wanted \(2, 15\) for x of \(2, 3\)"):
        likelihood(("categorical", 5), 3).log_prob(np.zeros((2, 3)), np.zeros((2, 3)))
    codes = np.array([[1, 0]], np.uint8)
    assert Categorical(2).log_prob(codes, np.zeros((1, 4), np.float32)) == pytest.approx(-2 * math.log(2), rel=1e-6)
