"""The feature likelihood divergence against the authors' algorithm on whole matrices, with torch's Adam and gradient.

Without torch, finite differences check the gradient that is written by hand, and sizes, limits and order the rest.

Seen to fail: with the distances to the mean shortened by 0.9 and not its square; without the floor of 1e-3; with ddof =
0; with constant columns divided by 0; with widths not bounded; with squared distances that cancel; with batches in the
order given, or all divided by the rows up to their end.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from generant.metrics import fld
from generant.metrics.fld import _add_gradient, _Centres


def sample(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def direct_nll(centres, log_variance, x):
    d = x.shape[1]
    square = ((x[:, None] - centres[None]) ** 2).sum(axis=2)
    log = -0.5 * square * np.exp(-log_variance) - 0.5 * d * (log_variance + np.log(2 * np.pi)) - np.log(len(centres))
    top = log.max(axis=1)
    return -(top + np.log(np.exp(log - top[:, None]).sum(axis=1))).mean() / d


def direct_fit(centres, x, batches, epochs):
    """The package's loop: torch's Adam at rate 0.5, a Gaussian at the mean beside the others."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waiting for others takes longer than the work
    try:
        return adam_fit(torch, centres, x, batches, epochs)
    finally:
        torch.set_num_threads(threads)


def adam_fit(torch, centres, x, batches, epochs):
    m, d = centres.shape
    square = torch.from_numpy(((x[:, None] - centres[None]) ** 2).sum(axis=2))
    to_mean = torch.from_numpy(0.81 * ((x - x.mean(axis=0)) ** 2).sum(axis=1))
    log_variance = ((square.min(dim=0).values + 1e-3) / d).log().requires_grad_()
    of_mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([log_variance, of_mean], lr=0.5)
    for rows in epochs * batches:
        adam.zero_grad()
        near = -0.5 * square[rows] / log_variance.exp() - d / 2 * log_variance - np.log(m)
        far = -0.5 * to_mean[rows] / of_mean.exp() - d / 2 * of_mean
        loss = -torch.logsumexp(torch.cat([near, far[:, None]], dim=1), dim=1).mean() / d
        loss.backward()
        adam.step()
        log_variance.data.clamp_(-40, 20)
    return log_variance.detach().numpy()


