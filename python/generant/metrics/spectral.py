"""The Vendi score: how many different samples there effectively are, from the eigenvalues of their kernel matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.pairwise import kernel_sum
from ._points import as_points, positive_integer, unit_rows
from .mmd import median_distance

KERNELS = ("cosine", "linear", "rbf", "polynomial")
ROWS = 1024  # rows that are converted to float64 together


def vendi_score(
    x: ArrayLike,
    *,
    q: float = 1.0,
    kernel: str = "cosine",
    bandwidth: float | str = "median",
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    random_state: Any = 0,
) -> float:
    """Effective number of different rows: exp of the Renyi entropy of order q of the eigenvalues of K / tr K.

    x (n, d): samples or features. Between 1 (all rows alike) and n (no two alike), whatever the kernel:
    "cosine" <x, y> / (|x| |y|); "linear" <x, y>, by which long rows count more; "rbf" exp(-|x - y|^2 / (2
    bandwidth^2)), bandwidth in the unit of x or "median" for the median distance between rows (of 1000 rows drawn with
    random_state if there are more); "polynomial" (gamma <x, y> + coef0)^degree of rows scaled to unit length, gamma =
    1/d if None. q = 1 is Shannon's entropy; q = 0 counts the eigenvalues that are not 0 (above n eps of the largest),
    q = 2 is 1 / sum of squares, q = inf is 1 / the largest.
    q = 2 is a sum over pairs: time n^2 d / 2, memory O(n). Otherwise "cosine" and "linear" need the eigenvalues of the
    smaller of the n x n matrix and its d x d dual: time n d min(n, d) + min(n, d)^3, memory 16 min(n, d)^2 bytes. "rbf"
    and "polynomial" have no dual: time n^2 d + n^3, memory 16 n^2 bytes (1.6 GB at n = 10,000).
    Eigenvalues are computed in float64; for q = 2 the kernel values are rounded to x's dtype.
    Raises ValueError for other shapes, values that are not finite, q < 0, rows of zeros where a length is divided by,
    polynomials that are negative on the diagonal. Friedman and Dieng, The Vendi score, TMLR 2023, def. 1; Pasarkar and
    Dieng, Cousins of the Vendi score, AISTATS 2024, eq. 3 (orders q).
    """
    if kernel not in KERNELS:
        raise ValueError(f"vendi_score: kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if isinstance(q, bool) or not isinstance(q, (int, float, np.number)) or not q >= 0:
        raise ValueError(f"vendi_score: q must be a number of at least 0 (math.inf is one), got {q!r}")
    (x,) = as_points("vendi_score", x=x)
    n, d = x.shape
    if kernel in ("cosine", "polynomial"):
        x = unit_rows("vendi_score", "x", x)
    elif kernel == "linear" and not x.any():
        raise ValueError("vendi_score: every row of x is zero, which leaves the linear kernel without a scale")
    if kernel == "rbf":
        h = _bandwidth(x, bandwidth, random_state)
        if q == 2:  # the square of the kernel is the kernel of bandwidth h / sqrt(2)
            return n**2 / float(kernel_sum(x, bandwidth=(h / math.sqrt(2),)))
        values = np.linalg.eigvalsh(_rbf_matrix(x, h))
    elif kernel == "polynomial":
        degree = positive_integer("vendi_score", "degree", degree)
        gamma = 1 / d if gamma is None else float(gamma)
        diagonal = (gamma + coef0) ** degree
        if not diagonal > 0:
            raise ValueError(f"vendi_score: (gamma + coef0)^degree must be positive, got {diagonal!r}")
        if q == 2:
            square = kernel_sum(x, kernel="polynomial", degree=2 * degree, gamma=gamma, coef0=float(coef0))
            return (n * diagonal) ** 2 / float(square)
        values = np.linalg.eigvalsh((gamma * _gram(x, dual=False) + coef0) ** degree)
    elif q == 2:
        square = kernel_sum(x, kernel="polynomial", degree=2, gamma=1.0, coef0=0.0)
        trace = n if kernel == "cosine" else float(np.einsum("nd,nd->", x, x, dtype=np.float64))
        return trace**2 / float(square)
    else:
        values = np.linalg.eigvalsh(_gram(x, dual=n > d))
    return _effective_number(values.clip(0), float(q))


def _effective_number(values: NDArray[np.float64], q: float) -> float:
    share = values / values.sum()
    share = share[share > len(share) * np.finfo(float).eps * share.max()]  # rounding leaves zeros a little above zero
    if q == 1:
        return float(np.exp(-(share * np.log(share)).sum()))
    if math.isinf(q):
        return float(1 / share.max())
    return float((share**q).sum() ** (1 / (1 - q)))


def _gram(x: NDArray[Any], dual: bool) -> NDArray[np.float64]:
    """X X^T, or X^T X if dual, in float64 without a float64 copy of x."""
    n, d = x.shape
    if not dual:
        wide = x.astype(np.float64, copy=False)
        return wide @ wide.T
    out = np.zeros((d, d))
    for start in range(0, n, ROWS):
        some = x[start : start + ROWS].astype(np.float64)
        out += some.T @ some
    return out


def _rbf_matrix(x: NDArray[Any], h: float) -> NDArray[np.float64]:
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    norms = np.einsum("nd,nd->n", centred, centred)
    out = centred @ centred.T
    out *= 2
    out -= norms[:, None]
    out -= norms
    np.minimum(out, 0, out=out)
    out /= 2 * h * h
    np.exp(out, out=out)
    np.fill_diagonal(out, 1)
    return out


def _bandwidth(x: NDArray[Any], bandwidth: float | str, random_state: Any) -> float:
    if isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(f"vendi_score: bandwidth must be a positive number or 'median', got {bandwidth!r}")
        if len(x) == 1:
            return 1.0
        half = len(x) // 2  # any split will do: the median is over the rows of both together
        bandwidth = median_distance(x[:half], x[half:], random_state=random_state)
        if bandwidth == 0:
            raise ValueError("vendi_score: the median distance is 0 because most rows coincide; give a bandwidth")
    if not isinstance(bandwidth, (int, float, np.number)) or not 0 < bandwidth < math.inf:
        raise ValueError(f"vendi_score: bandwidth must be a positive number or 'median', got {bandwidth!r}")
    return float(bandwidth)
