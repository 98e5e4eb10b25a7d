"""Discrepancies against their formulas on float64 matrices, scikit-learn, SciPy, closed forms and the spread of draws.

Seen to fail: with the cross term counted once; with the diagonal kept in the unbiased estimator, or in the cross term
of "u"; with kid drawing real rows first; with the standard error's covariance counted once, its last term left out, or
the square of a mean over tuples with equal rows; with cmmd unbiased; with the diagonal of the line's distances kept.
"""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from generant.metrics import cmmd, energy_distance, kid, median_distance, mmd2

PLAIN = os.environ.get("GENERANT_BACKEND", "native") != "native"  # slow, and rounds kernel values to the samples' type


def sample(n, d, seed, shift=0.0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal((n, d)) + shift).astype(dtype)


def distances(x, y):
    return np.stack([np.sqrt(((row - y.astype(np.float64)) ** 2).sum(axis=1)) for row in x.astype(np.float64)])


def discrepancy(k, real, fake, estimator):
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    kxx, kyy, kxy = k(real, real), k(fake, fake), k(real, fake)
    n, m = kxy.shape
    if estimator == "biased":
        return kxx.mean() + kyy.mean() - 2 * kxy.mean()
    across = kxy.mean() if estimator == "unbiased" else (kxy.sum() - np.trace(kxy)) / (n * (n - 1))
    return (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1)) - 2 * across


# ---- mmd2 ----

KERNELS = {
    "rbf": (dict(bandwidth=2.0), lambda a, b: np.exp(-(distances(a, b) ** 2) / 8)),
    "rbf, three": (
        dict(bandwidth=[1.0, 2.0, 4.0]),
        lambda a, b: sum(np.exp(-(distances(a, b) ** 2) / (2 * h * h)) for h in (1, 2, 4)),
    ),
    "rbf, uneven": (
        dict(bandwidth=(1.0, 3.0)), lambda a, b: sum(np.exp(-(distances(a, b) ** 2) / (2 * h * h)) for h in (1, 3)),
    ),
    "laplace": (dict(kernel="laplace", bandwidth=3.0), lambda a, b: np.exp(-distances(a, b) / 3)),
    "laplacian": (
        dict(kernel="laplacian", bandwidth=5.0), lambda a, b: np.exp(-np.abs(a[:, None] - b).sum(-1) / 5),
    ),
    "polynomial": (
        dict(kernel="polynomial", degree=2, gamma=0.3, coef0=0.5), lambda a, b: (0.3 * a @ b.T + 0.5) ** 2,
    ),
    "energy": (dict(kernel="energy"), lambda a, b: -distances(a, b)),
    "rational_quadratic": (
        dict(kernel="rational_quadratic", alpha=0.5, bandwidth=2.0),
        lambda a, b: (1 + distances(a, b) ** 2 / 4) ** -0.5,
    ),
    "matern32": (
        dict(kernel="matern32", bandwidth=2.0),
        lambda a, b: (1 + np.sqrt(3) * distances(a, b) / 2) * np.exp(-np.sqrt(3) * distances(a, b) / 2),
    ),
    "exp_dot": (dict(kernel="exp_dot"), lambda a, b: np.exp(a @ b.T / a.shape[1])),
}  # fmt: skip


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "u"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("d", [1, 3, 40])
def test_mmd2_is_its_formula(d, name, estimator):
    options, k = KERNELS[name]
    real, fake = sample(120, d, 0), sample(120 if estimator == "u" else 77, d, 1, 0.3)
    want = discrepancy(k, real, fake, estimator)
    scale = np.abs(k(real.astype(np.float64), real.astype(np.float64))).max()
    options = dict(options, estimator=estimator)
    assert mmd2(real, fake, **options) == pytest.approx(want, abs=1e-7 * scale)
    assert mmd2(real, fake, precision="exact", **options) == pytest.approx(want, abs=1e-14 * scale)
    wide = real.astype(np.float64), fake.astype(np.float64)
    assert mmd2(*wide, **options) == mmd2(real, fake, precision="exact", **options)


