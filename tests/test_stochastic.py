"""Samplers that add noise: the papers' formulas step by step, and the variance they give on Gaussian data.

Data N(0, d^2) has the denoiser D = d^2 / (d^2 + s^2) x, for which every plan is linear: `coefficients` carries the
result's coefficients of the initial and of each stage's noise through the table, so its variance is computed and not
estimated, and must approach d^2 + sigma^2 at the plan's order.
Seen to fail: with t - up for down, with the sign of D turned in DPM2, without sqrt(1 + t^2) in the large variance,
without the first D in the second noise of the SDE form, or with that noise drawn whole, with the parabola halved where
it should not be, with half the exponent in the noise, with gamma unbounded, with churn's own rise as its span, with
LCM's x not scaled, with CM's noise of variance t^2, TCD's of (t - u)^2, with the whole logarithm for half of it.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1, hypot, inf, log, sin, sqrt

import numpy as np
import pytest

from generant import ops, random
from generant.diffusion.learned_variance import learned_noise, sample_learned
from generant.diffusion.plan import Plan, rescaled
from generant.diffusion.samplers import ancestral
from generant.diffusion.samplers.ancestral import ddim, ddpm, dpm2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from generant.diffusion.samplers.few_step import ConsistencyScaling, consistency, lcm, tcd
from generant.diffusion.samplers.sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, edm_churn
from generant.diffusion.sampling import Stepper, initial_noise, sample

pytestmark = pytest.mark.once

SIGMA_DATA = 0.7
LEVELS = [9.0, 4.0, 2.5, 1.1, 0.6, 0.0]
NAMES = {
    f.__name__: f
    for f in (
        ddpm, ddim, euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde,
        edm_churn, consistency, lcm, tcd,
    )
}  # fmt: skip


def gaussian(alpha: float, sigma: float) -> float:
    return alpha * SIGMA_DATA**2 / (alpha**2 * SIGMA_DATA**2 + sigma**2)


def coefficients(plan: Plan, denoiser=gaussian) -> np.ndarray:
    """The result as a combination of the initial noise and each stage's, for D = denoiser(alpha, sigma) x."""
    x = np.zeros(len(plan) + 1)
    x[0] = hypot(plan.initial[0] * SIGMA_DATA, plan.initial[1])
    past: dict[str, list[np.ndarray]] = {"x": [], "h": []}
    for i, stage in enumerate(plan.stages):
        d = denoiser(stage.alpha, stage.sigma) * x if stage.call else 0 * x
        following = stage.c_x * x + stage.c_d * d + sum(c * past[kind][-back] for kind, back, c in stage.terms)
        following[i + 1] += stage.c_noise
        past["x"].append(x)
        past["h"].append(stage.g_x * x + stage.g_d * d)
        x = following
    return x


def levels(n: int) -> np.ndarray:
    """n steps from 20 to 0.05; a step to 0 gives D, of which the variance is d^4 / (d^2 + s^2)."""
    return np.linspace(20 ** (1 / 7), 0.05 ** (1 / 7), n + 1) ** 7


@pytest.mark.parametrize(
    ("sampler", "options", "order"),
    [
        (ddpm, {}, 1),
        (ddpm, {"variance": "fixed_large"}, 1),
        (ddim, {"eta": 0.5}, 1),
        (ddim, {"eta": 1.0}, 1),
        (euler_ancestral, {}, 1),
        (dpm2_ancestral, {}, 2),
        (dpm2_ancestral, {"eta": 0.5}, 2),
        (dpmpp_2s_ancestral, {}, 2),
        (dpmpp_sde, {}, 2),
        (dpmpp_sde, {"eta": 0.5}, 2),
        (dpmpp_2m_sde, {}, 2),
        (dpmpp_2m_sde, {"solver": "heun", "eta": 0.5}, 2),
        (dpmpp_3m_sde, {}, 2),
        (dpmpp_3m_sde, {"damped": True}, 2),
        (dpmpp_3m_sde, {"eta": 0.0}, 3),
        (edm_churn, {"s_churn": 20.0}, 2),
        (edm_churn, {"s_churn": 5.0, "s_min": 0.1, "s_max": 8.0}, 2),
        (edm_churn, {"s_churn": 5.0, "heun": False}, 1),
    ],
)
def test_variance_converges_to_that_of_the_data(sampler, options, order):
    errors = []
    for n in (160, 320, 640):
        plan = sampler(levels(n), **options)
        errors.append(np.sum(coefficients(plan) ** 2) / (SIGMA_DATA**2 + 0.05**2) - 1)
    slopes = -np.diff(np.log2(np.abs(errors)))
    tolerance = 0.13 if order < 3 else 0.2  # 3M starts with two steps of lower order
    assert slopes == pytest.approx([order, order], abs=tolerance), (errors, slopes)
    assert plan.order == order


