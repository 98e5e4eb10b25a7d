"""Gaussians, mixtures and finite data sets under noise against scipy, quadrature and differences, and what uses them.

Seen to fail: with a larger variance in the denoiser's ratio, the log-determinant doubled, the divergence without the
spread between components, the flow without its square root, the softmax at twice its scale, rounding left in the order
fit, the wrong rotation in W2, the moments' noise at 0.9 or the mean's part left in their other rows, and uneven levels
that were even; and for draws whose last bit depended on how many there were.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import random
from generant.diffusion.analytic import (
    Gaussian,
    GaussianMixture,
    convergence,
    fit_order,
    gaussian_w2,
    ideal_denoiser,
    moments,
)
from generant.diffusion.likelihood import log_likelihood
from generant.diffusion.plan import Plan, Stage, rescaled
from generant.diffusion.samplers import ddpm, dpmpp_sde, euler, euler_ancestral, flow_heun, heun, ipndm
from generant.diffusion.sampling import initial_noise, sample
from generant.diffusion.schedules import karras_sigmas

stats = pytest.importorskip("scipy.stats")
linalg = pytest.importorskip("scipy.linalg")


def covariance(d: int, seed: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((d, d))
    return a @ a.T / d + 0.05 * np.eye(d)


MIXTURE = GaussianMixture(
    [0.2, 0.5, 0.3], [[-1.0, 0.5], [1.5, 0.0], [0.0, -1.0]], [covariance(2, k) * 0.2 for k in range(3)]
)
NORMAL = Gaussian([0.5, -1.0, 2.0], covariance(3, 7))
SIGMAS = (0.002, 0.3, 5.0)


def points(data, sigma, n=6):
    z = np.random.default_rng(3).standard_normal((n, data.dim))
    return data.sample(1, n) + sigma * z


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_log_density_is_scipys(data, sigma):
    x = points(data, sigma)
    want = sum(
        w * stats.multivariate_normal(m, c + sigma**2 * np.eye(data.dim)).pdf(x)
        for w, m, c in zip(data.weights, data.means, data.covs, strict=True)
    )
    np.testing.assert_allclose(data.log_density(x, sigma), np.log(want), rtol=1e-12, atol=1e-12)


def differences(f, x, h):
    """Central differences, order 4: (d, ...) of f at x, along every axis."""
    steps = h * np.eye(x.shape[1])
    return np.stack([(8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h) for e in steps])


@pytest.mark.parametrize("data", [NORMAL, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_denoiser_and_divergence_are_derivatives(data, sigma):
    x = points(data, sigma)
    slope = differences(lambda y: data.log_density(y, sigma), x, 1e-3).T
    np.testing.assert_allclose(data.score(x, sigma), slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(data.denoiser(x, sigma), x + sigma**2 * data.score(x, sigma), rtol=1e-11, atol=1e-12)
    jacobian = differences(lambda y: data.denoiser(y, sigma), x, 1e-3)  # (d, n, d)
    np.testing.assert_allclose(data.divergence(x, sigma), np.einsum("ini->n", jacobian), rtol=1e-7)


def test_denoiser_is_the_conditional_mean():
    """By quadrature over the data, in one dimension."""
    data = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], [[[0.04]], [[0.25]]])
    grid = np.linspace(-8, 8, 20001)
    prior = np.exp(data.log_density(grid[:, None]))
    assert np.trapezoid(prior, grid) == pytest.approx(1, abs=1e-12)
    for sigma in (0.1, 1.0, 7.0):
        x = np.array([[-1.3], [0.0], [2.0]])
        joint = prior * np.exp(-((x - grid) ** 2) / (2 * sigma**2))
        want = (joint * grid).sum(1) / joint.sum(1)
        np.testing.assert_allclose(data.denoiser(x, sigma)[:, 0], want, rtol=1e-9)


def test_denoiser_far_from_all_data_is_finite():
    x = np.array([[1e4, -1e4]])
    assert np.isfinite(MIXTURE.log_density(x)).all() and np.isfinite(MIXTURE.denoiser(x, 0.01)).all()
    assert MIXTURE.denoiser(x.astype(np.float32), 0.5).dtype == np.float32


def test_samples_have_the_moments_and_do_not_depend_on_how_many():
    x = MIXTURE.sample(random.key(5), 40_000)
    mean = MIXTURE.weights @ MIXTURE.means
    rest = MIXTURE.means - mean
    cov = np.einsum("k,kij->ij", MIXTURE.weights, MIXTURE.covs + rest[:, :, None] * rest[:, None])
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(cov.max() / len(x)))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.03)
    np.testing.assert_array_equal(MIXTURE.sample(random.key(5), 7), x[:7])


def test_flow_solves_the_equation_and_carries_the_density():
    x, sigma, h = points(NORMAL, 2.0), 2.0, 1e-4
    slope = (NORMAL.flow(x, sigma, sigma + h) - NORMAL.flow(x, sigma, sigma - h)) / (2 * h)
    np.testing.assert_allclose(slope, (x - NORMAL.denoiser(x, sigma)) / sigma, rtol=1e-7, atol=1e-8)
    there = NORMAL.flow(x, 2.0, 0.0)
    np.testing.assert_allclose(NORMAL.flow(there, 0.0, 2.0), x, rtol=1e-12, atol=1e-12)
    ratio = NORMAL.log_density(there) - NORMAL.log_density(x, 2.0)  # one number: the map is affine
    shift = 0.5 * np.log(np.linalg.eigvalsh(NORMAL.cov) / (np.linalg.eigvalsh(NORMAL.cov) + 4)).sum()
    np.testing.assert_allclose(ratio, -shift, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ideal_denoiser_is_the_softmax_average(dtype):
    rng = np.random.default_rng(0)
    data, x = rng.standard_normal((50, 2, 3)), rng.standard_normal((7, 2, 3)).astype(dtype)
    denoiser = ideal_denoiser(data)
    for sigma in (0.2, 1.0, 40.0):
        squares = ((x[:, None].astype(float) - data) ** 2).sum((2, 3))
        shares = np.exp(-(squares - squares.min(1, keepdims=True)) / (2 * sigma**2))
        want = np.einsum("nm,m...->n...", shares / shares.sum(1, keepdims=True), data)
        found = denoiser(x, sigma)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, want, **({"rtol": 1e-10} if dtype == "float64" else {"atol": 2e-4}))
    np.testing.assert_allclose(denoiser(data[3:5].astype(dtype), 0.0), data[3:5], rtol=1e-6)  # the nearest one


def test_w2_is_the_formula_and_keeps_its_digits():
    a, b = covariance(4, 1), covariance(4, 2)
    m = np.arange(4.0)
    root = linalg.sqrtm(a)
    want = m @ m + np.trace(a + b - 2 * linalg.sqrtm(root @ b @ root).real)
    assert gaussian_w2(m, a, np.zeros(4), b) == pytest.approx(np.sqrt(want), rel=1e-12)
    assert gaussian_w2(m, a, m, a) < 1e-14
    spread = 1 + 1e-9  # of the deviation: the formula would leave nothing of it
    assert gaussian_w2(m, a * spread**2, m, a) == pytest.approx(1e-9 * np.sqrt(np.trace(a)), rel=1e-5)
    assert gaussian_w2([0.0, 0], np.zeros((2, 2)), [3.0, 4], np.diag([4.0, 0])) == pytest.approx(np.sqrt(29))


def test_fit_order_finds_the_asymptotic_range():
    ns = np.array([10, 20, 40, 80, 160, 320])
    assert fit_order(ns, 5.0 * ns**-3.0) == pytest.approx(3, abs=1e-12)
    assert fit_order(ns, np.minimum(0.1, 900.0 * ns**-3.0)) == pytest.approx(3, abs=1e-12)  # flat at the beginning
    errors = 1e-4 * (ns / 10.0) ** -6
    errors[3:] = [3e-13, 5e-12, 2e-12]  # rounding, which comes back above the threshold
    assert fit_order(ns, errors) == pytest.approx(6, abs=1e-9)
    assert np.isnan(fit_order(ns, np.zeros(6)))
    with pytest.raises(ValueError, match="ns must rise"):
        fit_order([20, 10], [1.0, 2.0])


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (ipndm, 2)])
def test_convergence_is_of_the_stated_order(sampler, order):
    ns = (40, 80, 160)
    assert fit_order(ns, convergence(sampler, ns=ns)) == pytest.approx(order, abs=0.1)


def test_convergence_in_other_forms_is_the_same():
    vp = convergence(lambda s: rescaled(heun(s), "vp"), ns=(10,))
    np.testing.assert_allclose(vp, convergence(heun, ns=(10,)), rtol=1e-9)
    assert convergence(lambda s: flow_heun(s / (1 + s)), ns=(40,))[0] < 2e-3


def test_convergence_of_steps_of_two_lengths_shows_what_equal_ones_hide():
    """The fixed weights of iPNDM are of order 1 there."""
    assert fit_order((20, 40, 80), convergence(ipndm, ns=(20, 40, 80), grid="uneven")) == pytest.approx(1, abs=0.1)


def test_moments_of_euler_are_the_product_of_its_steps():
    """Along an axis of variance v, Euler multiplies x by t / s + (1 - t / s) v / (v + s^2)."""
    sigmas = karras_sigmas(12, sigma_max=20.0)
    data = Gaussian(np.zeros(2), np.diag([0.5, 2.0]))
    v = np.array([0.5, 2.0])
    s, t = sigmas[:-1, None], sigmas[1:, None]
    gain = np.prod(t / s + (1 - t / s) * v / (v + s**2), axis=0)
    mean, cov = moments(euler(sigmas), data)
    np.testing.assert_allclose(cov, np.diag((20.0 * gain) ** 2), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(mean, 0)


@pytest.mark.parametrize("sampler", [ddpm, euler_ancestral, dpmpp_sde])
def test_moments_are_those_of_many_samples(sampler):
    data = Gaussian([1.0, -2.0], [[0.5, 0.3], [0.3, 0.4]])
    plan = sampler(karras_sigmas(8, sigma_min=0.1, sigma_max=10.0))
    keys = random.split(random.key(2), 20_000)
    x = sample(data.denoiser, initial_noise(plan, keys, (2,), "float64"), plan, keys=keys)
    mean, cov = moments(plan, data)
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(cov.max() / len(x)))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=7 * cov.max() / np.sqrt(len(x)))


def test_the_likelihood_of_a_mixture_with_its_own_divergence_is_its_density():
    x = points(MIXTURE, 0.002)
    prior = lambda y: MIXTURE.log_density(y, 80.0)
    found = log_likelihood(MIXTURE.denoiser, x, divergence=MIXTURE.divergence, prior=prior, n_steps=150)
    np.testing.assert_allclose(found.nats, MIXTURE.log_density(x, 0.002), rtol=0, atol=1e-6)


NOISY = Plan("noisy", [Stage(1.0, c_noise=0.1)], final=(1.0, 0.05))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Gaussian([0.0], [[-1.0]]), "no negative eigenvalue"),
    (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
    (lambda: Gaussian([0.0, np.nan], np.eye(2)), "mean must be finite"),
    (lambda: Gaussian([0.0, 0.0], np.eye(3)), "cov must have shape 2 x 2"),
    (lambda: GaussianMixture([1.0, -0.5], np.zeros((2, 1)), np.ones((2, 1, 1))), "weights must be >= 0"),
    (lambda: NORMAL.log_density(np.zeros((2, 4))), "n x 3, got"),
    (lambda: NORMAL.score(np.zeros((2, 3)), -1.0), "sigma must be a finite number >= 0"),
    (lambda: Gaussian([0.0], [[0.0]]).log_density(np.zeros((1, 1))), "no density"),
    (lambda: ideal_denoiser(np.zeros((0, 2))), "m >= 1 finite rows"),
    (lambda: ideal_denoiser(np.zeros((3, 2)))(np.zeros((3, 4)), 1.0), "rows of shape"),
    (lambda: convergence(euler, ns=(0,)), "every n must be at least 1"),
    (lambda: convergence(euler, grid="x"), "grid must be one of"),
    (lambda: convergence(lambda s: NOISY), "noisy adds noise"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_data_cannot_be_changed():
    with pytest.raises(AttributeError, match="Gaussian is immutable"):
        NORMAL.means = np.zeros((1, 3))
    with pytest.raises(ValueError, match="read-only"):
        NORMAL.cov[0, 0] = 2.0
