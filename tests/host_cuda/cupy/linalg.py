"""cupy.linalg, computed by numpy.linalg."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _names
from ._call import lift


def __getattr__(name: str) -> Any:
    if name not in _names.LINALG:
        raise AttributeError(f"module 'cupy.linalg' has no attribute '{name}'")
    return lift(np.linalg, name)
