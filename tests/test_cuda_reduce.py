"""What the generated cases do not see of arithmetic, elementwise functions and reductions on device arrays: random
shapes, long rows, special values, addresses that are not a multiple of 16.

Seen to fail: with the last chunk of a reduction left out, with maxima that lose NaN, with 16 bytes written at a time
across the ends of broadcast rows.
"""

from __future__ import annotations

import cuda_device
import numpy as np
import pytest

from generant import ops
from generant.ops._table import TABLE

cupy = cuda_device.device()


def at_odd_address(x):
    """x on the device, beginning at no multiple of 16 bytes."""
    flat = cupy.empty(x.size + 1, x.dtype)
    flat[1:] = cupy.asarray(x.ravel())
    return flat[1:].reshape(x.shape)


PLACES = pytest.mark.parametrize("place", [lambda x: cupy.asarray(x), at_odd_address], ids=["aligned", "odd"])


@PLACES
def test_broadcasting_like_numpy(place) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape = [int(n) for n in rng.choice([1, 2, 3, 8, 64], rng.integers(0, 7), p=[0.2, 0.2, 0.2, 0.2, 0.2])]
        if np.prod(shape) > 30_000:
            continue
        pair = []
        for _ in range(2):
            own = [1 if rng.random() < 0.4 else n for n in shape][int(rng.integers(0, len(shape) + 1)) :]
            pair.append(rng.standard_normal(own).astype(np.float32))
        a, b = pair
        u, v = place(np.asarray(a)), place(np.asarray(b))
        for op, reference in ((ops.add, np.add), (ops.div, np.divide), (ops.maximum, np.maximum)):
            np.testing.assert_array_equal(op(u, v).get(), reference(a, b))
        want = np.broadcast_to(a, np.broadcast_shapes(a.shape, b.shape))
        np.testing.assert_array_equal(ops.expand(u, shape=want.shape).get(), want)
    cuda_device.guards_hold(cupy)


# Shapes and axes around the limits of reduce.cu: lanes of one warp, one thread per result, chunks, merged chunks.
REDUCTIONS = [
    ((5, 31), 1), ((5, 1024), 1), ((3, 1025), 1), ((2, 8192), 1), ((2, 8193), 1), ((1, 100_003), 1), ((3, 40_000), ()),
    ((3, 40_000), None), ((32, 70), 0), ((33, 70), 0), ((33, 3), 0), ((3000, 2), 0), ((2, 700, 63), 1),
    ((2, 700, 65), 1), ((4100, 97), 0), ((2, 3, 33, 40), (0, 2)), ((70, 5, 70), (0, 2)),
    ((3, 2, 300, 2, 40), (0, 2, 4)), ((0, 3), 0), ((3, 0), 0), ((3, 0), 1),
]  # fmt: skip


@PLACES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reductions_around_the_limits(place, dtype) -> None:
    rng = np.random.default_rng(1)
    for shape, axis in REDUCTIONS:
        x = rng.standard_normal(shape).astype(dtype)
        there = place(x)
        wide = x.astype(np.longdouble)
        for name in ("sum", "mean", "max"):
            if name == "max" and x.size == 0:
                continue
            with np.errstate(all="ignore"):
                count = np.prod([n for i, n in enumerate(shape) if axis is None or i in np.atleast_1d(axis)])
                want = np.sum(wide, axis) / count if name == "mean" else getattr(np, name)(wide, axis)
            got = TABLE[name](there, axis=axis).get()
            assert got.shape == np.shape(want)
            atol = 2e-16 * float(np.sum(np.abs(x)))  # a second pass rounds what the first leaves to float64
            np.testing.assert_allclose(
                got, want, rtol=2.0 * np.finfo(dtype).eps, atol=atol, err_msg=f"{name} {shape} {axis}"
            )
    cuda_device.guards_hold(cupy)


def test_a_row_does_not_depend_on_its_batch() -> None:
    x = np.random.default_rng(2).standard_normal((6, 9001, 5)).astype(np.float32)
    whole = ops.sum(cupy.asarray(x), axis=1).get()
    rows = ops.sum(cupy.asarray(np.ascontiguousarray(x[:, :, 0])), axis=1).get()
    for i in range(6):
        assert ops.sum(cupy.asarray(x[i : i + 1]), axis=1).get().tobytes() == whole[i].tobytes()
        assert ops.sum(cupy.asarray(x[i : i + 1, :, 0]), axis=1).get().tobytes() == rows[i].tobytes()


def test_cancellation_and_what_is_not_finite() -> None:
    big = np.array([1e16, 1.0, -1e16, 1.0] * 3000)
    assert float(ops.sum(cupy.asarray(big)).get()) == 6000
    for n in (7, 70, 5000, 50_000):
        for bad in (np.nan, np.inf, -np.inf):
            x = np.ones(n)
            x[n // 2] = bad
            for dtype in ("float32", "float64"):
                there = cupy.asarray(x.astype(dtype))
                np.testing.assert_equal(float(ops.sum(there).get()), bad)
                np.testing.assert_equal(float(ops.max(there).get()), 1.0 if bad == -np.inf else bad)
                columns = ops.max(cupy.asarray(np.repeat(x.astype(dtype)[:, None], 3, 1)), axis=0).get()
                np.testing.assert_equal(columns, [1.0 if bad == -np.inf else bad] * 3)


def test_elementwise_limits() -> None:
    """The values of the CPU kernels at NaN, infinities, zeros and beyond exp's range."""
    names = [name for name, row in TABLE.items() if row.__module__.endswith(".activation")] + ["maximum", "heaviside"]
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4, 1.0, -1.0, 1e-30, -1e-30, 3e38, -3e38, -88.0])
    for name in names:
        row = TABLE[name]
        for dtype in (np.float32, np.float64):
            x = special.astype(dtype)
            xs = [np.ones_like(x)] * (len(row.spec.inputs) - 1) + [x]
            attrs = row.cases[0]
            want, got = row(*xs, **attrs), row(*map(cupy.asarray, xs), **attrs).get()
            np.testing.assert_allclose(got, want, rtol=4 * np.finfo(dtype).eps, atol=0, err_msg=name)
