"""What a diffusion model is made of by name: its network, what the network is fitted to, and the levels of sampling.

The network is called through a recording, once per shape. Not here: training, sampling, likelihoods.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import diffusion, nn, ops, recording
from ..autograd import vjp
from ..diffusion import schedules
from ..diffusion.objectives import TIMES, flow_level
from ..random import Stream

__all__ = ["ARCHITECTURES", "PROCESSES", "SCHEDULES", "Denoiser", "build", "make_objective", "sampling_levels"]

ARCHITECTURES = ("auto", "mlp", "unet", "dit")
SMALLEST = 16  # pixels: images below it are rows to "auto"
SIGMA_DATA = 0.5  # root mean square of the data as the network sees it: the unit of sigma in Karras et al. (2022)
FORM = {"flow": "flow", "edm": "ve"}  # of x for a prediction, otherwise "vp"
SCHEDULES = ("karras", "exponential", "beta", "process")


@functools.cache
def _table(name: str) -> Callable[[Any], np.ndarray]:
    """level(t) of a process of 1000 betas, as a table that is looked up."""
    levels = np.asarray(schedules.DiscreteSchedule(schedules.betas(name)).level(np.arange(1000)), np.float64)
    return lambda t: levels[np.minimum((np.asarray(t) * len(levels)).astype(np.int64), len(levels) - 1)]


PROCESSES: dict[str, Callable[[], Any]] = {
    "flow": lambda: flow_level,
    "cosine": lambda: schedules.Cosine().level,
    "vp": lambda: schedules.VP().level,
    "subvp": lambda: schedules.SubVP().level,
    "ve": lambda: schedules.VE().level,
    "linear": lambda: _table("linear"),
    "scaled_linear": lambda: _table("scaled_linear"),
    "sigmoid": lambda: _table("sigmoid"),
}


class Conditioned(nn.Module):
    """A network that is shown its own estimate: twice the channels go in, the first half of what comes out counts."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, x: Any, c_noise: Any, labels: Any, estimate: Any) -> Any:
        said = self.network(ops.concat(x, estimate, axis=-1), c_noise, labels)
        return ops.slice_axis(said, start=0, stop=x.shape[-1], axis=-1)


def chosen(architecture: str, shape: tuple[int, int, int] | None) -> str:
    """The architecture that "auto" stands for; ValueError where a sample is no image (h, w, c) and must be one."""
    if architecture == "auto":
        return "unet" if shape is not None and min(shape[:2]) >= SMALLEST else "mlp"
    if architecture != "mlp" and shape is None:
        raise ValueError(f"Diffusion.fit: architecture {architecture!r} needs images, n h w or n h w c")
    return architecture


def build(model: Any, stream: Stream, *, classes: int) -> Any:
    """The network that a model's parameters describe: called as network(x, c_noise, labels)."""
    image, double = model.scaling_.image, model.objective_.self_conditioning is not None
    architecture = chosen(model.architecture, image)
    times = 2 if double else 1
    network: Any
    if architecture == "mlp":
        blocks = model.blocks or 4
        network = nn.MlpDenoiser(times * model.scaling_.size, stream, classes=classes, width=model.width, blocks=blocks)
    elif architecture == "unet":
        network = nn.UNet2D(
            times * image[2], stream, out=None if double else image[2], channels=tuple(model.channels),
            blocks=model.blocks or 1, attention=tuple(model.attention), heads=model.heads or 1, classes=classes,
        )  # fmt: skip
    else:
        network = nn.DiT(
            (*image[:2], times * image[2]), stream, patch=model.patch, width=model.width, blocks=model.blocks or 4,
            heads=model.heads or 4, classes=classes,
        )  # fmt: skip
    return Conditioned(network) if double else network


class Denoiser:
    """A trained network whose calls, and traces of their derivatives, are recorded: one recording per shape."""

    def __init__(self, network: Any) -> None:
        self.network = network
        arrays = nn.state(network)
        names = {id(a): name for name, a in arrays.items()}

        def of(state: dict[str, Any]) -> Any:
            return nn.look_alike(network, {i: state[name] for i, name in names.items()})

        def traced(state: dict[str, Any], v: Any, x: Any, *rest: Any) -> tuple[Any, Any]:
            said, pull = vjp(lambda z: of(state)(z, *rest), x)
            (slope,) = pull(v)
            return said, ops.sum(ops.mul(slope, v), axis=tuple(range(1, len(v.shape))))

        self._call = recording.record(lambda state, *inputs: of(state)(*inputs), arrays, frozen=arrays)
        self._traced = recording.record(traced, arrays, frozen=arrays)

    def __call__(self, *inputs: Any) -> Any:
        """network(x, c_noise, labels)."""
        return self._call(*inputs)

    def traced(self, v: np.ndarray, *inputs: Any) -> tuple[Any, Any]:
        """network(*inputs) and v^T J v of every row, J its derivative in x: v like x."""
        return self._traced(v, *inputs)


def make_objective(
    prediction: Any, *, form: str | None, times: str | None, weighting: str | None, process: str | None, p_mean: float,
    p_std: float,
) -> diffusion.Objective:  # fmt: skip
    """The objective of those names; `prediction` itself if it is one.

    form None: "flow" for the prediction "flow", "ve" for "edm", else "vp". times None: "lognormal" for "edm",
    "logit_normal" for "flow", else "uniform". weighting None: "snr" for "score", else none. process None: "flow" in
    form "flow", else "cosine".
    """
    if isinstance(prediction, diffusion.Objective):
        return prediction
    if process is not None and process not in PROCESSES:
        raise ValueError(f"Diffusion: process must be one of {', '.join(PROCESSES)}, got {process!r}")
    form = FORM.get(prediction, "vp") if form is None else form
    if times is None:
        times = {"edm": "lognormal", "flow": "logit_normal"}.get(prediction, "uniform")
    what = diffusion.Edm(SIGMA_DATA, p_mean=p_mean, p_std=p_std) if prediction == "edm" else prediction
    draw: Any = times
    if times == "lognormal":
        draw = functools.partial(TIMES[times], mean=p_mean, std=p_std)
    elif times in TIMES:
        draw = functools.partial(TIMES[times], level=level_of(process, form))
    if prediction == "score" and weighting is None:
        weighting = "snr"  # unweighted it is infinite at small levels
    return diffusion.Objective(what, form=form, times=draw, weighting=weighting)


def level_of(process: str | None, form: str) -> Any:
    """The level of a time in a process."""
    return PROCESSES[("flow" if form == "flow" else "cosine") if process is None else process]()


def sampling_levels(
    schedule: str, n: int, *, sigma_min: float, sigma_max: float, rho: float, level: Any
) -> np.ndarray:
    """n falling levels and a 0. "process": of times 1, (n - 1) / n, ..., 1 / n, kept in [sigma_min, sigma_max]."""
    if schedule == "karras":
        return schedules.karras_sigmas(n, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    if schedule == "exponential":
        return schedules.exponential_sigmas(n, sigma_min=sigma_min, sigma_max=sigma_max)
    if schedule == "beta":
        return schedules.beta_sigmas(n, sigma_min=sigma_min, sigma_max=sigma_max)
    if schedule != "process":
        raise ValueError(f"Diffusion: schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(f"Diffusion: wanted 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
    times = np.arange(n, 0, -1) / n
    times[0] = 1 - 1e-9  # the level of time 1 may be infinite
    found = np.clip(level(times), sigma_min, sigma_max)
    return np.append(np.unique(found)[::-1], 0.0)
