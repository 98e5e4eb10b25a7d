"""Searches where the generated tests do not look: exactness, ties, copies, bad values, borders, gradients, memory.

Seen to fail: with a reach a ten-thousandth too short; with insertion blind to the index of equal distances; without the
slack between a score and a distance; with the sure side of a border on its other side; with rows whose norm overflows
taken as they are; with the row itself counted in the rank that its sample must reach; with 1 / scale^2 overflown;
with slopes not masked at distance 0.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from generant import ops
from generant.autograd import grad
from generant.ops import knn, nearest, radius_count, radius_min

DIMS = [1, 2, 16, 17, 24, 25, 64, 131, 300]
OFFSETS = [0, 10, 100, 1000]


def points(n, d, seed=0, dtype=np.float32, offset=0.0):
    return (np.random.default_rng(seed).standard_normal((n, d)) + offset).astype(dtype)


def squares(x, y):
    """Squared distances by float64 differences."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(all="ignore"):
        return np.stack([((row - b) ** 2).sum(axis=1) for row in a])


def brute_force(x, y=None, k=5):
    """Distances and indices by float64 differences; NaN last, ties to the lower index."""
    square = squares(x, x if y is None else y)
    order = np.argsort(square, axis=1, kind="stable")
    if y is None:
        order = order[order != np.arange(len(x))[:, None]].reshape(len(x), -1)
    order = order[:, :k]
    return np.sqrt(np.take_along_axis(square, order, 1)), order


def agrees(got, want, dtype=np.float32):
    """(values, indices) equal: indices exactly, values to a rounding."""
    np.testing.assert_array_equal(got[1], want[1])
    with np.errstate(all="ignore"):
        wanted = want[0].astype(dtype)
    np.testing.assert_allclose(got[0], wanted, rtol=1e-6 if dtype == np.float32 else 1e-13)


def clusters(n, d, seed=5):
    """Within a cluster all distances are below the resolution of |x|^2 in float32."""
    rng = np.random.default_rng(seed)
    return (1000 * rng.integers(-1, 2, (n, d)) * (np.arange(d) < 2) + 1e-3 * rng.standard_normal((n, d))).astype("f")


# ---- knn ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_knn_is_float64_brute_force(d, offset, dtype):
    """Same neighbours and distances within 1e-6, also where the expanded form has lost every digit."""
    x, y = points(150, d, 1, dtype, offset), points(717, d, 2, dtype, offset)
    agrees(knn(x, y, k=7), brute_force(x, y, k=7), dtype)
    agrees(knn(y, k=7), brute_force(y, k=7), dtype)


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 16, 17, 40, 128, 129, 300, 700])
@pytest.mark.parametrize("d", [2, 40])
def test_knn_for_any_k(k, d):
    x, y = points(60, d, 1), points(1400, d, 2)
    agrees(knn(x, y, k=k), brute_force(x, y, k=k))
    agrees(knn(y[:701], k=k), brute_force(y[:701], k=k))


