"""Consistency training and distillation, and reflow, against Gaussian data, for which every function is known.

Data of deviation d has D = d^2 x / (d^2 + s^2) and paths x(s) = c sqrt(d^2 + s^2), so the consistency function is
f(x, s) = x sqrt(d^2 + s_min^2) / sqrt(d^2 + s^2), and the flow's paths are c sqrt((1 - t)^2 d^2 + t^2).
Seen to fail: with Heun's correction halved by the wrong level, with a gradient through the lower point, with two noises
for the two levels, with 1 / s for 1 / (s' - s), with `fixed` not used, with one level less or more, with a law of
neighbours without sqrt(2), with steps left out of the integral, with c for c^2, and with c_skip and c_out exchanged.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant import nn, ops, optim
from generant.autograd import grad
from generant.diffusion import distillation as di
from generant.diffusion import karras_sigmas
from generant.diffusion.objectives import Objective
from generant.diffusion.samplers import consistency, ddpm, flow_euler, flow_heun
from generant.diffusion.samplers.few_step import ConsistencyScaling
from generant.diffusion.sampling import sample
from generant.random import Stream, key

SPREAD, LOW = 0.7, 0.01
X = ops.normal(key(1), dtype="float64", shape=(4000, 2)) * SPREAD


def grid(n):
    return karras_sigmas(n, sigma_min=LOW, sigma_max=20.0)[:-1][::-1]


def column(a):
    return np.asarray(a)[:, None]


def teacher(x, sigma, labels=None):
    return ops.mul(x, column(SPREAD**2 / (SPREAD**2 + sigma**2)))


def exact(x, sigma, labels=None):
    return ops.mul(x, column(np.sqrt((SPREAD**2 + LOW**2) / (SPREAD**2 + sigma**2))))


def tilted(theta):
    """A family of consistency functions, exact at theta = 0."""

    def f(x, sigma, labels=None):
        slope = ops.mul(theta, np.log(sigma / LOW))
        return ops.mul(exact(x, sigma), ops.reshape(ops.exp(slope), shape=(len(sigma), 1)))

    return f


def test_the_exact_function_is_what_distillation_looks_for():
    index = di.neighbours(key(3), len(X), grid(40))
    loss = lambda theta, n=40, c=0.0: di.consistency_distillation_loss(
        tilted(theta), teacher, X, None, grid(n), index % (n - 1), key(2), weight=lambda low, high: 1 + 0 * low, c=c
    )
    zero, h = np.zeros(1), 1e-3
    here = float(loss(zero))
    assert here < 2e-3 and all(float(loss(zero + a)) > 2 * here for a in (-0.05, 0.05))
    finer = [np.abs(exact(di.heun_step(teacher, X, s, t), t) - exact(X, s)).max() for s, t in (
        (np.full(len(X), 2.0), np.full(len(X), 2.0 - gap)) for gap in (0.2, 0.1))]  # fmt: skip
    assert math.log2(finer[0] / finer[1]) == pytest.approx(3, abs=0.2)  # the error of one step of a second order method

    # the gradient is that of the upper point alone
    smooth = lambda theta: di.consistency_distillation_loss(
        tilted(theta), teacher, X, None, grid(40), index, key(2), fixed=tilted(np.array([0.1])), c=0.5
    )
    found = grad(smooth)(np.array([0.2]))
    up, down = (float(smooth(np.array([0.2 + move]))) for move in (h, -h))
    assert found[0] == pytest.approx((up - down) / (2 * h), rel=1e-5)
    same = grad(lambda theta: di.consistency_distillation_loss(
        tilted(theta), teacher, X, None, grid(40), index, key(2), c=0.5))(np.array([0.1]))  # fmt: skip
    held = grad(smooth)(np.array([0.1]))
    np.testing.assert_array_equal(same, held)


def test_a_heun_step_is_that_of_the_sampler():
    from generant.diffusion.samplers import heun

    high, low = np.full(5, 3.0), np.full(5, 1.0)
    curved = lambda x, sigma, labels=None: ops.tanh(x) / sigma[0]
    x = X[:5] * 4
    plan = heun([3.0, 1.0, 0.0])
    seen = []
    sample(lambda x, s: seen.append(x) or np.tanh(x) / s, x, plan)
    np.testing.assert_allclose(di.heun_step(curved, x, high, low), seen[2], rtol=1e-12)


def test_consistency_training_compares_two_levels_of_one_noise():
    levels = grid(12)
    index = np.arange(len(X)) % 11
    low, high = levels[index], levels[index + 1]
    z = ops.normal(key(2), dtype="float64", shape=X.shape)
    f = lambda x, s: x * column(np.exp(0.3 * np.log(s / LOW)) * np.sqrt((SPREAD**2 + LOW**2) / (SPREAD**2 + s**2)))
    apart = np.sum((f(X + column(high) * z, high) - f(X + column(low) * z, low)) ** 2, axis=1)
    c = 0.00054 * math.sqrt(2)
    found = di.consistency_training_loss(tilted(np.array([0.3])), X, None, levels, index, key(2))
    assert float(found) == pytest.approx(np.mean((np.sqrt(apart + c * c) - c) / (high - low)), rel=1e-9)

    # The exact function is where the gradient vanishes as the grid gets finer: per step of the level it is of order 1
    bias = []
    for gap in (0.04, 0.02):
        s = np.full(len(X), 1.0)
        slope = grad(lambda theta, s=s, gap=gap: di.consistency_training_loss(
            tilted(theta), X, None, [1.0, 1.0 + gap], np.zeros(len(s), int), key(2), c=1e4,
            weight=lambda low, high: 2e4 / (high - low)))(np.zeros(1))  # fmt: skip
        r = lambda t: math.sqrt(SPREAD**2 + t * t)
        upper = 1.0 + gap  # 2 E[f' (f' - f)] log(s' / s_min), in closed form: per element, two of them
        closed = r(LOW) ** 2 * (1 - (SPREAD**2 + upper) / (r(1.0) * r(upper))) * math.log(upper / LOW)
        assert slope[0] == pytest.approx(4 * closed / gap, abs=0.15)
        bias.append(closed / gap)
    assert bias[0] / bias[1] == pytest.approx(2, rel=0.1)


def test_pseudo_huber_and_its_gradient():
    a, b = X[:6], X[6:12]
    d = np.sqrt(np.sum((a - b) ** 2, axis=1))
    np.testing.assert_allclose(di.pseudo_huber(a, b, c=0.3), np.sqrt(d**2 + 0.09) - 0.3)
    np.testing.assert_allclose(di.pseudo_huber(a, b, c=0.0), d)
    np.testing.assert_array_equal(grad(lambda a: ops.sum(di.pseudo_huber(a, b)))(b), 0)
    found = grad(lambda a: ops.sum(di.pseudo_huber(a, b, c=0.3)))(a)
    np.testing.assert_allclose(found, (a - b) / np.sqrt(d**2 + 0.09)[:, None])


def test_the_number_of_levels_grows_as_published():
    doubling = [di.discretisation(k, 8000) for k in range(0, 8000, 100)]
    assert doubling[0] == 11 and doubling[-1] == 1281 and sorted(set(doubling)) == [10 * 2**i + 1 for i in range(8)]
    assert di.discretisation(999, 8000) == 11 and di.discretisation(1000, 8000) == 21
    square = [di.discretisation(k, 1000, first=2, last=150, growth="square") for k in range(1000)]
    assert square[0] == 2 and square[-1] == 151 and (np.diff(square) >= 0).all()
    k = 500
    assert square[k] == math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1


def test_neighbours_follow_their_law():
    levels = grid(8)
    n = 20000
    z = (np.log(levels) + 1.1) / (2.0 * math.sqrt(2))
    mass = np.diff([math.erf(v) for v in z])
    counts = np.bincount(di.neighbours(key(1), n, levels), minlength=7)
    np.testing.assert_allclose(counts / n, mass / mass.sum(), atol=0.015)
    even = np.bincount(di.neighbours(key(1), n, levels, mean=None), minlength=7)
    np.testing.assert_allclose(even / n, 1 / 7, atol=0.015)
    assert di.neighbours(key(1), 3, levels[:2]).tolist() == [0, 0, 0]


def test_the_function_of_a_network_is_the_identity_at_the_lowest_level():
    scaling = ConsistencyScaling(0.5, sigma_min=LOW)
    f = di.consistency_function(lambda x, c_noise, labels: ops.tanh(x) + 1.0, scaling)
    np.testing.assert_allclose(f(X, np.full(len(X), LOW), None), X, rtol=1e-12)
    plan = consistency([3.0, 0.0], sigma_min=LOW)
    jumped = sample(scaling.predictor(lambda x, c, y: np.tanh(x) + 1.0), X, plan, prediction=scaling)
    np.testing.assert_allclose(f(X, np.full(len(X), 3.0), None), jumped, rtol=1e-12)


# ---- reflow --------------------------------------------------------------------------------------------------------


def velocity(x, t):
    r2 = (1 - t) ** 2 * SPREAD**2 + t * t
    return x * (t - (1 - t) * SPREAD**2) / r2


def test_reflow_pairs_are_the_ends_of_the_paths():
    z = ops.normal(key(4), dtype="float64", shape=(50, 2))
    times = np.linspace(1, 0, 200)
    x = di.reflow_pairs(velocity, z, flow_heun(times))
    np.testing.assert_allclose(x, SPREAD * z, rtol=1e-3)
    with pytest.raises(ValueError, match="ddpm adds noise"):
        di.reflow_pairs(velocity, z, ddpm([1.0, 0.5, 0.0]))


def test_straightness_is_its_integral():
    z = ops.normal(key(4), dtype="float64", shape=(4000, 2))
    t = np.linspace(0, 1, 4001)
    r = np.sqrt((1 - t) ** 2 * SPREAD**2 + t**2)
    bend = ((t - (1 - t) * SPREAD**2) / r - (1 - SPREAD)) ** 2
    expected = np.mean(np.sum(z**2, axis=1)) * np.mean((bend[1:] + bend[:-1]) / 2)
    found = di.straightness(velocity, z, np.linspace(1, 0, 301))
    assert found == pytest.approx(expected, rel=0.02)
    straight = lambda x, t: x * (1 - SPREAD) / (SPREAD + (1 - SPREAD) * t)  # of the pairs z, SPREAD z
    assert di.straightness(straight, z, np.linspace(1, 0, 7)) < 1e-20


# ---- training ------------------------------------------------------------------------------------------------------

CENTRES = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)


def mixture(seed, n):
    noise = ops.normal(key(seed), shape=(n, 2)) * np.float32(0.05)
    return (CENTRES[np.arange(n) % 3] + noise) * np.float32(0.5)


def fitted(loss, steps, lr=4e-3):
    """A small network trained with loss(network, step)."""
    network = nn.MlpDenoiser(2, Stream(1), width=48, blocks=2)
    packed = nn.pack(network)
    adam, ema = optim.Adam(packed.data, lr=lr), optim.EMA(packed.data, decay=0.98, warmup=True)
    gradient = packed.zeros()
    slots = packed.views(gradient)
    run = nn.value_and_grad(loss)
    for step in range(steps):
        for slot, g in zip(slots, run(network, step)[1], strict=True):
            slot[...] = g
        adam.lr[0] = optim.cosine(step, lr=lr, total=steps, warmup=10)
        adam.step(gradient)
        ema.update()
    packed.data[...] = ema.average
    return network


def energy_distance(a, b):
    mean = lambda a, b: float(np.mean(np.linalg.norm(a[:, None] - b[None], axis=-1)))
    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def test_a_consistency_model_learns_a_mixture_in_one_step():
    scaling, steps = ConsistencyScaling(0.5, sigma_min=0.01), 500
    gentle = lambda network: lambda x, c_noise, labels: network(x, c_noise * np.float32(1e-3), labels)

    def loss(network, step):
        levels = karras_sigmas(di.discretisation(step, steps, first=8, last=64), sigma_min=0.01, sigma_max=10.0)[-2::-1]
        index = di.neighbours(key(5, step), 192, levels)
        f = di.consistency_function(gentle(network), scaling)
        return di.consistency_training_loss(f, mixture(2 * step, 192), None, levels, index, key(6, step), c=0.03)

    network = fitted(loss, steps)
    x = ops.normal(key(7), shape=(600, 2)) * np.float32(10.0)
    plan = consistency([10.0, 0.0], sigma_min=0.01)
    data = mixture(10**6, 600)
    found = energy_distance(sample(scaling.predictor(gentle(network)), x, plan, prediction=scaling), data)
    single = energy_distance(data * 0 + data.mean(0), data)
    assert found < 0.05 * single


def test_reflow_straightens_a_trained_flow():
    flow, steps = Objective("flow", form="flow"), 250
    first = fitted(
        lambda net, step: flow.loss(net, mixture(step, 192), None, flow.levels(key(3, step), 192), key(4, step)), steps
    )
    z = ops.normal(key(8), shape=(1536, 2))
    x = di.reflow_pairs(flow.predictor(first), z, flow_euler(np.linspace(1, 0, 21)))

    def again(net, step):
        rows = np.arange(192) + 192 * (step % 8)
        return flow.loss(net, x[rows], None, flow.levels(key(5, step), 192), None, noise=z[rows])

    second = fitted(again, steps)
    fresh = ops.normal(key(9), shape=(1000, 2))
    before, after = (di.straightness(flow.predictor(net), fresh, np.linspace(1, 0, 21)) for net in (first, second))
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: di.discretisation(0, 0), "total >= 1"),
        (lambda: di.discretisation(0, 9, first=9, last=3), "first <= last"),
        (lambda: di.discretisation(0, 9, growth="linear"), "growth must be one of"),
        (lambda: di.neighbours(key(1), 3, [2.0, 1.0]), "rise strictly"),
        (lambda: di.neighbours(key(1), 3, [1.0, 2.0], std=0.0), "std must be positive"),
        (lambda: di.neighbours(key(1), 3, [1.0, 2.0], mean=-500.0), "no level lies within reach"),
        (lambda: di.pseudo_huber(X, X, c=-1.0), "c must be at least 0"),
        (lambda: di.consistency_training_loss(exact, X[:2], None, [1.0, 2.0], np.array([0, 1]), key(1)), "0 ... 0"),
        (lambda: di.consistency_training_loss(exact, X[:2], None, [1.0, 2.0], np.zeros(2), key(1)), "integers"),
        (lambda: di.consistency_training_loss(exact, X[:2], None, [1.0, np.nan], np.zeros(2, int), key(1)), "finite"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
