"""Numba twins of the pairwise ops: rows of x against blocks of y held coordinate by coordinate.

Everything is computed in float64 from coordinate differences, so one compilation serves both float types and no pair
needs a second look. Blocks keep the inner loop over points, which vectorises without reordering any sum.
"""

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
def _inner_products(row, columns, out):
    out[:] = 0
    for k in range(columns.shape[0]):
        a = row[k]
        for j in range(columns.shape[1]):
            out[j] += a * columns[k, j]


@jit
def _columns(y, begin):
    end = min(begin + BLOCK, y.shape[0])
    block = np.empty((y.shape[1], end - begin))
    for j in range(end - begin):
        for k in range(y.shape[1]):
            block[k, j] = y[begin + j, k]
    return block


@jit
def _kernel_sum(x, y, u, v, rbf, scale, shift, degree, center, itself, exclude):
    total = 0.0
    values = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        block = _columns(y, begin)
        count = block.shape[1]
        value = values[:count]
        # x with itself: rows below the block meet it later, as columns of their own block
        for i in range(min(begin + count, x.shape[0]) if itself else x.shape[0]):
            if rbf:
                _square_distances(x[i], block, value)
                for j in range(count):
                    value[j] = np.exp(value[j] * scale)
            else:
                _inner_products(x[i], block, value)
                for j in range(count):
                    base = value[j] * scale + shift
                    power = 1.0
                    for _ in range(degree):
                        power *= base
                    value[j] = power
            row = 0.0
            for j in range(count):
                if not itself or begin + j > i:
                    row += (2.0 if itself else 1.0) * v[begin + j] * (value[j] - center)
                elif begin + j == i and not exclude:
                    row += v[begin + j] * (value[j] - center)
            total += u[i] * row
    return total


@kernel
def kernel_sum(x, y, x_weights, y_weights, out, kernel, bandwidth, degree, gamma, coef0, center, exclude_diagonal):
    itself = y is None
    x = x.astype(np.float64)
    y = x if itself else y.astype(np.float64)
    u = np.ones(x.shape[0]) if x_weights is None else x_weights.astype(np.float64)
    v = u if itself else np.ones(y.shape[0]) if y_weights is None else y_weights.astype(np.float64)
    rbf = kernel == "rbf"
    scale = -0.5 / bandwidth**2 if rbf else 1 / x.shape[1] if gamma is None else gamma
    flags = itself, bool(exclude_diagonal)
    out[()] = _kernel_sum(x, y, u, v, rbf, float(scale), float(coef0), int(degree), float(center), *flags)


@jit
def _knn(x, y, square, index, itself):
    """The k smallest squared distances of every row, NaN above inf, ties to the lower index."""
    k = square.shape[1]
    held = np.zeros(x.shape[0], np.int64)
    distances = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        block = _columns(y, begin)
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
def _radius_count(x, y, radius, closed, single, balls, rows):
    balls[:] = 0
    rows[:] = 0
    distances = np.empty(BLOCK)
    for begin in range(0, y.shape[0], BLOCK):
        block = _columns(y, begin)
        count = block.shape[1]
        distance = distances[:count]
        for i in range(x.shape[0]):
            _square_distances(x[i], block, distance)
            for j in range(count):
                s = np.sqrt(distance[j])
                if single:
                    s = np.float64(np.float32(s))
                if s < radius[begin + j] or (closed and s == radius[begin + j]):
                    balls[i] += 1
                    rows[begin + j] += 1


@kernel
def radius_count(x, y, radius, balls, rows, closed):
    single = x.dtype == np.float32
    _radius_count(
        x.astype(np.float64), y.astype(np.float64), radius.astype(np.float64), bool(closed), single, balls, rows
    )
