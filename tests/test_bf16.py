"""precision="bf16": operands rounded to bfloat16, sums in float32. The definition rounds, then is NumPy's product.

The numbers are the same whether the processor has the instruction or two fma stand in for it, so all of this runs
everywhere. Derivatives are not compared with differences: rounding is a staircase, whose slope counts as 1.

Seen to fail: with rounding by truncation, with even and odd k swapped in one operand, with the odd last k paired with
the value before it, with only the last block of k kept, with the precision left out of a rule.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import generant
from generant import ops, vjp
from generant.ops import _dispatch
from generant.ops.matmul import ACTIVATIONS, round_bf16

SHAPES = [  # rows, d, o: one tile and many, one block of k and several, odd k, ragged edges
    (1, 1, 1), (1, 300, 40), (13, 65, 33), (128, 256, 96), (37, 513, 70), (20, 1031, 17), (700, 31, 130), (9, 3, 2000),
    (1600, 10, 530),
]  # fmt: skip

promised = pytest.mark.skipif(ops.matmul.implementation() == "definition", reason="bits are promised of kernels only")


def arrays(n, d, o):
    rng = np.random.default_rng(n + d + o)
    return tuple(rng.standard_normal(s).astype("f4") for s in ((n, d), (d, o), (n, o), (o,)))


def products(x, w, g):
    return [f(*xs, precision="bf16") for f, *xs in ((ops.matmul, x, w), (ops.matmul_dx, g, w), (ops.matmul_dw, x, g))]


# ---- rounding -------------------------------------------------------------------------------------------------------

ONE, EPS = 1.0, 2.0**-7  # 8 significant bits
LARGEST = (2 - 2.0**-7) * 2.0**127
ROUNDED = [
    (ONE + EPS / 4, ONE), (ONE + EPS / 2, ONE), (ONE + EPS * 0.5001, ONE + EPS), (ONE + 1.5 * EPS, ONE + 2 * EPS),
    (-ONE - 1.5 * EPS, -ONE - 2 * EPS), (3.14159265, 3.140625), (0.0, 0.0), (LARGEST, LARGEST), (3.4e38, np.inf),
    (np.inf, np.inf), (-np.inf, -np.inf), (np.nan, np.nan), (256.0, 256.0), (257.0, 256.0),
    (2.0**-100 * (1 + EPS / 4), 2.0**-100),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow encountered in matmul")  # of NumPy's product, though it does not
@pytest.mark.parametrize("value, want", ROUNDED)
def test_rounds_to_nearest_and_ties_to_even(value, want):
    value = np.float32(value)
    np.testing.assert_allclose(round_bf16(value), np.float32(want), rtol=1e-8)
    x, one = np.full((1, 1), value), np.ones((1, 1), "f4")
    for f in (ops.matmul, ops.matmul_dx, ops.matmul_dw):
        for operands in ((x, one), (one, x)):
            np.testing.assert_allclose(f(*operands, precision="bf16"), np.float32(want).reshape(1, 1), rtol=1e-8)


def test_a_nan_with_any_payload_stays_nan():
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32)
    x = np.repeat(bits, 9).view("f4").reshape(4, 9)
    assert np.isnan(round_bf16(x)).all()
    assert np.isnan(ops.matmul(x, np.ones((9, 5), "f4"), precision="bf16")).all()
    assert np.isnan(ops.matmul_dx(np.ones((5, 9), "f4"), x, precision="bf16")).all()


def test_rounding_agrees_with_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32).view("f4")
    np.testing.assert_array_equal(round_bf16(x), torch.from_numpy(x).bfloat16().float().numpy())


# ---- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_product_of_rounded_operands(shape):
    """Every element is within 8 eps of the sum of the magnitudes of its terms, as for float32."""
    x, w, g, _ = arrays(*shape)
    a, b, c = (round_bf16(v).astype("f8") for v in (x, w, g))
    size = abs(a) @ abs(b), abs(c) @ abs(b).T, abs(a).T @ abs(c)
    for got, want, bound in zip(products(x, w, g), (a @ b, c @ b.T, a.T @ c), size, strict=True):
        assert got.dtype == np.float32 and got.shape == want.shape
        assert (abs(got - want) <= 8 * np.finfo("f4").eps * bound).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape):
    rng = np.random.default_rng(0)
    n, d, o = shape
    x, w, g = (rng.integers(-9, 10, s).astype("f4") for s in ((n, d), (d, o), (n, o)))
    for got, want in zip(products(x, w, g), (x @ w, g @ w.T, x.T @ g), strict=True):
        np.testing.assert_array_equal(got, want)


@promised
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_for_any_threads_and_any_batch(shape):
    x, w, g, b = arrays(*shape)
    before, made = generant.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            generant.set_num_threads(threads)
            made.append([*products(x, w, g), ops.linear_act(x, w, b, precision="bf16")])
    finally:
        generant.set_num_threads(before)
    for other in made[1:]:
        for one, same in zip(made[0], other, strict=True):
            np.testing.assert_array_equal(one, same)
    n = shape[0]
    for part in (slice(0, 1), slice(n // 3, n // 3 + 30), slice(n // 4, n)):
        np.testing.assert_array_equal(ops.matmul(x[part], w, precision="bf16"), made[0][0][part])
        np.testing.assert_array_equal(ops.matmul_dx(g[part], w, precision="bf16"), made[0][1][part])


@promised
def test_bias_and_activation_are_those_of_the_separate_ops():
    for shape in SHAPES[:6]:
        x, w, _, b = arrays(*shape)
        h = ops.matmul(x, w, precision="bf16") + b
        np.testing.assert_array_equal(ops.linear(x, w, b, precision="bf16"), h)
        for activation in ACTIVATIONS:
            y, kept = ops.linear_act.all(x, w, b, activation=activation, precision="bf16")
            np.testing.assert_array_equal(kept, h)
            np.testing.assert_array_equal(y, getattr(ops, activation)(h))


def test_the_derivative_takes_its_products_in_the_same_precision():
    x, w, g, b = arrays(13, 65, 33)

    def gradients(f, *at):
        return vjp(f, *at)[1](g)

    wanted = products(x, w, g)[1:]
    for got, want in zip(gradients(lambda x, w: ops.matmul(x, w, precision="bf16"), x, w), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(gradients(lambda *a: ops.linear(*a, precision="bf16"), x, w, b)[:2], wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    h = ops.linear(x, w, b, precision="bf16")
    slope = ops.tanh_bwd(g, ops.tanh(h))
    got = gradients(lambda *a: ops.linear_act(*a, activation="tanh", precision="bf16"), x, w, b)
    np.testing.assert_array_equal(got[0], ops.matmul_dx(slope, w, precision="bf16"))
    np.testing.assert_array_equal(got[1], ops.matmul_dw(x, slope, precision="bf16"))
    # and the second: the gradient in w of <u, matmul_dx(g, w)> is matmul_dw(u, g)
    u = arrays(13, 65, 33)[0][::-1].copy()
    second = vjp(lambda w: vjp(lambda x: ops.matmul(x, w, precision="bf16"), x)[1](g)[0], w)[1](u)[0]
    np.testing.assert_array_equal(second, ops.matmul_dw(u, g, precision="bf16"))


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (40, 0, 70)], ids=str)
def test_empty_dimensions(shape):
    x, w, g, b = arrays(*shape)
    n, d, o = shape
    for got, size in zip(products(x, w, g), ((n, o), (n, d), (d, o)), strict=True):
        np.testing.assert_array_equal(got, np.zeros(size, "f4"))
    if d == 0:
        np.testing.assert_array_equal(ops.linear(x, w, b, precision="bf16"), np.broadcast_to(b, (n, o)))


def test_float64_and_unknown_precisions_are_refused():
    x, w, _, b = (a.astype("f8") for a in arrays(3, 4, 5))
    with pytest.raises(TypeError, match="linear: precision = 'bf16' is for float32 arrays, got float64"):
        ops.linear(x, w, b, precision="bf16")
    with pytest.raises(TypeError, match="matmul: precision = 'bf16' is for float32 arrays"):
        ops.matmul(x, w, precision="bf16")
    with pytest.raises(ValueError, match="linear_act: precision must be one of float32, bf16, got 'half'"):
        ops.linear_act(x, w, b, precision="half")
    assert ops.linear(x, w, b, precision="float32").dtype == np.float64


# ---- instruction sets -----------------------------------------------------------------------------------------------

PROGRAM = """
import numpy as np
from generant import _native, ops
rng = np.random.default_rng(0)
x, w = rng.integers(-9, 10, (37, 513)).astype("f4"), rng.integers(-9, 10, (513, 70)).astype("f4")
y = ops.matmul(x, w, precision="bf16")
assert (y == x @ w).all()
print(_native.isa, len(_native.kernels()))
"""


def test_every_instruction_set_serves_and_none_above_the_cap():
    if _dispatch.native_module() is None:
        pytest.skip("the compiled module is not installed")
    from generant import _native

    for isa in _native.supported_isas:
        env = {**os.environ, "GENERANT_ISA": isa, "GENERANT_BACKEND": "native"}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [isa, str(len(_native.kernels()))]  # a partial set is filled up from the next
