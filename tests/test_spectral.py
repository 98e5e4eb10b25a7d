"""The Vendi score against eigenvalues of the whole kernel matrix, and against what it is by construction.

Seen to fail: with the bandwidth of the squared kernel sqrt(2) wider, or n^2 as n, for q = 2; with eigenvalues that do
not sum to one; with rounding counted as eigenvalues.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant.metrics import vendi_score

ORDERS = [0, 0.5, 1, 2, 3.5, math.inf]


def direct(matrix, q):
    p = np.linalg.eigvalsh(matrix) / np.trace(matrix)
    p = p[p > 1e-12]
    if q == 1:
        return np.exp(-(p * np.log(p)).sum())
    return 1 / p.max() if q == math.inf else (p**q).sum() ** (1 / (1 - q))


def matrix(x, kernel, h=2.0):
    x = x.astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    square = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    return {
        "cosine": unit @ unit.T,
        "linear": x @ x.T,
        "rbf": np.exp(-square / (2 * h * h)),
        "polynomial": (unit @ unit.T / x.shape[1] + 1) ** 3,
    }[kernel]


@pytest.mark.parametrize(
    "kernel, q",
    [(k, q) for k in ("cosine", "linear") for q in ORDERS]
    + [(k, q) for k in ("rbf", "polynomial") for q in ORDERS[1:]],
)  # the eigenvalues of the last two have no gap above 0, for q = 0 to count
@pytest.mark.parametrize("n, d", [(60, 7), (20, 31)])  # through the dual, and not
def test_vendi_score_is_the_entropy_of_the_eigenvalues(n, d, kernel, q):
    x = np.random.default_rng(n).standard_normal((n, d)) + 0.5
    want = direct(matrix(x, kernel), q)
    assert vendi_score(x, q=q, kernel=kernel, bandwidth=2.0) == pytest.approx(want, rel=1e-8)
    single = x.astype(np.float32)
    want = direct(matrix(single, kernel), q)
    assert vendi_score(single, q=q, kernel=kernel, bandwidth=2.0) == pytest.approx(want, rel=1e-5)


def test_it_counts_different_rows():
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.repeat(np.eye(5), 3, axis=0)) == pytest.approx(5)
    assert vendi_score(np.ones((9, 3))) == pytest.approx(1)
    assert vendi_score(np.ones((1, 3)), kernel="rbf") == pytest.approx(1)
    groups = np.repeat(np.eye(3) * 100, [50, 30, 20], axis=0)
    p = np.array([0.5, 0.3, 0.2])
    for q in ORDERS:
        want = len(p) if q == 0 else direct(np.diag(p), q)
        assert vendi_score(groups, q=q) == pytest.approx(want)
        assert vendi_score(groups, q=q, kernel="rbf", bandwidth=1.0) == pytest.approx(want, rel=1e-6)
    assert vendi_score(groups, kernel="linear") == pytest.approx(vendi_score(groups))


def test_the_median_bandwidth_is_that_of_all_rows():
    x = np.random.default_rng(1).standard_normal((90, 4))
    square = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    h = np.median(np.sqrt(square[np.triu_indices(90, 1)]))
    assert vendi_score(x, kernel="rbf") == pytest.approx(direct(matrix(x, "rbf", h), 1), rel=1e-6)


def test_polynomial_is_dgm_evals_up_to_its_scale():
    """dgm-eval divides by n and not by the trace, whose share c = (1 + 1/d)^3 moves its entropy."""
    x = np.random.default_rng(2).standard_normal((40, 6))
    p = np.linalg.eigvalsh(matrix(x, "polynomial")) / 40
    p = p[p > 0]
    c = (1 + 1 / 6) ** 3
    theirs = np.exp(-(p * np.log(p)).sum())
    assert vendi_score(x, kernel="polynomial") ** c * c**-c == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: vendi_score(x, q=-1), "vendi_score: q must be a number of at least 0"),
        (lambda x: vendi_score(x, q=math.nan), "vendi_score: q must be a number of at least 0"),
        (lambda x: vendi_score(x, kernel="dot"), "kernel must be one of cosine, linear, rbf, polynomial, got 'dot'"),
        (lambda x: vendi_score(x * [[0.0], *[[1.0]] * 9]), r"x has rows of zeros.*\(first: row 0\)"),
        (lambda x: vendi_score(x * 0, kernel="linear"), "every row of x is zero"),
        (lambda x: vendi_score(x, kernel="rbf", bandwidth=0), "bandwidth must be a positive number or 'median', got 0"),
        (lambda x: vendi_score(x, kernel="rbf", bandwidth="mean"), "bandwidth must be a positive number or 'median'"),
        (lambda x: vendi_score(x * 0 + 1, kernel="rbf"), "the median distance is 0"),
        (lambda x: vendi_score(x, kernel="polynomial", gamma=-2.0), r"\(gamma \+ coef0\)\^degree must be positive"),
        (lambda x: vendi_score(x, kernel="polynomial", degree=0), "degree must be a positive integer, got 0"),
        (lambda x: vendi_score(x[:0]), "x must have at least 1 row"),
        (lambda x: vendi_score(np.where(x > 1, np.nan, x)), "x must be finite"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(3).standard_normal((10, 3)))
