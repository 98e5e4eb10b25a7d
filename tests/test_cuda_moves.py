"""What the generated cases do not see of the ops on device arrays that move, gather and step: random shapes and axes,
views of a buffer, indices beyond the table, long lists of indices, special bits.

Seen to fail: with a transposed tile written past its edge, with the part of a destination in its last chunk left out,
with rows added that have no destination.
"""

from __future__ import annotations

import cuda_device
import numpy as np
import pytest

from generant import ops
from generant.ops import flat
from generant.ops._table import TABLE

cupy = cuda_device.device()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0, 1])
def test_moves_are_those_of_numpy(dtype, offset) -> None:
    """offset: elements from a multiple of 16 bytes to the array."""
    rng = np.random.default_rng(offset)
    for _ in range(80):
        shape = tuple(int(n) for n in rng.choice((1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 70), rng.integers(1, 7)))
        if np.prod(shape) > 30_000:
            continue
        axis = int(rng.integers(-len(shape), len(shape)))
        start, stop = sorted(int(i) for i in rng.integers(0, shape[axis] + 1, 2))
        buffer = cupy.asarray(rng.standard_normal(int(np.prod(shape)) + offset).astype(dtype))
        there = ops.part(buffer, shape=shape, offset=offset)
        x, axes = there.get(), tuple(int(i) for i in rng.permutation(len(shape)))
        piece, widths = np.take(x, range(start, stop), axis), [(0, 0)] * x.ndim
        widths[axis] = (start, stop)
        for got, want in (
            (ops.transpose(there, axes=axes), np.transpose(x, axes)),
            (ops.transpose(there), x.T),
            (ops.slice_axis(there, start=start, stop=stop, axis=axis), piece),
            (ops.pad_axis(there, before=start, after=stop, axis=axis), np.pad(x, widths)),
            (ops.concat(cupy.asarray(piece), there, axis=axis), np.concatenate([piece, x], axis)),
            (ops.cast(there, dtype="float32"), x.astype(np.float32)),
            (ops.cast(there, dtype="float64"), x.astype(np.float64)),
        ):
            assert got.flags.c_contiguous and got.dtype == want.dtype
            np.testing.assert_array_equal(got.get(), want)
    cuda_device.guards_hold(cupy)


def test_bits_are_kept_whatever_they_mean() -> None:
    x = np.array([[0x7FA00001, 0x80000000, 0xFFFFFFFF, 1]] * 21, np.uint32).view(np.float32)  # NaNs, -0, a subnormal
    bits, there = x.view(np.uint32), cupy.asarray(x)
    np.testing.assert_array_equal(ops.transpose(there).get().view(np.uint32), bits.T)
    np.testing.assert_array_equal(ops.concat(there, there).get().view(np.uint32), np.concatenate([bits, bits], 1))
    ops.assign_(y := cupy.empty(x.shape, x.dtype), there)
    np.testing.assert_array_equal(y.get().view(np.uint32), bits)


def test_ops_without_kernels_stay_on_the_device() -> None:
    x = cupy.asarray(np.arange(24, dtype=np.float32))
    before = dict(cupy.host_transfers) if cuda_device.HOST else {}
    square, filled, copied = ops.reshape(x, shape=(4, -1)), ops.full_like(x, value=0.5), ops.stop_gradient(x)
    view, spread = ops.part(x, shape=(2, 3), offset=4), flat.part_t(square, n=30, offset=5)
    packed = cupy.zeros(20, x.dtype)
    ops.pack_(packed, view, ops.part(packed, shape=(3,), offset=6), view, offsets=(0, 6, 10))
    if cuda_device.HOST:
        assert cupy.host_transfers == before
    assert view.data.ptr == x.data.ptr + 16 and copied.data.ptr != x.data.ptr
    np.testing.assert_array_equal(square.get(), np.arange(24).reshape(4, 6))
    np.testing.assert_array_equal(filled.get(), np.full(24, 0.5))
    np.testing.assert_array_equal(spread.get(), np.concatenate([np.zeros(5), np.arange(24), [0]]))
    own = np.arange(4.0, 10.0)
    np.testing.assert_array_equal(packed.get(), np.concatenate([own, np.zeros(4), own, np.zeros(4)]))


# m, n, d and the distribution of the indices: both ways of scatter_add, one and several digits of the sort.
SCATTERS = [(5, 3000, 7, 1.0), (900, 5000, 4, 1.0), (900, 5000, 5, 9.0), (70_000, 4100, 8, 1.0), (3000, 2049, 1, 3.0),
            (2000, 5000, 3, 400.0)]  # fmt: skip


