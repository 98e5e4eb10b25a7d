"""Processes in continuous time, x_t = alpha(t) data + sigma(t) noise for t in [0, 1], each given by its formulas.

One idea: a process is alpha and the level sigma / alpha; all else follows. With dx = f(t) x dt + g(t) dw,
f = (log alpha)' and g^2 = (sigma^2)' - 2 f sigma^2. Formulas are written so that no digits are lost at small t. What is
not here: tables of betas (betas, discrete) and the choice of times (times, levels).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from .plots import plot_curves

__all__ = ["VE", "VP", "Cosine", "Process", "SubVP"]


class Process(ABC):
    """x_t = alpha(t) data + sigma(t) noise. Methods take t in [0, 1] of any shape and return float64 of that shape."""

    @abstractmethod
    def alpha(self, t: ArrayLike) -> np.ndarray:
        """The factor of the data."""

    @abstractmethod
    def level(self, t: ArrayLike) -> np.ndarray:
        """sigma(t) / alpha(t), rising: what samplers take."""

    @abstractmethod
    def drift(self, t: ArrayLike) -> np.ndarray:
        """f(t) = d log alpha / dt, of dx = f x dt + g dw."""

    @abstractmethod
    def diffusion(self, t: ArrayLike) -> np.ndarray:
        """g(t) = sqrt((sigma^2)' - 2 f sigma^2), of dx = f x dt + g dw."""

    @abstractmethod
    def _inverse(self, level: np.ndarray) -> np.ndarray:
        """The time of levels that are known to be in range."""

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """The standard deviation of the noise."""
        return self.level(t) * self.alpha(t)

    def log_snr(self, t: ArrayLike) -> np.ndarray:
        """log(alpha^2 / sigma^2), falling."""
        with np.errstate(divide="ignore"):
            return -2 * np.log(self.level(t))

    def time_of(self, level: ArrayLike) -> np.ndarray:
        """t with level(t) = level, for levels in [level(0), level(1)]; rounding beyond the ends is forgiven."""
        levels = np.asarray(level, np.float64)
        low, high = float(self.level(0.0)), float(self.level(1.0))
        if not ((levels >= low * (1 - 1e-9)) & (levels <= high * (1 + 1e-9))).all():
            raise ValueError(f"{type(self).__name__}.time_of: level must lie in [{low:g}, {high:g}], got {level!r}")
        return np.clip(self._inverse(levels), 0.0, 1.0)

    def __str__(self) -> str:
        """The repr and a table of eleven times."""
        lines = [repr(self), f"{'t':>5} {'alpha':>12} {'sigma':>12} {'level':>12} {'log SNR':>12}"]
        for t in np.linspace(0, 1, 11):
            row = (self.alpha(t), self.sigma(t), self.level(t), self.log_snr(t))
            lines.append(f"{t:>5.1f} " + " ".join(f"{float(value):>12.6g}" for value in row))
        return "\n".join(lines)

    def plot(self, path: str | PathLike[str]) -> None:
        """Write a figure of the process to path. Needs matplotlib."""
        t = np.linspace(0, 1, 257)
        plot_curves(path, t=t, alpha=self.alpha(t), sigma=self.sigma(t), title=repr(self))


@dataclass(frozen=True)
class _LinearBeta(Process):
    """alpha = exp(-B / 2), B(t) = integral of beta(t) = beta_min + (beta_max - beta_min) t from 0 to t."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta_min <= self.beta_max < np.inf and self.beta_max > 0):
            raise ValueError(
                f"{type(self).__name__}: wanted 0 <= beta_min <= beta_max and beta_max > 0, "
                f"got {self.beta_min} and {self.beta_max}"
            )

    def beta(self, t: ArrayLike) -> np.ndarray:
        """beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * _times(self, t)

    def _integral(self, t: ArrayLike) -> np.ndarray:
        times = _times(self, t)
        return times * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * times)

    def _time_of_integral(self, integral: np.ndarray) -> np.ndarray:
        root = np.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        # the root of the quadratic that does not subtract; beta_min = 0 and integral = 0 give t = 0
        return np.divide(2 * integral, self.beta_min + root, out=np.zeros_like(root), where=integral > 0)

    def alpha(self, t: ArrayLike) -> np.ndarray:
        return np.exp(-0.5 * self._integral(t))

    def drift(self, t: ArrayLike) -> np.ndarray:
        return -0.5 * self.beta(t)


