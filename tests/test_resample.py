"""Pooling, resizing, padding and filters against torch, and what the generated tests do not see: images wider than a
strip, every number of channels around a vector, long filters, filters of any rank, not-a-numbers, bad attributes.

Seen to fail: with the window of a pool one too short, with align_corners ignored, with reflection that repeats the
edge, with a filter not flipped, with equal maxima or padding taken, with a NaN or an index outside not respected, with
the last part of a pixel left out, a strip read from the wrong column, the weights of adjoints doubled, nearest rows
copied from two rows above, a crop one row off, the first block of a filter gradient left out, and that gradient scaled
by the number of threads; with checks of attributes taken out.
"""

from __future__ import annotations

import numpy as np
import pytest

import generant
from generant import grad, ops, vjp

promised = pytest.mark.skipif(ops.resize.implementation() == "definition", reason="bits are promised of kernels only")
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype("float32") / 64
CHANNELS = (1, 2, 3, 4, 5, 8, 13, 16, 33)
LINEAR = [  # (op, attributes): what is linear in its image
    (ops.avg_pool, dict(window=(3, 2), stride=2, padding=(1, 1, 0, 1))),
    (ops.avg_pool, dict()),
    (ops.avg_pool, dict(window=7, stride=1)),
    (ops.resize, dict(size=(18, 22))),
    (ops.resize, dict(size=(18, 22), mode="bilinear")),
    (ops.resize, dict(size=(5, 40), mode="bilinear", align_corners=True)),
    (ops.resize, dict(size=(4, 25), mode="nearest-exact")),
    (ops.pad, dict(padding=(2, 3, -1, 4), mode="reflect")),
    (ops.pad, dict(padding=(2, -3, 11, 4), mode="replicate")),
    (ops.pad, dict(padding=1)),
]


