"""Likelihoods against closed forms: Gaussians and a mixture to 1e-6 nats, the variational bound against its limit.

Seen to fail: with the divergence of the wrong sign, with one weight of the last stage wrong, with the log-volume of
dequantisation for [0, 1], with the prior's mean left out, with the decoder's variance times 4,
with beta for the posterior's variance, with rows repeated for the trace.
"""

from __future__ import annotations

from math import log, pi

import numpy as np
import pytest

from generant import ops, random
from generant.diffusion.likelihood import bits_per_dim, dequantise, log_likelihood
from generant.diffusion.predictions import denoiser_of
from generant.diffusion.variational import gaussian_kl, variational_bound

LOW = 0.002


class Normal:
    """N(mean, cov) in d dimensions, its denoiser made of ops."""

    def __init__(self, d, seed=0):
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((d, d))
        self.cov, self.mean, self.x = a @ a.T / d + 0.1 * np.eye(d), rng.standard_normal(d), rng.standard_normal((4, d))
        self.values, self.vectors = np.linalg.eigh(self.cov)

    def denoiser(self, x, sigma):
        gain = (self.vectors * (self.values / (self.values + sigma**2))) @ self.vectors.T
        return ops.add(ops.matmul(ops.add(x, -self.mean), gain), self.mean)

    def divergence(self, x, sigma):
        return np.full(len(x), np.sum(self.values / (self.values + sigma**2)))

    def log_density(self, x, sigma):
        rest, cov = x - self.mean, self.cov + sigma**2 * np.eye(len(self.mean))
        return -0.5 * (np.einsum("ni,ij,nj->n", rest, np.linalg.inv(cov), rest) + np.linalg.slogdet(2 * pi * cov)[1])


CENTRES, SPREADS, SHARES = np.array([[-1.0, 0.5], [1.5, 0.0], [0.0, -1.0]]), np.array([0.3, 0.5, 0.2]), (0.5, 0.2, 0.3)


def mixture_logs(x, sigma):
    """log w_k + log N(x; m_k, (s_k^2 + sigma^2) I), (n, k)."""
    v = SPREADS**2 + sigma**2
    return np.log(SHARES) - ((x[:, None] - CENTRES) ** 2).sum(2) / (2 * v) - np.log(2 * pi * v)


def mixture_log_density(x, sigma):
    logs = mixture_logs(x, sigma)
    top = logs.max(1)
    return top + np.log(np.exp(logs - top[:, None]).sum(1))


def mixture_denoiser(x, sigma):
    v = SPREADS**2 + sigma**2
    square = ops.sum(ops.square(x), axis=1, keepdims=True)
    logs = ops.add(ops.mul(square, -0.5 / v), ops.matmul(x, np.ascontiguousarray((CENTRES / v[:, None]).T)))
    shares = ops.softmax(ops.add(logs, np.log(SHARES) - np.log(v) - (CENTRES**2).sum(1) / (2 * v)))
    gain = SPREADS**2 / v
    scaled = ops.mul(x, ops.matmul(shares, gain[:, None]))
    return ops.add(scaled, ops.matmul(shares, (1 - gain)[:, None] * CENTRES))


@pytest.mark.parametrize("d", [1, 2, 8])
def test_gaussians_to_a_millionth(d):
    data = Normal(d)
    exact = data.log_density(data.x, LOW)
    found = log_likelihood(data.denoiser, data.x, sigma_min=LOW, sigma_max=1e4)
    np.testing.assert_allclose(found.nats, exact, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.bits_per_dim, -exact / (d * log(2)), rtol=0, atol=1e-6)
    assert (found.standard_error == 0).all() and found.latent.shape == data.x.shape
    given = log_likelihood(
        data.denoiser, data.x, sigma_min=LOW, divergence=data.divergence, prior=lambda x: data.log_density(x, 80.0)
    )
    np.testing.assert_allclose(given.nats, exact, rtol=0, atol=1e-6)


def test_a_mixture_to_a_millionth():
    x = np.random.default_rng(1).standard_normal((6, 2))
    found = log_likelihood(
        mixture_denoiser, x, sigma_min=LOW, n_steps=150, prior=lambda x: mixture_log_density(x, 80.0)
    )
    np.testing.assert_allclose(found.nats, mixture_log_density(x, LOW), rtol=0, atol=1e-6)
    alone = log_likelihood(
        mixture_denoiser, x[2:3], sigma_min=LOW, n_steps=150, prior=lambda x: mixture_log_density(x, 80.0)
    )
    np.testing.assert_allclose(alone.nats, found.nats[2:3], rtol=0, atol=1e-12)  # whatever batch it is in


