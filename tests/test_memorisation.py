"""Metrics that compare samples with training rows: against whole distance matrices, scikit-learn and SciPy.

C_T and MiFID stand beside the published algorithms written out with those packages.

Seen to fail: with ties counted whole in U; with the continuity correction on the other side; with cells weighted by
fake; with neighbours looked for beyond the cell; with a cell of exactly `smallest` rows kept; with authenticity <=;
with cos in place of |cos|; with 2 - 2 cos not halved; with 0 / 0 for copies of duplicates; with the last principal
components.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant.metrics import (
    authenticity,
    ct_score,
    frechet_distance,
    memorisation_ratio,
    memorised_fraction,
    mifid,
    nearest_distance,
    nearest_train_ratio,
)
from generant.metrics.memorisation import _kmeans, _principal, _rank_z


def sample(n, d, seed, shift=0.0, dtype=np.float64):
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(dtype)


def distances(x, y):
    return np.sqrt(((x[:, None].astype(np.float64) - y[None]) ** 2).sum(axis=2))


# ---- nearest training rows ----


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 1e-6)])
def test_nearest_distance_is_scikit_learns(dtype, rtol):
    neighbors = pytest.importorskip("sklearn.neighbors")
    samples, train = sample(90, 20, 24, dtype=dtype), sample(130, 20, 25, dtype=dtype)
    searcher = neighbors.NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train.astype(np.float64))
    want, index = searcher.kneighbors(samples.astype(np.float64))
    got = nearest_distance(samples, train)
    np.testing.assert_allclose(got[0], want[:, 0], rtol=rtol)
    np.testing.assert_array_equal(got[1], index[:, 0])
    assert got[0].dtype == dtype and got[1].dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [2, 50])
def test_copies_of_training_rows_are_found(d, dtype):
    train = sample(300, d, 26, 100, dtype)
    samples = sample(100, d, 27, 100, dtype)
    samples[:25] = train[40:65]
    distance, index = nearest_distance(samples, train)
    assert (distance[:25] == 0).all() and (index[:25] == np.arange(40, 65)).all() and (distance[25:] > 0).all()
    assert 0.25 <= memorised_fraction(samples, train, ratio=1e-6) < 0.26
    assert memorised_fraction(train, np.concatenate([train, train])) == 1
    assert authenticity(train, train) == 0
    for ratio in (memorisation_ratio(samples, train), memorisation_ratio(samples, train, k=9, to="mean")):
        assert (ratio[:25] == 0).all() and (ratio[25:] > 0).all() and (ratio <= 1).all()
    assert (memorisation_ratio(train, np.concatenate([train, train])) == 0).all()  # 0 / 0
    held_out = sample(80, d, 28, 100, dtype)
    assert nearest_train_ratio(held_out, train[:60], train) == 0
    assert nearest_train_ratio(train, train[:60], train) == 0
    assert nearest_train_ratio(train, held_out, train) == np.inf


def test_ratios_are_their_formulas():
    fake, train, real = sample(40, 5, 1, 0.3), sample(70, 5, 2), sample(30, 5, 3)
    near = np.sort(distances(fake, train), axis=1)
    np.testing.assert_allclose(memorisation_ratio(fake, train), near[:, 0] / near[:, 1], rtol=1e-12)
    np.testing.assert_allclose(memorisation_ratio(fake, train, k=6), near[:, 0] / near[:, 5], rtol=1e-12)
    want = near[:, 0] / near[:, :6].mean(axis=1)
    np.testing.assert_allclose(memorisation_ratio(fake, train, k=6, to="mean"), want, rtol=1e-12)
    assert memorised_fraction(fake, train, ratio=0.9) == np.mean(near[:, 0] < 0.9 * near[:, 1])
    held = distances(real, train).min(axis=1)
    assert nearest_train_ratio(real, fake, train) == pytest.approx(np.median(near[:, 0]) / np.median(held))
    want = near[:, 0].mean() / held.mean()
    assert nearest_train_ratio(real, fake, train, statistic="mean") == pytest.approx(want)


def test_authenticity_is_its_definition():
    samples, train = sample(120, 3, 28), sample(90, 3, 29)
    train[5], samples[7], samples[8] = train[6], train[8], train[6]  # a copy of a duplicated row: 0 is not below 0
    own, cross = distances(train, train), distances(samples, train)
    np.fill_diagonal(own, np.inf)
    want = np.mean(own.min(axis=1)[cross.argmin(axis=1)] < cross.min(axis=1))
    assert authenticity(samples, train) == want
    assert authenticity(sample(500, 3, 30), sample(500, 3, 31)) == pytest.approx(0.5, abs=0.1)


# ---- C_T ----


def groups(n, seed, shift=0.0, noise=1.0, d=4):
    """Three clusters far apart, of which every k-means finds the same cells."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 0], [30, 0], [0, 50]])[rng.integers(0, 3, n)]
    return np.hstack([centres, np.zeros((n, d - 2))]) + noise * rng.standard_normal((n, d)) + shift