def direct(real, fake, train, seed, epochs=50, batch=10000):
    rng = np.random.default_rng(seed)
    mean, std = real.mean(axis=0), real.std(axis=0, ddof=1)
    real, fake, train = ((x - mean) / std for x in (real, fake, train))

    def batches(n):
        order = rng.permutation(n) if n > batch else np.arange(n)
        return [order[start : start + batch] for start in range(0, n, batch)]

    nll = direct_nll(fake, direct_fit(fake, train, batches(len(train)), epochs), real)
    order = rng.permutation(len(train))
    half = min(len(fake), len(train) // 2)
    centres, others = train[order[:half]], train[order[half:]]
    return 100 * (nll - direct_nll(centres, direct_fit(centres, others, batches(len(others)), epochs), real))


@pytest.mark.parametrize("dtype, rel", [(np.float64, 1e-9), (np.float32, 2e-3)])
@pytest.mark.parametrize("options", [dict(), dict(batch=40, epochs=20)])
def test_fld_is_the_authors_algorithm(options, dtype, rel):
    given = [x.astype(dtype) for x in (sample(70, 5, 0), sample(50, 5, 1, 0.3), sample(90, 5, 2))]
    want = direct(*(x.astype(np.float64) for x in given), 4, **options)
    assert fld(*given, random_state=4, **options) == pytest.approx(want, rel=rel)


def test_widths_are_bounded_as_theirs_are():
    """A copy's Gaussian narrows for as long as it is trained, down to a variance of exp(-40)."""
    real, train = sample(40, 3, 20), sample(50, 3, 21)
    want = direct(real, train[:30], train, 5, epochs=90)
    assert want > 1e15
    assert fld(real, train[:30], train, random_state=5, epochs=90) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squared_distances_are_exact_near_zero(dtype):
    x = (np.round(sample(60, 20, 22) * 64) / 64 + 1e4).astype(dtype)
    y = x[::2] + np.where(np.arange(30) % 3, 0, 2**-6)[:, None].astype(dtype)
    got = _Centres(y).squares(x)
    want = ((x[:, None].astype(np.float64) - y[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert (want == 0).sum() == (got == 0).sum() == 20


def test_the_pieces_do_not_matter(monkeypatch):
    real, fake, train = sample(70, 5, 0), sample(50, 5, 1, 0.3), sample(90, 5, 2)
    want = fld(real, fake, train)
    module = importlib.import_module("generant.metrics.fld")  # the function of that name hides it
    monkeypatch.setattr(module, "PIECE", 333)
    assert fld(real, fake, train) == pytest.approx(want, rel=1e-9)
    monkeypatch.setattr(module, "CACHE", 0)
    assert fld(real, fake, train) == pytest.approx(want, rel=1e-9)


def test_gradient():
    rng = np.random.default_rng(5)
    square, to_mean, parameters = rng.random((20, 7)) * 9, rng.random(20) * 9, rng.standard_normal(8)

    def value(v):
        near = -0.5 * square * np.exp(-v[:-1]) - 1.5 * v[:-1] - np.log(7)
        far = -0.5 * to_mean * np.exp(-v[-1]) - 1.5 * v[-1]
        return -np.log(np.exp(np.column_stack([near, far])).sum(axis=1)).sum()

    got = np.zeros(8)
    _add_gradient(got, square, to_mean, parameters, 3)
    step = 1e-6 * np.eye(8)
    want = [(value(parameters + s) - value(parameters - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_order_of_models():
    """Perfect < shifted < one mode missing, and copies worse than all; the gap tells copies from the rest."""
    real, train = sample(400, 4, 6), sample(400, 4, 7)
    perfect, shifted = fld(real, sample(200, 4, 8), train), fld(real, sample(200, 4, 9, 1.0), train)
    assert abs(perfect) < 4 and shifted > perfect + 5
    copies = train[:200] + 1e-4 * sample(200, 4, 10)
    assert fld(real, copies, train) > shifted
    assert fld(real, copies, train, of="gap") < -100 < -15 < fld(real, sample(200, 4, 8), train, of="gap")
    assert fld(real, copies, train, of="train") < fld(real, copies, train)


def test_exact_copies_and_equal_points_stay_finite():
    real, train = sample(60, 3, 11), sample(60, 3, 12)
    assert np.isfinite(fld(real, train, train)) and fld(real, train, train) > 1000
    assert np.isfinite(fld(real, np.zeros((20, 3)), train))
    constant = np.column_stack([sample(60, 2, 13), np.ones(60)])  # a column that never changes
    assert np.isfinite(fld(constant, constant[:30], constant))


def test_batches_are_seeded():
    real, fake, train = sample(50, 3, 14), sample(40, 3, 15), sample(120, 3, 16)
    one = fld(real, fake, train, batch=50, random_state=1)
    assert one == fld(real, fake, train, batch=50, random_state=1) != fld(real, fake, train, batch=50, random_state=2)
    assert one == pytest.approx(fld(real, fake, train, random_state=1), abs=10)
    gap = fld(real, fake, train, of="gap", random_state=1)  # draws no half
    assert gap == fld(real, fake, train, of="gap", random_state=2)
    assert gap == pytest.approx(fld(real, fake, train[::-1], of="gap"), rel=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: fld(x, x, x, of="all"), "fld: of must be one of test, train, gap, got 'all'"),
        (lambda x: fld(x, x, x[:3]), r"fld: train must have at least 4 rows, got shape \(3, 3\)"),
        (lambda x: fld(x[:1], x, x), "fld: real must have at least 2 rows"),
        (lambda x: fld(x, x[:0], x), "fld: fake must have at least 1 row"),
        (lambda x: fld(x, x, x[:, :2]), "fld: all arguments must have equally many columns"),
        (lambda x: fld(x, x, x, epochs=0), "fld: epochs must be a positive integer"),
        (lambda x: fld(x, x, x, batch=2.0), "fld: batch must be a positive integer"),
        (lambda x: fld(x, x * np.nan, x), r"fld: fake must be finite, but 10 rows are not \(first: row 0\)"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample(10, 3, 17))
