"""Labels of which some are unknown: -1, None or NaN where labels are numbers, None or "" where they are strings."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["fill_unknown", "is_known"]


def fill_unknown(y: Any) -> Any:
    """y with -1, or "" among strings, for None and NaN; None stays None."""
    if y is None:
        return None
    y = np.asarray(y)
    if y.dtype.kind not in "Of":
        return y
    values = y.ravel().tolist()
    missing = [v is None or v != v for v in values]
    text = any(isinstance(v, str) for v in values)
    return np.array([("" if text else -1) if m else v for v, m in zip(values, missing, strict=True)]).reshape(y.shape)


def is_known(labels: np.ndarray) -> np.ndarray:
    """Where labels, filled, are known."""
    return labels != ("" if labels.dtype.kind == "U" else -1)