@pytest.mark.parametrize("d", [3, 40])
def test_knn_of_many_rows_with_themselves(d):
    """Enough rows that a sample of them says beforehand how far to look."""
    x = points(6500, d, 3)
    distance, index = knn(x, k=4)
    some = np.arange(0, 6500, 61)
    square = squares(x[some], x)
    square[np.arange(len(some)), some] = np.inf
    order = np.argsort(square, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(index[some], order)
    np.testing.assert_allclose(distance[some], np.sqrt(np.take_along_axis(square, order, 1)), rtol=1e-6)


def test_pairs_of_rows_that_are_close_in_many_rows():
    """The row itself is no neighbour of the sample either, which holds every 16th row."""
    x = points(6500, 3, 3)
    x[16::32] = x[0::32][: len(x[16::32])] + np.float32(1e-3)
    some = np.arange(0, 6500, 16)
    square = squares(x[some], x)
    square[np.arange(len(some)), some] = np.inf
    np.testing.assert_array_equal(knn(x, k=2)[1][some], np.argsort(square, axis=1, kind="stable")[:, :2])


@pytest.mark.parametrize("d", DIMS)
def test_knn_of_copies_is_zero_and_ties_go_to_the_lower_index(d):
    x = points(200, d, 3, offset=100)
    x[150] = x[17] = x[20]
    distance, index = knn(x, k=2)
    for row, others in ((17, [20, 150]), (20, [17, 150]), (150, [17, 20])):
        assert distance[row].tolist() == [0, 0]
        assert index[row].tolist() == others
    distance, index = knn(x, x, k=3)
    assert (distance[:, 0] == 0).all()
    assert index[150].tolist() == [17, 20, 150]


@pytest.mark.parametrize("d", [1, 30])
def test_rows_that_are_all_equal(d):
    """Every pair ties at 0: the lowest indices win, without the row itself."""
    x = np.full((500, d), 0.1, np.float32)
    distance, index = knn(x, k=3)
    assert (distance == 0).all()
    assert index[0].tolist() == [1, 2, 3] and index[1].tolist() == [0, 2, 3] and (index[3:] == [0, 1, 2]).all()
    assert (nearest(x, x)[1] == 0).all() and (nearest(x, x)[0] == 0).all()
    none = np.zeros(500, "f")
    assert (radius_count(x, x, none)[0] == 0).all() and (radius_count(x, x, none, closed=True)[0] == 500).all()


@pytest.mark.parametrize("d", [2, 30])
def test_a_grid_has_many_ties_and_nothing_moves_with_it(d):
    grid = np.random.default_rng(4).integers(0, 3, (400, d)).astype(np.float32)
    radius = knn(grid, k=9)[0][:, -1]
    agrees(knn(grid, k=9), brute_force(grid, k=9))
    here, there = (everything(a, a[:170], radius) for a in (grid, grid + 8192))
    for a, b in zip(here, there, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("d", [2, 20, 64])
def test_coordinates_that_are_all_zero_change_nothing(d):
    x, y = points(300, d, 5), points(600, d, 6)
    wider = [np.concatenate([a, np.zeros((len(a), 37), "f")], axis=1) for a in (x, y)]
    radius = knn(y, k=5)[0][:, -1]
    for a, b in zip(everything(x, y, radius), everything(*wider, radius), strict=True):
        np.testing.assert_array_equal(a, b)


def test_tight_clusters_far_apart():
    x = clusters(900, 40)
    agrees(knn(x, k=5), brute_force(x, k=5))
    agrees(knn(x[:200], x, k=5), brute_force(x[:200], x, k=5))
    distance, order = brute_force(x[:200], x[200:], k=1)
    agrees(nearest(x[:200], x[200:]), (distance[:, 0], order[:, 0]))


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e25, -3e38])
@pytest.mark.filterwarnings("ignore:.*encountered")
def test_nan_comes_last_and_anything_is_survived(d, bad):
    x, y = points(60, d, 6), points(650, d, 7)
    x[7, 1] = y[11, 2] = y[12, 1] = bad
    for k in (3, 650):
        agrees(knn(x, y, k=k), brute_force(x, y, k=k))
    agrees(knn(y, k=3), brute_force(y, k=3))
    distance, order = brute_force(x, y, k=1)
    agrees(nearest(x, y), (distance[:, 0], order[:, 0]))
    for closed in (False, True):
        check_radius_count(x, y, np.full(650, 9, "f"), np.full(60, 1, "f"), closed)


@pytest.mark.parametrize("k, y", [(0, None), (10, None), (6, 5)])
def test_knn_refuses_more_neighbours_than_rows(k, y):
    with pytest.raises(ValueError, match=r"knn: k must be in 1\.\."):
        knn(points(10, 2), None if y is None else points(y, 2), k=k)


def test_rows_are_numbered_in_32_bits():
    with pytest.raises(ValueError, match=r"knn: y must have fewer than 2\^32 rows, got 4294967296"):
        knn(np.zeros((1, 0)), np.zeros((2**32, 0)), k=1)


def test_knn_of_all_rows_is_a_permutation():
    x, y = points(40, 5, 8), points(33, 5, 9)
    assert (np.sort(knn(x, y, k=33)[1], axis=1) == np.arange(33)).all()