@pytest.mark.parametrize("name, function", [("rbf", "rbf_kernel"), ("laplacian", "laplacian_kernel")])
def test_mmd2_has_scikit_learns_kernels(name, function):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    real, fake = sample(100, 5, 2, dtype=np.float64), sample(90, 5, 3, 0.2, np.float64)
    gamma = 1 / (2 * 1.7**2) if name == "rbf" else 1 / 1.7
    want = discrepancy(lambda a, b: getattr(pairwise, function)(a, b, gamma=gamma), real, fake, "unbiased")
    assert mmd2(real, fake, kernel=name, bandwidth=1.7) == pytest.approx(want, rel=1e-10)


def test_mmd2_of_gaussians_has_a_closed_form():
    """N(0, 1) and N(a, 1): E k = h / sqrt(h^2 + 2) exp(-a^2 / (2 (h^2 + 2)))."""
    a, h, n = 1.0, 1.5, 3000 if PLAIN else 20000
    want = 2 * h / np.sqrt(h * h + 2) * (1 - np.exp(-(a**2) / (2 * (h * h + 2))))
    got = mmd2(sample(n, 1, 2), sample(n, 1, 3, a), bandwidth=h)
    assert got == pytest.approx(want, abs=4 * 0.5 / np.sqrt(n))


def test_mmd2_of_a_sample_with_itself():
    x = sample(200, 5, 4)
    assert 0 <= mmd2(x, x, estimator="biased") < 1e-8
    assert mmd2(x, x, estimator="u") == pytest.approx(0, abs=1e-8)  # the pairs (x_i, x_i) are left out everywhere
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
    assert median_distance(real, fake, size=None) == pytest.approx(want, rel=1e-2)  # the lower of the middle two
    assert mmd2(real, fake) == mmd2(real, fake, bandwidth=median_distance(real, fake))
    big = sample(3000, 3, 10), sample(3000, 3, 11)
    assert median_distance(*big, random_state=1) == median_distance(*big, random_state=1)
    assert median_distance(*big) == pytest.approx(np.sqrt(2 * 2.366), rel=0.05)  # chi^2_3 has median 2.366


# ---- kid ----


def direct_kid(real, fake, degree=3, gamma=None, coef0=1.0):
    gamma = 1 / real.shape[1] if gamma is None else gamma
    return discrepancy(lambda a, b: (gamma * (a @ b.T) + coef0) ** degree, real, fake, "unbiased")


@pytest.mark.parametrize("options", [dict(), dict(degree=2, gamma=0.5, coef0=0.0), dict(degree=4, gamma=0.1)])
def test_kid_is_its_formula(options):
    real, fake = sample(150, 16, 12), sample(90, 16, 13, 0.2)
    want = direct_kid(real, fake, **options)
    assert kid(real, fake, subsets=None, precision="exact", **options).mean == pytest.approx(want, rel=1e-11)
    assert kid(real, fake, subsets=None, **options).mean == pytest.approx(want, rel=1e-11)  # few pairs
    wide = real.astype(np.float64), fake.astype(np.float64)
    assert kid(*wide, subsets=None, **options) == kid(real, fake, subsets=None, precision="exact", **options)