@pytest.mark.parametrize(("name", "noise"), [*((name, "independent") for name in NAMES), ("edm_churn", "bridge")])
def test_drawn_samples_have_the_computed_variance(name, noise):
    """Eight levels, 8000 elements: the noise of the stages is what the table says it is, and independent."""
    options = {"edm_churn": {"s_churn": 4.0}, "ddim": {"eta": 1.0}}.get(name, {})
    plan = rescaled(NAMES[name](levels(8), **options), "vp")
    keys = random.split(random.key(21), 2)
    alpha, sigma = plan.initial
    x = np.float32(hypot(alpha * SIGMA_DATA, sigma) / sigma) * initial_noise(plan, keys, (4000,))
    linear = lambda x, s: np.float32(gaussian(1 / hypot(1, s / sqrt(1 - s * s)), s)) * x
    got = sample(linear, x, plan, keys=keys, noise=noise)
    assert got.var() == pytest.approx(np.sum(coefficients(plan) ** 2), rel=0.05)
    assert np.corrcoef(got)[0, 1] == pytest.approx(0, abs=0.06)


def test_rescaled_plans_have_the_same_variance():
    for sampler in (ddpm, dpmpp_sde, dpmpp_3m_sde, lambda s: edm_churn(s, s_churn=9.0)):
        plan = sampler(levels(20))
        for form in ("vp", "flow"):
            other = rescaled(plan, form)
            np.testing.assert_allclose(
                coefficients(other)[1:], other.final[0] * coefficients(plan)[1:], rtol=1e-12, atol=1e-16
            )


def test_few_step_samplers_keep_the_variance_when_the_jumps_are_right():
    """The jump from s to u multiplies Gaussian data by sqrt((d^2 + u^2) / (d^2 + s^2)), which no noise disturbs."""
    d = SIGMA_DATA
    jump = lambda s, u: sqrt((d**2 + u**2) / (d**2 + s**2))
    for t in (0.3, 0.01):
        sigmas = [80.0, 24.0, 5.8, 0.9, t]
        assert np.sum(coefficients(lcm(sigmas), lambda _, s: jump(s, 0)) ** 2) == pytest.approx(d**2 + t**2, rel=1e-12)
        plan = consistency(sigmas, sigma_min=0.002)
        variance = np.sum(coefficients(plan, lambda _, s: jump(s, 0.002)) ** 2)
        assert variance == pytest.approx(d**2 + t**2, rel=1e-12)
        for gamma in (0.0, 0.3, 1.0):
            landing = dict(zip(sigmas, [(1 - gamma) * t for t in sigmas[1:]], strict=False))
            inner = lambda _, s, to=landing: (jump(s, to[s]) - to[s] / s) / (1 - to[s] / s)  # D that makes x_u right
            variance = np.sum(coefficients(tcd(sigmas, gamma=gamma), inner) ** 2)
            assert variance == pytest.approx(d**2 + t**2, rel=1e-12)


# ---- the papers' formulas, with given noise ----


def network(x, sigma):
    return np.tanh(x) * (1 - 0.05 * sigma) + 0.1 * sin(sigma)


def given(plan, x, z):
    """The plan's result with z[i] as the noise of stage i."""
    stepper = Stepper(plan)
    for i, stage in enumerate(plan.stages):
        x, _ = stepper.step(i, x, network(x, stage.sigma / stage.alpha) if stage.call else x, noise=z[i])
    return x


@pytest.fixture
def start():
    rng = np.random.default_rng(5)
    return 9 * rng.standard_normal((4, 5)), rng.standard_normal((20, 4, 5))


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


