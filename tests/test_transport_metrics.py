"""Sliced Wasserstein distances against SciPy, sums over quantiles and POT; Sinkhorn divergences against POT.

Seen to fail: with steps of equal width for unequal sizes, or not repeated; with the factor d of mind left out; with the
common offset kept; with directions not of unit length; without debiasing; with reg = 0.05 in any unit.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant.metrics import mind, sinkhorn_divergence, sliced_wasserstein
from generant.metrics.transport import _directions, _mean_square_distance


def sample(n, d, seed, shift=0.0, dtype=np.float64):
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(dtype)


@pytest.mark.parametrize("n, m", [(40, 40), (40, 55), (7, 210), (1, 30), (64, 1)])
@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_one_dimension_is_the_integral_over_quantiles(n, m, p):
    x, y = sample(n, 1, 0), sample(m, 1, 1, 0.5)
    common = np.lcm(n, m)  # every point repeated until both have equally many
    a, b = (np.sort(np.repeat(z[:, 0], common // len(z))) for z in (x, y))
    want = (np.abs(a - b) ** p).mean() ** (1 / p)
    assert sliced_wasserstein(x, y, p=p) == pytest.approx(want, rel=1e-12)
    if p == 1:
        stats = pytest.importorskip("scipy.stats")
        assert sliced_wasserstein(x, y, p=1) == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)


@pytest.mark.parametrize("n, m", [(90, 90), (90, 61)])
@pytest.mark.parametrize("p", [1, 2])
def test_it_is_pots_on_the_same_directions(n, m, p):
    ot = pytest.importorskip("ot")
    x, y = sample(n, 6, 2), sample(m, 6, 3, 0.3)
    directions = _directions(6, 70, 5)
    want = ot.sliced_wasserstein_distance(x, y, projections=directions, p=p)
    assert sliced_wasserstein(x, y, p=p, n_projections=70, random_state=5) == pytest.approx(want, rel=1e-10)


def test_directions_are_unit_vectors_and_more_of_them_begin_alike():
    few, many = _directions(5, 10, 1), _directions(5, 4000, 1)
    np.testing.assert_array_equal(few, many[:, :10])
    np.testing.assert_allclose(np.linalg.norm(many, axis=0), 1)
    np.testing.assert_allclose(many @ many.T / 4000, np.eye(5) / 5, atol=0.02)


def test_a_shift_costs_its_length():
    """Along u a shift by s costs |<u, s>|: the mean of its square is |s|^2 / d."""
    x, shift = sample(300, 8, 4), np.linspace(-1, 2, 8)
    want = np.linalg.norm(shift)
    assert sliced_wasserstein(x, x + shift, n_projections=4000) == pytest.approx(want / np.sqrt(8), rel=0.03)
    assert mind(x, x + shift, n_projections=4000) == pytest.approx(3 * want**2, rel=0.06)
    assert mind(x, x) == 0 and sliced_wasserstein(x, x[::-1]) < 1e-12


def test_mind_is_torch_fidelitys_formula():
    x, y = sample(200, 16, 5, dtype=np.float32), sample(200, 16, 6, 0.2, np.float32)
    u = _directions(16, 128, 7)
    want = 3 * 16 * ((np.sort(x @ u, axis=0) - np.sort(y @ u, axis=0)) ** 2).mean()
    assert mind(x, y, n_projections=128, random_state=7) == pytest.approx(want, rel=1e-6)
    assert mind(y, x, n_projections=128, random_state=7) == pytest.approx(want, rel=1e-6)


def test_repeating_a_sample_changes_nothing():
    x, y = sample(50, 4, 8), sample(30, 4, 9, 1.0)
    want = mind(x, y)
    assert mind(np.repeat(x, 3, axis=0), y) == pytest.approx(want, rel=1e-10)
    assert mind(x, np.tile(y, (7, 1))) == pytest.approx(want, rel=1e-10)
    far = 1e9  # a common offset costs no digits
    assert mind(np.round(x * 64) / 64 + far, np.round(y * 64) / 64 + far) == pytest.approx(
        mind(np.round(x * 64) / 64, np.round(y * 64) / 64), rel=1e-12
    )


def test_seeds():
    x, y = sample(60, 3, 10), sample(60, 3, 11)
    assert mind(x, y, random_state=1) == mind(x, y, random_state=np.random.default_rng(1))
    assert mind(x, y, random_state=1) != mind(x, y, random_state=2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: sliced_wasserstein(x, x, p=0.5), "sliced_wasserstein: p must be a number of at least 1, got 0.5"),
        (lambda x: sliced_wasserstein(x, x, p=np.inf), "sliced_wasserstein: p must be a number of at least 1"),
        (lambda x: mind(x, x, n_projections=0), "mind: n_projections must be a positive integer, got 0"),
        (lambda x: mind(x, x[:, :2]), "mind: all arguments must have equally many columns"),
        (lambda x: mind(x, x[:0]), "mind: fake must have at least 1 row"),
        (lambda x: sliced_wasserstein(x * np.inf, x), "sliced_wasserstein: real must be finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 12))


# ---- Sinkhorn divergence ----


def test_sinkhorn_divergence_is_pots():
    """Three entropic problems solved by POT to 1e-11; POT's own divergence leaves out the entropy."""
    ot = pytest.importorskip("ot")
    x, y, reg = sample(40, 3, 13), sample(55, 3, 14, 0.5), 0.8

    def value(a, b):
        u, v = np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b))
        cost = ot.dist(a, b)
        plan = ot.sinkhorn(u, v, cost, reg, method="sinkhorn_log", numItermax=10000, stopThr=1e-11)
        return (cost * plan).sum() + reg * (plan * np.log(plan / np.outer(u, v))).sum()

    want = value(x, y) - value(x, x) / 2 - value(y, y) / 2
    assert sinkhorn_divergence(x, y, reg=reg, tol=1e-9) == pytest.approx(want, rel=1e-7)
    assert sinkhorn_divergence(x, y, reg=reg) == pytest.approx(want, rel=1e-2)
    assert sinkhorn_divergence(y, x, reg=reg, tol=1e-9) == pytest.approx(want, rel=1e-7)


