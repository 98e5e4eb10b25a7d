"""The twins of work_models.py in torch: networks with our first weights, losses, training steps and sampling.

A twin runs in float64 as the reference of all contenders, and in float32 as the rival, with its settings: the memory
order of images, how parameters are updated, and whether the loss or the network goes through torch.compile. While it is
judged a twin uses the noise of the inputs; then it draws its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import work_models as kinds
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from torch_twins import TorchUNet2D, as_ours  # those that our networks are tested against

SIGMA_DATA, P_MEAN, P_STD = 0.5, -1.2, 1.2  # Karras et al. (2022)


def images(x: np.ndarray, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    """n h w c as n c h w, in torch's memory order or in ours."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(x).to(dtype).permute(0, 3, 1, 2).contiguous(memory_format=order)


def in_our_order(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def load(net: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
    """The network with our weights, by our names and in its layout."""
    for path, array in weights.items():
        as_ours(net, path).copy_(torch.from_numpy(array))
    return net


class Mlp(nn.Module):
    def __init__(self, d: int, o: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in zip((d, *hidden), hidden, strict=False)])
        self.out = nn.Linear(hidden[-1], o)

    def forward(self, x):
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.out(x)


class Update:
    """Gradients of a loss, clipping, fused Adam and the average: as documented, by foreach, or on one flat buffer."""

    def __init__(self, net: nn.Module, work: Any, setting: str) -> None:
        self.net, self.clip, self.decay = net, work.clip, work.decay
        self.parameters = list(net.parameters())
        self.grads = self._flatten() if setting == "flat" else None
        fused = self.parameters[0].dtype == torch.float32  # the reference takes the other way
        self.adam = torch.optim.Adam(self.parameters, lr=work.lr, betas=(work.beta1, work.beta2), fused=fused)
        self.average: Any = None
        if self.decay is not None and setting == "documented":
            averages = torch.optim.swa_utils
            self.average = averages.AveragedModel(net, multi_avg_fn=averages.get_ema_multi_avg_fn(self.decay))
        elif self.decay is not None:
            self.average = [p.detach().clone() for p in self.parameters]

    def _flatten(self) -> torch.Tensor:
        """One parameter, of which those of the network are views, and so for gradients."""
        data = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        grads, start = torch.zeros_like(data), 0
        for p in self.parameters:
            p.data = data[start : start + p.numel()].view(p.shape)
            p.grad = grads[start : start + p.numel()].view(p.shape)
            start += p.numel()
        flat = nn.Parameter(data)
        flat.grad, self.parameters = grads, [flat]
        return grads

    def __call__(self, loss: torch.Tensor) -> None:
        if self.grads is None:
            self.adam.zero_grad()
        else:
            self.grads.zero_()
        loss.backward()
        if self.clip < float("inf"):
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.adam.step()
        if isinstance(self.average, list):
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.decay)
        elif self.average is not None:
            self.average.update_parameters(self.net)


