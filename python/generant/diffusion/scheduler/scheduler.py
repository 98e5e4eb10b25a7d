"""`Scheduler`: what diffusers' schedulers are, for arrays without torch: from_config, set_timesteps, step, add_noise.

One class serves all of diffusers' classes: a `Family` says where the steps lie and gives them as a `Plan`, and a step
is one stage of it. compat="diffusers" reproduces diffusers 0.42 with its float32 tables and its quirks, "exact" (the
default) computes tables in float64 and does what the papers say. Not here: the families.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ... import ops, random
from ...ops import _device
from ..learned_variance import LEARNED, deviation
from ..sampling import Stepper, sample_keys
from ..schedules.betas import alphas_cumprod, betas, zero_terminal_snr
from . import config as configs
from .registry import Family, Grid, Setting, Tables, alpha_sigma

__all__ = ["Scheduler", "SchedulerOutput"]

MODES = ("exact", "diffusers")
OTHERS_BOUNDS = ("sigma_min", "sigma_max")  # read where a config has them, whichever class they were meant for
FLOOR = 2.0**-24  # of the last alphas_cumprod, where a family cannot take 0


class SchedulerOutput:
    """What a step returns: prev_sample, and pred_original_sample, which is worked out when it is asked for."""

    __slots__ = ("_stepper", "_where", "prev_sample")

    def __init__(self, prev_sample: Any, stepper: Stepper, where: tuple[int, Any, Any]) -> None:
        self.prev_sample, self._stepper, self._where = prev_sample, stepper, where

    @property
    def pred_original_sample(self) -> Any:
        """The denoised sample D, clipped or thresholded as in the step."""
        return self._stepper.denoised(*self._where)

    def __getitem__(self, i: int) -> Any:
        return (self.prev_sample, self.pred_original_sample)[i] if i else self.prev_sample


class _Run:
    """The stages from one step on, with what each needs beside the plan."""

    __slots__ = ("begin", "looks_back", "noisy", "options", "plain", "stepper", "variance")

    def __init__(self, scheduler: Scheduler, begin: int, options: dict[str, Any]) -> None:
        setting, grid = scheduler._setting, scheduler._grid
        program = scheduler.family.program(setting, grid, begin, options)
        plan = program.plan
        self.begin, self.options, self.variance = begin, options, program.variance
        self.stepper = Stepper(
            plan, prediction=scheduler.family.prediction(setting), raw=program.raw, **scheduler._bounds
        )
        self.plain = options == dict(scheduler.family.options)
        self.looks_back = any(stage.terms for stage in plan.stages)
        self.noisy = program.draws or tuple([stage.c_noise != 0 for stage in plan.stages])


class Scheduler:
    """A sampler stepped from outside, as in diffusers.

        scheduler = Scheduler.from_config("path/to/scheduler")
        scheduler.set_timesteps(25)
        x = scheduler.initial_noise((n, 4, 64, 64), generator=0)
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample

    config: every key the class knows, and what else from_config was given; timesteps, sigmas: NumPy arrays; order: how
    many steps share a level; init_noise_sigma: of the noise to start from; len: the number of training steps.
    """

    def __init__(
        self, family: Family, config: Mapping[str, Any], hidden: Mapping[str, Any], unchosen: list[str], compat: str
    ) -> None:
        self.family, self.compat, self.order = family, compat, family.order
        notes = {"_class_name": family.name, "_use_default_values": unchosen}
        self.config: Mapping[str, Any] = MappingProxyType({**config, **hidden, **notes})
        self.hidden_config: Mapping[str, Any] = MappingProxyType(dict(hidden))
        bounds = {key: hidden[key] for key in OTHERS_BOUNDS if key in hidden}
        self._setting = Setting({**config, **bounds}, _tables(family, config, compat), compat == "diffusers")
        family.prediction(self._setting)  # refuse what the class cannot take now, not at the first step
        self._bounds: dict[str, Any] = family.bounds(config)
        self._says_variance = config.get("variance_type") in LEARNED
        self._by_timestep = family.by_timestep
        self._seed: int | None = None
        self._noise_tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.num_inference_steps: int | None = None
        self._begin: int | None = None
        self._started = False
        self._show(family.start(self._setting) if family.start else self._first_grid())

    @classmethod
    def from_config(
        cls, source: Any, *, class_name: str | None = None, compat: str = "exact", **changes: Any
    ) -> Scheduler:
        """A scheduler from a scheduler_config.json: a dict, a file, a folder, or another scheduler's config.

        class_name: the class to make, if not the config's own _class_name. changes: keys to set. compat: "exact" or
        "diffusers". Unknown keys are kept (hidden_config) and warned about. ValueError names a class, a prediction
        type or a combination of keys that cannot be had.
        """
        if compat not in MODES:
            raise ValueError(f"Scheduler.from_config: compat must be one of {', '.join(MODES)}, got {compat!r}")
        given = source.to_config() if isinstance(source, Scheduler) else configs.read(source)
        name = class_name or given.get("_class_name")
        if name is None:
            raise ValueError("Scheduler.from_config: the config has no _class_name; give class_name=")
        family = configs.family_named(name)
        unchosen = [key for key in given.get("_use_default_values") or () if key not in changes]
        complete, hidden, left = configs.completed(family, {**given, "_use_default_values": unchosen, **changes})
        return cls(family, complete, hidden, left, compat)

    def to_config(self) -> dict[str, Any]:
        """The config as a dict that from_config takes, unknown keys included."""
        return dict(self.config)

    def save_config(self, folder: Any) -> None:
        """Write scheduler_config.json into a folder, whole or not at all."""
        configs.write(folder, self.to_config())

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def __repr__(self) -> str:
        steps = "no timesteps set" if self.num_inference_steps is None else f"{len(self.timesteps)} timesteps"
        return f"Scheduler({self.family.name!r}, compat={self.compat!r}, {steps})"

    # ---- where the steps lie ----

    @property
    def betas(self) -> np.ndarray | None:
        """(T,) or None where the class has none."""
        return None if self._setting.tables is None else self._setting.tables.betas

    @property
    def alphas_cumprod(self) -> np.ndarray | None:
        """(T,) or None where the class has no betas."""
        return None if self._setting.tables is None else self._setting.tables.alphas_cumprod

    @property
    def step_index(self) -> int | None:
        """The number of the next step; None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """What set_begin_index was given."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later step, as image-to-image does. Earlier steps leave no history."""
        if not 0 <= begin_index < len(self.timesteps):
            raise ValueError(
                f"{self.family.name}: begin_index must lie in 0 ... {len(self.timesteps) - 1}, got {begin_index}"
            )
        self._begin = int(begin_index)

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **given: Any) -> None:
        """Choose the steps: timesteps, sigmas and init_noise_sigma follow, and any history is forgotten.

        num_inference_steps: 1 ... len(self). device is accepted and unused. given: timesteps, sigmas, mu, ..., where
        the class takes them. ValueError where the steps cannot be had.
        """
        n, name = num_inference_steps, self.family.name
        if n is not None:
            if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
                raise TypeError(f"{name}.set_timesteps: num_inference_steps must be an integer, got {n!r}")
            if not 1 <= n <= len(self):
                raise ValueError(f"{name}.set_timesteps: num_inference_steps must lie in 1 ... {len(self)}, got {n}")
            n = int(n)
        given = {key: value for key, value in given.items() if value is not None}
        if foreign := set(given) - set(self.family.accepts):
            raise TypeError(f"{name}.set_timesteps does not take {', '.join(sorted(foreign))}")
        grid = self.family.grid(self._setting, n, given)
        self._show(grid)
        self._begin = None
        self.num_inference_steps = len(grid.timesteps) if n is None else n
        self._started = True

    def _first_grid(self) -> Grid:
        return self.family.grid(self._setting, len(self), {})

    def _show(self, grid: Grid) -> None:
        self._grid = grid
        self.timesteps, self.sigmas = grid.timesteps, grid.sigmas
        self.init_noise_sigma = grid.init
        self._times: list[Any] = grid.timesteps.tolist()
        self._index: int | None = None
        self._run: _Run | None = None
        self._keys: tuple[Any, tuple[int, bool], Any] | None = None
        self._seed = None

    def index_for_timestep(self, timestep: Any) -> int:
        """The number of the step at this timestep: of two the second, as when a run starts in the middle."""
        t = float(timestep)
        found = np.flatnonzero(self.timesteps == t)
        if len(found) == 0:
            found = np.flatnonzero(np.isclose(self.timesteps, t, rtol=1e-5, atol=1e-6))
        if len(found) == 0:
            raise ValueError(
                f"{self.family.name}: {t:g} is not among the {len(self.timesteps)} timesteps from "
                f"{float(self.timesteps[0]):g} to {float(self.timesteps[-1]):g}"
            )
        return int(found[1 if len(found) > 1 else 0])

    # ---- one step ----

    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        """What the network is to be given at a timestep: the sample, scaled where the class wants that."""
        if self._grid.scales is None:
            return sample
        if self._index is None:
            self._index = self._first_index(timestep)
        scale = float(self._grid.scales[self._index])
        return ops.affine(sample, scale=scale)

    def _first_index(self, timestep: Any) -> int:
        if self._begin is not None:
            return self._begin
        if timestep is None:
            raise ValueError(f"{self.family.name}: timestep must be given before the first step")
        return 0 if float(timestep) == float(self.timesteps[0]) else self.index_for_timestep(timestep)

    def step(
        self,
        model_output: Any,
        timestep: Any,
        sample: Any,
        *,
        index: int | None = None,
        generator: Any = None,
        noise: Any = None,
        variance_noise: Any = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """The sample one step further: SchedulerOutput, or a tuple of prev_sample alone where return_dict is False.

        model_output: what the network said; timestep: one of timesteps, needed for the first step only, but looked at
        in every step by classes without history (DDPM, DDIM), whose steps may come in any order; sample: n ....
        index: the number of the step, if not the next one. Noise: noise (or variance_noise), standard normal numbers;
        else from generator: a seed, a key, a key per sample (n, 2) or an object with normal(shape, dtype); else from
        a seed of this run's own. options: eta, s_churn, ... as the class takes them.
        """
        i = self._index if index is None else index
        if self._by_timestep and index is None and timestep is not None:
            if i is None or i >= len(self._times) or self._times[i] != timestep:
                i = self.index_for_timestep(timestep)
        run = self._run
        if index is not None and index != self._index and run is not None and run.looks_back:
            run = self._run = None  # what comes out of order has no history
        if run is None or i is None or i < run.begin or i - run.begin >= len(run.noisy) or options or not run.plain:
            i, run = self._prepared(i, timestep, options)
        self._index = i + 1
        k = i - run.begin
        stepper = run.stepper
        keys = None
        if run.variance:
            model_output, noise = self._learned(run, k, model_output, sample, generator, _one_of(noise, variance_noise))
        else:
            if self._says_variance:
                model_output = self._halves(model_output, sample, required=False)[0]
            noise = _one_of(noise, variance_noise)
            if not run.noisy[k]:
                noise = None
            elif noise is None:
                keys, noise = self._noise(generator, sample)
        following, _ = stepper.step(k, sample, model_output, keys=keys, noise=noise)
        if not return_dict:
            return (following,)
        return SchedulerOutput(following, stepper, (k, sample, model_output))

    def _prepared(self, i: int | None, timestep: Any, options: dict[str, Any]) -> tuple[int, _Run]:
        """The number of the step, and the stages it belongs to, built where there are none yet or options changed."""
        name = self.family.name
        if not (self._started or self.family.at_once):
            raise ValueError(f"{name}.step: call set_timesteps first")
        if i is None:
            i = self._first_index(timestep)
        if not 0 <= i < len(self.timesteps):
            raise ValueError(f"{name}.step: step {i} of {len(self.timesteps)} does not exist; call set_timesteps again")
        if unknown := set(options) - set(self.family.options):
            raise TypeError(f"{name}.step does not take {', '.join(sorted(unknown))}")
        wanted = {**self.family.options, **options}
        run = self._run
        if run is not None and i >= run.begin and wanted == run.options:
            return i, run
        begin = i if run is None or i < run.begin else run.begin
        self._run = made = _Run(self, begin, wanted)
        if run is not None and begin == run.begin:  # other options in the middle of a run: its past stays
            made.stepper.inherit(run.stepper)
        return i, made

    def _noise(self, generator: Any, sample: Any) -> tuple[Any, Any]:
        """(keys, noise): one of them, the other None."""
        if generator is not None and hasattr(generator, "normal"):
            drawn = generator.normal(tuple(sample.shape), str(sample.dtype).removeprefix("torch."))
            return None, _device.beside(sample, drawn)
        about = (int(sample.shape[0]), _device.is_device(sample))
        kept = self._keys
        if kept is not None and kept[0] is generator and kept[1] == about:
            return kept[2], None
        if generator is None:
            self._seed = random.seed_from(None) if self._seed is None else self._seed
        keys = sample_keys(self._seed if generator is None else generator, sample.shape[0], sample)
        self._keys = (generator, about, keys)
        return keys, None

    def _halves(self, model_output: Any, sample: Any, *, required: bool = True) -> tuple[Any, Any]:
        """(prediction, variance) of twice the channels; not required: (model_output, None) of as many as sample has."""
        c = sample.shape[1]
        if model_output.shape[1] == c and not required:
            return model_output, None
        if model_output.shape[1] != 2 * c:
            raise ValueError(
                f"{self.family.name}.step: variance_type={self.config['variance_type']!r} wants {2 * c} channels of "
                f"prediction and variance, got shape {tuple(model_output.shape)}"
            )
        prediction, values = ops.split(model_output, sizes=(c, c), axis=1)
        return prediction, values

    def _learned(
        self, run: _Run, k: int, model_output: Any, sample: Any, generator: Any, noise: Any
    ) -> tuple[Any, Any]:
        """(prediction, noise times the standard deviation that the network predicted), of twice the channels."""
        prediction, values = self._halves(model_output, sample)
        if not run.noisy[k]:
            return prediction, None
        if noise is None:
            keys, noise = self._noise(generator, sample)
            if noise is None:
                noise = random.normals(keys, tuple(sample.shape[1:]), str(sample.dtype), stream=k + 1)
        return prediction, ops.mul(noise, deviation(values, *run.variance[k], self.config["variance_type"]))

    # ---- noise on data ----

    def _coefficients(self, what: str, timesteps: Any, sample: Any) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) of each sample, in its dtype."""
        t = np.atleast_1d(np.asarray(_device.from_device(timesteps)))
        name, grid, n = f"{self.family.name}.{what}", self._grid, sample.shape[0]
        if t.ndim != 1 or len(t) not in (1, n):
            raise ValueError(f"{name}: timesteps must be one number or {n}, one per sample, got shape {t.shape}")
        dtype = "float64" if str(sample.dtype).endswith("float64") else "float32"
        alpha: Any
        sigma: Any
        if grid.table_noise or (not self._started and grid.sigmas is None):
            if (t.dtype.kind not in "iu" and (t != t.astype(np.int64)).any()) or t.min() < 0 or t.max() >= len(self):
                raise ValueError(f"{name}: timesteps must be integers in 0 ... {len(self) - 1}, got {t}")
            whole = t.astype(np.int64, copy=False)
            alpha, sigma = (table[whole] for table in self._trained(dtype))
            if len(t) == n:
                return alpha, sigma
        else:
            if self._setting.compat and self._begin is not None:  # which does not look at the timesteps then
                at = [self._begin if self._index is None else self._index] * len(t)
            else:
                at = [self.index_for_timestep(x) for x in t]
            alpha, sigma = alpha_sigma(grid.form, np.asarray(grid.sigmas)[at])
        alpha, sigma = (np.ascontiguousarray(np.broadcast_to(v, n), dtype) for v in (alpha, sigma))
        return alpha, sigma

    def _trained(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """alpha and sigma of every training step, worked out once."""
        found = self._noise_tables.get(dtype)
        if found is None:
            assert self._setting.tables is not None
            a = self._setting.tables.alphas_cumprod
            found = self._noise_tables[dtype] = ((a**0.5).astype(dtype), ((1 - a) ** 0.5).astype(dtype))
        return found

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        """alpha x + sigma noise at the timestep of each sample. original_samples, noise: n ...; timesteps: n or one."""
        alpha, sigma = self._coefficients("add_noise", timesteps, original_samples)
        return ops.add_noise(original_samples, noise, *[_device.beside(original_samples, a) for a in (alpha, sigma)])

    def scale_noise(self, sample: Any, timestep: Any, noise: Any) -> Any:
        """The same, in the order of arguments that diffusers' flow matching has."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Any, noise: Any, timesteps: Any) -> Any:
        """alpha noise - sigma x: the target of v-prediction. Salimans and Ho (2022)."""
        alpha, sigma = self._coefficients("get_velocity", timesteps, sample)
        if self._setting.compat and self._grid.form == "ve" and self.alphas_cumprod is not None:
            # diffusers' Euler takes the number of the step for a timestep of training
            t = np.atleast_1d(np.asarray(_device.from_device(timesteps)))
            a = self.alphas_cumprod[[self.index_for_timestep(at) for at in t]]
            alpha, sigma = (np.broadcast_to(v, alpha.shape).astype(alpha.dtype) for v in (a**0.5, (1 - a) ** 0.5))
        return ops.add_noise(noise, sample, *[_device.beside(sample, a) for a in (alpha, -sigma)])

    def initial_noise(self, shape: tuple[int, ...], generator: Any = None, dtype: str = "float32") -> Any:
        """init_noise_sigma times standard normal numbers of shape (n, ...), a key per sample; generator as in step."""
        if generator is not None and hasattr(generator, "normal"):
            return ops.affine(generator.normal(tuple(shape), dtype), scale=float(self.init_noise_sigma))
        if generator is None:
            self._seed = random.seed_from(None) if self._seed is None else self._seed
        keys = sample_keys(self._seed if generator is None else generator, shape[0])
        return random.normals(keys, tuple(shape[1:]), dtype, scale=float(self.init_noise_sigma))


def _one_of(noise: Any, variance_noise: Any) -> Any:
    if noise is not None and variance_noise is not None:
        raise ValueError("Scheduler.step: noise and variance_noise are the same thing; give one of them")
    return variance_noise if noise is None else noise


def _tables(family: Family, config: Mapping[str, Any], compat: str) -> Tables | None:
    """betas and alphas_cumprod of the config, float32 in compat mode."""
    if not family.has_betas:
        return None
    b = betas(
        config["beta_schedule"], int(config["num_train_timesteps"]), beta_start=config["beta_start"],
        beta_end=config["beta_end"], trained=config.get("trained_betas"),
        precision="float32" if compat == "diffusers" else "float64",
    )  # fmt: skip
    rescaled = bool(config.get("rescale_betas_zero_snr"))
    if rescaled:
        b = zero_terminal_snr(b)
    a = alphas_cumprod(b)
    if rescaled and family.floor:
        a = a.copy()
        a[-1] = FLOOR
    return Tables(b, a)
