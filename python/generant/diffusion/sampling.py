"""Running a plan: `sample` from start to end, `Stepper` one stage at a time.

Each stage is one call of ops.sampler_step: it turns the prediction into the denoised D, guides, clips, combines with
what earlier stages left, adds noise and writes the next x, in one pass over memory. Noise has a key per sample, so a
sample depends on its key and its path only: not on the batch it is in, nor on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops, random
from ..ops import _device
from .bridge import BrownianBridge
from .guidance import Guidance
from .plan import Plan
from .predictions import conversion

__all__ = ["NOISES", "Stepper", "dtype_name", "initial_noise", "sample", "sample_keys"]

NOISES = ("independent", "bridge")
SPENT = object()  # stands where an array was given back: the kernel would take None for an array that is absent
NONE = (None,) * 4  # the history arrays of ops.sampler_step where there are none
INITIAL = 0  # the number of the noise that a run starts from; the noise of stage i has number i + 1


def sample_keys(random_state: Any, n: int, like: Any = None) -> Any:
    """A key per sample, (n, 2) uint64: random_state itself if it is that, else split from a seed or from one key.

    They lie where the array `like` does, if one is given, else on the host.
    """
    if _device.is_device(like):
        kept = _device.is_device(random_state) and random_state.shape == (n, 2) and random_state.dtype == np.uint64
        return random_state if kept else _device.to_device(sample_keys(random_state, n))
    given = np.asarray(_device.from_device(random_state)) if random_state is not None else None
    if given is not None and given.ndim == 2:
        if given.shape != (n, 2) or given.dtype != np.uint64:
            raise ValueError(f"keys must be {n} x 2 uint64, one per sample, got {given.shape} {given.dtype}")
        return given
    one = given if given is not None and given.shape == (2,) else random.key(random.seed_from(random_state))
    return random.split(one, n)


def dtype_name(x: Any) -> str:
    """"float32" or "float64", of an array of any library."""
    return "float64" if str(x.dtype).endswith("float64") else "float32"


def initial_noise(plan: Plan, keys: Any, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """The x that a run starts from: sigma_0 times standard normal numbers, of sample shape `shape`.

    keys: (n, 2) uint64. Returns (n, *shape), where keys are. What alpha_0 data would add is neglected, as everyone
    does.
    """
    return random.normals(keys, tuple(shape), dtype, stream=INITIAL, scale=plan.initial[1])


class Stepper:
    """The stages of a plan, to be run in order by whoever holds the network.

    prediction: what the network says (see `predictions`). clip: D is kept in [-clip, clip]. threshold: D is divided by
    its own quantile of that probability, kept in [1, threshold_max] (Saharia et al., 2022). rescale: of guidance.
    raw: per stage, what it adds times the prediction itself, whatever becomes of D. keep: whether every stage's h is
    wanted, and not only those that later stages look back on.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        prediction: Any = "denoised",
        clip: float | None = None,
        threshold: float | None = None,
        threshold_max: float = 1.0,
        rescale: float = 0.0,
        raw: Sequence[float] = (),
        keep: bool = False,
    ) -> None:
        self.plan, self.prediction = plan, prediction
        self.attrs: dict[str, Any] = {}  # only what differs from the default: fewer keywords cost less
        if clip is not None:
            self.attrs["clip"] = float(clip)
        if threshold is not None:
            self.attrs |= {"threshold": float(threshold), "threshold_max": float(threshold_max)}
        if rescale:
            self.attrs["rescale"] = float(rescale)
        depth = {"h": 0, "x": 0}
        for stage in plan.stages:
            for kind, back, _ in stage.terms:
                depth[kind] = max(depth[kind], back)
        self._h: deque[Any] = deque(maxlen=depth["h"])  # newest first
        self._x: deque[Any] = deque(maxlen=depth["x"])
        self._keep = keep or max(depth.values()) > 0
        past = {"h": self._h, "x": self._x}
        self._rows: list[tuple[np.ndarray, list[tuple[deque, int]], float]] = []
        for i, stage in enumerate(plan.stages):
            a_x, a_p = conversion(prediction, stage.alpha, stage.sigma) if stage.call else (0.0, 0.0)
            direct = float(raw[i]) if raw else 0.0
            c = [*(coefficient for _, _, coefficient in stage.terms), *([direct] if direct else [])]
            if len(c) > 4:
                raise ValueError(f"{plan.name}: stage {i} has no place for the prediction beside four earlier arrays")
            row = [a_x, a_p, 0.0, stage.c_x, stage.c_d, *c, *[0.0] * (4 - len(c)), stage.c_noise, i + 1.0]
            refs = [(past[kind], back - 1) for kind, back, _ in stage.terms]
            self._rows.append((np.array([*row, stage.g_x, stage.g_d]), refs, direct))
        self._spent = self._last_uses(past)

    def _last_uses(self, past: dict[str, deque]) -> list[list[tuple[deque, int]]]:
        """Which places of the past no later stage reads, after every stage: a Runge-Kutta start looks back a long way
        on few arrays, and what is given back early is still in cache when it is handed out again."""
        count = len(self.plan)
        last = {(kind, j): j for kind, kept in past.items() if kept.maxlen for j in range(count)}
        for i, stage in enumerate(self.plan.stages):
            for kind, back, _ in stage.terms:
                last[kind, i - back] = i
        spent: list[list[tuple[deque, int]]] = [[] for _ in range(count)]
        for (kind, j), i in last.items():
            if i - j < (past[kind].maxlen or 0):  # further back it falls out by itself
                spent[i].append((past[kind], i - j))
        return spent

    def step(
        self,
        i: int,
        x: Any,
        prediction: Any,
        uncond: Any = None,
        *,
        weight: float = 1.0,
        keys: np.ndarray | None = None,
        noise: Any = None,
    ) -> tuple[Any, Any]:
        """(x_{i+1}, h_i): stage i at x with the network's prediction. Stages run in order, from 0 or after `restart`.

        uncond, weight: the guided prediction is uncond + weight (prediction - uncond). keys: (n, 2) uint64, of the
        noise; noise: standard normal numbers to use instead. h is None where nobody looks back on it.
        """
        coef, refs, direct = self._rows[i]
        past = [kept[back] for kept, back in refs]
        if direct:
            past.append(prediction)
        if uncond is not None:
            coef = coef.copy()
            coef[1], coef[2] = coef[1] * weight, coef[1] * (1 - weight)
        if noise is not None and coef[9] != 0:
            if len(past) == 4:
                raise ValueError(f"{self.plan.name}: stage {i} has no place for given noise beside four earlier arrays")
            coef = coef.copy()
            coef[5 + len(past)], coef[9] = coef[9], 0.0
            past.append(noise)
            keys = None
        arrays = (x, prediction, uncond, *past, *NONE[len(past) :], keys, coef)
        if not self._keep:  # the op has no derivative, so what would trace it is passed by
            return ops.sampler_step.run(*arrays, **self.attrs), None
        following, h = ops.sampler_step.run_all(*arrays, **self.attrs)
        self._h.appendleft(h)
        self._x.appendleft(x)
        for kept, at in self._spent[i]:
            kept[at] = SPENT
        return following, h

    def denoised(self, i: int, x: Any, prediction: Any) -> Any:
        """D of stage i from its x and the network's prediction, bounded as in the step."""
        coef = np.array([*self._rows[i][0][:3], *[0.0] * 9, 1.0])
        return ops.sampler_step.all(x, prediction, None, *NONE, None, coef, **self.attrs)[1]

    def inherit(self, other: Stepper) -> None:
        """Take over the past of a stepper whose plan differs in coefficients only."""
        self._h.extend(list(other._h)[: self._h.maxlen])
        self._x.extend(list(other._x)[: self._x.maxlen])

    def restart(self) -> None:
        """Forget the past, for another run."""
        self._h.clear()
        self._x.clear()