def test_a_denoiser_may_hold_a_label_for_every_row():
    """Two Gaussians by label, the exact trace and probes: the rows are never repeated."""
    c, m = np.array([[0.25], [1.0], [0.25]]), np.array([[3.0], [0.0], [-1.0]])
    x = m + np.array([[0.3, 0.1], [-1.0, 0.5], [0.0, 0.2]])

    def by_label(x, sigma):
        assert x.shape == (3, 2)
        return ops.add(ops.mul(ops.add(x, -m), c / (c + sigma**2)), m)

    exact = -(((x - m) ** 2).sum(1) / (2 * (c[:, 0] + LOW**2))) - np.log(2 * pi * (c[:, 0] + LOW**2))
    for options in ({}, {"trace": "hutchinson", "key": 1, "probes": 3}):
        found = log_likelihood(by_label, x, sigma_min=LOW, sigma_max=1e4, **options)
        np.testing.assert_allclose(found.nats, exact, rtol=0, atol=1e-6)


def test_order_is_five():
    x = np.random.default_rng(1).standard_normal((3, 2))
    prior = lambda x: mixture_log_density(x, 80.0)
    errors = [
        np.abs(log_likelihood(mixture_denoiser, x, sigma_min=0.05, n_steps=n, prior=prior).nats
               - mixture_log_density(x, 0.05)).max()
        for n in (24, 48)
    ]  # fmt: skip
    assert np.log2(errors[0] / errors[1]) > 4.5


def test_probes_have_the_error_they_say():
    data = Normal(8)
    exact = data.log_density(data.x, LOW)
    options = dict(sigma_min=LOW, n_steps=40, trace="hutchinson", prior=lambda x: data.log_density(x, 80.0))
    found = log_likelihood(data.denoiser, data.x, key=3, probes=64, **options)
    z = (found.nats - exact) / found.standard_error
    assert (np.abs(z) < 4).all() and (found.standard_error > 0.01).all() and z.std() > 0.05
    again = log_likelihood(data.denoiser, data.x[1:], key=random.split(3, 4)[1:], probes=64, **options)
    np.testing.assert_allclose(again.nats, found.nats[1:], rtol=0, atol=1e-9)
    assert np.isnan(log_likelihood(data.denoiser, data.x, key=3, **options).standard_error).all()


@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
@pytest.mark.parametrize("prediction", ["denoised", "epsilon", "v", "flow", "score"])
def test_networks_of_every_kind_are_denoisers(prediction, form):
    """The exact prediction of N(0, 1/4) data in every form gives the exact denoiser back."""
    c = 0.25

    def network(seen, sigma):
        alpha = {"ve": 1.0, "vp": np.sqrt(max(1 - sigma**2, 0)), "flow": 1 - sigma}[form]
        x = seen / alpha
        d = x * c / (c + (sigma / alpha) ** 2)
        eps = (seen - alpha * d) / sigma
        return {
            "denoised": d, "epsilon": eps, "v": alpha * eps - sigma * d, "flow": eps - d, "score": -eps / sigma,
        }[prediction]  # fmt: skip

    x = np.linspace(-2, 2, 5)[:, None]
    for level in (0.1, 1.0, 7.0):
        got = denoiser_of(network, prediction, form=form)(x, level)
        np.testing.assert_allclose(got, x * c / (c + level**2), rtol=1e-9)


def test_dequantised_images_in_one_call():
    """Data uniform on the 256 values have 8 bits; a model N(0, 1/3) of the dequantised pixels costs 8 + KL bits."""
    x = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)
    y, volume = dequantise(x, random.key(1), dtype="float64")
    assert y.min() >= -256 / 255 and y.max() < 256 / 255 and volume == pytest.approx(16 * log(2 / 255))
    np.testing.assert_array_equal(np.round((y + 1) * 127.5), x)
    c = 1 / 3
    model = lambda x, sigma: ops.affine(x, scale=c / (c + sigma**2))
    found = bits_per_dim(model, x, key=5, trace="hutchinson", sigma_data=c**0.5, n_steps=60)
    y = dequantise(x, random.fold_in(random.key(5), 0))[0].reshape(40, -1)
    exact = (-(y**2) / (2 * c) - 0.5 * log(2 * pi * c)).sum(1) + volume
    np.testing.assert_allclose(found.bits_per_dim, -exact / (16 * log(2)), rtol=0, atol=2e-3)
    assert found.bits_per_dim.mean() == pytest.approx(8 + (0.5 * log(2 * pi * c) + 0.5 - log(2)) / log(2), abs=0.05)


# ---- the bound ----


def levels(n: int) -> np.ndarray:
    return 1 / (1 + np.geomspace(1e-3, 1e3, n) ** 2)


def test_the_bound_approaches_the_likelihood():
    """Gaussian data, exact denoiser, variance beta: the gap falls to nothing as T grows."""
    s, x = 0.5, random.normal(3, (4000, 1), "float64") * 0.5
    model = lambda x, sigma: x * (s**2 / (s**2 + sigma**2))
    exact = np.mean(-0.5 * log(2 * pi * s**2) - x**2 / (2 * s**2))
    gaps = []
    for n in (25, 100, 400):
        bound = variational_bound(model, x, alphas_cumprod=levels(n), variance="fixed_large", key=1)
        np.testing.assert_allclose(bound.bits_per_dim, bound.prior + bound.terms.sum(0) + bound.decoder, rtol=1e-12)
        gaps.append(exact - bound.nats.mean())
    assert 0 < gaps[2] < gaps[1] < gaps[0] and gaps[2] < 0.03


