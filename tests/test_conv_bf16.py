"""precision="bf16" of the convolutions: operands rounded to bfloat16, sums in float32, never by Winograd's algorithm.

Seen to fail: with even and odd channels swapped in a strip, with the odd last channel paired with the next pixel's
first, with operands not rounded or truncated where the float32 kernel serves, with Winograd's algorithm let in, with
the precision left out of a rule, with the residual left out of a call.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import generant
from generant import ops, vjp
from generant.ops.conv import ALGORITHMS, EPILOGUES
from generant.ops.matmul import round_bf16

_spec = importlib.util.spec_from_file_location("conv_cases", Path(__file__).with_name("test_conv.py"))
assert _spec is not None and _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
arrays, triple = cases.arrays, cases.triple

BF16 = dict(precision="bf16")
EPS = np.finfo("f4").eps
SHAPES = [
    *cases.SHAPES,
    (3, (5, 7), 31, (1, 1), 33, {}),  # odd channels, one output more than a panel
    (2, (6, 5), 257, (1, 1), 65, {}),  # several windows of columns
    (1, (7, 7), 23, (3, 3), 19, dict(padding=(2, 0, 1, 3), stride=(2, 3), dilation=(2, 1))),
    (2, (6, 7), 15, (3, 2), 10, dict(padding=1, groups=5)),  # groups of three channels
    (1, (9, 9), 128, (4, 4), 96, dict(padding=1, stride=2)),  # four chains
    (2, (6, 7), 130, (1, 1), 127, {}),  # a filter large enough for a product of its own
    (1, (40, 41), 33, (3, 3), 34, dict(padding=1)),  # many windows, Winograd's shape
    (2, (5, 5), 8, (3, 3), 8, dict(padding=1, groups=8, algorithm="gemm")),
]  # fmt: skip
NAMES = [f"{n}x{h}x{w}x{c}-{kh}x{kw}-{o}-{i}" for i, (n, (h, w), c, (kh, kw), o, _) in enumerate(SHAPES)]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
promised = pytest.mark.skipif(ops.conv2d.implementation() == "definition", reason="bits are promised of kernels only")


@shapes
def test_agrees_with_the_convolution_of_rounded_operands(shape):
    """The error's rms within 4 eps of the result's; every element within 8 eps of the sum of its terms' magnitudes."""
    a = shape[-1]
    xs = arrays(shape)
    exact = [round_bf16(v).astype("f8") for v in xs]
    plain = {k: v for k, v in a.items() if k != "algorithm"}
    wanted, bounds = triple(*exact, **plain), triple(*(abs(v) for v in exact), **plain)
    for got, want, bound in zip(triple(*xs, **a, **BF16), wanted, bounds, strict=True):
        assert got.dtype == np.float32 and got.shape == want.shape
        error = abs(got - want)
        assert (error <= 8 * EPS * bound).all()
        assert np.sqrt((error**2).mean()) <= 4 * EPS * np.sqrt((want**2).mean())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@shapes