def vp(plan, x, z):
    """The plan's result in the variance preserving form, from alpha times x; the network sees data + sigma noise."""
    plan = rescaled(plan, "vp")
    stepper = Stepper(plan)
    x = plan.stages[0].alpha * x
    for i, stage in enumerate(plan.stages):
        x, _ = stepper.step(i, x, network(x / stage.alpha, stage.sigma / stage.alpha), noise=z[i])
    return x


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
def test_ddpm_is_the_paper(variance, start):
    """Ho et al. (2020), eq. 7, for abar = 1 / (1 + sigma^2)."""
    x, z = start
    got = vp(ddpm(LEVELS, variance=variance), x, z)
    x = x / hypot(1, LEVELS[0])
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        bar, bar_t = 1 / (1 + s * s), 1 / (1 + t * t)
        alpha, beta = bar / bar_t, 1 - bar / bar_t
        d = network(x / sqrt(bar), s)
        mean = sqrt(bar_t) * beta / (1 - bar) * d + sqrt(alpha) * (1 - bar_t) / (1 - bar) * x
        v = beta if "large" in variance else beta * (1 - bar_t) / (1 - bar)
        x = mean + sqrt(v) * z[i] * (t > 0)
    close(got, x)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_paper(eta, start):
    """Song et al. (2021), eq. 12 and 16."""
    x, z = start
    got = vp(ddim(LEVELS, eta=eta), x, z)
    x = x / hypot(1, LEVELS[0])
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        bar, bar_t = 1 / (1 + s * s), 1 / (1 + t * t)
        d = network(x / sqrt(bar), s)
        noise = (x - sqrt(bar) * d) / sqrt(1 - bar)
        sigma = eta * sqrt((1 - bar_t) / (1 - bar)) * sqrt(1 - bar / bar_t)
        x = sqrt(bar_t) * d + sqrt(max(1 - bar_t - sigma**2, 0)) * noise + sigma * z[i]
    close(got, x)


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.6, 1.1), (0.0, 1.0), (3.0, 1.0)])
@pytest.mark.parametrize("sampler", [euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral])
def test_ancestral_steps_are_the_formula(sampler, eta, s_noise, start):
    """The first x is stored here, as the formulas say; the plan eliminates it. eta = 3 leaves nothing of x."""
    x, z = start
    got = given(plan := sampler(LEVELS, eta=eta, s_noise=s_noise), x, z)
    stages = iter(range(len(plan)))
    for s, t in pairwise(LEVELS):
        up = min(t, eta * sqrt(t**2 * (s**2 - t**2) / s**2))
        down = sqrt(t**2 - up**2)
        d = network(x, s)
        i = next(stages)
        if sampler is euler_ancestral or down == 0:
            x = x + (x - d) / s * (down - s) + s_noise * up * z[i]
            continue
        i = next(stages)
        m = exp((log(s) + log(down)) / 2)
        if sampler is dpm2_ancestral:
            middle = x + (x - d) / s * (m - s)
            slope = (middle - network(middle, m)) / m
            x = x + slope * (down - s) + s_noise * up * z[i]
        else:
            h = log(s / down)
            middle = m / s * x - expm1(-h / 2) * d
            x = down / s * x - expm1(-h) * network(middle, m) + s_noise * up * z[i]
    assert next(stages, None) is None
    close(got, x)


