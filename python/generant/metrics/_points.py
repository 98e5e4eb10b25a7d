"""How metrics take their arguments: as generant.pairwise does, but (n, d) only, and all of them float."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pairwise._arguments import Given, convert


def as_points(function: str, *, rows: int = 1, **given: Any) -> list[NDArray[Any]]:
    """Each argument as a finite (n, d) array, all float32 or all float64, with n >= rows and one common d.

    float16, bool and integers of at most 16 bits become float32, everything else that is not float32 float64.
    """
    arrays = convert(function, [Given(name, value) for name, value in given.items()], batch=False, rows=rows)
    for name, x in zip(given, arrays, strict=True):
        if x.dtype == np.float64 and not math.isfinite(np.vdot(x, x)):
            raise ValueError(f"{function}: {name} is so large that its squares overflow float64; rescale the samples")
    return arrays


def unit_rows(function: str, name: str, x: NDArray[Any]) -> NDArray[Any]:
    """Rows scaled to length 1, in x's dtype; lengths are float64. ValueError for rows of zeros."""
    length = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    if not length.all():
        row = int(np.flatnonzero(length == 0)[0])
        raise ValueError(f"{function}: {name} has rows of zeros, which have no direction (first: row {row})")
    return (x / length[:, None]).astype(x.dtype, copy=False)


def positive_integer(function: str, name: str, value: Any, most: int | None = None, of: str = "") -> int:
    """`value` as an int in 1..most."""
    limit = "a positive integer" if most is None else f"an integer in 1..{most}{of}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1 or (most and value > most):
        raise ValueError(f"{function}: {name} must be {limit}, got {value!r}")
    return int(value)
