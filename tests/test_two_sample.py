"""The permutation test against matrices in float64, and what a test must do: hold its level and find differences.

Seen to fail: with the diagonal kept; with the shares of the samples exchanged; with a wrong weight of the pairs within;
with relabellings that stay within real; with rounding between equal statistics; without the 1 in the p-value; with
statistics that are NaN.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant.metrics import mmd2, mmd_test
from generant.metrics.two_sample import _statistics


def sample(n, d, seed, shift=0.0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(dtype)


def dense(pooled, labels, unbiased, phi):
    """The squared MMD of every labelling, from the kernel matrix."""
    z = pooled.astype(np.float64)
    k = phi(z[:, None] - z, z @ z.T)
    values = []
    for row in labels:
        xx, yy, xy = k[row][:, row], k[~row][:, ~row], k[row][:, ~row]
        n, m = len(xx), len(yy)
        if unbiased:
            within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
        else:
            within = xx.mean() + yy.mean()
        values.append(within - 2 * xy.mean())
    return np.array(values)


KERNELS = [
    (dict(kernel="rbf", bandwidth=(2.0,)), lambda d, p: np.exp(-(d**2).sum(-1) / 8)),
    (
        dict(kernel="laplace", bandwidth=(1.0, 3.0)),
        lambda d, p: sum(np.exp(-np.sqrt((d**2).sum(-1)) / h) for h in (1, 3)),
    ),
    (dict(kernel="polynomial", bandwidth=(1.0,)), lambda d, p: (p / 4 + 1) ** 3),
    (dict(kernel="energy", bandwidth=(1.0,)), lambda d, p: -np.sqrt((d**2).sum(-1))),
]  # fmt: skip


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel, phi", KERNELS, ids=[k["kernel"] for k, _ in KERNELS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_relabelling_has_the_mmd_of_its_samples(kernel, phi, unbiased, dtype):
    pooled, rng = sample(90, 4, 0, dtype=dtype), np.random.default_rng(1)
    labels = np.zeros((12, 90), bool)
    for row in labels:
        row[rng.choice(90, 35, replace=False)] = True
    attrs = dict(degree=3, gamma=None, coef0=1.0, alpha=1.0, **kernel)
    got, want = _statistics(pooled, labels, 35, unbiased, attrs), dense(pooled, labels, unbiased, phi)
    np.testing.assert_allclose(got, want, rtol=0, atol=(1e-6 if dtype == np.float32 else 1e-13) * np.abs(want).max())


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_statistic_is_mmd2s(estimator):
    real, fake = sample(80, 3, 2), sample(50, 3, 3, 0.3)
    got = mmd_test(real, fake, permutations=99, estimator=estimator)
    assert got.statistic == pytest.approx(mmd2(real, fake, estimator=estimator), abs=1e-7)
    assert got.null.shape == (99,) and got.p_value == (1 + (got.null >= got.statistic).sum()) / 100
    assert np.mean(got.null <= got.threshold) >= 0.95 > np.mean(got.null < got.threshold)
    looser = mmd_test(real, fake, permutations=99, estimator=estimator, level=0.5)
    assert looser.threshold < got.threshold and looser.p_value == got.p_value


def test_it_is_reproducible():
    real, fake = sample(60, 2, 4), sample(60, 2, 5)
    a, b = (mmd_test(real, fake, permutations=50, random_state=seed) for seed in (7, np.random.default_rng(7)))
    assert a.p_value == b.p_value and np.array_equal(a.null, b.null)
    assert not np.array_equal(a.null, mmd_test(real, fake, permutations=50, random_state=8).null)


def test_its_level_is_the_one_asked_for():
    """p is uniform where the samples are of one distribution: 300 tests, deviation at most 1.63 / sqrt(300) (1 %)."""
    count, permutations = 300, 39
    rng = np.random.default_rng(9)
    p = [
        mmd_test(
            rng.standard_normal((14, 2)), rng.standard_normal((10, 2)),
            permutations=permutations, bandwidth=1.5, random_state=seed,
        ).p_value
        for seed in range(count)
    ]  # fmt: skip
    levels = np.arange(1, permutations + 2) / (permutations + 1)
    below = np.array([np.mean(np.array(p) <= level + 1e-12) for level in levels])
    assert np.abs(below - levels).max() < 1.63 / np.sqrt(count)


def test_it_finds_differences():
    """A shift of the mean; and with the mean and variance equal, of the shape."""
    assert mmd_test(sample(100, 2, 10), sample(80, 2, 11, 1.0), permutations=199).p_value == 1 / 200
    rng = np.random.default_rng(12)
    coins = rng.choice([-1.0, 1.0], (150, 1)) + 0.1 * rng.standard_normal((150, 1))
    assert mmd_test(coins, sample(150, 1, 13), permutations=199, bandwidth=0.5).p_value == 1 / 200
    same = mmd_test(sample(100, 2, 14), sample(80, 2, 15), permutations=199)
    assert same.p_value > 0.01


def test_equal_statistics_count():
    """2 + 2 rows have 3 statistics; the largest comes up in a third of the relabellings, whatever its rounding."""
    x = np.array([[0.0], [0.1], [5.0], [5.1]], np.float32)
    got = mmd_test(x[:2], x[2:], permutations=3000, bandwidth=1.0)
    assert got.p_value == pytest.approx(1 / 3, abs=0.04)
    same = np.ones((6, 3), np.float32)
    assert mmd_test(same, same, permutations=20, bandwidth=1.0).p_value == 1


def test_what_can_be_read_is_taken():
    x, y = (np.random.default_rng(seed).integers(0, 9, (30, 3)) for seed in (16, 17))
    want = mmd_test(x.astype(float), y.astype(float), permutations=20)
    for a, b in ((x.tolist(), y), (x.astype("f2"), y.astype("u1"))):
        got = mmd_test(a, b, permutations=20)
        assert got.p_value == want.p_value and got.statistic == pytest.approx(want.statistic, abs=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: mmd_test(x, x[:, :2]), "all arguments must have equally many columns, but real has 3 and"),
        (lambda x: mmd_test(x, x[:1]), "fake must have at least 2 rows"),
        (lambda x: mmd_test(x, np.where(np.arange(10)[:, None] == 4, np.nan, x)), r"fake must be finite.*row 4"),
        (lambda x: mmd_test(x, x, permutations=0), "permutations must be a positive integer, got 0"),
        (lambda x: mmd_test(x, x, level=1), r"level must be in \(0, 1\), got 1"),
        (lambda x: mmd_test(x, x, kernel="cubic"), "kernel must be one of rbf, laplace.*, got 'cubic'"),
        (lambda x: mmd_test(x, x, estimator="u"), "estimator must be one of unbiased, biased, got 'u'"),
        (lambda x: mmd_test(x, x, bandwidth=0), "bandwidth must be positive and finite, got"),
        (lambda x: mmd_test(x.astype(float) * 1e60, x, kernel="polynomial"), "kernel values of .* are not finite"),
        (lambda x: mmd_test(x * 0, x * 0), "the median distance is 0"),
    ],
)
def test_options_that_are_refused(call, message):
    with pytest.raises(ValueError, match="mmd_test: " + message):
        call(sample(10, 3, 18))
