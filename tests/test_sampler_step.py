"""q_sample and sampler_step: every combination of optional inputs, their noise, their derivatives, whole samplers.

Seen to fail: with the noise of a vector taken from its neighbour, with h2 and h3 exchanged, with the clip after the
history instead of before, with sigma's derivative lacking z.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from generant import ops, random
from generant.autograd import vjp
from generant.ops.diffusion import q_sample, sampler_step

COEF = (1.5, -0.75, 0.25, 1.125, -0.5, 0.375, 0.0625, 0.875)


def arrays(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(5)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("present", list(product([False, True], repeat=4)), ids=lambda p: "".join("-x"[i] for i in p))
def test_every_combination_of_optional_inputs(present, dtype) -> None:
    """History and noise, with and without clip, around the work unit of 16384."""
    *history, noise = present
    coef = np.array(COEF[:7] + (COEF[7] if noise else 0.0,))
    for n, clip in ((1, None), (67, 1.0), (16385, None), (40001, 0.5)):
        x, prediction, *h = arrays(n, dtype)
        given = [a if wanted else None for a, wanted in zip(h, history, strict=True)]
        key = random.key(3, n) if noise else None
        y, denoised = ops.sampler_step.all(x, prediction, *given, key, coef, clip=clip)
        np.testing.assert_array_equal(ops.sampler_step(x, prediction, *given, key, coef, clip=clip), y)
        wide = [None if a is None else a.astype(np.longdouble) for a in (x, prediction, *given)]
        exact_denoised = 1.5 * wide[0] - 0.75 * wide[1]
        if clip is not None:
            exact_denoised = np.minimum(np.maximum(exact_denoised, -clip), clip)
        exact = 0.25 * wide[0] + 1.125 * exact_denoised
        for c, a in zip((-0.5, 0.375, 0.0625), wide[2:], strict=True):
            exact += 0 if a is None else c * a
        if noise:
            exact += 0.875 * random.normal(key, n, dtype).astype(np.longdouble)
        tolerance = 8 * np.finfo(dtype).eps * 4
        np.testing.assert_allclose(denoised, exact_denoised, rtol=0, atol=tolerance)
        np.testing.assert_allclose(y, exact, rtol=0, atol=tolerance)
        assert y.dtype == denoised.dtype == dtype


SHAPES = [(1,), (50000, 1), (30001, 2), (7, 3), (5, 16384), (3, 17, 19), (64, 3, 8, 8), (2, 70001)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_q_sample_is_its_formula(shape, dtype) -> None:
    """Rows shorter and longer than a vector, a block and a work unit; the noise is that of `normal`."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape).astype(dtype)
    alpha, sigma = (rng.random(shape[0]).astype(dtype) for _ in range(2))
    key = random.key(8, 1)
    column = (-1,) + (1,) * (len(shape) - 1)
    exact = alpha.reshape(column).astype(np.longdouble) * x + sigma.reshape(column) * random.normal(
        key, shape, dtype).astype(np.longdouble)
    np.testing.assert_allclose(ops.q_sample(x, alpha, sigma, key), exact, rtol=0, atol=8 * np.finfo(dtype).eps)


def test_q_sample_of_nothing() -> None:
    empty = np.zeros(0, np.float32)
    assert ops.q_sample(np.zeros((0, 3), np.float32), empty, empty, random.key(0)).shape == (0, 3)
    one = np.zeros(4, np.float32)
    assert ops.q_sample(np.zeros((4, 0), np.float32), one, one, random.key(0)).shape == (4, 0)


