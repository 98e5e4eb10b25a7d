"""The Frechet distance against closed forms, SciPy's matrix root, 40 digits, and statistics taken in pieces.

Seen to fail: with the eigenvalues of the product of the covariances in place of singular values; with rounding kept as
the eigenvalues of singular covariances; with n for n - 1; with batches not centred, joined with a wrong weight, or
merged without the difference of their means.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from generant.io import FormatError
from generant.metrics import GaussianStatistics, calculate_frechet_distance, frechet_distance


def sample(n, d, seed, shift=0.0, dtype=np.float32):
    """Correlated rows with scales over three decades."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) * np.logspace(0, -3, d))
    return (mixed + shift).astype(dtype)


def moments(x):
    x = x.astype(np.float64)
    return x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False))


def covariance(d, seed, condition=1e4):
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    s = (q * np.logspace(0, -np.log10(condition), d)) @ q.T
    return (s + s.T) / 2


# ---- values ----


def test_commuting_covariances_have_a_closed_form():
    """One set of eigenvectors: |mu1 - mu2|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    a, b, mu, nu = rng.random(30) + 0.1, rng.random(30) * 5, rng.standard_normal(30), rng.standard_normal(30)
    sigma, tau = ((q * v) @ q.T for v in (a, b))
    want = ((mu - nu) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance((mu, (sigma + sigma.T) / 2), (nu, (tau + tau.T) / 2)) == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_congruent_covariances_have_a_closed_form(condition):
    """S2 = C S1 C with C positive definite: sqrt(S1 S2) has the trace of C S1, and nothing commutes."""
    d = 200
    sigma, c = covariance(d, 22, condition), covariance(d, 23, 3.0)
    tau = c @ sigma @ c
    trace = np.trace(sigma + tau)
    got = frechet_distance((np.zeros(d), sigma), (np.zeros(d), (tau + tau.T) / 2))
    assert got == pytest.approx(trace - 2 * np.vdot(c, sigma), abs=1e-12 * trace)


def test_one_dimension_is_the_formula():
    x, y = sample(50, 1, 1), sample(70, 1, 2, 0.3)
    a, b = x.astype(np.float64), y.astype(np.float64)
    want = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize("d", [2, 17, 64])
def test_it_is_scipys_matrix_root(d):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = sample(400, d, 3), sample(300, d, 4, 0.1)
    (mu, sigma), (nu, tau) = moments(x), moments(y)
    want = ((mu - nu) ** 2).sum() + np.trace(sigma + tau - 2 * linalg.sqrtm(sigma @ tau).real)
    assert frechet_distance(x, y) == pytest.approx(want, rel=1e-8)
    assert frechet_distance((mu, sigma), (nu, tau)) == pytest.approx(frechet_distance(x, y), rel=1e-12)
    assert calculate_frechet_distance(mu, sigma, nu, tau) == frechet_distance((mu, sigma), (nu, tau))
    assert calculate_frechet_distance(mu, sigma, nu, tau, eps=1.0) == calculate_frechet_distance(mu, sigma, nu, tau)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
def test_it_keeps_twelve_digits_of_the_trace(condition):
    """Against 40 digits, where the root of a product keeps six."""
    mp = pytest.importorskip("mpmath").mp
    d = 8
    sigma, tau = covariance(d, 5, condition), covariance(d, 6, condition)
    with mp.workdps(40):
        product = mp.matrix(sigma.tolist()) * mp.matrix(tau.tolist())
        roots = sum(mp.sqrt(mp.re(v)) for v in mp.eig(product, left=False, right=False))
        want = float(mp.mpf(0) + sum(map(mp.mpf, np.diag(sigma).tolist() + np.diag(tau).tolist())) - 2 * roots)
    got = frechet_distance((np.zeros(d), sigma), (np.zeros(d), tau))
    assert got == pytest.approx(want, abs=1e-12 * np.trace(sigma + tau))


@pytest.mark.parametrize("n, d", [(500, 40), (40, 500), (200, 200)])
def test_a_sample_is_at_distance_0_from_itself(n, d):
    x = sample(n, d, 7, 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        trace = np.trace(moments(x)[1])
        assert frechet_distance(x, x) <= 1e-12 * trace
        assert frechet_distance(x, x[::-1]) <= 1e-12 * trace
        assert frechet_distance(GaussianStatistics(x), moments(x)) <= 1e-12 * trace


def test_fewer_rows_than_columns():
    """The n x m matrix of centred features has the singular values, without a covariance."""
    x, y, many = sample(20, 60, 8), sample(30, 60, 9, 0.1), sample(500, 60, 10)
    first = pytest.warns(RuntimeWarning, match="frechet_distance: real has 20 rows for 60 columns, so its cov")
    with first, pytest.warns(RuntimeWarning, match="fake has 30 rows"):
        got = frechet_distance(x, y)
    a, b = (v.astype(np.float64) - v.astype(np.float64).mean(axis=0) for v in (x, y))
    roots = np.linalg.svd(a @ b.T / np.sqrt(19 * 29), compute_uv=False).sum()
    shift = moments(x)[0] - moments(y)[0]
    want = shift @ shift + (a**2).sum() / 19 + (b**2).sum() / 29 - 2 * roots
    assert got == pytest.approx(want, rel=1e-12)
    with pytest.warns(RuntimeWarning, match="fake has 20 rows"):
        mixed = frechet_distance(many, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # covariances say nothing of how many rows they come from
        assert frechet_distance(moments(x), moments(y)) == pytest.approx(want, rel=1e-7)
        assert frechet_distance(moments(many), moments(x)) == pytest.approx(mixed, rel=1e-7)
    with pytest.warns(RuntimeWarning, match="real has 20 rows"):
        assert frechet_distance(GaussianStatistics(x), many) == pytest.approx(mixed, rel=1e-7)


def test_singular_covariances_do_not_add_their_rounding():
    """Orthogonal ranges: the product of the covariances is 0, of their roots too."""
    q = np.linalg.qr(np.random.default_rng(11).standard_normal((40, 40)))[0]
    sigma, tau = q[:, :20] @ q[:, :20].T, q[:, 20:] @ q[:, 20:].T
    zero = np.zeros(40)
    assert frechet_distance((zero, (sigma + sigma.T) / 2), (zero, (tau + tau.T) / 2)) == pytest.approx(40, rel=1e-13)
    assert frechet_distance((zero, np.zeros((40, 40))), (zero, np.eye(40))) == 40
    constant = np.ones((10, 3))
    assert frechet_distance(constant, constant) == 0


def test_it_does_not_move_with_the_data():
    x, y = (np.round(sample(300, 9, seed) * 1024) / 1024 for seed in (12, 13))
    near = frechet_distance(x, y)
    for shift in (1024.0, -(2.0**13)):
        assert frechet_distance(x + np.float32(shift), y + np.float32(shift)) == pytest.approx(near, rel=1e-12)


# ---- statistics ----


@pytest.mark.parametrize("d", [1, 3, 600])
def test_statistics_are_numpys(d):
    x = sample(700, d, 14, 100.0)
    got, (mean, cov) = GaussianStatistics(x), moments(x)
    assert got.n == 700 and got.mean.dtype == got.covariance.dtype == np.float64
    np.testing.assert_allclose(got.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(got.covariance, cov, rtol=1e-11, atol=1e-13 * cov.max())
    np.testing.assert_array_equal(got.covariance, got.covariance.T)


def test_statistics_in_batches_and_in_parts_are_those_of_the_whole():
    x = sample(5000, 40, 15)
    x[2500:] += 50  # batches that differ, where joining them matters
    whole, batches = GaussianStatistics(x), GaussianStatistics()
    for start in range(0, 5000, 7 * 64):
        assert batches.update(x[start : start + 7 * 64]) is batches
        batches.covariance  # noqa: B018  reading does not disturb
    parts = [GaussianStatistics(part) for part in np.split(x, [1, 17, 2500, 4000])]
    for part in parts[1:]:
        parts[0].merge(part)
    assert GaussianStatistics().merge(whole).n == whole.merge(GaussianStatistics()).n == 5000
    for other in (batches, parts[0], GaussianStatistics().merge(whole)):
        assert other.n == 5000
        np.testing.assert_allclose(other.mean, whole.mean, rtol=1e-13)
        np.testing.assert_allclose(other.covariance, whole.covariance, rtol=1e-12, atol=1e-13)
        assert frechet_distance(other, whole) <= 1e-12 * np.trace(whole.covariance)


@pytest.mark.parametrize("offset", [0, 1e4, 1e8])
def test_an_offset_costs_statistics_no_digits(offset):
    """Multiples of 1/64, which float64 holds at every one of these offsets."""
    x = np.round(np.random.default_rng(16).standard_normal((3000, 5)) * 64) / 64
    want = GaussianStatistics(x).covariance
    np.testing.assert_allclose(GaussianStatistics(x + offset).covariance, want, rtol=1e-11, atol=1e-13)


def test_statistics_are_saved_as_pytorch_fid_reads_them(tmp_path):
    x, y, path = sample(300, 6, 17), sample(200, 6, 18, 0.2), tmp_path / "new" / "real.npz"
    real = GaussianStatistics(x)
    real.save(path)
    with np.load(path) as file:
        assert set(file) == {"mu", "sigma", "n"} and file["n"] == 300
        np.testing.assert_array_equal(file["mu"], real.mean)
        np.testing.assert_array_equal(file["sigma"], real.covariance)
    first = path.read_bytes()
    real.save(path)
    assert path.read_bytes() == first and [p.name for p in path.parent.iterdir()] == ["real.npz"]
    loaded = GaussianStatistics.load(path)
    want = frechet_distance(x, y)
    assert frechet_distance(path, y) == frechet_distance(str(path), y) == frechet_distance(loaded, y) == want
    assert loaded.merge(GaussianStatistics(y)).n == 500
    np.testing.assert_allclose(loaded.covariance, moments(np.concatenate([x, y]))[1], rtol=1e-12, atol=1e-14)

    peer = tmp_path / "peer.npz"
    np.savez(peer, mu=moments(x)[0], sigma=moments(x)[1])
    assert frechet_distance(peer, y) == pytest.approx(want, rel=1e-12)
    assert GaussianStatistics.load(peer).n is None
    with pytest.raises(ValueError, match="update: statistics from a file without n cannot be added to"):
        GaussianStatistics.load(peer).update(y)


# ---- arguments ----


def test_what_can_be_read_is_taken():
    x, y = (np.random.default_rng(seed).integers(0, 200, (60, 4)) for seed in (19, 20))
    want = frechet_distance(x.astype(np.float64), y.astype(np.float64))
    for a, b in ((x.tolist(), y), (x.astype("u1"), y.astype("f2")), (x[::-1], np.asfortranarray(y)), (tuple(x), y)):
        assert frechet_distance(a, b) == pytest.approx(want, rel=1e-12)
    assert calculate_frechet_distance(1.0, 4.0, 3.0, 9.0) == pytest.approx(5)


def test_bad_features_are_named():
    good = sample(10, 3, 21)
    bad = good.copy()
    bad[4, 1], bad[6, 2] = np.inf, -np.inf
    with pytest.raises(ValueError, match=r"frechet_distance: fake must be finite, but 2 rows are not \(first: row 4\)"):
        frechet_distance(good, bad)
    with pytest.raises(ValueError, match="real must have at least 2 rows and 1 column, got shape"):
        frechet_distance(good[:1], good)
    with pytest.raises(ValueError, match="equally many columns, but real has 3 and fake has 2"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(ValueError, match=r"real must have shape \(n, d\), got \(2, 5, 3\), flatten"):
        frechet_distance(good.reshape(2, 5, 3), good)
    with pytest.raises(TypeError, match="real must be an array of real numbers"):
        frechet_distance(good.astype(complex), good)
    with pytest.raises(ValueError, match="a covariance needs at least 2 rows, got 1"):
        frechet_distance(GaussianStatistics(good[:1]), good)
    with pytest.raises(ValueError, match="update: batch has 2 columns, the rows so far 3"):
        GaussianStatistics(good).update(good[:, :2])
    with pytest.raises(ValueError, match="merge: other has 2 columns, the rows so far 3"):
        GaussianStatistics(good).merge(GaussianStatistics(good[:, :2]))
    with pytest.raises(TypeError, match="merge: other must be GaussianStatistics, got ndarray"):
        GaussianStatistics(good).merge(good)
    with pytest.raises(ValueError, match="there is no mean of 0 rows"):
        GaussianStatistics().mean  # noqa: B018


@pytest.mark.parametrize(
    "sigma, message",
    [
        ([[1, 0.5], [0.4, 1]], "sigma of real must be symmetric, but differs from its transpose by 0.1"),
        ([[1, 2], [2, 1]], "sigma of real must be positive semidefinite, but has the eigenvalue -1 beside 3"),
        ([[1, 0, 0], [0, 1, 0]], r"sigma of real must have shape \(2, 2\), as mu of real has 2 entries, got \(2, 3\)"),
        ([[np.nan, 0], [0, 1]], r"sigma of real must be finite, but 1 row is not \(first: row 0\)"),
    ],
)
def test_bad_covariances_are_named(sigma, message):
    good = np.zeros(2), np.eye(2)
    with pytest.raises(ValueError, match="frechet_distance: " + message):
        frechet_distance((np.zeros(2), np.array(sigma, float)), good)
    with pytest.raises(ValueError, match="calculate_frechet_distance: sigma2 must"):
        calculate_frechet_distance(*good, np.zeros(2), np.array(sigma, float))
    nearly = np.eye(2) - 1e-9 * np.array([[0, 1], [0, 0]])  # rounding is neither asymmetric nor indefinite
    assert frechet_distance((np.zeros(2), nearly), good) < 1e-8
    assert frechet_distance((np.zeros(2), np.diag([1, -1e-9])), good) == pytest.approx(1, abs=1e-8)


def test_files_that_are_something_else_are_refused(tmp_path):
    good = np.zeros(2), np.eye(2)
    with pytest.raises(FileNotFoundError, match=r"missing\.npz does not exist"):
        frechet_distance(tmp_path / "missing.npz", good)
    (tmp_path / "text.npz").write_text("mu sigma")
    np.savez(tmp_path / "other.npz", mu=good[0], s=good[1])
    np.save(tmp_path / "one.npy", good[1])
    np.savez(tmp_path / "bent.npz", mu=good[0], sigma=np.ones((2, 3)))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], object), sigma=good[1])
    for name, message in {
        "text.npz": "is not a readable .npz file",
        "other.npz": "must hold mu and sigma, but it holds mu, s",
        "one.npy": "must hold mu and sigma, but it holds one array",
        "bent.npz": "covariance must have shape",
        "pickled.npz": "is not a readable .npz file",
    }.items():
        with pytest.raises(FormatError, match=message):
            frechet_distance(tmp_path / name, good)
    cut = (tmp_path / "other.npz").read_bytes()[:-30]
    (tmp_path / "cut.npz").write_bytes(cut)
    with pytest.raises(FormatError, match=r"is not a readable \.npz file"):
        frechet_distance(tmp_path / "cut.npz", good)
