"""What a scheduler class is here: a `Family`, that is its config keys, its grid and its table of steps.

One idea: a family states `grid`, where the steps lie, and `program`, the linear recurrence over them in the coordinates
that its x has. Both are pure functions of a `Setting`; `Scheduler` alone holds state. compat="diffusers" and "exact"
are the same two functions with other tables and policies. Not here: the families themselves, and stepping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..plan import Plan

__all__ = [
    "FAMILIES", "Family", "Grid", "Program", "Setting", "Tables", "VpVelocity", "alpha_sigma", "common_bounds",
    "predicted", "register",
]  # fmt: skip


class Tables(NamedTuple):
    """betas and alphas_cumprod of training, (T,): float32, bit for bit diffusers', in compat mode, else float64."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray

    @property
    def sigmas(self) -> np.ndarray:
        """The noise-to-signal ratio of every training step, rising, in the tables' precision. (T,)"""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5


class Setting(NamedTuple):
    """What grid and program depend on: the config with its defaults (and hidden keys), tables, which arithmetic."""

    config: Mapping[str, Any]
    tables: Tables | None  # None where the class has no betas
    compat: bool  # True: as diffusers 0.42 does it, with its quirks; False: exact

    @property
    def table(self) -> np.ndarray:
        """alphas_cumprod of training, (T,), for classes that have betas."""
        assert self.tables is not None
        return self.tables.alphas_cumprod


class Grid(NamedTuple):
    """Where the steps lie: what set_timesteps decides.

    timesteps: one per call of step, what the network is told. sigmas: what `scheduler.sigmas` shows, None where the
    class has none. form: how to read them: "ve": x = data + s noise, "vp": s is the ratio sigma / alpha and x is
    variance preserving, "flow": x = (1 - s) data + s noise. table_noise: add_noise takes timesteps of training
    (True) or looks timesteps up in this grid (False). init: init_noise_sigma. scales: scale_model_input multiplies by
    scales[i] (None: 1). index_sigmas: the sigma of step i is sigmas[i] for all i. extra: what else program needs.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray | None = None
    form: str = "vp"
    table_noise: bool = False
    init: float = 1.0
    scales: np.ndarray | None = None
    extra: Any = None


class Program(NamedTuple):
    """The steps from `begin` on: stage k of the plan is step begin + k.

    raw: what each stage adds times the prediction itself, not clipped (() for none). draws: whether diffusers draws
    noise there, though it may multiply it by 0: streams such as torch's must be read alike (() for: where c_noise is
    not 0). variance: (log of the smallest, log of the largest) variance of each stage, where the network predicts it.
    """

    plan: Plan
    raw: tuple[float, ...] = ()
    draws: tuple[bool, ...] = ()
    variance: tuple[tuple[float, float], ...] = ()


def common_bounds(config: Mapping[str, Any]) -> dict[str, float]:
    """clip, or threshold and threshold_max, as ops.sampler_step takes them, from the keys that most classes share."""
    if config.get("thresholding"):
        return {
            "threshold": float(config["dynamic_thresholding_ratio"]), "threshold_max": float(config["sample_max_value"])
        }  # fmt: skip
    if config.get("clip_sample"):
        return {"clip": float(config["clip_sample_range"])}
    return {}


class VpVelocity:
    """v-prediction of a network that sees x / sqrt(1 + sigma^2), for x = data + sigma noise: Salimans and Ho (2022)."""

    def convert(self, sigma: float) -> tuple[float, float]:
        """(a_x, a_p) of D = a_x x + a_p prediction."""
        square = 1 + sigma * sigma
        return 1 / square, -sigma / square**0.5


def predicted(name: str, setting: Setting, choices: Mapping[str, Any]) -> Any:
    """What choices has for the config's prediction_type; a ValueError that names those the class takes."""
    kind: Any = setting.config.get("prediction_type")
    if kind not in choices:
        raise ValueError(f"{name}: prediction_type must be one of {', '.join(choices)}, got {kind!r}")
    return choices[kind]


def alpha_sigma(form: str, sigma: Any) -> tuple[Any, Any]:
    """(alpha, sigma) of x = alpha data + sigma noise, from what `Grid.sigmas` says in that form. float64."""
    s = np.asarray(sigma, np.float64)
    if form == "ve":
        return np.ones_like(s), s
    if form == "flow":
        return 1 - s, s
    alpha = 1 / np.sqrt(1 + s * s)
    return alpha, s * alpha


@dataclass(frozen=True)
class Family:
    """One scheduler class. Make one per class and `register` it.

    name: diffusers' class name. defaults: its config keys and their defaults. grid(setting, n, given) -> Grid: n is
    num_inference_steps, already checked to be 1 ... T, or None; given: the other arguments of set_timesteps that are
    not None, all in `accepts`. program(setting, grid, begin, options) -> Program: the steps from begin on, with no
    history before them; options: every name in `options`, as given to step() or its default. prediction(setting): a
    name in predictions.PREDICTIONS or an object with convert(sigma), raising ValueError for what the class cannot take.
    order: diffusers' attribute. floor: a last alphas_cumprod of 0 becomes 2^-24. has_betas: it has betas.
    by_timestep: every step is found by its timestep, so steps may come in any order; else only the first of a run is.
    at_once: step may be called before set_timesteps. start(setting): the grid before set_timesteps is called (None:
    grid with all T steps). check(config): raises ValueError on values that do not go together and may return
    replacements, such as the solver types that diffusers maps. bounds(config): see `common_bounds`.
    """

    name: str
    defaults: Mapping[str, Any]
    grid: Callable[[Setting, int | None, Mapping[str, Any]], Grid]
    program: Callable[[Setting, Grid, int, Mapping[str, Any]], Program]
    prediction: Callable[[Setting], Any]
    order: int = 1
    accepts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    floor: bool = False
    has_betas: bool = True
    by_timestep: bool = False
    at_once: bool = False
    start: Callable[[Setting], Grid] | None = None
    check: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    bounds: Callable[[Mapping[str, Any]], dict[str, float]] = common_bounds


FAMILIES: dict[str, Family] = {}

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None,
}  # fmt: skip


def register(family: Family) -> Family:
    """Enter a family under its name."""
    FAMILIES[family.name] = family
    return family
