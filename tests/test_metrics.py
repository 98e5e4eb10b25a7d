"""Metrics made of balls around points, against their published definitions on whole matrices and package prdc.

Seen to fail: with precision and recall exchanged; with strict and closed exchanged; with the radii of both samples
exchanged; with density divided by 5; with all balls kept for realism, or distances not divided by radii; with radii to
the first neighbour; with squares that overflow.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant.metrics import compute_prdc, mind, prdc, precision_recall, rarity, realism, sliced_wasserstein

KEYS = ("precision", "recall", "density", "coverage")


def sample(n, d, seed, shift=0.0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(dtype)


def distances(x, y):
    return np.stack([np.sqrt(((row - y.astype(np.float64)) ** 2).sum(axis=1)) for row in x.astype(np.float64)])


def tied(seed, dtype=np.float32):
    """Two samples on a grid, duplicates within and copies across: many distances are equal, exactly."""
    rng = np.random.default_rng(seed)
    real, fake = rng.integers(0, 4, (60, 3)), rng.integers(0, 5, (45, 3))
    real[50:], fake[30:40] = real[:10], real[:10]
    return real.astype(dtype), fake.astype(dtype)


# ---- the published definitions, written out ----


def naeem(real, fake, k):
    """Package prdc: the (k + 1)-th smallest distance with the point itself among them, and <."""
    radii = [np.sort(distances(x, x), axis=1)[:, k] for x in (real, fake)]
    cross = distances(real, fake)
    return dict(
        precision=(cross < radii[0][:, None]).any(axis=0).mean(),
        recall=(cross < radii[1][None]).any(axis=1).mean(),
        density=(cross < radii[0][:, None]).sum(axis=0).mean() / k,
        coverage=(cross.min(axis=1) < radii[0]).mean(),
    )


def torch_fidelity(real, fake, k):
    """torch-fidelity and Kynkaanniemi's code: k-th value of k + 1, and <=."""
    radii = [np.sort(distances(x, x), axis=1)[:, k] for x in (real, fake)]
    precision = (distances(fake, real) <= radii[0]).any(axis=1).mean()
    recall = (distances(real, fake) <= radii[1]).any(axis=1).mean()
    return dict(precision=precision, recall=recall, f_score=2 * precision * recall / max(1e-5, precision + recall))


def direct(real, fake, k, closed):
    """The definitions with a point left out of its own neighbours by index, in the precision of the points."""
    inside = np.less_equal if closed else np.less
    radii = []
    for x in (real, fake):
        own = distances(x, x)
        np.fill_diagonal(own, np.inf)
        radii.append(np.sort(own, axis=1)[:, k - 1].astype(real.dtype))
    cross = distances(real, fake).astype(real.dtype)
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
    assert prdc(real, fake, k=k, ties=ties) == pytest.approx(direct(real, fake, k, ties == "closed"), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 3, 5, 12])
@pytest.mark.parametrize("seed", range(4))
def test_ties_are_the_packages(seed, k, dtype):
    real, fake = tied(seed, dtype)
    assert compute_prdc(real, fake, k) == pytest.approx(naeem(real, fake, k), abs=1e-12)
    assert prdc(real, fake, k=k) == compute_prdc(real_features=real, fake_features=fake, nearest_k=k)
    closed = torch_fidelity(real, fake, k)
    assert precision_recall(real, fake, k=k) == pytest.approx(closed, abs=1e-12)
    assert {name: prdc(real, fake, k=k, ties="closed")[name] for name in KEYS[:2]} == {
        name: pytest.approx(closed[name]) for name in KEYS[:2]
    }
    strict = naeem(real, fake, k)
    p, r = strict["precision"], strict["recall"]
    want = dict(precision=p, recall=r, f_score=2 * p * r / max(p + r, 1e-5))
    assert precision_recall(real, fake, k=k, ties="strict") == pytest.approx(want, abs=1e-12)
    assert k > 5 or strict["precision"] < closed["precision"], "nothing is on a rim: this tests nothing"