def features(n, d, seed, spread, shift=0.0):
    """Like a network's: nonnegative, with a common mean that is large beside what rows differ by."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).random(d) * 0.8
    return np.maximum(base + spread * rng.standard_normal((n, d)) + shift, 0).astype(np.float32)


@pytest.mark.parametrize("spread, shift", [(0.001, 0.001), (0.4, 0.003)])
def test_kid_keeps_its_digits(spread, shift):
    """Kernel values near 1.8, a discrepancy of 1e-6 to 1e-5: rounding must not be relative to what the values share."""
    real, fake = features(500, 512, 14, spread), features(500, 512, 15, spread, shift)
    want = direct_kid(real, fake)
    mean_value = (real.mean(axis=0, dtype=float) @ fake.mean(axis=0, dtype=float) / 512 + 1) ** 3
    for score in (kid(real, fake, subsets=None), kid(real, fake, subsets=1, subset_size=500)):
        assert score.mean == pytest.approx(want, abs=2e-10 * mean_value)
    assert kid(real, fake, subsets=None, precision="exact").mean == pytest.approx(want, rel=1e-7)


@pytest.mark.skipif(PLAIN, reason="rounds kernel values to float32, slowly")
def test_kid_of_many_pairs_keeps_its_digits_in_float32():
    real, fake = features(1600, 512, 36, 0.4), features(1500, 512, 37, 0.4, 0.003)
    mean_value = (real.mean(axis=0, dtype=float) @ fake.mean(axis=0, dtype=float) / 512 + 1) ** 3
    for options, error in ((dict(subsets=None), 1e-9), (dict(subsets=10, subset_size=1000), 2e-10)):
        exact, quick = kid(real, fake, precision="exact", **options), kid(real, fake, **options)
        assert 0 < abs(quick.mean - exact.mean) < error * mean_value
        assert quick.std == pytest.approx(exact.std, rel=1e-4)


def test_kid_draws_what_torch_fidelity_draws():
    """Its loop: one RandomState, per subset first rows of the generated features, then of the real ones."""
    real, fake = sample(150, 8, 16), sample(190, 8, 17, 0.1)
    rng, values = np.random.RandomState(2020), []
    for _ in range(7):
        one = fake[rng.choice(190, 60, replace=False)]
        two = real[rng.choice(150, 60, replace=False)]
        values.append(direct_kid(one, two))
    mean, std = kid(real, fake, subsets=7, subset_size=60, precision="exact")
    assert (mean, std) == (pytest.approx(np.mean(values), rel=1e-11), pytest.approx(np.std(values), rel=1e-11))
    for state in (2020, np.random.RandomState(2020)):
        assert kid(real, fake, subsets=7, subset_size=60, precision="exact", random_state=state) == (mean, std)


def test_kid_subsets():
    real, fake = sample(300, 8, 18), sample(400, 8, 19, 0.1)
    options = dict(subsets=20, subset_size=100)
    mean, std = kid(real, fake, **options, random_state=3)
    assert (mean, std) == kid(real, fake, **options, random_state=3)
    assert (mean, std) != kid(real, fake, **options, random_state=4)
    assert kid(real, fake, **options, random_state=np.random.default_rng(5)).std > 0
    assert std > 0 and abs(mean - kid(real, fake, subsets=None).mean) < 5 * std / np.sqrt(20)
    every, none = kid(real[:100], fake[:100], subsets=2, subset_size=100)  # the whole sample: nothing to draw
    assert every == pytest.approx(kid(real[:100], fake[:100], subsets=None).mean, rel=1e-6) and none < 1e-8


def test_the_default_of_kid_is_the_published_protocol():
    real, fake = sample(1010, 2, 20), sample(1020, 2, 21, 0.05)
    if not PLAIN:
        assert kid(real, fake) == kid(real, fake, subsets=100, subset_size=1000, random_state=2020)
    with pytest.raises(ValueError, match="kid: subset_size must be at most 999, the rows there are, got 1000; subs"):
        kid(real[:999], fake)


@pytest.mark.parametrize(
    "n, m, shift, bounds", [(60, 60, 0.7, (0.93, 1.07)), (80, 30, 0.7, (0.93, 1.07)), (60, 40, 0.0, (0.95, 1.4))]
)
def test_the_standard_error_of_kid_is_the_spread_of_draws(n, m, shift, bounds):
    """Over 600 pairs of samples; for equal distributions, where negative parts count as 0, it may be too large."""
    rng, count = np.random.default_rng(22), 600
    draws = [kid(rng.standard_normal((n, 4)), rng.standard_normal((m, 4)) + shift, subsets=None) for _ in range(count)]
    spread, error = np.std([s.mean for s in draws]), np.sqrt(np.mean([s.std**2 for s in draws]))
    assert bounds[0] < error / spread < bounds[1]


def test_the_standard_error_agrees_with_sutherlands_estimator():
    """Sutherland et al. 2017, as published for n = m: first-order terms by sample moments. The two differ by O(1/n)."""
    real, fake = sample(400, 5, 23, dtype=np.float64), sample(400, 5, 24, 0.4, np.float64)
    n, k = 400, lambda a, b: (a @ b.T / 5 + 1) ** 3
    kxx, kyy, kxy = k(real, real), k(fake, fake), k(real, fake)
    h = kxx + kyy - kxy - kxy.T
    np.fill_diagonal(h, 0)
    rows = h.sum(axis=1)
    pair_mean = rows.sum() / (n * (n - 1))
    zeta1 = (rows @ rows - (h**2).sum()) / (n * (n - 1) * (n - 2)) - pair_mean**2
    zeta2 = (h**2).sum() / (n * (n - 1)) - pair_mean**2
    want = np.sqrt(4 * (n - 2) / (n * (n - 1)) * zeta1 + 2 / (n * (n - 1)) * zeta2)
    assert kid(real, fake, subsets=None).std == pytest.approx(want, rel=0.03)


def test_the_standard_error_is_made_of_means_over_different_rows():
    """Every product of expectations by enumerating tuples of different rows."""
    real, fake = sample(7, 2, 40, dtype=np.float64), sample(6, 2, 41, 1.5, np.float64)
    k = lambda a, b: (a @ b.T / 2 + 1) ** 3
    mean = lambda values: np.mean(list(values))
    pairs = lambda n, count: itertools.permutations(range(n), count)

    def within(kxx):
        n = len(kxx)
        square = mean(kxx[a, b] * kxx[c, d] for a, b, c, d in pairs(n, 4))
        return mean(kxx[a, b] * kxx[a, c] for a, b, c in pairs(n, 3)) - square, (kxx**2).sum() / (n * (n - 1)) - square

    def side(kxx, kxy):
        """Cov(E k(x, x'), E k(x, y))."""
        n, m = kxy.shape
        product = mean(kxx[a, b] * kxy[c, j] for a, b, c in pairs(n, 3) for j in range(m))
        return mean(kxx[a, b] * kxy[a, j] for a, b in pairs(n, 2) for j in range(m)) - product

    kxx, kyy, kxy = k(real, real), k(fake, fake), k(real, fake)
    np.fill_diagonal(kxx, 0), np.fill_diagonal(kyy, 0)
    (n, m), (x1, x2), (y1, y2) = kxy.shape, within(kxx), within(kyy)
    square = mean(kxy[a, i] * kxy[b, j] for a, b in pairs(n, 2) for i, j in pairs(m, 2))
    cross_x = mean(kxy[a, i] * kxy[a, j] for a in range(n) for i, j in pairs(m, 2)) - square
    cross_y = mean(kxy[a, i] * kxy[b, i] for a, b in pairs(n, 2) for i in range(m)) - square
    parts = [
        4 / n * (x1 + cross_x - 2 * side(kxx, kxy)),
        4 / m * (y1 + cross_y - 2 * side(kyy, kxy.T)),
        2 / (n * (n - 1)) * (x2 - 2 * x1),
        2 / (m * (m - 1)) * (y2 - 2 * y1),
        4 / (n * m) * ((kxy**2).mean() - square - cross_x - cross_y),
    ]
    assert min(parts) > 0
    assert kid(real, fake, subsets=None).std == pytest.approx(np.sqrt(sum(parts)), rel=1e-9)


def test_the_standard_error_needs_four_rows():
    x = sample(10, 3, 25)
    assert np.isnan(kid(x[:3], x, subsets=None).std) and np.isfinite(kid(x[:3], x, subsets=None).mean)
    assert np.isfinite(kid(x[:4], x, subsets=None).std)
    assert kid(x * 0, x * 0, subsets=None) == (0, 0)


# ---- cmmd ----


def test_cmmd_is_the_published_program():
    """1000 times the biased estimate at bandwidth 10, in float64."""
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    real, fake = sample(150, 64, 26), sample(110, 64, 27, 0.1)
    k = lambda a, b: np.exp(-(distances(a, b) ** 2) / 200)
    want = 1000 * discrepancy(k, unit(real.astype(np.float64)), unit(fake.astype(np.float64)), "biased")
    assert cmmd(real, fake, normalize=True) == pytest.approx(want, rel=1e-9)
    assert cmmd(unit(real), unit(fake)) == pytest.approx(want, rel=1e-6)
    assert cmmd(real * 3, fake * 5, normalize=True) == pytest.approx(want, rel=1e-6)
    assert cmmd(real, fake, normalize=True, precision="float32") == pytest.approx(want, abs=1e-4)
    assert cmmd(real, real) == pytest.approx(0, abs=1e-10)
    exact = dict(estimator="biased", precision="exact")
    assert cmmd(real, fake, bandwidth=3, scale=1) == mmd2(real, fake, bandwidth=3, **exact)


# ---- energy distance ----


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "u"])
@pytest.mark.parametrize("d", [1, 2, 30])
def test_energy_distance_is_its_formula(d, estimator):
    real, fake = sample(90, d, 28), sample(90 if estimator == "u" else 130, d, 29, 0.4)
    want = discrepancy(lambda a, b: -distances(a, b), real, fake, estimator)
    assert energy_distance(real, fake, estimator=estimator) == pytest.approx(want, abs=1e-6)
    assert energy_distance(real, fake, estimator=estimator, precision="exact") == pytest.approx(want, rel=1e-11)
    if estimator == "biased":
        assert energy_distance(real, fake, squared=False, precision="exact") == pytest.approx(np.sqrt(want), rel=1e-11)


