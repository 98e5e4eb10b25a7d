"""The Brownian bridge: its increments are those of one path, and make a sampler's result stable in the number of steps.

An increment is a sum of weights times the normal numbers of nodes, so variances, correlations and the mean square
difference of two runs on Gaussian data are sums of products of weights: computed, not estimated.
Seen to fail: with left and right exchanged, with siblings sharing a node, with the path left straight between the
deepest nodes, with the clock 1 / sigma.
"""

from __future__ import annotations

from itertools import pairwise
from math import hypot, sqrt

import numpy as np
import pytest

from generant import ops, random
from generant.diffusion.bridge import NODES, BrownianBridge, increment_weights
from generant.diffusion.plan import Plan, Stage, rescaled
from generant.diffusion.samplers.ancestral import ddpm, euler_ancestral
from generant.diffusion.samplers.sde import dpmpp_2m_sde, dpmpp_sde, edm_churn
from generant.diffusion.sampling import sample

pytestmark = pytest.mark.once

D = 0.7
KEYS = random.split(random.key(9), 3)


def nodes(start: float, end: float) -> dict[int, float]:
    streams, weights = increment_weights(start, end)
    return dict(zip(streams.tolist(), weights.tolist(), strict=True))


def inner(a: dict[int, float], b: dict[int, float]) -> float:
    return sum(weight * b.get(node, 0.0) for node, weight in a.items())


def added(a: dict[int, float], b: dict[int, float], factor: float = 1.0) -> dict[int, float]:
    return {node: a.get(node, 0.0) + factor * b.get(node, 0.0) for node in a.keys() | b.keys()}


def clock(level: float) -> float:
    return level**-2.0 if level > 2.0**-24 else 2.0**48


@pytest.mark.parametrize(
    "levels",
    [
        np.geomspace(80, 0.002, 18).tolist() + [0.0],
        np.geomspace(4096, 1e-5, 400).tolist(),
        [1.0, 0.9999, 0.99985, 0.5, 2.0**-23],  # in and across dyadic places
        [2.0**30, 2.0, 1.0, 0.25, 0.0],
    ],
)
def test_increments_are_those_of_brownian_motion(levels):
    """Unit variance, no correlation over disjoint spans, and W(c) - W(a) = W(b) - W(a) + W(c) - W(b)."""
    steps = [nodes(s, t) for s, t in pairwise(levels)]
    for step in steps:
        assert inner(step, step) == pytest.approx(1, abs=1e-9)
    for i in range(0, len(steps), 7):
        for j in range(i):
            assert abs(inner(steps[i], steps[j])) < 1e-8
    whole: dict[int, float] = {}
    for (s, t), step in zip(pairwise(levels), steps, strict=True):
        whole = added(whole, step, sqrt(clock(t) - clock(s)))
    wanted = nodes(levels[0], levels[-1])
    size = sqrt(clock(levels[-1]) - clock(levels[0]))
    difference = added({k: w / size for k, w in whole.items()}, wanted, -1.0)
    assert max(map(abs, difference.values())) < 1e-8
    assert all(node >= NODES for node in wanted)  # stage numbers are far below


def test_an_increment_is_the_sum_over_nodes():
    plan = dpmpp_2m_sde([5.0, 2.0, 1.0, 0.5])
    for dtype in ("float32", "float64"):
        x = np.zeros((3, 2, 5), dtype)
        streams, weights = increment_weights(2.0, 1.0)
        z = BrownianBridge(plan, KEYS).increment(1, x)
        assert z.shape == x.shape and z.dtype == x.dtype
        for row, key in zip(z, KEYS, strict=True):
            terms = [w * ops.normal(key + np.array([0, s], np.uint64), shape=(2, 5), dtype="float64")
                     for s, w in zip(streams, weights, strict=True)]  # fmt: skip
            np.testing.assert_allclose(row, np.sum(terms, axis=0), atol=1e-12 if dtype == "float64" else 2e-5)


def test_drawn_increments_are_normal_and_add_up():
    x = np.zeros((1, 20000), np.float32)

    def draw(levels):
        plan = ddpm(levels)
        bridge = BrownianBridge(plan, KEYS[:1])
        return [bridge.increment(i, x) for i in range(len(plan))]

    (coarse,) = draw([2.0, 0.5])
    fine = draw([2.0, 1.3, 0.5])
    joined = sum(sqrt(t**-2 - s**-2) * z for z, (s, t) in zip(fine, pairwise([2.0, 1.3, 0.5]), strict=True))
    np.testing.assert_allclose(joined / sqrt(0.5**-2 - 2.0**-2), coarse, atol=1e-5)
    for z in (coarse, *fine):
        assert abs(z.mean()) < 0.03 and z.std() == pytest.approx(1, abs=0.02)
        assert np.mean(z**4) == pytest.approx(3, abs=0.2)
    assert abs(np.mean(fine[0] * fine[1])) < 0.03


