"""Noise levels of a sampling run, noise-to-signal ratios in float64, falling and ending in exactly 0.

One idea: n levels from sigma_max to sigma_min, both hit exactly, and a 0, so n evaluations of the network; the families
differ only in how the n lie between. Everything is float64 and read-only. What is not here: times (times), the levels
that a model was trained on (discrete, processes), and which update is made between two levels (samplers).
"""

from __future__ import annotations

import numpy as np

from .arrays import read_only

__all__ = [
    "AYS_LEVELS",
    "ays_sigmas",
    "beta_sigmas",
    "exponential_sigmas",
    "karras_sigmas",
    "lu_sigmas",
    "polyexponential_sigmas",
]

# Sabour et al. (2024), Align Your Steps, table of the appendix: eleven levels, ten steps
AYS_LEVELS: dict[str, tuple[float, ...]] = {
    "SD1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "SDXL": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "SVD": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def karras_sigmas(n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """(sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n, then 0.

    Returns (n + 1,) float64. n = 1 gives (sigma_max, 0). Karras et al. (2022), eq. 5.
    """
    _check("karras_sigmas", n, sigma_min, sigma_max)
    if not 0 < rho < np.inf:
        raise ValueError(f"karras_sigmas: rho must be positive, got {rho}")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _ended((high + _ramp(n) * (low - high)) ** rho, sigma_min, sigma_max)


def exponential_sigmas(n: int, *, sigma_min: float, sigma_max: float) -> np.ndarray:
    """sigma_max (sigma_min / sigma_max)^(i / (n - 1)) for i < n, then 0: even in log sigma.

    Returns (n + 1,) float64. n = 1 gives (sigma_max, 0).
    """
    _check("exponential_sigmas", n, sigma_min, sigma_max)
    return _geometric(_ramp(n), sigma_min, sigma_max)


def polyexponential_sigmas(n: int, *, sigma_min: float, sigma_max: float, rho: float = 1.0) -> np.ndarray:
    """sigma_min (sigma_max / sigma_min)^((1 - i / (n - 1))^rho) for i < n, then 0: a power of the ramp in log sigma.

    rho = 1 is `exponential_sigmas`; larger ones put more levels near sigma_min.
    Returns (n + 1,) float64. n = 1 gives (sigma_max, 0).
    """
    _check("polyexponential_sigmas", n, sigma_min, sigma_max)
    if not 0 < rho < np.inf:
        raise ValueError(f"polyexponential_sigmas: rho must be positive, got {rho}")
    return _geometric(1 - (1 - _ramp(n)) ** rho, sigma_min, sigma_max)


def lu_sigmas(n: int, *, sigma_min: float, sigma_max: float) -> np.ndarray:
    """exp(-lambda) for n values of lambda = log(alpha / sigma) evenly from -log sigma_max to -log sigma_min, then 0.

    Steps of one length in the log signal-to-noise ratio; a level is a noise-to-signal ratio, so these are the
    `exponential_sigmas`. Returns (n + 1,) float64. Lu et al. (2022), DPM-Solver.
    """
    _check("lu_sigmas", n, sigma_min, sigma_max)
    return _geometric(_ramp(n), sigma_min, sigma_max)


def beta_sigmas(n: int, *, sigma_min: float, sigma_max: float, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """sigma_min + (sigma_max - sigma_min) Q(1 - i / (n - 1)) for i < n, then 0, Q the quantiles of Beta(alpha, beta).

    alpha, beta < 1 put more levels at both ends. Q itself spaces flow times: sigma_min near 0, sigma_max = 1.
    Returns (n + 1,) float64. Needs scipy. Lee et al. (2024), Beta sampling is all you need.
    """
    _check("beta_sigmas", n, sigma_min, sigma_max)
    if not (0 < alpha < np.inf and 0 < beta < np.inf):
        raise ValueError(f"beta_sigmas: alpha and beta must be positive, got {alpha} and {beta}")
    try:
        from scipy.special import betaincinv  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(
            "beta_sigmas needs scipy for the quantiles of the beta distribution: install scipy"
        ) from error
    quantiles = np.asarray(betaincinv(alpha, beta, 1 - _ramp(n)))
    return _ended(sigma_min + (sigma_max - sigma_min) * quantiles, sigma_min, sigma_max)


def ays_sigmas(model: str, n: int = 10) -> np.ndarray:
    """Published levels that were optimised for one model, interpolated in log sigma to n steps; the last level is 0.

    model: "SD1" (Stable Diffusion 1.5), "SDXL" or "SVD" (Stable Video Diffusion). n = 10 is the table itself but for
    its eleventh level, where the last step would stop: it is 0 here, as in all families.
    Returns (n + 1,) float64. Sabour et al. (2024), Align Your Steps.
    """
    if model not in AYS_LEVELS:
        raise ValueError(f"ays_sigmas: model must be one of {', '.join(AYS_LEVELS)}, got {model!r}")
    table = np.array(AYS_LEVELS[model])
    _check("ays_sigmas", n, table[-1], table[0])
    place = np.arange(n) * ((table.size - 1) / n)
    sigmas = np.exp(np.interp(place, np.arange(table.size), np.log(table)))
    known = place == np.rint(place)
    sigmas[known] = table[place[known].astype(int)]  # the exponential is not exact
    return read_only(np.append(sigmas, 0.0))


def _check(function: str, n: int, sigma_min: float, sigma_max: float) -> None:
    if n != int(n) or n < 1:
        raise ValueError(f"{function}: n must be an integer of at least 1, got {n}")
    if not 0 < sigma_min <= sigma_max < np.inf:
        raise ValueError(f"{function}: wanted 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")


def _ramp(n: int) -> np.ndarray:
    return np.arange(n) / max(n - 1, 1)


def _geometric(share: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
    return _ended(sigma_max * (sigma_min / sigma_max) ** share, sigma_min, sigma_max)


def _ended(sigmas: np.ndarray, sigma_min: float, sigma_max: float) -> np.ndarray:
    sigmas[0] = sigma_max  # the powers are not exact
    if sigmas.size > 1:
        sigmas[-1] = sigma_min
    return read_only(np.append(sigmas, 0.0))
