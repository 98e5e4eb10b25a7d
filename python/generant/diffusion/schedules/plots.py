"""Figures of schedules: alpha, sigma and log signal-to-noise ratio over time, and runs of levels over their steps.

One idea: a schedule is a few curves. matplotlib is imported only when a figure is asked for, and no window is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["plot_curves", "plot_levels"]


def plot_curves(path: str | PathLike[str], *, t: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, title: str) -> None:
    """Write a figure of alpha(t), sigma(t) and log(alpha^2 / sigma^2) to path, whose ending is the format.

    t, alpha, sigma: (n,). Points where the ratio is 0 or infinite are left out. Needs matplotlib.
    """
    figure = _figure()
    axes: Any = figure.subplots(2, 1, sharex=True)
    axes[0].plot(t, alpha, label="alpha")
    axes[0].plot(t, sigma, label="sigma")
    if np.max(sigma) > 10:
        axes[0].set_yscale("log")
    axes[0].legend()
    axes[0].set_title(title)
    shown = (alpha > 0) & (sigma > 0)
    axes[1].plot(t[shown], 2 * np.log(alpha[shown] / sigma[shown]))
    axes[1].set_ylabel("log signal-to-noise ratio")
    axes[1].set_xlabel("t")
    figure.savefig(path)


def plot_levels(path: str | PathLike[str], levels: Mapping[str, ArrayLike]) -> None:
    """Write a figure of named runs of levels or times, (n + 1,) each, over the share of steps done, to path.

    The scale is logarithmic, so a final 0 is left out. Needs matplotlib.
    """
    figure = _figure()
    axes: Any = figure.subplots()
    for name, values in levels.items():
        run = np.asarray(values, np.float64)
        if run.ndim != 1 or run.size < 2:
            raise ValueError(f"plot_levels: {name!r} must be of shape (n + 1,) with n >= 1, got shape {run.shape}")
        shown = run > 0
        axes.plot(np.linspace(0, 1, run.size)[shown], run[shown], ".-", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("share of steps done")
    axes.set_ylabel("level")
    axes.legend()
    figure.savefig(path)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("plot needs matplotlib: install matplotlib") from error
    return Figure(figsize=(6, 6), layout="constrained")
