"""Editing on Gaussian data: what is kept is kept exactly, and what is drawn has the exact conditional distribution.

Many independent copies are elements of one sample, under one key.
Seen to fail: with the image not faded, with a level too many or too few, with the noise of the way back not less the
noise already there, or its scale forgotten, with one draw for all levels or all descents, with the first x not
replaced, with the highest multiple among the places to go back, with lerp's weight in slerp, without its straight line.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from generant import ops
from generant.diffusion.editing import inpaint, interpolate, repaint_descents, sdedit, slerp
from generant.diffusion.plan import Plan, Stage, rescaled
from generant.diffusion.sampling import initial_noise, sample
from generant.random import split

pytestmark = pytest.mark.once

SPREAD = 0.7  # of the data


def euler(levels):
    """Down or up the levels, without noise."""
    return Plan("euler", [Stage(s, c_x=t / s, c_d=1 - t / s) for s, t in pairwise(levels)], final=(1.0, levels[-1]))


def ancestral(levels):
    """The posterior of x at the next level given x and D."""
    rows = [(s, t, min(t, t * np.sqrt(1 - (t / s) ** 2))) for s, t in pairwise(levels)]
    downs = [np.sqrt(t * t - up * up) for _, t, up in rows]
    stages = [
        Stage(s, c_x=down / s, c_d=1 - down / s, c_noise=up) for (s, _, up), down in zip(rows, downs, strict=True)
    ]
    return Plan("ancestral", stages, final=(1.0, levels[-1]))


def in_form(form, sampler=euler):
    return sampler if form == "ve" else lambda levels: rescaled(sampler(levels), form)


def alpha_at(form, sigma):
    return {"ve": 1.0, "vp": np.sqrt(max(1 - sigma**2, 0)), "flow": 1 - sigma}[form]


def denoiser_in(form):
    """E[data | x] of N(0, SPREAD^2) data, told sigma."""

    def denoiser(x, sigma):
        alpha = alpha_at(form, sigma)
        return ops.affine(x, scale=alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2))

    return denoiser


LEVELS = [*np.geomspace(20, 0.1, 10), 0.0]
IMAGE = np.random.default_rng(2).standard_normal((3, 4, 5)).astype(np.float32)
KEYS = split(11, 3)


# ---- sdedit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
@pytest.mark.parametrize(("strength", "steps"), [(1.0, 10), (0.7, 7), (0.29, 3), (0.1, 1)])
def test_sdedit_runs_the_last_steps_from_the_noised_image(form, strength, steps):
    asked: list = []
    sampler = lambda levels: asked.append(list(levels)) or in_form(form)(levels)
    got = sdedit(denoiser_in(form), IMAGE, sampler, LEVELS, strength=strength, keys=KEYS)
    assert asked == [LEVELS[10 - steps :]] and got.dtype == np.float32
    plan = in_form(form)(LEVELS[10 - steps :])
    start = plan.initial[0] * IMAGE + initial_noise(plan, KEYS, IMAGE.shape[1:])
    np.testing.assert_allclose(got, sample(denoiser_in(form), start, plan), rtol=1e-4, atol=1e-5)


def test_sdedit_of_no_strength_is_the_image_and_of_little_is_near():
    far = []
    for strength in (0.0, 0.05, 0.1, 0.3, 1.0):
        got = sdedit(lambda x, s: x, IMAGE, euler, LEVELS, strength=strength, keys=KEYS)
        far.append(float(np.abs(got - IMAGE).max()))
    assert far[0] == far[1] == 0 and 0 < far[2] < far[3] < far[4]
    assert sdedit(lambda x, s: x, IMAGE, euler, LEVELS, strength=0, keys=1) is not IMAGE


def test_sdedit_passes_keys_and_options_on():
    run = lambda rows, **options: sdedit(
        lambda x, s: x / 2, IMAGE[rows], ancestral, LEVELS, strength=0.5, keys=KEYS[rows], **options
    )
    np.testing.assert_array_equal(run(slice(0, 3))[1:2], run(slice(1, 2)))
    assert np.abs(run(slice(0, 3), clip=0.25)).max() <= 0.25
    for strength in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="strength must lie in 0"):
            sdedit(lambda x, s: x, IMAGE, euler, LEVELS, strength=strength, keys=1)


# ---- inpaint -------------------------------------------------------------------------------------------------------

KNOWN = np.arange(5) < 2


@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
@pytest.mark.parametrize("jumps", [{}, {"jump_length": 2, "jump_n_sample": 3}])
def test_what_is_known_is_exact_and_noised_right_at_every_level(form, jumps):
    """The mean and the spread of what the denoiser sees where known, at every call; NaNs elsewhere are not read."""
    image = np.full((2, 3000, 5), 3.0)
    image[..., 2:] = np.nan
    seen: list = []

    def denoiser(x, sigma):
        seen.append((sigma, x[..., :2] - 3 * alpha_at(form, sigma)))
        return denoiser_in(form)(x, sigma)

    got = inpaint(denoiser, image, KNOWN, in_form(form, ancestral), LEVELS, keys=4, **jumps)
    np.testing.assert_array_equal(got[..., :2], 3.0)
    assert np.isfinite(got).all() and np.ptp(got[..., 2:]) > 1
    assert len(seen) == (26 if jumps else 10)
    for sigma, noise in seen:
        assert abs(noise.mean()) < 5 * sigma / np.sqrt(noise.size)
        assert noise.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * noise.size))
    draws = [noise / sigma for sigma, noise in seen]
    for one, other in pairwise(draws):  # every one is a fresh draw
        assert abs((one * other).mean()) < 5 / np.sqrt(one.size)


@pytest.mark.parametrize("form", ["ve", "vp", "flow"])
def test_going_back_restores_the_marginal(form):
    """With nothing known and exact steps for white data, x has variance alpha^2 SPREAD^2 + sigma^2 at every call."""

    def exact(levels):
        rows = [(s, t, (SPREAD**2 + t**2) / (SPREAD**2 + s**2)) for s, t in pairwise(levels)]
        stages = [Stage(s, c_x=kept, c_d=0.0, c_noise=np.sqrt(kept * (s**2 - t**2))) for s, t, kept in rows]
        return Plan("exact", stages, final=(1.0, levels[-1]))

    seen: list = []
    denoiser = lambda x, sigma: seen.append((sigma, x.var())) or x
    levels, n = [*np.geomspace(200, 0.05, 9), 0.0], 6000
    inpaint(
        denoiser, np.zeros((1, n)), np.zeros(n, bool), in_form(form, exact), levels,
        keys=5, jump_length=3, jump_n_sample=4,
    )  # fmt: skip
    assert len(seen) == 9 + 2 * 3 * 3
    for sigma, variance in seen:
        assert variance == pytest.approx((alpha_at(form, sigma) * SPREAD) ** 2 + sigma**2, rel=4 * np.sqrt(2 / n))


def test_repaint_draws_from_the_conditional():
    """Two correlated pixels, one known: mean c x and variance 1 - c^2 of the other. Mere replacement is far off."""
    c, copies, value = 0.8, 800, 1.5
    covariance = np.array([[1, c], [c, 1]])
    denoiser = lambda x, s: x @ np.linalg.solve(covariance + s * s * np.eye(2), covariance)
    levels = [*np.geomspace(8, 0.03, 60), 0.0]
    image = np.full((2, copies, 2), value)

    def other(r):
        got = inpaint(
            denoiser, image, np.array([True, False]), ancestral, levels, keys=7, jump_length=4, jump_n_sample=r
        )
        assert (got[..., 0] == value).all()
        return got[..., 1]

    drawn = other(16)
    n = drawn.size
    assert abs(drawn.mean() - c * value) < 4 * np.sqrt((1 - c * c) / n)
    assert abs(drawn.var() / (1 - c * c) - 1) < 4 * np.sqrt(2 / n)
    assert other(1).mean() < 0.7 * c * value


def test_a_sample_depends_on_its_key_only():
    run = lambda rows: inpaint(
        lambda x, s: x / 2, IMAGE[rows], KNOWN, ancestral, LEVELS, keys=KEYS[rows], jump_length=3, jump_n_sample=2
    )
    whole = run(slice(0, 3))
    np.testing.assert_array_equal(whole, run(slice(0, 3)))
    np.testing.assert_array_equal(whole[1:2], run(slice(1, 2)))
    assert whole.dtype == np.float32 and (whole[0, :, 2:] != whole[1, :, 2:]).all()


@pytest.mark.parametrize(("n", "j", "r"), [(10, 1, 3), (10, 3, 2), (20, 5, 4), (7, 10, 5), (6, 6, 2), (12, 4, 1)])
def test_descents_are_the_schedule_of_the_paper(n, j, r):
    """Times as the authors' loop visits them: one down at a time; at a multiple of j, r - 1 times, j up."""
    left = {t: r - 1 for t in range(0, n - j, j)}
    times, t = [n], n
    while t >= 1:
        t -= 1
        times.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            t += j
            times.append(t)
    visited: list = []
    for high, low in repaint_descents(n, j, r):
        visited += range(high, low - 1, -1)
    joined = [visited[0], *(b for a, b in pairwise(visited) if a != b)]
    assert joined == times


