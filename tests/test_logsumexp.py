"""logsumexp and softmax_matmul where the generated tests do not look: against scipy, torch and the matrix; magnitudes
that overflow, columns left out, NaN, memory.

Seen to fail: with the Numba twin's sum not rescaled when the maximum rises; with the column for -<g, out> left at 0 in
the rule of softmax_matmul; with the whole bias rounded to x's dtype.
"""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from scipy.special import logsumexp as scipy_logsumexp

from generant import ops
from generant.autograd import grad, vjp
from generant.ops import logsumexp, softmax_matmul

COSTS = [dict(scale=0.6), dict(scale=1.5, cost="euclidean"), dict(scale=0.4, cost="dot"), dict(scale=-0.3, cost="dot")]
every_cost = pytest.mark.parametrize("attrs", COSTS, ids=str)


def points(n, d, seed=0, dtype=np.float64, offset=0.0):
    return (np.random.default_rng(seed).standard_normal((n, d)) + offset).astype(dtype)


def scores(x, y, lib=np, *, scale=1.0, cost="sqeuclidean"):
    if cost == "dot":
        return scale * x @ y.T
    square = ((x[:, None] - y[None]) ** 2).sum(-1)
    return -scale * (square if cost == "sqeuclidean" else lib.sqrt(square))


def softmax(score):
    e = np.exp(score - score.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# ---- values ----


@every_cost
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 2e-6)])
@pytest.mark.parametrize("d", [1, 2, 17, 70])
def test_it_is_scipys_logsumexp_of_the_matrix(attrs, dtype, tolerance, d):
    x, y, v, bias = points(83, d, 1, dtype), points(541, d, 2, dtype), points(541, 5, 3, dtype), points(541, 1, 4)[:, 0]
    score = scores(x.astype(float), y.astype(float), **attrs)
    for given, s in ((bias, score + bias), (None, score)):
        tight = tolerance * max(1, np.abs(s).max())
        lse, (out, cached) = logsumexp(x, y, given, **attrs), softmax_matmul.all(x, y, v, given, **attrs)
        assert lse.dtype == cached.dtype == np.float64
        assert out.dtype == dtype
        np.testing.assert_allclose(lse, scipy_logsumexp(s, axis=1), rtol=0, atol=tight)
        np.testing.assert_allclose(cached, lse, rtol=0, atol=tight)
        np.testing.assert_allclose(out, softmax(s) @ v, rtol=0, atol=10 * tight)
        np.testing.assert_array_equal(softmax_matmul(x, y, v, given, **attrs), out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "dot"])
