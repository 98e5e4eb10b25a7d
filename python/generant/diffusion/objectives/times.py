"""At which noise levels the loss looks: draws from a key, as levels s = sigma / alpha.

Each function is name(key, n, *, options) -> (n,) float64, positive and finite. Distributions of a time t in (0, 1) take
`level`, which says what noise level t is: a function such as `flow_level`, or the levels of a discrete process as a
table. Not here: draws that follow the loss (importance).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ... import ops

__all__ = ["TIMES", "flow_level", "level_of", "logit_normal", "lognormal", "mode", "uniform"]

HALF_STEP = 2.0**-54  # numbers on [0, 1) are multiples of 2^-53; moved by half a step they lie inside (0, 1)
LAST = 1 - 2.0**-53


def flow_level(t: Any) -> Any:
    """t / (1 - t): the level of x_t = (1 - t) data + t noise. t in (0, 1)."""
    return t / (1 - t)


def level_of(level: Callable[[np.ndarray], Any] | Any, t: np.ndarray) -> np.ndarray:
    """The levels of times in (0, 1): level(t), or of a table its entry number floor(t len)."""
    if callable(level):
        return np.asarray(level(t), np.float64)
    table = np.asarray(level, np.float64)
    if table.ndim != 1 or not len(table):
        raise ValueError(f"level must be a function or a vector of levels, got shape {table.shape}")
    return table[np.minimum((t * len(table)).astype(np.int64), len(table) - 1)]


def _inside(t: np.ndarray) -> np.ndarray:
    return np.clip(t, HALF_STEP, LAST)


def _check(owner: str, n: int, std: float = 1.0) -> None:
    if n < 0:
        raise ValueError(f"{owner}: n must be at least 0, got {n}")
    if not 0 <= std < math.inf:
        raise ValueError(f"{owner}: std must be at least 0 and finite, got {std}")


def uniform(key: Any, n: int, *, level: Any = flow_level, even: bool = False) -> np.ndarray:
    """level(t), t uniform on (0, 1).

    level: a function of t, or a table of levels, of which each is as likely. even: one t shifted by multiples of 1 / n,
    modulo 1, so that every batch covers the times evenly (Kingma et al., 2021, appendix I.1).
    """
    _check("uniform", n)
    t = ops.uniform(key, dtype="float64", shape=(1 if even else n,))
    if even:
        t = (t + np.arange(n) / max(n, 1)) % 1
    return level_of(level, _inside(t + HALF_STEP))


def lognormal(key: Any, n: int, *, mean: float = -1.2, std: float = 1.2) -> np.ndarray:
    """exp(mean + std z). Karras et al. (2022), table 1: -1.2 and 1.2; Karras et al. (2024): -0.4 and 1."""
    _check("lognormal", n, std)
    return np.exp(mean + std * ops.normal(key, dtype="float64", shape=(n,)))


def logit_normal(key: Any, n: int, *, mean: float = 0.0, std: float = 1.0, level: Any = flow_level) -> np.ndarray:
    """level(t), t = 1 / (1 + exp(-mean - std z)). Esser et al. (2024), section 3.1.

    With `flow_level` the level is exp(mean + std z): logit-normal in time is log-normal in level.
    """
    _check("logit_normal", n, std)
    log = mean + std * ops.normal(key, dtype="float64", shape=(n,))
    return np.exp(log) if level is flow_level else level_of(level, _inside(1 / (1 + np.exp(-log))))


def mode(key: Any, n: int, *, scale: float = 1.29, level: Any = flow_level) -> np.ndarray:
    """level(t), t = 1 - u - scale (cos^2(pi u / 2) - 1 + u), u uniform: more of the middle if scale > 0, less if < 0.

    scale in [-1, 2 / (pi - 2)], where t falls monotonously from 1 to 0. Esser et al. (2024), section 3.1.
    """
    _check("mode", n)
    if not -1 <= scale <= 2 / (math.pi - 2):
        raise ValueError(f"mode: scale must lie in [-1, 2 / (pi - 2)], got {scale}")
    u = ops.uniform(key, dtype="float64", shape=(n,)) + HALF_STEP
    return level_of(level, _inside(1 - u - scale * (np.cos(math.pi / 2 * u) ** 2 - 1 + u)))


TIMES: dict[str, Callable[..., np.ndarray]] = {
    "uniform": uniform,
    "lognormal": lognormal,
    "logit_normal": logit_normal,
    "mode": mode,
}
