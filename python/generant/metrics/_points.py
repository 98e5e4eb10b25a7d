"""How metrics take their arguments: anything NumPy can read, as two float arrays of rows with equally many columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_points(function: str, *, rows: int = 1, **given: Any) -> list[NDArray[Any]]:
    """Each argument as a finite (n, d) array, all float32 or all float64, with n >= rows and one common d.

    float16, bool and integers of at most 16 bits become float32, everything else that is not float32 float64.
    """
    points = {}
    for name, value in given.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{function}: {name} must be an array of real numbers, got dtype {array.dtype}")
        if array.ndim != 2:
            hint = ", flatten it with reshape(len(x), -1)" if array.ndim > 2 else ""
            raise ValueError(f"{function}: {name} must have shape (n, d), got {array.shape}{hint}")
        if array.shape[0] < rows or array.shape[1] < 1:
            wanted = f"at least {rows} row{'s' * (rows > 1)} and 1 column"
            raise ValueError(f"{function}: {name} must have {wanted}, got shape {array.shape}")
        points[name] = array
    columns = {name: a.shape[1] for name, a in points.items()}
    if len(set(columns.values())) > 1:
        got = " and ".join(f"{name} has {d}" for name, d in columns.items())
        raise ValueError(f"{function}: all arguments must have equally many columns, but {got}")
    dtype = np.result_type(np.float32, *(a.dtype for a in points.values()))
    dtype = np.dtype(np.float32 if dtype == np.float32 else np.float64)
    arrays = []
    for name, array in points.items():
        array = np.ascontiguousarray(array, dtype)
        # A sum that is finite has finite terms, and costs no array of flags.
        if not np.isfinite(array.sum(dtype=np.float64)) and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
            raise ValueError(f"{function}: {name} must be finite, but {bad.size} rows are not (first: row {bad[0]})")
        arrays.append(array)
    return arrays


def positive_integer(function: str, name: str, value: Any, most: int | None = None, of: str = "") -> int:
    """`value` as an int in 1..most."""
    limit = "a positive integer" if most is None else f"an integer in 1..{most}{of}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1 or (most and value > most):
        raise ValueError(f"{function}: {name} must be {limit}, got {value!r}")
    return int(value)