def test_sinkhorn_divergence_between_its_limits():
    x, y = sample(60, 2, 15), sample(60, 2, 16, 1.0)
    assert abs(sinkhorn_divergence(x, x)) < 1e-4 and abs(sinkhorn_divergence(x, x, tol=1e-10)) < 1e-10
    gap = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    assert sinkhorn_divergence(x, y, reg=1e5, tol=1e-9) == pytest.approx(gap, rel=1e-3)
    shift = np.array([3.0, 4.0])
    assert sinkhorn_divergence(x, x + shift, tol=1e-8) == pytest.approx(25, rel=1e-4)


def test_the_default_reg_is_in_the_scale_of_the_data():
    x, y = sample(50, 4, 17), sample(30, 4, 18, 0.4)
    assert _mean_square_distance(x, y) == pytest.approx(((x[:, None] - y[None]) ** 2).sum(axis=2).mean(), rel=1e-12)
    want = sinkhorn_divergence(x, y)
    assert sinkhorn_divergence(x, y, reg=_mean_square_distance(x, y) / 20) == want
    assert sinkhorn_divergence(1e3 * x, 1e3 * y) == pytest.approx(1e6 * want, rel=1e-6)
    assert sinkhorn_divergence(np.ones((5, 2)), np.ones((7, 2))) == 0
    assert sinkhorn_divergence(np.zeros((1, 1)), np.full((1, 1), 3.0)) == pytest.approx(9, rel=1e-6)


def test_sinkhorn_divergence_warns_before_it_has_converged():
    x, y = sample(50, 4, 19), sample(30, 4, 20, 2.0)
    with pytest.warns(RuntimeWarning, match="sinkhorn_divergence: the marginals are off by .* after 2 iterations"):
        sinkhorn_divergence(x, y, reg=1e-3, max_iter=2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: sinkhorn_divergence(x, x, reg=0), "sinkhorn_divergence: reg must be a positive number or None"),
        (lambda x: sinkhorn_divergence(x, x, max_iter=0), "sinkhorn_divergence: max_iter must be a positive integer"),
        (lambda x: sinkhorn_divergence(x, x[:0]), "sinkhorn_divergence: fake must have at least 1 row"),
    ],
)
def test_what_sinkhorn_divergence_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 21))
