"""One-step and exponential samplers: their order on Gaussian data, and each against the paper's own loop.

Gaussian data of standard deviation d has the denoiser D = d^2 / (d^2 + s^2) x, and its equation is solved by
x(s) = x(s0) sqrt((d^2 + s^2) / (d^2 + s0^2)). Several d at once, lest an error changes sign near the last level. The
loops below keep what the papers keep: a corrected x, a list of earlier D, both slopes.
Seen to fail: with half of x in Heun's second stage off by 1e-9, RK4's weight of its first x off by 1e-3, arithmetic
instead of geometric middles in DPM-Solver-2, the 2M ratio inverted, 3M always damped or started by Euler steps, UniPC's
correction not carried by t / s, made after a Runge-Kutta step too, or with the variants exchanged, the last step to 0
not D, the inverse starting with x instead of 2 x - D, and one panel only for long integrals.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from generant.diffusion.plan import alpha_of, rescaled
from generant.diffusion.samplers import (
    DETERMINISTIC,
    ddim_inverse,
    dpm2,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    euler,
    heun,
    lms,
    rk4,
    unipc,
)
from generant.diffusion.samplers.exponential import exponential_weights
from generant.diffusion.sampling import sample
from generant.diffusion.schedules import karras_sigmas

pytestmark = pytest.mark.once

BY_NAME = {sampler.__name__: sampler for sampler in DETERMINISTIC}
LEVELS = [3.0, 2.2, 1.9, 1.1, 0.8, 0.5, 0.3, 0.1, 0.0]
WIDTHS = np.array([0.3, 0.5, 0.7, 1.0, 1.5])


def levels(grid: str, n: int) -> np.ndarray:
    """n + 1 noise levels down to 0.05; a step to 0 is left out because it is D for all samplers."""
    if grid == "karras":
        return karras_sigmas(n + 1, sigma_min=0.05, sigma_max=20.0)[:-1]
    steps = np.where(np.arange(n) % 2, 1.0, 3.0)  # in log sigma, alternately short and long
    return 3.0 * (0.05 / 3.0) ** (np.append(0.0, np.cumsum(steps)) / steps.sum())


def slope(sampler, grid: str, d=WIDTHS) -> float:
    """log2 of how much the largest relative error shrinks when twice as many steps are taken."""
    errors = []
    for n in (160, 320):
        plan = sampler(levels(grid, n))
        first, *_, last = plan.sigmas
        exact = np.sqrt((d**2 + last**2) / (d**2 + first**2)) * first
        got = sample(lambda x, s: x * (d**2 / (d**2 + s**2)), np.full_like(d, first), plan)
        errors.append(np.abs(got / exact - 1).max())
    return float(np.log2(errors[0] / errors[1]))


def denoise(x, sigma):
    return np.tanh(x) * (1 - 0.1 * sigma) + 0.3 * np.cos(sigma)


def start(n: int = 4) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n,)) * 3.0


def agrees(plan, expected, denoiser=denoise) -> None:
    np.testing.assert_allclose(sample(denoiser, start(), plan), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", ["karras", "uneven"])
@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        (euler, {}, 1), (heun, {}, 2), (dpm2, {}, 2), (dpmpp_2s, {}, 2), (rk4, {}, 4), (dpmpp_2m, {}, 2),
        (dpmpp_3m, {}, 3), (dpmpp_3m, {"damped": True}, 2), (unipc, {"order": 1}, 2), (unipc, {"order": 2}, 3),
        (unipc, {"order": 2, "variant": "bh1"}, 3),
    ],
)  # fmt: skip
def test_order(sampler, options, order, grid) -> None:
    plan = lambda sigmas: sampler(sigmas, **options)
    assert plan(LEVELS).order == order
    assert slope(plan, grid) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_order_of_unipc_3(variant) -> None:
    """4, and on the uneven levels more: there the term of that order nearly vanishes. A cold start there is order 3."""
    assert unipc(LEVELS, order=3).order == 4
    assert slope(lambda s: unipc(s, order=3, variant=variant), "karras") == pytest.approx(4, abs=0.1)
    assert slope(lambda s: unipc(s, order=3, variant=variant, start="lower"), "karras") == pytest.approx(4, abs=0.1)
    assert slope(lambda s: unipc(s, order=3, variant=variant), "uneven") > 3.8
    cold = lambda s: unipc(s, order=3, variant=variant, start="lower")
    assert cold(LEVELS).order == 3 and slope(cold, "uneven") == pytest.approx(3, abs=0.1)


def test_damped_and_cold_3m_stay_at_order_2() -> None:
    cold = lambda s: dpmpp_3m(s, start="lower")
    assert cold(LEVELS).order == 2 and slope(cold, "uneven") == pytest.approx(2, abs=0.1)
    warm = lambda s: dpmpp_3m(s, damped=True, start="rk")
    assert warm(LEVELS).order == 2 and slope(warm, "uneven") == pytest.approx(2, abs=0.1)


def heun_loop(x, s, t):
    d = (x - denoise(x, s)) / s
    y = x + (t - s) * d
    return x + (t - s) * (d + (y - denoise(y, t)) / t) / 2


def rk4_loop(x, s, t):
    f = lambda x, sigma: (x - denoise(x, sigma)) / sigma
    h, m = t - s, (s + t) / 2
    k1 = f(x, s)
    k2 = f(x + h / 2 * k1, m)
    k3 = f(x + h / 2 * k2, m)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(x + h * k3, t))


def dpm2_loop(x, s, t):
    """Lu et al. (2022a), algorithm 1, in lambda = -log sigma with alpha = 1."""
    h = np.log(s / t)
    m = np.exp((np.log(s) + np.log(t)) / 2)
    eps = lambda x, sigma: (x - denoise(x, sigma)) / sigma
    u = x - m * np.expm1(h / 2) * eps(x, s)
    return x - t * np.expm1(h) * eps(u, m)


def dpmpp_2s_loop(x, s, t, r=0.5):
    """Lu et al. (2022b), algorithm 1."""
    h = np.log(s / t)
    m = s * np.exp(-r * h)
    before = denoise(x, s)
    u = m / s * x - np.expm1(-r * h) * before
    d = (1 - 1 / (2 * r)) * before + 1 / (2 * r) * denoise(u, m)
    return t / s * x - np.expm1(-h) * d


@pytest.mark.parametrize(
    ("sampler", "step", "calls"),
    [(heun, heun_loop, 2), (rk4, rk4_loop, 4), (dpm2, dpm2_loop, 2), (dpmpp_2s, dpmpp_2s_loop, 2)],
)
def test_one_step_methods_are_the_textbook(sampler, step, calls) -> None:
    x = start()
    for s, t in pairwise(LEVELS):
        x = step(x, s, t) if t > 0 else denoise(x, s)
    plan = sampler(LEVELS)
    agrees(plan, x)
    assert plan.evaluations == 7 * calls + 1 and not plan.stochastic
    assert sampler(LEVELS[:-1]).evaluations == 7 * calls


def test_dpmpp_2m_is_the_textbook() -> None:
    """Lu et al. (2022b), algorithm 2, in lambda = -log sigma. An inverted ratio would keep the order."""
    x, before = start(), None
    for i, (s, t) in enumerate(pairwise(LEVELS[:-1])):
        d, h = denoise(x, s), np.log(s / t)
        mixed = d if before is None else d + h / (2 * np.log(LEVELS[i - 1] / s)) * (d - before)
        x, before = t / s * x - np.expm1(-h) * mixed, d
    agrees(dpmpp_2m(LEVELS), denoise(x, LEVELS[-2]))


@pytest.mark.parametrize("first", ["lower", "rk"])
@pytest.mark.parametrize("damped", [True, False])
def test_dpmpp_3m_is_the_published_row_or_twice_its_last_term(damped, first) -> None:
    """The row with phi functions, as published and in wide use; the Taylor term of D'' is twice what it has."""
    x, past, at = start(), [], []
    for i, (s, t) in enumerate(pairwise(LEVELS[:-1])):
        past, at, h = [denoise(x, s), *past], [s, *at], np.log(s / t)
        if i < 2 and first == "rk":
            x = heun_loop(x, s, t)
        elif i == 0:
            x = t / s * x - np.expm1(-h) * past[0]
        elif i == 1:
            r = np.log(at[1] / s) / h
            x = t / s * x - np.expm1(-h) * (past[0] + (past[0] - past[1]) / (2 * r))
        else:
            r0, r1 = np.log(at[1] / s) / h, np.log(at[2] / at[1]) / h
            d1_0, d1_1 = (past[0] - past[1]) / r0, (past[1] - past[2]) / r1
            d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_1 = np.expm1(-h)
            phi_2 = phi_1 / h + 1
            phi_3 = phi_2 / h - 0.5
            x = t / s * x - phi_1 * past[0] + phi_2 * d1 - (1 if damped else 2) * phi_3 * d2
    plan = dpmpp_3m(LEVELS, damped=damped, start=first)
    agrees(plan, denoise(x, LEVELS[-2]))
    assert plan.evaluations == 8 + 2 * (first == "rk")
    assert dpmpp_3m(LEVELS, damped=damped) == dpmpp_3m(LEVELS, damped=damped, start="lower" if damped else "rk")


def unipc_loop(x, most, variant, first):
    """Zhao et al. (2023) on predictions of data: solve for the coefficients, correct x with the call that follows."""

    def coefficients(order, at, s, t):
        hh = -np.log(s / t)
        b_h = hh if variant == "bh1" else np.expm1(hh)
        rks = np.array([*(np.log(s / at[k]) / -hh for k in range(1, order)), 1.0])
        rows, b, phi, factorial = [], [], np.expm1(hh) / hh - 1, 1
        for i in range(1, order + 1):
            rows.append(rks ** (i - 1))
            b.append(phi * factorial / b_h)
            factorial *= i + 1
            phi = phi / hh - 1 / factorial
        return rks, np.array(rows), np.array(b), b_h, np.expm1(hh)

    past, at = [denoise(x, LEVELS[0])], [LEVELS[0]]
    for i, (s, t) in enumerate(pairwise(LEVELS[:-1])):
        if i == 0 and first == "rk":
            x = rk4_loop(x, s, t)
            past, at = [denoise(x, t), *past], [t, *at]
            continue
        order = min(most, i + 1)
        rks, rows, b, b_h, phi_1 = coefficients(order, at, s, t)
        d1s = [(past[k] - past[0]) / rks[k - 1] for k in range(1, order)]
        rho_p = [0.5] if order == 2 else np.linalg.solve(rows[:-1, :-1], b[:-1]) if order > 2 else []
        linear = t / s * x - phi_1 * past[0]
        predicted = linear - b_h * sum((r * d for r, d in zip(rho_p, d1s, strict=True)), np.zeros(4))
        if t == LEVELS[-2]:
            return denoise(predicted, t)
        here = denoise(predicted, t)
        rho_c = [0.5] if order == 1 else np.linalg.solve(rows, b)
        x = linear - b_h * sum(r * d for r, d in zip(rho_c, [*d1s, here - past[0]], strict=True))
        past, at = [here, *past], [t, *at]


@pytest.mark.parametrize("first", ["lower", "rk"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_the_published_loop(order, variant, first) -> None:
    plan = unipc(LEVELS, order=order, variant=variant, start=first)
    agrees(plan, unipc_loop(start(), order, variant, first))
    assert plan.evaluations == 8 + 3 * (first == "rk")
    assert all(kind == "h" for s in plan.stages[4:] for kind, *_ in s.terms)  # no x is kept


def test_weights_are_exact_for_steps_of_any_length() -> None:
    """Of D = 1, v, v^2 in v = log sigma, in closed form; from steps of 1e-4 to e^20."""
    for h in (1e-4, 0.03, 1.0, 7.0, 20.0):
        s, t = 2.0, 2.0 * np.exp(-h)
        nodes = [s, s * np.exp(0.8 * h), s * np.exp(1.7 * h)]
        u = np.log(np.array(nodes) / s) / -h  # D is a polynomial in u = log(s / sigma) / h
        weights = exponential_weights(nodes, s, t)
        series = lambda k: sum(h ** (j + 1) / np.prod(np.arange(k + 1.0, k + j + 2)) * (-1) ** j for j in range(20))
        moments = [-np.expm1(-h)]
        moments.append(1 - moments[0] / h if h > 0.5 else series(1))
        moments.append(1 - 2 * moments[1] / h if h > 0.5 else series(2))
        for k, moment in enumerate(moments):
            assert weights @ u**k == pytest.approx(moment, rel=1e-11)


@pytest.mark.parametrize("form", ["vp", "flow"])
@pytest.mark.parametrize("sampler", [rk4, unipc, lms, ddim_inverse])
def test_other_forms_are_the_same_path(sampler, form) -> None:
    """Stages that look back on x as well as h, moved to alpha below 1."""
    plan = sampler(LEVELS)
    moved = rescaled(plan, form)
    level = lambda sigma: sigma / np.sqrt(1 - sigma**2) if form == "vp" else sigma / (1 - sigma)
    told = lambda x, sigma: denoise(x / alpha_of(form, level(sigma)), level(sigma))
    x = start()
    expected = sample(denoise, x, plan) * moved.final[0]
    np.testing.assert_allclose(sample(told, x * moved.initial[0], moved), expected, rtol=1e-9)


def test_inverse_undoes_euler() -> None:
    """By the same levels upward: what is left of a round trip shrinks as the step."""
    d, left = 0.7, []
    for n in (40, 80):
        sigmas = karras_sigmas(n, sigma_min=0.02, sigma_max=20.0)
        gaussian = lambda x, s: x * (d**2 / (d**2 + s**2))
        plan = ddim_inverse(sigmas)
        assert plan.evaluations == n and plan.initial == (1.0, 0.0) and plan.final == (1.0, 20.0)
        up = sample(gaussian, start(), plan)
        left.append(np.abs(sample(gaussian, up, euler(sigmas)) / start() - 1).max())
        assert np.abs(up / start() - np.hypot(d, 20) / d).max() < 8 / n * np.hypot(d, 20)
    assert np.log2(left[0] / left[1]) == pytest.approx(1, abs=0.1)
    assert slope(lambda s: ddim_inverse(s), "karras") == pytest.approx(1, abs=0.1)
    s, t = 0.5, 2.0
    agrees(ddim_inverse([t, s]), start() + (t - s) / s * (start() - denoise(start(), s)))
    agrees(ddim_inverse([s, 0.0]), 2 * start() - denoise(start(), s))


@pytest.mark.parametrize("name", list(BY_NAME))
def test_constant_data_are_found_exactly(name) -> None:
    """D that never changes is reached from any x by levels that end in 0, and else approached by t / s."""
    x = start() * 80
    plan = BY_NAME[name](karras_sigmas(6))
    np.testing.assert_allclose(sample(lambda x, s: x * 0 + 0.25, x, plan), 0.25, rtol=1e-12)
    short = BY_NAME[name](LEVELS[:-1])
    np.testing.assert_allclose(
        sample(lambda x, s: x * 0 + 0.25, x, short), 0.25 + (x - 0.25) * 0.1 / 3, rtol=1e-10, atol=1e-11
    )
    assert short.final == (1.0, 0.1) and plan.final == (1.0, 0.0) and plan.name == name
    assert type(plan).from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    "sigmas", [[], [1.0], [[2.0, 1.0]], [1.0, 2.0], [1.0, 1.0], [2.0, -1.0], [np.nan, 0.0], [np.inf, 1.0]]
)
@pytest.mark.parametrize("name", [*BY_NAME, "ddim_inverse"])
def test_bad_levels_are_refused(name, sigmas) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: sigmas must "):
        {**BY_NAME, "ddim_inverse": ddim_inverse}[name](sigmas)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpmpp_3m([2.0, 1.0, 0.0]), "dpmpp_3m: order 3 .* needs at least 3 steps .* got 2"),
        (lambda: unipc([2.0, 1.0], order=3), "unipc: order 3 .* needs at least 3 steps .* got 1"),
        (lambda: unipc(LEVELS, order=4), "unipc: order must be 1 ... 3, got 4"),
        (lambda: unipc(LEVELS, order=1.5), "unipc: order must be 1 ... 3, got 1.5"),
        (lambda: unipc(LEVELS, variant="bh3"), "unipc: variant must be one of bh1, bh2, got 'bh3'"),
        (lambda: dpmpp_3m(LEVELS, start="euler"), "dpmpp_3m: start must be one of rk, lower, got 'euler'"),
    ],
)
def test_bad_options_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["euler", "heun", "dpm2", "dpmpp_2s", "rk4", "dpmpp_2m", "unipc", "ipndm", "plms"])
def test_one_step_to_0_is_the_denoised(name) -> None:
    plan = BY_NAME[name]([3.0, 0.0])
    assert len(plan) == 1
    agrees(plan, denoise(start(), 3.0))
