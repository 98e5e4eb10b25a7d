"""Noise levels, in float64, falling and ending in exactly 0."""

from __future__ import annotations

import numpy as np

__all__ = ["karras_sigmas"]


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """(sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n, then 0.

    Returns (n + 1,) float64. n = 1 gives (sigma_max, 0). Karras et al. (2022), eq. 5.
    """
    if n < 1:
        raise ValueError(f"karras_sigmas: n must be at least 1, got {n}")
    if not 0 < sigma_min <= sigma_max < np.inf:
        raise ValueError(f"karras_sigmas: wanted 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
    if rho <= 0:
        raise ValueError(f"karras_sigmas: rho must be positive, got {rho}")
    ramp = np.arange(n) / max(n - 1, 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    sigmas[0] = sigma_max  # the power is not exact
    if n > 1:
        sigmas[-1] = sigma_min
    return np.append(sigmas, 0.0)