def image(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def filtered(x: np.ndarray, **attrs) -> np.ndarray:
    return ops.upfirdn2d(x, FILTER.astype(x.dtype), **attrs)


# ---- torch ----------------------------------------------------------------------------------------------------------


def with_gradient(torch, function, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """function(x) of NCHW tensors and the gradient of a fixed weighting of it, as NHWC arrays."""
    t = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = function(t)
    y.backward(torch.tensor(image(*np.array(y.shape)[[0, 2, 3, 1]], dtype=x.dtype.name).transpose(0, 3, 1, 2)))
    return y.detach().numpy().transpose(0, 2, 3, 1), t.grad.numpy().transpose(0, 2, 3, 1)


def same_as_torch(function, theirs, x: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    y, pull = vjp(function, x)
    want, want_grad = with_gradient(torch, theirs, x)
    assert y.shape == want.shape
    np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(pull(image(*y.shape, dtype=x.dtype.name))[0], want_grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("c", [1, 3, 9])
@pytest.mark.parametrize("window, stride, padding", [(2, None, 0), (3, 2, 1), ((3, 4), (1, 3), (1, 2)), (5, 5, 2)])
def test_pooling_agrees_with_torch(window, stride, padding, c):
    functional = pytest.importorskip("torch.nn.functional")
    x = image(2, 11, 13, c, dtype="float64")
    attrs = dict(window=window, stride=stride, padding=padding)
    for include in (False, True):
        same_as_torch(lambda x: ops.avg_pool(x, count_include_pad=include, **attrs),
                      lambda t: functional.avg_pool2d(t, window, stride, padding, count_include_pad=include), x)
    same_as_torch(lambda x: ops.max_pool(x, **attrs), lambda t: functional.max_pool2d(t, window, stride, padding), x)


@pytest.mark.parametrize("size", [(8, 10), (16, 20), (3, 7), (13, 9), (1, 1), (32, 5)])
@pytest.mark.parametrize("mode, corners", [("nearest", None), ("nearest-exact", None), ("bilinear", False),
                                           ("bilinear", True)])
def test_resize_agrees_with_torch(mode, corners, size):
    functional = pytest.importorskip("torch.nn.functional")
    same_as_torch(lambda x: ops.resize(x, size=size, mode=mode, align_corners=bool(corners)),
                  lambda t: functional.interpolate(t, size, mode=mode, align_corners=corners),
                  image(2, 8, 10, 3, dtype="float64"))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [(1, 2, 3, 4), (0, 3, 0, 0), (5, 5, 4, 4)])
def test_pad_agrees_with_torch(mode, padding):
    functional = pytest.importorskip("torch.nn.functional")
    top, bottom, left, right = padding
    value = {"value": 0.25} if mode == "constant" else {}
    same_as_torch(lambda x: ops.pad(x, padding=padding, mode=mode, **value),
                  lambda t: functional.pad(t, (left, right, top, bottom), mode, **value),
                  image(2, 6, 7, 5, dtype="float64"))


def reference_upfirdn2d(torch, t, f, up, down, padding, flip):
    """As in StyleGAN2: zeros inserted, padded or cropped, one convolution per channel, every down-th kept."""
    n, c, h, w = t.shape
    t = t.reshape(n, c, h, 1, w, 1)
    t = torch.nn.functional.pad(t, [0, up[1] - 1, 0, 0, 0, up[0] - 1]).reshape(n, c, h * up[0], w * up[1])
    top, bottom, left, right = padding
    t = torch.nn.functional.pad(t, [max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)])
    t = t[:, :, max(-top, 0) : t.shape[2] - max(-bottom, 0), max(-left, 0) : t.shape[3] - max(-right, 0)]
    f = f if flip else f.flip([0, 1])
    t = torch.nn.functional.conv2d(t, f[None, None].repeat(c, 1, 1, 1), groups=c)
    return t[:, :, :: down[0], :: down[1]]


@pytest.mark.parametrize("rank_one", [True, False])
@pytest.mark.parametrize("up, down, padding, flip", [
    ((1, 1), (1, 1), (2, 1, 2, 1), False), ((2, 2), (1, 1), (2, 1, 2, 1), False), ((1, 1), (2, 2), (1, 1, 1, 1), True),
    ((2, 3), (3, 2), (4, -1, -2, 6), False), ((3, 1), (1, 3), (5, 5, 0, 0), True),
])  # fmt: skip
def test_filters_agree_with_stylegan(up, down, padding, flip, rank_one):
    torch = pytest.importorskip("torch")
    f = np.outer([1, 2, 4, 3, 1], [3, 1, 5, 2, 0, 1.0]) if rank_one else image(5, 6, dtype="float64")
    for c in (2, 9):
        same_as_torch(lambda x: ops.upfirdn2d(x, f, up=up, down=down, padding=padding, flip=flip),
                      lambda t: reference_upfirdn2d(torch, t, torch.tensor(f), up, down, padding, flip),
                      image(2, 7, 8, c, dtype="float64"))


# ---- the definition, at sizes for which the generated tests would take long -----------------------------------------


@pytest.mark.parametrize("c", CHANNELS)
def test_every_number_of_channels(c):
    x = image(2, 9, 11, c)
    for op, attrs in LINEAR:
        np.testing.assert_allclose(op(x, **attrs), op.definition(x, **{**op.defaults, **tuples(attrs)}), atol=2e-6)
    for window, stride, padding in ((2, 2, 0), (3, 2, 1), (2, 1, 0)):
        attrs = dict(window=(window,), stride=(stride,), padding=(padding,))
        y, index = ops.max_pool.all(x, **attrs)
        want = ops.max_pool.definition(x, **attrs)
        np.testing.assert_array_equal(y, want[0])
        np.testing.assert_array_equal(index, want[1])
        g = image(*y.shape)
        np.testing.assert_allclose(ops.max_pool_bwd(g, index, size=(9, 11), **attrs),
                                   ops.max_pool_bwd.definition(g, index, size=(9, 11), **attrs), atol=1e-6)
        np.testing.assert_array_equal(ops.max_pool_at(x, index, **attrs), y)


def tuples(attrs: dict) -> dict:
    return {k: (v,) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in attrs.items()}


@pytest.mark.parametrize("shape", [(1, 12, 150, 33), (1, 5, 1501, 2), (2, 6, 6, 2000)], ids=str)
def test_images_wider_than_a_strip(shape):
    _, h, w, _ = shape
    x = image(*shape)
    for op, attrs in [
        (ops.resize, dict(size=(2 * h, 2 * w))), (ops.resize, dict(size=(h + 1, w + 3), mode="bilinear")),
        (ops.avg_pool, dict(window=(3,), stride=(1,), padding=(1,))), (ops.pad, dict(padding=(2,), mode="reflect")),
    ]:  # fmt: skip
        np.testing.assert_allclose(op(x, **attrs), op.definition(x, **{**op.defaults, **attrs}), atol=2e-6)
    for f in (FILTER, image(3, 3)):
        attrs = dict(padding=(2, 1, 2, 1), up=(1, 2))
        np.testing.assert_allclose(ops.upfirdn2d(x, f, **attrs), ops.upfirdn2d.definition(x, f, **attrs), atol=5e-6)


@pytest.mark.parametrize("op, attrs", LINEAR)
@pytest.mark.parametrize("c", [3, 20])
def test_backward_is_the_adjoint(op, attrs, c):
    """<A x, g> = <x, A^T g>, and A is the adjoint of A^T."""
    x = image(3, 9, 11, c, dtype="float64")
    y, pull = vjp(lambda x: op(x, **attrs), x)
    g = image(*y.shape, dtype="float64")
    np.testing.assert_allclose((y * g).sum(), (x * pull(g)[0]).sum(), rtol=1e-10)
    back = vjp(lambda g: vjp(lambda x: op(x, **attrs), x)[1](g)[0], g)[1]
    np.testing.assert_allclose(back(x)[0], y, atol=1e-12)


def test_filter_gradient_is_the_adjoint():
    attrs = dict(up=2, down=(1, 3), padding=(3, 2, 4, 1))
    for c in (2, 37):
        x, f = image(40, 5, 6, c, dtype="float64"), image(4, 3, dtype="float64")
        y, pull = vjp(lambda x, f: ops.upfirdn2d(x, f, **attrs), x, f)
        g = image(*y.shape, dtype="float64")
        dx, df = pull(g)
        np.testing.assert_allclose((y * g).sum(), (x * dx).sum(), rtol=1e-9)
        np.testing.assert_allclose((y * g).sum(), (f * df).sum(), rtol=1e-9)


@promised
def test_same_bits_for_any_number_of_threads_and_any_batch():
    x = image(5, 40, 42, 24)
    f = image(4, 4)

    def results(x):
        y, index = ops.max_pool.all(x)
        return [op(x, **a) for op, a in LINEAR] + [
            filtered(x, up=2, padding=2), ops.upfirdn2d(x, f), y, index, ops.max_pool_bwd(y, index, size=(40, 42)),
        ]  # fmt: skip

    before, made = generant.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            generant.set_num_threads(threads)
            made.append([*results(x), ops.upfirdn2d_df(x, x, size=(1, 1))])
    finally:
        generant.set_num_threads(before)
    for other in made[1:]:
        for a, b in zip(made[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    for part in (slice(0, 1), slice(2, 5)):
        for a, b in zip(made[0], results(x[part]), strict=False):
            np.testing.assert_array_equal(a[part], b)


# ---- what is special ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 9])
def test_the_first_of_equal_maxima_is_chosen_and_nan_wins(c):
    x = np.zeros((1, 4, 4, c), "float32")
    x[0, 0:2, 2:4] = [[[1.0], [2.0]], [[2.0], [2.0]]]
    x[0, 2, 1], x[0, 3, 2], x[0, 2:, 2:] = np.nan, -np.inf, -np.inf
    y, index = ops.max_pool.all(x)
    np.testing.assert_array_equal(y[0, :, :, -1], [[0, 2], [np.nan, -np.inf]])
    np.testing.assert_array_equal(index[0, :, :, 0], [[0, 1], [1, 0]])


def test_padding_is_never_a_maximum():
    y, index = ops.max_pool.all(-np.ones((1, 2, 2, 3)), window=3, stride=1, padding=1)
    np.testing.assert_array_equal(y, -np.ones((1, 2, 2, 3)))
    np.testing.assert_array_equal(index[0, :, :, 0], [[4, 3], [1, 0]])


@pytest.mark.parametrize("c", [1, 9])
def test_an_index_outside_adds_nothing(c):
    g, index = np.ones((1, 2, 2, c)), np.full((1, 2, 2, c), 200, np.uint8)
    for attrs in (dict(), dict(window=3, stride=2, padding=(1, 0, 1, 0))):
        np.testing.assert_array_equal(ops.max_pool_bwd(g, index, size=(4, 4), **attrs), np.zeros((1, 4, 4, c)))
        np.testing.assert_array_equal(ops.max_pool_at(np.ones((1, 4, 4, c)), index, **attrs), np.zeros((1, 2, 2, c)))
    top_left = np.zeros((1, 2, 2, c), np.uint8)            # in the padding
    dx = ops.max_pool_bwd(g, top_left, size=(4, 4), window=3, stride=2, padding=(1, 0, 1, 0))
    assert dx.sum() == c and (dx[0, 1, 1] == 1).all()


def test_blur_keeps_a_constant_and_undoes_its_size():
    x = np.ones((1, 8, 6, 5), "float32")
    for attrs, size in ((dict(), (8, 6)), (dict(up=2), (16, 12)), (dict(down=2), (4, 3))):
        y = ops.blur(x, **attrs)
        assert y.shape == (1, *size, 5)
        inner = slice(2, -2) if size[0] > 4 else slice(1, -1)
        np.testing.assert_allclose(y[:, inner, inner], 1, rtol=1e-6)
    edge = grad(lambda x: ops.sum(ops.square(ops.blur(x, up=2))))(x)
    assert edge.shape == x.shape and np.isfinite(edge).all()


def test_negative_padding_crops():
    x = image(2, 6, 7, 3)
    for mode in ("constant", "reflect", "replicate"):
        np.testing.assert_array_equal(ops.pad(x, padding=(-1, -2, -3, 0), mode=mode), x[:, 1:4, 3:])


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 4, 4, 0)], ids=str)
def test_empty_images(shape):
    x = np.zeros(shape)
    y, index = ops.max_pool.all(x)
    assert y.shape == index.shape == (shape[0], 2, 2, shape[3])
    assert ops.max_pool_bwd(y, index, size=(4, 4)).shape == shape
    assert ops.avg_pool(x).shape == y.shape and ops.avg_pool_bwd(y, size=(4, 4)).shape == shape
    assert ops.resize(x, size=(3, 5), mode="bilinear").shape == (shape[0], 3, 5, shape[3])
    assert ops.upfirdn2d(x, np.ones((2, 2))).shape == (shape[0], 3, 3, shape[3])
    np.testing.assert_array_equal(ops.upfirdn2d_df(x, x, size=(1, 1)), np.zeros((1, 1)))


WRONG = [
    (ops.avg_pool, dict(window=0), "avg_pool: window must be at least 1"),
    (ops.avg_pool, dict(window=(1, 2, 3)), "avg_pool: window must be one integer or 2"),
    (ops.avg_pool, dict(window=1.5), "avg_pool: window must be one integer or 2"),
    (ops.avg_pool, dict(window=9), "avg_pool: window .9, 9. does not fit an image of size .5, 6."),
    (ops.max_pool, dict(padding=2), "max_pool: padding must be smaller than the window"),
    (ops.max_pool, dict(window=17, padding=8), "max_pool: window must have at most 256 places"),
    (ops.resize, dict(size=(3,)), "resize: size must be .rows, columns."),
    (ops.resize, dict(size=3), "resize: size must be .rows, columns."),
    (ops.resize, dict(size=(3, 3), mode="cubic"), "resize: mode must be one of nearest, bilinear, nearest-exact"),
    (ops.pad, dict(padding=5, mode="reflect"), "pad: padding .* reflects more than an image of size .5, 6. has"),
    (ops.pad, dict(padding=-3), "pad: padding .* crops more than an image of size .5, 6. has"),
    (ops.avg_pool_bwd, dict(size=(11, 15)), "avg_pool_bwd: g is 5 x 6, but an input of size .11, 15. gives"),
    (ops.blur, dict(taps=(1, -1)), "blur: taps must not be empty nor sum to zero"),
]


@pytest.mark.parametrize("op, attrs, message", WRONG)
def test_wrong_attributes_are_named(op, attrs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        op(np.zeros((1, 5, 6, 2)), **attrs)


def test_a_filter_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"upfirdn2d: a filter of 7 x 2 does not fit an image of size .5, 6."):
        ops.upfirdn2d(np.zeros((1, 5, 6, 2)), np.zeros((7, 2)))
    with pytest.raises(ValueError, match="upfirdn2d: up must be at least 1"):
        ops.upfirdn2d(np.zeros((1, 5, 6, 2)), np.zeros((2, 2)), up=0)