def test_whole_numbers_are_exact(shape, algorithm):
    rng = np.random.default_rng(0)
    a = {**shape[-1], "algorithm": algorithm}
    xs = [rng.integers(-9, 10, v.shape).astype("f4") for v in arrays(shape)]
    wanted = triple(*xs, **{**a, "algorithm": "gemm"})
    for got, want in zip(triple(*xs, **a, **BF16), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


@promised
@pytest.mark.parametrize("algorithm", ["auto", "winograd2", "winograd4"])
def test_is_never_computed_by_winograds_algorithm(algorithm):
    for kernel, a in ((3, dict(padding=1)), (4, dict(padding=1, stride=2))):
        xs = arrays((2, (16, 16), 32, (kernel, kernel), 32, a))
        for one, other in zip(triple(*xs, algorithm=algorithm, **a, **BF16),
                              triple(*xs, algorithm="gemm", **a, **BF16), strict=True):  # fmt: skip
            np.testing.assert_array_equal(one, other)


@promised
@shapes
def test_a_sample_does_not_depend_on_its_batch_nor_a_result_on_the_threads(shape):
    a = {**shape[-1], **BF16}
    x, w, g = (np.concatenate([v] * 3) if i != 1 else v for i, v in enumerate(arrays(shape)))
    x, g = (v * np.arange(1, len(v) + 1, dtype="f4").reshape(-1, 1, 1, 1) for v in (x, g))
    threads = generant.get_num_threads()
    try:
        generant.set_num_threads(1)
        whole = triple(x, w, g, **a)
        for n in (2, 3, 8):
            generant.set_num_threads(n)
            for one, other in zip(whole, triple(x, w, g, **a), strict=True):
                np.testing.assert_array_equal(one, other)
    finally:
        generant.set_num_threads(threads)
    for part in (slice(0, 1), slice(1, None)):
        np.testing.assert_array_equal(ops.conv2d(x[part], w, **a), whole[0][part])
        np.testing.assert_array_equal(ops.conv2d_dx(g[part], w, size=x.shape[1:3], **a), whole[1][part])


@pytest.mark.parametrize("activation", EPILOGUES)
def test_the_epilogue_has_the_bits_of_the_separate_ops(activation):
    for index in (1, 6, 10, 16, 20, 24):  # product, strided, 1x1, depthwise, few outputs
        a = {**SHAPES[index][-1], **BF16}
        x, w, r = arrays(SHAPES[index])
        b = np.linspace(-1, 1, w.shape[3], dtype="f4")
        for bias, extra in ((b, r), (None, r), (b, None), (None, None)):
            h = ops.conv2d(x, w, **a)
            h = h if bias is None else h + bias
            h = h if extra is None else h + extra
            y = h if activation == "identity" else getattr(ops, activation)(h)
            np.testing.assert_array_equal(ops.conv2d_act(x, w, bias, extra, activation=activation, **a), y)
            made = ops.conv2d_act.all(x, w, bias, extra, activation=activation, **a)
            for got, want in zip(made, (y, h), strict=True):
                np.testing.assert_array_equal(got, want)


# ---- derivatives ----------------------------------------------------------------------------------------------------


def test_the_derivative_takes_its_convolutions_in_the_same_precision():
    """Not compared with differences: rounding is a staircase, whose slope counts as 1."""
    a = dict(padding=(1, 0, 2, 1), stride=(2, 1), dilation=(1, 2), groups=2, **BF16)
    x, w, g = arrays((2, (9, 8), 10, (3, 2), 12, a))
    size, kernel = x.shape[1:3], w.shape[:2]
    wanted = triple(x, w, g, **a)[1:]
    for got, want in zip(vjp(lambda x, w: ops.conv2d(x, w, **a), x, w)[1](g), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    b, r = np.linspace(-1, 1, 12, dtype="f4"), g[::-1].copy()
    got = vjp(lambda *v: ops.conv2d_act(*v, activation="tanh", **a), x, w, b, r)[1](g)
    slope = ops.tanh_bwd(g, ops.conv2d_act(x, w, b, r, activation="tanh", **a))
    np.testing.assert_array_equal(got[0], ops.conv2d_dx(slope, w, size=size, **a))
    np.testing.assert_array_equal(got[1], ops.conv2d_dw(x, slope, kernel=kernel, **a))
    np.testing.assert_array_equal(got[3], slope)
    # the second: <u, conv2d_dx(g, w)> in w is conv2d_dw(u, g), and in g conv2d(u, w); <v, conv2d_dw(x, g)> likewise
    u, v = x[::-1].copy(), w[::-1].copy()
    of_g, of_w = vjp(lambda g, w: ops.conv2d_dx(g, w, size=size, **a), g, w)[1](u)
    np.testing.assert_array_equal(of_g, ops.conv2d(u, w, **a))
    np.testing.assert_array_equal(of_w, ops.conv2d_dw(u, g, kernel=kernel, **a))
    of_x, of_g = vjp(lambda x, g: ops.conv2d_dw(x, g, kernel=kernel, **a), x, g)[1](v)
    np.testing.assert_array_equal(of_x, ops.conv2d_dx(g, v, size=size, **a))
    np.testing.assert_array_equal(of_g, ops.conv2d(x, v, **a))


def test_one_dimension_and_the_transpose_hand_it_on():
    x, w, g = arrays((2, (1, 17), 6, (1, 3), 8, dict(stride=(1, 2))))
    y = ops.conv2d(x, w, stride=(1, 2), **BF16)
    np.testing.assert_array_equal(ops.conv1d(x[:, 0], w[0], stride=2, **BF16), y[:, 0])
    np.testing.assert_array_equal(ops.conv_transpose2d(g, w, stride=(1, 2), **BF16),
                                  ops.conv2d_dx(g, w, size=(1, 17), stride=(1, 2), **BF16))  # fmt: skip


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_no_samples_and_no_channels():
    x, w = np.zeros((0, 5, 5, 2), "f4"), np.ones((3, 3, 2, 4), "f4")
    y = ops.conv2d(x, w, **BF16)
    assert y.shape == (0, 3, 3, 4)
    np.testing.assert_array_equal(ops.conv2d_dw(x, y, kernel=(3, 3), **BF16), np.zeros_like(w))
    x, w = np.zeros((2, 5, 5, 0), "f4"), np.zeros((3, 3, 0, 4), "f4")
    b = np.arange(4, dtype="f4")
    np.testing.assert_array_equal(ops.conv2d(x, w, **BF16), np.zeros((2, 3, 3, 4)))
    np.testing.assert_array_equal(ops.conv2d_act(x, w, b, activation="relu", **BF16), np.broadcast_to(b, (2, 3, 3, 4)))
    assert ops.conv2d_dx(np.zeros((2, 3, 3, 4), "f4"), w, size=(5, 5), **BF16).shape == (2, 5, 5, 0)


@promised
def test_not_a_number_reaches_what_reads_it_and_nothing_else():
    for bits in (0x7F800001, 0x7FFFFFFF, 0xFF800001, 0x7F800000):  # the last is inf
        for c, o, a in ((16, 24, {}), (15, 24, {}), (16, 1, {}), (16, 16, dict(groups=16)), (128, 8, {})):
            x, w, _ = arrays((2, (9, 9), c, (3, 3), o, dict(padding=1, **a)))
            x[1, 4, 8, 0] = np.uint32(bits).view("f4")
            bad = ~np.isfinite(ops.conv2d(x, w, padding=1, **a, **BF16)).all(-1)
            expected = np.zeros((2, 9, 9), bool)
            expected[1, 3:6, 7:9] = True
            np.testing.assert_array_equal(bad, expected)


def test_float64_and_unknown_precisions_are_refused():
    x, w, g = (v.astype("f8") for v in arrays((1, (5, 5), 3, (3, 3), 4, {})))
    calls = {
        "conv2d": lambda **a: ops.conv2d(x, w, **a),
        "conv2d_act": lambda **a: ops.conv2d_act(x, w, **a),
        "conv2d_dx": lambda **a: ops.conv2d_dx(g, w, size=(5, 5), **a),
        "conv2d_dw": lambda **a: ops.conv2d_dw(x, g, kernel=(3, 3), **a),
        "conv1d": lambda **a: ops.conv1d(x[0], w[0], **a),
        "conv_transpose2d": lambda **a: ops.conv_transpose2d(g, w, **a),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name}: precision = 'bf16' is for float32 arrays, got float64"):
            call(**BF16)
        with pytest.raises(ValueError, match=f"{name}: precision must be one of float32, bf16, got 'half'"):
            call(precision="half")
        assert call(precision="float32").dtype == np.float64