def test_inpaint_refuses():
    run = lambda known, **options: inpaint(lambda x, s: x, IMAGE, known, euler, LEVELS, keys=1, **options)
    with pytest.raises(ValueError, match="known must be bool, got float64"):
        run(np.ones(5))
    for shape in ((4,), (2, 3, 4, 5)):
        with pytest.raises(ValueError, match=r"must broadcast to image's shape \(3, 4, 5\)"):
            run(np.ones(shape, bool))
    with pytest.raises(ValueError, match="jump_n_sample must be at least 1, got 0"):
        run(KNOWN, jump_n_sample=0)
    with pytest.raises(ValueError, match="jump_length must be at least 1, got 0"):
        run(KNOWN, jump_length=0)
    with pytest.raises(TypeError, match="callback cannot be given"):
        run(KNOWN, callback=print)


# ---- noise space ---------------------------------------------------------------------------------------------------


def test_slerp_is_the_arc():
    a, b = np.random.default_rng(3).standard_normal((2, 4, 3, 5))
    flat = lambda x: x.reshape(4, -1)
    unit = lambda x: flat(x) / np.linalg.norm(flat(x), axis=1, keepdims=True)
    angle = lambda x, y: np.arccos(np.minimum((unit(x) * unit(y)).sum(axis=1), 1))
    for w in (0.0, 0.25, 0.5, 1.0):
        b_same = b * (np.linalg.norm(flat(a), axis=1) / np.linalg.norm(flat(b), axis=1))[:, None, None]
        got = slerp(a, b_same, w)
        np.testing.assert_allclose(np.linalg.norm(flat(got), axis=1), np.linalg.norm(flat(a), axis=1), rtol=1e-12)
        np.testing.assert_allclose(angle(a, got), w * angle(a, b), atol=1e-7)
    np.testing.assert_allclose(slerp(a, b, np.array([0.0, 0.3, 1.0, 0.5]))[[0, 2]], [a[0], b[2]], rtol=1e-12)
    np.testing.assert_array_equal(slerp(a, b, np.array([0.0, 0.3, 1.0, 0.5]))[1], slerp(a, b, 0.3)[1])
    assert slerp(a.astype(np.float32), b.astype(np.float32), 0.5).dtype == np.float32