def test_energy_distance_on_a_line_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    real, fake = sample(500, 1, 30), sample(300, 1, 31, 0.1)
    real[:50] = fake[:50]
    want = stats.energy_distance(real[:, 0], fake[:, 0])
    assert energy_distance(real, fake, squared=False) == pytest.approx(want, rel=1e-13)
    assert energy_distance(real, real) == 0
    far = real.astype(np.float64) + 1e6, fake.astype(np.float64) + 1e6
    assert energy_distance(*far, squared=False) == pytest.approx(want, rel=1e-8)


def test_energy_distance_of_gaussians_has_a_closed_form():
    """Of N(0, 1) and N(a, 1): distances are |N(a, 2)| across and |N(0, 2)|, of mean 2 / sqrt(pi), within."""
    from math import erf, exp, pi, sqrt

    a, n = 1.0, 40000
    folded = 2 * exp(-(a**2) / 4) / sqrt(pi) + a * erf(a / 2)  # E|x - y|, x - y ~ N(a, 2)
    want = 2 * folded - 2 * 2 / sqrt(pi)
    got = energy_distance(sample(n, 1, 32), sample(n, 1, 33, a), estimator="unbiased")
    assert got == pytest.approx(want, abs=4 * 2 / np.sqrt(n))


# ---- arguments ----

