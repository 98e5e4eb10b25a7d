"""Winograd's convolutions: the error bound of every variant, the choice of one, and filters transformed ahead.

Seen to fail: with the sign of one coefficient of B' turned, with the phases of a 4x4 filter in another order, with
_variant returning winograd2 for 8x8 images.
"""

from __future__ import annotations

import numpy as np
import pytest

import generant
from generant import ops
from generant.ops import winograd

SHAPES = [(1, 1, 1, 1, 1), (2, 5, 7, 3, 17), (3, 8, 8, 33, 40), (1, 13, 9, 130, 7), (2, 16, 4, 24, 24),
          (1, 2, 3, 9, 65)]  # fmt: skip
PADDINGS = [(1, 1, 1, 1), (0, 2, 3, 1)]


def problem(n, h, w, c, o, kernel, padding, seed=0):
    """x like an activation, and a filter that keeps its size; both exact in float64."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, h, w, c)).astype(np.float32)
    x = x / (1 + np.exp(-x))
    f = (rng.standard_normal((kernel, kernel, c, o)) / np.sqrt(kernel * kernel * c)).astype(np.float32)
    stride = kernel - 2
    return x, f, dict(stride=stride, padding=padding)


def errors(got, exact):
    """(rms, max) relative to the root mean square of the result."""
    scale = np.sqrt(np.mean(np.square(exact)))
    difference = np.abs(got - exact)
    return np.sqrt(np.mean(difference**2)) / scale, difference.max() / scale


def passes(x, f, geometry, algorithm):
    """Forward and both gradients, each with its value from the definition in float64."""
    wide = [a.astype(np.float64) for a in (x, f)]
    y = ops.conv2d(x, f, algorithm=algorithm, **geometry)
    g = np.random.default_rng(9).standard_normal(y.shape).astype(x.dtype)
    size, kernel = x.shape[1:3], f.shape[:2]
    full = {"dilation": (1, 1), "groups": 1, **geometry, "stride": (geometry["stride"],) * 2}
    yield y, ops.conv2d.definition(*wide, **full)
    yield (ops.conv2d_dx(g, f, size=size, algorithm=algorithm, **geometry),
           ops.conv2d_dx.definition(g.astype("f8"), wide[1], size=size, **full))
    yield (ops.conv2d_dw(x, g, kernel=kernel, algorithm=algorithm, **geometry),
           ops.conv2d_dw.definition(wide[0], g.astype("f8"), kernel=kernel, **full))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel, algorithm", [(3, "winograd4"), (3, "winograd2"), (4, "winograd4")])
def test_every_variant_agrees_on_awkward_sizes(shape, kernel, algorithm, padding):
    if min(shape[1] + sum(padding[:2]), shape[2] + sum(padding[2:])) < kernel:
        pytest.skip("the filter is larger than the padded input")
    for got, exact in passes(*problem(*shape, kernel, padding), algorithm):
        assert errors(got, exact)[1] <= 2e-5


@pytest.mark.parametrize("channels", [64, 512])
def test_the_documented_error_bounds(channels):
    """Those of conv2d's docstring, for filters of unit gain."""
    bounds = {"winograd4": (1.2e-6, 2e-5), "winograd2": (8e-7, 1.3e-5), "gemm": (4e-7, 5e-6)}
    products = [(3, "gemm"), (4, "gemm")] if not not_native() else []  # the others sum in one chain
    for kernel, algorithm in ((3, "winograd4"), (3, "winograd2"), (4, "winograd4"), *products):
        x, f, geometry = problem(1, 16, 16, channels, 32, kernel, (1, 1, 1, 1))
        for got, exact in passes(x, f, geometry, algorithm):
            rms, most = errors(got, exact)
            assert rms <= bounds[algorithm][0] and most <= bounds[algorithm][1]


@pytest.mark.parametrize(
    "shape", [(3, 3, 8, 24, 24), (2, 6, 6, 30, 24), (5, 9, 9, 24, 40), (1, 2, 2, 64, 64), (2, 8, 8, 8, 64)]
)
@pytest.mark.parametrize("kernel", [3, 4])
def test_prepared_filters_have_the_bits_of_conv2d_act(shape, kernel):
    x, f, geometry = problem(*shape, kernel, (1, 1, 1, 1))
    b = np.linspace(-1, 1, f.shape[3], dtype=np.float32)
    convolve = ops.prepare_conv2d(f, b, activation="silu", **geometry)
    y = ops.conv2d_act(x, f, b, activation="silu", **geometry)
    np.testing.assert_allclose(convolve(x), y, rtol=0, atol=2e-5 if not_native() else 0)
    residual = np.ones_like(y)
    wanted = ops.conv2d_act(x, f, b, residual, activation="silu", **geometry)
    np.testing.assert_allclose(convolve(x, residual), wanted, rtol=0, atol=2e-5 if not_native() else 0)


def not_native():
    return generant.show_config()["backend"] != "native"


def test_a_sample_does_not_depend_on_its_batch_or_on_threads(threads):
    x, f, geometry = problem(7, 10, 11, 40, 50, 3, (1, 1, 1, 1))
    g = np.random.default_rng(1).standard_normal((7, 10, 11, 50)).astype(np.float32)
    wanted = [ops.conv2d(x, f, **geometry), ops.conv2d_dx(g, f, size=(10, 11), **geometry)]
    dw = ops.conv2d_dw(x, g, kernel=(3, 3), **geometry)
    for n in (1, 2, 3):
        threads(n)
        for i in range(7):
            assert ops.conv2d(x[i : i + 1], f, **geometry).tobytes() == wanted[0][i].tobytes()
            assert ops.conv2d_dx(g[i : i + 1], f, size=(10, 11), **geometry).tobytes() == wanted[1][i].tobytes()
        assert ops.conv2d_dw(x, g, kernel=(3, 3), **geometry).tobytes() == dw.tobytes()


def test_the_identities_of_toom_and_cook():
    """A' [(G w) * (B' d)] is the correlation of d and w, for every variant."""
    rng = np.random.default_rng(3)
    for m, r in winograd.POINTS:
        a, g, b = winograd.matrices(m, r, np.float64)
        d, w = rng.standard_normal(m + r - 1), rng.standard_normal(r)
        np.testing.assert_allclose(a @ ((g @ w) * (b @ d)), np.correlate(d, w), atol=1e-13)


@pytest.mark.parametrize("change, message", [
    (dict(o=33), "winograd_conv2d: o = 33 does not fit u with m = 1 blocks"),
    (dict(padding=(0, 0, 0, 0)), "winograd_conv2d: the filter is larger than the padded input"),
    (dict(padding=(-1, 1, 1, 1)), "winograd_conv2d: padding must be at least 0"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, message):
    u = ops.winograd_filter(np.ones((3, 3, 2, 5), np.float32))
    with pytest.raises(ValueError, match=message):
        ops.winograd_conv2d(np.ones((1, 1, 1, 2), np.float32), u, **{"o": 5, **change})
    with pytest.raises(ValueError, match="winograd_filter: w must be 3 x 3, or 4 x 4 for stride 2, got 5 x 5"):
        ops.winograd_filter(np.ones((5, 5, 2, 5), np.float32))
