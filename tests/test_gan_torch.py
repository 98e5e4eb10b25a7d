"""Losses and penalties of GANs, spectral normalisation and projection against torch, in float32 to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest

from generant import nn, ops
from generant.models import adversarial
from generant.nn.conv import Conv2d
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


# ---- networks -------------------------------------------------------------------------------------------------------


def tensors(model):
    """The model's parameters by path, as torch leaves."""
    return {k: torch.tensor(v, requires_grad=True) for k, v in nn.named_parameters(model).items()}


def image(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def torchs_discriminator(p, x, labels, group):
    """DCGANDiscriminator for two halvings, on x (n, c, h, w)."""
    weight = lambda i: p[f"layers.{i}.weight"].permute(3, 2, 0, 1)
    x = F.leaky_relu(F.conv2d(x, weight(0), p["layers.0.bias"], stride=2, padding=1), 0.2)
    n = len(x)
    y = x.reshape(group, n // group, *x.shape[1:])
    deviation = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    column = deviation.repeat(group)[:, None, None, None].expand(n, 1, *x.shape[2:])
    x = F.leaky_relu(F.conv2d(torch.cat([x, column], 1), weight(1), p["layers.1.bias"], stride=2, padding=1), 0.2)
    phi = x.permute(0, 2, 3, 1).flatten(1)
    return (phi @ p["head.out.weight"] + p["head.out.bias"])[:, 0] + (phi * p["head.label.table"][labels]).sum(1)


def test_dcgan_with_projection_stddev_and_r1_is_torchs():
    stream, labels = Stream(0), np.array([0, 2, 1, 1, 2, 0])
    generator = nn.DCGANGenerator(3, (8, 8, 2), stream, width=4, classes=3, out_activation="tanh")
    discriminator = nn.DCGANDiscriminator((8, 8, 2), stream, width=4, classes=3, stddev_group=3)
    z = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)

    p = tensors(generator)
    h = torch.cat([torch.tensor(z), p["latent.label.table"][labels]], 1) @ p["enter.weight"] + p["enter.bias"]
    h = F.relu(h).reshape(6, 2, 2, 8).permute(0, 3, 1, 2)
    weight = lambda name: p[f"{name}.weight"].permute(3, 2, 0, 1)
    h = F.relu(F.conv_transpose2d(h, weight("layers.0"), p["layers.0.bias"], stride=2, padding=1))
    want = torch.tanh(F.conv_transpose2d(h, weight("out"), p["out.bias"], stride=2, padding=1)).permute(0, 2, 3, 1)
    x = generator(z, labels)
    close(x, want)

    p = tensors(discriminator)
    at = image(x).requires_grad_()
    want = torchs_discriminator(p, at, labels, 3)
    close(discriminator(x, labels), want)
    penalty = torch.autograd.grad(want.sum(), at, create_graph=True)[0].flatten(1).pow(2).sum(1).mean()
    wanted = torch.autograd.grad(penalty, list(p.values()), allow_unused=True)
    got, grads = nn.value_and_grad(lambda d: adversarial.r1(d, x, labels))(discriminator)
    close(got, penalty)
    for (name, g), w in zip(zip(p, grads, strict=True), wanted, strict=True):
        w = np.zeros_like(g) if w is None else w.numpy()
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5 * max(1, abs(w).max()), err_msg=name)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_spectral_norm_is_torchs(name):
    from torch.nn.utils.parametrizations import spectral_norm

    stream, rng = Stream(3), np.random.default_rng(0)
    if name == "linear":
        layer, theirs = nn.Linear(6, 4, stream, gain=3.0), torch.nn.Linear(6, 4)
        x, order, flat = rng.standard_normal((5, 6)).astype(np.float32), (1, 0), lambda v: v
    else:
        layer, theirs = Conv2d(3, 4, stream, gain=3.0), torch.nn.Conv2d(3, 4, 3, padding=1)
        x, order = rng.standard_normal((2, 5, 5, 3)).astype(np.float32), (3, 2, 0, 1)
        flat = lambda v: v.reshape(3, 3, 3).transpose(2, 0, 1).reshape(-1)  # torch has the channel of a filter first
    ours = nn.SpectralNorm(layer, stream)
    spectral_norm(theirs)
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(torch.tensor(layer.weight.transpose(order)))
        theirs.bias.copy_(torch.tensor(layer.bias))
        power = theirs.parametrizations.weight[0]
        power._v.copy_(torch.tensor(flat(ours.v.value)))
        power._u.copy_(torch.tensor(ours.u.value))
    loss = lambda m: ops.mean(ops.square(ops.affine(m(x), shift=0.5)))
    put, back = (torch.tensor, lambda y: y) if name == "linear" else (image, lambda y: y.permute(0, 2, 3, 1))

    def agree():
        theirs.eval()
        y = theirs(put(x))
        close(ours(x), back(y))
        theirs.zero_grad()
        (y + 0.5).square().mean().backward()
        got, (g, _) = nn.value_and_grad(loss)(ours)
        close(got, (y + 0.5).square().mean())
        close(g.transpose(order), theirs.parametrizations.weight.original.grad)

    agree()
    for _ in range(100):  # torch moves u before v, we v before u as Miyato et al. do: the limit is one
        ours(x, training=True)
        theirs.train()(put(x))
    close(ours.u.value, power._u)
    close(flat(ours.v.value), power._v)
    agree()
