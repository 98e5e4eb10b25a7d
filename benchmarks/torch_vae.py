"""A conditional convolutional VAE of binary images in torch, written from its description and not from our code's.

Architecture, likelihood, first values, optimiser, schedule and average are those of models.VAE(architecture="conv"),
so that its likelihoods are comparable; random numbers are torch's own. Not here: its speed (torch_models.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

LABEL, CLASSES, SIZE = 32, 10, 28
WARMUP = 100  # steps until the learning rate is full, at most a tenth of all


class TorchVae(nn.Module):
    """q(z | x, y) and p(x | z, y) of images (n, 1, 28, 28): two halvings and two doublings of the size."""

    def __init__(self, latent: int, hidden: int, channels: tuple[int, int]) -> None:
        super().__init__()
        a, b = channels
        self.small = (b, SIZE // 4, SIZE // 4)
        width = math.prod(self.small)
        self.down = nn.ModuleList([nn.Conv2d(1, a, 3, 2, 1), nn.Conv2d(a, b, 3, 2, 1)])
        self.seen, self.shown = nn.Embedding(CLASSES, LABEL), nn.Embedding(CLASSES, LABEL)
        self.hidden = nn.Linear(width + LABEL, hidden)
        self.mu, self.logvar = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        self.enter, self.grow = nn.Linear(latent + LABEL, hidden), nn.Linear(hidden, width)
        self.up, self.leave = nn.Conv2d(b, a, 3, 1, 1), nn.ConvTranspose2d(a, 1, 4, 2, 1)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.leave.weight, std=(4 * a) ** -0.5)  # a pixel sums a quarter of the filter
        nn.init.zeros_(self.leave.bias)

    def encode(self, x, y):
        for layer in self.down:
            x = F.silu(layer(x))
        h = F.silu(self.hidden(torch.cat([x.flatten(1), self.seen(y)], 1)))
        return self.mu(h), self.logvar(h)

    def decode(self, z, y):
        h = self.grow(F.silu(self.enter(torch.cat([z, self.shown(y)], 1))))
        h = F.silu(h).view(-1, *self.small)
        return self.leave(F.silu(self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))))

    def log_joint(self, x, z, y):
        """log p(x, z | y), (n,)."""
        p_x = -F.binary_cross_entropy_with_logits(self.decode(z, y), x, reduction="none").sum((1, 2, 3))
        return p_x - 0.5 * (z**2 + math.log(2 * math.pi)).sum(1)


def drawn(mu, logvar):
    """(z of q, log q(z))."""
    noise = torch.randn_like(mu)
    log_q = -0.5 * (noise**2 + logvar + math.log(2 * math.pi)).sum(1)
    return mu + torch.exp(0.5 * logvar) * noise, log_q


def trained(images: np.ndarray, labels: np.ndarray, settings: dict, seed: int) -> TorchVae:
    """The averaged network after training on images (n, 28, 28) of 0 and 1."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    make = lambda: TorchVae(settings["latent_dim"], settings["hidden"][-1], tuple(settings["channels"]))
    net, average = make(), make()
    average.load_state_dict(net.state_dict())
    adam = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    size, rate = settings["batch_size"], settings["learning_rate"]
    per_epoch = len(x) // size
    total = settings["epochs"] * per_epoch
    warmup = min(WARMUP, total // 10)
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(x))
        index = order[step % per_epoch * size :][:size]
        done = max(0, step - warmup) / (total - warmup)
        rising = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * done))
        adam.param_groups[0]["lr"] = rate * rising
        mu, logvar = net.encode(x[index], y[index])
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        logits = net.decode(z, y[index])
        surprise = F.binary_cross_entropy_with_logits(logits, x[index], reduction="sum")
        kl = 0.5 * torch.sum(mu**2 + torch.exp(logvar) - logvar - 1)
        adam.zero_grad()
        ((surprise + kl) / size).backward()
        adam.step()
        decay = min(settings["ema_decay"], (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay)
    return average


@torch.inference_mode()
def importance_nll(net: TorchVae, images: np.ndarray, labels: np.ndarray, draws: int) -> float:
    """Mean of -log 1/k sum_j p(x, z_j | y) / q(z_j | x, y) in nats. Burda, Grosse and Salakhutdinov (2016)."""
    total = 0.0
    for image, label in zip(torch.from_numpy(images), torch.from_numpy(labels), strict=True):
        x, y = image[None, None], label[None]
        mu, logvar = (a.expand(draws, -1) for a in net.encode(x, y))
        z, log_q = drawn(mu, logvar)
        weights = net.log_joint(x.expand(draws, -1, -1, -1), z, y.expand(draws)) - log_q
        total -= float(torch.logsumexp(weights.double(), 0) - math.log(draws))
    return total / len(images)