@pytest.mark.parametrize("size", [1e-12, 1e3, 1e12])
def test_no_magnitude_overflows(dtype, cost, size):
    """Scores from 1e-12 to beyond 1e12: finite, and the largest score is all there is where one column wins."""
    x, y = points(30, 3, 1, dtype), points(40, 3, 2, dtype)
    score = scores(x.astype(float), y.astype(float), scale=size, cost=cost)
    lse, out = logsumexp(x, y, scale=size, cost=cost), softmax_matmul(x, y, y, scale=size, cost=cost)
    np.testing.assert_allclose(lse, scipy_logsumexp(score, axis=1), rtol=2e-6, atol=1e-6)
    assert np.isfinite(out).all()
    if size > 1e6:
        np.testing.assert_array_equal(out, y[score.argmax(axis=1)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_common_bias_of_any_size_is_kept(dtype):
    """1e9 added to every bias: float64 keeps the digits that float32 scores have."""
    x, y, bias = points(30, 3, 1, dtype), points(40, 3, 2, dtype), points(40, 1, 3)[:, 0]
    np.testing.assert_allclose(logsumexp(x, y, bias + 1e9) - 1e9, logsumexp(x, y, bias), rtol=0, atol=2e-6)
    np.testing.assert_allclose(
        softmax_matmul(x, y, y, bias - 1e9), softmax_matmul(x, y, y, bias), rtol=0, atol=1e-5
    )


@every_cost
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_left_out(attrs, dtype):
    x, y, v = points(30, 3, 1, dtype), points(700, 3, 2, dtype), points(700, 2, 3, dtype)
    kept = np.r_[3:5, 600:640]
    bias = np.full(700, -np.inf)
    bias[kept] = points(len(kept), 1, 4)[:, 0]
    np.testing.assert_allclose(
        logsumexp(x, y, bias, **attrs), logsumexp(x, y[kept], bias[kept], **attrs), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        softmax_matmul(x, y, v, bias, **attrs), softmax_matmul(x, y[kept], v[kept], bias[kept], **attrs),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    grads = vjp(lambda *a: softmax_matmul(*a, bias, **attrs), x, y, v)[1](np.ones((30, 2), dtype))
    assert all(np.isfinite(g).all() for g in grads)
    assert not np.delete(grads[1], kept, axis=0).any()


@every_cost
@pytest.mark.parametrize("m", [0, 5, 600])
def test_nothing_to_sum_is_minus_infinity(attrs, m):
    x, y = points(20, 3, 1), points(m, 3, 2)
    bias = np.full(m, -np.inf)
    assert (logsumexp(x, y, bias, **attrs) == -np.inf).all()
    out, lse = softmax_matmul.all(x, y, y, bias, **attrs)
    assert (lse == -np.inf).all()
    assert np.isnan(out).all()


@every_cost
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_reaches_its_row_and_no_other(attrs, dtype):
    x, y = points(20, 3, 1, dtype), points(700, 3, 2, dtype)
    x[3, 1] = np.nan
    lse = logsumexp(x, y, **attrs)
    assert np.isnan(lse[3])
    assert np.isfinite(np.delete(lse, 3)).all()
    y[650, 0] = np.nan
    assert np.isnan(logsumexp(x, y, **attrs)).all()
    y[650, 0], bias = 0, np.zeros(700)
    bias[2] = np.nan
    assert np.isnan(logsumexp(x[:3], y, bias, **attrs)).all()


def test_one_column_is_its_score():
    x, y = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert logsumexp(x, y, scale=2.0)[0] == pytest.approx(-50, rel=1e-15)
    assert logsumexp(x, y, scale=2.0, cost="euclidean")[0] == pytest.approx(-10, rel=1e-15)
    assert logsumexp(x + 1, y, np.array([0.5]), scale=2.0, cost="dot")[0] == pytest.approx(14.5, rel=1e-15)
    np.testing.assert_array_equal(softmax_matmul(x, y, y), y)


@pytest.mark.parametrize("d", [2, 40])
def test_sharp_averages_find_the_nearest_row_far_from_the_origin(d):
    """float32 at offset 1000: in the expanded form |x|^2 swallows what tells the rows apart."""
    y = points(300, d, 1, np.float32, 1000)
    x = y[::-1] + np.float32(1e-3)
    want = softmax(scores(x.astype(float), y.astype(float), scale=1e4)) @ (y.astype(float) - 1000)
    np.testing.assert_allclose(softmax_matmul(x, y, y - 1000, scale=1e4), want, rtol=0, atol=1e-4)
    itself = scores(y.astype(float), y.astype(float), scale=1e4)
    np.testing.assert_allclose(logsumexp(y, y, scale=1e4), scipy_logsumexp(itself, axis=1), rtol=0, atol=1e-4)


# ---- derivatives ----


def along(f, xs, seed=0):
    """(derivative of the scalar f in a random direction, the same by central differences)."""
    rng = np.random.default_rng(seed)
    direction = [rng.standard_normal(x.shape) for x in xs]
    grads = vjp(f, *xs)[1](np.ones(()))
    ours = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)

    def at(h):
        return float(f(*[x + h * d for x, d in zip(xs, direction, strict=True)]))

    h = 2e-4
    return ours, (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def slope(f, xs, seed=7):
    """The derivative of f along a fixed random direction, as a function of ops."""
    rng = np.random.default_rng(seed)
    direction = [rng.standard_normal(x.shape) for x in xs]

    def g(*xs):
        grads = vjp(f, *xs)[1](np.ones(()))
        terms = [ops.sum(ops.mul(a, d)) for a, d in zip(grads, direction, strict=True) if a is not None]
        return functools.reduce(ops.add, terms)

    return g


def weighted(out, seed=5):
    return ops.sum(ops.mul(out, np.random.default_rng(seed).standard_normal(out.shape)))


@every_cost
@pytest.mark.parametrize("which", ["lse", "average", "both"])
def test_first_and_second_derivatives_in_everything(attrs, which):
    xs = [points(9, 3, 1), points(12, 3, 2), points(12, 2, 3), points(12, 1, 4)[:, 0]]

    def f(x, y, v, bias):
        if which == "lse":
            return weighted(logsumexp(x, y, bias, **attrs))
        out, lse = softmax_matmul.all(x, y, v, bias, **attrs)
        return weighted(out) if which == "average" else ops.add(weighted(out), weighted(ops.square(lse)))

    for g in (f, slope(f, xs)):
        ours, differences = along(g, xs)
        assert ours == pytest.approx(differences, rel=1e-7, abs=1e-7)


@every_cost
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_torchs(attrs, with_bias):
    torch = pytest.importorskip("torch")
    x, y, v, bias = points(31, 4, 1), points(23, 4, 2), points(23, 3, 3), points(23, 1, 4)[:, 0]
    g, g_lse = points(31, 3, 5), points(31, 1, 6)[:, 0]
    inputs = (x, y, v, bias)[: 4 if with_bias else 3]
    for op in (softmax_matmul, logsumexp):
        given = inputs if op is softmax_matmul else (x, y, *inputs[3:])
        tensors = [torch.tensor(a, requires_grad=True) for a in given]
        score = scores(*tensors[:2], torch, **attrs)
        score = score + tensors[-1] if with_bias else score
        if op is logsumexp:
            torch.logsumexp(score, 1).backward(torch.tensor(g_lse))
        else:
            (torch.softmax(score, 1) @ tensors[2]).backward(torch.tensor(g))
        pull = vjp(functools.partial(op, **attrs), *given)[1]
        for ours, theirs in zip(pull(g_lse if op is logsumexp else g), tensors, strict=True):
            np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-10)


def test_second_order_is_torchs():
    torch = pytest.importorskip("torch")
    x, y, w = points(15, 3, 1), points(12, 3, 2), points(15, 3, 4)

    def first(x):
        return ops.sum(ops.mul(grad(lambda x: ops.sum(ops.square(logsumexp(x, y, scale=0.7))))(x), w))

    t = torch.tensor(x, requires_grad=True)
    out = (torch.logsumexp(scores(t, torch.tensor(y), torch, scale=0.7), 1) ** 2).sum()
    (g,) = torch.autograd.grad(out, t, create_graph=True)
    (want,) = torch.autograd.grad((g * torch.tensor(w)).sum(), t)
    np.testing.assert_allclose(grad(first)(x), want.numpy(), rtol=1e-9, atol=1e-9)


def test_attention_is_torchs():
    torch = pytest.importorskip("torch")
    q, k, v = (points(n, 16, n, np.float32) for n in (33, 47, 48))
    want = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v[:47])))
    np.testing.assert_allclose(softmax_matmul(q, k, v[:47], scale=0.25, cost="dot"), want.numpy(), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_the_ideal_denoiser_satisfies_tweedies_formula(sigma):
    """E[y | x] = x + sigma^2 grad log p(x) for the mixture of Gaussians at the data: softmax_matmul from logsumexp."""
    x, y = points(20, 3, 1), points(50, 3, 2)
    scale = 0.5 / sigma**2
    score = grad(lambda x: ops.sum(logsumexp(x, y, scale=scale)))(x)
    np.testing.assert_allclose(softmax_matmul(x, y, y, scale=scale), x + sigma**2 * score, rtol=1e-10, atol=1e-10)


def test_float32_gradients_are_float32_and_close():
    x, y, v, bias, g = points(40, 5, 1), points(60, 5, 2), points(60, 3, 3), points(60, 1, 5)[:, 0], points(40, 3, 4)
    wide = vjp(softmax_matmul, x, y, v, bias)[1](g)
    x, y, v, g = (a.astype(np.float32) for a in (x, y, v, g))
    for ours, want in zip(vjp(softmax_matmul, x, y, v, bias)[1](g), wide, strict=True):
        assert ours.dtype == (np.float32 if ours.ndim == 2 else np.float64)
        np.testing.assert_allclose(ours, want, rtol=0, atol=2e-5 * np.abs(want).max())


# ---- bad input, memory ----


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_without_a_kernel_is_refused(cost, scale):
    x = points(3, 2)
    with pytest.raises(ValueError, match="logsumexp: scale must be positive and finite"):
        logsumexp(x, x, scale=scale, cost=cost)
    with pytest.raises(ValueError, match="softmax_matmul: scale must be positive and finite"):
        softmax_matmul(x, x, x, scale=scale, cost=cost)
    if not np.isfinite(scale):
        with pytest.raises(ValueError, match="scale must be finite"):
            logsumexp(x, x, scale=scale, cost="dot")


def test_a_bias_is_float64_and_a_cost_has_a_name():
    x = points(3, 2)
    with pytest.raises(TypeError, match="bias must be float64, got float32"):
        logsumexp(x, x, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="cost must be one of sqeuclidean, euclidean, dot, got 'cosine'"):
        logsumexp(x, x, cost="cosine")


def test_no_matrix_is_formed():
    """3000 x 3000 float32 would be 36 MB."""
    x = points(3000, 2, 0, np.float32)
    logsumexp(x, x)
    tracemalloc.start()
    try:
        logsumexp(x, x)
        vjp(lambda x: softmax_matmul(x, x, x), x)[1](x)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