def published_ct(real, fake, train, smallest=20):
    """The algorithm of the authors' code and dgm-eval, with the same packages."""
    cluster = pytest.importorskip("sklearn.cluster")
    neighbors = pytest.importorskip("sklearn.neighbors")
    stats = pytest.importorskip("scipy.stats")
    found = cluster.KMeans(n_clusters=3, n_init=10, random_state=0).fit(train)
    in_real, in_fake, in_train = (found.predict(x) for x in (real, fake, train))
    above, below = 0.0, 0.0
    for cell in range(3):
        r, f, t = real[in_real == cell], fake[in_fake == cell], train[in_train == cell]
        if len(f) / len(fake) <= smallest / len(fake):
            continue
        near = neighbors.NearestNeighbors(n_neighbors=1).fit(t)
        u, _ = stats.mannwhitneyu(near.kneighbors(f)[0][:, 0], near.kneighbors(r)[0][:, 0], alternative="less")
        n, m = len(r), len(f)
        z = (u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12)
        above, below = above + z * len(r) / len(real), below + len(r) / len(real)
    return above / below


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_ct_is_the_published_algorithm(shift):
    real, fake, train = groups(200, 1), groups(150, 2, shift), groups(300, 3)
    fake[:20] = train[:20]  # ties at distance 0
    real[:5] = train[30:35]
    assert ct_score(real, fake, train) == pytest.approx(published_ct(real, fake, train), rel=1e-10)


def test_ct_looks_for_neighbours_within_the_cell():
    real, train, fake = groups(200, 4), groups(300, 5), groups(160, 6)
    train[:10], fake[:20] = [14.0, 0, 0, 0], [16.5, 0, 0, 0]  # on two sides of the border between two cells
    real[:20] = [22.0, 0, 0, 0]  # nearer to the second cell's rows than fake, farther from any row
    assert ct_score(real, fake, train) == pytest.approx(published_ct(real, fake, train), rel=1e-10)


def test_ct_leaves_out_cells_without_enough_samples():
    real, train, fake = groups(200, 4), groups(300, 5), groups(160, 6)
    fake = np.concatenate([fake[fake[:, 0] > 15][:18], fake[fake[:, 0] <= 15]])
    assert ct_score(real, fake, train) == pytest.approx(published_ct(real, fake, train), rel=1e-10)
    for smallest in (17, 18):  # the cell has 18
        want = published_ct(real, fake, train, smallest=smallest)
        assert ct_score(real, fake, train, smallest=smallest) == pytest.approx(want, rel=1e-10)
    assert ct_score(real, fake, train, smallest=17) != ct_score(real, fake, train, smallest=18)


