"""Searches on device arrays where the generated tests do not go: ties and copies, more ranks than a list has, parts
that are merged, offsets, numbers that are not finite, and the public functions. Compared with the definitions, which
are exact.

Seen to fail: with rows whose lists overflow not measured again, and without the error bound of lows.
"""

from __future__ import annotations

import cuda_device
import numpy as np
import pytest

from generant import autograd, ops
from generant import pairwise as pw

cupy = cuda_device.device()


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def same(op, *arrays, rtol=2e-7, **attrs):
    """Indices and counts are the definition's, distances up to rounding."""
    found = op.all(*[None if a is None else cupy.asarray(a) for a in arrays], **attrs)
    cuda_device.guards_hold(cupy)
    with np.errstate(all="ignore"):
        wanted = op.definition(*arrays, **attrs)
    for y, z in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        if z.dtype.kind == "i":
            np.testing.assert_array_equal(y.get(), z)
        else:
            np.testing.assert_allclose(y.get(), z, rtol=rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("k", [1, 20, 21, 100, 101])
def test_ranks_of_every_kind_of_list(k, d, dtype):
    x, y = normal(70, d, dtype=dtype), normal(260, d, seed=1, dtype=dtype)
    same(ops.knn, x, y, rtol=2e-7 if dtype == np.float32 else 1e-15, k=k)
    if k < 70:
        same(ops.knn, x, k=k, rtol=2e-7 if dtype == np.float32 else 1e-15)


@pytest.mark.parametrize("d", [2, 30])
def test_few_rows_against_many_parts(d):
    x, y = normal(3, d), normal(3000, d, seed=1)
    same(ops.knn, x, y, k=5)
    same(ops.nearest, x, y, np.random.default_rng(2).uniform(0.5, 2, 3000).astype(np.float32))
    radius = np.full(3000, np.sqrt(d) * 1.2, np.float32)
    same(ops.radius_count, x, y, radius, np.full(3, np.sqrt(d), np.float32))
    same(ops.radius_min, x, y, radius * np.random.default_rng(3).uniform(0.8, 1, 3000).astype(np.float32))


def test_parts_of_several_tiles():
    """More copies of a row than a list holds, first seen in a tile that is not their first."""
    x, y = normal(3, 2), normal(64 * 528 * 5, 2, seed=1)
    y[64:320] = x[0]
    same(ops.knn, x, y, k=5)


@pytest.mark.parametrize("d", [4, 33])
def test_copies_and_ties_go_to_the_lower_index(d):
    x = np.random.default_rng(0).integers(0, 2 if d == 4 else 1, (150, d)).astype(np.float32)
    x[::7, 0] += 3
    same(ops.knn, x, k=6)                                # far more equal distances than a list has entries
    same(ops.nearest, x, x[40:])
    same(ops.radius_count, x, x, np.ones(150, np.float32), np.full(150, 3, np.float32))
    same(ops.radius_count, x, x, np.ones(150, np.float32), np.full(150, 3, np.float32), closed=True)
    same(ops.radius_min, x, x, np.linspace(0, 3, 150).astype(np.float32), closed=True)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_common_offset_costs_no_digits(offset):
    x, y = (normal(90, 48, seed=s) + np.float32(offset) for s in (0, 1))
    y[:30] = x[10:40]
    same(ops.knn, x, y, k=4)
    same(ops.knn, x, k=4)
    radius = np.repeat(ops.knn.definition(y, k=3)[0][:, 2:], 1, axis=1)[:, 0].copy()
    same(ops.radius_count, y, y, radius, radius)
    same(ops.radius_count, y, y, radius, radius, closed=True)


@pytest.mark.parametrize("d", [3, 40])
def test_clusters_far_from_the_mean(d):
    x = normal(140, d) * np.float32(1e-3) + np.where(np.arange(140)[:, None] % 2, 1, -1).astype(np.float32)
    same(ops.knn, x, k=5)
    same(ops.nearest, x[:70], x[70:])


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 1e-25])
def test_numbers_that_are_not_finite_or_nearly_so(d, value):
    x, y = normal(40, d), normal(50, d, seed=1)
    if abs(value) < 1:
        x, y = x * np.float32(value), y * np.float32(value)
    else:
        x[3, 1], y[7, 0], y[9] = value, value, -value
    same(ops.knn, x, y, k=5)
    same(ops.knn, x, y, k=50)
    same(ops.nearest, x, y)
    same(ops.radius_count, x, y, np.full(50, 2e30 if value == 1e30 else abs(value) if value < 1 else 3, np.float32))


def test_scales_of_every_size():
    x, y = normal(60, 30), normal(120, 30, seed=1)
    for least, most in ((-3, 3), (-18, 18), (-30, 30)):
        scale = 10.0 ** np.random.default_rng(2).uniform(least, most, 120)
        same(ops.nearest, x, y, scale.astype(np.float32))


def test_sorted_points():
    x = np.sort(normal(400, 1), axis=0)
    same(ops.knn, x, k=7)
    same(ops.knn, x, np.ascontiguousarray(x[::-1]), k=7)


PUBLIC = {
    "several ranks": lambda x, y, r: pw.knn(x, k=(1, 4)),
    "cosine": lambda x, y, r: pw.knn(x, y, metric="cosine"),
    "batch": lambda x, y, r: pw.knn(x[None], y[None], return_distance=False),
    "min_argmin": lambda x, y, r: pw.min_argmin(x, y),
    "argmin": lambda x, y, r: pw.argmin(x, y, metric="cosine"),
    "one radius": lambda x, y, r: pw.radius_count(x, y, 8.0),
    "any": lambda x, y, r: pw.radius_count(x, y, r, mode="any"),
    "min": lambda x, y, r: pw.radius_count(x, y, r, mode="min", closed=True),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_return_device_arrays(name):
    arrays = normal(50, 40), normal(90, 40, seed=1), np.random.default_rng(0).uniform(7, 9, 90)
    wanted, found = PUBLIC[name](*arrays), PUBLIC[name](*map(cupy.asarray, arrays))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (wanted, found)), strict=True):
        assert isinstance(b, cupy.ndarray) and b.dtype == a.dtype and b.shape == a.shape
        np.testing.assert_allclose(b.get(), a, rtol=1e-6)


def test_distances_have_gradients():
    x = normal(30, 6)
    for distance in (lambda x: pw.knn(x, k=3)[0], lambda x: pw.min_argmin(x, ops.affine(x, scale=0.5))[0]):
        gradient = autograd.value_and_grad(lambda x, distance=distance: ops.sum(ops.square(distance(x))))
        found = gradient(cupy.asarray(x))[1]
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_allclose(found.get(), gradient(x)[1], rtol=1e-5, atol=1e-6)
