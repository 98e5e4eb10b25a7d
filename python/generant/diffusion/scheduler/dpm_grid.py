"""Where the steps of the DPM-Solver family lie: timesteps and noise levels of DPM-Solver, UniPC and DEIS.

One idea: a run of n steps is n + 1 levels. In compat mode levels are float64, rounded to float32 at the end, and
timesteps are cut to integers, as diffusers does it. In exact mode both are float64, timesteps between the trained ones
stay fractions, a spacing gives as many steps as were asked for, and the last of n + 1 levels is the end itself, never
the same level twice. Not here: what is done at the levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..schedules.times import shift_of_mu
from .registry import Grid, Setting, alpha_sigma

__all__ = [
    "Levels", "at_times", "before", "by_family", "checked_families", "curve", "custom_times", "dynamic_shift", "even32",
    "family_of", "finished", "flow_shifted", "levels_of", "spaced", "time_of", "training_steps",
]  # fmt: skip

FAMILIES = ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas", "flow_sigmas")  # in diffusers' order


class Levels(NamedTuple):
    """alpha, sigma and lambda = log(alpha / sigma) of every level. (n + 1,); float32 in compat mode, else float64."""

    alpha: np.ndarray
    sigma: np.ndarray
    lam: np.ndarray

    def ratio(self, i: int) -> float:
        """sigma / alpha of level i."""
        return float(self.sigma[i]) / float(self.alpha[i])


def levels_of(setting: Setting, grid: Grid) -> Levels:
    """The levels of a grid, in the precision in which the coefficients are wanted."""
    assert grid.sigmas is not None
    alpha: Any
    sigma: Any
    if setting.compat:
        s = grid.sigmas.astype(np.float32)
        if grid.form == "flow":
            alpha, sigma = 1 - s, s
        elif grid.form == "vp":
            alpha = 1 / (s**2 + 1) ** 0.5
            sigma = s * alpha
        else:
            alpha, sigma = np.ones_like(s), s
    else:
        alpha, sigma = alpha_sigma(grid.form, grid.sigmas)
    with np.errstate(divide="ignore"):  # the level 0 has lambda = infinity, which one step can lead to
        return Levels(alpha, sigma, np.log(alpha) - np.log(sigma))


def checked_families(name: str, config: Mapping[str, Any]) -> None:
    """ValueError if the config asks for two of Karras, exponential and beta levels."""
    chosen = [key for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if config.get(key)]
    if len(chosen) > 1:
        raise ValueError(f"{name}: only one of {' and '.join(chosen)} can be true")


def family_of(config: Mapping[str, Any], *, lu: bool = False) -> str | None:
    """The first of FAMILIES that the config asks for. lu: the class has use_lu_lambdas."""
    return next((key for key in FAMILIES if config.get(f"use_{key}") and (lu or key != "lu_lambdas")), None)


def dynamic_shift(name: str, setting: Setting, given: Mapping[str, Any]) -> float:
    """The flow shift: exp(mu) where set_timesteps was given mu, else the config's."""
    config = setting.config
    if given.get("mu") is None:
        return float(config["flow_shift"])
    if not (config["use_dynamic_shifting"] and config["time_shift_type"] == "exponential"):
        raise ValueError(f"{name}: mu needs use_dynamic_shifting=True and time_shift_type='exponential'")
    return shift_of_mu(given["mu"])


def training_steps(setting: Setting) -> int:
    """How many training steps are used: those whose lambda is at least lambda_min_clipped."""
    steps = int(setting.config["num_train_timesteps"])
    low = setting.config.get("lambda_min_clipped", -math.inf)
    if low == -math.inf:
        return steps
    assert setting.tables is not None
    a = setting.tables.alphas_cumprod
    with np.errstate(divide="ignore"):
        lam = np.log(np.sqrt(a)) - np.log(np.sqrt(1 - a))
    return steps - int(np.searchsorted(lam[::-1], np.asarray(low, lam.dtype)))


def spaced(name: str, setting: Setting, n: int, *, last: int, spacing: str | None = None) -> np.ndarray:
    """Falling timesteps of n steps below `last`, by `spacing` or else the config's.

    int64; in exact mode float64 where rounding would give one timestep to two steps.
    """
    config = setting.config
    steps = int(config["num_train_timesteps"])
    spacing = config["timestep_spacing"] if spacing is None else spacing
    t: np.ndarray
    if spacing == "linspace":
        t = np.linspace(0, last - 1, n + 1)[:0:-1]
        rounded = t.round().astype(np.int64)
    elif spacing == "leading":
        stride = last // (n + 1)
        if stride == 0:
            raise ValueError(
                f"{name}: timestep_spacing='leading' has no room for {n} steps in {last} timesteps, at most {last - 1}"
            )
        t = rounded = np.arange(n, 0, -1) * stride + config.get("steps_offset", 0)
    elif spacing == "trailing":
        if setting.compat:
            rounded = np.arange(last, 0, -steps / n).round().astype(np.int64) - 1
            t = rounded  # rounding of the stride may give n + 1 of them
        else:
            t = last - np.arange(n) * (last / n) - 1
            rounded = t.round().astype(np.int64)
    else:
        raise ValueError(f"{name}: timestep_spacing must be linspace, leading or trailing, got {spacing!r}")
    if setting.compat or (np.diff(rounded) < 0).all():
        return np.ascontiguousarray(rounded)
    return np.ascontiguousarray(t)


