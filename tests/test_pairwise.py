"""Kernel sums where the generated tests do not look: exactness, symmetry, slabs and phases, bad values, threads.

Seen to fail, in the kernel: near pairs of the expanded form left as they are; task sums kept in float32; only the last
slab of a tile kept; column sums not cleared between phases; a panel dropped between two parts of a phase; the diagonal
counted in the triangle; an exponential squared once too often; what rounding a side, the constant q or a factor of the
polynomial loses left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import generant
from generant.autograd import vjp
from generant.ops import kernel_row_sums, kernel_sum

DIMS = [1, 2, 3, 24, 25, 64, 131, 300]


def points(n, d, seed=0, dtype=np.float32, offset=0.0):
    return (np.random.default_rng(seed).standard_normal((n, d)) + offset).astype(dtype)


def matrix(
    x, y=None, *, kernel="rbf", bandwidth=(1.0,), degree=3, gamma=None, coef0=1.0, alpha=1.0, center=0.0,
    exclude_diagonal=False,
):  # fmt: skip
    """k(x_i, y_j) - center in float64 and by differences; 0 where it is left out."""
    a, b = x.astype(np.float64), (x if y is None else y).astype(np.float64)
    gamma = 1 / x.shape[1] if gamma is None else gamma
    if kernel in ("polynomial", "exp_dot"):
        k = (gamma * (a @ b.T) + coef0) ** degree if kernel == "polynomial" else np.exp(gamma * (a @ b.T))
    else:
        r = cdist(a, b, "cityblock" if kernel == "laplacian" else "euclidean")
        one = {
            "rbf": lambda h: np.exp(-(r**2) / (2 * h * h)),
            "laplace": lambda h: np.exp(-r / h),
            "laplacian": lambda h: np.exp(-r / h),
            "energy": lambda h: -r,
            "rational_quadratic": lambda h: (1 + r**2 / (2 * alpha * h * h)) ** -alpha,
            "matern32": lambda h: (1 + np.sqrt(3) * r / h) * np.exp(-np.sqrt(3) * r / h),
            "matern52": lambda h: (1 + np.sqrt(5) * r / h + 5 * r**2 / (3 * h * h)) * np.exp(-np.sqrt(5) * r / h),
        }[kernel]
        k = sum(one(h) for h in (bandwidth if isinstance(bandwidth, tuple) else (bandwidth,)))
    k = k - center
    if exclude_diagonal:
        np.fill_diagonal(k, 0)
    return k


def direct_sum(x, y=None, u=None, v=None, **attrs):
    """kernel_sum by the matrix."""
    v = u if y is None else v
    u = np.ones(len(x)) if u is None else u.astype(np.float64)
    v = np.ones(len(x if y is None else y)) if v is None else v.astype(np.float64)
    return u @ matrix(x, y, **attrs) @ v


KERNELS = [
    dict(bandwidth=2.0),
    dict(bandwidth=9.0, center=0.5),
    dict(bandwidth=(1.0, 2.0, 4.0, 8.0, 16.0)),
    dict(bandwidth=(3.0, 5.0, 3.0)),
    dict(kernel="polynomial", center=1.0),
    dict(kernel="polynomial", degree=2, gamma=0.02, coef0=0.0),
    dict(kernel="polynomial", degree=1, gamma=1.0),
    dict(kernel="polynomial", degree=7, coef0=0.1, gamma=0.05),
    dict(kernel="polynomial", degree=40, coef0=0.5, gamma=1e-4),
    dict(kernel="laplace", bandwidth=5.0),
    dict(kernel="laplace", bandwidth=(4.0, 8.0), center=0.3),
    dict(kernel="laplacian", bandwidth=(30.0, 40.0)),
    dict(kernel="energy", center=-3.0),
    dict(kernel="rational_quadratic", bandwidth=4.0, alpha=0.5),
    dict(kernel="rational_quadratic", bandwidth=(4.0, 5.0), alpha=1.7),
    dict(kernel="matern32", bandwidth=7.0),
    dict(kernel="matern52", bandwidth=(7.0, 9.0)),
    dict(kernel="exp_dot"),
]
RADIAL = [k for k in KERNELS if k.get("kernel", "rbf") not in ("polynomial", "exp_dot")]


def named(attrs):
    return "-".join([attrs.get("kernel", "rbf"), *[f"{k}{v}" for k, v in attrs.items() if k != "kernel"]])


every_kernel = pytest.mark.parametrize("attrs", KERNELS, ids=named)
every_radial = pytest.mark.parametrize("attrs", RADIAL, ids=named)


# ---- values ----


@every_kernel
@pytest.mark.parametrize("d", DIMS)
def test_kernel_sum_is_the_sum_over_the_matrix(d, attrs):
    x, y = points(101, d, 10), points(230, d, 11)
    u, v = np.random.default_rng(12).random((2, 230)).astype(np.float32)
    for args in ((x, y), (x, y, u[:101], v), (x, y, u[:101]), (x, y, None, v), (y,), (y, None, u)):
        size = abs(matrix(*args[:2], **{**attrs, "center": 0.0})).sum()
        np.testing.assert_allclose(kernel_sum(*args, **attrs), direct_sum(*args, **attrs), atol=1e-6 * size + 1e-9)
    wide = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(kernel_sum(*wide, **attrs), direct_sum(*wide, **attrs), rtol=1e-11, atol=1e-9)


@every_kernel
@pytest.mark.parametrize("n", [1, 11, 12, 13, 96, 97, 200])
@pytest.mark.parametrize("d", [2, 30, 130])
def test_kernel_sum_without_y_is_x_with_itself(n, d, attrs):
    """Half the pairs, twice: the triangle misses nothing, with and without the diagonal."""
    x = points(n, d, 13).astype(np.float64)
    u = np.random.default_rng(14).random(n)
    for w in (None, u):
        both = kernel_sum(x, x, w, w, **attrs)
        np.testing.assert_allclose(kernel_sum(x, None, w, **attrs), both, rtol=1e-12, atol=1e-9)
        diagonal = (np.diag(matrix(x, **attrs)) * (1 if w is None else w * w)).sum()
        off = kernel_sum(x, None, w, exclude_diagonal=True, **attrs)
        np.testing.assert_allclose(off, both - diagonal, rtol=1e-10, atol=1e-8 * abs(both) / n)


@every_kernel
@pytest.mark.parametrize("n, d", [(1, 1), (12, 2), (97, 2), (97, 30), (200, 130)])
def test_row_sums_are_those_of_the_matrix(n, d, attrs):
    for dtype, rtol in ((np.float32, 2e-6), (np.float64, 1e-11)):
        x, y = points(n, d, 15, dtype), points(71, d, 16, dtype)
        for given, more in (((x, y), {}), ((x, None), {}), ((x, None), dict(exclude_diagonal=True))):
            k, size = matrix(*given, **attrs, **more), abs(matrix(*given, **{**attrs, "center": 0.0})).max()
            rows, columns, squares = kernel_row_sums(*given, **attrs, **more)
            np.testing.assert_allclose(rows, k.sum(axis=1), rtol, rtol * size * k.shape[1] ** 0.5)
            np.testing.assert_allclose(columns, k.sum(axis=0), rtol, rtol * size * k.shape[0] ** 0.5)
            np.testing.assert_allclose(squares, (k**2).sum(), rtol, rtol * size**2)
            np.testing.assert_allclose(rows.sum(), kernel_sum(*given, **attrs, **more), 1e-6, rtol * size * n)
            if given[1] is None:
                np.testing.assert_array_equal(rows, columns)


@pytest.mark.parametrize(
    "attrs", [dict(bandwidth=60.0), dict(kernel="polynomial"), dict(kernel="laplacian", bandwidth=2000.0)], ids=named
)
def test_long_rows_in_several_phases(attrs):
    """d = 4000: coordinates slab by slab, rows of y a few hundred at a time, blocks of x split over tasks."""
    x, y = points(100, 4000, 17), points(600, 4000, 18)
    u, v = np.random.default_rng(19).random((2, 600)).astype(np.float32)
    for given, wx in (((x, y), u[:100]), ((y, None), v)):
        k = matrix(*given, **attrs)
        np.testing.assert_allclose(kernel_sum(*given, **attrs), k.sum(), rtol=1e-6)
        weighted = kernel_sum(*given, wx, v if given[1] is not None else None, **attrs)
        np.testing.assert_allclose(weighted, wx.astype(float) @ k @ v.astype(float), rtol=1e-6)
        rows, columns, squares = kernel_row_sums(*given, **attrs)
        np.testing.assert_allclose(rows, k.sum(axis=1), rtol=3e-6)
        np.testing.assert_allclose(columns, k.sum(axis=0), rtol=3e-6)
        np.testing.assert_allclose(squares, (k**2).sum(), rtol=1e-6)


def test_row_sums_in_many_groups():
    """13,000 rows are more blocks than column sums are kept for, and their columns come in two phases."""
    x = np.random.default_rng(20).integers(0, 2, (13000, 1)).astype(np.float32)
    ones = float(x.sum())
    far = np.exp(-0.5)
    rows, columns, squares = kernel_row_sums(x)
    want = np.where(x[:, 0] == 1, ones + (13000 - ones) * far, 13000 - ones + ones * far)
    np.testing.assert_allclose(rows, want, rtol=1e-6)
    np.testing.assert_array_equal(rows, columns)
    zeros = 13000 - ones
    np.testing.assert_allclose(squares, ones**2 + zeros**2 + 2 * ones * zeros * far**2, rtol=1e-6)
    np.testing.assert_allclose(kernel_row_sums(x, x)[0], want, rtol=1e-6)
    np.testing.assert_allclose(kernel_row_sums(x, x)[1], want, rtol=1e-6)


def test_one_pair_is_the_kernel():
    x, y, c = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]), np.sqrt(3.0)
    for dtype, rtol in ((np.float32, 3e-7), (np.float64, 3e-14)):
        for attrs, want in (
            (dict(bandwidth=5.0), np.exp(-0.5)),
            (dict(bandwidth=(5.0, 2.5)), np.exp(-0.5) + np.exp(-2.0)),
            (dict(kernel="laplace", bandwidth=5.0), np.exp(-1.0)),
            (dict(kernel="laplacian", bandwidth=7.0), np.exp(-1.0)),
            (dict(kernel="energy"), -5.0),
            (dict(kernel="rational_quadratic", bandwidth=5.0), 1 / 1.5),
            (dict(kernel="rational_quadratic", bandwidth=5.0, alpha=0.5), 2**-0.5),
            (dict(kernel="rational_quadratic", bandwidth=5.0, alpha=300.0), (1 + 1 / 600) ** -300.0),
            (dict(kernel="matern32", bandwidth=5.0), (1 + c) * np.exp(-c)),
            (dict(kernel="matern52", bandwidth=5.0), (1 + 5**0.5 + 5 / 3) * np.exp(-(5**0.5))),
            (dict(kernel="polynomial", degree=5, coef0=2.0), 32.0),
            (dict(kernel="exp_dot"), 1.0),
        ):
            got = kernel_sum(x.astype(dtype), y.astype(dtype), **attrs)
            np.testing.assert_allclose(got, want, rtol=4 * rtol if attrs.get("kernel") == "polynomial" else rtol)
    assert kernel_sum(np.array([[3.0]]), np.array([[3.0]]), bandwidth=0.1) == 1
    assert kernel_sum(np.array([[3.0]]), exclude_diagonal=True) == 0
    assert kernel_sum(np.float32([[1, 2]]), np.float32([[3, 4]]), kernel="polynomial", gamma=1.0, degree=2) == 144


def test_exponentials_overflow_to_infinity_and_underflow_to_zero():
    for dtype, t, rtol in ((np.float32, 88.0, 1e-5), (np.float64, 709.0, 1e-12)):
        one = np.ones((1, 1), dtype)
        assert kernel_sum(one, one, kernel="exp_dot", gamma=800.0) == np.inf
        assert kernel_sum(one, one, kernel="exp_dot", gamma=-800.0) == 0
        assert kernel_sum(one, -one, bandwidth=0.01) == 0
        np.testing.assert_allclose(kernel_sum(one, one, kernel="exp_dot", gamma=t), np.exp(t), rtol=rtol)


# ---- digits ----


@every_radial
@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("offset", [10, 100, 1000])
def test_radial_sums_keep_their_digits_far_from_the_origin(d, offset, attrs):
    x, y = points(300, d, 15, offset=offset), points(200, d, 16, offset=offset)
    np.testing.assert_allclose(kernel_sum(x, y, **attrs), direct_sum(x, y, **attrs), rtol=3e-6)


@every_radial
def test_sums_do_not_move_with_a_grid_or_with_empty_coordinates(attrs):
    grid = np.random.default_rng(21).integers(0, 4, (150, 7)).astype(np.float32)
    once = kernel_sum(grid, **attrs)
    assert kernel_sum(grid + 8192, **attrs) == once
    assert kernel_sum(np.pad(grid, ((0, 0), (0, 9))), **attrs) == once
    padded = np.pad(grid, ((0, 0), (0, 40)))
    for same in (padded, padded + np.float32(8192)):  # here inner products come in, and near pairs measured again
        np.testing.assert_allclose(kernel_sum(same, **attrs), once, rtol=1e-6)


@every_radial
@pytest.mark.parametrize("d", [2, 64, 300])
def test_equal_points_have_the_value_at_zero(d, attrs):
    x = np.repeat(points(1, d, 22, offset=50), 130, axis=0)
    plain = {**attrs, "center": 0.0}
    count = 0 if attrs.get("kernel") == "energy" else np.size(attrs["bandwidth"])
    assert kernel_sum(x, **plain) == 130 * 130 * count
    assert kernel_sum(x, x[:7], **plain) == 130 * 7 * count


@every_radial
def test_close_pairs_in_high_dimension(attrs):
    """Pairs at 1e-3 of their norm: without measuring them again the value is noise."""
    x = points(50, 64, 17)
    y = x + np.float32(1e-3) * points(50, 64, 18)
    narrow = {k: v for k, v in attrs.items() if k != "center"} | dict(bandwidth=0.01)
    np.testing.assert_allclose(kernel_sum(x, y, **narrow), direct_sum(x, y, **narrow), rtol=1e-6)


def test_sum_of_many_equal_values_does_not_drift():
    """2e7 ones: a float32 accumulator would stop near 1.7e7."""
    assert kernel_sum(np.zeros((4000, 1), "f"), np.zeros((5000, 1), "f")) == 2e7
    assert (kernel_row_sums(np.zeros((4000, 1), "f"), np.zeros((5000, 1), "f"))[1] == 4000).all()


def kid(total, x, y):
    """The unbiased MMD^2 of the cubic kernel."""
    n, m = len(x), len(y)
    within = total(x, None) / (n * (n - 1)) + total(y, None) / (m * (m - 1))
    return within - 2 * total(x, y) / (n * m)


@pytest.mark.parametrize("n, d", [(500, 2048), (1000, 512), (1000, 2048)])
def test_kid_keeps_its_digits(n, d):
    """Features like those of Inception: not negative, kernel values around 1.5 that differ in the second digit."""
    rng = np.random.default_rng(23)
    x, y = (np.maximum(0.4 * rng.standard_normal((n, d)) + 0.35, 0).astype(np.float32) for _ in range(2))
    attrs = dict(kernel="polynomial")
    exact = kid(lambda a, b: direct_sum(a, b, exclude_diagonal=b is None, **attrs), x, y)
    mean = direct_sum(x, y, **attrs) / n**2
    ours = kid(lambda a, b: kernel_sum(a, b, exclude_diagonal=b is None, **attrs), x, y)
    rows = kid(lambda a, b: kernel_row_sums(a, b, exclude_diagonal=b is None, **attrs)[0].sum(), x, y)
    assert abs(ours - exact) < 2e-10 * mean
    assert abs(rows - exact) < 2e-10 * mean


def test_kid_of_concentrated_features():
    """Values around 3.3 that differ in the fifth digit."""
    rng = np.random.default_rng(19)
    x, y = ((rng.standard_normal((500, 64)) * 1e-4 + 0.7).astype(np.float32) for _ in range(2))
    attrs = dict(kernel="polynomial", center=float((0.7**2 + 1) ** 3))
    exact = kid(lambda a, b: direct_sum(a, b, exclude_diagonal=b is None, **attrs), x, y)
    ours = kid(lambda a, b: kernel_sum(a, b, exclude_diagonal=b is None, **attrs), x, y)
    assert abs(ours - exact) < 1e-12
    np.testing.assert_allclose(kernel_sum(x.astype(float), **attrs), direct_sum(x, **attrs), rtol=1e-6)


@pytest.mark.parametrize("kernel, limit", [("polynomial", 2e-9), ("energy", 5e-9)])
def test_what_a_row_shares_with_all_its_pairs_is_not_rounded(kernel, limit):
    """An error of |x|^2 or <x, mu> is in every pair of the row: 20,000 of them would not average it out."""
    rng = np.random.default_rng(33)
    x, y = (np.maximum(0.4 * rng.standard_normal((n, 64)) + 0.35, 0).astype(np.float32) for n in (50, 20000))
    k = matrix(x, y, kernel=kernel)
    rows = kernel_row_sums(x, y, kernel=kernel, center=k.mean())[0]
    assert abs(rows - (k - k.mean()).sum(axis=1)).max() < limit * 20000 * abs(k.mean())


@pytest.mark.parametrize("degree, apart, limit", [(3, 0.5, 2e-9), (4, 1.0, 3e-6)])
def test_polynomials_of_sets_that_lie_apart(degree, apart, limit):
    """(q + t)^degree with t far from 0 on average: rounding the factors of t and t^2 would be an error of the mean."""
    x, y = points(500, 64, 34, offset=apart), points(500, 64, 35, offset=-apart)
    attrs = dict(kernel="polynomial", degree=degree)
    k = matrix(x, y, **attrs)
    if generant.show_config()["ISA"].startswith("base"):  # no fma: the correction is rounded away
        limit *= 20
    assert abs(kernel_sum(x, y, **attrs) - k.sum()) < limit * abs(k).sum()


# ---- gradients where an argument is absent ----


@pytest.mark.parametrize(
    "attrs",
    [dict(bandwidth=(2.0, 3.0)), dict(kernel="energy", center=-2.0), dict(kernel="polynomial", center=1.3)],
    ids=named,
)
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_gradient_of_x_with_itself(attrs, exclude, weights):
    x, w = points(9, 3, 24, np.float64), np.random.default_rng(25).random(9)
    attrs = dict(attrs, exclude_diagonal=exclude)
    given = (x, w) if weights else (x,)

    def total(x, w=None):
        return kernel_sum(x, None, w, **attrs)

    gradients = vjp(total, *given)[1](np.float64(1.0))
    for i, gradient in enumerate(gradients):
        step = points(9, 3, 26, np.float64) if i == 0 else points(1, 9, 27, np.float64)[0]
        h = 1e-5
        moved = [total(*[a + s * h * step if j == i else a for j, a in enumerate(given)]) for s in (1, -1)]
        np.testing.assert_allclose((gradient * step).sum(), (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("with_u, with_v", [(False, True), (True, False), (False, False)])
def test_gradient_with_some_weights(with_u, with_v):
    x, y = points(6, 2, 28, np.float64), points(5, 2, 29, np.float64)
    u, v = np.random.default_rng(30).random((2, 6))
    given = (x, y, u if with_u else None, v[:5] if with_v else None)
    made = vjp(lambda *a: kernel_sum(*a, center=0.4, bandwidth=1.5), *given)[1](np.float64(1.0))
    for i, gradient in enumerate(made):
        if given[i] is None:
            continue
        step, h = np.random.default_rng(31).standard_normal(given[i].shape), 1e-5
        moved = [
            kernel_sum(*[a + s * h * step if j == i else a for j, a in enumerate(given)], center=0.4, bandwidth=1.5)
            for s in (1, -1)
        ]
        np.testing.assert_allclose((gradient * step).sum(), (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-7)


# ---- bad input ----


@every_kernel
@pytest.mark.parametrize("d", [2, 40, 140])
@pytest.mark.filterwarnings("ignore:.*encountered")
def test_nan_propagates_through_sums(d, attrs):
    x, y = points(30, d), points(40, d, 1)
    y[39, d - 1] = np.nan
    assert np.isnan(kernel_sum(x, y, **attrs))
    assert np.isnan(kernel_sum(y, **attrs))
    rows, columns, squares = kernel_row_sums(x, y, **attrs)
    assert np.isnan(rows).all() and np.isnan(columns[39]) and np.isnan(squares)
    if attrs.get("kernel") != "polynomial":  # whose common mean is NaN in that coordinate only
        assert np.isfinite(columns[:39]).all()


@every_kernel
@pytest.mark.parametrize("n, m", [(0, 5), (5, 0), (0, 0)])
def test_no_rows_sum_to_nothing(n, m, attrs):
    x, y = points(n, 3), points(m, 3)
    assert kernel_sum(x, y, **attrs) == 0
    rows, columns, squares = kernel_row_sums(x, y, **attrs)
    assert rows.shape == (n,) and columns.shape == (m,) and squares == 0
    assert not rows.any() and not columns.any()
    if n == 0:
        assert kernel_sum(x, exclude_diagonal=True, **attrs) == 0


@pytest.mark.parametrize(
    "args, attrs, message",
    [
        ((points(3, 2), points(4, 2)), dict(exclude_diagonal=True), "exclude_diagonal=True needs y=None"),
        ((points(3, 2), None, None, np.ones(3, "f")), dict(), "y_weights needs y"),
        ((points(3, 2),), dict(degree=0, kernel="polynomial"), "degree must be at least 1, got 0"),
        ((points(3, 2),), dict(bandwidth=0.0), "bandwidth must be positive"),
        ((points(3, 2),), dict(bandwidth=(1.0, -2.0)), "bandwidth must be positive"),
        ((points(3, 2),), dict(bandwidth=np.nan), "bandwidth must be positive"),
        ((points(3, 2),), dict(bandwidth=(1.0,) * 17), "1 to 16 of them, got 17"),
        ((points(3, 2),), dict(alpha=0.0, kernel="rational_quadratic"), "alpha must be positive"),
        ((points(3, 2),), dict(gamma=np.inf, kernel="exp_dot"), "gamma and coef0 must be finite"),
        ((points(3, 2),), dict(center=np.nan), "center must be finite, got nan"),
        ((points(3, 2),), dict(kernel="cosine"), "kernel must be one of rbf, laplace"),
        ((points(3, 2), points(4, 3)), dict(), "d is 2 but y has d = 3"),
    ],
)
def test_sums_refuse(args, attrs, message):
    for op in (kernel_sum, kernel_row_sums):
        if len(args) <= 2 or op is kernel_sum:
            with pytest.raises(ValueError, match=f"{op.__name__}: .*{message}"):
                op(*args, **attrs)


# ---- threads, instruction sets, memory ----


def everything(d, n=700, m=500):
    x, y = points(n, d, 30), points(m, d, 31)
    w = np.random.default_rng(32).random(n).astype(np.float32)
    made = []
    for attrs in (dict(bandwidth=3.0), dict(kernel="polynomial"), dict(kernel="energy"), dict(kernel="laplacian")):
        made += [kernel_sum(x, y, w, **attrs), kernel_sum(x, exclude_diagonal=True, **attrs)]
        made += [*kernel_row_sums(x, y, **attrs), *kernel_row_sums(x, **attrs)]
    return made


@pytest.mark.parametrize("d", [2, 64, 300])
def test_same_bits_for_any_number_of_threads(d, threads):
    threads(1)
    one = everything(d)
    for n in (2, 3, 8):
        threads(n)
        assert all(np.array_equal(a, b) for a, b in zip(one, everything(d), strict=True))


PROGRAM = """
import numpy as np
from generant.ops import kernel_sum
x = np.random.default_rng(0).standard_normal((400, {d})).astype(np.float32)
print(f"{{float(kernel_sum(x, bandwidth=3.0)):.5e}} {{float(kernel_sum(x, kernel='energy')):.5e}}")
"""


@pytest.mark.once
@pytest.mark.parametrize("d", [3, 40, 200])
def test_every_instruction_set_finds_the_same_sum(d):
    found = set()
    for isa in ("base", "avx2", "avx512"):
        run = [sys.executable, "-c", PROGRAM.format(d=d)]
        done = subprocess.run(run, env={**os.environ, "GENERANT_ISA": isa}, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_no_matrix_is_formed():
    """3000 x 3000 float32 would be 36 MB."""
    x = points(3000, 4)
    kernel_sum(x), kernel_row_sums(x)
    tracemalloc.start()
    try:
        kernel_sum(x), kernel_row_sums(x)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


@pytest.mark.once
def test_more_pairs_than_32_bits_can_count(native):
    """60,000 x 60,000 pairs, each of value 1: the count is exact, and takes less than 64 MB."""
    program = """
import resource, numpy as np
from generant.ops import kernel_row_sums, kernel_sum
x, y = np.zeros((60000, 1), "f"), np.zeros((60000, 1), "f")
kernel_sum(x[:1000], y[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert kernel_sum(x, y) == 3.6e9
assert kernel_sum(x, exclude_diagonal=True) == 60000 * 59999
rows, columns, squares = kernel_row_sums(x, y)
assert (rows == 60000).all() and (columns == 60000).all() and squares == 3.6e9
x[-1] = y[-1] = 40  # the last pairs are found
assert kernel_sum(x, y) == 59999.0**2 + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10  # KiB
