"""Averages of parameters: the decays of the warm-up, averages by a power of time, and their reconstruction.

Expected values are weighted sums written out in float64, and averages that were tracked all along.
Seen to fail: with gamma for gamma + 1 in the decay or in the weights, without the constraint on the sum, with updates
left out of the inner products, with more singular values cut off, with snapshots from after the wanted step, without
inv_gamma, and without the smallest decay.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import optim
from generant.optim.power_ema import combination, weights

pytestmark = pytest.mark.once


def walk(n: int, width: int = 3) -> np.ndarray:
    return 5 + np.cumsum(np.random.default_rng(0).standard_normal((n, width)), axis=0)


def tracked(path: np.ndarray, every: int, *emas: optim.PowerEma) -> list[optim.Snapshot]:
    """Run the averages along a path; the snapshots of the first of them."""
    kept = []
    for k, row in enumerate(path, 1):
        for ema in emas:
            ema.params[...] = row
            ema.update()
        if k % every == 0:
            kept += emas[0].snapshots()
    return kept


def test_the_warm_up_by_a_power() -> None:
    p = np.ones(2)
    ema = optim.EMA(p, decay=0.9, warmup=True, power=2 / 3, inv_gamma=20.0, min_decay=0.1)
    decays = []
    for _ in range(700):
        ema.update()
        decays.append(ema.decay[0])
    t = np.arange(700)
    np.testing.assert_allclose(decays, [0, *np.clip(1 - (1 + t[1:] / 20) ** (-2 / 3), 0.1, 0.9)], rtol=1e-12)
    assert decays[1] == 0.1 and decays[-1] == 0.9


def test_the_exponent_gives_the_relative_length() -> None:
    for sigma_rel in (0.01, 0.05, 0.1, 0.2, 12**-0.5):
        g = optim.power_of(sigma_rel)
        assert g >= 0
        assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(sigma_rel**2, rel=1e-9)
    n = 20000  # the weights themselves have that standard deviation
    k = np.arange(1, n + 1)
    for sigma_rel in (0.05, 0.2):
        w = weights(optim.power_of(sigma_rel), n, k)
        assert w.sum() == pytest.approx(1)
        mean = w @ k
        assert np.sqrt(w @ (k - mean) ** 2) / n == pytest.approx(sigma_rel, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_average_is_the_sum_with_these_weights(dtype) -> None:
    path = walk(300)
    ema = optim.PowerEma(np.zeros(3, dtype), sigma_rel=(0.05, 0.1, 0.25))
    tracked(path, 300, ema)
    for gamma, average in zip(ema.gammas, ema.averages, strict=True):
        k = np.arange(1, 301.0)
        plain = (k ** (gamma + 1) - (k - 1) ** (gamma + 1)) / 300 ** (gamma + 1)
        np.testing.assert_allclose(average, plain @ path, rtol=1e-5 if dtype == "float32" else 1e-12)
        np.testing.assert_allclose(weights(gamma, 300, np.arange(1, 301)), plain, rtol=1e-9, atol=1e-25)
    np.testing.assert_array_equal(weights(3.0, 10, np.arange(11, 14)), 0)


def test_averages_of_other_lengths_are_reconstructed() -> None:
    path = walk(1024)
    ema = optim.PowerEma(np.zeros(3), sigma_rel=(0.05, 0.1, 0.2))
    other = optim.PowerEma(np.zeros(3), sigma_rel=(0.04, 0.075, 0.15))
    half = optim.PowerEma(np.zeros(3), sigma_rel=(0.075,))
    snapshots = tracked(path, 16, ema, other)
    tracked(path[:512], 512, half)
    for sigma_rel, wanted in zip(other.sigma_rel, other.averages, strict=True):
        np.testing.assert_allclose(optim.reconstruct(snapshots, sigma_rel), wanted, rtol=1e-6)
    np.testing.assert_allclose(optim.reconstruct(snapshots, 0.1), ema.averages[1], rtol=1e-11)
    np.testing.assert_allclose(optim.reconstruct(snapshots, 0.075, step=512), half.averages[0], rtol=1e-6)

    single = [s._replace(average=s.average.astype(np.float32)) for s in snapshots]
    found = optim.reconstruct(single, 0.075)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, other.averages[1], rtol=1e-5)
    two = [s for s in snapshots if s.gamma != ema.gammas[2]]  # the two lengths of the paper
    np.testing.assert_allclose(optim.reconstruct(two, 0.075), other.averages[1], rtol=2e-5)


def test_the_combination_is_the_least_squares_solution_whose_sum_is_1() -> None:
    steps, gammas = [40, 40, 80, 80, 120], [7.0, 17.0, 7.0, 17.0, 17.0]
    k = np.arange(1, 121)
    basis = np.stack([weights(g, t, k) for g, t in zip(gammas, steps, strict=True)])
    wanted = weights(10.0, 120, k)
    last = basis[-1]  # c_last = 1 - the others: without constraint
    free = np.linalg.lstsq((basis[:-1] - last).T, wanted - last, rcond=None)[0]
    c = combination(steps, gammas, step=120, gamma=10.0)
    np.testing.assert_allclose(c, [*free, 1 - free.sum()], rtol=1e-6, atol=1e-9)
    still = [optim.Snapshot(t, g, np.full(2, 7.0)) for t, g in zip(steps, gammas, strict=True)]
    np.testing.assert_allclose(optim.reconstruct(still, 0.09), 7, rtol=1e-12)
    twice = combination(steps * 2, gammas * 2, step=120, gamma=10.0)  # what is there twice is used half and half
    np.testing.assert_allclose(twice, np.tile(c, 2) / 2, rtol=1e-4, atol=1e-8)


def test_the_state_continues_a_run() -> None:
    path = walk(60)
    whole, first = optim.PowerEma(np.zeros(3)), optim.PowerEma(np.zeros(3))
    tracked(path, 60, whole)
    tracked(path[:25], 25, first)
    second = optim.PowerEma(np.zeros(3))
    second.load({name: value.copy() for name, value in first.state.items()})
    tracked(path[25:], 60, second)
    np.testing.assert_array_equal(second.averages, whole.averages)
    before = whole.averages.copy()
    whole.prepare()
    whole.apply(np.zeros(1, np.uint8))  # a step that was not taken
    np.testing.assert_array_equal(whole.averages, before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: optim.EMA(np.zeros(4), power=0.5), "power is of the warm-up"),
        (lambda: optim.EMA(np.zeros(4), warmup=True, power=-1.0), "power must be positive"),
        (lambda: optim.EMA(np.zeros(4), warmup=True, inv_gamma=0.0), "inv_gamma must be positive"),
        (lambda: optim.EMA(np.zeros(4), decay=0.5, min_decay=0.6), "min_decay must lie in"),
        (lambda: optim.power_of(0.3), "sigma_rel must lie in"),
        (lambda: optim.power_of(0.0), "sigma_rel must lie in"),
        (lambda: optim.PowerEma(np.zeros(4), sigma_rel=()), "at least one"),
        (lambda: optim.PowerEma(np.zeros((4, 2))), "must be 1-d"),
        (lambda: optim.reconstruct([], 0.1), "no snapshots"),
        (lambda: optim.reconstruct([optim.Snapshot(5, 7.0, np.zeros(2))], 0.1, step=4), "up to step 4"),
        (
            lambda: optim.reconstruct([optim.Snapshot(t, 7.0, np.zeros(t)) for t in (2, 3)], 0.1),
            "flat arrays of one length",
        ),
    ],
)
def test_what_cannot_be_is_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()
