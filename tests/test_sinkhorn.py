"""Entropic transport: against POT, geomloss, assignment and closed forms; honest errors, convergence, gradients.

Seen to fail: with every extrapolation accepted; with a tenth of the marginal error reported; with whole steps f <- T f
in symmetric problems; with weight gradients that forget the mass; with the bias rounded to float32.
"""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import kl_div

from generant import ops
from generant.autograd import grad, vjp
from generant.ops import sinkhorn, transport

BOTH = pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])


def points(n, d, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def weights(n, seed=0):
    w = np.random.default_rng(seed).random(n) + 0.1
    return w / w.sum()


def costs(x, y, cost="sqeuclidean"):
    square = ((x[:, None].astype(float) - y[None].astype(float)) ** 2).sum(-1)
    return square if cost == "sqeuclidean" else np.sqrt(square)


def plan(x, y, f, g, a=None, b=None, *, reg, cost="sqeuclidean", **_):
    a = np.full(len(x), 1 / len(x)) if a is None else a
    b = np.full(len(y), 1 / len(y)) if b is None else b
    return a[:, None] * b * np.exp((f[:, None] + g - costs(x, y, cost)) / reg)


def kl(p, q):
    return kl_div(p, q).sum()


# ---- values ----


@BOTH
@pytest.mark.parametrize("reg", [0.05, 1.0])
@pytest.mark.parametrize("rho", [None, 0.7])
def test_the_value_is_that_of_the_plan(cost, reg, rho):
    """Dual objective (what is returned) = primal objective of the plan (computed here) at convergence."""
    x, y, a, b = points(40, 2), points(30, 2, 1) * 1.4 + 0.3, weights(40), weights(30, 1)
    attrs = dict(reg=reg, cost=cost, rho=rho, tol=1e-9, max_iter=20000)
    value, linear, f, g, error, _, converged = sinkhorn(x, y, a, b, **attrs)
    assert converged == 1
    assert error <= 1e-9
    p = plan(x, y, f, g, a, b, **attrs)
    moved = (p * costs(x, y, cost)).sum()
    primal = moved + reg * kl(p, a[:, None] * b)
    if rho is not None:
        primal += rho * (kl(p.sum(1), a) + kl(p.sum(0), b))
    assert linear == pytest.approx(moved, rel=1e-11)
    assert value == pytest.approx(primal, rel=1e-7)
    assert sinkhorn(x, y, a, b, linear=False, **attrs)[0] == value
    assert np.isnan(sinkhorn(x, y, a, b, linear=False, **attrs)[1])


@pytest.mark.parametrize("reg", [0.05, 0.5])
def test_iterations_are_pots(reg):
    """tol = 0: the same potentials as POT's log-domain solver after the same number of iterations."""
    ot = pytest.importorskip("ot")
    x, y = points(50, 2), points(60, 2, 1) + 0.5
    u, v = np.full(50, 1 / 50), np.full(60, 1 / 60)
    theirs, log = ot.bregman.sinkhorn_log(u, v, costs(x, y), reg, numItermax=23, stopThr=0, log=True, warn=False)
    _, linear, f, g, _, done, _ = sinkhorn(x, y, reg=reg, tol=0.0, max_iter=23)
    assert done == 23
    for ours, log_u in ((f, log["log_u"]), (g, log["log_v"])):
        want = reg * log_u
        np.testing.assert_allclose(ours - ours.mean(), want - want.mean(), rtol=0, atol=1e-12 * np.abs(want).max())
    np.testing.assert_allclose(plan(x, y, f, g, reg=reg), theirs, rtol=1e-10)
    assert linear == pytest.approx((theirs * costs(x, y)).sum(), rel=1e-11)


@pytest.mark.parametrize("rho", [0.3, 2.0])
def test_unbalanced_is_pots(rho):
    ot = pytest.importorskip("ot")
    x, y, a, b = points(30, 2), points(25, 2, 1) + 0.5, weights(30), 1.7 * weights(25, 1)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a, b, costs(x, y), 0.4, rho, reg_type="kl", numItermax=100000, stopThr=1e-14
    )
    _, linear, f, g, *_ = sinkhorn(x, y, a, b, reg=0.4, rho=rho, tol=1e-12, max_iter=5000)
    np.testing.assert_allclose(plan(x, y, f, g, a, b, reg=0.4), theirs, rtol=1e-7, atol=1e-14)
    assert linear == pytest.approx((theirs * costs(x, y)).sum(), rel=1e-8)