def test_a_worse_denoiser_has_a_worse_bound_and_learned_variance_covers_the_fixed_ones():
    x = random.normal(3, (500, 2), "float64") * 0.5
    good = lambda x, sigma: x * (0.25 / (0.25 + sigma**2))
    bad = lambda x, sigma: x * (0.4 / (0.4 + sigma**2))
    both = [variational_bound(f, x, alphas_cumprod=levels(50), variance="fixed_large", key=1) for f in (good, bad)]
    assert both[0].nats.mean() > both[1].nats.mean() + 0.01
    for share, name in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        learned = lambda x, sigma, share=share: (good(x, sigma), np.full_like(x, share))
        fixed = variational_bound(good, x, alphas_cumprod=levels(50), variance=name, key=1)
        got = variational_bound(learned, x, alphas_cumprod=levels(50), variance="learned_range", key=1)
        np.testing.assert_allclose(got.bits_per_dim, fixed.bits_per_dim, rtol=1e-9)


def test_gaussian_kl_is_the_integral():
    grid = np.linspace(-12, 12, 20001)
    p = np.exp(-((grid - 0.3) ** 2) / (2 * 0.8)) / np.sqrt(2 * pi * 0.8)
    q = np.exp(-((grid + 0.5) ** 2) / (2 * 1.7)) / np.sqrt(2 * pi * 1.7)
    direct = np.sum(p * np.log(p / q)) * (grid[1] - grid[0])
    assert gaussian_kl(0.3, log(0.8), -0.5, log(1.7)) == pytest.approx(direct, rel=1e-6)


def test_discrete_decoder_is_a_distribution():
    """exp(-decoder) over the 256 values of one pixel adds up to 1, whatever the network says."""
    x = np.arange(256, dtype=np.uint8)[:, None]
    bound = variational_bound(
        lambda x, sigma: np.full_like(x, 0.2), x, alphas_cumprod=np.array([0.9, 0.5]), variance="fixed_large",
        key=np.repeat(random.split(1, 1), 256, axis=0),
    )  # fmt: skip
    assert np.exp2(-bound.decoder).sum() == pytest.approx(1, rel=1e-6)
    assert bits_per_dim(lambda x, s: x, x, method="bound", alphas_cumprod=levels(5), key=1).bits_per_dim.shape == (256,)


def test_continuous_decoder_has_its_neighbours_variance():
    """Ho et al. (2020): where the posterior's variance is 0, that of the step before serves."""
    x = np.array([[0.3, -1.0]])
    v = (1 - 0.9) / (1 - 0.5) * (1 - 0.5 / 0.9)
    bound = variational_bound(lambda x, sigma: np.full_like(x, 0.2), x, alphas_cumprod=[0.9, 0.5], key=1)
    nats = 0.5 * ((x - 0.2) ** 2 / v + log(2 * pi * v))
    np.testing.assert_allclose(bound.decoder, nats.mean(1) / log(2), rtol=1e-12)


X = np.ones((2, 3))


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: log_likelihood(lambda x, s: x, np.ones(3)), ValueError, r"x must be n samples .* got shape \(3,\)"),
    (lambda: log_likelihood(lambda x, s: x, X, sigma_min=0), ValueError, "0 < sigma_min < sigma_max"),
    (lambda: log_likelihood(lambda x, s: x, X * np.nan), ValueError, "NaN"),
    (lambda: log_likelihood(lambda x, s: x, X, n_steps=0), ValueError, "n_steps and probes must be at least 1"),
    (lambda: log_likelihood(lambda x, s: x, X, trace="skilling"), ValueError, "trace must be one of exact, hutchinson"),
    (lambda: log_likelihood(lambda x, s: x, X, trace="hutchinson"), ValueError, "key is None"),
    (lambda: log_likelihood(lambda x, s: np.zeros((2, 3)), X), TypeError, "depend on x"),
    (lambda: log_likelihood(ops.affine, X, prior=lambda x: 0.0, divergence=lambda x, s: 0), TypeError, "affine"),
    (lambda: variational_bound(lambda x, s: x, X, alphas_cumprod=[0.5, 0.9], key=1), ValueError, "falls strictly"),
    (lambda: variational_bound(lambda x, s: x, X, alphas_cumprod=[0.9, 0.5]), ValueError, "key is None"),
    (lambda: variational_bound(lambda x, s: x, X, alphas_cumprod=[0.9, 0.5], variance="x"), ValueError, "variance"),
    (lambda: dequantise(X, 1), ValueError, "integers in 0 ... 255, got float64"),
    (lambda: dequantise(np.array([[256]]), 1), ValueError, "from 256 to 256"),
    (lambda: bits_per_dim(lambda x, s: x, X, method="exact"), ValueError, "method must be flow or bound"),
    (lambda: bits_per_dim(lambda x, s: x, np.ones((1, 2), np.uint8)), ValueError, "key is None"),
])  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