def test_knn_is_scikit_learns_in_float64():
    sklearn = pytest.importorskip("sklearn.neighbors")
    x, y = points(300, 20, 8, np.float64), points(400, 20, 9, np.float64)
    distance, index = sklearn.NearestNeighbors(n_neighbors=6, algorithm="brute").fit(y).kneighbors(x)
    ours = knn(x, y, k=6)
    np.testing.assert_array_equal(ours[1], index)
    np.testing.assert_allclose(ours[0], distance, rtol=1e-12)


# ---- nearest ----


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("offset", OFFSETS)
def test_nearest_is_float64_brute_force(d, offset, dtype):
    x, y = points(150, d, 10, dtype, offset), points(1100, d, 11, dtype, offset)
    y[1000] = y[30] = x[40]
    scale = (np.random.default_rng(12).random(1100) + 0.5).astype(dtype)
    for s in (None, scale):
        square = squares(x, y) / (1 if s is None else s.astype(float) ** 2)
        agrees(nearest(x, y, s), (np.sqrt(square.min(1)), square.argmin(1)), dtype)
    assert nearest(x, y)[1][40] == 30 and nearest(x, y, scale)[0][40] == 0


@pytest.mark.parametrize("d", [2, 40])
def test_nearest_with_scales_of_any_size(d):
    """1 / scale^2 beyond the range of float32 both ways."""
    x, y = points(90, d, 13), points(600, d, 14)
    scale = (10.0 ** np.random.default_rng(15).integers(-28, 29, 600)).astype("f")
    square = squares(x, y) / scale.astype(float) ** 2
    agrees(nearest(x, y, scale), (np.sqrt(square.min(1)), square.argmin(1)))


def test_nearest_where_the_scale_is_as_tiny_as_the_distance():
    y = np.full((700, 2), 5, "f")
    y[650] = 1e-22
    scale = np.ones(700, "f")
    scale[650] = 1e-22
    value, index = nearest(np.zeros((3, 2), "f"), y, scale)
    assert index.tolist() == [650] * 3
    np.testing.assert_allclose(value, np.sqrt(2), rtol=1e-6)


def test_nearest_refuses():
    x = points(3, 2)
    with pytest.raises(ValueError, match="nearest: y must have at least 1 row, got 0"):
        nearest(x, points(0, 2))
    for bad in (0, -1, np.nan):
        with pytest.raises(ValueError, match=r"nearest: y_scale must be positive, got y_scale\[1\] = "):
            nearest(x, x, np.array([1, bad, 1], "f"))
    assert nearest(points(0, 2), x)[0].shape == (0,)


# ---- balls ----


def check_radius_count(x, y, radius, x_radius, closed):
    with np.errstate(all="ignore"):
        distance = np.sqrt(squares(x, y)).astype(x.dtype)
    inside, own = ((distance <= r) if closed else (distance < r) for r in (radius, x_radius[:, None]))
    counts = radius_count(x, y, radius, x_radius, closed=closed)
    for got, want in zip(counts, (inside.sum(1), inside.sum(0), own.sum(0), own.sum(1)), strict=True):
        np.testing.assert_array_equal(got, want)
    alone = radius_count(x, y, radius, closed=closed)
    for got, want in zip(alone, (*counts[:2], 0 * counts[2], 0 * counts[3]), strict=True):
        np.testing.assert_array_equal(got, want)
    smallest = np.where(inside, radius, np.inf).min(1).astype(x.dtype)
    np.testing.assert_array_equal(radius_min(x, y, radius, closed=closed), smallest)


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("closed", [False, True])
def test_balls_are_the_matrix_compared(d, scale, closed):
    x, y = points(120, d, 20, offset=10), points(570, d, 21, offset=10)
    y[3] = x[4]
    radius, own = ((knn(a, k=5)[0][:, -1] * np.float32(scale)).astype(np.float32) for a in (y, x))
    check_radius_count(x, y, radius, own, closed)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("closed", [False, True])
def test_a_distance_that_is_the_radius_is_on_the_border(offset, closed):
    """Radii that are distances of the pairs themselves, in float32."""
    x, y = points(200, 64, 22, offset=offset), points(310, 64, 23, offset=offset)
    distance = np.sqrt(squares(x, y)).astype("f")
    check_radius_count(x, y, distance[np.arange(310) % 200, np.arange(310)], distance[np.arange(200), 7], closed)


