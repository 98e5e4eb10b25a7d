"""Metrics against their formulas in float64, scikit-learn, and closed forms.

Seen to fail: with the cross term counted once; with the diagonal kept in the unbiased estimator; with precision and
recall exchanged; with the polynomial of nearly equal features evaluated whole, its constant subtracted afterwards.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from generant.metrics import authenticity, kid, median_distance, memorised_fraction, mmd2, nearest_distance, prdc


def sample(n, d, seed, shift=0.0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(dtype)


def distances(x, y):
    return np.stack([np.sqrt(((row - y.astype(np.float64)) ** 2).sum(axis=1)) for row in x.astype(np.float64)])


def discrepancy(kxx, kyy, kxy, unbiased):
    n, m = kxy.shape
    if not unbiased:
        return kxx.mean() + kyy.mean() - 2 * kxy.mean()
    return (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1)) - 2 * kxy.mean()


# ---- mmd2 ----


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_mmd2_is_its_formula(d, estimator):
    real, fake = sample(120, d, 0), sample(77, d, 1, 0.3)
    h = np.sqrt(d)
    k = lambda a, b: np.exp(-(distances(a, b) ** 2) / (2 * h * h))
    want = discrepancy(k(real, real), k(fake, fake), k(real, fake), estimator == "unbiased")
    assert mmd2(real, fake, bandwidth=h, estimator=estimator) == pytest.approx(want, abs=2e-8)
    wide = real.astype(np.float64), fake.astype(np.float64)
    assert mmd2(*wide, bandwidth=h, estimator=estimator) == pytest.approx(want, abs=1e-14)


def test_mmd2_of_gaussians_has_a_closed_form():
    """N(0, 1) and N(a, 1): E k = h / sqrt(h^2 + 2) exp(-a^2 / (2 (h^2 + 2)))."""
    a, h, n = 1.0, 1.5, 20000
    want = 2 * h / np.sqrt(h * h + 2) * (1 - np.exp(-(a**2) / (2 * (h * h + 2))))
    got = mmd2(sample(n, 1, 2), sample(n, 1, 3, a), bandwidth=h)
    assert got == pytest.approx(want, abs=4 * 0.5 / np.sqrt(n))


def test_mmd2_of_a_sample_with_itself():
    x = sample(200, 5, 4)
    assert mmd2(x, x, estimator="biased") == pytest.approx(0, abs=1e-8)
    assert abs(mmd2(x, sample(300, 5, 5))) < 0.02


def test_mmd2_does_not_move_with_the_data():
    real, fake = sample(100, 30, 6).round(2), sample(90, 30, 7, 0.2).round(2)
    grid = lambda x, shift: np.round(x * 64) / 64 + shift
    a = mmd2(grid(real, 0), grid(fake, 0), bandwidth=5.0)
    assert mmd2(grid(real, 1000), grid(fake, 1000), bandwidth=5.0) == pytest.approx(a, rel=1e-5)


def test_median_distance_is_the_median():
    real, fake = sample(40, 3, 8), sample(30, 3, 9)
    both = np.concatenate([real, fake])
    want = np.median(distances(both, both)[np.triu_indices(70, 1)])
    assert median_distance(real, fake) == pytest.approx(want, rel=1e-9)
    big = sample(3000, 3, 10), sample(3000, 3, 11)
    assert median_distance(*big, random_state=1) == median_distance(*big, random_state=1)
    assert median_distance(*big) == pytest.approx(np.sqrt(2 * 2.366), rel=0.05)  # chi^2_3 has median 2.366


# ---- kid ----


def direct_kid(real, fake, degree=3, gamma=None, coef0=1.0):
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    gamma = 1 / real.shape[1] if gamma is None else gamma
    k = lambda a, b: (gamma * (a @ b.T) + coef0) ** degree
    return discrepancy(k(real, real), k(fake, fake), k(real, fake), True)


@pytest.mark.parametrize("options", [dict(), dict(degree=2, gamma=0.5, coef0=0.0), dict(degree=4, gamma=0.1)])
def test_kid_is_its_formula(options):
    real, fake = sample(150, 16, 12), sample(90, 16, 13, 0.2)
    want = direct_kid(real, fake, **options)
    assert kid(real, fake, **options) == pytest.approx(want, rel=1e-5)
    assert kid(real.astype(float), fake.astype(float), **options) == pytest.approx(want, rel=1e-11)


def test_kid_of_nearly_equal_features_keeps_its_digits():
    """Kernel values near 1.8, a discrepancy of 6e-6: rounding must not be relative to what the values share."""
    rng = np.random.default_rng(14)
    base = rng.random(512) * 0.8
    real, fake = ((base + 0.001 * rng.standard_normal((500, 512))).astype(np.float32) for _ in range(2))
    fake += np.float32(0.001)
    plain = os.environ.get("GENERANT_BACKEND") == "definition"  # rounds kernel values to float32
    assert kid(real, fake) == pytest.approx(direct_kid(real, fake), abs=1e-8 if plain else 1e-11)


def test_kid_subsets():
    real, fake = sample(300, 8, 15), sample(400, 8, 16, 0.1)
    mean, std = kid(real, fake, subsets=20, subset_size=100, random_state=3)
    assert (mean, std) == kid(real, fake, subsets=20, subset_size=100, random_state=3)
    assert (mean, std) != kid(real, fake, subsets=20, subset_size=100, random_state=4)
    assert std > 0 and abs(mean - kid(real, fake)) < 5 * std / np.sqrt(20)
    every, none = kid(real[:100], fake[:100], subsets=2, subset_size=100)  # the whole sample: nothing to draw
    assert every == pytest.approx(kid(real[:100], fake[:100]), rel=1e-6) and none < 1e-8


# ---- precision, recall, density, coverage ----


def direct_prdc(real, fake, k, closed=False):
    """The definitions, on matrices."""
    inside = np.less_equal if closed else np.less
    dtype = np.result_type(real, fake)
    radii = []
    for x in (real, fake):
        own = distances(x, x)
        np.fill_diagonal(own, np.inf)
        radii.append(np.sort(own, axis=1)[:, k - 1].astype(dtype))
    cross = distances(real, fake).astype(dtype)
    balls = inside(cross, radii[0][:, None])
    return dict(
        precision=balls.any(0).mean(),
        recall=inside(cross, radii[1][None]).any(1).mean(),
        density=balls.sum() / (k * len(fake)),
        coverage=balls.any(1).mean(),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", ["strict", "closed"])
@pytest.mark.parametrize("d, k", [(1, 1), (2, 5), (30, 3), (64, 5)])
def test_prdc_is_its_definition(d, k, ties, dtype):
    real, fake = sample(150, d, 17, dtype=dtype), sample(110, d, 18, 0.2, dtype)
    fake[:20], real[30] = real[:20], real[31]  # copies and duplicates
    assert prdc(real, fake, k=k, ties=ties) == pytest.approx(direct_prdc(real, fake, k, ties == "closed"), abs=1e-12)


def test_prdc_of_the_same_and_of_far_samples():
    x = sample(200, 4, 19)
    same = prdc(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["density"] == pytest.approx(1)
    assert prdc(x, x + 100) == dict(precision=0, recall=0, density=0, coverage=0)


def test_prdc_where_all_points_coincide():
    """A ball of radius 0 holds nothing, or everything there."""
    x = np.ones((20, 3), np.float32)
    assert prdc(x, x) == dict(precision=0, recall=0, density=0, coverage=0)
    assert prdc(x, x, ties="closed") == dict(precision=1, recall=1, density=4, coverage=1)


def test_precision_falls_with_wild_fakes_and_recall_with_missing_modes():
    real = np.concatenate([sample(200, 2, 20, -5), sample(200, 2, 21, 5)])
    one_mode = prdc(real, sample(400, 2, 22, 5))
    assert one_mode["precision"] > 0.9 and one_mode["recall"] < 0.6 and one_mode["coverage"] < 0.6
    wild = prdc(real, real + 8 * sample(400, 2, 23))
    assert wild["precision"] < 0.6 and wild["recall"] > 0.8


# ---- training data ----


def test_nearest_distance_is_scikit_learns():
    neighbors = pytest.importorskip("sklearn.neighbors")
    samples, train = sample(90, 20, 24, dtype=np.float64), sample(130, 20, 25, dtype=np.float64)
    want, index = neighbors.NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train).kneighbors(samples)
    got = nearest_distance(samples, train)
    np.testing.assert_allclose(got[0], want[:, 0], rtol=1e-12)
    np.testing.assert_array_equal(got[1], index[:, 0])


@pytest.mark.parametrize("d", [2, 50])
def test_copies_of_training_rows_are_found(d):
    train = sample(300, d, 26, 100)
    samples = sample(100, d, 27, 100)
    samples[:25] = train[40:65]
    distance, index = nearest_distance(samples, train)
    assert (distance[:25] == 0).all() and (index[:25] == np.arange(40, 65)).all() and (distance[25:] > 0).all()
    assert 0.25 <= memorised_fraction(samples, train, ratio=1e-6) < 0.26
    assert memorised_fraction(train, np.concatenate([train, train])) == 1
    assert authenticity(train, train) == 0
    assert authenticity(sample(500, 3, 28), sample(500, 3, 29)) == pytest.approx(0.5, abs=0.1)


# ---- arguments ----

METRICS = [mmd2, kid, prdc, nearest_distance, memorised_fraction, authenticity]


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_take_what_numpy_takes(metric):
    real, fake = np.arange(60).reshape(20, 3) % 7, np.arange(90).reshape(30, 3) % 11
    want = metric(real.astype(np.float64), fake.astype(np.float64))
    for given in (
        (real.tolist(), fake.tolist()),
        (real.astype("f2"), fake),
        (real[::-1][::-1], np.asfortranarray(fake)),
    ):
        for a, b in zip(flat(metric(*given)), flat(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def flat(result):
    return (
        list(result.values()) if isinstance(result, dict) else list(result) if isinstance(result, tuple) else [result]
    )


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_name_what_is_wrong(metric):
    good = sample(10, 3, 30)
    bad = good.copy()
    bad[4, 1] = np.nan
    name = metric.__name__
    with pytest.raises(ValueError, match=rf"{name}: \w+ must be finite, but 1 rows are not \(first: row 4\)"):
        metric(good, bad)
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have shape \(n, d\), got \(2, 5, 3\), flatten"):
        metric(good.reshape(2, 5, 3), good)
    with pytest.raises(ValueError, match=rf"{name}: all arguments must have equally many columns, but \w+ has 3 and"):
        metric(good, good[:, :2])
    with pytest.raises(TypeError, match=rf"{name}: \w+ must be an array of real numbers"):
        metric(good, good.astype(complex))
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have at least"):
        metric(good, good[:0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: mmd2(x, x, bandwidth=-1), "mmd2: bandwidth must be a positive number"),
        (lambda x: mmd2(x, x, bandwidth="mean"), "mmd2: bandwidth must be a positive number or 'median', got 'mean'"),
        (lambda x: mmd2(x * 0, x * 0), "mmd2: the median distance is 0"),
        (lambda x: mmd2(x, x, estimator="u"), "mmd2: estimator must be one of unbiased, biased, got 'u'"),
        (lambda x: mmd2(x, x[:1]), "mmd2: fake must have at least 2 rows"),
        (lambda x: kid(x, x, subsets=3), r"kid: subset_size must be an integer in 1..10, the rows there are, got 1000"),
        (lambda x: kid(x, x, subsets=0), "kid: subsets must be a positive integer, got 0"),
        (lambda x: kid(x, x, degree=2.5), "kid: degree must be a positive integer, got 2.5"),
        (lambda x: prdc(x, x, k=10), r"prdc: k must be an integer in 1..9"),
        (lambda x: prdc(x, x, ties="open"), "prdc: ties must be one of strict, closed, got 'open'"),
        (lambda x: memorised_fraction(x, x, ratio=0), r"memorised_fraction: ratio must be in \(0, 1\], got 0"),
        (lambda x: memorised_fraction(x, x[:1]), "memorised_fraction: train must have at least 2 rows"),
    ],
)
def test_options_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 31))