def test_ct_tells_copies_from_underfitting_and_chance():
    real, train = sample(200, 6, 7), sample(400, 6, 8)
    assert ct_score(real, train[:150] + 1e-3, train) < -6
    assert ct_score(real, 2 * sample(150, 6, 9), train) > 6
    chance = [ct_score(real, sample(150, 6, seed), train) for seed in range(10, 14)]
    assert np.abs(chance).mean() < 2
    assert ct_score(real, real[:100], train) == ct_score(real, real[:100], train, random_state=0)


def test_rank_z_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40) / 3, rng.integers(1, 9, 31) / 3
    u = stats.mannwhitneyu(a, b).statistic
    assert _rank_z(a, b) == pytest.approx((u - (40 * 31 / 2 - 0.5)) / np.sqrt(40 * 31 * 72 / 12), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kmeans_is_as_good_as_scikit_learns(dtype):
    cluster = pytest.importorskip("sklearn.cluster")
    x = np.concatenate([sample(60, 3, 10), sample(40, 3, 11, 2.0), sample(50, 3, 12, -3.0)]).astype(dtype)
    ours = _kmeans(x, 4, np.random.default_rng(0))
    theirs = cluster.KMeans(n_clusters=4, n_init=10, random_state=0).fit(x.astype(np.float64))
    assert ours.inertia <= 1.01 * theirs.inertia_
    assert ours.inertia == pytest.approx((distances(x, ours.centres).min(axis=1) ** 2).sum(), rel=1e-5)
    assert _kmeans(np.ones((5, 2)), 3, np.random.default_rng(0)).inertia == 0


def test_principal_components_are_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    train, other = sample(80, 10, 13) * np.arange(1, 11), sample(30, 10, 14)
    found = decomposition.PCA(n_components=3).fit(train)
    for got, x in zip(_principal(3, train, train, other), (train, other), strict=True):
        np.testing.assert_allclose(np.abs(got), np.abs(found.transform(x)), rtol=1e-8, atol=1e-8)
    real, fake = sample(60, 70, 15), sample(90, 70, 16)  # more columns than components
    assert ct_score(real, fake, sample(200, 70, 17), cells=1) == pytest.approx(
        ct_score(*_principal(64, sample(200, 70, 17), real, fake, sample(200, 70, 17)), cells=1)
    )


# ---- MiFID ----


def cosine_distance(x, y):
    """min over y, mean over x: what torchmetrics and the competition's code compute."""
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return (1 - np.abs(x @ y.T)).min(axis=1).mean()


@pytest.mark.parametrize("dtype, rel", [(np.float64, 1e-9), (np.float32, 1e-3)])
def test_mifid_is_its_formula(dtype, rel):
    real, fake = sample(200, 3, 18, dtype=dtype), sample(150, 3, 19, 0.3, dtype)
    train = sample(400, 3, 20, dtype=dtype)
    fd = frechet_distance(real, fake)
    for given, reference in (((real, fake, train), train), ((real, fake), real)):
        m = cosine_distance(fake.astype(np.float64), reference.astype(np.float64))
        assert m < 0.1 and mifid(*given) == pytest.approx(fd / m, rel=rel)
        assert mifid(*given, threshold=m / 2) == pytest.approx(fd)
    other = cosine_distance(real.astype(np.float64), fake.astype(np.float64))
    assert mifid(real, fake, average="real") == pytest.approx(fd / other, rel=rel)


def test_mifid_punishes_copies_and_their_multiples_only():
    real, train = sample(300, 8, 21), sample(300, 8, 22)
    assert mifid(real, train, train) > 1e10 * frechet_distance(real, train)
    assert mifid(real, -train, train) > 1e10 * frechet_distance(real, -train)
    assert mifid(real, sample(300, 8, 23), train) == frechet_distance(real, sample(300, 8, 23))
    assert mifid(real, real) == 0
    gaps = np.concatenate([train, np.zeros((3, 8))])  # rows without a direction
    assert mifid(real, real[:200], gaps) == pytest.approx(mifid(real, real[:200], train))


# ---- arguments ----

THREE = [nearest_train_ratio, ct_score, mifid]
TWO = [nearest_distance, memorised_fraction, memorisation_ratio, authenticity]


def call(metric, x, **options):
    if metric is ct_score:
        options = {"cells": 1, "smallest": 0, **options}
    return metric(x, x[::-1] + 1, **({} if metric in TWO else {"train": x + 2}), **options)


@pytest.mark.parametrize("metric", TWO + THREE)
def test_they_take_what_numpy_takes(metric):
    x = np.random.default_rng(1).integers(0, 9, (30, 3))
    want = np.asarray(call(metric, x.astype(np.float64))[0] if metric is nearest_distance else call(metric, x * 1.0))
    read_only = x.astype(np.float32)
    read_only.flags.writeable = False
    for given in (x, x.astype("u1"), x.astype("f2"), read_only, np.repeat(x * 1.0, 2, axis=1)[:, ::2]):
        got = call(metric, given)
        np.testing.assert_allclose(got[0] if metric is nearest_distance else got, want, rtol=1e-4)


@pytest.mark.parametrize("metric", TWO + THREE)
def test_they_name_what_is_wrong(metric):
    good = sample(10, 3, 32)
    bad = good.copy()
    bad[4, 1] = np.nan
    name, rest = metric.__name__, () if metric in TWO else (good,)
    with pytest.raises(ValueError, match=rf"{name}: \w+ must be finite, but 1 row is not \(first: row 4\)"):
        metric(good, bad, *rest)
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have shape \(n, d\), got \(2, 5, 3\), flatten"):
        metric(good.reshape(2, 5, 3), good, *rest)
    with pytest.raises(ValueError, match=rf"{name}: all arguments must have equally many columns"):
        metric(good, good[:, :2], *rest)
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have at least"):
        metric(good, good[:0], *rest)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: memorised_fraction(x, x, ratio=0), r"memorised_fraction: ratio must be in \(0, 1\], got 0"),
        (lambda x: memorised_fraction(x, x[:1]), "memorised_fraction: train must have at least 2 rows"),
        (lambda x: authenticity(x, x[:1]), "authenticity: train must have at least 2 rows"),
        (lambda x: memorisation_ratio(x, x, k=1), "memorisation_ratio: k must be an integer in 2..10"),
        (lambda x: memorisation_ratio(x, x, k=11), "memorisation_ratio: k must be an integer in 2..10"),
        (lambda x: memorisation_ratio(x, x, to="max"), "memorisation_ratio: to must be one of kth, mean, got 'max'"),
        (lambda x: nearest_train_ratio(x, x, x, statistic="max"), "statistic must be one of median, mean, got 'max'"),
        (lambda x: ct_score(x, x, x, cells=0), "ct_score: cells must be an integer in 1..10, the rows of train, got 0"),
        (lambda x: ct_score(x, x, x, cells=11), "ct_score: cells must be an integer in 1..10"),
        (lambda x: ct_score(x, x, x, cells=1), "ct_score: no cell holds more than 20 rows of fake, of 10"),
        (lambda x: ct_score(x, x, x, components=0), "ct_score: components must be a positive integer"),
        (lambda x: ct_score(x, x, x, smallest=-1), "ct_score: smallest must be an integer of at least 0, got -1"),
        (lambda x: ct_score(x[:1], x, x * 100), r"ct_score: cell \d of 3 holds no row of real; use fewer cells"),
        (lambda x: mifid(x, x + 1, x * 0), "mifid: train holds only rows of zeros"),
        (lambda x: mifid(x, x, threshold=0), r"mifid: threshold must be in \(0, 1\], got 0"),
        (lambda x: mifid(x, x, average="both"), "mifid: average must be one of fake, real, got 'both'"),
    ],
)
def test_options_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 33))
