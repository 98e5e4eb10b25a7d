"""Losses and penalties of GANs, spectral normalisation and projection against torch, in float32 to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest

from generant import nn, ops
from generant.models import adversarial
from generant.random import Stream

torch = pytest.importorskip("torch")
F = torch.nn.functional

TORCH = {
    "relativistic": (lambda r, f: F.softplus(f - r).mean(), lambda r, f: F.softplus(r - f).mean()),
    "non_saturating": (
        lambda r, f: F.binary_cross_entropy_with_logits(r, torch.ones_like(r))
        + F.binary_cross_entropy_with_logits(f, torch.zeros_like(f)),
        lambda r, f: F.binary_cross_entropy_with_logits(f, torch.ones_like(f)),
    ),
    "least_squares": (
        lambda r, f: (F.mse_loss(r, torch.ones_like(r)) + F.mse_loss(f, torch.zeros_like(f))) / 2,
        lambda r, f: F.mse_loss(f, torch.ones_like(f)) / 2,
    ),
    "hinge": (lambda r, f: F.relu(1 - r).mean() + F.relu(1 + f).mean(), lambda r, f: -f.mean()),
    "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
}


def logits(n: int, seed: int) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def close(got, want):
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TORCH)
def test_losses_and_their_gradients_are_torchs(name):
    from generant.autograd import value_and_grad

    assert sorted(TORCH) == sorted(adversarial.LOSSES)
    loss = adversarial.LOSSES[name]
    for ours, theirs in zip(
        (loss.discriminator, lambda r, f: loss.generator(f, r)), TORCH[name], strict=True
    ):
        real, fake = (torch.tensor(logits(17, seed), requires_grad=True) for seed in (0, 1))
        want = theirs(real, fake)
        wanted = torch.autograd.grad(want, [real, fake], allow_unused=True)
        got, grads = value_and_grad(lambda p, ours=ours: ours(*p))([logits(17, 0), logits(17, 1)])
        close(got, want)
        for g, w in zip(grads, wanted, strict=True):
            close(g, torch.zeros(17) if w is None else w)


class Critic(nn.Module):
    def __init__(self) -> None:
        stream = Stream(1)
        self.first = nn.Linear(6, 16, stream, activation="silu")
        self.last = nn.Linear(16, 1, stream)

    def __call__(self, x):
        return ops.reshape(self.last(self.first(ops.reshape(x, shape=(x.shape[0], 6)))), shape=(x.shape[0],))


def torchs_gradient(weights, x):
    """|grad_x D|^2 of every sample, itself differentiable."""
    w0, b0, w1, b1 = weights
    x = x.detach().requires_grad_()
    y = F.silu(x.reshape(-1, 6) @ w0 + b0) @ w1 + b1
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0].flatten(1).pow(2).sum(1)


@pytest.mark.parametrize("name", ["r1", "r2", "gradient_penalty"])
def test_penalties_and_their_gradients_are_torchs(name):
    rng = np.random.default_rng(0)
    real, fake = (rng.standard_normal((7, 3, 2)).astype(np.float32) for _ in range(2))
    u = rng.random(7).astype(np.float32)
    critic = Critic()
    weights = [torch.tensor(p, requires_grad=True) for p in nn.named_parameters(critic).values()]
    if name == "gradient_penalty":
        x = torch.lerp(torch.tensor(fake), torch.tensor(real), torch.tensor(u)[:, None, None])
        want = (torchs_gradient(weights, x).sqrt() - 1).pow(2).mean()
        ours = lambda c: adversarial.gradient_penalty(c, real, fake, u)
    else:
        x = real if name == "r1" else fake
        want = torchs_gradient(weights, torch.tensor(x)).mean()
        ours = lambda c: getattr(adversarial, name)(c, x)
    got, grads = nn.value_and_grad(ours)(critic)
    close(got, want)
    for g, w in zip(grads, torch.autograd.grad(want, weights, allow_unused=True), strict=True):
        close(g, torch.zeros(g.shape) if w is None else w)
