"""A row of the tables: work of one size with its goals, and the family whose table it stands in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """Work of one size. goals: rival -> ours is at least so many times as fast; seconds, memory (bytes), pair (seconds
    per pair) and error: at most; peak: at least this fraction of the machine's. once: a call takes so long that it is
    made once, unwarmed, and only with --large. timed=False: nothing but the error counts. mean: rival -> goal of the
    geometric mean over the family. lean: our memory is at most that of every rival that a goal names."""

    name: str
    work: Any
    goals: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    memory: float | None = None
    pair: float | None = None
    error: float | None = None
    peak: float | None = None
    once: bool = False
    timed: bool = True
    family: str = ""
    mean: dict[str, float] = field(default_factory=dict)
    lean: bool = False


def family(name: str, *cases: Case, mean: dict[str, float] | None = None) -> list[Case]:
    """Cases that are printed as one table, with goals of the geometric mean over them."""
    return [replace(case, family=name, mean=mean or {}) for case in cases]
