"""The twins of work_models.py in torch: networks with our first weights, losses, training steps and sampling.

A twin runs in float64 as the reference of all contenders, and in float32 as the rival, with its settings: the memory
order of images, whether what torch's documentation does tensor by tensor is done by one call (best), and whether the
loss or the network goes through torch.compile. Networks get their weights in the order of ours, whose axes they turn.
While it is judged a twin uses the noise of the inputs; then it draws its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import work_models as kinds
from torch import nn
from torch.nn import functional as F

SIGMA_DATA, P_MEAN, P_STD = 0.5, -1.2, 1.2  # Karras et al. (2022)


def numbers(losses: Any) -> list[float]:
    """The losses of one step, be they arrays or tensors, one or several."""
    return [float(v) for v in (losses if isinstance(losses, (tuple, list)) else [losses])]


def images(x: np.ndarray, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> torch.Tensor:
    """n h w c as n c h w, in torch's memory order or in ours."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(x).to(dtype).permute(0, 3, 1, 2).contiguous(memory_format=order)


def in_our_order(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def load(net: nn.Module, weights: dict[str, np.ndarray]) -> nn.Module:
    """The network with our weights, which come in the same order: d o as o d, kh kw c o as o c kh kw."""
    for (path, ours), parameter in zip(weights.items(), net.parameters(), strict=True):
        value = torch.from_numpy(ours)
        value = value.permute({2: (1, 0), 4: (3, 2, 0, 1)}.get(value.ndim, tuple(range(value.ndim))))
        if value.shape != parameter.shape:
            raise ValueError(f"{path}: {tuple(value.shape)} is no {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.copy_(value)
    return net


def mlp(d: int, o: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(d, width), nn.SiLU()]
        d = width
    return nn.Sequential(*layers, nn.Linear(d, o))


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
        self.net = self.placed(load(self.network(), self.a.weights))
        self.update = Update(self.net, self.work, self.setting)
        self.objective = self.faster(self.objective)

    def placed(self, net: nn.Module) -> nn.Module:
        net = net.to(self.dtype)
        return net.to(memory_format=torch.channels_last) if self.channels_last else net

    def rows(self, x: np.ndarray) -> list[torch.Tensor]:
        return list(torch.from_numpy(x).to(self.dtype))

    def pictures(self, x: np.ndarray) -> list[torch.Tensor]:
        return [images(batch, self.dtype, self.channels_last) for batch in x]

    def judged(self, k: int) -> bool:
        return k < self.work.checked_calls

    def step(self, k: int) -> Any:
        loss = self.loss(k)
        self.update(loss)
        return loss.detach()


class MlpTraining(Training):
    def network(self):
        return mlp(self.work.width, self.work.width, (self.work.width,) * 2)

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
        encoder = mlp(work.d, 2 * work.latent, work.hidden)
        return nn.ModuleDict({"encoder": encoder, "decoder": mlp(work.latent, work.d, work.hidden[::-1])})

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
        if self.judged(k):
            noise = torch.from_numpy(self.a.noise[k]).to(self.dtype)
        else:
            noise = torch.randn(self.work.n, self.work.latent)
        return self.objective(self.x[k % kinds.BATCHES], noise)


def exact_losses(a: Any, work: Any) -> list[Any]:
    """Of the steps that are judged, in float64."""
    twin = TWINS[type(work)](a, work, dtype=torch.float64)
    return [twin.step(k) for k in range(work.checked_calls)]


TWINS = {kinds.MlpTraining: MlpTraining, kinds.VaeTraining: VaeTraining}