@dataclass(frozen=True)
class VP(_LinearBeta):
    """alpha^2 = exp(-B), sigma^2 = 1 - alpha^2, B(t) = beta_min t + (beta_max - beta_min) t^2 / 2; f = -beta / 2,
    g^2 = beta.

    The limit of DDPM's linear betas, n beta = 0.1 .. 20. Song et al. (2021), eq. 11.
    """

    def level(self, t: ArrayLike) -> np.ndarray:
        return np.sqrt(np.expm1(self._integral(t)))

    def sigma(self, t: ArrayLike) -> np.ndarray:
        return np.sqrt(-np.expm1(-self._integral(t)))

    def diffusion(self, t: ArrayLike) -> np.ndarray:
        return np.sqrt(self.beta(t))

    def _inverse(self, level: np.ndarray) -> np.ndarray:
        return self._time_of_integral(np.log1p(level**2))


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """alpha^2 = exp(-B), sigma = 1 - alpha^2, B as in VP, so level = 2 sinh(B / 2); f = -beta / 2,
    g^2 = beta (1 - alpha^4).

    Less noise than VP at every t. Song et al. (2021), eq. 12.
    """

    def level(self, t: ArrayLike) -> np.ndarray:
        return 2 * np.sinh(0.5 * self._integral(t))

    def sigma(self, t: ArrayLike) -> np.ndarray:
        return -np.expm1(-self._integral(t))

    def diffusion(self, t: ArrayLike) -> np.ndarray:
        return np.sqrt(self.beta(t) * -np.expm1(-2 * self._integral(t)))

    def _inverse(self, level: np.ndarray) -> np.ndarray:
        return self._time_of_integral(2 * np.arcsinh(0.5 * level))


@dataclass(frozen=True)
class VE(Process):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t; f = 0, g = sigma sqrt(2 log(sigma_max / sigma_min)).

    At t = 0 the data carry sigma_min already. Song et al. (2021), eq. 9, appendix C.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < np.inf:
            raise ValueError(f"VE: wanted 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def alpha(self, t: ArrayLike) -> np.ndarray:
        return np.ones_like(_times(self, t))

    def level(self, t: ArrayLike) -> np.ndarray:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** _times(self, t)

    def drift(self, t: ArrayLike) -> np.ndarray:
        return np.zeros_like(_times(self, t))

    def diffusion(self, t: ArrayLike) -> np.ndarray:
        return self.level(t) * np.sqrt(2 * np.log(self.sigma_max / self.sigma_min))

    def _inverse(self, level: np.ndarray) -> np.ndarray:
        return np.log(level / self.sigma_min) / np.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Cosine(Process):
    """alpha = cos(a(t)) / cos(a(0)), a(t) = pi/2 (t + s) / (1 + s), sigma^2 = 1 - alpha^2; f = -a' tan(a), g^2 = -2 f.

    alpha is 0 at t = 1, where level, f and g are infinite but for rounding. s = 0 gives level = tan(pi t / 2). Nichol
    and Dhariwal (2021), eq. 17, without its limit on beta.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.s < np.inf:
            raise ValueError(f"Cosine: s must be 0 or more, got {self.s}")

    @property
    def _rate(self) -> float:
        return np.pi / 2 / (1 + self.s)

    def alpha(self, t: ArrayLike) -> np.ndarray:
        # sin of what is left to 1, as the cosine would not be 0 there
        return np.sin(self._rate * (1 - _times(self, t))) / np.cos(self._rate * self.s)

    def sigma(self, t: ArrayLike) -> np.ndarray:
        # cos^2 b - cos^2 a = sin(a - b) sin(a + b)
        times = _times(self, t)
        product = np.sin(self._rate * times) * np.sin(self._rate * (times + 2 * self.s))
        return np.sqrt(np.maximum(product, 0)) / np.cos(self._rate * self.s)

    def level(self, t: ArrayLike) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return self.sigma(t) / self.alpha(t)

    def drift(self, t: ArrayLike) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return -self._rate / np.tan(self._rate * (1 - _times(self, t)))

    def diffusion(self, t: ArrayLike) -> np.ndarray:
        return np.sqrt(-2 * self.drift(t))

    def _inverse(self, level: np.ndarray) -> np.ndarray:
        start = self._rate * self.s
        # tan^2 a = (level^2 + sin^2 a(0)) / cos^2 a(0)
        return np.arctan2(np.hypot(level, np.sin(start)), np.cos(start)) / self._rate - self.s


def _times(process: Process, t: ArrayLike) -> np.ndarray:
    times = np.asarray(t, np.float64)
    if not ((times >= 0) & (times <= 1)).all():
        raise ValueError(f"{type(process).__name__}: t must lie in [0, 1], got {t!r}")
    return times