class Training:
    """step(k) trains on batch k. A subclass has network(), and loss(k) or a step of its own."""

    def __init__(self, a: Any, work: Any, *, dtype: torch.dtype = torch.float32, channels_last: bool = False,
                 setting: str = "documented", compiled: bool = False) -> None:  # fmt: skip
        self.a, self.work, self.dtype, self.channels_last = a, work, dtype, channels_last
        self.setting = setting
        self.faster: Callable = torch.compile if compiled else lambda f: f
        self.prepare()

    def prepare(self) -> None:
        net = load(self.network(), self.a.weights).to(self.dtype)
        self.net = net.to(memory_format=torch.channels_last) if self.channels_last else net
        self.update = Update(self.net, self.work, self.setting)
        self.objective = self.faster(self.objective)

    def rows(self, x: np.ndarray) -> list[torch.Tensor]:
        return list(torch.from_numpy(x).to(self.dtype))

    def pictures(self, x: np.ndarray) -> list[torch.Tensor]:
        return [images(batch, self.dtype, self.channels_last) for batch in x]

    def normals(self, k: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Number k of the noise of rows that is given, or new."""
        if k < len(self.a.noise):
            return torch.from_numpy(self.a.noise[k]).to(self.dtype)
        return torch.randn(shape, dtype=self.dtype)

    def step(self, k: int) -> tuple[torch.Tensor, ...]:
        loss = self.loss(k)
        self.update(loss)
        return (loss.detach(),)


class MlpTraining(Training):
    def network(self):
        return Mlp(self.work.width, self.work.width, (self.work.width,) * 2)

    def prepare(self):
        super().prepare()
        self.x, self.target = self.rows(self.a.x), self.rows(self.a.target)

    def objective(self, x, target):
        return F.mse_loss(self.net(x), target)

    def loss(self, k):
        return self.objective(self.x[k % kinds.BATCHES], self.target[k % kinds.BATCHES])


class VaeTraining(Training):
    def network(self):
        work = self.work
        encoder = Mlp(work.d, 2 * work.latent, work.hidden)
        return nn.ModuleDict({"encoder": encoder, "decoder": Mlp(work.latent, work.d, work.hidden[::-1])})

    def prepare(self):
        super().prepare()
        self.x = self.rows(self.a.x)

    def objective(self, x, noise):
        mu, logvar = self.net["encoder"](x).chunk(2, dim=1)
        z = mu + torch.exp(0.5 * logvar) * noise
        surprise = F.binary_cross_entropy_with_logits(self.net["decoder"](z), x, reduction="sum")
        kl = 0.5 * torch.sum(mu**2 + torch.exp(logvar) - logvar - 1)
        return (surprise + kl) / len(x)

    def loss(self, k):
        return self.objective(self.x[k % kinds.BATCHES], self.normals(k, (self.work.n, self.work.latent)))


def edm(sigma: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """c_skip, c_out, c_in (n, 1, 1, 1) and c_noise (n,) for sigma (n,). Karras et al. (2022), table 1."""
    s = sigma.view(-1, 1, 1, 1)
    square = s**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / square, s * SIGMA_DATA / square.sqrt(), 1 / square.sqrt(), sigma.log() / 4


def unet(work: Any) -> nn.Module:
    return TorchUNet2D(work.c, **work.options())


class Generator(nn.Module):
    """nn.DCGANGenerator of two layers: z (n, latent) to images (n, 1, size, size)."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.start, width = (2 * work.width, work.size // 4, work.size // 4), work.width
        self.enter = nn.Linear(work.latent, math.prod(self.start))
        self.layers = nn.ModuleList([nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)])
        self.out = nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1)

    def forward(self, z):
        h = F.relu(self.enter(z)).view(-1, *self.start)
        return self.out(F.relu(self.layers[0](h)))


