"""Multistep samplers of the slope: their order on Gaussian data, and each against a loop that keeps lists of slopes.

The coefficients in the loops come another way than the library's: antiderivatives of polynomials for LMS, a linear
system of exact moments for DEIS, the fractions written out for the others.
Seen to fail: with history counted in levels instead of stages, Euler in place of Heun's start, DEIS integrated in log
sigma without its weight, two Adams fractions off by 1/24 each, PLMS begun by an Euler step, and one panel only for long
integrals.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from generant.diffusion.plan import rescaled
from generant.diffusion.samplers import SAMPLERS, deis, euler, ipndm, lms, plms, pndm
from generant.diffusion.samplers.quadrature import integrals
from generant.diffusion.sampling import Stepper, sample
from generant.diffusion.schedules import karras_sigmas

pytestmark = pytest.mark.once

LEVELS = [3.0, 2.2, 1.9, 1.1, 0.8, 0.5, 0.3, 0.1, 0.0]
WIDTHS = np.array([0.3, 0.5, 0.7, 1.0, 1.5])


def levels(grid: str, n: int) -> np.ndarray:
    """n + 1 noise levels; a step to 0 is left out because it is D for all samplers."""
    if grid == "karras":
        return karras_sigmas(n + 1, sigma_min=0.05, sigma_max=20.0)[:-1]
    if grid == "equal":
        return np.linspace(3.0, 0.5, n + 1)
    steps = np.where(np.arange(n) % 2, 1.0, 3.0)  # in log sigma, alternately short and long
    return 3.0 * (0.05 / 3.0) ** (np.append(0.0, np.cumsum(steps)) / steps.sum())


def slope(sampler, grid: str, n: int = 160, d=WIDTHS) -> float:
    """log2 of how much the largest relative error shrinks when twice as many steps are taken."""
    errors = []
    for steps in (n, 2 * n):
        plan = sampler(levels(grid, steps))
        first, *_, last = plan.sigmas
        exact = np.sqrt((d**2 + last**2) / (d**2 + first**2)) * first
        got = sample(lambda x, s: x * (d**2 / (d**2 + s**2)), np.full_like(d, first), plan)
        errors.append(np.abs(got / exact - 1).max())
    return float(np.log2(errors[0] / errors[1]))


def denoise(x, sigma):
    return np.tanh(x) * (1 - 0.1 * sigma) + 0.3 * np.cos(sigma)


def slope_at(x, sigma):
    return (x - denoise(x, sigma)) / sigma


def start() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(4) * 3.0


def agrees(plan, expected) -> None:
    np.testing.assert_allclose(sample(denoise, start(), plan), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", ["karras", "uneven"])
@pytest.mark.parametrize("sampler, order", [(lms, 1), (lms, 2), (lms, 3), (lms, 4), (deis, 1), (deis, 2), (deis, 3)])
def test_order_on_any_levels(sampler, order, grid) -> None:
    plan = lambda sigmas: sampler(sigmas, order=order)
    assert plan(LEVELS).order == order
    assert slope(plan, grid) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("sampler", [lms, deis])
def test_an_euler_start_limits_the_order_to_2(sampler) -> None:
    plan = lambda sigmas: sampler(sigmas, start="euler")
    assert plan(LEVELS).order == 2
    assert slope(plan, "uneven") == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("sampler", "options", "equal", "karras", "uneven"),
    [(ipndm, {"order": 1}, 1, 1, 1), (ipndm, {"order": 2}, 2, 2, 1), (ipndm, {"order": 4}, 2, 2, 1),
     (plms, {}, None, 2, 1), (pndm, {}, 4, 2, 1)],
)  # fmt: skip
def test_order_with_fixed_fractions(sampler, options, equal, karras, uneven) -> None:
    """The full order is theirs on levels equally spaced in sigma only; there an Euler start limits it to 2.

    What plms has of order 3 there, from its start, is too small to be seen.
    """
    plan = lambda sigmas: sampler(sigmas, **options)
    assert plan(LEVELS).order == min(karras, 2)
    assert slope(plan, "karras") == pytest.approx(karras, abs=0.1)
    assert slope(plan, "uneven") == pytest.approx(uneven, abs=0.1)
    if equal is None:
        assert slope(plan, "equal") > 2.9
    else:
        assert slope(plan, "equal", 320) == pytest.approx(equal, abs=0.1)


def heun_loop(x, s, t):
    d = slope_at(x, s)
    return x + (t - s) * (d + slope_at(x + (t - s) * d, t)) / 2


def rk4_loop(x, s, t, m=None):
    m = (s + t) / 2 if m is None else m
    k1 = slope_at(x, s)
    k2 = slope_at(x + (m - s) * k1, m)
    k3 = slope_at(x + (m - s) * k2, m)
    return x + (t - s) / 6 * (k1 + 2 * k2 + 2 * k3 + slope_at(x + (t - s) * k3, t))


def loop(row, most, first=()):
    """x after the levels above 0, then D: row(nodes, t) gives the weights of the slopes at nodes, newest first."""
    x, past, at = start(), [], []
    for i, (s, t) in enumerate(pairwise(LEVELS[:-1])):
        past, at = [slope_at(x, s), *past][:most], [s, *at][:most]
        x = first[i](x, s, t) if i < len(first) else x + sum(w * d for w, d in zip(row(at, t), past, strict=True))
    return denoise(x, LEVELS[-2])


def lms_row(nodes, t):
    weights = []
    for j, node in enumerate(nodes):
        others = nodes[:j] + nodes[j + 1 :]
        whole = np.polynomial.Polynomial.fromroots(others).integ() if others else np.polynomial.Polynomial([0.0, 1.0])
        weights.append((whole(t) - whole(nodes[0])) / np.prod([node - other for other in others]))
    return weights


def deis_row(nodes, t):
    """Weights that integrate (log sigma - log s)^k exactly, k < len(nodes)."""
    s, n = nodes[0], len(nodes)
    v, end = np.log(np.array(nodes) / s), np.log(t / s)
    moments = [t - s]
    for k in range(1, n):
        moments.append(end**k * t - k * moments[-1])
    return np.linalg.solve(np.vander(v, n, increasing=True).T, moments)


FRACTIONS = ([1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def adams_row(nodes, t):
    return [(t - nodes[0]) * f for f in FRACTIONS[len(nodes) - 1]]


STARTS = {1: [], 2: [lambda x, s, t: x + (t - s) * slope_at(x, s)], 3: [heun_loop] * 2, 4: [rk4_loop] * 3}


@pytest.mark.parametrize("first", ["euler", "rk"])
@pytest.mark.parametrize(
    ("sampler", "row", "order"),
    [(lms, lms_row, 1), (lms, lms_row, 2), (lms, lms_row, 3), (lms, lms_row, 4), (deis, deis_row, 1),
     (deis, deis_row, 2), (deis, deis_row, 3)],
)  # fmt: skip
def test_lms_and_deis_are_the_textbook(sampler, row, order, first) -> None:
    plan = sampler(LEVELS, order=order, start=first)
    agrees(plan, loop(row, order, STARTS[order] if first == "rk" else ()))
    assert plan.evaluations == 8 + (0 if first == "euler" else {1: 0, 2: 0, 3: 2, 4: 9}[order])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_the_textbook(order) -> None:
    agrees(ipndm(LEVELS, order=order), loop(adams_row, order))
    assert ipndm(LEVELS, order=order).evaluations == 8


def test_plms_is_the_textbook() -> None:
    """Liu et al. (2022), from the second level on; the first step is averaged with a second call."""
    plan = plms(LEVELS)
    agrees(plan, loop(adams_row, 4, [heun_loop]))
    assert [stage.sigma for stage in plan.stages[:4]] == [3.0, 2.2, 2.2, 1.9]


def test_pndm_is_the_textbook() -> None:
    """Liu et al. (2022); with middles that are not halfway, as those of numbered times."""
    agrees(pndm(LEVELS), loop(adams_row, 4, [rk4_loop] * 3))
    middles = [2.5, 2.0, 1.4]
    first = [lambda x, s, t, m=m: rk4_loop(x, s, t, m) for m in middles]
    plan = pndm(LEVELS, middles=middles)
    agrees(plan, loop(adams_row, 4, first))
    assert [stage.sigma for stage in plan.stages[:5]] == [3.0, 2.5, 2.5, 2.2, 2.2]


def test_equal_steps_make_them_all_adams() -> None:
    sigmas = np.linspace(3.0, 0.3, 12)
    for a, b in (
        (lms(sigmas), pndm(sigmas)),
        (lms(sigmas, start="euler"), ipndm(sigmas)),
        (lms(sigmas, order=1), euler(sigmas)),
    ):
        expected = sample(denoise, start(), a)
        np.testing.assert_allclose(sample(denoise, start(), b), expected, rtol=1e-12)


def test_lms_is_exact_for_cubic_slopes() -> None:
    """Runge-Kutta start included: without x in the slope it is Simpson's rule."""
    p = np.polynomial.Polynomial([0.3, -1.0, 0.7, 0.2])
    end = sample(lambda x, s: x - s * p(s), start(), lms(LEVELS[:-1]))
    np.testing.assert_allclose(end, start() + p.integ()(0.1) - p.integ()(3.0), rtol=1e-12)


