"""Keys and streams: every random array is a function of (seed, stream number, element index), by Philox.

A key is two uint64, (seed, stream), as ops.normal and ops.uniform take it. A `Stream` hands out the keys of one purpose
in order, so that two purposes under one seed never share numbers, and a step's numbers do not depend on what was drawn
before it. Nothing here holds hidden state.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np

from . import ops
from .ops import _device

__all__ = ["Stream", "fold_in", "key", "normal", "normals", "permutation", "seed_from", "split", "uniform"]

PURPOSE_BITS = 40  # a stream number is purpose * 2^40 + position


def seed_from(random_state: Any) -> int:
    """A seed of 64 bits: random_state itself if it is an integer, fresh entropy if it is None."""
    if random_state is None:
        return int.from_bytes(os.urandom(8), "little")
    try:
        seed = operator.index(random_state)
    except TypeError:
        raise TypeError(f"random_state must be an integer or None, got {type(random_state).__name__}") from None
    if not 0 <= seed < 2**64:
        raise ValueError(f"random_state must lie in 0 ... 2^64 - 1, got {seed}")
    return seed


def key(seed: int, stream: int = 0) -> np.ndarray:
    """(seed, stream) as the 2 uint64 that random ops take. Keys that differ in either share no numbers."""
    return np.array([_word("seed", seed), _word("stream", stream)], np.uint64)


def _word(name: str, value: Any) -> int:
    try:
        word = operator.index(value)
    except TypeError:
        raise TypeError(f"key: {name} must be an integer, got {type(value).__name__}") from None
    if not 0 <= word < 2**64:
        raise ValueError(f"key: {name} must lie in 0 ... 2^64 - 1, got {word}")
    return word


def _key_of(key_or_seed: Any) -> Any:
    return key_or_seed if hasattr(key_or_seed, "dtype") and key_or_seed.shape else key(key_or_seed)


def fold_in(key: Any, i: int) -> np.ndarray:
    """A key made from a key and a number: Philox of both. Keys made with different numbers are independent."""
    return _fold(_key_of(key), np.array([_word("i", i)], np.uint64))[0]


def split(key: Any, n: int) -> np.ndarray:
    """n keys made from one, (n, 2) uint64: row i is fold_in(key, i), whatever n."""
    if n < 0:
        raise ValueError(f"split: n must be at least 0, got {n}")
    return _fold(_key_of(key), np.arange(n, dtype=np.uint64))


def _fold(key: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    seed, stream = int(key[0]), int(key[1])
    counter = np.empty((len(numbers), 4), np.uint32)
    counter[:, 0], counter[:, 1] = numbers & np.uint64(0xFFFFFFFF), numbers >> np.uint64(32)
    counter[:, 2], counter[:, 3] = stream & 0xFFFFFFFF, stream >> 32
    words = ops.philox(counter, np.array([~seed & 0xFFFFFFFF, ~seed >> 32 & 0xFFFFFFFF], np.uint32))
    return words.view(np.uint64)  # under the complement of the seed: no counter of `normal` is used twice


def normal(key: Any, shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Standard normal numbers of a shape from a key, or from a seed (its stream 0)."""
    return ops.normal(_key_of(key), shape=shape if isinstance(shape, tuple) else (shape,), dtype=dtype)


def normals(keys: Any, shape: tuple[int, ...], dtype: str = "float32", *, stream: int = 0, scale: float = 1.0) -> Any:
    """scale times a row of standard normal numbers per key, (n, *shape), where keys (n, 2) are: `normal` of the row's
    key with `stream` added to its stream number."""
    number, weight = np.array([stream], np.uint64), np.array([scale], np.float64)
    return ops.normals(keys, *[_device.beside(keys, a) for a in (number, weight)], shape=shape, dtype=dtype)


def uniform(key: Any, shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Numbers uniform on [0, 1) of a shape from a key, or from a seed (its stream 0)."""
    return ops.uniform(_key_of(key), shape=shape if isinstance(shape, tuple) else (shape,), dtype=dtype)


class Stream:
    """The keys of one purpose: `at(i)` is key number i, next() the first one not yet handed out."""

    def __init__(self, seed: int, purpose: int = 0) -> None:
        self.seed, self.purpose, self.position = seed, purpose, 0

    def at(self, position: int) -> np.ndarray:
        """Key number `position`, whatever was drawn before."""
        return key(self.seed, (self.purpose << PURPOSE_BITS) + position)

    def __next__(self) -> np.ndarray:
        self.position += 1
        return self.at(self.position - 1)


def permutation(key: np.ndarray, n: int) -> np.ndarray:
    """0 ... n - 1 in random order: the stable order of n uniform numbers. Returns (n,) int64."""
    return np.argsort(ops.uniform(key, dtype="float64", shape=(n,)), kind="stable").astype(np.int64, copy=False)
