"""The noise of `torch.manual_seed` on a CPU, without PyTorch: `TorchCpuNoise`.

A run whose noise came from PyTorch can be repeated from its seed. The generator is MT19937, one 32-bit word after the
other; what has to be matched is how words become numbers, and that depends on how many numbers a call asks for. Words
and uniform numbers are the same bits, normal numbers agree to 1e-6 (the last bits of log, sin and cos differ).

Sequential by nature: number i can be had only after the i - 1 before it, so a sample depends on the batch it was drawn
in. Everything else in this library draws by key (generant.random). Not here: other PyTorch distributions, CUDA streams.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

__all__ = ["TorchCpuNoise"]

WORDS = 624  # of state in MT19937
BLOCK = 16  # normal numbers are made 16 at a time, in calls for at least as many
DTYPES = ("float32", "float64")


def _state(seed: int) -> np.ndarray:
    """The first state of MT19937: w_i = 1812433253 (w_{i-1} ^ w_{i-1} >> 30) + i, from the low half of the seed."""
    words = [seed & 0xFFFFFFFF]
    for i in range(1, WORDS):
        words.append((1812433253 * (words[-1] ^ words[-1] >> 30) + i) & 0xFFFFFFFF)
    return np.array(words, np.uint32)


class TorchCpuNoise:
    """The draws of a PyTorch CPU generator after manual_seed(seed), in the order in which they are asked for.

    seed: an integer, -2^63 ... 2^64 - 1; as in PyTorch, only its low 32 bits count. Matsumoto and Nishimura (1998).
    """

    def __init__(self, seed: int) -> None:
        try:
            seed = operator.index(seed)
        except TypeError:
            raise TypeError(f"TorchCpuNoise: seed must be an integer, got {type(seed).__name__}") from None
        if not -(2**63) <= seed < 2**64:
            raise ValueError(f"TorchCpuNoise: seed must lie in -2^63 ... 2^64 - 1, got {seed}")
        self._engine = np.random.MT19937()
        self._engine.state = {"bit_generator": "MT19937", "state": {"key": _state(seed), "pos": WORDS}}
        self._second: float | None = None  # the other normal number of a pair, kept for the next short call

    def uniform(self, shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Numbers uniform on [0, 1), as torch.rand gives: 24 bits of one word, or 53 of two for float64."""
        shape, n = _count("uniform", shape, dtype)
        return self._uniform(n, dtype).reshape(shape)

    def normal(self, shape: int | tuple[int, ...], dtype: str = "float32") -> np.ndarray:
        """Standard normal numbers, as torch.randn gives: to 1e-6 in float32, 1e-14 in float64.

        Fewer than 16 are made one after the other from float64 pairs. From 16 on, 8 radii are followed by 8 angles;
        where 16 does not divide the count, the last 16 numbers are drawn again.
        """
        shape, n = _count("normal", shape, dtype)
        if n < BLOCK:
            return np.array([self._one() for _ in range(n)], dtype).reshape(shape)
        numbers = self._uniform(n, dtype)
        whole = n - n % BLOCK
        numbers[:whole] = _box_muller(numbers[:whole])
        if whole < n:
            numbers[n - BLOCK :] = _box_muller(self._uniform(BLOCK, dtype))
        return numbers.reshape(shape)

    def _uniform(self, n: int, dtype: str) -> np.ndarray:
        if dtype == "float32":
            return ((self._engine.random_raw(n) & 0xFFFFFF) * 2.0**-24).astype(np.float32)
        high, low = self._engine.random_raw(2 * n).reshape(n, 2).T
        return ((high << np.uint64(32) | low) & np.uint64(2**53 - 1)) * 2.0**-53

    def _one(self) -> float:
        if self._second is not None:
            number, self._second = self._second, None
            return number
        u, v = self._uniform(2, "float64").tolist()
        radius = math.sqrt(-2 * math.log1p(-v))
        self._second = radius * math.sin(2 * math.pi * u)
        return radius * math.cos(2 * math.pi * u)


def _count(method: str, shape: Any, dtype: str) -> tuple[tuple[int, ...], int]:
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if dtype not in DTYPES:
        raise ValueError(f"TorchCpuNoise.{method}: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not all(isinstance(length, (int, np.integer)) and length >= 0 for length in shape):
        raise ValueError(f"TorchCpuNoise.{method}: shape must hold integers of at least 0, got {shape}")
    return shape, math.prod(shape)


def _box_muller(u: np.ndarray) -> np.ndarray:
    """sqrt(-2 log(1 - u)) times cos and sin of 2 pi v, for u the first and v the second 8 of every 16 numbers."""
    radius, angle = np.moveaxis(u.reshape(-1, 2, BLOCK // 2), 1, 0)
    radius, angle = np.sqrt(-2 * np.log(1 - radius)), angle.dtype.type(2 * math.pi) * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
