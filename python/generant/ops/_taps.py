"""Linear maps along one axis of an image, as the list of their taps, and the sizes of windows and paddings.

Pooling by averages, resizing, padding and filters of rank one are separable: y = A x B^T for every channel, with a
sparse matrix A for the rows and B for the columns. A map is three arrays (o, i, weight): y[o] += weight * x[i], sorted
by o. Its adjoint is the same list with o and i exchanged. The definitions make dense matrices of it, the Numba twins
compressed rows; csrc/resample.h builds the same lists.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def integers(name: str, value: Any, count: int, least: int | None = None) -> tuple[int, ...]:
    """A tuple attribute as `count` integers: one stands for all, two of four for (both of the rows, of the columns)."""
    wanted = f"{name} must be one integer or {count}, got {value!r}"
    value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(value) not in (1, count, 2):
        raise ValueError(wanted)
    if any(isinstance(v, bool) or not isinstance(v, (int, np.integer)) for v in value):
        raise TypeError(wanted)
    if least is not None and min(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return tuple(int(value[0 if len(value) == 1 else i * len(value) // count]) for i in range(count))


def image_size(value: Any) -> tuple[int, int]:
    """The attribute `size`: rows and columns."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"size must be (rows, columns), got {value!r}")
    h, w = integers("size", value, 2, 0)
    return h, w


def _kept(o: np.ndarray, i: np.ndarray, weight: Any, n_in: int) -> Taps:
    inside = (i >= 0) & (i < n_in)
    return o[inside], i[inside], np.broadcast_to(np.asarray(weight, np.float64), o.shape)[inside]


@lru_cache(64)
def pool(n_in: int, n_out: int, window: int, stride: int, before: int, include_pad: bool) -> Taps:
    """The mean over the window that starts at o * stride - before: over its places inside, or over all of them."""
    o = np.repeat(np.arange(n_out), window)
    o, i, w = _kept(o, o * stride - before + np.tile(np.arange(window), n_out), 1.0 / window, n_in)
    return (o, i, w) if include_pad else (o, i, 1.0 / np.bincount(o, minlength=n_out)[o])


@lru_cache(64)
def resize(n_in: int, n_out: int, mode: str, align_corners: bool) -> Taps:
    """Nearest or linear interpolation at n_out places; positions are integers over a common denominator, so exact."""
    o = np.arange(n_out)
    if mode == "nearest":
        return o, o * n_in // n_out, np.ones(n_out)
    if mode == "nearest-exact":
        return o, (2 * o + 1) * n_in // (2 * n_out), np.ones(n_out)
    if align_corners:
        at, unit = o * (n_in - 1), max(n_out - 1, 1)
    else:
        at, unit = np.maximum((2 * o + 1) * n_in - n_out, 0), 2 * n_out
    i, rest = np.divmod(at, unit)
    two = (rest > 0) & (i + 1 < n_in)
    o = np.concatenate([o, o[two]])
    weight = np.where(two, rest / unit, 0.0)
    order = np.argsort(o, kind="stable")
    return o[order], np.concatenate([i, i[two] + 1])[order], np.concatenate([1.0 - weight, weight[two]])[order]


@lru_cache(64)
def pad(n_in: int, n_out: int, before: int, mode: str) -> Taps:
    """Which input an output of a padded axis shows; none where the constant goes."""
    o = np.arange(n_out)
    i = o - before
    if mode == "reflect":
        i = np.where(i < 0, -i, i)
        i = np.where(i >= n_in, 2 * (n_in - 1) - i, i)
    elif mode == "replicate":
        i = np.clip(i, 0, n_in - 1)
    return _kept(o, i, 1.0, n_in)


@lru_cache(64)
def fir(n_in: int, n_out: int, k: int, up: int, down: int, before: int, flip: bool) -> Taps:
    """upfirdn along one axis; the third array holds not weights but the places in the filter."""
    o = np.repeat(np.arange(n_out), k)
    j = np.tile(np.arange(k), n_out)
    at = o * down - before + j
    o, i, j = (a[at % up == 0] for a in (o, at // up, j if flip else k - 1 - j))
    inside = (i >= 0) & (i < n_in)
    return o[inside], i[inside], j[inside]


def adjoint(taps: Taps) -> Taps:
    """The transposed map."""
    o, i, weight = taps
    order = np.argsort(i, kind="stable")
    return i[order], o[order], weight[order]


def matrix(taps: Taps, n_out: int, n_in: int, dtype: Any) -> np.ndarray:
    """The map as a dense matrix."""
    a = np.zeros((n_out, n_in), dtype)
    np.add.at(a, (taps[0], taps[1]), taps[2].astype(dtype))
    return a
