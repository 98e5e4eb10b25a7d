"""Ops that move without computing, against NumPy bit for bit on random shapes and axes.

Seen to fail: with the axes of the input merged that are apart in the output, with the last strip of a transposition
left out, with the offset of a slice forgotten, with rows copied to the next whole vector.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import grad, ops

SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 70)


def cases(count: int = 150):
    """Arrays of 1 to 6 dimensions with an axis and two places on it."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        shape = tuple(int(n) for n in rng.choice(SIZES, rng.integers(1, 7)))
        if np.prod(shape) > 50_000:
            continue
        axis = int(rng.integers(-len(shape), len(shape)))
        start, stop = sorted(int(i) for i in rng.integers(0, shape[axis] + 1, 2))
        yield rng, rng.standard_normal(shape), axis, start, stop


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_those_of_numpy(dtype) -> None:
    for rng, x, axis, start, stop in cases():
        x = x.astype(dtype)
        axes = tuple(int(i) for i in rng.permutation(x.ndim))
        piece, widths = np.take(x, range(start, stop), axis), [(0, 0)] * x.ndim
        widths[axis] = (start, stop)
        for got, want in (
            (ops.transpose(x, axes=axes), np.transpose(x, axes)),
            (ops.transpose(x), x.T),
            (ops.slice_axis(x, start=start, stop=stop, axis=axis), piece),
            (ops.pad_axis(x, before=start, after=stop, axis=axis), np.pad(x, widths)),
            (ops.concat(piece, x, axis=axis), np.concatenate([piece, x], axis)),
        ):
            assert got.flags.c_contiguous and got.dtype == x.dtype
            np.testing.assert_array_equal(got, want)


def test_bits_are_kept_whatever_they_mean() -> None:
    x = np.array([[0x7FA00001, 0x80000000, 0xFFFFFFFF, 1]] * 21, np.uint32).view(np.float32)  # NaNs, -0, a subnormal
    bits = x.view(np.uint32)
    np.testing.assert_array_equal(ops.transpose(x).view(np.uint32), bits.T)
    np.testing.assert_array_equal(ops.concat(x, x).view(np.uint32), np.concatenate([bits, bits], 1))
    ops.assign_(y := np.zeros_like(x), x)
    np.testing.assert_array_equal(y.view(np.uint32), bits)


@pytest.mark.parametrize("n", [1, 7, 16, 33, 40_001])
def test_cast_rounds_to_the_nearest(n) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(n) * 10.0 ** rng.integers(-45, 35, n)
    narrow = ops.cast(x, dtype="float32")
    assert narrow.tobytes() == x.astype(np.float32).tobytes()
    assert ops.cast(narrow, dtype="float64").tobytes() == narrow.astype(np.float64).tobytes()
    same = ops.cast(x, dtype="float64")
    assert same.tobytes() == x.tobytes() and not np.shares_memory(same, x)


def test_a_slice_and_its_padding_are_adjoint() -> None:
    x = np.arange(24.0).reshape(2, 4, 3)
    g = grad(lambda x: ops.sum(ops.square(ops.slice_axis(x, start=1, stop=3, axis=1))))(x)
    want = np.zeros_like(x)
    want[:, 1:3] = 2 * x[:, 1:3]
    np.testing.assert_array_equal(g, want)
    g = grad(lambda x: ops.sum(ops.square(ops.pad_axis(x, before=2, after=1, axis=0))))(x)
    np.testing.assert_array_equal(g, 2 * x)


@pytest.mark.parametrize("make, words", [
    (lambda x: ops.pad_axis(x, before=-1, after=0), "pad_axis: before and after must be at least 0, got -1, 0"),
    (lambda x: ops.pad_axis(x, before=1, after=0, axis=2), "pad_axis: axis must be from -2 to 1"),
    (lambda x: ops.slice_axis(x, start=1, stop=4), "slice_axis: wanted 0 <= start"),
    (lambda x: ops.concat(x, x[:1]), "concat: b has shape"),
    (lambda x: ops.transpose(x, axes=(0, 0)), "transpose: axes must be a permutation"),
])
def test_errors(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make(np.zeros((2, 3)))