def test_deis_is_exact_for_parabolas_in_log_sigma() -> None:
    v = np.log(LEVELS[3] / np.array(LEVELS[1:4]))
    moments = [t - s for s, t in [(LEVELS[3], LEVELS[4])]]
    stage = deis(LEVELS).stages[5]  # from LEVELS[3], after two starting steps of two calls and one step
    assert stage.sigma == LEVELS[3]
    weights = dict.fromkeys((0, 1, 2), 0.0) | {k: c for k, (_, _, c) in enumerate(stage.terms, start=1)}
    weights[0] = (stage.c_x - 1) * stage.sigma
    end = np.log(LEVELS[4] / LEVELS[3])
    for k in range(1, 3):
        moments.append(end**k * LEVELS[4] - k * moments[-1])
    for k, moment in enumerate(moments):
        got = sum(w * (-v[::-1][j]) ** k for j, w in weights.items())
        assert got == pytest.approx(moment, rel=1e-12)


def test_integrals_are_exact() -> None:
    """Against 60-digit arithmetic, for steps from 1e-5 to 20 and nodes as far apart."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        for h in (1e-5, 3.0, 20.0):
            nodes = [0.0, 0.7 * h, 1.9 * h, 2.4 * h]
            for rate in (-1.0, 0.0, 1.0):
                got = integrals(nodes, 0.0, -h, rate=rate)
                for j, node in enumerate(nodes):
                    lagrange = lambda u, j=j, node=node: mpmath.fprod(
                        (u - other) / (mpmath.mpf(node) - other) for k, other in enumerate(nodes) if k != j
                    )
                    exact = mpmath.quad(lambda u: mpmath.exp(rate * (u + h)) * lagrange(u), [0, -h / 2, -h])
                    assert got[j] == pytest.approx(float(exact), rel=1e-12)


def test_a_run_holds_no_more_arrays_than_it_needs() -> None:
    """A Runge-Kutta start looks back twelve stages, on four arrays; what was given back is never read."""
    plan = lms([*np.geomspace(3.0, 0.1, 12), 0.0])
    stepper, x, most = Stepper(plan), start(), 0
    assert max(back for stage in plan.stages for _, back, _ in stage.terms) > 8
    for i, stage in enumerate(plan.stages):
        x, _ = stepper.step(i, x, denoise(x, stage.sigma))
        most = max(most, sum(type(a) is np.ndarray for a in [*stepper._h, *stepper._x]))
    assert most <= 8 and np.isfinite(x).all()


def test_denoised_comes_back_from_the_slope() -> None:
    """The history is d = (x - D) / sigma here; whoever watches a run gets D from it, in every form."""
    for plan in (lms(LEVELS), rescaled(pndm(LEVELS), "flow"), rescaled(deis(LEVELS), "vp")):
        stepper, x = Stepper(plan), start()
        for i, stage in enumerate(plan.stages):
            d = denoise(x / stage.alpha, stage.sigma / stage.alpha)
            following, _ = stepper.step(i, x, d)
            np.testing.assert_allclose(stepper.denoised(i, x, d), d, rtol=1e-9, atol=1e-12)
            x = following


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lms([3.0, 2.0, 1.0, 0.0]), "lms: order 4 .* needs at least 4 steps .* got 3"),
        (lambda: deis([3.0, 2.0, 0.0]), "deis: order 3 .* needs at least 3 steps .* got 2"),
        (lambda: pndm([3.0, 2.0]), "pndm: order 4 .* needs at least 4 steps .* got 1"),
        (lambda: lms(LEVELS, order=5), "lms: order must be 1 ... 4, got 5"),
        (lambda: deis(LEVELS, order=4), "deis: order must be 1 ... 3, got 4"),
        (lambda: ipndm(LEVELS, order=0), "ipndm: order must be 1 ... 4, got 0"),
        (lambda: lms(LEVELS, start="heun"), "lms: start must be one of rk, euler, got 'heun'"),
        (lambda: pndm(LEVELS, middles=[2.5, 2.0]), "pndm: middles must be 3 levels between"),
        (lambda: pndm(LEVELS, middles=[2.5, 2.0, np.nan]), "pndm: middles must be 3 levels between"),
        (lambda: pndm(LEVELS, middles=[2.5, 2.3, 1.5]), "pndm: middles must be 3 levels between"),
    ],
)
def test_bad_options_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_few_levels_without_a_start_of_their_own() -> None:
    """The Euler start works for any number of steps; with just enough of them the other does too."""
    for name in ("lms", "deis"):
        np.testing.assert_allclose(
            sample(denoise, start(), SAMPLERS[name]([3.0, 0.0], start="euler")), denoise(start(), 3.0)
        )
        assert np.isfinite(sample(denoise, start(), SAMPLERS[name](LEVELS[-5:]))).all()