@pytest.mark.parametrize("d", [3, 40])
def test_compute_prdc_is_the_packages_own(d):
    package = pytest.importorskip("prdc")
    for real, fake in (tied(9), (sample(120, d, 1), sample(90, d, 2, 0.3))):
        for k in (1, 4, 5):
            want = package.compute_prdc(real.astype(np.float64), fake.astype(np.float64), k)
            got = compute_prdc(real, fake, k)
            assert list(got) == list(want) and got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("ties", ["strict", "closed"])
def test_several_k_at_once(ties):
    real, fake = sample(80, 4, 3), sample(70, 4, 4, 0.4)
    ks = [5, 1, 12, 5]
    found = prdc(real, fake, k=ks, ties=ties)
    assert list(found) == list(KEYS)
    for name in KEYS:
        want = [prdc(real, fake, k=k, ties=ties)[name] for k in ks]
        np.testing.assert_array_equal(found[name], want)
    assert prdc(real, fake, k=np.array([3]))["recall"].shape == (1,)


def test_prdc_of_the_same_and_of_far_samples():
    x = sample(200, 4, 19)
    same = prdc(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1 and same["density"] == pytest.approx(1)
    assert prdc(x, x + 100) == dict(precision=0, recall=0, density=0, coverage=0)
    assert precision_recall(x, x + 100) == dict(precision=0, recall=0, f_score=0)


def test_where_all_points_coincide():
    """A ball of radius 0 holds nothing, or everything there."""
    x = np.ones((20, 3), np.float32)
    assert prdc(x, x) == dict(precision=0, recall=0, density=0, coverage=0)
    assert prdc(x, x, ties="closed") == dict(precision=1, recall=1, density=4, coverage=1)
    assert (realism(x, x) == 0).all() and np.isnan(rarity(x, x)).all() and (rarity(x, x, ties="closed") == 0).all()


def test_equal_distributions_have_known_density_and_coverage():
    """Density 1 on average; coverage 1 - (n - 1) ... (n - k) / ((n + m - 1) ... (n + m - k)) (Naeem et al., eq. 9)."""
    n, m, k = 400, 400, 5
    found = [prdc(sample(n, 3, 2 * s), sample(m, 3, 2 * s + 1), k=k) for s in range(8)]
    missed = np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(1 - missed, abs=0.01)
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.05)


def test_precision_falls_with_wild_fakes_and_recall_with_missing_modes():
    real = np.concatenate([sample(200, 2, 20, -5), sample(200, 2, 21, 5)])
    one_mode = prdc(real, sample(400, 2, 22, 5))
    assert one_mode["precision"] > 0.9 and one_mode["recall"] < 0.6 and one_mode["coverage"] < 0.6
    wild = prdc(real, real + 8 * sample(400, 2, 23))
    assert wild["precision"] < 0.6 and wild["recall"] > 0.8


# ---- realism and rarity ----


def radii(real, k):
    own = distances(real, real)
    np.fill_diagonal(own, np.inf)
    return np.sort(own, axis=1)[:, k - 1]


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 1e-6)])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_realism_is_its_formula(k, dtype, rtol):
    real, fake = sample(90, 5, 5, dtype=dtype), sample(60, 5, 6, 0.5, dtype)
    fake[7] = real[11]
    radius = radii(real, k)
    with np.errstate(divide="ignore"):
        ratio = radius / distances(fake, real)
    small = radius.astype(dtype) <= np.median(radius.astype(dtype))
    got = realism(real, fake, k=k)
    assert got.shape == (60,) and got.dtype == dtype
    np.testing.assert_allclose(got, ratio[:, small].max(axis=1), rtol=rtol)
    assert (got >= 1).sum() >= (ratio[:, small] >= 1).any(axis=1).sum() - 1
    assert np.isinf(realism(real, real[small][:1], k=k))


