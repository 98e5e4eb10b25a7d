"""Distributions in the plane on which one can see what a model does: modes, thin curves, holes.

All numbers come from (seed, place): the same seed gives the same bits, and fewer points are a prefix of more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..random import Stream, normal, seed_from, uniform
from .checks import check_count, check_real

__all__ = ["Gaussians", "checkerboard", "grid25", "ring8", "swiss_roll", "two_moons"]

TOY = 8  # purpose of the random stream


class Gaussians(NamedTuple):
    """x (n, 2) float32: the points. centres (k, 2) float32 of the k modes, which all have the deviation sigma."""

    x: np.ndarray
    centres: np.ndarray
    sigma: float


def _keys(name: str, n: int, random_state: int | None) -> tuple[int, Stream]:
    return check_count(name, "n", n), Stream(seed_from(random_state), TOY)


def _noisy(x: np.ndarray, sigma: float, stream: Stream) -> np.ndarray:
    """x (n, 2) float64 + sigma * noise, in float32."""
    return (x + sigma * normal(next(stream), x.shape, "float64")).astype(np.float32)


def _mixture(name: str, centres: np.ndarray, sigma: float, n: int, random_state: int | None) -> Gaussians:
    n, stream = _keys(name, n, random_state)
    sigma = check_real(name, "sigma", sigma, 0, math.inf)
    which = (uniform(next(stream), n, "float64") * len(centres)).astype(np.int64)
    return Gaussians(_noisy(centres[which], sigma, stream), centres.astype(np.float32), sigma)


def grid25(n: int, random_state: int | None = 0, *, sigma: float = 0.05) -> Gaussians:
    """25 equally likely Gaussians on {-4, -2, 0, 2, 4}^2. Lin, Khetan, Fanti and Oh (2018), "PacGAN", section 4.1."""
    axis = np.arange(-4.0, 5.0, 2.0)
    return _mixture("grid25", np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2), sigma, n, random_state)


def ring8(n: int, random_state: int | None = 0, *, sigma: float = 0.02) -> Gaussians:
    """8 equally likely Gaussians on a circle of radius 2. Metz et al. (2017), "Unrolled GANs", appendix A."""
    angle = np.arange(8) * (math.pi / 4)
    return _mixture("ring8", 2 * np.stack([np.cos(angle), np.sin(angle)], 1), sigma, n, random_state)


def two_moons(n: int, random_state: int | None = 0, *, noise: float = 0.05) -> np.ndarray:
    """Two interlocked half circles of radius 1, around (0, 0) and (1, 0.5), with noise of that deviation; (n, 2).

    The curves of scikit-learn's make_moons.
    """
    n, stream = _keys("two_moons", n, random_state)
    t, lower = math.pi * uniform(next(stream), n, "float64"), uniform(next(stream), n, "float64") < 0.5
    x = np.stack([np.cos(t), np.sin(t)], 1)
    x[lower] = [1.0, 0.5] - x[lower]
    return _noisy(x, check_real("two_moons", "noise", noise, 0, math.inf), stream)


def swiss_roll(n: int, random_state: int | None = 0, *, noise: float = 0.2) -> np.ndarray:
    """(t cos t, t sin t) / 5 for t uniform on [1.5 pi, 4.5 pi], with noise of that deviation; (n, 2).

    Scale and noise of Grathwohl et al. (2019), "FFJORD", whose curve is that of scikit-learn's make_swiss_roll.
    """
    n, stream = _keys("swiss_roll", n, random_state)
    t = math.pi * (1.5 + 3 * uniform(next(stream), n, "float64"))
    x = (t / 5)[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    return _noisy(x, check_real("swiss_roll", "noise", noise, 0, math.inf), stream)


def checkerboard(n: int, random_state: int | None = 0) -> np.ndarray:
    """Uniform on the 8 black squares, of side 2, of a 4 x 4 board on [-4, 4)^2; (n, 2). Grathwohl et al. (2019)."""
    n, stream = _keys("checkerboard", n, random_state)
    x, y = 4 * uniform(next(stream), (n, 2)).T  # in squares; y folds two rows of the board into each half
    row = np.floor(y / 2) * 2 + (np.floor(x) % 2)
    return np.stack([2 * x - 4, 2 * (row + y / 2 % 1) - 4], 1)
