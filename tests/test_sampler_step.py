"""q_sample and sampler_step: every combination of optional inputs, their noise, their derivatives, whole samplers.

Seen to fail: with the noise of a vector taken from its neighbour, with h2 and h3 exchanged, with the clip after the
history instead of before, with sigma's derivative lacking z, with noise of
number 0 always, with h3 and h4 exchanged, with what is kept not scaled, with the quantile a rank off, with one
deviation for all samples, with half the slope of the loss, with the gradient of its residual lost where
the loss has one too.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from generant import grad, ops, random
from generant.autograd import vjp
from generant.ops import _dispatch
from generant.ops.diffusion import COEF as COEF_NAMES
from generant.ops.diffusion import q_sample, sampler_step

COEF = (1.5, -0.75, 0.4, 0.25, 1.125, -0.5, 0.375, 0.0625, -0.3, 0.875, 5.0, 0.2, 0.7)


def arrays(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(7)]


def coefficients(**changed):
    """COEF as an array, some of it changed by name."""
    coef = np.array(COEF)
    for name, value in changed.items():
        coef[COEF_NAMES.index(name)] = value
    return coef


def plain(**some):
    """Coefficients of a step that does nothing, but for some: x_next = x."""
    return coefficients(**(dict.fromkeys(COEF_NAMES, 0.0) | {"c_x": 1.0} | some))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("present", list(product([False, True], repeat=6)), ids=lambda p: "".join("-x"[i] for i in p))
def test_every_combination_of_optional_inputs(present, dtype) -> None:
    """Guidance, history and noise, with and without clip: rows below and above a vector, a block, a work unit."""
    guided, *history, noise = present
    coef = coefficients(c_noise=COEF[9] if noise else 0.0)
    for shape, clip in (((1,), None), ((7, 3), 1.0), ((2, 1030), None), ((1, 16391), 0.5)):
        x, prediction, uncond, *h = arrays(shape, dtype)
        given = [a if wanted else None for a, wanted in zip((uncond, *h), (guided, *history), strict=True)]
        keys = random.split(3, shape[0]) if noise else None
        y, kept = ops.sampler_step.all(x, prediction, *given, keys, coef, clip=clip)
        np.testing.assert_array_equal(ops.sampler_step(x, prediction, *given, keys, coef, clip=clip), y)
        wide = [None if a is None else a.astype(np.longdouble) for a in (x, prediction, *given)]
        denoised = 1.5 * wide[0] - 0.75 * wide[1] + (0.4 * wide[2] if guided else 0)
        if clip is not None:
            denoised = np.minimum(np.maximum(denoised, -clip), clip)
        exact = 0.25 * wide[0] + 1.125 * denoised
        for c, a in zip((-0.5, 0.375, 0.0625, -0.3), wide[3:], strict=True):
            exact += 0 if a is None else c * a
        if noise:
            z = [random.normal(key + np.array([0, 5], np.uint64), shape[1:], dtype) for key in keys]
            exact += 0.875 * np.stack(z).astype(np.longdouble)
        tolerance = 8 * np.finfo(dtype).eps * 4
        np.testing.assert_allclose(kept, 0.2 * wide[0] + 0.7 * denoised, rtol=0, atol=tolerance)
        np.testing.assert_allclose(y, exact, rtol=0, atol=tolerance)
        assert y.dtype == kept.dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 1), (3, 2), (40, 13), (3, 63), (2, 130), (2, 1025), (3, 5000)])
def test_noise_has_a_key_per_sample(shape, dtype) -> None:
    """Bit for bit the numbers of `normal` and `normals`, and a sample does not know its batch."""
    keys, zero = random.split(11, shape[0]), np.zeros(shape, dtype)
    noise = ops.sampler_step(zero, zero, None, None, None, None, None, keys, plain(c_noise=1.0, number=9.0))
    alone = [random.normal(random.key(int(seed), int(stream) + 9), shape[1:], dtype) for seed, stream in keys]
    np.testing.assert_array_equal(noise, np.stack(alone))
    one, number = np.ones(1), np.array([9], np.uint64)
    np.testing.assert_array_equal(ops.normals(keys, number, one, shape=shape[1:], dtype=dtype), noise)
    for i in range(shape[0]):
        row = ops.normals(keys[i : i + 1], number, one, shape=shape[1:], dtype=dtype)
        np.testing.assert_array_equal(row[0], noise[i])


def test_normals_add_up_streams() -> None:
    keys, streams, weights = random.split(2, 3), np.array([4, 1 << 40], np.uint64), np.array([0.5, -2.0])
    parts = [ops.normals(keys, streams[j : j + 1], np.ones(1), shape=(70,), dtype="float64") for j in range(2)]
    both = ops.normals(keys, streams, weights, shape=(70,), dtype="float64")
    np.testing.assert_allclose(both, 0.5 * parts[0] - 2 * parts[1], rtol=1e-14, atol=1e-14)
    assert ops.normals(keys[:0], streams, weights, shape=(2, 0)).shape == (0, 2, 0)


@pytest.mark.parametrize("n", [1, 2, 5, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threshold_is_the_quantile_of_each_sample(n, dtype) -> None:
    """NumPy's own quantile; samples with equal numbers, below 1, above the limit."""
    d = arrays((6, n), dtype)[0] * np.array([0.1, 1, 2, 3, 4, 50], dtype)[:, None]
    d[3] = np.round(d[3])
    coef = plain(a_p=1.0, c_x=0.0, c_d=1.0)
    for probability in (0.0, 0.3, 0.95, 0.995, 1.0):
        got = ops.sampler_step(d * 0, d, None, None, None, None, None, None, coef, threshold=probability,
                               threshold_max=20.0)  # fmt: skip
        s = np.quantile(np.abs(d).astype(np.float64), probability, axis=1, keepdims=True).clip(1, 20)
        np.testing.assert_allclose(got, np.clip(d, -s, s) / s, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_rescaled_guidance_has_the_spread_of_the_prediction() -> None:
    x, p, u = arrays((4, 3, 50), "float64")[:3]
    p, u = p + 30, u + 29  # a mean far from 0
    coef = plain(a_p=3.0, a_u=-2.0, c_x=0.0, c_d=1.0)
    guided = 3 * p - 2 * u
    for rescale in (0.0, 0.7, 1.0):
        got = ops.sampler_step(x, p, u, None, None, None, None, None, coef, rescale=rescale)
        ratio = (p.std((1, 2)) / guided.std((1, 2)))[:, None, None]
        np.testing.assert_allclose(got, guided * (rescale * ratio + 1 - rescale), rtol=1e-12)


def test_native_and_numba_steps_have_the_same_bits() -> None:
    """Fused multiply-adds in the same places, the same noise; the baseline instruction set has none."""
    native, twins = _dispatch.native_module(), _dispatch.numba_kernels()
    if native is None or twins is None or _dispatch.backend() != "native" or native.isa == "base":
        pytest.skip("needs Numba and native kernels with fused multiply-add")
    for dtype in ("float32", "float64"):
        x, prediction, uncond, *h = arrays((3, 5, 77), dtype)
        keys, key, scale = random.split(4, 3), random.key(8, 2), np.linspace(0.3, 2, 3).astype(dtype)
        for attrs in ((None, None, 1.0, 0.0), (0.5, None, 1.0, 0.0), (None, 0.9, 2.0, 0.0)):
            y, kept = np.empty_like(x), np.empty_like(x)
            twins["sampler_step"](x, prediction, uncond, *h, keys, np.array(COEF), y, kept, *attrs)
            names = dict(zip(("clip", "threshold", "threshold_max", "rescale"), attrs, strict=True))
            other = ops.sampler_step.all(x, prediction, uncond, *h, keys, np.array(COEF), **names)
            np.testing.assert_array_equal(other[0], y)
            np.testing.assert_array_equal(other[1], kept)
        twins["q_sample"](x, scale, scale, key, y)
        np.testing.assert_array_equal(ops.q_sample(x, scale, scale, key), y)
        twins["add_noise"](x, uncond, scale, scale, y)
        np.testing.assert_array_equal(ops.add_noise(x, uncond, scale, scale), y)
        twins["normals"](keys, np.array([3, 1], np.uint64), np.array([0.3, 2]), y, x.shape[1:])
        got = ops.normals(keys, np.array([3, 1], np.uint64), np.array([0.3, 2]), shape=x.shape[1:], dtype=dtype)
        np.testing.assert_array_equal(got, y)


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (4000, 3), (9, 3700), (2, 40000), (33, 1024)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_denoising_loss_is_its_formula(shape, dtype) -> None:
    """Samples within, at the edge of and across work units of 16384 elements."""
    prediction, x = arrays(shape, dtype)[:2]
    n, key = shape[0], random.key(6)
    b_x, b_z, weight = (np.linspace(low, 1.5, n).astype(dtype) for low in (-1, 0.2, 0.5))
    column = lambda a: a.reshape(-1, 1).astype(np.longdouble)
    residual = prediction - (column(b_x) * x + column(b_z) * random.normal(key, shape, dtype))
    loss, kept = ops.denoising_loss.all(prediction, x, b_x, b_z, weight, key)
    np.testing.assert_array_equal(ops.denoising_loss(prediction, x, b_x, b_z, weight, key), loss)
    rtol = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(loss, weight * (residual**2).mean(1), rtol=rtol)
    g = np.linspace(-1, 2, n).astype(dtype)
    np.testing.assert_allclose(kept, residual, rtol=0, atol=rtol)
    slope = ops.denoising_loss_bwd(g, weight, kept)
    np.testing.assert_allclose(slope, column(g * weight) * 2 / shape[1] * residual, rtol=0, atol=20 * rtol / shape[1])


def test_derivatives_of_the_denoising_loss() -> None:
    """Each argument against central differences, and the second derivative in the prediction, which is constant."""
    rng, key = np.random.default_rng(3), random.key(5)
    point = [rng.standard_normal((4, 6)), rng.standard_normal((4, 6)), *(rng.random(4) + 0.5 for _ in range(3))]
    total = lambda *xs: ops.sum(ops.denoising_loss(*xs, key))
    pulled = vjp(total, *point)[1](np.float64(1.0))
    for i, gradient in enumerate(pulled):
        step = rng.standard_normal(point[i].shape)
        moved = [[a + t * 1e-5 * step if k == i else a for k, a in enumerate(point)] for t in (1, -1)]
        difference = (float(total(*moved[0])) - float(total(*moved[1]))) / 2e-5
        assert difference == pytest.approx(float(np.sum(gradient * step)), rel=1e-6)
    curved = grad(lambda p: ops.sum(ops.square(grad(lambda q: total(q, *point[1:]))(p))))(point[0])
    slope, scale = grad(lambda p: total(p, *point[1:]))(point[0]), 2 * point[4][:, None] / 6
    np.testing.assert_allclose(curved, 2 * slope * scale, rtol=1e-12)

    def both(p):                                       # the loss and its residual are used, each with a gradient
        value, pull = vjp(lambda q: total(q, *point[1:]), p)
        return ops.add(value, ops.sum(ops.square(pull(np.float64(1.0))[0])))

    np.testing.assert_allclose(grad(both)(point[0]), slope + 2 * slope * scale, rtol=1e-12)


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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_add_noise_is_its_formula(shape, dtype) -> None:
    x, noise = arrays(shape, dtype)[:2]
    alpha, sigma = (np.random.default_rng(i).random(shape[0]).astype(dtype) for i in range(2))
    column = (-1,) + (1,) * (len(shape) - 1)
    exact = alpha.reshape(column).astype(np.longdouble) * x + sigma.reshape(column) * noise.astype(np.longdouble)
    np.testing.assert_allclose(ops.add_noise(x, noise, alpha, sigma), exact, rtol=0, atol=8 * np.finfo(dtype).eps)


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
        vjp(lambda a: sampler_step(a, x, None, None, None, None, None, None, np.zeros(13)), x)[1](x)


def test_bad_arguments_are_named() -> None:
    x, nothing = np.ones((3, 2), np.float32), [None] * 5
    with pytest.raises(TypeError, match=r"sampler_step: c_noise is 0\.875 but keys is None"):
        ops.sampler_step(x, x, *nothing, None, np.array(COEF))
    with pytest.raises(TypeError, match="coef"):
        ops.sampler_step(x, x)
    with pytest.raises(ValueError, match=r"sampler_step: n is 3 but keys has n = 2"):
        ops.sampler_step(x, x, *nothing, random.split(0, 2), np.array(COEF))
    with pytest.raises(ValueError, match=r"sampler_step: coef must have shape \(13\), got \(8,\)"):
        ops.sampler_step(x, x, *nothing, None, np.zeros(8))
    for attrs, message in (
        (dict(clip=1.0, threshold=0.9), "clip is 1.0 and threshold is 0.9; only one"),
        (dict(clip=-1.0), "clip must be at least 0"),
        (dict(threshold=1.5), "threshold must be a probability"),
        (dict(threshold=0.9, threshold_max=0.5), "threshold_max must be at least 1"),
    ):
        with pytest.raises(ValueError, match=f"sampler_step: {message}"):
            ops.sampler_step(x, x, *nothing, None, plain(), **attrs)


def test_nan_stays_nan_through_the_clip() -> None:
    x = np.array([1.0, np.nan, 5.0, -5.0], np.float32)
    coef = plain(a_x=1.0, c_d=1.0, c_x=0.0, g_d=1.0)
    _, denoised = ops.sampler_step.all(x, np.zeros_like(x), None, None, None, None, None, None, coef, clip=2.0)
    np.testing.assert_array_equal(denoised, np.array([1, np.nan, 2, -2], np.float32))


def test_noisy_step_has_the_variance_it_should() -> None:
    x = np.zeros((4, 100_000), np.float32)
    y = ops.sampler_step(x, x, *[None] * 5, random.split(9, 4), plain(c_noise=0.7))
    assert y.std() == pytest.approx(0.7, rel=0.01) and abs(y.mean()) < 0.005
    assert abs(np.corrcoef(y) - np.eye(4)).max() < 0.02  # samples are independent
