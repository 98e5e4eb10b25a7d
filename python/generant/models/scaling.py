"""Data as a network sees it, and back: an offset per feature and one scale, fitted to the training data.

Kept apart from the models because sampling, scoring and files need the same numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ops import _device
from .estimator import check_data

__all__ = ["Scaling"]

ROUNDING = 1e-13  # relative: data whose features vary less are taken to be constant


class Scaling:
    """x -> (x - offset) / scale, float32 and flat (n, d), for X (n, *shape).

    shape, dtype: of a sample as it came; offset, low, high (d,): float64, of X's unit; scale: a float, or (d,) one for
    each feature. levels: if not 0, [0, 1] is cut into so many bins, and rows hold the numbers 0, 1, ... of the bins.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, offset: Any, scale: Any, low: np.ndarray, high: np.ndarray
    ) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.size = math.prod(self.shape)
        self.offset = np.broadcast_to(np.asarray(offset, np.float64), (self.size,)).copy()
        self.scale: Any = np.asarray(scale, np.float64) if np.ndim(scale) else float(scale)
        self.low, self.high, self.levels = low, high, 0

    @staticmethod
    def _bounds(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.dtype]:
        rows = X.reshape(len(X), -1).astype(np.float64)
        # images of bytes come back as bytes, other whole numbers as what a network can return
        kept = X.dtype if X.dtype in (np.float32, np.float64, np.uint8) else np.dtype(np.float32)
        return rows, rows.min(0), rows.max(0), kept

    @classmethod
    def standard(cls, X: np.ndarray, rms: float = 1.0) -> Scaling:
        """Mean 0 for every feature, root mean square `rms` over all of them; the scale of constant data is 1."""
        rows, low, high, dtype = cls._bounds(X)
        mean = rows.mean(0)
        away = rows - mean
        largest = float(np.abs(away).max())
        if largest <= ROUNDING * np.maximum(np.abs(low), np.abs(high)).max():  # the mean of equal numbers is rounded
            scale = 1.0
        else:
            scale = float(np.sqrt(np.mean((away / largest) ** 2)) * largest / rms)  # squares of large numbers overflow
        return cls(X.shape[1:], dtype, mean, scale, low, high)

    @classmethod
    def columns(cls, X: np.ndarray, chosen: np.ndarray) -> Scaling:
        """Mean 0 and deviation 1 for each of the chosen features, (d,) bool; the others as they are."""
        rows, low, high, dtype = cls._bounds(X)
        deviation = rows.std(0)
        varies = deviation > ROUNDING * np.maximum(np.abs(low), np.abs(high))
        scale = np.where(chosen & varies, deviation, 1.0)
        return cls(X.shape[1:], dtype, np.where(chosen, rows.mean(0), 0.0), scale, low, high)

    @classmethod
    def to_range(cls, X: np.ndarray, low: float, high: float) -> Scaling:
        """The range of all of X (of a byte, if it is bytes) to [low, high]."""
        _, least, most, dtype = cls._bounds(X)
        first, last = (0.0, 255.0) if dtype == np.uint8 else (float(least.min()), float(most.max()))
        scale = (last - first) / (high - low) or 1.0
        return cls(X.shape[1:], dtype, first - low * scale, scale, least, most)

    @classmethod
    def bins(cls, X: np.ndarray, levels: int) -> Scaling:
        """The bin of each number of X, which lies in [0, 1]: of k / (levels - 1) and of (k + u) / levels it is k."""
        made = cls.none(X)
        made.scale, made.levels = 1.0 / levels, levels
        return made

    @classmethod
    def none(cls, X: np.ndarray) -> Scaling:
        """X as it is: counts, codes, pixels that are 0 or 1 already."""
        _, low, high, dtype = cls._bounds(X)
        return cls(X.shape[1:], dtype, 0.0, 1.0, low, high)

    def forward(self, where: str, X: Any) -> np.ndarray:
        """X (n, *shape) -> (n, d) float32. ValueError if its samples do not have the shape of the training data's."""
        X = check_data(where, X)
        if X.shape[1:] != self.shape:
            raise ValueError(
                f"{where}: X has {math.prod(X.shape[1:])} features, but {where.split('.')[0]} is expecting {self.size} "
                f"features as input (X: n {' '.join(map(str, X.shape[1:]))}, wanted n {' '.join(map(str, self.shape))})"
            )
        rows = X.reshape(len(X), -1)
        if self.levels:
            return np.clip(np.floor(rows.astype(np.float64) * self.levels), 0, self.levels - 1).astype(np.float32)
        return ((rows - self.offset) / self.scale).astype(np.float32)

    def back(self, rows: Any, *, clip: bool = False) -> Any:
        """(n, d) -> (n, *shape) in X's unit and dtype; with clip, every feature within its range in X.

        Device arrays stay where they are.
        """
        xp, here = _device.namespace(rows), lambda a: _device.beside(rows, a)
        scale, offset = np.asarray(self.scale, np.float64), self.offset + (0.5 * self.scale if self.levels else 0.0)
        x = rows.reshape(len(rows), -1).astype(np.float64, copy=False) * here(scale) + here(offset)
        if clip:
            xp.clip(x, here(self.low), here(self.high), out=x)
        if self.dtype == np.uint8:
            x = xp.clip(xp.rint(x), 0, 255)
        return x.astype(self.dtype).reshape(len(rows), *self.shape)

    @property
    def log_density(self) -> float:
        """What a log density of scaled rows misses to be one of X: -sum of log(scale) over features, in nats."""
        return -float(np.sum(np.log(np.broadcast_to(self.scale, (self.size,)))))

    @property
    def image(self) -> tuple[int, int, int] | None:
        """(h, w, c) of a sample, None if samples are rows."""
        if len(self.shape) == 2:
            return (*self.shape, 1)
        return self.shape if len(self.shape) == 3 else None

    def arrays(self) -> dict[str, np.ndarray]:
        """For a file: the arrays."""
        return {"offset": self.offset, "low": self.low, "high": self.high}

    def config(self) -> dict[str, Any]:
        """For a file: the rest."""
        scale = self.scale if isinstance(self.scale, float) else self.scale.tolist()
        return {"shape": list(self.shape), "dtype": self.dtype.name, "scale": scale, "levels": self.levels}

    @classmethod
    def load(cls, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> Scaling:
        """What `arrays` and `config` described."""
        made = cls(
            tuple(config["shape"]), config["dtype"], arrays["offset"], config["scale"], arrays["low"], arrays["high"]
        )
        made.levels = config.get("levels", 0)
        return made
