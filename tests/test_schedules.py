"""Schedules against their formulas: products in closed form, derivatives by differences, inverses, exact counts.

Seen to fail: with 0.009 in the cosine schedule; without the cap's place (2 - f); zero SNR not scaled to the first
value; the posterior variance with a_t for a_{t-1}, or 0 / 0 at t = 0; look-ups linear in sigma, and without the exact
value at whole steps; a diffusion of sub-VP without its square, of VE without the 2, a drift of the cosine twice as
large; 1 - exp(-B) for expm1; an inverse of the cosine without s; polyexponential from the wrong end; other quantiles;
AYS tables stretched to n levels; trailing steps one too many; leading steps out of range; shift terminal by a factor;
mu not from the base length, and without exp; arrays that can be written to; a copy of trained betas left out.
"""

from __future__ import annotations

import math
import pickle
import sys

import numpy as np
import pytest

from generant.diffusion import schedules
from generant.diffusion.schedules import (
    VE,
    VP,
    Cosine,
    DiscreteSchedule,
    SubVP,
    alphas_cumprod,
    betas,
    dynamic_mu,
    flow_times,
    shift_of_mu,
    shifted,
    timesteps,
    zero_terminal_snr,
)

pytestmark = pytest.mark.once

PROCESSES = [VP(), VP(0.0, 12.0), VP(3.0, 3.0), SubVP(), SubVP(0.0, 9.0), VE(), VE(0.02, 348.0), Cosine(), Cosine(0.0)]
FAMILIES = {
    "karras_sigmas": lambda u, lo, hi: (hi ** (1 / 7) + u * (lo ** (1 / 7) - hi ** (1 / 7))) ** 7,
    "exponential_sigmas": lambda u, lo, hi: np.exp((1 - u) * np.log(hi) + u * np.log(lo)),
    "lu_sigmas": lambda u, lo, hi: np.exp(-(-np.log(hi) + u * (np.log(hi) - np.log(lo)))),
    "polyexponential_sigmas": lambda u, lo, hi: np.exp((1 - u) * (np.log(hi) - np.log(lo)) + np.log(lo)),
}


def laplace(t):
    odds = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6))
    return math.sqrt(odds / (1 + odds))


PRODUCTS = {
    "cosine": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
    "exp": lambda t: math.exp(-12 * t),
    "laplace": laplace,
}


