"""Resampling on device arrays at sizes the generated tests leave out: packs of 16 bytes, and many scales."""

from __future__ import annotations

import cuda_device
import numpy as np
import pytest

from generant import ops

cupy = cuda_device.device()

DOWN = dict(window=(3, 2), stride=(2, 1), padding=(1, 2, 0, 1))
FILTER = dict(up=(3, 2), down=(2, 3), padding=(4, -1, -2, 5))
SCALES = [(1, 1), (1, 6), (6, 1), (5, 5), (5, 12), (12, 5), (9, 4), (4, 9), (17, 16), (16, 33)]


def same(op, arrays, atol=2e-6, **attrs):
    """Every output agrees with the definition in float64."""
    found = op.all(*map(cupy.asarray, arrays), **attrs)
    cuda_device.guards_hold(cupy)
    wanted = op.definition(*[a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays], **attrs)
    for y, y64 in zip(found, wanted if isinstance(wanted, tuple) else (wanted,), strict=False):
        np.testing.assert_allclose(y.get(), y64, rtol=2e-6, atol=atol)


def image(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype, c", [(np.float32, 8), (np.float64, 6), (np.float32, 2)])
def test_packs_of_channels(dtype, c):
    x, f = image(2, 9, 11, c, dtype=dtype), image(4, 5, dtype=dtype)
    for op in (ops.avg_pool, ops.max_pool):
        same(op, [x], **DOWN)
    g = image(*ops.avg_pool(x, **DOWN).shape, dtype=dtype)
    index = ops.max_pool.all(x, **DOWN)[1]
    same(ops.avg_pool_bwd, [g], size=(9, 11), **DOWN)
    same(ops.max_pool_bwd, [g, index], size=(9, 11), **DOWN)
    same(ops.max_pool_at, [x, index], **DOWN)
    same(ops.upfirdn2d, [x, f], **FILTER)
    same(ops.upfirdn2d_df, [x, image(*ops.upfirdn2d(x, f, **FILTER).shape, dtype=dtype)], size=(4, 5), **FILTER)
    for mode in ("constant", "reflect", "replicate"):
        attrs = dict(padding=(5, -2, 3, 7), mode=mode, value=0.25)
        same(ops.pad, [x], **attrs)
        same(ops.pad_bwd, [image(*ops.pad(x, **attrs).shape, dtype=dtype)], size=(9, 11), **attrs)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "corners"])
def test_resize_and_its_adjoint_at_every_scale(mode):
    attrs = dict(mode="bilinear" if mode == "corners" else mode, align_corners=mode == "corners")
    for h, p in SCALES:
        same(ops.resize, [image(1, h, p, 4)], size=(p, h), **attrs)
        same(ops.resize_bwd, [image(1, p, h, 4)], size=(h, p), **attrs)


def test_long_rows_and_large_windows():
    x = image(1, 3, 700, 24)
    same(ops.avg_pool, [x], window=(3, 500))
    same(ops.avg_pool_bwd, [image(1, 1, 1, 24)], size=(3, 700), window=(3, 500))
    same(ops.upfirdn2d_df, [x, image(1, 1, 698, 24)], atol=1e-4, size=(3, 3))


def test_blur_has_a_gradient():
    from generant import autograd

    x = image(2, 6, 6, 3)
    loss = autograd.value_and_grad(lambda x: ops.sum(ops.square(ops.blur(x, up=2))))
    gradient = loss(cupy.asarray(x))[1]
    assert isinstance(gradient, cupy.ndarray)
    np.testing.assert_allclose(gradient.get(), loss(x)[1], rtol=2e-6, atol=2e-6)