@pytest.mark.parametrize("ties", ["strict", "closed"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_rarity_is_its_formula(k, ties):
    for real, fake in (tied(3), tied(4, np.float64), (sample(90, 2, 7), sample(60, 2, 8, 1.0))):
        radius = radii(real, k).astype(real.dtype)
        inside = (np.less_equal if ties == "closed" else np.less)(distances(fake, real).astype(real.dtype), radius)
        want = np.where(inside, radius, np.inf).min(axis=1)
        got = rarity(real, fake, k=k, ties=ties)
        assert got.dtype == real.dtype
        np.testing.assert_array_equal(got, np.where(np.isinf(want), np.nan, want))
        assert np.isnan(got).mean() == pytest.approx(1 - prdc(real, fake, k=k, ties=ties)["precision"])


# ---- arguments ----

METRICS = [prdc, precision_recall, realism, rarity, mind, sliced_wasserstein]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_metrics_take_what_numpy_takes(metric):
    rng = np.random.default_rng(9)
    real, fake = rng.integers(0, 7, (40, 3)), rng.integers(0, 11, (45, 3))
    want = metric(real.astype(np.float64), fake.astype(np.float64))
    read_only = fake.astype(np.float32)
    read_only.flags.writeable = False
    for given in (
        (real.tolist(), fake.tolist()),
        (real.astype("f2"), fake),
        (real.astype("u1"), read_only),
        (real[::-1][::-1], np.asfortranarray(fake)),
        (np.repeat(real, 2, axis=1)[:, ::2], fake),
    ):
        before = np.array(given[1])
        for a, b in zip(flat(metric(*given)), flat(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(before, given[1])


def flat(result):
    return list(result.values()) if isinstance(result, dict) else result if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)
def test_metrics_name_what_is_wrong(metric):
    good = sample(10, 3, 30)
    bad = good.copy()
    bad[4, 1] = np.nan
    name = metric.__name__
    with pytest.raises(ValueError, match=rf"{name}: \w+ must be finite, but 1 row is not \(first: row 4\)"):
        metric(good, bad)
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have shape \(n, d\), got \(2, 5, 3\), flatten"):
        metric(good.reshape(2, 5, 3), good)
    with pytest.raises(ValueError, match=rf"{name}: all arguments must have equally many columns, but \w+ has 3 and"):
        metric(good, good[:, :2])
    with pytest.raises(TypeError, match=rf"{name}: \w+ must be an array of real numbers"):
        metric(good, good.astype(complex))
    with pytest.raises(ValueError, match=rf"{name}: \w+ must have at least"):
        metric(good, good[:0])
    with pytest.raises(ValueError, match=rf"{name}: \w+ has masked entries"):
        metric(good, np.ma.masked_array(good, mask=good > 1))
    with pytest.raises(ValueError, match=rf"{name}: \w+ is so large that its squares overflow float64"):
        metric(good.astype(float) * 1e200, good)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: prdc(x, x, k=10), r"prdc: k must be an integer in 1..9, the other rows of the smaller sample"),
        (lambda x: prdc(x, x[:6], k=[3, 6]), "prdc: k must be an integer in 1..5"),
        (lambda x: prdc(x, x, k=[]), "prdc: k must hold at least one number"),
        (lambda x: prdc(x, x, k="5"), "prdc: k must be an integer in 1..9"),
        (lambda x: prdc(x, x, k=True), "prdc: k must be an integer in 1..9"),
        (lambda x: prdc(x, x, ties="open"), "prdc: ties must be one of strict, closed, got 'open'"),
        (lambda x: prdc(x, x[:1]), "prdc: fake must have at least 2 rows"),
        (lambda x: compute_prdc(x, x, 0), "compute_prdc: k must be an integer in 1..9"),
        (lambda x: precision_recall(x, x, k=[3]), "precision_recall: k must be one integer, got"),
        (lambda x: realism(x[:1], x), "realism: real must have at least 2 rows"),
        (lambda x: realism(x, x, k=10), "realism: k must be an integer in 1..9, the other rows of real, got 10"),
        (lambda x: rarity(x, x, k=0), "rarity: k must be an integer in 1..9"),
        (lambda x: rarity(x, x, ties=""), "rarity: ties must be one of strict, closed"),
    ],
)
def test_options_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 31))
