"""Pairs of data and noise by optimal transport within a batch: the best permutation, and draws from the entropic plan.

Expected values come from trying all permutations, from sorting (in one dimension), and from the plan's own formula.
Seen to fail: with the sign of the cost turned, with the potential left out of the draws, with partners drawn twice, and
with places within a class taken for places in the batch.
"""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest

from generant import ops
from generant.diffusion.objectives import Objective, ot_pairing
from generant.random import key

pytestmark = pytest.mark.once


def cost(x, z, p):
    return float(np.sum((x - z[p]) ** 2))


def rows(seed, *shape):
    return ops.normal(key(seed), dtype="float64", shape=shape)


def test_the_assignment_is_the_best_of_all_permutations():
    pytest.importorskip("scipy")
    x, z = rows(1, 7, 2, 2), rows(2, 7, 2, 2)
    best = min(permutations(range(7)), key=lambda p: cost(x, z, list(p)))
    found = ot_pairing(x, z)
    assert found.dtype == np.int64 and found.tolist() == list(best)
    line, noise = rows(3, 50, 1), rows(4, 50, 1)
    pairs = ot_pairing(line.astype(np.float32), noise.astype(np.float32))
    np.testing.assert_array_equal(np.argsort(noise[pairs][:, 0]), np.argsort(line[:, 0]))  # in one dimension: in order


def test_the_draws_follow_the_plan_and_are_a_permutation():
    x, z = rows(1, 60, 2), rows(2, 60, 2) + 3
    best = np.sort(ot_pairing(x, z, method="sinkhorn", key=key(0)))
    np.testing.assert_array_equal(best, np.arange(60))
    independent = np.mean([cost(x, z, np.roll(np.arange(60), k)) for k in range(60)])
    costs = [cost(x, z, ot_pairing(x, z, method="sinkhorn", reg=r, key=key(3))) for r in (0.003, 0.05, 100.0)]
    assert costs[0] < costs[1] < costs[2]
    assert abs(costs[2] - independent) < 0.15 * independent
    assert (ot_pairing(x, z, method="sinkhorn", reg=0.2, key=key(3)) == ot_pairing(
        x, z, method="sinkhorn", reg=0.2, key=key(3))).all()  # fmt: skip

    a, b = np.array([[0.0], [1.0]]), np.array([[0.4], [2.5]])  # two points: one number says it all
    c = (a - b.T) ** 2
    stay, swap = c[0, 0] + c[1, 1], c[0, 1] + c[1, 0]
    reg = 0.8
    ratio = np.exp((swap - stay) / (2 * reg * c.mean()))  # of the plan's diagonal to the rest, marginals 1/2
    share = np.mean([ot_pairing(a, b, method="sinkhorn", reg=reg, key=key(k))[0] == 0 for k in range(400)])
    assert share == pytest.approx(ratio / (1 + ratio), abs=0.07)


@pytest.mark.parametrize("method", ["assignment", "sinkhorn"])
def test_labels_keep_classes_together(method):
    if method == "assignment":
        pytest.importorskip("scipy")
    x, z, labels = rows(1, 30, 2), rows(2, 30, 2), np.arange(30) % 3
    found = ot_pairing(x, z, labels=labels, method=method, key=key(1))
    assert (labels[found] == labels).all() and (np.sort(found) == np.arange(30)).all()
    for c in range(3):
        own = labels == c
        assert cost(x[own], z, found[own]) < cost(x[own], z, np.flatnonzero(own))
    alone = ot_pairing(x, z, labels=np.arange(30), method=method, key=key(1))
    np.testing.assert_array_equal(alone, np.arange(30))


def test_equal_points_and_few_points():
    for method in ("assignment", "sinkhorn"):
        if method == "assignment":
            pytest.importorskip("scipy")
        same = np.zeros((4, 2))
        assert np.sort(ot_pairing(same, same, method=method, key=key(1))).tolist() == [0, 1, 2, 3]
        assert ot_pairing(same[:1], same[:1], method=method, key=key(1)).tolist() == [0]
        assert ot_pairing(same[:0], same[:0], method=method, key=key(1)).tolist() == []


def test_paired_flow_targets_are_shorter_and_the_loss_takes_them():
    x, z = rows(1, 40, 2), rows(2, 40, 2)
    p = ot_pairing(x, z, method="sinkhorn", reg=0.01, key=key(1))
    flow, levels = Objective("flow", form="flow"), np.geomspace(0.1, 10, 40)
    nothing = lambda inputs, told, labels: np.zeros_like(inputs)
    losses = [float(flow.loss(nothing, x, None, levels, None, noise=n)) for n in (z, z[p])]
    np.testing.assert_allclose(losses, [np.mean((z - x) ** 2), np.mean((z[p] - x) ** 2)])
    assert losses[1] < 0.5 * losses[0]


def test_without_scipy_the_other_method_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match='needs SciPy; method="sinkhorn" does not'):
        ot_pairing(rows(1, 3, 2), rows(2, 3, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(method="greedy"), "method must be one of"),
        (dict(z=rows(2, 5, 2)), "must have one shape"),
        (dict(x=np.full((4, 2), np.nan)), r"x\[0\] is not finite"),
        (dict(method="sinkhorn"), "key is None"),
        (dict(reg=0.0), "reg must be positive"),
        (dict(labels=np.zeros(3)), "labels must be"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    given = dict(x=rows(1, 4, 2), z=rows(2, 4, 2)) | change
    with pytest.raises(ValueError, match=message):
        ot_pairing(given.pop("x"), given.pop("z"), **given)