def test_slerp_of_parallel_opposite_and_zero_is_the_line():
    a = np.random.default_rng(3).standard_normal((4, 6))
    b = np.stack([a[0] * (1 + 1e-9), a[1] * 3, -a[2], np.zeros(6)])
    np.testing.assert_allclose(slerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=1e-12)
    with pytest.raises(ValueError, match="must have one shape"):
        slerp(a, b[:2], 0.5)


@pytest.mark.parametrize("form", ["ve", "vp"])
def test_interpolation_converges_to_the_arc(form):
    """White data is scaled on its way to noise, so the arc there is the arc of the data, but for Euler's error."""
    x0, x1 = np.random.default_rng(5).standard_normal((2, 3, 4, 5))
    weights, worst = [0.0, 0.3, 1.0], []
    for n in (200, 400):
        levels = np.geomspace(20, 0.02, n)
        got = interpolate(
            denoiser_in(form), x0, x1, weights, inverse=in_form(form)(levels[::-1]), plan=in_form(form)(levels)
        )
        assert got.shape == (3, 3, 4, 5)
        worst.append(max(np.abs(g - slerp(x0, x1, w)).max() for g, w in zip(got, weights, strict=True)))
    assert worst[1] < 0.05 and worst[0] / worst[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": []}, "weights must be a vector of finite numbers"),
        ({"weights": [np.nan]}, "weights must be a vector of finite numbers"),
        ({"weights": 0.5}, "weights must be a vector"),
        ({"inverse": euler([0.1, 3.0])}, r"inverse ends at alpha, sigma = \(1.0, 3.0\) and plan starts at"),
        ({"plan": ancestral([2.0, 1.0, 0.0])}, "a plan that adds noise does not lead back"),
    ],
)
def test_interpolate_refuses(changes, message):
    given = {"weights": [0.5], "inverse": euler([0.1, 2.0]), "plan": euler([2.0, 0.1]), **changes}
    with pytest.raises(ValueError, match=message):
        interpolate(lambda x, s: x, IMAGE, IMAGE, given.pop("weights"), **given)