@pytest.mark.parametrize("d", [2, 40])
def test_the_kth_neighbour_is_on_the_border_of_its_ball(d):
    """Strict balls hold k - 1 others and the centre, closed ones the k-th too: its distance is the radius exactly."""
    x = points(300, d, 22)
    radius = knn(x, k=5)[0][:, -1]
    assert (radius_count(x, x, radius)[1] == 5).all()
    assert (radius_count(x, x, radius, closed=True)[1] == 6).all()


@pytest.mark.parametrize("d", [2, 40])
@pytest.mark.parametrize("radius, count", [(0.0, 0), (-1.0, 0), (np.nan, 0), (np.inf, 530), (1e30, 530), (3e38, 530)])
def test_radii_that_hold_nothing_or_everything(d, radius, count):
    x, y = points(20, d), points(530, d, 1)
    balls, members, x_balls, x_members = radius_count(x, y, np.full(530, radius, "f"), np.full(20, radius, "f"))
    assert (balls == count).all() and (x_members == count).all()
    assert (members == (20 if count else 0)).all() and (x_balls == members).all()
    assert (radius_min(x, y, np.full(530, radius, "f")) == (np.float32(radius) if count else np.inf)).all()


def test_radius_min_is_the_smallest_of_the_balls_that_hold_the_row():
    y = np.zeros((4, 1), "f")
    x = np.array([[0.5], [1.0], [3.5], [9.0]], "f")
    radius = np.array([4, 1, 2, np.nan], "f")
    assert radius_min(x, y, radius).tolist() == [1, 2, 4, np.inf]
    assert radius_min(x, y, radius, closed=True).tolist() == [1, 1, 4, np.inf]


@pytest.mark.once
def test_more_than_two_thousand_million_pairs(native):
    """60,000 points of a line, a ball of radius 100 around each: 3.6e9 pairs, counted in closed form."""
    n = 60_000
    x = np.arange(n, dtype=np.float32)[:, None]
    at = np.arange(n)
    wanted = np.minimum(at, 100) + np.minimum(n - 1 - at, 100) + 1
    balls, members, _, _ = radius_count(x, x, np.full(n, 100, "f"), closed=True)
    np.testing.assert_array_equal(balls, wanted)
    np.testing.assert_array_equal(members, wanted)
    everywhere = radius_count(x, x, np.full(n, 1e6, "f"), np.full(n, 1e6, "f"))
    assert all((count == n).all() for count in everywhere)


# ---- all of them ----


def everything(x, y, radius):
    """Every search of x in y, whose balls have the first of these radii."""
    r = radius[: len(y)]
    own = np.full(len(x), np.median(r), x.dtype)
    return [
        *knn(x, y, k=4), *knn(x, k=4), *nearest(x, y), *nearest(x, y, r + 1),
        *radius_count(x, y, r, own), radius_min(x, y, r, closed=True),
    ]  # fmt: skip


@pytest.mark.parametrize("d", [2, 64])
def test_same_bits_for_any_number_of_threads(d, threads):
    x, y = points(1700, d, 30), points(900, d, 31)
    radius = knn(y)[0][:, -1]
    threads(1)
    one = everything(x, y, radius)
    for n in (2, 3, 8):
        threads(n)
        assert all(np.array_equal(a, b) for a, b in zip(one, everything(x, y, radius), strict=True))


PROGRAM = """
import numpy as np
from generant import ops
x = np.random.default_rng(0).standard_normal((400, {d})).astype(np.float32)
distance, index = ops.knn(x, k=5)
scaled, best = ops.nearest(x[:50], x[60:], distance[60:, 4])
counts = ops.radius_count(x[:50], x[60:], distance[60:, 4], distance[:50, 4])
print([a.tolist() for a in (index, distance, scaled, best, *counts)])
"""


