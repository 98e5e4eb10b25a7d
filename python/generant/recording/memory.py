"""Where the results of a recorded step live: one arena, in which memory is used again as soon as nothing needs it."""

from __future__ import annotations

from typing import Any

__all__ = ["ALIGNMENT", "assign"]

ALIGNMENT = 64  # bytes: results begin on cache lines


def assign(spans: dict[Any, tuple[int, int, int]]) -> tuple[dict[Any, int], int]:
    """(offset of every result, bytes in all) for results (first call, last call, bytes) by name.

    Two results whose spans meet never overlap. In order of birth, the smallest gap that fits; neighbouring gaps merge.
    """
    rounded = {name: max(1, -(-size // ALIGNMENT)) * ALIGNMENT for name, (_, _, size) in spans.items()}
    deaths: dict[int, list[Any]] = {}
    for name, (_, last, _) in spans.items():
        deaths.setdefault(last, []).append(name)
    offsets: dict[Any, int] = {}
    gaps: list[tuple[int, int]] = []  # (offset, bytes), sorted
    top = done = 0
    for name, (first, _, _) in sorted(spans.items(), key=lambda item: item[1][0]):
        while done < first:  # what died before this call
            for dead in deaths.pop(done, ()):
                gaps = _with(gaps, offsets[dead], rounded[dead])
            done += 1
        wanted = rounded[name]
        fitting = [gap for gap in gaps if gap[1] >= wanted]
        if fitting:
            at, size = min(fitting, key=lambda gap: gap[1])
            gaps.remove((at, size))
            if size > wanted:
                gaps = _with(gaps, at + wanted, size - wanted)
        elif gaps and sum(gaps[-1]) == top:  # the last gap, and a little more
            at = gaps.pop()[0]
            top = at + wanted
        else:
            at, top = top, top + wanted
        offsets[name] = at
    return offsets, top


def _with(gaps: list[tuple[int, int]], at: int, size: int) -> list[tuple[int, int]]:
    """Sorted gaps with one more, merged with those it touches."""
    before = [g for g in gaps if g[0] + g[1] < at]
    after = [g for g in gaps if g[0] > at + size]
    touching = [g for g in gaps if not (g[0] + g[1] < at or g[0] > at + size)]
    low = min([at, *(g[0] for g in touching)])
    high = max([at + size, *(g[0] + g[1] for g in touching)])
    return [*before, (low, high - low), *after]