def test_noise_is_only_noise() -> None:
    """sigma = 0 returns alpha x exactly; alpha = 0, sigma = 1 returns the normals exactly."""
    x = arrays((5, 33), "float32")[0]
    zero, one = np.zeros(5, np.float32), np.ones(5, np.float32)
    np.testing.assert_array_equal(ops.q_sample(x, one, zero, random.key(1)), x)
    np.testing.assert_array_equal(ops.q_sample(x, zero, one, random.key(1)), random.normal(1, x.shape))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x = arrays((9, 37), "float32")[0]
    a = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    whole = ops.q_sample(x, a, a, random.key(5))
    for n in range(1, 9):
        np.testing.assert_array_equal(ops.q_sample(x[:n], a[:n], a[:n], random.key(5)), whole[:n])


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4)])
def test_derivative_of_q_sample(shape) -> None:
    """Linear in x, alpha and sigma: directional differences are exact up to rounding."""
    rng = np.random.default_rng(2)
    x, n = rng.standard_normal(shape), shape[0]
    alpha, sigma, key = rng.random(n), rng.random(n), random.key(6)
    y, pull = vjp(lambda *xs: q_sample(*xs, key), x, alpha, sigma)
    g = rng.standard_normal(shape)
    for i, (gradient, a) in enumerate(zip(pull(g), (x, alpha, sigma), strict=True)):
        step = rng.standard_normal(a.shape)
        moved = [x, alpha, sigma]
        moved[i] = a + step
        assert np.sum(g * (ops.q_sample(*moved, key) - y)) == pytest.approx(np.sum(gradient * step), rel=1e-12)


def test_sampler_step_has_no_derivative() -> None:
    x = np.ones(3)
    with pytest.raises(TypeError, match="sampler_step"):
        vjp(lambda a: sampler_step(a, x, None, None, None, None, np.zeros(8)), x)[1](x)


def test_missing_key_is_named() -> None:
    x = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"sampler_step: c_noise is 0\.875 but key is None"):
        ops.sampler_step(x, x, None, None, None, None, np.array(COEF))
    with pytest.raises(TypeError, match="coef"):
        ops.sampler_step(x, x)


def test_nan_stays_nan_through_the_clip() -> None:
    x = np.array([1.0, np.nan, 5.0, -5.0], np.float32)
    coef = np.array([1.0, 0, 0, 1, 0, 0, 0, 0])
    _, denoised = ops.sampler_step.all(x, np.zeros_like(x), None, None, None, None, coef, clip=2.0)
    np.testing.assert_array_equal(denoised, np.array([1, np.nan, 2, -2], np.float32))


def test_euler_and_heun_on_gaussian_data_converge_at_their_order() -> None:
    """Data N(0, s^2): D = s^2 x / (s^2 + sigma^2); exact flow: sqrt((s^2 + sigma^2) / (s^2 + S^2))."""
    s, top, low = 0.5, 10.0, 0.05
    x0 = np.linspace(-20, 20, 41)
    exact = x0 * np.sqrt((s**2 + low**2) / (s**2 + top**2))

    def denoiser(x, sigma):
        return s**2 / (s**2 + sigma**2) * x

    def run(n, heun):
        x = x0
        sigmas = np.linspace(top ** (1 / 7), low ** (1 / 7), n + 1) ** 7
        for a, b in pairwise(sigmas):
            d = denoiser(x, a)
            euler = ops.sampler_step(x, d, None, None, None, None, np.array([0, 1, b / a, 1 - b / a, 0, 0, 0, 0]))
            if heun:                                   # x + (b - a) / 2 ((x - d) / a + (euler - d') / b)
                h = (b - a) / 2
                coef = np.array([0, 1, h / b, -h / b, 1 + h / a, -h / a, 0, 0])
                x = ops.sampler_step(euler, denoiser(euler, b), x, d, None, None, coef)
            else:
                x = euler
        return np.abs(x - exact).max()

    for heun, order in ((False, 1), (True, 2)):
        slope = np.log2(run(160, heun) / run(320, heun))
        assert abs(slope - order) < 0.1


def test_noisy_step_has_the_variance_it_should() -> None:
    n = 400_000
    x = np.zeros(n, np.float32)
    y = ops.sampler_step(x, x, None, None, None, random.key(9), np.array([0, 0, 0, 0, 0, 0, 0, 0.7]))
    np.testing.assert_array_equal(y, np.float32(0.7) * random.normal(9, n))
