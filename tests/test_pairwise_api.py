"""generant.pairwise, the public functions: conversion, batches, threads, out=, what they refuse, and what they cost.

The ops underneath have their own tests (test_pairwise, test_kernel_matvec, test_neighbours, test_logsumexp); here the
values are compared with NumPy in float64 once per function, and everything else with the plain call.

Seen to fail: with an integer radius taken for an array; with lengths squared out of range under a cosine; with masks
dropped.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.special import logsumexp as reference_logsumexp
from scipy.stats import norm

from generant import get_num_threads, grad, ops, pairwise, value_and_grad
from generant.ops import _dispatch

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((40, 3)).astype(np.float32), RNG.standard_normal((53, 3)).astype(np.float32)
V, BIAS = RNG.standard_normal((53, 2)).astype(np.float32), RNG.standard_normal(53)
R, S = cdist(X.astype(float), Y.astype(float)), cdist(X.astype(float), Y.astype(float), "sqeuclidean")
P, L1 = X.astype(float) @ Y.T.astype(float), cdist(X.astype(float), Y.astype(float), "cityblock")
VALUES = {
    "rbf": (dict(bandwidth=1.5), np.exp(-S / 4.5)),
    "laplace": (dict(bandwidth=1.5), np.exp(-R / 1.5)),
    "matern12": (dict(bandwidth=1.5), np.exp(-R / 1.5)),
    "laplacian": (dict(bandwidth=1.5), np.exp(-L1 / 1.5)),
    "polynomial": (dict(degree=2, gamma=0.5, coef0=2.0), (0.5 * P + 2) ** 2),
    "energy": (dict(), -R),
    "rational_quadratic": (dict(bandwidth=1.5, alpha=0.7), (1 + S / (1.4 * 2.25)) ** -0.7),
    "inverse_multiquadric": (dict(bandwidth=1.5), (1 + S / 2.25) ** -0.5),
    "matern32": (dict(bandwidth=1.5), (1 + math.sqrt(3) * R / 1.5) * np.exp(-math.sqrt(3) * R / 1.5)),
    "matern52": (
        dict(bandwidth=1.5), (1 + math.sqrt(5) * R / 1.5 + 5 * S / 6.75) * np.exp(-math.sqrt(5) * R / 1.5)
    ),
    "dot": (dict(), P),
    "cosine": (dict(), P / np.linalg.norm(X, axis=1)[:, None] / np.linalg.norm(Y, axis=1)),
    "exp_dot": (dict(gamma=0.5), np.exp(0.5 * P)),
}  # fmt: skip
CALLS = {
    "kernel_sum": lambda x, y, **a: pairwise.kernel_sum(x, y, **a),
    "kernel_matvec": lambda x, y, **a: pairwise.kernel_matvec(x, y, y[..., :2], **a),
    "kernel_row_sums": lambda x, y, **a: pairwise.kernel_row_sums(x, y, **a),
    "logsumexp": lambda x, y, **a: pairwise.logsumexp(x, y, **a),
    "softmax_matmul": lambda x, y, **a: pairwise.softmax_matmul(x, y, y, **a),
    "kde_logpdf": lambda x, y, **a: pairwise.kde_logpdf(x, y, 0.5, **a),
    "knn": lambda x, y, **a: pairwise.knn(x, y, k=2, **a),
    "argmin": lambda x, y, **a: pairwise.argmin(x, y, **a),
    "min_argmin": lambda x, y, **a: pairwise.min_argmin(x, y, **a),
    "radius_count": lambda x, y, **a: pairwise.radius_count(x, y, 1.0, **a),
}
calls = pytest.mark.parametrize("name", CALLS)


def several(result):
    return result if isinstance(result, tuple) else (result,)


def same(a, b):
    assert all(np.array_equal(p, q) for p, q in zip(several(a), several(b), strict=True))


@pytest.mark.parametrize("kernel", VALUES)
def test_kernels_have_their_textbook_values(kernel):
    attributes, exact = VALUES[kernel]
    scale = np.abs(exact).sum()
    assert abs(pairwise.kernel_sum(X, Y, kernel=kernel, **attributes) - exact.sum()) < 2e-7 * scale
    got = pairwise.kernel_matvec(X, Y, V, kernel=kernel, **attributes)
    np.testing.assert_allclose(got, exact @ V, rtol=0, atol=2e-6 * np.abs(exact @ np.abs(V)).max())
    rows, columns, squares = pairwise.kernel_row_sums(X, Y, kernel=kernel, **attributes)
    np.testing.assert_allclose(rows, exact.sum(1), rtol=0, atol=2e-7 * np.abs(exact).sum(1).max())
    np.testing.assert_allclose(columns, exact.sum(0), rtol=0, atol=2e-7 * np.abs(exact).sum(0).max())
    np.testing.assert_allclose(squares, (exact**2).sum(), rtol=4e-7)


def test_several_bandwidths_are_added_and_gamma_is_an_rbf_bandwidth():
    widths = (0.5, 1.0, 2.0, 3.7)
    exact = sum(np.exp(-S / (2 * h * h)) for h in widths)
    np.testing.assert_allclose(pairwise.kernel_sum(X, Y, bandwidth=widths), exact.sum(), rtol=3e-7)
    assert pairwise.kernel_sum(X, Y, gamma=0.125) == pairwise.kernel_sum(X, Y, bandwidth=2.0)
    with pytest.raises(ValueError, match="kernel_sum: give bandwidth or gamma"):
        pairwise.kernel_sum(X, Y, gamma=0.1, bandwidth=1.0)


def test_matvec_with_a_vector_and_with_itself():
    got = pairwise.kernel_matvec(X, None, X[:, 0])
    assert got.shape == (40,)
    same(got, pairwise.kernel_matvec(X, X, X[:, :1])[:, 0])


def test_searches_agree_with_scipy():
    order = np.argsort(R, axis=1)[:, :7]
    distance, index = pairwise.knn(X, Y, k=7)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, np.take_along_axis(R, order, 1), rtol=1e-7)
    np.testing.assert_allclose(pairwise.knn(X, Y, k=7, metric="sqeuclidean")[0], distance**2, rtol=3e-7)
    same(pairwise.knn(X, Y, k=7, return_distance=False), index)
    ranks = pairwise.knn(X, Y, k=(2, 7))
    same(ranks, (distance[:, [1, 6]], index[:, [1, 6]]))
    cosine = cdist(X.astype(float), Y.astype(float), "cosine")
    np.testing.assert_allclose(pairwise.knn(X, Y, k=1, metric="cosine")[0][:, 0], cosine.min(1), atol=1e-7)
    same(pairwise.argmin(X, Y, metric="cosine"), cosine.argmin(1))
    same(pairwise.min_argmin(X, Y), (distance[:, 0], index[:, 0]))
    own, at = pairwise.knn(np.zeros((4, 2)), k=2)
    assert not own.any() and at.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_balls():
    radius = np.linspace(0.1, 2, 53)
    inside = R < radius
    same(pairwise.radius_count(X, Y, radius), inside.sum(1))
    same(pairwise.radius_count(X, Y, 0.7), (R < 0.7).sum(1))
    same(pairwise.radius_count(X, Y, radius, mode="any"), inside.any(1))
    smallest = np.where(inside, radius, np.inf).min(1).astype(np.float32)
    same(pairwise.radius_count(X, Y, radius, mode="min"), smallest)


def test_softmax_family_agrees_with_scipy():
    for cost, score in (("sqeuclidean", -0.7 * S), ("euclidean", -0.7 * R), ("dot", 0.7 * P)):
        exact = reference_logsumexp(score + BIAS, axis=1)
        got = pairwise.logsumexp(X, Y, BIAS, scale=0.7, cost=cost)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)
        share = np.exp(score + BIAS - exact[:, None])
        np.testing.assert_allclose(
            pairwise.softmax_matmul(X, Y, V, BIAS, scale=0.7, cost=cost), share @ V, rtol=1e-5, atol=2e-6
        )


def test_densities():
    weights = RNG.random(53) * 10  # need not sum to one
    share = weights / weights.sum()
    for dtype, tolerance in ((np.float32, 2e-6), (np.float64, 1e-12)):
        x, y = X.astype(dtype), Y.astype(dtype)
        for h in (0.4, np.linspace(0.1, 3, 53)):
            logs = norm.logpdf(X.astype(float)[:, None], Y.astype(float), np.reshape(h, (-1, 1))).sum(-1)
            exact = reference_logsumexp(logs, axis=1, b=share)
            got = pairwise.kde_logpdf(x, y, h, weights=weights)
            assert got.dtype == dtype
            np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="kde_logpdf: weights must be 53 numbers >= 0"):
        pairwise.kde_logpdf(X, Y, 1.0, weights=-weights)


def test_median_distance_is_the_lower_median():
    for x in (X, X.astype(np.float64), RNG.integers(0, 4, (30, 2)).astype(float), np.ones((7, 2)), X[:2], X[:3]):
        pairs = np.sort(pdist(x.astype(float)))
        exact = pairs[(len(pairs) - 1) // 2]
        assert pairwise.median_distance(x) == pytest.approx(exact, rel=2e-7)
    both = np.sort(pdist(np.concatenate([X, Y]).astype(float)))
    assert pairwise.median_distance(X, Y) == pytest.approx(both[(len(both) - 1) // 2], rel=2e-7)
    with pytest.raises(ValueError, match="median_distance: there must be at least 2 rows, got 1"):
        pairwise.median_distance(X[:1])


# ---- arguments that every function takes ----------------------------------------------------------------------------


@calls
def test_leading_axes_are_batches(name):
    x, y = RNG.standard_normal((2, 3, 9, 4)).astype(np.float32), RNG.standard_normal((3, 7, 4)).astype(np.float32)
    got = several(CALLS[name](x, y))
    for i in range(2):
        for j in range(3):
            for whole, part in zip(got, several(CALLS[name](x[i, j], y[j])), strict=True):
                np.testing.assert_array_equal(whole[i, j], part)
    with pytest.raises(ValueError, match=f"{name}: the leading axes do not fit together"):
        CALLS[name](x, np.zeros((5, 7, 4), np.float32))


@calls
def test_integers_half_precision_strides_and_lists_are_converted_once(name):
    x, y = RNG.integers(-3, 4, (12, 3)), RNG.integers(-3, 4, (9, 3))
    want = CALLS[name](x.astype(np.float32), y.astype(np.float32))
    for dtype in (np.int8, np.int16, np.float16, np.uint8):
        a, b = (x, y) if np.dtype(dtype).kind != "u" else (np.abs(x), np.abs(y))
        same(CALLS[name](a.astype(dtype), b.astype(dtype)), CALLS[name](a.astype(np.float32), b.astype(np.float32)))
    wide = CALLS[name](x, y)  # int64: float64
    same(wide, CALLS[name](x.astype(float), y.astype(float)))
    strided = np.asfortranarray(x.astype(np.float32))
    strided.setflags(write=False)
    same(CALLS[name](strided, np.repeat(y.astype(np.float32), 2, axis=0)[::2]), want)
    same(CALLS[name](x.astype(np.float32).tolist(), y.astype(float)), wide)


@calls
def test_threads_change_nothing_and_the_limit_is_lifted_again(name):
    x, y = RNG.standard_normal((700, 5)).astype(np.float32), RNG.standard_normal((900, 5)).astype(np.float32)
    want, threads = CALLS[name](x, y), get_num_threads()
    for n in (1, 2, 5):
        same(CALLS[name](x, y, n_threads=n), want)
    assert get_num_threads() == threads
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"{name}: n_threads must be a positive integer or None, got {bad}"):
            CALLS[name](x, y, n_threads=bad)


@calls
def test_out_receives_the_result(name):
    want = CALLS[name](X, Y)
    out = tuple(np.empty_like(w) for w in several(want))
    given = out if isinstance(want, tuple) else out[0]
    got = CALLS[name](X, Y, out=given)
    assert all(a is b for a, b in zip(several(got), out, strict=True))
    same(got, want)
    wrong = tuple(np.empty((*np.shape(w), 1)) for w in several(want))
    with pytest.raises(ValueError, match=f"{name}: out must have shape"):
        CALLS[name](X, Y, out=wrong if isinstance(want, tuple) else wrong[0])


@calls
def test_rows_that_are_not_finite_are_named(name):
    for bad in (np.nan, np.inf):
        x = X.copy()
        x[7, 1] = x[30, 2] = bad
        with pytest.raises(ValueError, match=rf"{name}: x must be finite, but 2 rows are not \(first: row 7\)"):
            CALLS[name](x, Y)
    batch = np.stack([Y, Y])
    batch[1, 4, 0] = np.nan
    which = "centers" if name == "kde_logpdf" else "y"
    with pytest.raises(ValueError, match=rf"{name}: {which} must be finite, but 1 row is not \(first: row \(1, 4\)\)"):
        CALLS[name](X, batch)
    large = np.full((5, 3), 3e38, np.float32)  # whose sum of squares overflows: finite all the same
    large[0] = 0
    with np.errstate(all="ignore"):
        CALLS[name](large, large)


@calls
def test_shapes_that_do_not_fit_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: all arguments must have equally many columns, but (x|y) has 3 and "):
        CALLS[name](X, Y[:, :2])
    for empty in (X[:0], X[:, :0]):
        with pytest.raises(ValueError, match=f"{name}: x must have at least 1 row and 1 column, got shape"):
            CALLS[name](empty, Y)
    with pytest.raises(ValueError, match=f"{name}: x must have at least 2 dimensions"):
        CALLS[name](X[0], Y)
    with pytest.raises(TypeError, match=f"{name}: x must be an array of real numbers"):
        CALLS[name](X.astype(complex), Y)


@pytest.mark.parametrize("bandwidth", [0, -1.0, math.nan, math.inf, (1.0, 0.0), ()])
def test_bandwidths_are_positive(bandwidth):
    with pytest.raises(ValueError, match="kernel_sum: bandwidth must be positive and finite"):
        pairwise.kernel_sum(X, Y, bandwidth=bandwidth)


def test_wrong_choices_are_told_the_right_ones():
    with pytest.raises(ValueError, match=r"kernel_matvec: kernel must be one of rbf, laplace.*got 'gauss'"):
        pairwise.kernel_matvec(X, Y, V, kernel="gauss")
    with pytest.raises(ValueError, match="knn: metric must be one of euclidean, sqeuclidean, cosine"):
        pairwise.knn(X, Y, metric="l1")
    with pytest.raises(ValueError, match="radius_count: mode must be one of count, any, min"):
        pairwise.radius_count(X, Y, 1.0, mode="all")
    with pytest.raises(ValueError, match="knn: k must be in"):
        pairwise.knn(X, k=40)
    for radius in (-1.0, math.nan, -np.ones(53)):
        with pytest.raises(ValueError, match="radius_count: radius must be at least 0"):
            pairwise.radius_count(X, Y, radius)
    for radius in ("one", None):
        with pytest.raises(TypeError, match="radius_count: radius must be an array"):
            pairwise.radius_count(X, Y, radius)
    for k in (0, -1, 2.5, True, None, "3", [], [0, 2], [[1, 2]]):
        with pytest.raises(ValueError, match="knn: k must be a positive integer or several, got"):
            pairwise.knn(X, k=k)
    with pytest.raises(ValueError, match="kde_logpdf: bandwidth must be positive and finite"):
        pairwise.kde_logpdf(X, Y, "scott")
    with pytest.raises(ValueError, match="median_distance: n_threads must be a positive integer"):
        pairwise.median_distance(X, n_threads=0)
    with pytest.raises(TypeError, match="logsumexp: bias must be an array of real numbers"):
        pairwise.logsumexp(X, Y, np.ones(53, complex))


def test_a_radius_may_be_an_integer():
    assert pairwise.radius_count(X, Y, 1).shape == (40,)
    np.testing.assert_array_equal(pairwise.radius_count(X, Y, 1), pairwise.radius_count(X, Y, 1.0))


@calls
def test_what_is_no_array_of_numbers_is_named(name):
    masked = np.ma.masked_array(X, mask=X > 2)
    for bad, error, message in (
        (None, TypeError, "x must be an array, got None"),
        (masked, ValueError, "x has masked entries"),
        ([[1.0, 2.0, 3.0], [4.0]], ValueError, "x must be an array of real numbers: .*inhomogeneous"),
        (X.astype(object), TypeError, "x must be an array of real numbers, got dtype object"),
    ):
        with pytest.raises(error, match=f"{name}: {message}"):
            CALLS[name](bad, Y)
    several(CALLS[name](np.ma.masked_array(X, mask=False), Y))


def test_parameters_that_a_kernel_does_not_have_are_refused():
    for bad, message in (
        (dict(kernel="laplacian", gamma=0.5), "gamma is for rbf, polynomial, exp_dot, kernel 'laplacian' has none"),
        (dict(kernel="dot", gamma=0.5), "gamma is for rbf"),
        (dict(kernel="polynomial", bandwidth=2.0), "kernel 'polynomial' has no bandwidth, got 2.0"),
        (dict(gamma=0.5, bandwidth=2.0), "give bandwidth or gamma"),
        (dict(gamma=-0.5), "gamma must be positive"),
    ):
        with pytest.raises(ValueError, match=f"kernel_sum: {message}"):
            pairwise.kernel_sum(X, Y, **bad)
    with pytest.raises(TypeError, match="kernel_sum: bandwidth must be a positive number or several, got 'median'"):
        pairwise.kernel_sum(X, Y, bandwidth="median")


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_cosine_does_not_depend_on_lengths(scale):
    """Squares of these are beyond float32."""
    x, y = X * np.float32(scale), Y * np.float32(scale)
    want = pairwise.kernel_sum(X, Y, kernel="cosine")
    assert pairwise.kernel_sum(x, y, kernel="cosine") == pytest.approx(want, rel=1e-4)
    np.testing.assert_array_equal(pairwise.argmin(x, y, metric="cosine"), pairwise.argmin(X, Y, metric="cosine"))


def test_public_functions_are_differentiable():
    x, y = X.astype(np.float64), Y.astype(np.float64)
    step = 1e-6 * RNG.standard_normal(x.shape)
    functions = [
        lambda x: pairwise.kernel_sum(x, y, kernel="cosine"),
        lambda x: pairwise.kernel_sum(x, kernel="matern52", bandwidth=(1.0, 2.0)),
        lambda x: ops.sum(pairwise.kernel_matvec(x, y, y[:, 0], kernel="inverse_multiquadric")),
        lambda x: ops.sum(pairwise.kde_logpdf(x, y, np.linspace(0.5, 1, 53))),
        lambda x: ops.sum(pairwise.knn(x, y, k=(1, 4))[0]),
        lambda x: ops.sum(pairwise.softmax_matmul(x, y, y, BIAS)),
        lambda x: ops.sum(pairwise.logsumexp(ops.reshape(x, shape=(2, 20, 3)), y, BIAS)),  # a batch
    ]
    for f in functions:
        slope = (float(f(x + step)) - float(f(x - step))) / 2
        assert float((grad(f)(x) * step).sum()) == pytest.approx(slope, rel=2e-6)


def test_a_traced_batch_gives_the_gradient_of_its_entries():
    x = RNG.standard_normal((2, 3, 6, 4))

    def total(x):
        return ops.sum(pairwise.kernel_sum(x, exclude_diagonal=True))

    value, slope = value_and_grad(total)(x)
    assert float(value) == pytest.approx(sum(float(total(x[i, j])) for i in range(2) for j in range(3)))
    np.testing.assert_allclose(slope[1, 2], grad(total)(x[1, 2]), rtol=1e-12)


@calls
def test_torch_in_torch_out(name):
    torch = pytest.importorskip("torch")
    got = CALLS[name](torch.from_numpy(X), torch.from_numpy(Y))
    for a, b in zip(several(got), several(CALLS[name](X, Y)), strict=True):
        assert isinstance(a, torch.Tensor)
        np.testing.assert_array_equal(a.numpy(), b)


# ---- transport -----------------------------------------------------------------------------------------------------


def test_a_debiased_divergence_is_zero_for_equal_and_positive_for_different_measures():
    x, y = X[:30].astype(np.float64), Y[:30].astype(np.float64)
    assert abs(pairwise.sinkhorn(x, x, reg=0.5, debias=True, tol=1e-9).value) < 1e-8
    near, far = (pairwise.sinkhorn(x, x + shift, reg=0.5, debias=True, tol=1e-9).value for shift in (0.1, 1.0))
    np.testing.assert_allclose([near, far], [0.03, 3.0], rtol=1e-6)  # of a shift by t it is |t|^2, whatever reg is
    for dtype, tol in ((np.float32, 1e-3), (np.float64, 1e-6)):
        got = pairwise.sinkhorn(x.astype(dtype), y.astype(dtype), reg=0.2, debias=True, tol=tol)
        assert got.converged and got.marginal_error <= tol and got.value > 0


def test_divergences_agree_with_geomloss():
    torch, geomloss = pytest.importorskip("torch"), pytest.importorskip("geomloss")
    x, y = X.astype(np.float64), Y.astype(np.float64)
    u, v = RNG.random(40), RNG.random(53)
    u, v = u / u.sum(), v / v.sum()
    threads = torch.get_num_threads()
    for reach, p in ((None, 2), (1.5, 2), (None, 1)):
        blur = 0.5
        theirs = geomloss.SamplesLoss("sinkhorn", p=p, blur=blur, reach=reach, scaling=0.99, backend="tensorized")
        torch.set_num_threads(1)  # waiting for others takes longer than the work
        try:
            want = float(theirs(*(torch.from_numpy(a) for a in (u, x, v, y))))
        finally:
            torch.set_num_threads(threads)
        cost, half = ("sqeuclidean", 0.5) if p == 2 else ("euclidean", 1.0)
        rho = None if reach is None else reach**p / half
        got = pairwise.sinkhorn(x, y, u, v, blur=blur, cost=cost, unbalanced=rho, debias=True, tol=1e-8, max_iter=9999)
        assert half * got.value == pytest.approx(want, rel=5e-4)


def test_transport_takes_batches_and_is_differentiable():
    x, y = RNG.standard_normal((2, 9, 3)), RNG.standard_normal((2, 7, 3))
    got = pairwise.sinkhorn(x, y, reg=1.0, debias=True, tol=1e-10)
    assert got.potential_x.shape == (2, 9) and got.n_iter.shape == (2,) and got.converged.all()
    assert got.value[1] == pairwise.sinkhorn(x[1], y[1], reg=1.0, debias=True, tol=1e-10).value

    def total(x):
        return ops.sum(pairwise.sinkhorn(x, y, reg=1.0, debias=True, tol=1e-10).value)

    step = 1e-5 * RNG.standard_normal(x.shape)
    slope = float(total(x + step) - total(x - step)) / 2
    assert float((grad(total)(x) * step).sum()) == pytest.approx(slope, rel=1e-5)


def test_transport_refuses_what_it_cannot_mean():
    for bad, message in (
        (dict(reg=0.1, blur=0.1), "give reg or blur"),
        (dict(reg=-1.0), "reg must be positive"),
        (dict(blur=0.0), "blur must be positive"),
        (dict(x_weights=np.full(40, 0.1)), "x_weights and y_weights must have the same sum, got 4 and 1"),
        (dict(x_weights=np.zeros(40)), "x_weights must be 40 finite numbers >= 0, not all 0"),
        (dict(y_weights=np.ones(40)), "y_weights must be 53 finite numbers"),
        (dict(unbalanced=-1.0), "unbalanced must be positive"),
        (dict(tol=-1.0), "tol must be at least 0"),
    ):
        with pytest.raises(ValueError, match=f"sinkhorn: {message}"):
            pairwise.sinkhorn(X, Y, **bad)


# ---- memory ---------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
import numpy as np
from generant import ops, pairwise
rng = np.random.default_rng(0)
x, y = (rng.standard_normal((int(n), 2)).astype(np.float32) for n in sys.argv[1:])
some, v = x[:40], y[:, :1]
log_x, log_y = np.zeros(len(x)), np.zeros(len(y))
def every(x, y, v, log_x, log_y):
    yield ops.kernel_sum(x, y)
    yield ops.kernel_row_sums(x, y)
    yield ops.kernel_matvec(x, y, v)
    yield ops.kernel_matvec_dx(x, y, x[:, :1], v)
    yield ops.kernel_matvec_dx_bwd(x, x, y[:4000], x[:, :1], v[:4000], log_x, log_y[:4000], need=(0, 1, 2, 3))
    yield ops.logsumexp(x, y, log_y)
    yield ops.softmax_matmul(x, y, y)
    yield ops.knn(x, y, k=5)
    yield ops.nearest(x, y)
    yield ops.radius_count(x, y, np.full(len(y), 0.01, np.float32), np.full(len(x), 0.01, np.float32))
    yield ops.radius_min(x, y, np.full(len(y), 0.01, np.float32))
    yield pairwise.sinkhorn(x, y, reg=1.0, max_iter=1, tol=0.0)
for _ in every(some, some + 1, some[:, :1], log_x[:40], log_y[:40]): pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for result in every(x, y, v, log_x, log_y):
    del result
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_op_ever_holds_a_matrix_of_pairs():
    """All of them one after the other stay within 64 MB above their inputs; the matrix would have 14.4 GB (1 GB for the
    slowest op; 0.1 GB where the kernels are not the fastest and fewer rows have to do)."""
    fast = _dispatch.backend() == "native" and "GENERANT_ISA" not in os.environ
    sizes = ("60000", "60000") if fast else ("10000", "2500")
    done = subprocess.run([sys.executable, "-c", MEMORY, *sizes], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 64e6