def sample(
    denoiser: Callable[[Any, float], Any],
    x: Any,
    plan: Plan,
    *,
    prediction: Any = "denoised",
    keys: Any = None,
    guidance: Guidance | None = None,
    clip: float | None = None,
    threshold: float | None = None,
    threshold_max: float = 1.0,
    noise: Any = "independent",
    edit: Callable[[int, Any], Any] | None = None,
    callback: Callable[[int, Any], Any] | None = None,
) -> Any:
    """Run x through a plan: the samples, in x's shape.

    denoiser(x, sigma): the network, told sigma (or the stage's own time) as a float; what it returns is `prediction`,
    a name in PREDICTIONS or an object like `Edm`. x: (n, ...), alpha data + sigma noise at plan.initial, for instance
    `initial_noise`. keys: (n, 2) uint64, or a seed or key to split; needed where the plan adds noise. guidance: see
    `Guidance`. clip, threshold, threshold_max: bounds of D, see `Stepper`. noise: "independent" draws one normal number
    per element and stage; "bridge" takes the increments of one Brownian path per sample, so that runs of more or fewer
    steps follow the same path; an object with normal(shape, dtype), such as `mersenne.TorchCpuNoise`, is asked and keys
    are not needed. edit(i, x) may replace x after stage i (inpainting). callback(i, h) sees what stage i
    kept: D for most samplers. Returning True there ends the run.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"sample: plan must be a Plan, such as dpmpp_2m(sigmas), got {type(plan).__name__}")
    given = hasattr(noise, "normal")
    if not given and noise not in NOISES:
        raise ValueError(f"sample: noise must be one of {', '.join(NOISES)}, or have normal(), got {noise!r}")
    if plan.stochastic and keys is None and not given:
        raise ValueError(f"sample: {plan.name} adds noise, and keys is None; give a seed or a key per sample")
    keys = sample_keys(keys, x.shape[0], x) if plan.stochastic and not given else None
    bridge = BrownianBridge(plan, keys) if keys is not None and noise == "bridge" else None
    rescale = 0.0 if guidance is None else guidance.rescale
    stepper = Stepper(
        plan, prediction=prediction, clip=clip, threshold=threshold, threshold_max=threshold_max, rescale=rescale,
        keep=callback is not None,
    )  # fmt: skip
    for i, stage in enumerate(plan.stages):
        uncond, weight = None, 1.0
        if not stage.call:
            said = x
        elif guidance is None:
            said = denoiser(x, stage.told)
        else:
            said, uncond, weight = guidance.predict(denoiser, x, stage)
        drawn = None
        if stage.c_noise != 0 and given:
            drawn = _device.beside(x, noise.normal(tuple(x.shape), dtype_name(x)))
        elif stage.c_noise != 0 and bridge is not None:
            drawn = bridge.increment(i, x)
        x, h = stepper.step(i, x, said, uncond, weight=weight, keys=keys, noise=drawn)
        if edit is not None:
            x = edit(i, x)
        if callback is not None and callback(i, h) is True:
            break
    return x
