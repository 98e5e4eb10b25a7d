"""Numba twins of the searches: rows of x against blocks of y held coordinate by coordinate, all in float64."""

import numpy as np

from ._kernel import jit, kernel

BLOCK = 512


@jit
def _square_distances(row, columns, out):
    """out_j = |row - columns[:, j]|^2."""
    out[:] = 0
    for k in range(columns.shape[0]):
        a = row[k]
        for j in range(columns.shape[1]):
            t = a - columns[k, j]
            out[j] += t * t


@jit
def columns_of(y, begin):
    """Rows begin.. of y, at most BLOCK, coordinate by coordinate."""
    end = min(begin + BLOCK, y.shape[0])
    block = np.empty((y.shape[1], end - begin))
    for j in range(end - begin):
        for k in range(y.shape[1]):
            block[k, j] = y[begin + j, k]
    return block


@jit
def _knn(x, y, square, index, itself):
    """The k smallest squared distances of every row, NaN above inf, ties to the lower index."""
    k = square.shape[1]
    held = np.zeros(x.shape[0], np.int64)
    distances = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        block = columns_of(y, begin)
        count = block.shape[1]
        distance = distances[:count]
        for i in range(x.shape[0]):
            _square_distances(x[i], block, distance)
            for j in range(count):
                s = distance[j]
                n = held[i]
                if n == k and (s >= square[i, k - 1] or s != s):
                    continue
                if itself and begin + j == i:
                    continue
                if n < k:
                    held[i] += 1
                    at = n
                else:
                    at = k - 1
                while at > 0 and (s < square[i, at - 1] or (s == s and square[i, at - 1] != square[i, at - 1])):
                    square[i, at] = square[i, at - 1]
                    index[i, at] = index[i, at - 1]
                    at -= 1
                square[i, at] = s
                index[i, at] = begin + j


@kernel
def knn(x, y, distance, index, k):
    x64 = x.astype(np.float64)
    square = np.empty(distance.shape)
    _knn(x64, x64 if y is None else y.astype(np.float64), square, index, y is None)
    distance[...] = np.sqrt(square)


@jit
def _nearest(x, y, weight, square, index):
    """The smallest |x_i - y_j|^2 / weight_j, NaN above inf, ties to the lower index."""
    index[:] = -1
    distances = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        block = columns_of(y, begin)
        count = block.shape[1]
        distance = distances[:count]
        for i in range(x.shape[0]):
            _square_distances(x[i], block, distance)
            best = square[i]
            for j in range(count):
                s = distance[j] / weight[begin + j]
                if index[i] < 0 or s < best or (s == s and best != best):
                    best = s
                    index[i] = begin + j
            square[i] = best


@kernel
def nearest(x, y, y_scale, distance, index):
    weight = np.ones(y.shape[0]) if y_scale is None else y_scale.astype(np.float64) ** 2
    square = np.empty(x.shape[0])
    _nearest(x.astype(np.float64), y.astype(np.float64), weight, square, index)
    distance[...] = np.sqrt(square)


@jit
def _within(s, radius, closed):
    return s < radius or (closed and s == radius)


@jit
def _radius_count(x, y, radius, x_radius, closed, single, balls, members, x_balls, x_members):
    distances = np.empty(BLOCK)
    both = x_radius.shape[0] > 0
    for begin in range(0, y.shape[0], BLOCK):
        block = columns_of(y, begin)
        count = block.shape[1]
        distance = distances[:count]
        for i in range(x.shape[0]):
            _square_distances(x[i], block, distance)
            for j in range(count):
                s = np.sqrt(distance[j])
                if single:
                    s = np.float64(np.float32(s))
                if _within(s, radius[begin + j], closed):
                    balls[i] += 1
                    members[begin + j] += 1
                if both and _within(s, x_radius[i], closed):
                    x_members[i] += 1
                    x_balls[begin + j] += 1


@kernel
def radius_count(x, y, radius, x_radius, balls, members, x_balls, x_members, closed):
    counts = balls, members, x_balls, x_members
    for count in counts:
        count[...] = 0
    single = x.dtype == np.float32
    radii = [np.empty(0) if r is None else r.astype(np.float64) for r in (radius, x_radius)]
    _radius_count(x.astype(np.float64), y.astype(np.float64), *radii, bool(closed), single, *counts)


@jit
def _radius_min(x, y, radius, closed, single, smallest):
    distances = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        block = columns_of(y, begin)
        count = block.shape[1]
        distance = distances[:count]
        for i in range(x.shape[0]):
            _square_distances(x[i], block, distance)
            for j in range(count):
                s = np.sqrt(distance[j])
                if single:
                    s = np.float64(np.float32(s))
                if radius[begin + j] < smallest[i] and _within(s, radius[begin + j], closed):
                    smallest[i] = radius[begin + j]


@kernel
def radius_min(x, y, radius, smallest, closed):
    found = np.full(x.shape[0], np.inf)
    single = x.dtype == np.float32
    arrays = x.astype(np.float64), y.astype(np.float64), radius.astype(np.float64)
    _radius_min(*arrays, bool(closed), single, found)
    smallest[...] = found
