"""Times at which the network is asked: integer steps of a discrete schedule, and times of a flow from 1 to 0.

One idea: exactly as many as were asked for, each from one formula, and every shift applied once. What is not here:
noise levels (levels; `DiscreteSchedule.level` gives those of steps) and flow samplers, which take the times.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from .arrays import read_only

__all__ = ["dynamic_mu", "flow_times", "shift_of_mu", "shifted", "timesteps"]

SPACINGS = ("leading", "linspace", "trailing")


def timesteps(n_train: int, n: int, spacing: str = "trailing", *, offset: int = 0) -> np.ndarray:
    """n different integers of 0 .. n_train - 1, falling.

    leading   offset + (n - 1 - i) (n_train // n): starts below the last step, whose noise the model then never removes.
              The offset is lowered where the first step would be n_train or more
    linspace  round((n_train - 1) (1 - i / (n - 1))): both ends; n = 1 gives the last step
    trailing  round(n_train (1 - i / n)) - 1: begins with the last step
    i < n; which way a half is rounded follows the usual loops, np.linspace and np.arange. offset is for leading only:
    the others do not look at it.
    Returns (n,) int64, read-only. Lin et al. (2024), table 2.
    """
    if not 1 <= n <= n_train:
        raise ValueError(f"timesteps: wanted 1 <= n <= n_train, got n = {n} and n_train = {n_train}")
    if offset < 0:
        raise ValueError(f"timesteps: offset must be at least 0, got {offset}")
    if spacing == "leading":
        steps = np.arange(n - 1, -1, -1) * (n_train // n)
        return read_only(steps + min(offset, n_train - 1 - int(steps[0])))
    if spacing == "linspace":
        line = np.linspace(0, n_train - 1, n)[::-1] if n > 1 else np.array([n_train - 1])
        return read_only(np.rint(line).astype(np.int64))
    if spacing == "trailing":
        line = np.arange(n_train, 0, -n_train / n)[:n]  # which may have one more, next to 0
        return read_only(np.rint(line).astype(np.int64) - 1)
    raise ValueError(f"timesteps: spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def shifted(times: ArrayLike, shift: float) -> np.ndarray:
    """s t / (1 + (s - 1) t): the noise-to-signal ratio t / (1 - t) of a flow times s. 0 and 1 stay.

    times: any shape, in [0, 1]; shift > 0, above 1 for more time at high noise. Returns float64, read-only. Esser et
    al. (2024), eq. 23, where s is the root of the ratio of pixel numbers.
    """
    t = np.array(times, np.float64)
    if not 0 < shift < np.inf:
        raise ValueError(f"shifted: shift must be positive, got {shift}")
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"shifted: times must lie in [0, 1], got {t[~((t >= 0) & (t <= 1))].flat[0]}")
    return read_only(np.asarray(shift * t / (1 + (shift - 1) * t)))


def dynamic_mu(
    tokens: float,
    *,
    base_tokens: float = 256,
    max_tokens: float = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """mu on the line through (base_tokens, base_shift) and (max_tokens, max_shift), at the length of the sequence.

    tokens: of one sample, say (height / 16) (width / 16) for an image of latent patches. Outside the two lengths the
    line goes on. The defaults are those of FLUX.1 (Black Forest Labs, 2024).
    """
    if not (0 < tokens < np.inf):
        raise ValueError(f"dynamic_mu: tokens must be positive, got {tokens}")
    if not 0 < base_tokens < max_tokens < np.inf:
        raise ValueError(f"dynamic_mu: wanted 0 < base_tokens < max_tokens, got {base_tokens} and {max_tokens}")
    return base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)


def shift_of_mu(mu: float, kind: Literal["exponential", "linear"] = "exponential") -> float:
    """exp(mu) or, if linear, mu: the s of `shifted` for which s t / (1 + (s - 1) t) = s / (s + 1 / t - 1).

    mu: as from `dynamic_mu`; positive if linear.
    """
    if kind not in ("exponential", "linear"):
        raise ValueError(f"shift_of_mu: kind must be 'exponential' or 'linear', got {kind!r}")
    if not (math.isfinite(mu) and (kind == "exponential" or mu > 0)):
        raise ValueError(f"shift_of_mu: mu must be finite{', and positive if linear' * (kind == 'linear')}, got {mu}")
    return math.exp(mu) if kind == "exponential" else float(mu)


def flow_times(
    n: int,
    *,
    shift: float = 1.0,
    mu: float | None = None,
    kind: Literal["exponential", "linear"] = "exponential",
    last: float | None = None,
    shift_terminal: float | None = None,
) -> np.ndarray:
    """n times of a flow evenly from 1 to `last`, shifted once, stretched once, then 0.

    shift: static, s of `shifted`. mu, kind: dynamic, of `dynamic_mu` and `shift_of_mu`; not together with a shift.
    last: the n-th time before shifting, 1 / n unless given, so that all steps are equal there. With 1 / 1000, as in
      some published loops, the last step is next to empty.
    shift_terminal: stretches 1 - t so that the n-th time becomes this one (LTX-Video, Lightricks 2024); n > 1.
    Returns (n + 1,) float64, read-only, for `flow_euler` and the like. Nothing is rounded to training steps.
    """
    if n < 1:
        raise ValueError(f"flow_times: n must be at least 1, got {n}")
    if mu is not None:
        if shift != 1:
            raise ValueError(f"flow_times: give shift (static) or mu (dynamic), got shift = {shift} and mu = {mu}")
        shift = shift_of_mu(mu, kind)
    if last is not None and not 0 < last < 1:
        raise ValueError(f"flow_times: last must lie in (0, 1), got {last}")
    end = 1 / n if last is None else last
    times = shifted(1 + (end - 1) * np.arange(n) / max(n - 1, 1), shift)
    if shift_terminal is not None:
        if n == 1 or not 0 < shift_terminal < 1:
            raise ValueError(f"flow_times: wanted n > 1 and 0 < shift_terminal < 1, got n = {n} and {shift_terminal}")
        times = 1 - (1 - times) * ((1 - shift_terminal) / (1 - times[-1]))
    return read_only(np.append(times, 0.0))