@pytest.mark.parametrize(
    ("eta", "s_noise", "r"), [(1.0, 1.0, 0.5), (0.6, 1.1, 0.5), (1.0, 1.0, 0.3), (0.0, 1.0, 0.5), (3.0, 1.0, 0.5)]
)
def test_dpmpp_sde_is_the_formula_along_one_path(eta, s_noise, r, start):
    """Both noises of a step are increments of one W, whose clock is sigma^-2, from s: to m and to t."""
    x, z = start
    got = given(dpmpp_sde(LEVELS, eta=eta, s_noise=s_noise, r=r), x, z)
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        d = network(x, s)
        if t == 0:
            x = d
            continue
        m = exp(log(s) + r * log(t / s))
        to_m = sqrt(m**-2 - s**-2) * z[2 * i]
        to_t = to_m + sqrt(t**-2 - m**-2) * z[2 * i + 1]
        up = min(m, eta * sqrt(m**2 * (s**2 - m**2) / s**2))
        down = sqrt(m**2 - up**2)
        middle = down / s * x + (1 - down / s) * d + s_noise * up * to_m / sqrt(m**-2 - s**-2)
        q = 1 / (2 * r)
        d = (1 - q) * d + q * network(middle, m)
        up = min(t, eta * sqrt(t**2 * (s**2 - t**2) / s**2))
        down = sqrt(t**2 - up**2)
        x = down / s * x + (1 - down / s) * d + s_noise * up * to_t / sqrt(t**-2 - s**-2)
    close(got, x)


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.6, 1.1), (0.0, 1.0)])
@pytest.mark.parametrize("kind", ["midpoint", "heun", "3m", "damped"])
def test_multistep_sde_is_the_integral_of_the_polynomial(kind, eta, s_noise, start):
    """D as the polynomial through the last levels, in lambda, integrated by Gauss-Legendre; two kinds are no integral.

    midpoint: D half a step on. damped: half the parabola's curvature.
    """
    x, z = start
    if kind in ("midpoint", "heun"):
        plan = dpmpp_2m_sde(LEVELS, eta=eta, s_noise=s_noise, solver=kind)
    else:
        plan = dpmpp_3m_sde(LEVELS, eta=eta, s_noise=s_noise, damped=kind == "damped")
    got = given(plan, x, z)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = (nodes + 1) / 2, weights / 2
    seen: list[tuple[float, np.ndarray]] = []
    for i, (s, t) in enumerate(pairwise(LEVELS)):
        d = network(x, s)
        seen = [*seen, (-log(s), d)][-3 if kind in ("3m", "damped") else -2 :]
        if t == 0:
            x = d
            continue
        h = log(s / t)
        at = np.array([u for u, _ in seen]) + log(s)
        powers = np.linalg.solve(np.vander(at / h, increasing=True), np.array([d.ravel() for _, d in seen]))
        if kind == "damped" and len(seen) == 3:
            powers[2] /= 2
        big = (1 + eta) * h
        if kind == "midpoint":
            integral = -expm1(-big) * np.polynomial.polynomial.polyval(0.5, powers)
        else:
            kernel = big * np.exp(-(1 - nodes) * big) * weights
            integral = np.polynomial.polynomial.polyval(nodes, powers) @ kernel
        spread = t * sqrt(1 - exp(-2 * eta * h))
        x = t / s * exp(-eta * h) * x + integral.reshape(x.shape) + s_noise * spread * z[i]
    close(got, x)


@pytest.mark.parametrize("heun", [True, False])
@pytest.mark.parametrize(
    "options", [{"s_churn": 1.0}, {"s_churn": 40.0, "s_noise": 1.007}, {"s_churn": 1.0, "s_min": 0.7, "s_max": 5.0}, {}]
)
def test_churn_is_algorithm_2(options, heun, start):
    x, z = start
    got = given(plan := edm_churn(LEVELS, heun=heun, **options), x, z)
    churned = iter([z[i] for i, stage in enumerate(plan.stages) if stage.c_noise])
    calls = 0
    for s, t in pairwise(LEVELS):
        inside = options.get("s_min", 0) <= s <= options.get("s_max", inf)
        gamma = min(options.get("s_churn", 0) / 5, sqrt(2) - 1) if inside else 0
        raised = s + gamma * s
        if gamma > 0:
            x = x + sqrt(raised**2 - s**2) * options.get("s_noise", 1) * next(churned)
        slope = (x - network(x, raised)) / raised
        following = x + (t - raised) * slope
        calls += 1
        if t != 0 and heun:
            calls += 1
            following = x + (t - raised) * (slope + (following - network(following, t)) / t) / 2
        x = following
    assert next(churned, None) is None and plan.evaluations == calls
    close(got, x)