@pytest.mark.once
@pytest.mark.parametrize("d", [3, 40])
def test_every_instruction_set_finds_the_same(d, native):
    found = set()
    for isa in ("base", "avx2", "avx512"):
        run = [sys.executable, "-c", PROGRAM.format(d=d)]
        done = subprocess.run(run, env={**os.environ, "GENERANT_ISA": isa}, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_memory_at_sixty_thousand_rows(native):
    """Scratch is all that is allocated beside the outputs, and the pool keeps it: 64 MB where a matrix has 14 GB."""
    x, y = points(60_000, 2, 32), points(60_000, 2, 33)
    radius = np.full(60_000, 0.01, "f")
    for search in (knn, nearest, radius_count, radius_min, lambda x, y: knn(x)):
        native.trim()
        kept = search(x, y, *((radius,) if search in (radius_count, radius_min) else ()))
        assert native.cached_bytes() < 64e6
        del kept


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_rows_and_no_coordinates(dtype):
    none, some = np.zeros((0, 3), dtype), np.zeros((4, 3), dtype)
    assert knn(none, some, k=2)[0].shape == (0, 2) and nearest(none, some)[0].shape == (0,)
    for x, y in ((none, some), (some, none), (none, none)):
        counts = radius_count(x, y, np.ones(len(y), dtype), np.ones(len(x), dtype))
        assert [c.tolist() for c in counts] == [[0] * len(a) for a in (x, y, y, x)]
        assert radius_min(x, y, np.ones(len(y), dtype)).tolist() == [np.inf] * len(x)
    x, y = np.zeros((5, 0), dtype), np.zeros((7, 0), dtype)  # all rows are equal
    assert (knn(x, y, k=3)[1] == [0, 1, 2]).all() and (knn(x, y, k=3)[0] == 0).all()
    assert (nearest(x, y)[1] == 0).all() and (radius_count(x, y, np.ones(7, dtype))[0] == 7).all()


# ---- gradients ----


@pytest.mark.parametrize("itself", [False, True])
def test_gradients_of_distances_are_torchs(itself):
    torch = pytest.importorskip("torch")
    x, y = points(40, 6, 40, np.float64), points(55, 6, 41, np.float64)
    weight = np.random.default_rng(42).standard_normal((40, 3))

    def loss(x, y):
        return ops.sum(ops.mul(ops.square(knn(x, None if itself else y, k=3)[0]), weight))

    tx, ty = torch.tensor(x, requires_grad=True), torch.tensor(y, requires_grad=True)
    all_pairs = torch.sqrt(((tx[:, None] - (tx if itself else ty)[None]) ** 2).sum(-1) + 1e-300)
    index = torch.tensor(knn(x, None if itself else y, k=3)[1])
    (torch.gather(all_pairs, 1, index) ** 2 * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(grad(loss)(x, y), tx.grad.numpy(), rtol=1e-10, atol=1e-12)
    if not itself:
        np.testing.assert_allclose(grad(lambda y: loss(x, y))(y), ty.grad.numpy(), rtol=1e-10, atol=1e-12)


def test_the_gradient_at_a_copy_is_zero():
    x = points(20, 3, 43)
    y = x.copy()

    def total(x):
        return ops.add(ops.sum(nearest(x, y)[0]), ops.sum(knn(x, y, k=1)[0]))

    assert (grad(total)(x) == 0).all()
    assert (grad(lambda x: ops.sum(ops.square(grad(total)(x))))(x) == 0).all()
    x[5] = x[9]  # one pair at distance 0 among others
    g = grad(lambda x: ops.sum(knn(x, k=1)[0]))(x)
    assert np.isfinite(g).all() and np.abs(g).max() > 0


def test_nearest_is_differentiable_in_its_scales():
    x, y = points(30, 4, 44, np.float64), points(25, 4, 45, np.float64)
    scale = np.random.default_rng(46).random(25) + 1
    distance, index = nearest(x, y, scale)
    g = grad(lambda s: ops.sum(nearest(x, y, s)[0]))(scale)
    np.testing.assert_allclose(g, -np.bincount(index, distance / scale[index], minlength=25), rtol=1e-12)


def test_searches_that_have_no_gradient_say_so():
    x = points(5, 2)
    with pytest.raises(TypeError, match="radius_min is not differentiable"):
        grad(lambda x: ops.sum(radius_min(x, x, np.ones(5, "f"))))(x)
