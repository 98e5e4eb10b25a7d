"""Numba twins of pooling, resizing, padding and filters: compressed lists of taps, as in csrc/resample.h.

The lists come from _taps.py, sorted by the output they go to; a row of the result is a combination of rows of x and
then of its pixels. max_pool walks over the windows.
"""

from __future__ import annotations

import numpy as np

from .. import _taps
from .._taps import integers
from ._kernel import jit, kernel


@jit
def _separable(x, row_first, row_index, row_weight, first, index, weight, fill, y):
    n, h, w, c = x.shape
    strip = np.empty(w * c, x.dtype)
    for s in range(n):
        image = x[s].reshape(h, w * c)
        for p in range(y.shape[1]):
            if row_first[p] == row_first[p + 1]:
                y[s, p] = fill
                continue
            strip[:] = 0
            for t in range(row_first[p], row_first[p + 1]):
                a, line = row_weight[t], image[row_index[t]]
                for j in range(w * c):
                    strip[j] += a * line[j]
            pixels = strip.reshape(w, c)
            for q in range(y.shape[2]):
                to = y[s, p, q]
                to[:] = fill if first[q] == first[q + 1] else x.dtype.type(0)
                for t in range(first[q], first[q + 1]):
                    a, pixel = weight[t], pixels[index[t]]
                    for j in range(c):
                        to[j] += a * pixel[j]


def _compressed(taps, n_out, dtype):
    o, i, weight = taps
    first = np.zeros(n_out + 1, np.int64)
    np.cumsum(np.bincount(o, minlength=n_out), out=first[1:])
    return first, i.astype(np.int64), weight.astype(dtype)


def _apply(x, taps, y, fill=0.0):
    rows, columns = taps
    lists = (*_compressed(rows, y.shape[1], x.dtype), *_compressed(columns, y.shape[2], x.dtype))
    _separable(x, *lists, x.dtype.type(fill), y)


def _windows(window, stride, padding):
    window = integers("window", window, 2)
    return window, integers("stride", stride, 2) if stride else window, integers("padding", padding, 4)


def _mean_taps(size, pooled, window, stride, padding, include):
    window, stride, padding = _windows(window, stride, padding)
    return [_taps.pool(size[k], pooled[k], window[k], stride[k], padding[2 * k], include) for k in (0, 1)]


@kernel
def avg_pool(x, y, window, stride, padding, count_include_pad):
    _apply(x, _mean_taps(x.shape[1:3], y.shape[1:3], window, stride, padding, count_include_pad), y)


@kernel
def avg_pool_bwd(g, y, size, window, stride, padding, count_include_pad):
    _apply(g, map(_taps.adjoint, _mean_taps(size, g.shape[1:3], window, stride, padding, count_include_pad)), y)


@kernel
def resize(x, y, size, mode, align_corners):
    _apply(x, [_taps.resize(x.shape[k], y.shape[k], mode, align_corners) for k in (1, 2)], y)


@kernel
def resize_bwd(g, y, size, mode, align_corners):
    _apply(g, [_taps.adjoint(_taps.resize(y.shape[k], g.shape[k], mode, align_corners)) for k in (1, 2)], y)


@kernel
def pad(x, y, padding, mode, value):
    padding = integers("padding", padding, 4)
    _apply(x, [_taps.pad(x.shape[k], y.shape[k], padding[2 * k - 2], mode) for k in (1, 2)], y, value)


@kernel
def pad_bwd(g, y, size, padding, mode, value):
    padding = integers("padding", padding, 4)
    _apply(g, [_taps.adjoint(_taps.pad(y.shape[k], g.shape[k], padding[2 * k - 2], mode)) for k in (1, 2)], y)


# ---- filters --------------------------------------------------------------------------------------------------------


@jit
def _filter(x, f, row_first, row_index, row_place, first, index, place, y):
    for s in range(x.shape[0]):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                to = y[s, p, q]
                to[:] = 0
                for t in range(row_first[p], row_first[p + 1]):
                    for u in range(first[q], first[q + 1]):
                        a, pixel = f[row_place[t], place[u]], x[s, row_index[t], index[u]]
                        for j in range(x.shape[3]):
                            to[j] += a * pixel[j]


@jit
def _filter_gradient(x, g, row_first, row_index, row_place, first, index, place, df):
    for s in range(x.shape[0]):
        for p in range(g.shape[1]):
            for t in range(row_first[p], row_first[p + 1]):
                for q in range(g.shape[2]):
                    for u in range(first[q], first[q + 1]):
                        pixel, other = x[s, row_index[t], index[u]], g[s, p, q]
                        total = 0.0
                        for j in range(x.shape[3]):
                            total += pixel[j] * other[j]
                        df[row_place[t], place[u]] += total


def _filter_taps(size, filtered, k, up, down, padding, flip):
    up, down, padding = integers("up", up, 2), integers("down", down, 2), integers("padding", padding, 4)
    lists = []
    for i in (0, 1):
        taps = _taps.fir(size[i], filtered[i], k[i], up[i], down[i], padding[2 * i], flip)
        lists += _compressed(taps, filtered[i], np.int64)
    return lists


@kernel
def upfirdn2d(x, f, y, up, down, padding, flip):
    _filter(x, f, *_filter_taps(x.shape[1:3], y.shape[1:3], f.shape, up, down, padding, flip), y)


@kernel
def upfirdn2d_df(x, g, df, size, up, down, padding, flip):
    total = np.zeros(size)
    _filter_gradient(x, g, *_filter_taps(x.shape[1:3], g.shape[1:3], size, up, down, padding, flip), total)
    df[:] = total


# ---- maxima ---------------------------------------------------------------------------------------------------------


@jit
def _max_pool(x, y, index, kh, kw, stride_h, stride_w, top, left):
    n, h, w, c = x.shape
    for s in range(n):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                r0, s0 = p * stride_h - top, q * stride_w - left
                seen = False
                for i in range(max(0, -r0), min(kh, h - r0)):
                    for j in range(max(0, -s0), min(kw, w - s0)):
                        pixel = x[s, r0 + i, s0 + j]
                        for ch in range(c):
                            v = pixel[ch]
                            if not seen or v > y[s, p, q, ch] or v != v:
                                y[s, p, q, ch] = v
                                index[s, p, q, ch] = i * kw + j
                        seen = True


@jit
def _at_places(x, index, y, kh, kw, stride_h, stride_w, top, left, back):
    """y = x at the places, or with `back` x += y there."""
    n, h, w, c = x.shape
    for s in range(n):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                for ch in range(c):
                    k = int(index[s, p, q, ch])
                    r, t = p * stride_h - top + k // kw, q * stride_w - left + k % kw
                    inside = k < kh * kw and 0 <= r < h and 0 <= t < w
                    if not back:
                        y[s, p, q, ch] = x[s, r, t, ch] if inside else 0
                    elif inside:
                        x[s, r, t, ch] += y[s, p, q, ch]


@kernel
def max_pool(x, y, index, window, stride, padding):
    window, stride, padding = _windows(window, stride, padding)
    index = np.empty(y.shape, np.uint8) if index is None else index
    _max_pool(x, y, index, *window, *stride, padding[0], padding[2])


@kernel
def max_pool_at(x, index, y, window, stride, padding):
    window, stride, padding = _windows(window, stride, padding)
    _at_places(x, index, y, *window, *stride, padding[0], padding[2], False)


@kernel
def max_pool_bwd(g, index, x, size, window, stride, padding):
    window, stride, padding = _windows(window, stride, padding)
    x[:] = 0
    _at_places(x, index, g, *window, *stride, padding[0], padding[2], True)