def test_the_value_is_geomlosss():
    geomloss, torch = pytest.importorskip("geomloss"), pytest.importorskip("torch")
    x, y, blur = points(40, 2), points(50, 2, 1) + 0.5, 0.4
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.99, debias=False, backend="tensorized")
    theirs = 2 * float(loss(torch.tensor(x), torch.tensor(y)))
    assert sinkhorn(x, y, reg=2 * blur**2, tol=1e-8)[0] == pytest.approx(theirs, rel=1e-3)  # theirs has one sweep


@BOTH
def test_without_regularisation_it_is_the_assignment(cost):
    x, y = points(24, 3), points(24, 3, 1)
    c = costs(x, y, cost)
    best = c[linear_sum_assignment(c)].mean()
    value, linear, *_, converged = sinkhorn(x, y, reg=1e-2, cost=cost, tol=1e-4, max_iter=8000)
    assert converged == 1
    slack = 1e-4 * c.max()
    assert best - slack <= linear <= best + 1e-2 * np.log(24) + slack
    assert linear - slack <= value <= best + 1e-2 * np.log(24) + slack


def test_two_points_in_closed_form():
    x, reg = np.array([[0.0], [1.0]]), 0.7
    q = np.exp(-1 / reg)
    p = np.array([[1, q], [q, 1]]) / (2 * (1 + q))
    for symmetric in (False, True):
        value, linear, f, g, *_ = sinkhorn(x, x, reg=reg, tol=1e-14, symmetric=symmetric)
        assert linear == pytest.approx(q / (1 + q), rel=1e-12)
        assert value == pytest.approx(q / (1 + q) + reg * kl(p, np.full((2, 2), 0.25)), rel=1e-12)
        np.testing.assert_allclose(f, -reg * np.log((1 + q) / 2) / 2, rtol=1e-12)
        np.testing.assert_allclose(f, g, rtol=1e-12)


def test_one_point_against_many_has_one_plan():
    x, y, b = points(1, 3), points(20, 3, 1), weights(20)
    value, linear, *_, converged = sinkhorn(x, y, None, b, reg=0.3)
    want = costs(x, y)[0] @ b
    assert (linear, value) == (pytest.approx(want, rel=1e-12), pytest.approx(want, rel=1e-12))
    assert converged == 1
    value, linear, *_ = sinkhorn(x, y[:1], reg=0.3)
    assert (linear, value) == (pytest.approx(costs(x, y)[0, 0]),) * 2


@BOTH
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_diameter_is_no_cost(cost, symmetric, dtype):
    for x in (np.full((1, 2), 3.3, dtype), np.full((50, 3), 1e4 + 0.1, dtype)):
        value, linear, f, g, error, done, converged = sinkhorn(x, x, reg=0.1, cost=cost, symmetric=symmetric)
        assert converged == 1
        assert done == 1
        assert max(abs(value), abs(linear), error, np.abs(f).max(), np.abs(g).max()) < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_costs_of_any_size_do_not_overflow(dtype):
    """Costs 1e9 times reg: exp(-C / reg) is 0 for every pair."""
    x, y = 1e3 * points(20, 2, 0, dtype), 1e3 * points(20, 2, 1, dtype)
    value, linear, _, _, error, *_ = sinkhorn(x, y, reg=1e-2, max_iter=3000)
    best = costs(x, y)[linear_sum_assignment(costs(x, y))].mean()
    assert np.isfinite([value, linear, error]).all()
    assert value <= best * (1 + 1e-5)
    assert value == pytest.approx(best, rel=0.2)


def test_float32_points_have_float64_potentials():
    x, y = points(100, 3), points(80, 3, 1)
    wide = sinkhorn(x, y, reg=0.3, tol=1e-4)
    made = sinkhorn(x.astype("f"), y.astype("f"), reg=0.3, tol=1e-4)
    for ours, want in zip(made[:4], wide[:4], strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, want, rtol=0, atol=2e-4 * np.abs(want).max())


# ---- convergence ----


