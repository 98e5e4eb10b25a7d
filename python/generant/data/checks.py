"""Checks of what people hand over: counts, numbers, arrays of samples, labels. Errors say where, got and wanted.

`where` is the name of the caller as its errors begin. Not here: shapes and dtypes of op arguments, which ops check.
"""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from ..ops._dispatch import to_host

__all__ = ["check_count", "check_counts", "check_data", "check_labels", "check_real", "check_widths"]


def check_count(where: str, name: str, value: Any, at_least: int = 1) -> int:
    """value as an int, or an error if it is not an integer of at least that."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: {name} must be an integer, got {type(value).__name__} {value!r}") from None
    if count < at_least:
        raise ValueError(f"{where}: {name} must be at least {at_least}, got {count}")
    return count


def check_counts(where: str, **counts: Any) -> None:
    """`check_count` of sizes that must be at least 1."""
    for name, value in counts.items():
        check_count(where, name, value)


def check_widths(where: str, name: str, values: Any) -> tuple[int, ...]:
    """values as a tuple of ints of at least 1, or an error if it is not a sequence of such."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{where}: {name} must be a sequence of integers, got {values!r}")
    return tuple(check_count(where, name, value) for value in values)


def check_real(where: str, name: str, value: Any, low: float, high: float) -> float:
    """value as a float, or an error if it is not a finite number in [low, high]."""
    if isinstance(value, (bool, str)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: {name} must be a number, got {type(value).__name__} {value!r}")
    if not (math.isfinite(value) and low <= float(value) <= high):
        raise ValueError(f"{where}: {name} must lie in [{low:g}, {high:g}], got {value}")
    return float(value)


def check_data(where: str, X: Any) -> np.ndarray:
    """X (n, ...), also of CuPy or torch, as a real NumPy array of at least 2 dimensions, not empty and finite.

    The wording is scikit-learn's where its checks of estimators look for it.
    """
    if hasattr(X, "tocsr"):
        raise TypeError(f"{where}: X is sparse, which is not supported; make it dense with .toarray() first")
    X = to_host(where, "X", X)
    try:
        x = np.asarray(X)
        if x.dtype == object:
            x = x.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: X must be a rectangular array of numbers: {error}") from None
    except TypeError as error:
        raise TypeError(f"{where}: X must hold real numbers: {error}") from None
    if x.dtype.kind == "c":
        raise ValueError(f"{where}: X must hold real numbers. Complex data not supported, got dtype {x.dtype}")
    if x.dtype.kind not in "fiub":
        raise TypeError(f"{where}: X must hold real numbers, got dtype {x.dtype}; convert it with .astype(float) first")
    if x.ndim < 2:
        raise ValueError(
            f"{where}: X must have samples and features, n d or n h w, got shape {x.shape}. Reshape your data"
        )
    if x.size == 0:
        raise ValueError(
            f"{where}: X is empty, shape {x.shape}: {len(x)} sample(s) and {math.prod(x.shape[1:])} feature(s) "
            f"(shape={x.shape}) while a minimum of 1 is required of each"
        )
    bad = ~np.isfinite(x)
    if bad.any():
        first = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), x.shape))
        raise ValueError(
            f"{where}: X has {int(bad.sum())} value(s) that are NaN or infinite, the first at X{list(first)} "
            f"({x[first]}); drop or impute them first"
        )
    return x


def check_labels(where: str, y: Any, n: int) -> np.ndarray:
    """y (n,) as a NumPy vector of integers, booleans or strings."""
    labels = np.asarray(to_host(where, "y", y))
    if labels.dtype.kind == "O" and all(isinstance(v, str) for v in labels.ravel()):
        labels = labels.astype(str)
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "f":
        raise ValueError(f"{where}: y must hold class labels (integers or strings). Unknown label type: continuous")
    if labels.dtype.kind not in "iubU":
        raise TypeError(f"{where}: y must hold class labels (integers or strings). Unknown label type: {labels.dtype}")
    if labels.shape != (n,):
        raise ValueError(f"{where}: y must have one label per sample, ({n},), got shape {labels.shape}")
    return labels
