"""Weights of the levels: functions of the noise-to-signal ratio s = sigma / alpha. Signal-to-noise is 1 / s^2.

One idea: every weight here multiplies the loss of the denoised, |D - data|^2. `Objective` converts it to the loss of
what its network predicts, so a name means the same weighted loss whatever that is. Papers give weights for the loss of
the noise, |eps - noise|^2 = |D - data|^2 / s^2; here they have been converted. Options go in by functools.partial.
Not here: weights that are learned (uncertainty), and the density of the levels, which weighs as well (times).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = [
    "WEIGHTINGS", "constant", "edm", "flow", "min_snr", "p2", "snr", "snr_plus_one", "soft_min_snr", "soft_truncation",
    "truncated_snr",
]  # fmt: skip

Weighting = Callable[[np.ndarray], np.ndarray]


def _positive(owner: str, **options: float) -> None:
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} must be positive and finite, got {value}")


def constant(levels: np.ndarray) -> np.ndarray:
    """1: every level's denoised counts the same."""
    return np.ones_like(levels)


def snr(levels: np.ndarray) -> np.ndarray:
    """1 / s^2: the unweighted loss of the noise, "L_simple" of Ho et al. (2020), eq. 14."""
    return levels**-2.0


def snr_plus_one(levels: np.ndarray) -> np.ndarray:
    """1 / s^2 + 1: the unweighted loss of v. Salimans and Ho (2022), section 4."""
    return levels**-2.0 + 1


def truncated_snr(levels: np.ndarray) -> np.ndarray:
    """max(1 / s^2, 1). Salimans and Ho (2022), section 4."""
    return np.maximum(levels**-2.0, 1)


def flow(levels: np.ndarray) -> np.ndarray:
    """(1 + s)^2 / s^2: the unweighted loss of the velocity noise - data. Lipman et al. (2023)."""
    return (1 / levels + 1) ** 2


def min_snr(levels: np.ndarray, *, gamma: float = 5.0) -> np.ndarray:
    """min(1 / s^2, gamma). Hang et al. (2023)."""
    _positive("min_snr", gamma=gamma)
    return np.minimum(levels**-2.0, gamma)


def soft_min_snr(levels: np.ndarray, *, sigma_data: float = 0.5) -> np.ndarray:
    """1 / (s^2 + sigma_data^2): min_snr with its corner rounded off. Crowson et al. (2024)."""
    _positive("soft_min_snr", sigma_data=sigma_data)
    return 1 / (levels**2 + sigma_data**2)


def p2(levels: np.ndarray, *, k: float = 1.0, gamma: float = 1.0) -> np.ndarray:
    """(1 / s^2) / (k + 1 / s^2)^gamma: less weight on the last, imperceptible noise. Choi et al. (2022)."""
    _positive("p2", k=k)
    ratio = levels**-2.0
    return ratio / (k + ratio) ** gamma


def edm(levels: np.ndarray, *, sigma_data: float = 0.5) -> np.ndarray:
    """(s^2 + d^2) / (s d)^2: the unweighted loss of `Edm`'s F. Karras et al. (2022), table 1."""
    _positive("edm", sigma_data=sigma_data)
    return levels**-2.0 + sigma_data**-2.0


def soft_truncation(
    levels: np.ndarray, *, low: float = 0.002, high: float = 80.0, k: float = 1.0, weighting: Weighting = snr
) -> np.ndarray:
    """weighting(s) P(tau <= s) for a smallest level tau in [low, high] with density proportional to tau^-k.

    That is the mean over tau of losses cut off below tau, taken in closed form instead of a draw per batch: 0 up to
    `low`, unchanged from `high` on. Kim et al. (2022).
    """
    _positive("soft_truncation", low=low, high=high)
    if not low < high:
        raise ValueError(f"soft_truncation: low must be below high, got {low} and {high}")
    at = np.log(np.clip(levels, low, high) / low)
    span, power = math.log(high / low), 1 - k
    below = at / span if power == 0 else np.expm1(power * at) / math.expm1(power * span)
    return weighting(levels) * below


WEIGHTINGS: dict[str, Callable[..., np.ndarray]] = {
    "constant": constant,
    "snr": snr,
    "snr_plus_one": snr_plus_one,
    "truncated_snr": truncated_snr,
    "flow": flow,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "p2": p2,
    "edm": edm,
    "soft_truncation": soft_truncation,
}
