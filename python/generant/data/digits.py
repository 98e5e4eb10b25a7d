"""The UCI optical digits: 1797 handwritten digits of 8 x 8 pixels, which scikit-learn carries with it.

Alpaydin and Kaynak (1998), https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..random import Stream
from .batches import stratified_split

__all__ = ["Digits", "digits"]

SPLIT = 6  # purpose of the random stream


class Digits(NamedTuple):
    """train (n, ...), train_labels (n,), held_out (m, ...), held_out_labels (m,); pixels in 0 ... 1, labels 0 ... 9."""

    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray


def digits(*, held_out: float = 0.2, random_state: int = 0) -> Digits:
    """The digits as rows (n, 64), a fraction of every class held out. Raises ImportError without scikit-learn."""
    x, y = read_digits()
    train, held = stratified_split(y, held_out, Stream(random_state, SPLIT))
    return Digits(x[train], y[train], x[held], y[held])


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """All rows (1797, 64) and labels (1797,), in the order of the file."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("the digits come with scikit-learn: pip install 'generant[demo]'") from None
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int64)
