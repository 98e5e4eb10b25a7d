"""Random numbers and everything made of them have the same bits on the device as from the CPU kernels.

Elementwise arithmetic is pinned, and quantiles are selected, so nothing but sums over a sample may differ: the loss,
and the spread that `rescale` divides by.
Seen to fail: with a x + s z for fma; with the coefficients of the next sample one element late; without the least
number above a digit (thresholds of long rows); with a clip that swallows NaN.
"""

from __future__ import annotations

import hashlib
from itertools import product

import cuda_device
import numpy as np
import pytest
import test_random as golden

from generant import ops, random
from generant.ops import _dispatch

cupy = cuda_device.device()

native = _dispatch.native_module()
# Without a fused multiply-add, kernels and definitions round a x + b twice.
FUSED = _dispatch.backend() == "native" and native is not None and native.isa != "base"
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
WIDE_KEY = random.key(2**40 + 12345, 2**33 + 7)


def device(x):
    return cupy.asarray(x) if isinstance(x, np.ndarray) else x


def host(y):
    return None if y is None else y.get()


def on_both(op, *args, **attrs):
    """Outputs on the device, and on the CPU. The device's have the same bits with threads in reverse order."""
    found = [host(y) for y in op.all(*map(device, args), **attrs)]
    cuda_device.guards_hold(cupy)
    if cuda_device.HOST:
        module = __import__("generant.ops._device", fromlist=["cuda_module"]).cuda_module()
        module.set_reverse(True)
        again = [host(y) for y in op.all(*map(device, args), **attrs)]
        module.set_reverse(False)
        assert [y.tobytes() for y in again if y is not None] == [y.tobytes() for y in found if y is not None]
    return found, list(op.all(*args, **attrs))


def assert_same_bits(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        if a is None and b is None:
            continue
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)  # which NaN is one's own business
        np.testing.assert_array_equal(np.signbit(a)[a == a], np.signbit(b)[b == b])


def assert_same(found, wanted):
    """The same bits; within a rounding where the CPU has no fma."""
    if FUSED:
        return assert_same_bits(found, wanted)
    for a, b in zip(found, wanted, strict=True):
        if a is not None:
            largest = np.max(np.abs(b), initial=1, where=np.isfinite(b))
            np.testing.assert_allclose(a, b, rtol=0, atol=16 * np.finfo(a.dtype).eps * largest)


def arrays(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(7)]


# Arrays


@DTYPES
@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_numbers(name, dtype) -> None:
    """Sizes about a quad, a block of threads and the work unit of the CPU."""
    for n in (0, 1, 2, 3, 4, 5, 7, 1023, 4095, 4096, 4097, 12289, 65539):
        assert_same_bits(*on_both(getattr(ops, name), WIDE_KEY, dtype=dtype, shape=(n,)))


@pytest.mark.parametrize("name, dtype", golden.GOLDEN)
def test_golden_hashes(name, dtype) -> None:
    values = getattr(ops, name)(device(WIDE_KEY), shape=(golden.N,), dtype=dtype).get()
    assert hashlib.sha256(values.tobytes()).hexdigest() == golden.GOLDEN[name, dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (7, 29), (1030,)])
def test_numbers_with_a_key_per_sample(shape, dtype) -> None:
    keys, streams = random.split(2, 5), np.array([4, 1 << 40, 2**64 - 1], np.uint64)
    for m, weights in ((1, [1.0]), (3, [0.5, -2.0, 1 / 3]), (0, [])):
        assert_same_bits(*on_both(ops.normals, keys, streams[:m], np.array(weights), shape=shape, dtype=dtype))
    one = [ops.normal(device(random.key(int(a), int(b) + 4)), shape=shape, dtype=dtype).get() for a, b in keys]
    found = ops.normals(device(keys), device(streams[:1]), device(np.ones(1)), shape=shape, dtype=dtype)
    np.testing.assert_array_equal(found.get(), np.stack(one))
    nothing = ops.normals(device(keys[:0]), device(streams), device(np.ones(3)), shape=shape, dtype=dtype)
    assert nothing.shape == (0, *shape)


@pytest.mark.parametrize("counter, key, answer", [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
])
def test_philox_known_answers(counter, key, answer) -> None:
    words = ops.philox(device(np.array([counter] * 3, np.uint32)), device(np.array(key, np.uint32)))
    np.testing.assert_array_equal(words.get(), np.array([answer] * 3, np.uint32))


def test_advance_wraps_around() -> None:
    key = device(np.array([5, 2**64 - 1], np.uint64))
    ops.advance_(key)
    np.testing.assert_array_equal(key.get(), np.array([5, 0], np.uint64))


# Noising

SHAPES = [(1,), (1000, 1), (501, 2), (7, 3), (5, 1028), (3, 17, 19), (2, 3, 8, 8), (2, 5001), (0, 3), (4, 0)]


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noising(shape, dtype) -> None:
    x, noise = arrays(shape, dtype)[:2]
    a, b = (np.random.default_rng(i).standard_normal(shape[0]).astype(dtype) for i in range(2))
    assert_same(*on_both(ops.q_sample, x, a, b, WIDE_KEY))
    assert_same(*on_both(ops.add_noise, x, noise, a, b))
    assert_same(*on_both(ops.denoising_loss_bwd, a, b, x))