METRICS = {
    "mmd2": mmd2,
    "kid": lambda real, fake: kid(real, fake, subsets=None),
    "cmmd": lambda real, fake: cmmd(real, fake, bandwidth=5),
    "energy_distance": energy_distance,
    "median_distance": median_distance,
}


@pytest.mark.parametrize("name", METRICS)
def test_what_can_be_read_is_taken(name):
    metric = METRICS[name]
    real, fake = np.arange(60).reshape(20, 3) % 7, np.arange(90).reshape(30, 3) % 11
    want = metric(real.astype(np.float64), fake.astype(np.float64))
    frozen = real.astype(np.float32)
    frozen.flags.writeable = False
    for a, b in (
        (real.tolist(), fake.tolist()), (real.astype("f2"), fake), (real[::-1][::-1], np.asfortranarray(fake)),
        (frozen, fake.astype("u1")),
    ):  # fmt: skip
        np.testing.assert_allclose(metric(a, b), want, rtol=1e-5, atol=1e-6)


def test_kernels_by_their_other_names_and_parameters():
    x, y = sample(30, 3, 36), sample(25, 3, 37, 0.5)
    for one, other in (
        (dict(kernel="matern12", bandwidth=2.0), dict(kernel="laplace", bandwidth=2.0)),
        (dict(kernel="inverse_multiquadric"), dict(kernel="rational_quadratic", alpha=0.5)),
        (dict(kernel="dot"), dict(kernel="polynomial", degree=1, gamma=1.0, coef0=0.0)),
        (dict(gamma=0.125), dict(bandwidth=2.0)),
    ):
        assert mmd2(x, y, **one) == mmd2(x, y, **other)


