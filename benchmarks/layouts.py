"""Axis orders, ours and torch's, so that one reference judges both.

We keep images n h w c, weights kh kw c o and attention n t heads d; torch writes n c h w, o c kh kw and n heads t d.
A kind of work says of which sort its inputs (`sorts`) and results (`results`) are. A rival that takes its inputs by
for_torch is judged on results that are turned back, which is not part of what is timed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from registry import with_torch

TORCH = {"image": (0, 3, 1, 2), "weights": (3, 2, 0, 1), "heads": (0, 2, 1, 3)}


def for_torch(a: Any, work: Any, *names: str, as_ours: bool = False) -> tuple:
    """torch, and the named inputs in its axis order: contiguous, or in the memory order that is also ours, which
    torch calls channels_last for images and weights; heads are transposed views then. None stays None."""
    torch, a.turned = *with_torch(), True

    def tensor(name: str) -> Any:
        if (value := getattr(a, name)) is None:
            return None
        value, sort = torch.from_numpy(value), work.sorts.get(name)
        if sort is None:
            return value
        value = value.permute(TORCH[sort])
        if not as_ours:
            return value.contiguous()
        return value if sort == "heads" else value.contiguous(memory_format=torch.channels_last)

    return (torch, *map(tensor, names))


def in_our_order(results: Any, a: Any, work: Any) -> list[np.ndarray]:
    """All results of a call, axes as ours."""
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    if len(results) != len(work.results):
        raise ValueError(f"{len(results)} results, wanted {', '.join(work.results)}")
    if not getattr(a, "turned", False):
        return results
    return [
        np.transpose(r, np.argsort(TORCH[sort])) if sort in TORCH else r
        for r, sort in zip(results, work.results, strict=True)
    ]


def rms_error(results: Any, exact: Any, a: Any, work: Any) -> float:
    """Of the worst result: the root mean square of the error over that of the exact result, or, if that is more, 6 %
    of the largest error. A limit of 1.2e-6 so bounds the largest error by 2e-5."""

    def off(result: np.ndarray, wanted: np.ndarray) -> float:
        if result.shape != wanted.shape:
            return float("inf")
        error = result.astype(np.float64) - wanted
        size = np.sqrt(np.mean(wanted * wanted))
        return float(max(np.sqrt(np.mean(error * error)), 0.06 * np.abs(error).max()) / size)

    return max(off(r, e) for r, e in zip(in_our_order(results, a, work), exact, strict=True))
