"""The rivals of samplers: diffusers' schedulers, k-diffusion's functions, and torch's own operations."""

from __future__ import annotations

import importlib.util
import sys
import types

import work_diffusion as kinds
from registry import rival, with_torch


def _scheduler(work):
    with_torch()
    import diffusers

    scheduler = getattr(diffusers, work.name).from_config(work.options())
    scheduler.set_timesteps(kinds.N_STEPS)
    scheduler.is_scale_input_called = True  # or some classes would log a warning at every step
    return scheduler


@rival(kinds.SchedulerStep, "diffusers", tuned=True)
def _(a, work):
    torch, x, prediction = with_torch(a, "x", "prediction")
    scheduler, numbers = _scheduler(work), work.steps()

    following = work.chain(x)

    @torch.inference_mode()
    def call():
        i = next(numbers)
        if getattr(scheduler, "_step_index", None) is not None and scheduler._step_index != i:
            scheduler._step_index = i  # back to an earlier step, the history kept
        return following(lambda x: scheduler.step(prediction, scheduler.timesteps[i], x).prev_sample)

    return call


@rival(kinds.AddNoise, "diffusers", tuned=True)
def _(a, work):
    _, x, noise, t = with_torch(a, "x", "noise", "t")
    import diffusers

    scheduler = diffusers.DDPMScheduler()
    return lambda: scheduler.add_noise(x, noise, t)


def _sampling():
    """k_diffusion.sampling, without the rest of its package, which imports what training and images need."""
    if "k_diffusion" not in sys.modules:
        found = importlib.util.find_spec("k_diffusion")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'k_diffusion'")
        for name in ("k_diffusion", "torchvision", "torchvision.transforms"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules["k_diffusion"].__path__ = list(found.submodule_search_locations)
        sys.modules["torchvision.transforms"].functional = types.ModuleType("functional")
    from k_diffusion import sampling

    return sampling


def _loop(a, work, independent=False):
    torch, x, denoised = with_torch(a, "x", "denoised")
    sampling = _sampling()
    name = {"dpm2": "dpm_2"}.get(work.name, work.name)
    run, sigmas = getattr(sampling, f"sample_{name}"), torch.tensor(a.sigmas.tolist())
    noise = {"noise_sampler": sampling.default_noise_sampler(x)} if independent else {}
    return lambda: run(lambda x, sigma: denoised, x, sigmas, disable=True, **noise)


@rival(kinds.SamplingLoop, "k-diffusion")
def _(a, work):
    return _loop(a, work)


# Independent noise as ours has by default, where the documented form walks a Brownian tree.
@rival(kinds.SamplingLoop, "k-diffusion, independent noise", best=True, when=lambda work: "sde" in work.name)
def _(a, work):
    return _loop(a, work, independent=True)


@rival(kinds.DenoisingLoss, "torch", tuned=True)
def _(a, work):
    torch, prediction, x, alpha, sigma = with_torch(a, "prediction", "x", "alpha", "sigma")
    prediction, column = prediction.requires_grad_(), (-1, 1, 1, 1)
    alpha, sigma = alpha.view(column), sigma.view(column)

    def call():
        noise = torch.randn_like(x)
        noisy = alpha * x + sigma * noise
        loss = ((prediction - (alpha * noise - sigma * x)) ** 2).mean((1, 2, 3))
        return noisy, loss, torch.autograd.grad(loss.mean(), prediction)[0]

    return call
