"""Whole training steps for gpu.py: ours recorded as a CUDA graph, torch's eager with channels_last and fused Adam.

Both draw levels and noise, clip the gradient, take a step of Adam and move the average; the numbers drawn differ, so
losses are not compared here (tests/test_cuda_models.py and the parity tests do that).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from cases_models import UNET8, UNET28
from gpu_cases import Case, normal
from work_models import DenoiserTraining

from generant import diffusion, nn, ops, optim, random, record

__all__ = ["model_cases"]


def ours(cp: Any, work: DenoiserTraining) -> Any:
    """One training step as a call that returns the loss on the device."""
    learner = nn.Learner(
        work.network(),
        lambda p: optim.Adam(p, lr=work.lr),
        clip=work.clip,
        ema=lambda p: optim.EMA(p, decay=work.decay),
        device="cuda",
    )
    edm, levels, keys, count = diffusion.Edm(), random.Stream(1), random.Stream(2), itertools.count()
    x, weight = normal(cp, work.n, work.size, work.size, work.c), np.ones(work.n, np.float32)

    def loss(net, x, key, in_x, in_z, c_noise, b_x, b_z, weight):
        said = net(ops.q_sample(x, in_x, in_z, key), c_noise)
        return ops.mean(ops.denoising_loss(said, x, b_x, b_z, weight, key))

    def step(state, *inputs):
        value, gradients = nn.value_and_grad(loss)(learner.network(state), *inputs)
        learner.update(state, gradients)
        return value

    plan = record(step, learner.state)

    def call():
        k = next(count)
        sigma = edm.training_sigmas(levels.at(k), work.n)
        mixtures = [c.astype(np.float32) for c in edm.mixtures(sigma)]
        c_noise = edm.scalings(sigma)[3].astype(np.float32)
        learner.prepare()
        return plan(x, keys.at(k), *mixtures[:2], c_noise, *mixtures[2:], weight)

    return call


def torchs(torch: Any, work: DenoiserTraining, where: str) -> Any:
    import torch_models as twins

    net = twins.unet(work).to(where).to(memory_format=torch.channels_last)
    parameters = list(net.parameters())
    adam = torch.optim.Adam(parameters, lr=work.lr, fused=True)
    average = [p.detach().clone() for p in parameters]
    x = torch.randn(work.n, work.c, work.size, work.size, device=where).to(memory_format=torch.channels_last)

    def call():
        sigma = torch.exp(twins.P_MEAN + twins.P_STD * torch.randn(work.n, device=where))
        c_skip, c_out, c_in, c_noise = twins.edm(sigma)
        noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
        loss = torch.nn.functional.mse_loss(net(c_in * noisy, c_noise), (x - c_skip * noisy) / c_out)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, work.clip)
        adam.step()
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - work.decay)
        return loss.detach()

    return call


def model_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    where = "cuda" if torch.cuda.is_available() else "cpu"
    cases = []
    for name, options in (("8x8x1, batch 128", UNET8), ("28x28x1, batch 64", UNET28)):
        work = DenoiserTraining(**options)
        work = work.small() if small else work
        cases.append(
            Case(
                f"training step, UNet {name}",
                ours(cp, work),
                {"torch eager, channels_last": torchs(torch, work, where)},
                goal="3x",
                tolerance=None,
            )
        )
    return cases