def time_of(sigmas: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The fractional timestep of each noise-to-signal ratio, linear in log sigma between the trained ones.

    Not `DiscreteSchedule.time_of`, which may differ in the last bit: compat mode cuts these numbers to integers.
    """
    logs = np.log(table)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    w = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - w) * low + w * (low + 1)


def curve(family: str, first: float, last: float, n: int) -> np.ndarray:
    """n levels from first to last: Karras et al. (2022) with rho 7, even in log sigma, or quantiles of Beta(.6, .6).

    Not `schedules.levels`: compat mode cuts the timesteps of these levels to integers, so their last bits count, and
    they come out in this order of operations, rise or fall, and do not end in 0.
    """
    if family == "karras_sigmas":
        a, b = first ** (1 / 7), last ** (1 / 7)
        return np.asarray((a + np.linspace(0, 1, n) * (b - a)) ** 7.0)
    if family == "exponential_sigmas":
        return np.exp(np.linspace(math.log(first), math.log(last), n))
    if family == "lu_lambdas":
        a, b = math.log(first), math.log(last)
        return np.exp(a + np.linspace(0, 1, n) * (b - a))
    try:
        from scipy.stats import beta  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("use_beta_sigmas needs scipy: pip install scipy") from error
    return np.asarray(last + beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6) * (first - last))


def even32(first: float, last: float, n: int) -> np.ndarray:
    """n float32 from first to last, evenly, each half counted from its own end."""
    if n == 1:
        return np.array([first], np.float32)
    a, b = np.float64(np.float32(first)), np.float64(np.float32(last))
    step = np.float64(np.float32(np.float32(b - a) / np.float32(n - 1)))
    i = np.arange(n)
    return np.where(i < n // 2, a + step * i, b - step * (n - 1 - i)).astype(np.float32)


def flow_shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    """shift s / (1 + (shift - 1) s): flow levels moved towards noise. Esser et al. (2024), eq. 23.

    In the precision of sigmas, unlike `schedules.times.shifted`: compat mode shifts float32 tables.
    """
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def by_family(
    setting: Setting, family: str, n: int, *, ends_at_zero: bool, flow: bool = False, rising: bool = False
) -> tuple[np.ndarray, np.ndarray, float]:
    """(timesteps, levels without the end, the end where it is not 0) for a family of levels other than flow's."""
    assert setting.tables is not None
    config, table = setting.config, setting.tables.sigmas
    low, high = (
        float(table[k]) if config.get(key) is None else float(config[key])
        for key, k in (("sigma_min", 0), ("sigma_max", -1))
    )
    if family == "lu_lambdas":  # the log is taken in the table's precision
        low, high = math.exp(float(np.log(table[0]))), math.exp(float(np.log(table[-1])))
    ends = (low, high) if rising else (high, low)
    more = 0 if setting.compat or ends_at_zero else 1  # exact: the end is a level of its own
    sigmas = curve(family, *ends, n + more)
    if not setting.compat and len(sigmas) > 1:
        sigmas[0], sigmas[-1] = ends  # the powers are not exact
    times = time_of(sigmas, table)
    if flow:
        sigmas = sigmas / (1 + sigmas)
        times = sigmas * int(config["num_train_timesteps"])
    return times[:n], sigmas[:n], float(sigmas[-1])


def before(setting: Setting) -> Grid:
    """What the scheduler shows before set_timesteps: all timesteps, and the levels of training."""
    assert setting.tables is not None
    steps = int(setting.config["num_train_timesteps"])
    sigmas: np.ndarray = setting.tables.sigmas
    if not setting.compat:  # diffusers shows them rising, against its timesteps
        sigmas = np.append(sigmas[::-1], 0.0)
    form = "flow" if setting.compat and setting.config.get("use_flow_sigmas") else "vp"
    return Grid(np.arange(steps - 1, -1, -1, dtype=np.float32), sigmas, form)


def finished(setting: Setting, times: np.ndarray, sigmas: Any, end: float, *, whole: bool, form: str) -> Grid:
    """The grid of levels and their end, in the mode's precision. whole: timesteps are rounded before they are cut."""
    levels = np.append(sigmas, end)
    if setting.compat:
        times = times.round() if whole else times
        return Grid(times.astype(np.int64), levels.astype(np.float32), form)
    return Grid(times, levels, form)


def at_times(setting: Setting, times: np.ndarray) -> np.ndarray:
    """The ratio sigma / alpha at timesteps of training, linear between them. float64."""
    assert setting.tables is not None
    table = setting.tables.sigmas
    return np.interp(times, np.arange(len(table)), table)


def custom_times(name: str, setting: Setting, given: Mapping[str, Any], *, lu: bool) -> np.ndarray | None:
    """The timesteps that set_timesteps was given, checked, or None."""
    if given.get("timesteps") is None:
        return None
    family = family_of(setting.config, lu=lu)
    if family is not None and family != "flow_sigmas":
        raise ValueError(f"{name}: timesteps cannot be given where use_{family} is true")
    t = np.asarray(given["timesteps"])
    t = t.astype(np.int64) if setting.compat else t.astype(np.float64)
    if t.ndim != 1 or len(t) == 0 or not (np.diff(t) < 0).all():
        raise ValueError(f"{name}: timesteps must be a list of numbers that fall strictly, got {given['timesteps']!r}")
    return t
