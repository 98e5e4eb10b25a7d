"""record: eager for now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Recorded", "record"]


class Recorded:
    def __init__(self, step: Callable, state: Any, *, frozen: Any = (), check: int = 1) -> None:
        self.step, self.state = step, state

    def __call__(self, *inputs: Any) -> Any:
        return self.step(self.state, *inputs)


def record(step: Callable, state: Any, *, frozen: Any = (), check: int = 1) -> Recorded:
    return Recorded(step, state, frozen=frozen, check=check)