@pytest.mark.parametrize("reg", [0.02, 0.2])
@pytest.mark.parametrize("rho", [None, 1.0])
@pytest.mark.parametrize("tol", [1e-2, 1e-5])
@pytest.mark.parametrize("scaling", [None, 0.0, 0.8])
def test_the_marginal_error_is_honest(reg, rho, tol, scaling):
    """What is reported is at least the error of the plan returned, and at most tol where it says converged."""
    x, y, a, b = points(60, 2), points(50, 2, 1) + 0.5, weights(60), weights(50, 1)
    attrs = dict(reg=reg, rho=rho, tol=tol, max_iter=5000, scaling=scaling)
    _, _, f, g, error, done, converged = sinkhorn(x, y, a, b, **attrs)
    assert converged == 1
    assert done < 5000
    assert error <= tol
    p = plan(x, y, f, g, a, b, reg=reg)
    wanted = (a, b) if rho is None else (a * np.exp(-f / rho), b * np.exp(-g / rho))
    assert np.abs(p.sum(1) - wanted[0]).sum() + np.abs(p.sum(0) - wanted[1]).sum() <= error + 1e-12


def test_too_few_iterations_are_admitted():
    x, y = points(60, 2), points(50, 2, 1) + 0.5
    _, _, f, g, error, done, converged = sinkhorn(x, y, reg=0.01, tol=1e-6, max_iter=7)
    assert (done, converged) == (7, 0)
    p = plan(x, y, f, g, reg=0.01)
    assert 1e-6 < np.abs(p.sum(1) - 1 / 60).sum() + np.abs(p.sum(0) - 1 / 50).sum() <= error