@pytest.mark.parametrize("m, n, d, power", SCATTERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_lists_of_indices(m, n, d, power, dtype) -> None:
    rng = np.random.default_rng(n)
    g = rng.standard_normal((n, d)).astype(dtype)
    index = (m * rng.random(n) ** power).astype(np.int64)  # power > 1: most of them are small
    want = np.zeros((m, d))
    np.add.at(want, index, g)
    bound = np.zeros((m, d))
    np.add.at(bound, index, np.abs(g))
    got = [ops.scatter_add(cupy.asarray(g), cupy.asarray(index), m=m).get() for _ in range(2)]
    assert got[0].tobytes() == got[1].tobytes()
    longest = np.bincount(index).max()
    assert np.all(np.abs(got[0] - want) <= bound * np.finfo(dtype).eps * (4 + np.sqrt(longest)))
    np.testing.assert_array_equal(ops.gather(cupy.asarray(g), cupy.asarray(index % n)).get(), g[index % n])
    cuda_device.guards_hold(cupy)


@pytest.mark.parametrize("m, n", [(6, 40), (3000, 4000)])
def test_an_index_out_of_range_touches_no_memory(m, n, monkeypatch) -> None:
    """A replayed step does not look at its indices first."""
    rng = np.random.default_rng(3)
    index = rng.integers(0, m, n)
    index[::7], index[1::7] = -1, m + np.arange(len(index[1::7])) * 2**40
    inside = (index >= 0) & (index < m)
    table, g = rng.standard_normal((m, 4)), rng.standard_normal((n, 4))
    for name in ("gather", "scatter_add"):
        monkeypatch.setattr(TABLE[name], "check", None)
    found = ops.gather(cupy.asarray(table), cupy.asarray(index)).get()
    np.testing.assert_array_equal(found[inside], table[index[inside]])
    assert np.isnan(found[~inside]).all()
    want = np.zeros((m, 4))
    np.add.at(want, index[inside], g[inside])
    np.testing.assert_allclose(
        ops.scatter_add(cupy.asarray(g), cupy.asarray(index), m=m).get(), want, rtol=1e-12, atol=1e-14
    )
    cuda_device.guards_hold(cupy)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(bad) -> None:
    g = np.ones(40_001)
    g[33_000] = bad
    there, p, m, v = cupy.asarray(g), cupy.zeros(40_001), cupy.zeros(40_001), cupy.zeros(40_001)
    step, lr = cupy.zeros(1, np.int64), cupy.full(1, 0.1)
    ok, norm = ops.clip_norm_(there, limit=1.0)
    ops.adam_(p, m, v, there, step, lr, ok)
    ops.ema_(m, there, lr, ok)
    assert int(ok.get()[0]) == 0 and not np.isfinite(norm.get()[0])
    np.testing.assert_array_equal(there.get(), g)
    assert not p.get().any() and not m.get().any() and not v.get().any() and int(step.get()[0]) == 0


def test_steps_are_those_of_the_cpu() -> None:
    """Views at odd addresses, and more than one block of the norm."""
    rng = np.random.default_rng(4)
    n = 33_001
    arrays = [np.abs(rng.standard_normal(n + 1)).astype(np.float32) for _ in range(4)]
    step, lr = np.full(1, 3, np.int64), np.full(1, 0.01)
    there = [cupy.asarray(a)[1:] for a in arrays]
    p, m, v, g = (a[1:].copy() for a in arrays)
    counter, rate = cupy.asarray(step), cupy.asarray(lr)
    flag, norm = ops.clip_norm_(there[3], limit=2.5)
    wanted_flag, wanted_norm = ops.clip_norm_(g, limit=2.5)
    np.testing.assert_allclose(norm.get(), wanted_norm, rtol=1e-14)
    ops.adam_(*there, counter, rate, flag, weight_decay=0.1)
    ops.adam_(p, m, v, g, step, lr, wanted_flag, weight_decay=0.1)
    ops.lion_(there[1], there[0], there[3], rate, flag)
    ops.lion_(m, p, g, lr, wanted_flag)
    ops.sgd_(there[2], there[0], there[3], rate, flag, momentum=0.9, nesterov=True)
    ops.sgd_(v, p, g, lr, wanted_flag, momentum=0.9, nesterov=True)
    for got, want in zip(there, (p, m, v, g), strict=True):
        np.testing.assert_allclose(got.get(), want, rtol=1e-5, atol=1e-7)
    assert int(counter.get()[0]) == int(step[0]) == 4
    cuda_device.guards_hold(cupy)
