"""Which rows come when: shuffled batches and stratified splits, as functions of a random key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..random import Stream, permutation

__all__ = ["batches", "stratified_split"]


def batches(n: int, size: int, key: Any) -> Iterator[np.ndarray]:
    """0 ... n - 1 in random order, cut into index arrays of exactly `size`; a shorter rest is left out."""
    if not 1 <= size <= n:
        raise ValueError(f"batches: size must lie in 1 ... n = {n}, got {size}")
    order = permutation(key, n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


def stratified_split(labels: np.ndarray, fraction: float, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """Indices (rest, held out) such that `fraction` of every class is held out, at least one sample of each, and not
    all of a class that has two.

    labels (n,). Returns two sorted int64 vectors that together are 0 ... n - 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"stratified_split: fraction must lie between 0 and 1, got {fraction}")
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = max(1, min(round(fraction * len(members)), len(members) - 1))
        held[members[permutation(next(stream), len(members))[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