def test_arrays_that_begin_anywhere() -> None:
    """Views of larger arrays, whose addresses are not those of 16-byte pieces."""
    big = device(arrays((4 * 37 + 1,), "float32")[0])
    x, a = big[1:].reshape(4, 37), device(np.linspace(0.1, 0.9, 4, dtype=np.float32))
    y = ops.q_sample(x, a, a, device(WIDE_KEY))
    assert_same([y.get()], [ops.q_sample(x.get(), a.get(), a.get(), WIDE_KEY)])


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (300, 3), (9, 130), (3, 1024), (4, 1025), (2, 9001)], ids=str)
def test_denoising_loss(shape, dtype) -> None:
    """Rows that a lane, part of a warp, a warp and several blocks sum; the residual has the CPU's bits."""
    prediction, x = arrays(shape, dtype)[:2]
    b_x, b_z, weight = (np.linspace(low, 1.5, shape[0]).astype(dtype) for low in (-1, 0.2, 0.5))
    found, wanted = on_both(ops.denoising_loss, prediction, x, b_x, b_z, weight, WIDE_KEY)
    assert_same(found[1:], wanted[1:])
    np.testing.assert_allclose(found[0], wanted[0], rtol=(4 if FUSED else 100) * np.finfo(dtype).eps)
    alone = ops.denoising_loss(*map(device, (prediction, x, b_x, b_z, weight, WIDE_KEY)))
    np.testing.assert_array_equal(alone.get(), found[0])


# Steps

COEF = (1.5, -0.75, 0.4, 0.25, 1.125, -0.5, 0.375, 0.0625, -0.3, 0.875, 5.0, 0.2, 0.7)
STEP_SHAPES = [(1,), (7, 3), (3, 8), (2, 1030), (1, 4100)]
BOUNDS = [dict(), dict(clip=0.0), dict(threshold=0.8, threshold_max=1.5), dict(), dict(clip=1.0)]


@DTYPES
@pytest.mark.parametrize("present", list(product([False, True], repeat=6)), ids=lambda p: "".join("-x"[i] for i in p))
def test_every_combination_of_optional_inputs(present, dtype) -> None:
    guided, *history, noise = present
    coef = np.array(COEF)
    coef[9] *= noise
    for shape, attrs in zip(STEP_SHAPES, BOUNDS, strict=True):
        x, prediction, uncond, *h = arrays(shape, dtype)
        given = [a if wanted else None for a, wanted in zip((uncond, *h), (guided, *history), strict=True)]
        keys = random.split(3, shape[0]) if noise else None
        assert_same(*on_both(ops.sampler_step, x, prediction, *given, keys, coef, **attrs))


@DTYPES
@pytest.mark.parametrize("shape", [*STEP_SHAPES, (5, 1, 2), (300, 2), (2, 3, 4097)], ids=str)
@pytest.mark.parametrize("attrs", BOUNDS[1:], ids=str)
def test_bounded_steps(attrs, shape, dtype) -> None:
    x, prediction, uncond, *h = arrays(shape, dtype)
    keys = random.split(3, shape[0])
    assert_same(*on_both(ops.sampler_step, x, prediction, uncond, *h, keys, np.array(COEF), **attrs))


@DTYPES
def test_keys_are_not_read_without_noise(dtype) -> None:
    x, prediction = arrays((3, 37), dtype)[:2]
    coef = np.array(COEF)
    coef[9] = 0
    keys = random.split(3, 3)
    assert_same(*on_both(ops.sampler_step, x, prediction, None, None, None, None, None, keys, coef))


@DTYPES
@pytest.mark.parametrize("n", [1, 2, 5, 1000, 16384, 16385, 40001])
def test_thresholds_of_samples(n, dtype) -> None:
    """Equal numbers, all zeros, infinities, NaN, below 1 and above the limit; rows a block counts, and many blocks."""
    d = arrays((6, n), dtype)[0] * np.array([0.1, 1, 3, 0, 4, 50], dtype)[:, None]
    d[2] = np.round(d[2])
    d[4, ::7] = np.inf
    d[1, n // 2] = np.nan
    coef = np.zeros(13)
    coef[[1, 4]] = 1.0
    for probability in (0.0, 0.3, 0.995, 1.0) if n < 16384 else (0.3, 0.995):
        args = (np.zeros_like(d), d, *[None] * 6, coef)
        with np.errstate(invalid="ignore"):
            assert_same(*on_both(ops.sampler_step, *args, threshold=probability, threshold_max=20.0))


@DTYPES
@pytest.mark.parametrize("shape", [(4, 1), (5, 2), (4, 3, 50), (3, 9001)], ids=str)
def test_rescaled_guidance(shape, dtype) -> None:
    """Its factor comes from sums in double, so that in float32 it has the same bits but once in 10^7 samples."""
    x, prediction, uncond = arrays(shape, dtype)[:3]
    prediction, uncond = prediction + 3, uncond + 2
    coef = np.array(COEF)
    coef[1:3] = 3, -2
    args = (x, prediction, uncond, *[None] * 4, random.split(3, shape[0]), coef)
    for attrs in (dict(rescale=0.7), dict(rescale=1.0, threshold=0.9, threshold_max=2.0), dict(rescale=0.3, clip=1.0)):
        found, wanted = on_both(ops.sampler_step, *args, **attrs)
        for a, b in zip(found, wanted, strict=True):
            ulps = 2 if dtype == "float32" and FUSED else 64
            np.testing.assert_allclose(a, b, rtol=0, atol=ulps * np.finfo(dtype).eps * np.abs(b).max())


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x, prediction, uncond = arrays((5, 4099), "float32")[:3]
    keys, coef = random.split(3, 5), np.array(COEF)
    args = [*map(device, (x, prediction, uncond)), *[None] * 4, device(keys), device(coef)]
    for attrs in (dict(rescale=0.7, threshold=0.9, threshold_max=2.0), dict(clip=1.0)):
        whole = ops.sampler_step(*args, **attrs).get()
        for i in range(5):
            one = [a if a is None or k == 8 else a[i : i + 1].copy() for k, a in enumerate(args)]
            np.testing.assert_array_equal(ops.sampler_step(*one, **attrs).get()[0], whole[i])
