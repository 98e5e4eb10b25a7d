"""A process in discrete time, t = 0 .. n - 1, made of its betas: x_t = sqrt(a_t) data + sqrt(1 - a_t) noise.

One idea: all tables follow from the betas, once. They have the betas' precision, so float32 betas give the tables of
single-precision training; look-ups between two steps are float64. What is not here: how betas are chosen (betas), which
steps a run visits (times), processes with a formula in continuous time (processes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from .arrays import read_only
from .betas import alphas_cumprod
from .plots import plot_curves
from .times import timesteps

__all__ = ["DiscreteSchedule"]

HIGHEST = (2.0**24 - 1) ** 0.5  # the level that stands for an infinite one


@dataclass(frozen=True, eq=False, repr=False)
class DiscreteSchedule:
    """Tables of a discrete process, each (n,), read-only, of the dtype of betas.

    betas               float32 or float64, in [0, 1]; 1 at the end only (no signal is left then)
    alphas_cumprod      a_t = prod_{s <= t} (1 - beta_s)
    sigmas              sqrt((1 - a_t) / a_t), noise-to-signal ratios, rising; inf where no signal is left
    log_snr             log(a_t / (1 - a_t)), falling
    posterior_variance  beta_t (1 - a_{t-1}) / (1 - a_t), of x_{t-1} given x_t and the data; 0 at t = 0
    """

    betas: np.ndarray
    alphas_cumprod: np.ndarray = field(init=False)
    sigmas: np.ndarray = field(init=False)
    log_snr: np.ndarray = field(init=False)
    posterior_variance: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        products = alphas_cumprod(self.betas)
        given = np.array(self.betas, products.dtype)
        if not products[:-1].all():
            raise ValueError(
                f"DiscreteSchedule: no signal is left at t = {int(np.argmin(products))} of {products.size - 1} already"
            )
        noise = 1 - products
        before = np.append(products.dtype.type(0), noise[:-1])
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt(noise / products)
            log_snr = np.log(products / noise)
        # without noise up to t nothing is uncertain
        posterior = given * np.divide(before, noise, out=np.zeros_like(noise), where=noise > 0)
        for name, table in (
            ("betas", given),
            ("alphas_cumprod", products),
            ("sigmas", sigmas),
            ("log_snr", log_snr),
            ("posterior_variance", posterior),
        ):
            object.__setattr__(self, name, read_only(table))

    def __len__(self) -> int:
        return self.betas.size

    def __repr__(self) -> str:
        return (
            f"DiscreteSchedule(n={len(self)}, beta {self.betas[0]:.4g} .. {self.betas[-1]:.4g}, "
            f"sigma {self.sigmas[0]:.4g} .. {self.sigmas[-1]:.4g}, {self.betas.dtype})"
        )

    def __str__(self) -> str:
        """The repr and a table of up to eleven steps."""
        lines = [repr(self), f"{'t':>6} {'beta':>12} {'alpha_bar':>12} {'sigma':>12} {'log SNR':>12}"]
        for t in np.unique(np.linspace(0, len(self) - 1, 11).astype(int)):
            row = (self.betas[t], self.alphas_cumprod[t], self.sigmas[t], self.log_snr[t])
            lines.append(f"{t:>6} " + " ".join(f"{value:>12.6g}" for value in row))
        return "\n".join(lines)

    def level(self, t: ArrayLike) -> np.ndarray:
        """sigma at times t, linear in log sigma between two steps.

        t: any shape, in [0, n - 1], fractions allowed. Returns float64 of t's shape; whole t give the table's value.
        """
        times = np.asarray(t, np.float64)
        if not ((times >= 0) & (times <= len(self) - 1)).all():
            raise ValueError(f"DiscreteSchedule.level: t must lie in [0, {len(self) - 1}], got {t!r}")
        below = times.astype(int)
        share = times - below
        sigmas = self.sigmas.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):  # sigma may be 0 at the first, infinite at the last step
            logs = np.log(sigmas)
            between = np.exp((1 - share) * logs[below] + share * logs[np.minimum(below + 1, len(self) - 1)])
        return np.where(share == 0, sigmas[below], between)

    def time_of(self, level: ArrayLike) -> np.ndarray:
        """The time at which sigma is level: the inverse of `level`, a fraction between two steps.

        level: any shape, 0 or more; what lies beyond the table gives its first or last time. Returns float64.
        """
        levels = np.asarray(level, np.float64)
        if not (levels >= 0).all():
            raise ValueError(f"DiscreteSchedule.time_of: level must be 0 or more, got {level!r}")
        with np.errstate(divide="ignore"):
            logs = np.log(self.sigmas.astype(np.float64))
            wanted = np.log(levels)
        steps = np.arange(len(self))
        finite = np.isfinite(logs)
        times = np.interp(wanted, logs[finite], steps[finite]) if finite.any() else np.zeros_like(wanted)
        times = np.where(wanted == logs[-1], len(self) - 1, times)  # the one infinite level
        return np.where(wanted <= logs[0], 0, times)

    def run(self, n: int, *, spacing: str = "trailing", offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The n steps of `timesteps` and their n levels with a final 0, for samplers and networks.

        Returns int64 (n,), float64 (n + 1,), read-only. Where the last training step holds no data at all its level is
        infinite; 4096, of alphas_cumprod = 2^-24, stands for it, as in diffusers.
        """
        steps = timesteps(len(self), n, spacing, offset=offset)
        levels = self.level(steps)
        return steps, read_only(np.append(np.where(np.isinf(levels), HIGHEST, levels), 0.0))

    def plot(self, path: str | PathLike[str]) -> None:
        """Write a figure of the schedule to path. Needs matplotlib."""
        products = self.alphas_cumprod.astype(np.float64)
        alpha, sigma = np.sqrt(products), np.sqrt(1 - products)
        plot_curves(path, t=np.arange(len(self)), alpha=alpha, sigma=sigma, title=repr(self))
