"""Schedules, samplers and the EDM objective against closed forms.

Data that is Gaussian has a denoiser in closed form, D = d^2 / (d^2 + s^2) x, and its equation is solved by
x(s) = x(s0) sqrt((d^2 + s^2) / (d^2 + s0^2)): every sampler must converge to that at its stated order.
Seen to fail: with Heun's correction halved, with the 2M ratio inverted, with c_in missing from the target.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import diffusion, nn, ops
from generant.random import Stream, key


def test_karras_sigmas_are_the_formula():
    sigmas = diffusion.karras_sigmas(18, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert sigmas.dtype == np.float64 and sigmas.shape == (19,)
    assert sigmas[0] == 80.0 and sigmas[-2] == 0.002 and sigmas[-1] == 0.0
    assert (np.diff(sigmas) < 0).all()
    middle = (80 ** (1 / 7) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[9] == pytest.approx(middle, rel=1e-14)
    np.testing.assert_array_equal(diffusion.karras_sigmas(1, sigma_max=3.0), [3.0, 0.0])


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {}, "n must be at least 1"),
        (5, {"sigma_min": 0.0}, "0 < sigma_min"),
        (5, {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min <= sigma_max"),
        (5, {"sigma_max": np.inf}, "sigma_min <= sigma_max"),
        (5, {"rho": 0.0}, "rho must be positive"),
    ],
)
def test_karras_sigmas_refuses(n, options, message):
    with pytest.raises(ValueError, match=message):
        diffusion.karras_sigmas(n, **options)


def levels(grid: str, n: int) -> np.ndarray:
    """n noise levels from 20 to 0.05; the last step, to 0, is left out because it is Euler for all samplers."""
    if grid == "karras":
        return diffusion.karras_sigmas(n, sigma_min=0.05, sigma_max=20.0)[:-1]
    steps = np.where(np.arange(n - 1) % 2, 1.0, 3.0)  # in log sigma, alternately short and long
    return 20.0 * (0.05 / 20.0) ** (np.append(0.0, np.cumsum(steps)) / steps.sum())


def gaussian_error(sampler, sigmas: np.ndarray, d: float = 0.7) -> float:
    """Largest relative error at the last noise level, on Gaussian data."""
    x = np.random.default_rng(0).standard_normal((50, 3)) * 20.0
    exact = x * np.sqrt((d**2 + sigmas[-1] ** 2) / (d**2 + sigmas[0] ** 2))
    got = diffusion.sample(lambda x, s: x * (d**2 / (d**2 + s**2)), x, sampler(sigmas))
    return float(np.abs(got / exact - 1).max())


@pytest.mark.parametrize("grid", ["karras", "uneven"])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_samplers_converge_at_their_order(name, order, grid):
    errors = [gaussian_error(diffusion.SAMPLERS[name], levels(grid, n)) for n in (161, 321, 641)]
    slopes = -np.diff(np.log2(errors))
    assert slopes == pytest.approx([order, order], abs=0.12), (errors, slopes)


def test_heun_is_the_textbook_step():
    s, t = 3.0, 1.2
    x = np.random.default_rng(1).standard_normal((4, 5)) * s
    denoise = lambda x, sigma: np.tanh(x) * (1 - 0.1 * sigma)
    slope = (x - denoise(x, s)) / s
    euler = x + (t - s) * slope
    expected = x + (t - s) * (slope + (euler - denoise(euler, t)) / t) / 2
    np.testing.assert_allclose(diffusion.sample(denoise, x, diffusion.heun([s, t])), expected, rtol=1e-12)


def test_dpmpp_2m_is_the_textbook_step():
    """Lu et al. (2022), algorithm 2, in lambda = -log sigma. An inverted ratio would keep the order."""
    r, s, t = 3.0, 1.2, 0.9
    x = np.random.default_rng(1).standard_normal((4, 5)) * r
    denoise = lambda x, sigma: np.tanh(x) * (1 - 0.1 * sigma)
    first = denoise(x, r)
    middle = s / r * x + (1 - s / r) * first
    h, before = np.log(s / t), np.log(r / s)
    d = denoise(middle, s) + h / (2 * before) * (denoise(middle, s) - first)
    expected = t / s * middle - np.expm1(-h) * d
    np.testing.assert_allclose(diffusion.sample(denoise, x, diffusion.dpmpp_2m([r, s, t])), expected, rtol=1e-12)


def test_calls_and_last_step():
    sigmas = diffusion.karras_sigmas(10)
    assert [len(f(sigmas)) for f in (diffusion.euler, diffusion.heun, diffusion.dpmpp_2m)] == [10, 19, 10]
    seen = []
    x = np.ones((2, 3))
    for name in diffusion.SAMPLERS:  # the last step returns D itself
        out = diffusion.sample(lambda x, s: x * 0 + 0.25, x * 80, diffusion.SAMPLERS[name](sigmas))
        np.testing.assert_allclose(out, 0.25, rtol=1e-12)
    diffusion.sample(lambda x, s: x * 0, x, diffusion.euler(sigmas), callback=lambda i, d: seen.append((i, d.shape)))
    assert seen == [(i, (2, 3)) for i in range(10)]


def test_clip_bounds_the_denoised():
    seen = []
    diffusion.sample(
        lambda x, s: x * 5, np.full((2, 3), 4.0), diffusion.heun([4.0, 1.0, 0.0]), clip=0.5,
        callback=lambda i, d: seen.append(float(np.abs(d).max())),
    )
    assert seen == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("sigmas", [[1.0], [[2.0, 1.0]], [1.0, 2.0], [1.0, 1.0], [2.0, -1.0], [np.nan, 0.0]])
@pytest.mark.parametrize("name", list(diffusion.SAMPLERS))
def test_samplers_refuse_bad_levels(name, sigmas):
    with pytest.raises(ValueError, match="sigmas must be"):
        diffusion.SAMPLERS[name](sigmas)


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