def test_lines_of_betas():
    linear = betas("linear", 5, beta_start=0.1, beta_end=0.5)
    np.testing.assert_allclose(linear, [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-15)
    roots = np.sqrt(betas("scaled_linear", 1000, beta_start=0.00085, beta_end=0.012))
    np.testing.assert_allclose(np.diff(roots), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-11)
    np.testing.assert_allclose(roots[[0, -1]] ** 2, [0.00085, 0.012], rtol=1e-14)
    x = np.linspace(-6, 6, 1000)
    sigmoid = betas("sigmoid", beta_start=0.0, beta_end=1.0)
    np.testing.assert_allclose(np.log(sigmoid / (1 - sigmoid)), x, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(betas("sigmoid") - 1e-4, (0.02 - 1e-4) * sigmoid, rtol=1e-12)


@pytest.mark.parametrize("name", PRODUCTS)
def test_betas_given_by_their_product(name):
    f = PRODUCTS[name]
    for n in (10, 1000):
        got = betas(name, n)
        products = np.array([f((t + 1) / n) / f(0) for t in range(n)])
        capped = int((got >= 0.999).sum())
        assert capped == (name == "cosine")  # its last product is 0
        np.testing.assert_allclose(alphas_cumprod(got)[: n - capped], products[: n - capped], rtol=1e-10)
    np.testing.assert_array_equal(betas("squaredcos_cap_v2"), betas("cosine"))


def test_float32_betas_are_the_formula_to_float32():
    for name in schedules.BETA_SCHEDULES:
        for n in (1, 2, 10, 1000):
            exact, single = betas(name, n), betas(name, n, precision="float32")
            assert exact.dtype == np.float64 and single.dtype == np.float32
            np.testing.assert_allclose(single, exact, rtol=5e-7, err_msg=name)
            products = alphas_cumprod(single)
            assert products.dtype == np.float32
            np.testing.assert_allclose(products, np.cumprod(1 - exact), rtol=5e-5, atol=1e-12)


def test_trained_betas_are_taken_as_they_are():
    given = [0.1, 0.4, 0.2]
    np.testing.assert_array_equal(betas(trained=given), given)
    np.testing.assert_array_equal(betas(trained=given, precision="float32"), np.array(given, np.float32))
    for precision in ("float64", "float32"):
        own = np.array(given, precision)
        kept = betas(trained=own, precision=precision)
        own[0] = 0.9
        assert kept[0] == np.dtype(precision).type(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: betas("quadratic"), "schedule must be one of linear"),
        (lambda: betas(n=0), "n must be at least 1, got 0"),
        (lambda: betas(beta_end=1.5), "beta_end must lie in"),
        (lambda: betas(beta_start=math.nan), "beta_start and beta_end must lie in"),
        (lambda: betas(precision="float16"), "precision must be"),
        (lambda: betas(trained=[]), "shape"),
        (lambda: betas(trained=[0.1, math.nan]), "betas must lie in .0, 1., got nan"),
        (lambda: alphas_cumprod([[0.1]]), "alphas_cumprod: wanted betas of shape"),
        (lambda: zero_terminal_snr([0.1]), "at least 2 betas"),
        (lambda: zero_terminal_snr([0.1, 0.0]), "one above 0 after the first"),
        (lambda: zero_terminal_snr([0.1, 1.0, 0.1]), "before the last step already"),
        (lambda: DiscreteSchedule([0.5, 1.0, 0.5]), "no signal is left at t = 1 of 2"),
        (lambda: DiscreteSchedule([0.1, 0.2]).level(1.5), r"t must lie in \[0, 1\], got 1.5"),
        (lambda: DiscreteSchedule([0.1, 0.2]).time_of(-1.0), "level must be 0 or more"),
        (lambda: VP(2.0, 1.0), "VP: wanted 0 <= beta_min <= beta_max"),
        (lambda: SubVP(0.0, 0.0), "SubVP: wanted"),
        (lambda: VE(1.0, math.inf), "VE: wanted"),
        (lambda: Cosine(-0.1), "Cosine: s must be"),
        (lambda: VP().alpha(1.1), r"VP: t must lie in \[0, 1\], got 1.1"),
        (lambda: VE().level([0.5, math.nan]), "VE: t must lie in"),
        (lambda: VE().time_of(60.0), r"VE.time_of: level must lie in \[0.01, 50\]"),
        (lambda: schedules.exponential_sigmas(0, sigma_min=0.1, sigma_max=1.0), "exponential_sigmas: n must be"),
        (lambda: schedules.lu_sigmas(3, sigma_min=0.0, sigma_max=1.0), "lu_sigmas: wanted 0 < sigma_min"),
        (lambda: schedules.polyexponential_sigmas(3, sigma_min=0.1, sigma_max=1.0, rho=0.0), "rho must be positive"),
        (lambda: schedules.beta_sigmas(3, sigma_min=0.1, sigma_max=1.0, beta=math.nan), "must be positive"),
        (lambda: schedules.ays_sigmas("SD3"), "model must be one of SD1, SDXL, SVD"),
        (lambda: timesteps(10, 11), "got n = 11 and n_train = 10"),
        (lambda: timesteps(10, 5, "log"), "spacing must be one of"),
        (lambda: timesteps(10, 5, "leading", offset=-1), "offset must be at least 0"),
        (lambda: shifted([0.5, 1.5], 2.0), r"times must lie in \[0, 1\], got 1.5"),
        (lambda: shifted(0.5, 0.0), "shift must be positive"),
        (lambda: flow_times(0), "n must be at least 1"),
        (lambda: flow_times(4, shift=3.0, mu=1.0), "give shift .static. or mu .dynamic."),
        (lambda: flow_times(4, mu=-1.0, kind="linear"), "positive if linear"),
        (lambda: flow_times(4, mu=1.0, kind="cubic"), "kind must be"),
        (lambda: flow_times(4, last=1.0), "last must lie in"),
        (lambda: flow_times(1, shift_terminal=0.1), "wanted n > 1"),
        (lambda: dynamic_mu(100, base_tokens=10, max_tokens=10), "base_tokens < max_tokens"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_zero_terminal_snr_is_an_affine_map_of_the_root():
    old = betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
    new = zero_terminal_snr(old)
    before, after = np.sqrt(alphas_cumprod(old)), np.sqrt(alphas_cumprod(new))
    assert new[-1] == 1 and after[-1] == 0 and new.dtype == np.float64
    np.testing.assert_allclose(after[0], before[0], rtol=1e-15)
    np.testing.assert_allclose(np.diff(after) / np.diff(before), before[0] / (before[0] - before[-1]), rtol=1e-7)
    np.testing.assert_allclose(zero_terminal_snr(new), new, rtol=1e-9)
    assert zero_terminal_snr(old.astype(np.float32)).dtype == np.float32


def test_tables_of_a_discrete_process():
    for precision, rtol in (("float64", 1e-12), ("float32", 2e-4)):
        given = betas("linear", 50, beta_end=0.3, precision=precision)
        table = DiscreteSchedule(given)
        exact = np.cumprod(1 - betas("linear", 50, beta_end=0.3))
        assert len(table) == 50
        np.testing.assert_allclose(table.sigmas, np.sqrt(1 / exact - 1), rtol=rtol)
        np.testing.assert_allclose(table.log_snr, -2 * np.log(np.sqrt(1 / exact - 1)), rtol=rtol, atol=rtol)
        # Bayes: precisions of x_{t-1} from the data (1 / (1 - a_{t-1})) and from x_t ((1 - beta) / beta) add
        beta = given[1:].astype(np.float64)
        wanted = 1 / (1 / (1 - exact[:-1]) + (1 - beta) / beta)
        np.testing.assert_allclose(table.posterior_variance[1:], wanted, rtol=10 * rtol)
        assert table.posterior_variance[0] == 0
        for name in ("betas", "alphas_cumprod", "sigmas", "log_snr", "posterior_variance"):
            array = getattr(table, name)
            assert array.dtype == given.dtype and array.shape == (50,) and not array.flags.writeable


def test_levels_between_steps_and_back():
    table = DiscreteSchedule(betas("scaled_linear", beta_start=0.00085, beta_end=0.012))
    whole = np.arange(1000)
    np.testing.assert_array_equal(table.level(whole), table.sigmas)
    quarter = table.level(whole[:-1] + 0.25)
    np.testing.assert_allclose(quarter**4, table.sigmas[:-1] ** 3 * table.sigmas[1:], rtol=1e-12)
    t = np.linspace(0, 999, 777).reshape(7, 111)
    np.testing.assert_allclose(table.time_of(table.level(t)), t, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(table.time_of([0.0, 1e-9, 99.0, np.inf]), [0, 0, 999, 999])
    steps, sigmas = table.run(7, spacing="leading", offset=1)
    np.testing.assert_array_equal(steps, 1 + 142 * np.arange(6, -1, -1))
    np.testing.assert_array_equal(sigmas, np.append(table.sigmas[steps], 0))


def test_levels_without_signal_or_without_noise_at_the_ends():
    table = DiscreteSchedule(zero_terminal_snr(betas()))
    assert table.sigmas[-1] == np.inf and table.log_snr[-1] == -np.inf and np.isfinite(table.sigmas[:-1]).all()
    np.testing.assert_array_equal(table.level([998, 998.5, 999]), [table.sigmas[998], np.inf, np.inf])
    np.testing.assert_array_equal(table.time_of([np.inf, 1e9]), [999, 998])
    assert table.run(5)[1][0] == pytest.approx(4096, rel=1e-6) and np.isfinite(table.run(5)[1]).all()
    clean = DiscreteSchedule([0.0, 0.0, 0.5])
    np.testing.assert_array_equal(clean.sigmas, [0, 0, 1])
    np.testing.assert_array_equal(clean.posterior_variance, [0, 0, 0])
    np.testing.assert_array_equal(clean.level([0, 0.5, 1.5, 2]), [0, 0, 0, 1])
    np.testing.assert_array_equal(clean.time_of([0, 1]), [0, 2])
    lost = DiscreteSchedule([1.0])
    np.testing.assert_array_equal([lost.level(0), lost.time_of(3.0)], [np.inf, 0])


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_drift_and_diffusion_are_derivatives(process):
    t, h = np.linspace(0.05, 0.95, 19), 1e-5
    log_alpha = (np.log(process.alpha(t + h)) - np.log(process.alpha(t - h))) / (2 * h)
    np.testing.assert_allclose(process.drift(t), log_alpha, rtol=1e-7, atol=1e-9)
    variance = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    squared = variance - 2 * process.drift(t) * process.sigma(t) ** 2
    np.testing.assert_allclose(process.diffusion(t) ** 2, squared, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_levels_of_a_process_and_back(process):
    t = np.linspace(0, 1, 101).reshape(1, 101)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(process.level(t), process.sigma(t) / process.alpha(t), rtol=1e-13)
        np.testing.assert_allclose(process.log_snr(t), -2 * np.log(process.level(t)), rtol=1e-13)
    assert (np.diff(process.level(t)) > 0).all()
    np.testing.assert_allclose(process.time_of(process.level(t)), t, rtol=1e-10, atol=1e-12)
    if isinstance(process, (VP, Cosine)):
        np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, rtol=1e-14)
    if isinstance(process, SubVP):
        np.testing.assert_allclose(process.sigma(t), 1 - process.alpha(t) ** 2, rtol=1e-13)


def test_processes_are_their_formulas_at_small_times():
    t = np.array([1e-9, 1e-6, 1e-3, 0.5])
    wide = t.astype(np.longdouble)
    for process in (VP(), SubVP()):
        integral = wide * (process.beta_min + (process.beta_max - process.beta_min) * wide / 2)
        # three terms of 1 - exp(-B) where the difference of near numbers would lose digits
        lost = np.where(integral < 1e-4, integral - integral**2 / 2 + integral**3 / 6, 1 - np.exp(-integral))
        sigma = np.sqrt(lost) if isinstance(process, VP) else lost
        np.testing.assert_allclose(process.sigma(t), sigma.astype(float), rtol=1e-12)
        np.testing.assert_allclose(process.level(t), (sigma * np.exp(integral / 2)).astype(float), rtol=1e-12)
        np.testing.assert_allclose(process.time_of(process.level(t)), t, rtol=1e-11)
    np.testing.assert_allclose(VE(0.1, 10.0).level([0, 0.5, 1]), [0.1, 1, 10], rtol=1e-14)
    cosine = Cosine()
    assert cosine.alpha(0.0) == 1 and cosine.sigma(0.0) == 0 and cosine.alpha(1.0) == 0 and cosine.level(1.0) == np.inf
    a = np.pi / 2 * (t + 0.008) / 1.008
    np.testing.assert_allclose(cosine.alpha(t), np.cos(a) / np.cos(np.pi / 2 * 0.008 / 1.008), rtol=1e-14)
    np.testing.assert_allclose(cosine.sigma(t[2:]) ** 2, 1 - cosine.alpha(t[2:]) ** 2, rtol=1e-11)
    # sigma^2 ~ 2 tan(a(0)) a' t
    np.testing.assert_allclose(cosine.sigma(1e-9) ** 2, np.tan(a[0]) * np.pi / 1.008 * 1e-9, rtol=1e-6)


def test_discrete_processes_tend_to_the_continuous():
    for n in (1000, 4000):
        table = DiscreteSchedule(betas("linear", n, beta_start=0.1 / n, beta_end=20 / n))
        t = (np.arange(n) + 1) / n
        np.testing.assert_allclose(table.alphas_cumprod**0.5, VP().alpha(t), rtol=60 / n)
        cosine = DiscreteSchedule(betas("cosine", n))
        np.testing.assert_allclose(cosine.sigmas[:-1], Cosine().level(t[:-1]), rtol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_levels(name):
    for n in (1, 2, 5, 40):
        for low, high in ((0.002, 80.0), (0.03, 14.6)):
            sigmas = getattr(schedules, name)(n, sigma_min=low, sigma_max=high)
            assert sigmas.shape == (n + 1,) and sigmas.dtype == np.float64 and not sigmas.flags.writeable
            assert sigmas[0] == high and sigmas[-1] == 0 and (np.diff(sigmas) < 0).all()
            if n > 1:
                assert sigmas[-2] == low
                np.testing.assert_allclose(sigmas[:-1], FAMILIES[name](np.linspace(0, 1, n), low, high), rtol=1e-12)


def test_polyexponential_is_a_power_in_log_sigma():
    sigmas = schedules.polyexponential_sigmas(5, sigma_min=math.exp(-4), sigma_max=math.exp(4), rho=2.0)
    np.testing.assert_allclose(np.log(sigmas[:-1]), 8 * np.array([1, 0.75, 0.5, 0.25, 0]) ** 2 - 4, rtol=1e-13)


def test_beta_levels_are_quantiles():
    stats = pytest.importorskip("scipy.stats")
    sigmas = schedules.beta_sigmas(12, sigma_min=0.03, sigma_max=14.6)
    share = (sigmas[:-1] - 0.03) / (14.6 - 0.03)
    np.testing.assert_allclose(stats.beta(0.6, 0.6).cdf(share), np.linspace(1, 0, 12), rtol=1e-9, atol=1e-12)
    assert sigmas[0] == 14.6 and sigmas[-2] == 0.03 and sigmas[-1] == 0
    even = schedules.beta_sigmas(5, sigma_min=1.0, sigma_max=5.0, alpha=1.0, beta=1.0)
    np.testing.assert_allclose(even, [5, 4, 3, 2, 1, 0], rtol=1e-14)
    np.testing.assert_array_equal(schedules.beta_sigmas(1, sigma_min=1.0, sigma_max=5.0), [5, 0])


def test_what_needs_other_libraries_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match="beta_sigmas needs scipy"):
        schedules.beta_sigmas(3, sigma_min=0.1, sigma_max=1.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib"):
        VP().plot(tmp_path / "vp.png")


def test_ays_levels():
    table = schedules.AYS_LEVELS["SD1"]
    sigmas = schedules.ays_sigmas("SD1")
    np.testing.assert_array_equal(sigmas[:-1], table[:-1])
    assert sigmas[-1] == 0 and not sigmas.flags.writeable
    twenty = schedules.ays_sigmas("SD1", 20)
    np.testing.assert_array_equal(twenty[:-1:2], table[:-1])
    np.testing.assert_allclose(twenty[1::2] ** 2, np.multiply(table[:-1], table[1:]), rtol=1e-14)
    for model in schedules.AYS_LEVELS:
        for n in (1, 3, 7, 33):
            levels = schedules.ays_sigmas(model, n)
            assert levels.shape == (n + 1,) and (np.diff(levels) < 0).all()


def test_timesteps_are_exactly_n_for_every_n():
    for n_train in (1, 2, 3, 7, 50, 64, 1000):
        for n in range(1, n_train + 1):
            for spacing, offset in (("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)):
                steps = timesteps(n_train, n, spacing, offset=offset)
                assert steps.shape == (n,) and steps.dtype == np.int64, (n_train, n, spacing)
                assert 0 <= steps[-1] and steps[0] < n_train and (np.diff(steps) < 0).all(), (n_train, n, spacing)
                if spacing != "leading":
                    assert steps[0] == n_train - 1


def test_timesteps_by_hand():
    np.testing.assert_array_equal(timesteps(1000, 5, "leading"), [800, 600, 400, 200, 0])
    np.testing.assert_array_equal(timesteps(1000, 5, "leading", offset=1), [801, 601, 401, 201, 1])
    np.testing.assert_array_equal(timesteps(1000, 5, "linspace"), [999, 749, 500, 250, 0])
    np.testing.assert_array_equal(timesteps(1000, 5, "trailing"), [999, 799, 599, 399, 199])
    np.testing.assert_array_equal(timesteps(10, 4, "trailing", offset=1), [9, 7, 4, 1])  # 7.5 and 2.5: to even
    np.testing.assert_array_equal(timesteps(10, 10, "leading", offset=1), np.arange(9, -1, -1))
    assert not timesteps(10, 4).flags.writeable


def test_flow_times_are_shifted_once():
    for n in (1, 4, 28):
        even = flow_times(n)
        np.testing.assert_allclose(even, 1 - np.arange(n + 1) / n, rtol=1e-14, atol=1e-16)
        times = flow_times(n, shift=3.0)
        assert times[0] == 1 and times[-1] == 0 and times.shape == (n + 1,) and not times.flags.writeable
        inner = slice(1, n)
        odds = times[inner] / (1 - times[inner])
        np.testing.assert_allclose(odds, 3 * even[inner] / (1 - even[inner]), rtol=1e-12)
        t = even[inner]
        for kind, power in (("exponential", math.exp(0.8)), ("linear", 0.8)):
            dynamic = flow_times(n, mu=0.8, kind=kind)
            np.testing.assert_allclose(dynamic[inner], power / (power + 1 / t - 1), rtol=1e-12)
    np.testing.assert_allclose(flow_times(4, last=0.001), [1, 0.667, 0.334, 0.001, 0], rtol=1e-13)
    np.testing.assert_allclose(shifted(shifted(0.3, 2.0), 0.5), 0.3, rtol=1e-15)


def test_terminal_time_of_a_flow():
    plain, times = flow_times(8, shift=2.0), flow_times(8, shift=2.0, shift_terminal=0.1)
    assert times[0] == 1 and times[-1] == 0
    np.testing.assert_allclose(times[-2], 0.1, rtol=1e-14)
    np.testing.assert_allclose((1 - times[1:-1]) / (1 - plain[1:-1]), 0.9 / (1 - plain[-2]), rtol=1e-12)


def test_shift_from_the_length_of_a_sequence():
    assert dynamic_mu(256) == 0.5 and dynamic_mu(4096) == pytest.approx(1.15, rel=1e-15)
    assert dynamic_mu(2176) == pytest.approx(0.825, rel=1e-15)
    assert dynamic_mu(30, base_tokens=10, max_tokens=20, base_shift=1, max_shift=2) == 3
    assert shift_of_mu(0.5) == math.exp(0.5) and shift_of_mu(2.0, "linear") == 2


def test_schedules_do_not_change_and_print(tmp_path):
    table = DiscreteSchedule(betas())
    for values in (betas("cosine"), alphas_cumprod([0.1]), zero_terminal_snr(betas()), table.sigmas):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
    with pytest.raises(AttributeError):
        table.sigmas = table.betas
    with pytest.raises(AttributeError):
        VP().beta_min = 1.0
    assert repr(table) == "DiscreteSchedule(n=1000, beta 0.0001 .. 0.02, sigma 0.01 .. 157.4, float64)"
    assert len(str(table).splitlines()) == 13 and "  999         0.02" in str(table)
    assert repr(VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert len(str(Cosine()).splitlines()) == 13 and "inf" in str(Cosine())
    assert pickle.loads(pickle.dumps(VE(0.1, 9.0))) == VE(0.1, 9.0)


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    for i, schedule in enumerate((DiscreteSchedule(zero_terminal_snr(betas())), VE())):
        schedule.plot(tmp_path / f"{i}.svg")
        drawn = (tmp_path / f"{i}.svg").read_text()
        assert drawn.count('id="axes_') == 2 and drawn.count('id="line2d_') > 3
    families = {"karras": schedules.karras_sigmas(8), "ays": schedules.ays_sigmas("SDXL"), "flow": flow_times(5)}
    schedules.plot_levels(tmp_path / "levels.svg", families)
    assert 'id="legend_1"' in (tmp_path / "levels.svg").read_text()
    with pytest.raises(ValueError, match="'bad' must be"):
        schedules.plot_levels(tmp_path / "levels.svg", {"bad": np.ones((2, 2))})