def test_consistency_is_algorithm_1(start):
    """Song et al. (2023), with the scalings of eq. 5 and the boundary f(x, sigma_min) = x."""
    x, z = start
    scaling = ConsistencyScaling(0.5, sigma_min=0.002)
    assert scaling.convert(0.002) == (1.0, 0.0)
    sigmas = [9.0, 4.0, 0.5, 0.002]
    free = lambda inputs, c_noise, labels: np.sin(inputs) + c_noise[:, None] * 1e-3
    got = sample(
        scaling.predictor(free), x, consistency(sigmas), prediction=scaling, keys=7
    )  # with the noise of the keys
    keys = random.split(random.key(7), 4)
    for i, (s, t) in enumerate(pairwise(sigmas)):
        raw = np.sin(x / hypot(s, 0.5)) + 0.25 * log(s)
        f = 0.25 / ((s - 0.002) ** 2 + 0.25) * x + 0.5 * (s - 0.002) / sqrt(0.25 + s * s) * raw
        z = ops.normals(keys, np.array([i + 1], np.uint64), np.ones(1), shape=(5,), dtype="float64")
        x = f + sqrt(max(t, 0.002) ** 2 - 0.002**2) * z
    close(got, x)


def test_lcm_is_the_paper(start):
    """Luo et al. (2023): x = sqrt(abar) (c_skip x + c_out D) + sqrt(1 - abar) z, the scalings by the time times 10."""
    x, z = start
    times = [999.0, 759.0, 499.0, 259.0, 0.02]  # the last so small that the scalings matter
    plan = lcm(LEVELS, times=times)
    assert [stage.told for stage in plan.stages] == times
    got = vp(plan, x, z)
    bare = vp(lcm(LEVELS), x, z)
    x = x / hypot(1, LEVELS[0])
    for i, ((s, t), time) in enumerate(zip(pairwise(LEVELS), times, strict=True)):
        q = 10 * time
        jumped = 0.25 / (q**2 + 0.25) * x + q / sqrt(q**2 + 0.25) * network(x * hypot(1, s), s)
        x = (jumped + t * z[i]) / hypot(1, t)
    close(got, x)
    assert np.abs(bare - x).max() > 1e-3


def test_tcd_is_the_paper(start):
    """Zheng et al. (2024), algorithm 4: from s by DDIM to u, then up to t."""
    x, z = start
    through = [3.0, 2.5, 0.8, 0.1, 0.0]
    got = vp(tcd(LEVELS, through=through), x, z)
    x = x / hypot(1, LEVELS[0])
    for i, ((s, t), u) in enumerate(zip(pairwise(LEVELS), through, strict=True)):
        bar, bar_u, bar_t = (1 / (1 + v * v) for v in (s, u, t))
        d = network(x / sqrt(bar), s)
        noise = (x - sqrt(bar) * d) / sqrt(1 - bar)
        landed = sqrt(bar_u) * d + sqrt(1 - bar_u) * noise
        x = sqrt(bar_t / bar_u) * landed + sqrt(max(1 - bar_t / bar_u, 0)) * z[i]
    close(got, x)
    assert tcd(LEVELS, gamma=0.25).stages[0].c_x == 0.75 * 4 / 9


def test_learned_range_interpolates_the_logarithms(start):
    """Nichol and Dhariwal (2021), eq. 15, with a value per element; the values -1 and 1 are the fixed variances."""
    x, z = start
    plan = rescaled(ddpm(LEVELS), "vp")
    keys = random.split(random.key(3), 4)
    values = np.random.default_rng(0).uniform(-1.2, 1.2, x.shape)
    for i, (s, t) in enumerate(pairwise(LEVELS[:-1])):
        bar, bar_t = 1 / (1 + s * s), 1 / (1 + t * t)
        beta = 1 - bar / bar_t
        small = beta * (1 - bar_t) / (1 - bar)
        z = ops.normals(keys, np.array([i + 1], np.uint64), np.ones(1), shape=(5,), dtype="float64")
        frac = (values + 1) / 2
        std = np.exp(0.5 * (frac * log(beta) + (1 - frac) * log(small)))
        close(plan.stages[i].c_noise * learned_noise(plan, i, values, keys), std * z)
        v = np.exp(values)
        close(plan.stages[i].c_noise * learned_noise(plan, i, v, keys, variance="learned"), np.sqrt(v) * z)
    assert learned_noise(plan, len(plan) - 1, values, keys) is None
    for value, variance in ((-1.0, "fixed_small"), (1.0, "fixed_large")):
        got = sample_learned(
            lambda x, s, v=value: (network(x, s), np.full(x.shape, v)), x, ddpm(LEVELS), keys=3, prediction="denoised"
        )
        close(got, sample(network, x, ddpm(LEVELS, variance=variance), keys=3))
    with pytest.raises(ValueError, match="plan must be ddpm's, got lcm"):
        sample_learned(network, x, lcm(LEVELS), keys=3)
    with pytest.raises(ValueError, match="variance must be one of"):
        learned_noise(plan, 0, values, keys, variance="fixed_large")


