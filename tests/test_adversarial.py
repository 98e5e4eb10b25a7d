"""Adversarial losses, penalties and the MMD as a loss, against their formulas in float64 and against differences.

Seen to fail: with the relativistic pair exchanged, without the constant under the root of |g|, with u mixing fake into
real, with the MMD's cross term halved, with the diagonals counted.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import nn, ops
from generant.autograd import grad
from generant.models import adversarial, moment_matching
from generant.random import Stream

LOSSES = sorted(adversarial.LOSSES)


def logits(n: int, seed: int, dtype: str = "float64") -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(n)).astype(dtype)


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


FORMULAS = {
    "relativistic": (lambda r, f: -log_sigmoid(r - f).mean(), lambda r, f: -log_sigmoid(f - r).mean()),
    "non_saturating": (
        lambda r, f: -log_sigmoid(r).mean() - np.log1p(-1 / (1 + np.exp(-f))).mean(),
        lambda r, f: -log_sigmoid(f).mean(),
    ),
    "least_squares": (
        lambda r, f: ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2, lambda r, f: ((f - 1) ** 2).mean() / 2
    ),
    "hinge": (
        lambda r, f: np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(), lambda r, f: -f.mean()
    ),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-6)])
def test_losses_are_their_formulas(name, dtype, tolerance):
    real, fake = logits(13, 0, dtype), logits(13, 1, dtype)
    loss, (of_d, of_g) = adversarial.LOSSES[name], FORMULAS[name]
    for got, want in (
        (loss.discriminator(real, fake), of_d(real.astype(float), fake.astype(float))),
        (loss.generator(fake, real), of_g(real.astype(float), fake.astype(float))),
    ):
        assert got.shape == () and got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_the_players_pull_fake_logits_apart(name):
    real, fake, loss = logits(9, 0), logits(9, 1), adversarial.LOSSES[name]
    down = grad(lambda f: loss.discriminator(real, f))(fake)
    up = grad(lambda f: loss.generator(f, real))(fake)
    assert (down * up <= 0).all() or name == "least_squares"  # which draws fakes to 0 and to 1
    assert down.any() and up.any()
    if not loss.paired:
        assert loss.generator(fake) == loss.generator(fake, real)


def test_logits_of_any_size_keep_losses_finite():
    huge = np.array([-1e30, 1e30, 0.0])
    for name in ("relativistic", "non_saturating"):
        loss = adversarial.LOSSES[name]
        assert np.isfinite(loss.discriminator(huge, huge[::-1].copy()))
        assert np.isfinite(grad(lambda f, loss=loss: loss.generator(f, huge))(huge[::-1].copy())).all()


def test_pairs_are_needed_for_the_relativistic_loss():
    with pytest.raises(ValueError, match=r"relativistic: real and fake logits come in pairs, got shapes"):
        adversarial.relativistic_discriminator(logits(4, 0), logits(1, 1))


# ---- penalties ------------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """softplus(x W + b) v, whose gradient is known; labels add to the value, and to the slope by a product."""

    def __init__(self, d: int) -> None:
        stream = Stream(1)
        self.first = nn.Linear(d, 5, stream, activation="softplus", dtype="float64")
        self.last = nn.Linear(5, 1, stream, dtype="float64")
        self.scale = nn.Embedding(3, 1, stream, dtype="float64")

    def __call__(self, x, labels=None):
        h = self.last(self.first(ops.reshape(x, shape=(x.shape[0], -1))))
        return ops.reshape(h if labels is None else h * self.scale(labels), shape=(x.shape[0],))

    def slope(self, x, labels=None):
        z = x.reshape(len(x), -1) @ self.first.weight + self.first.bias
        g = (1 / (1 + np.exp(-z)) * self.last.weight[:, 0]) @ self.first.weight.T
        return g if labels is None else g * self.scale.table[labels]


def images(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 2, 3, 1))


PENALTIES = {
    "r1": lambda critic, labels: adversarial.r1(critic, images(4, 0), labels),
    "r2": lambda critic, labels: adversarial.r2(critic, images(4, 0), labels),
    "gp": lambda critic, labels: adversarial.gradient_penalty(
        critic, images(4, 0), images(4, 1), np.array([0.0, 0.3, 0.8, 1.0]), labels
    ),
    "gp0": lambda critic, labels: adversarial.gradient_penalty(
        critic, images(4, 0), images(4, 1), np.array([0.0, 0.3, 0.8, 1.0]), labels, center=0.0
    ),
}


@pytest.mark.parametrize("labels", [None, np.array([0, 2, 1, 1])], ids=["plain", "labels"])
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_means_of_squared_gradients(name, labels):
    critic, x = Critic(6), images(4, 0)
    if name.startswith("gp"):
        u = np.array([0.0, 0.3, 0.8, 1.0])[:, None, None, None]
        x = u * x + (1 - u) * images(4, 1)
    square = (critic.slope(x, labels) ** 2).sum(1)
    want = ((np.sqrt(square) - 1) ** 2).mean() if name == "gp" else square.mean()
    np.testing.assert_allclose(PENALTIES[name](critic, labels), want, rtol=1e-10)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_differentiable_in_the_weights(name):
    critic, labels = Critic(6), np.array([0, 2, 1, 1])
    _, grads = nn.value_and_grad(lambda c: PENALTIES[name](c, labels))(critic)
    for (path, p), g in zip(nn.named_parameters(critic).items(), grads, strict=True):
        direction, keep, h = np.random.default_rng(2).standard_normal(p.shape), p.copy(), 1e-6
        p += h * direction
        up = PENALTIES[name](critic, labels)
        p[...] = keep - h * direction
        down = PENALTIES[name](critic, labels)
        p[...] = keep
        np.testing.assert_allclose((g * direction).sum(), (up - down) / (2 * h), rtol=1e-6, atol=1e-9, err_msg=path)


def test_logits_come_with_the_penalty():
    critic, x = Critic(6), images(4, 0)
    values, penalty = adversarial.logits_and_penalty(critic, x)
    np.testing.assert_array_equal(values, critic(x))
    assert penalty == adversarial.r1(critic, x)


def test_a_constant_discriminator_has_finite_gradients():
    critic, x = Critic(6), images(4, 0)
    critic.last.weight[...] = 0
    value, grads = nn.value_and_grad(lambda c: adversarial.gradient_penalty(c, x, -x, np.full(4, 0.5)))(critic)
    np.testing.assert_allclose(value, 1, rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads)
    assert adversarial.r1(lambda x: ops.full_like(np.zeros(4), value=1.0), x) == 0


def test_gradient_penalty_names_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"gradient_penalty: real, fake .* must fit, got"):
        adversarial.gradient_penalty(Critic(6), images(4, 0), images(3, 0), np.zeros(4))


# ---- maximum mean discrepancy ---------------------------------------------------------------------------------------

MIXTURES = {"rational_quadratic": dict(bandwidths=(1.0, 2.0), alphas=(0.2, 1.5)), "rbf": dict(bandwidths=(0.5, 3.0))}


def kernel(x, y, kernel):
    s = ((x[:, None] - y[None]) ** 2).sum(-1)
    m = MIXTURES[kernel]
    if kernel == "rbf":
        return sum(np.exp(-s / (2 * h * h)) for h in m["bandwidths"])
    return sum((1 + s / (2 * a * h * h)) ** -a for h in m["bandwidths"] for a in m["alphas"])


def points(n: int, seed: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3)).astype(dtype)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-6)])
def test_mmd_loss_is_the_unbiased_estimate(name, dtype, tolerance):
    x, y = points(7, 0, dtype), points(5, 1, dtype) + np.ones(1, dtype)
    got = moment_matching.mmd_loss(x, y, kernel=name, **MIXTURES[name])

    def inside(x):
        k = kernel(x, x, name)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    x, y = x.astype(float), y.astype(float)
    assert got.dtype == dtype and got.shape == ()
    np.testing.assert_allclose(got, inside(x) + inside(y) - 2 * kernel(x, y, name).mean(), atol=tolerance)


@pytest.mark.parametrize("name", MIXTURES)
def test_witness_and_its_gradient(name):
    q, x, y, h = points(4, 2), points(7, 0), points(5, 1) + 1, 1e-6
    got = moment_matching.mmd_witness(q, x, y, kernel=name, **MIXTURES[name])
    np.testing.assert_allclose(got, kernel(q, y, name).mean(1) - kernel(q, x, name).mean(1), rtol=1e-10, atol=1e-12)

    def penalty(x):  # second order in the features, as in MMD-GAN
        critic = lambda q: moment_matching.mmd_witness(q, x, y, kernel=name, **MIXTURES[name])
        return adversarial.gradient_penalty(critic, q, q, np.zeros(4))

    direction = points(7, 3)
    slope = (penalty(x + h * direction) - penalty(x - h * direction)) / (2 * h)
    np.testing.assert_allclose((grad(penalty)(x) * direction).sum(), slope, rtol=1e-5)


def test_samples_that_descend_the_mmd_reach_the_data():
    x, y = points(32, 0), points(32, 1) + 4
    loss = lambda x: moment_matching.mmd_loss(x, y, bandwidths=(1.0, 4.0))
    before, step = loss(x), grad(loss)
    for _ in range(20):
        x = x - 20 * step(x)
    assert loss(x) < 0.05 * before


def test_mmd_names_what_is_wrong():
    with pytest.raises(ValueError, match="mmd_loss: both samples must have at least 2 rows, got 1 and 5"):
        moment_matching.mmd_loss(points(1, 0), points(5, 1))
    with pytest.raises(ValueError, match="mmd_loss: kernel must be 'rational_quadratic' or 'rbf', got 'energy'"):
        moment_matching.mmd_loss(points(4, 0), points(5, 1), kernel="energy")
    with pytest.raises(ValueError, match="mmd_loss: a mixture needs at least one bandwidth"):
        moment_matching.mmd_loss(points(4, 0), points(5, 1), bandwidths=())