def result(plan: Plan, bridge: bool) -> dict[int, float]:
    """The plan's result on Gaussian data as a combination of independent numbers: the initial one is -1."""
    variance = lambda stage: D**2 / (D**2 + stage.sigma**2) if stage.call else 0.0
    x = np.zeros(len(plan) + 1)
    x[0] = hypot(D, plan.initial[1])
    past: dict[str, list[np.ndarray]] = {"x": [], "h": []}
    for i, stage in enumerate(plan.stages):
        d = variance(stage) * x
        following = stage.c_x * x + stage.c_d * d + sum(c * past[kind][-back] for kind, back, c in stage.terms)
        following[i + 1] += stage.c_noise
        past["x"].append(x)
        past["h"].append(d)
        x = following
    out = {-1: x[0]}
    for i, stage in enumerate(plan.stages):
        if stage.c_noise and bridge:
            out = added(out, nodes(*stage.span), x[i + 1])
        elif stage.c_noise:
            out[len(plan) * 10000 + i] = x[i + 1]
    return out


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (ddpm, 0.15),
        (lambda s: ddpm(s, variance="fixed_large"), 0.15),
        (lambda s: euler_ancestral(s, eta=0.5), 0.15),
        (dpmpp_2m_sde, 0.15),
        (lambda s: dpmpp_2m_sde(s, eta=0.5), 0.15),
        (dpmpp_sde, 0.25),
        (lambda s: edm_churn(s, s_churn=4.0), 0.15),
    ],
)
def test_runs_of_more_steps_approach_one_path_per_sample(sampler, tolerance):
    """Root mean square difference of runs with 20, 40, 80 and 160 steps: strong order 1, none for fresh noise."""
    plans = [sampler(np.linspace(20 ** (1 / 7), 0.05 ** (1 / 7), n + 1) ** 7) for n in (20, 40, 80, 160)]
    differences = []
    for bridge in (True, False):
        runs = [result(plan, bridge) for plan in plans]
        gaps = [added(a, b, -1.0) for a, b in pairwise(runs)]
        differences.append([sqrt(inner(gap, gap)) for gap in gaps])
    slopes = -np.diff(np.log2(differences[0]))
    assert slopes[-1] == pytest.approx(1, abs=tolerance), (differences, slopes)
    assert differences[0][-1] < 0.05 and min(differences[1]) > 0.2


def test_one_step_of_the_exact_solution_is_many():
    """Where D is constant, DDPM's coarse and fine runs agree: the clock is the one its noise adds up in."""
    x = np.full((3, 4), 2.0)
    denoiser = lambda x, sigma: 0 * x + 0.5
    coarse = sample(denoiser, x, ddpm([8.0, 0.3]), keys=KEYS, noise="bridge")
    fine = sample(denoiser, x, ddpm([8.0, 4.0, 2.5, 1.1, 0.3]), keys=KEYS, noise="bridge")
    np.testing.assert_allclose(fine, coarse, rtol=1e-9, atol=1e-9)
    vp = rescaled(ddpm([8.0, 2.0, 0.3]), "vp")
    got = sample(denoiser, x / hypot(1, 8), vp, keys=KEYS, noise="bridge")
    np.testing.assert_allclose(got * hypot(1, 0.3), coarse, rtol=1e-9, atol=1e-9)
    fresh = sample(denoiser, x, ddpm([8.0, 2.0, 0.3]), keys=KEYS)
    assert np.abs(fresh - coarse).max() > 0.05


def test_a_path_belongs_to_its_key():
    plan = ddpm([5.0, 2.0])
    x = np.zeros((3, 4), np.float32)
    whole = BrownianBridge(plan, KEYS).increment(0, x)
    np.testing.assert_array_equal(BrownianBridge(plan, KEYS[1:]).increment(0, x[1:]), whole[1:])
    assert np.abs(whole[0] - whole[1]).max() > 0.1


def test_refuses():
    plan = Plan("mine", [Stage(2.0, c_noise=1.0), Stage(1.0)], final=(1.0, 0.0))
    with pytest.raises(ValueError, match="stage 0 of mine adds noise but has no span"):
        BrownianBridge(plan, KEYS)
    bridge = BrownianBridge(ddpm([2.0, 1.0, 0.0]), KEYS)
    with pytest.raises(ValueError, match="stage 1 adds no noise"):
        bridge.increment(1, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="x has 2 samples, for 3 keys"):
        bridge.increment(0, np.zeros((2, 2)))
    for levels in ((1.0, 1.0), (1.0, 2.0), (1.0, -1.0), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="levels must fall"):
            increment_weights(*levels)
    with pytest.raises(ValueError, match="not told apart"):
        increment_weights(1e-9, 0.0)