class Discriminator(nn.Module):
    """nn.DCGANDiscriminator of two layers: a logit per image."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        width = work.width
        pairs = ((1, width), (width, 2 * width))
        self.layers = nn.ModuleList([nn.Conv2d(c, o, 4, stride=2, padding=1) for c, o in pairs])
        self.head = nn.ModuleDict({"out": nn.Linear(2 * width * (work.size // 4) ** 2, 1)})

    def forward(self, x):
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.head["out"](x.flatten(1))[:, 0]


class GanTraining(Training):
    def network(self):
        return nn.ModuleDict({"generator": Generator(self.work), "discriminator": Discriminator(self.work)})

    def prepare(self):
        work, channels_last = self.work, self.channels_last
        net = load(self.network(), self.a.weights)
        self.g, self.d = net["generator"], net["discriminator"]
        rows = torch.arange(math.prod(self.g.start)).view(*self.g.start[1:], -1).permute(2, 0, 1).flatten()
        enter, out = self.g.enter, self.d.head["out"]  # ours have the channels last
        enter.weight.data, enter.bias.data = enter.weight.data[rows], enter.bias.data[rows]
        out.weight.data = out.weight.data[:, rows]
        net.to(self.dtype)
        if channels_last:
            net.to(memory_format=torch.channels_last)
        self.updates = [Update(part, work, self.setting) for part in (self.d, self.g)]
        self.of_discriminator, self.of_generator = self.faster(self.of_discriminator), self.faster(self.of_generator)
        self.x = self.pictures(self.a.x)

    def of_discriminator(self, real, fake):
        logits = self.d(real)
        slope, = torch.autograd.grad(logits.sum(), real, create_graph=True)
        penalty = slope.square().sum((1, 2, 3)).mean()
        return F.softplus(-logits).mean() + F.softplus(self.d(fake)).mean() + self.work.gamma / 2 * penalty

    def of_generator(self, z):
        return F.softplus(-self.d(self.g(z))).mean()

    def step(self, k):
        z, other = (self.normals(i, (self.work.n, self.work.latent)) for i in (2 * k, 2 * k + 1))
        with torch.no_grad():
            fake = self.g(z)
        d_loss = self.of_discriminator(self.x[k % kinds.BATCHES].detach().requires_grad_(), fake)
        self.updates[0](d_loss)
        if self.setting != "documented":
            self.d.requires_grad_(False)  # the documented way works its gradients out and throws them away
        g_loss = self.of_generator(other)
        self.updates[1](g_loss)
        self.d.requires_grad_(True)
        return d_loss.detach(), g_loss.detach()


class DenoiserTraining(Training):
    def network(self):
        return unet(self.work)

    def prepare(self):
        super().prepare()
        self.x = self.pictures(self.a.x)

    def objective(self, x, sigma, noise):
        c_skip, c_out, c_in, c_noise = edm(sigma)
        noisy = x + sigma.view(-1, 1, 1, 1) * noise
        return F.mse_loss(self.net(c_in * noisy, c_noise), (x - c_skip * noisy) / c_out)

    def loss(self, k):
        x = self.x[k % kinds.BATCHES]
        if k < len(self.a.noise):
            sigma = torch.from_numpy(self.a.sigma[k]).to(self.dtype)
            noise = images(self.a.noise[k], self.dtype, self.channels_last)
        else:
            sigma = torch.exp(P_MEAN + P_STD * torch.randn(len(x)))
            noise = torch.randn_like(x)
        return self.objective(x, sigma, noise)


class Sampling:
    """call() of the network, or of a sampling loop around it, on images in torch's order; the result is in ours."""

    def __init__(self, a: Any, work: Any, *, dtype: torch.dtype = torch.float32, channels_last: bool = False,
                 compiled: bool = False) -> None:  # fmt: skip
        net = load(unet(work), a.weights).to(dtype).requires_grad_(False)
        self.net: Callable = net.to(memory_format=torch.channels_last) if channels_last else net
        if compiled:
            self.net = torch.compile(self.net)
        self.x = images(a.x, dtype, channels_last)
        if isinstance(work, kinds.Sampling):
            self.sigmas = torch.tensor(a.sigmas, dtype=dtype)
        else:
            self.sigmas, self.c_noise = None, torch.from_numpy(a.c_noise).to(dtype)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        x = self.x
        if self.sigmas is None:
            return in_our_order(self.net(x, self.c_noise))
        for sigma, following in zip(self.sigmas[:-1], self.sigmas[1:], strict=True):
            c_skip, c_out, c_in, c_noise = edm(sigma.expand(len(x)))
            denoised = c_skip * x + c_out * self.net(c_in * x, c_noise)
            x = x + (following - sigma) * (x - denoised) / sigma
        return in_our_order(x)


TWINS = {
    kinds.MlpTraining: MlpTraining,
    kinds.VaeTraining: VaeTraining,
    kinds.GanTraining: GanTraining,
    kinds.DenoiserTraining: DenoiserTraining,
}


def exact(a: Any, work: Any) -> np.ndarray:
    """In float64: the losses of the steps that are judged, (steps, losses), or what a sampler or a network returns."""
    if type(work) not in TWINS:
        return Sampling(a, work, dtype=torch.float64)().numpy()
    twin = TWINS[type(work)](a, work, dtype=torch.float64)
    return np.array([[float(v) for v in twin.step(k)] for k in range(work.checked_calls)])
