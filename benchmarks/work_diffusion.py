"""Work of samplers: one step of a scheduler, and whole sampling loops around a network that costs nothing.

See work.py for what a kind of work is. A scheduler is stepped through the middle of its schedule, where its history is
full, with the same prediction at every step. The first steps, whose result is compared, lead from one to the next where
there is no noise (some methods rely on x being what they returned); after them x is the same every time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
from work import Family, moments, normal, relative

N_STEPS, FIRST, LAST = 20, 4, 12  # of a schedule; the steps from FIRST to LAST are repeated


@dataclass(frozen=True)
class SchedulerStep(Family):
    """scheduler.step of a diffusers class, its noise included. config: JSON of the keys that are not its defaults."""

    name: str
    shape: tuple
    arrays: int  # that must be read and written
    noisy: bool = False
    config: str = "{}"
    checked_calls = 8

    @property
    def tolerance(self) -> float:
        return 6.0 if self.noisy else 1e-4

    @property
    def unit(self) -> str:
        return " sd" if self.noisy else ""

    def options(self) -> dict[str, Any]:
        return {"_class_name": self.name, **json.loads(self.config)}

    def inputs(self):
        return SimpleNamespace(x=normal(self.shape), prediction=normal(self.shape, 1))

    def steps(self) -> Any:
        """The numbers of the steps: from the first to LAST, then FIRST to LAST for ever."""
        return chain(range(FIRST), cycle(range(FIRST, LAST)))

    def chain(self, x: Any) -> Any:
        """step -> step(x), where x is what came before, until enough steps were made to be judged."""
        left, last = 0 if self.noisy else self.checked_calls, x

        def following(step):
            nonlocal left, last
            if left == 0:
                return step(x)
            left, last = left - 1, step(last)
            return last

        return following

    def scheduler(self) -> Any:
        from generant.diffusion import Scheduler

        scheduler = Scheduler.from_config(self.options(), compat="diffusers")  # the rival's coefficients
        scheduler.set_timesteps(N_STEPS)
        return scheduler

    def ours(self, a):
        scheduler = self.scheduler()
        times, numbers, step = scheduler.timesteps, self.steps(), scheduler.step
        noise = {"generator": 0} if self.noisy else {}

        following = self.chain(a.x)

        def call():
            i = scheduler._index = next(numbers)  # back to an earlier step, the history kept, as for the rival
            return following(lambda x: step(a.prediction, times[i], x, **noise).prev_sample)

        return call

    def error(self, result, a):
        """Against the same steps in float64, with noise 0 and, where there is noise, 1."""
        ends = []
        for level in (0.0, 1.0)[: 1 + self.noisy]:
            scheduler, numbers = self.scheduler(), self.steps()
            x, prediction = a.x.astype(np.float64), a.prediction.astype(np.float64)
            noise = {"noise": np.full(self.shape, level)} if self.noisy else {}
            following = self.chain(x)
            for _ in range(self.checked_calls):
                t = scheduler.timesteps[next(numbers)]
                step = partial(scheduler.step, prediction, t, **noise)
                end = following(lambda x, step=step: step(sample=x).prev_sample)
            ends.append(end)
        if not self.noisy:
            return relative(result, ends[0])
        return moments((result - ends[0]) / (ends[1] - ends[0]))

    def bytes(self):
        return 4.0 * self.arrays * np.prod(self.shape)


@dataclass(frozen=True)
class SamplingLoop(Family):
    """A sampler from sigma 80 to 0.01 in 20 steps around a denoiser that always says the same."""

    name: str  # in diffusion.SAMPLERS
    shape: tuple
    noisy: bool = False

    @property
    def tolerance(self) -> float:
        return 6.0 if self.noisy else 1e-4

    @property
    def unit(self) -> str:
        return " sd" if self.noisy else ""

    def sigmas(self) -> np.ndarray:
        from generant.diffusion import karras_sigmas

        return karras_sigmas(N_STEPS + 1, sigma_min=0.01)[:-1]

    def inputs(self):
        return SimpleNamespace(x=normal(self.shape, scale=80.0), denoised=normal(self.shape, 1), sigmas=self.sigmas())

    def ours(self, a):
        from generant import diffusion, random

        plan = diffusion.SAMPLERS[self.name](a.sigmas)
        keys = random.split(0, self.shape[0]) if plan.stochastic else None
        return lambda: diffusion.sample(lambda x, sigma: a.denoised, a.x, plan, keys=keys)

    def error(self, result, a):
        """All samplers are exact where D is constant: x - D falls like sigma, or is sigma times a normal number."""
        start, end = a.sigmas[0], a.sigmas[-1]
        if self.noisy:
            return moments((np.asarray(result, np.float64) - a.denoised) / end)
        return relative(result, a.denoised + (a.x.astype(np.float64) - a.denoised) * end / start)


@dataclass(frozen=True)
class AddNoise(Family):
    """scheduler.add_noise: sqrt(abar_t) x + sqrt(1 - abar_t) noise with noise that is given, a time per sample."""

    shape: tuple

    def inputs(self):
        t = np.linspace(10, 990, self.shape[0]).astype(np.int64)
        return SimpleNamespace(x=normal(self.shape), noise=normal(self.shape, 1), t=t)

    def ours(self, a):
        from generant.diffusion import Scheduler

        scheduler = Scheduler.from_config({"_class_name": "DDPMScheduler"})
        return lambda: scheduler.add_noise(a.x, a.noise, a.t)

    def error(self, result, a):
        alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[a.t].reshape(-1, 1, 1, 1)
        return relative(result, np.sqrt(alphas) * a.x + np.sqrt(1 - alphas) * a.noise)

    def bytes(self):
        return 12.0 * np.prod(self.shape)


@dataclass(frozen=True)
class DenoisingLoss(Family):
    """Training without the network: the noisy input, the loss of a prediction and its gradient."""

    shape: tuple
    tolerance = 1e-4

    def inputs(self):
        from generant import random

        t = np.linspace(0.1, 1.4, self.shape[0])
        alpha, sigma, key = np.cos(t).astype(np.float32), np.sin(t).astype(np.float32), random.key(7)
        return SimpleNamespace(
            prediction=normal(self.shape), x=normal(self.shape, 1), alpha=alpha, sigma=sigma, key=key,
            weight=np.ones_like(alpha),
        )  # fmt: skip

    def ours(self, a):
        from generant import ops

        g = np.full(self.shape[0], 1 / self.shape[0], np.float32)

        def call():  # v-prediction
            arrays = (a.prediction, a.x, -a.sigma, a.alpha, a.weight, a.key)
            noisy = ops.q_sample(a.x, a.alpha, a.sigma, a.key)
            loss, residual = ops.denoising_loss.all(*arrays)
            return noisy, loss, ops.denoising_loss_bwd(g, a.weight, residual)

        return call

    def error(self, result, a):
        """With the noise that is in the noisy input, whoever drew it."""
        noisy, loss, slope = result
        alpha, sigma = (c.astype(np.float64).reshape(-1, 1, 1, 1) for c in (a.alpha, a.sigma))
        noise = (noisy - alpha * a.x) / sigma
        residual = a.prediction - (alpha * noise - sigma * a.x)
        return max(abs(float(np.mean(loss)) / np.mean(residual**2) - 1), relative(slope, 2 * residual / residual.size))

    def bytes(self):
        return 28.0 * np.prod(self.shape)
