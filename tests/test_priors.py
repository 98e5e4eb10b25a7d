"""p(z): densities against their definition in float64, gradients in everything learned, draws that fit the density.

Seen to fail: with the squares taken apart in float32; without 1/k; with weights that do not add up to one; with a
variance for a deviation; with draws of equal weights; with pseudo-inputs shared with the caller, or without their upper
bound; with means in place of log-variances; with a column of ones that no op made, in the gradient of logsumexp.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant import nn, ops, optim
from generant.autograd import grad
from generant.models.priors import (
    MixturePrior,
    StandardNormal,
    VampPrior,
    gaussian_log_prob,
    mixture_log_prob,
)
from generant.random import Stream, key
from generant.recording import record


def exact(z, mu, logvar, logits):
    """log sum_k of weighted densities, in long double."""
    z, mu, logvar, logits = (np.asarray(a, np.longdouble) for a in (z, mu, logvar, logits))
    square = (z[:, None] - mu) ** 2 / np.exp(logvar)
    each = logits - np.log(np.exp(logits).sum()) - 0.5 * (square + logvar + math.log(2 * math.pi)).sum(-1)
    top = each.max(1, keepdims=True)
    return (top[:, 0] + np.log(np.exp(each - top).sum(1))).astype(np.float64)


class Encoder(nn.Module):
    """x (k, 3) -> mu, logvar (k, 2)."""

    def __init__(self, dtype: str = "float64") -> None:
        stream = Stream(2)
        self.mu, self.logvar = (nn.Linear(3, 2, stream, activation="tanh", dtype=dtype) for _ in range(2))

    def __call__(self, x):
        return self.mu(x), self.logvar(x)


def mixture(d=2, k=4):
    p = MixturePrior(d, k, Stream(1), dtype="float64")
    rng = np.random.default_rng(0)
    p.logvar += rng.standard_normal((k, d))
    p.logits += rng.standard_normal(k)
    return p


def test_densities_are_their_definition(rng):
    z, mu, logvar = rng.standard_normal((3, 6, 2))
    zeros = np.zeros((1, 2))
    np.testing.assert_allclose(StandardNormal(2).log_prob(z), exact(z, zeros, zeros, [0]), rtol=1e-12)
    want = [exact(z[[i]], mu[[i]], logvar[[i]], [0])[0] for i in range(6)]
    np.testing.assert_allclose(gaussian_log_prob(z, mu, logvar), want, rtol=1e-12)
    p = mixture()
    np.testing.assert_allclose(p.log_prob(z), exact(z, p.mu, p.logvar, p.logits), rtol=1e-12)
    encode, x = Encoder(), rng.standard_normal((5, 3))
    np.testing.assert_allclose(VampPrior(x).log_prob(z, encode), exact(z, *encode(x), np.zeros(5)), rtol=1e-12)
    bounded = VampPrior(3 * x, low=0.0, high=1.0)
    want = exact(z, *encode(np.clip(3 * x, 0, 1)), np.zeros(5))
    np.testing.assert_allclose(bounded.log_prob(z, encode), want, rtol=1e-12)


def test_a_mixture_integrates_to_one():
    p = mixture(d=1)
    z = np.linspace(-30, 30, 3001)[:, None]
    assert np.exp(p.log_prob(z)).sum() * (z[1, 0] - z[0, 0]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("offset, logvar", [(0.0, 0.0), (30.0, -12.0), (3.0, -8.0), (0.0, 10.0)])
def test_narrow_components_far_from_zero_keep_their_digits_in_float32(offset, logvar, rng):
    """The squares taken apart would cancel in float32: 30^2 exp(12) is 1.5e8, the exponents are of order 1."""
    mu = (offset + rng.standard_normal((5, 8))).astype(np.float32)
    z = (mu[[0, 3, 4]] + math.exp(logvar / 2) * rng.standard_normal((3, 8))).astype(np.float32)
    logvars = np.full((5, 8), logvar, np.float32)
    got = mixture_log_prob(z, mu, logvars)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact(z, mu, logvars, np.zeros(5)), rtol=1e-6)
    g = grad(lambda z: ops.sum(mixture_log_prob(z, mu, logvars)))(z)
    if logvar < 0:  # one component each: the gradient is that of a Gaussian
        want = (mu[[0, 3, 4]].astype(np.float64) - z) * math.exp(-logvar)
        np.testing.assert_allclose(g, want, rtol=1e-5, atol=1e-5 * abs(want).max())


def test_latents_beyond_all_components_are_no_nan():
    z = np.full((1, 2), 1e4, np.float32)
    p = MixturePrior(2, 3, Stream(0))
    value, g = p.log_prob(z), grad(lambda z: ops.sum(p.log_prob(z)))(z)
    assert value == pytest.approx(-1e8, rel=1e-3) and np.allclose(g, -1e4, rtol=1e-3)


class Both(nn.Module):
    """A prior and the encoder that it may ask."""

    def __init__(self, prior) -> None:
        self.prior, self.encoder = prior, Encoder()

    def log_prob(self, z):
        return self.prior.log_prob(z, self.encoder)


@pytest.mark.parametrize("prior", [mixture(), VampPrior(np.random.default_rng(3).standard_normal((4, 3)))])
def test_gradients_in_all_that_is_learned(prior, rng):
    model, z, weight = Both(prior), rng.standard_normal((6, 2)), rng.standard_normal(6)
    loss = lambda model: ops.sum(ops.mul(model.log_prob(z), weight))
    _, grads = nn.value_and_grad(loss)(model)
    for (name, p), g in zip(nn.named_parameters(model).items(), grads, strict=True):
        if isinstance(prior, VampPrior) or name.startswith("prior"):
            assert abs(g).max() > 1e-3, name
        v, keep, h = rng.standard_normal(p.shape), p.copy(), 1e-6
        p += h * v
        up = loss(model)
        p[...] = keep - h * v
        down = loss(model)
        p[...] = keep
        assert (g * v).sum() == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-8), name
    v, h = rng.standard_normal(z.shape), 1e-6
    slope = lambda z: ops.sum(ops.mul(grad(lambda z: ops.sum(ops.mul(model.log_prob(z), weight)))(z), v))
    second = (slope(z + h * v) - slope(z - h * v)) / (2 * h)
    assert (grad(slope)(z) * v).sum() == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize(
    "prior", [StandardNormal(2), MixturePrior(2, 5, Stream(3)), VampPrior(np.ones((4, 3), np.float32), low=0.0)]
)
def test_a_training_step_can_be_recorded(prior, rng):
    """`record` compares its replays with the step; a density that made arrays of its own would be refused."""
    network = Both(prior)
    network.encoder = Encoder("float32")
    learner = nn.Learner(network, lambda p: optim.Adam(p, lr=1e-2))
    learner.prepare(1e-2)

    def step(state, x, noise):
        def loss(model):
            mu, logvar = model.encoder(x)
            z = mu + ops.exp(0.5 * logvar) * noise
            return ops.mean(gaussian_log_prob(z, mu, logvar) - model.log_prob(z))

        value, gradients = nn.value_and_grad(loss)(learner.network(state))
        learner.update(state, gradients)
        return value

    run = record(step, learner.state, check=2)
    x, noise = (rng.standard_normal((8, d)).astype(np.float32) for d in (3, 2))
    losses = [float(run(x, noise)) for _ in range(5)]
    assert sorted(losses, reverse=True) == losses and losses[4] < losses[0]


def test_draws_fit_the_density():
    """The mean of log p over draws is minus the entropy, and moments are those of the mixture."""
    n, p = 20000, mixture()
    z = p.sample(key(5), n)
    assert z.shape == (n, 2) and z.dtype == np.float64
    weight = np.exp(p.logits) / np.exp(p.logits).sum()
    mean = weight @ p.mu
    variance = weight @ (np.exp(p.logvar) + p.mu**2) - mean**2
    assert (abs(z.mean(0) - mean) < 4.5 * np.sqrt(variance / n)).all()
    np.testing.assert_allclose(z.var(0), variance, rtol=0.06)
    grid = np.stack(np.meshgrid(*[np.linspace(-10, 10, 121)] * 2), -1).reshape(-1, 2)
    density = np.exp(p.log_prob(grid))
    assert p.log_prob(z).mean() == pytest.approx((density * np.log(density)).sum() / density.sum(), abs=0.05)
    np.testing.assert_array_equal(p.sample(key(5), 37), z[:37])
    assert (p.sample(key(6), n) != z).any(1).all()


def test_the_other_draws():
    z = StandardNormal(3).sample(key(1), 500)
    assert z.shape == (500, 3) and z.dtype == np.float32 and abs(z.mean(0)).max() < 0.2
    narrow = lambda x: (x[:, :2], np.full((len(x), 2), -20.0))
    x = np.arange(12.0).reshape(4, 3)
    z = VampPrior(x).sample(key(2), 400, narrow)
    nearest = abs(z[:, None] - x[:, :2]).sum(-1)
    assert nearest.min(1).max() < 1e-3 and (np.bincount(nearest.argmin(1)) > 60).all()


def test_pseudo_inputs_are_a_copy_and_the_encoder_is_needed():
    x = np.ones((2, 3))
    p = VampPrior(x)
    p.pseudo_inputs += 1
    assert (x == 1).all()
    with pytest.raises(ValueError, match="VampPrior: encode is None"):
        p.log_prob(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="MixturePrior: k must be at least 1, got 0"):
        MixturePrior(2, 0, Stream(0))