@pytest.mark.parametrize(("name", "noise"), [*((name, "independent") for name in NAMES), ("dpmpp_2m_sde", "bridge")])
def test_a_sample_does_not_depend_on_its_batch(name, noise):
    plan = rescaled(NAMES[name](LEVELS, **({"s_churn": 2.0} if name == "edm_churn" else {})), "vp")
    keys = random.split(random.key(11), 3)
    x = initial_noise(plan, keys, (2, 3))
    whole = sample(network, x, plan, keys=keys, noise=noise)
    assert whole.dtype == np.float32
    for rows in (slice(0, 1), slice(1, 3)):
        part = sample(network, x[rows], plan, keys=keys[rows], noise=noise)
        np.testing.assert_array_equal(part, whole[rows])
    if plan.stochastic:
        assert np.abs(sample(network, x, plan, keys=keys[::-1], noise=noise) - whole).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_every_noise_has_a_span_and_spans_do_not_overlap(name):
    options = {"edm_churn": {"s_churn": 9.0}, "ddim": {"eta": 1.0}}.get(name, {})
    plan = NAMES[name]([3.0, 2.5, 2.2, 2.0, 0.0], **options)  # so close that churn rises above the level before
    spans = [stage.span for stage in plan.stages if stage.c_noise]
    assert spans and all(s > t for s, t in spans)
    assert all(before[1] >= after[0] for before, after in pairwise(spans))
    np.testing.assert_allclose(sample(lambda x, s: 0 * x + 0.25, np.ones((1, 2)), plan, keys=1), 0.25, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ddpm(LEVELS, variance="big"), "variance must be one of fixed_small, .*got 'big'"),
        (lambda: ddim(LEVELS, eta=1.5), "ddim: eta must lie in 0 ... 1, got 1.5"),
        (lambda: euler_ancestral(LEVELS, eta=np.nan), "eta must be finite and at least 0, got nan"),
        (lambda: dpm2_ancestral(LEVELS, s_noise=-1), "s_noise must be finite and at least 0, got -1"),
        (lambda: dpmpp_sde(LEVELS, r=1.0), "r must lie between 0 and 1, got 1.0"),
        (lambda: dpmpp_2m_sde(LEVELS, solver="euler"), "solver must be one of midpoint, heun, got 'euler'"),
        (lambda: edm_churn(LEVELS, s_min=2.0, s_max=1.0), "0 <= s_min <= s_max"),
        (lambda: edm_churn(LEVELS, s_churn=np.inf), "s_churn must be finite"),
        (lambda: lcm(LEVELS, times=[1.0]), "times must be one for each of the 5 steps, got 1"),
        (lambda: lcm(LEVELS, sigma_data=0.0), "sigma_data must be positive"),
        (lambda: consistency(LEVELS, sigma_min=-1.0), "sigma_min must be finite and at least 0"),
        (lambda: ConsistencyScaling(0.0), "sigma_data must be positive"),
        (lambda: tcd(LEVELS, gamma=2.0), "gamma must lie in 0 ... 1"),
        (lambda: tcd(LEVELS, through=[1.0]), "through must be one level for each of the 5 steps"),
        (lambda: tcd(LEVELS, through=[5.0, 0, 0, 0, 0]), r"through\[0\] must lie in 0 ... 4.0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigmas", [[1.0], [[2.0, 1.0]], [1.0, 2.0], [2.0, -1.0], [np.nan, 0.0]])
def test_refuses_bad_levels(name, sigmas):
    with pytest.raises(ValueError, match=f"{name}: sigmas must"):
        NAMES[name](sigmas)


def test_split_step_adds_up():
    for eta in (0.0, 0.3, 1.0, 5.0):
        down, up = ancestral.split_step(3.0, 1.2, eta)
        assert down**2 + up**2 == pytest.approx(1.44, rel=1e-14)
    assert ancestral.split_step(3.0, 1.2, 1.0)[0] == pytest.approx(0.48, rel=1e-14)