@pytest.mark.parametrize("name", METRICS)
def test_bad_samples_are_named(name):
    metric, good = METRICS[name], sample(10, 3, 34)
    bad = good.copy()
    bad[4, 1], bad[7, 0] = np.inf, -np.inf
    with pytest.raises(ValueError, match=rf"{name}: fake must be finite, but 2 rows are not \(first: row 4\)"):
        metric(good, bad)
    with pytest.raises(ValueError, match=rf"{name}: real must have shape \(n, d\), got \(2, 5, 3\), flatten"):
        metric(good.reshape(2, 5, 3), good)
    with pytest.raises(ValueError, match=rf"{name}: all arguments must have equally many columns, but real has 3 and"):
        metric(good, good[:, :2])
    with pytest.raises(TypeError, match=rf"{name}: fake must be an array of real numbers"):
        metric(good, good.astype(complex))
    with pytest.raises(ValueError, match=rf"{name}: fake must have at least"):
        metric(good, good[:0])
    with pytest.raises(ValueError, match=rf"{name}: real is so large that its squares overflow float64"):
        metric(good.astype(float) * 1e200, good)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: mmd2(x, x, bandwidth=-1), "mmd2: bandwidth must be positive and finite"),
        (lambda x: mmd2(x, x, bandwidth=[1, 0]), "mmd2: bandwidth must be positive and finite"),
        (lambda x: mmd2(x, x, bandwidth=[1] * 17), "mmd2: bandwidth must be a number or 1 to 16 of them, got 17"),
        (lambda x: mmd2(x, x, bandwidth="mean"), "mmd2: bandwidth must be positive numbers or 'median', got 'mean'"),
        (lambda x: mmd2(x * 0, x * 0), "mmd2: the median distance is 0"),
        (lambda x: mmd2(x, x, kernel="gaussian"), "mmd2: kernel must be one of rbf, .*, got 'gaussian'"),
        (lambda x: mmd2(x, x, kernel="rational_quadratic", alpha=0), "mmd2: alpha must be positive and finite"),
        (lambda x: mmd2(x, x, estimator="v"), "mmd2: estimator must be one of unbiased, biased, u, got 'v'"),
        (lambda x: mmd2(x, x[:9], estimator="u"), "mmd2: estimator 'u' needs equally many rows, got 10 and 9"),
        (lambda x: mmd2(x, x[:1]), "mmd2: fake must have at least 2 rows"),
        (lambda x: mmd2(x, x, precision="double"), "mmd2: precision must be one of float32, exact, got 'double'"),
        (lambda x: mmd2(x, x, kernel="laplacian", gamma=1.0), "mmd2: gamma is for rbf"),
        (lambda x: mmd2(x.astype(float) * 1e60, x, kernel="polynomial"), "mmd2: kernel values of .* are not finite"),
        (lambda x: kid(x.astype(float) * 1e60, x, subsets=None), "kid: kernel values of these samples are not finite"),
        (lambda x: kid(x.astype(float) * 1e60, x, subset_size=5), "kid: kernel values of these samples are not finite"),
        (lambda x: kid(x, x, subsets=3), "kid: subset_size must be at most 10, the rows there are, got 1000"),
        (lambda x: kid(x, x, subsets=0), "kid: subsets must be a positive integer, got 0"),
        (lambda x: kid(x, x, subset_size=1), "kid: subset_size must be at least 2, got 1"),
        (lambda x: kid(x, x, degree=2.5), "kid: degree must be a positive integer, got 2.5"),
        (lambda x: cmmd(x * 0, x, normalize=True), r"cmmd: real has rows of zeros, .* \(first: row 0\)"),
        (lambda x: energy_distance(x, x, squared=False, estimator="u"), "energy_distance: squared=False needs"),
        (lambda x: energy_distance(x, x[:3], estimator="u"), "energy_distance: estimator 'u' needs equally many rows"),
    ],
)  # fmt: skip
def test_options_that_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 35))
