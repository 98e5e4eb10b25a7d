"""Which noise goes with which data: optimal transport within a batch instead of independent pairs.

Both marginals stay what they were, since a pairing is a permutation of the batch's noise, but the straight lines from
noise to data cross less, so the flow fitted to them is straighter (OT-CFM; Tong et al., 2024; Pooladian et al., 2023).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import ops, pairwise, random
from ...ops import _device

__all__ = ["ot_pairing"]

METHODS = ("assignment", "sinkhorn")


def ot_pairing(
    x: Any, z: Any, *, method: str = "assignment", labels: Any = None, reg: float = 0.05, key: Any = None
) -> np.ndarray:
    """The permutation p that pairs data x_i with noise z_{p_i}: sum |x_i - z_{p_i}|^2 is minimal, or nearly so.

    x, z (n, ...); labels (n,): pairs are exchanged between samples of one class only. method "assignment": the exact
    minimum, by SciPy, time O(n^3). "sinkhorn": the plan of entropic transport with regularisation `reg` times the mean
    cost, from which rows draw their partners one after another, in random order and without replacement, from `key`;
    time O(n^2) per iteration. Memory O(n^2). Returns (n,) int64, on the host: z[p] goes with x.
    """
    if method not in METHODS:
        raise ValueError(f"ot_pairing: method must be one of {', '.join(METHODS)}, got {method!r}")
    a, b = (np.asarray(_device.from_device(v)) for v in (x, z))
    if a.shape != b.shape or a.ndim < 1:
        raise ValueError(f"ot_pairing: x and z must have one shape (n, ...), got {a.shape} and {b.shape}")
    a, b = (v.reshape(len(v), int(np.prod(v.shape[1:]))) for v in (a, b))
    for name, rows in (("x", a), ("z", b)):
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(f"ot_pairing: {name}[{int(np.argmin(finite))}] is not finite")
    if method == "sinkhorn" and key is None:
        raise ValueError('ot_pairing: method "sinkhorn" draws the pairs and key is None; give 2 uint64')
    if not 0 < reg < np.inf:
        raise ValueError(f"ot_pairing: reg must be positive and finite, got {reg}")
    if labels is None:
        groups: list[np.ndarray] = [np.arange(len(a))]
    else:
        codes = np.asarray(_device.from_device(labels))
        if codes.shape != (len(a),):
            raise ValueError(f"ot_pairing: labels must be ({len(a)},), got shape {codes.shape}")
        groups = [np.flatnonzero(codes == c) for c in np.unique(codes)]
    found = np.arange(len(a))
    for i, rows in enumerate(groups):
        if len(rows) > 1:
            own = _assigned(a[rows], b[rows]) if method == "assignment" else _drawn(
                a[rows], b[rows], reg, random.fold_in(key, i)
            )  # fmt: skip
            found[rows] = rows[own]
    return found


def _costs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """-2 a b^T: squared distances up to what depends on one index only, which no permutation changes."""
    return -2 * (a.astype(np.float64) @ b.astype(np.float64).T)


def _assigned(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError('ot_pairing: method "assignment" needs SciPy; method="sinkhorn" does not') from error
    return linear_sum_assignment(_costs(a, b))[1]


def _drawn(a: np.ndarray, b: np.ndarray, reg: float, key: np.ndarray) -> np.ndarray:
    n = len(a)
    square = [np.einsum("ij,ij->i", v, v, dtype=np.float64) for v in (a, b)]
    cost = square[0][:, None] + square[1] + _costs(a, b)
    scale = reg * (max(float(cost.mean()), 0.0) or 1.0)  # equal points: any unit will do
    transport = pairwise.sinkhorn(a, b, reg=scale)
    g = np.asarray(transport.potential_y, np.float64)
    numbers = ops.uniform(random.fold_in(key, 1), dtype="float64", shape=(n,))
    free, found = np.ones(n, bool), np.empty(n, np.int64)
    for i in random.permutation(random.fold_in(key, 0), n):
        left = np.flatnonzero(free)
        log = (g[left] - cost[i, left]) / scale  # f_i and the weights are the same for all
        ends = np.cumsum(np.exp(log - log.max()))
        found[i] = left[min(int(np.searchsorted(ends, numbers[i] * ends[-1], side="right")), len(left) - 1)]
        free[found[i]] = False
    return found
