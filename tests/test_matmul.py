"""What the generated tests of the matrix products do not see: blocking, batches, degenerate sizes, the epilogue.

The shapes are chosen so that every way of the blocked product is taken: in place, packed on the fly, packed ahead,
several blocks of the contracted index, ragged edges.

Seen to fail: with the last product of each element added separately for few rows, with the epilogue applied after the
first block of the contracted index, with the last column of a ragged tile left out, with tiles packed for other rows.
"""

from __future__ import annotations

import numpy as np
import pytest

import generant
from generant import ops
from generant.ops.matmul import ACTIVATIONS

SHAPES = [  # rows, d, o
    (1, 300, 40),
    (13, 64, 33),
    (128, 256, 256),
    (700, 270, 130),
    (1500, 20, 70),
    (60, 530, 10),
    (9, 3, 2000),
    (3080, 5, 40),
    (20, 4, 3110),
    (1600, 10, 530),
]


def arrays(n: int, d: int, o: int, dtype: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(n + d + o)
    return tuple(rng.standard_normal(s).astype(dtype) for s in ((n, d), (d, o), (n, o), (o,)))


# The definition is NumPy's product, whose rounding depends on the shape and the threads.
promised = pytest.mark.skipif(ops.matmul.implementation() == "definition", reason="bits are promised of kernels only")


def products(x: np.ndarray, w: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    return [ops.matmul(x, w), ops.matmul_dx(g, w), ops.matmul_dw(x, g)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_long_double(shape, dtype):
    """Every element is within 8 eps of the sum of the magnitudes of its terms."""
    x, w, g, _ = arrays(*shape, dtype)
    exact = [a.astype("longdouble") for a in (x, w, g)]
    wanted = exact[0] @ exact[1], exact[2] @ exact[1].T, exact[0].T @ exact[2]
    size = abs(exact[0]) @ abs(exact[1]), abs(exact[2]) @ abs(exact[1]).T, abs(exact[0]).T @ abs(exact[2])
    for got, want, bound in zip(products(x, w, g), wanted, size, strict=True):
        assert got.dtype == dtype and got.shape == want.shape
        assert (abs(got - want) <= 8 * np.finfo(dtype).eps * bound).all()


@promised
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_for_any_number_of_threads(shape):
    x, w, g, b = arrays(*shape, "float32")
    before, made = generant.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            generant.set_num_threads(threads)
            made.append(products(x, w, g) + [ops.linear_act(x, w, b)])
    finally:
        generant.set_num_threads(before)
    for other in made[1:]:
        for a, b_ in zip(made[0], other, strict=True):
            np.testing.assert_array_equal(a, b_)


@promised
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_does_not_depend_on_its_batch(shape, dtype):
    x, w, g, b = arrays(*shape, dtype)
    whole = ops.matmul(x, w), ops.matmul_dx(g, w), ops.linear_act(x, w, b, activation="tanh")
    n = shape[0]
    for part in (slice(0, 1), slice(n - 1, n), slice(n // 3, n // 3 + 30), slice(n // 4, n)):
        parts = ops.matmul(x[part], w), ops.matmul_dx(g[part], w), ops.linear_act(x[part], w, b, activation="tanh")
        for a, p in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(a[part], p)


@promised
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_epilogue_has_the_bits_of_the_separate_ops(activation, dtype):
    for shape in SHAPES[:6]:
        x, w, _, b = arrays(*shape, dtype)
        h = ops.linear(x, w, b)
        np.testing.assert_array_equal(h, ops.matmul(x, w) + b)
        y = getattr(ops, activation)(h)
        np.testing.assert_array_equal(ops.linear_act(x, w, b, activation=activation), y)
        for got, want in zip(ops.linear_act.all(x, w, b, activation=activation), (y, h), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 4), (40, 0, 70)], ids=str)
def test_empty_dimensions(shape):
    x, w, g, b = arrays(*shape, "float32")
    n, d, o = shape
    for got, size in zip(products(x, w, g), ((n, o), (n, d), (d, o)), strict=True):
        np.testing.assert_array_equal(got, np.zeros(size, "float32"))
    if d == 0:
        np.testing.assert_array_equal(ops.linear(x, w, b), np.broadcast_to(b, (n, o)))
        np.testing.assert_array_equal(ops.linear_act(x, w, b), np.broadcast_to(ops.silu(b), (n, o)))


@promised
def test_rows_may_have_any_leading_dimensions():
    x, w, g, b = arrays(30, 7, 5, "float32")
    whole = ops.matmul_dw(x, g)
    np.testing.assert_array_equal(ops.matmul_dw(x.reshape(2, 3, 5, 7), g.reshape(2, 3, 5, 5)), whole)
    np.testing.assert_array_equal(ops.linear(x.reshape(5, 6, 7), w, b), ops.linear(x, w, b).reshape(5, 6, 5))
    np.testing.assert_array_equal(ops.matmul(x[3], w), ops.matmul(x, w)[3])
    np.testing.assert_array_equal(ops.matmul_dw(x[3], g[3]), np.outer(x[3], g[3]))


def test_not_a_number_reaches_its_row_and_no_other():
    x, w, _, b = arrays(50, 20, 40, "float32")
    x[7, 3] = np.nan
    y = ops.linear_act(x, w, b)
    assert np.isnan(y[7]).all() and np.isfinite(np.delete(y, 7, 0)).all()