def test_extrapolation_pays_and_lands_at_the_same_place():
    x, y = points(80, 2), points(70, 2, 1) + 0.5
    fast = sinkhorn(x, y, reg=0.02, tol=1e-7, max_iter=5000, scaling=0.0)
    assert fast[6] == 1
    plain = sinkhorn(x, y, reg=0.02, tol=0.0, max_iter=5 * int(fast[5]))
    assert plain[4] > 1e-5
    plain = sinkhorn(x, y, reg=0.02, tol=0.0, max_iter=10000)
    assert fast[0] == pytest.approx(plain[0], rel=1e-8)
    np.testing.assert_allclose(fast[2], plain[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rho", [None, 2.0])
@pytest.mark.parametrize("bad", [1e3, np.nan, np.inf])
def test_a_bad_extrapolation_is_not_followed(monkeypatch, rho, bad):
    """Nonsense in place of it: the dual objective rises from iteration to iteration all the same."""
    x, y = points(40, 2), points(30, 2, 1) + 1
    noise = np.random.default_rng(3)
    monkeypatch.setattr(transport, "_extrapolation", lambda tail, weights: bad * noise.standard_normal(len(weights)))
    attrs = dict(reg=0.3, rho=rho, tol=1e-6, scaling=0.0)
    values = [sinkhorn(x, y, max_iter=n, **attrs)[0] for n in range(1, 60, 3)]
    assert (np.diff(values) >= -1e-12).all()
    assert sinkhorn(x, y, max_iter=3000, **attrs)[6] == 1


@pytest.mark.parametrize("max_iter", range(1, 14))
def test_max_iter_is_kept(max_iter):
    """Also where extrapolations are turned down, and with the start."""
    x, y = points(40, 2), points(30, 2, 1) + 3
    for scaling in (None, 0.0):
        assert sinkhorn(x, y, reg=0.01, tol=1e-9, max_iter=max_iter, scaling=scaling)[5] == max_iter


@pytest.mark.parametrize("symmetric, calls", [(False, 2), (True, 1)])
def test_passes_are_counted(monkeypatch, symmetric, calls):
    """Two logsumexp per iteration, one for a set with itself, and tol = 0 runs max_iter of them."""
    made = []
    monkeypatch.setattr(transport, "logsumexp", lambda *a, **k: (made.append(1), ops.logsumexp(*a, **k))[1])
    x = points(30, 2)
    done = sinkhorn(x, x, reg=0.1, tol=0.0, max_iter=11, symmetric=symmetric, linear=False)[5]
    assert done == 11
    assert len(made) == 11 * calls


@BOTH
@pytest.mark.parametrize("reg", [1e-3, 1e-2, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("rho", [None, 0.5])
def test_a_set_with_itself_converges_in_a_few_iterations(cost, reg, rho):
    x, a = points(80, 2), weights(80)
    attrs = dict(reg=reg, cost=cost, rho=rho)
    value, linear, f, g, error, done, converged = sinkhorn(x, x, a, a, symmetric=True, tol=1e-6, **attrs)
    assert converged == 1
    assert done <= 15
    np.testing.assert_array_equal(f, g)
    p = plan(x, x, f, g, a, a, **attrs)
    wanted = a if rho is None else a * np.exp(-f / rho)
    assert 2 * np.abs(p.sum(1) - wanted).sum() <= error
    assert linear == pytest.approx((p * costs(x, x, cost)).sum(), rel=1e-9)
    primal = linear + reg * kl(p, a[:, None] * a) + (0 if rho is None else 2 * rho * kl(p.sum(1), a))
    assert value == pytest.approx(primal, rel=1e-5)


@BOTH
@pytest.mark.parametrize("reg", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("rho", [None, 1.0])
def test_the_debiased_divergence_is_not_negative(cost, reg, rho):
    """S(x, y) >= 0, and nearly 0 for two copies, though every term is well above."""
    attrs = dict(reg=reg, cost=cost, rho=rho, tol=1e-4, max_iter=3000, linear=False)

    def divergence(x, y):
        own = [sinkhorn(z, z, symmetric=True, **attrs)[0] for z in (x, y)]
        mass = 0.0  # equal masses: no further term
        return sinkhorn(x, y, **attrs)[0] - (own[0] + own[1]) / 2 + mass

    x = points(50, 2)
    assert abs(divergence(x, x[::-1].copy())) < 1e-5
    for seed, move in ((1, 0.0), (2, 0.05), (3, 1.0)):
        assert divergence(x, points(45, 2, seed) + move) > -1e-5
    assert 1e-4 < divergence(x, x + 0.1) < 0.2


# ---- gradients ----


@BOTH
@pytest.mark.parametrize("rho", [None, 0.8])
def test_gradients_are_finite_differences(cost, rho):
    xs = [points(9, 2), points(7, 2, 1) + 0.5, weights(9), weights(7, 1)]
    rng = np.random.default_rng(5)
    attrs = dict(reg=0.4, cost=cost, rho=rho, tol=1e-13, max_iter=4000, linear=False)
    grads = vjp(lambda *given: sinkhorn(*given, **attrs)[0], *xs)[1](np.full((), 2.0))
    for i, x in enumerate(xs):
        direction = rng.standard_normal(x.shape)
        if i >= 2 and rho is None:
            direction -= direction.mean()  # sums stay equal

        def at(h, i=i, direction=direction):
            moved = list(xs)
            moved[i] = xs[i] + h * direction
            return float(sinkhorn(*moved, **attrs)[0])

        h = 1e-4
        differences = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        assert (grads[i] * direction).sum() == pytest.approx(2 * differences, rel=1e-6, abs=1e-8)


def test_the_gradient_of_a_set_with_itself_counts_both_sides():
    x, a = points(9, 2), weights(9)
    attrs = dict(reg=0.4, tol=1e-13, linear=False)
    one = grad(lambda x: sinkhorn(x, x, a, a, symmetric=True, **attrs)[0])(x)
    two = grad(lambda x: sinkhorn(x, x, a, a, max_iter=4000, **attrs)[0])(x)
    np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-9)
    left = grad(lambda x: sinkhorn(x, points(9, 2), a, a, symmetric=True, **attrs)[0])(x)
    np.testing.assert_allclose(2 * left, one, rtol=1e-12)


def test_the_gradient_is_the_barycentric_map():
    """d / dx_i = 2 a_i (x_i - sum_j P_ij y_j / a_i), in float32 too."""
    x, y, attrs = points(60, 3), points(50, 3, 1) + 0.5, dict(reg=0.5, tol=1e-4)
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
        x, y = x.astype(dtype), y.astype(dtype)
        g = sinkhorn(x, y, **attrs)[3]
        mean = ops.softmax_matmul(x, y, y, g / 0.5, scale=2.0)
        made = grad(lambda x, y=y: sinkhorn(x, y, **attrs)[0])(x)
        assert made.dtype == dtype
        np.testing.assert_allclose(made, (x - mean) * 2 / 60, rtol=0, atol=tolerance * np.abs(made).max())


def test_equal_points_have_a_gradient_of_zero():
    x = np.repeat(points(1, 2), 6, axis=0)
    for cost in ("sqeuclidean", "euclidean"):
        assert not grad(lambda x, cost=cost: sinkhorn(x, x, reg=0.1, cost=cost, symmetric=True)[0])(x).any()


def test_what_has_no_derivative_says_so():
    x, y = points(6, 2), points(5, 2, 1)
    for i in (1, 2, 3, 4):
        with pytest.raises(TypeError, match="sinkhorn: only its value is differentiable, and only once"):
            grad(lambda x, i=i: ops.sum(sinkhorn(x, y, reg=1.0)[i]))(x)

    def first(x):
        return ops.sum(ops.square(grad(lambda x: sinkhorn(x, y, reg=1.0)[0])(x)))

    with pytest.raises(TypeError, match="only once"):
        grad(first)(x)
    with pytest.raises(TypeError, match="only once"):
        grad(lambda a: ops.sum(grad(lambda x: sinkhorn(x, y, a, reg=1.0)[0])(x)))(weights(6))


# ---- weights, bad input, memory ----


def test_weights_of_zero_leave_points_out_and_copies_share_theirs():
    x, y, a = points(20, 2), points(15, 2, 1), weights(20)
    a[4:] = 0
    a /= a.sum()
    attrs = dict(reg=0.2, tol=1e-10, max_iter=3000)
    some = sinkhorn(x, y, a, None, **attrs)
    few = sinkhorn(x[:4], y, a[:4].copy(), None, **attrs)
    assert some[0] == pytest.approx(few[0], rel=1e-9)
    assert np.isfinite(some[2]).all()
    twice = sinkhorn(np.repeat(x, 2, axis=0), y, None, None, **attrs)
    assert twice[0] == pytest.approx(sinkhorn(x, y, **attrs)[0], rel=1e-9)
    assert np.isfinite(grad(lambda x: sinkhorn(x, y, a, None, reg=0.2)[0])(x)).all()


def test_masses_other_than_one():
    """Masses of 3 on both sides: <C, P> is three times that of masses of 1; unbalanced takes different ones."""
    x, y = points(20, 2), points(15, 2, 1)
    a, b = 3 * weights(20), 3 * weights(15, 1)
    attrs = dict(reg=0.3, tol=1e-9, max_iter=3000)
    value, linear, f, g, *_ = sinkhorn(x, y, a, b, **attrs)
    assert linear == pytest.approx(3 * sinkhorn(x, y, a / 3, b / 3, **attrs)[1], rel=1e-7)
    p = plan(x, y, f, g, a, b, reg=0.3)
    assert value == pytest.approx(linear + 0.3 * kl(p, a[:, None] * b), rel=1e-8)
    assert np.isfinite(sinkhorn(x, y, a, b / 7, rho=1.0, **attrs)[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(reg=0.0), "reg must be positive"),
        (dict(reg=float("nan")), "reg must be positive"),
        (dict(rho=-1.0), "rho must be positive"),
        (dict(tol=-1.0), "tol must be at least 0"),
        (dict(max_iter=0), "max_iter must be at least 1"),
        (dict(scaling=1.0), "scaling must be at least 0 and below 1"),
        (dict(cost="cosine"), "cost must be one of sqeuclidean, euclidean"),
        (dict(a=-np.ones(3)), "a must be finite, not negative"),
        (dict(b=np.zeros(4)), "b must be finite, not negative"),
        (dict(a=np.array([1, 2, np.nan])), "a must be finite"),
        (dict(a=np.ones(3)), "a and b must have the same sum"),
        (dict(symmetric=True), "symmetric=True needs y equal to x"),
        (dict(a=np.ones(2)), "n is 3 but a has n = 2"),
        (dict(x=np.empty((0, 2))), "need at least one row"),
    ],
)
def test_bad_input_is_named(change, message):
    given = dict(x=points(3, 2), y=points(4, 2), a=None, b=None, reg=1.0) | change
    with pytest.raises(ValueError, match=f"sinkhorn: .*{message}"):
        sinkhorn(given.pop("x"), given.pop("y"), given.pop("a"), given.pop("b"), **given)
    x = points(3, 2)
    with pytest.raises(ValueError, match="needs y equal to x and b equal to a"):
        sinkhorn(x, x, weights(3), None, reg=1.0, symmetric=True)


def test_no_matrix_is_formed():
    """2000 x 2000 float32 would be 16 MB."""
    x, y = points(2000, 2, 0, np.float32), points(2000, 2, 1, np.float32)
    run = functools.partial(sinkhorn, reg=0.5, max_iter=2)
    run(x, y)
    tracemalloc.start()
    try:
        vjp(lambda x, y: run(x, y)[0], x, y)[1](np.ones(()))
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()
