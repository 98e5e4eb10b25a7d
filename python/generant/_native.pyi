"""The compiled module: csrc/bind.cpp says what each of these does."""

from collections.abc import Callable
from typing import Any

import numpy as np

isa: str
supported_isas: tuple[str, ...]

def kernels() -> dict[str, int]: ...
def launch(
    kernel: int,
    inputs: tuple[np.ndarray | None, ...],
    outputs: tuple[np.ndarray | None, ...],
    attributes: tuple[float, ...],
    /,
) -> None: ...
def empty(shape: tuple[int, ...], dtype: int, /) -> np.ndarray: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int, /) -> None: ...
def limit_threads(n: int, /) -> int: ...
def trim() -> None: ...
def cached_bytes() -> int: ...

class Runner:
    def __init__(
        self,
        prepare: Callable[[tuple, dict[str, Any]], tuple],
        slow: Callable[..., Any],
        check: Callable[..., Any] | None,
        all: bool,
        n_public: int,
        n_arrays: int,
        effects: int,
        /,
    ) -> None: ...
    def __call__(self, *arrays: Any, **attributes: Any) -> Any: ...
