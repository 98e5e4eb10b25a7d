"""The losses of VAEs and VQVAEs and their gradients against the same formulas in torch, same weights and same noise.

Seen to fail: with exp(logvar) for exp(logvar / 2); without the entropy of q(y | x); with a quantiser that stops the
gradient; with a commitment that pulls the codes only.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generant import nn, ops
from generant.models import VAE, VQVAE
from generant.random import Stream

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.once

F = torch.nn.functional
KEY = Stream(5).at(0)


class Twin:
    """The conditional perceptrons of a VAE, reading parameters by our names."""

    def __init__(self, parameters: dict[str, np.ndarray]) -> None:
        self.p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in parameters.items()}

    def linear(self, name: str, x):
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def beside(self, part: str, x, codes):
        table = self.p.get(f"{part}.label.table")
        return x if table is None else torch.cat([x, table[codes]], -1)

    def encode(self, x, codes):
        h = F.silu(self.linear("encoder.layers.0", self.beside("encoder", x, codes)))
        return self.linear("encoder.mu", h), self.linear("encoder.logvar", h)

    def decode(self, z, codes):
        h = F.silu(self.linear("decoder.net.layers.0", self.beside("decoder", z, codes)))
        return self.linear("decoder.net.out", h)

    def log_prob(self, x, out, likelihood):
        if likelihood == "bernoulli":
            return -F.binary_cross_entropy_with_logits(out, x, reduction="none").sum(-1)
        v = F.softplus(self.p["likelihood.logvar"] + 12) - 12
        return torch.distributions.Normal(out, torch.exp(v / 2)).log_prob(x).sum(-1)

    def log_weights(self, x, codes, noise, likelihood):
        """noise (k, n, latent) -> log p(x | z), log p(z), log q(z | x), each (k, n)."""
        mu, logvar = self.encode(x, codes)
        q, p = torch.distributions.Normal(mu, torch.exp(logvar / 2)), torch.distributions.Normal(0.0, 1.0)
        z = mu + torch.exp(logvar / 2) * noise
        log_p = torch.stack([self.log_prob(x, self.decode(one, codes), likelihood) for one in z])
        return log_p, p.log_prob(z).sum(-1), q.log_prob(z).sum(-1)


def compared(model, inputs, value):
    """Loss and gradients of the model's step beside those of value(twin), a float64 torch scalar."""
    net = model._net
    found, gradients = nn.value_and_grad(lambda n: model._loss(n, *inputs)[0])(net)
    twin = Twin(nn.named_parameters(net))
    wanted = value(twin)
    wanted.backward()
    assert float(found) == pytest.approx(wanted.item(), rel=1e-5)
    for (name, p), g in zip(twin.p.items(), gradients, strict=True):
        wanted_g = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        np.testing.assert_allclose(g, wanted_g, atol=1e-5 * max(1, np.abs(wanted_g).max()), err_msg=name)


def fitted(**kw):
    rng, y = np.random.default_rng(0), np.arange(24) % 3
    X = rng.random((24, 6)) if kw.get("likelihood") == "bernoulli" else rng.standard_normal((24, 6))
    model = VAE(latent_dim=3, hidden=(8,), epochs=2, batch_size=12, random_state=0, **kw).fit(X, y)
    x, weight = model.scaling_.forward("", X), np.linspace(0.5, 1.5, 24).astype(np.float32)
    return model, x, y, weight


def tensors(x, y, weight):
    return torch.tensor(x, dtype=torch.float64), torch.tensor(y), torch.tensor(weight, dtype=torch.float64)


def noise(*shape):
    return torch.tensor(ops.normal(KEY, shape=shape), dtype=torch.float64)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("samples", [1, 4])
def test_elbo(likelihood, samples):
    model, x, y, weight = fitted(likelihood=likelihood, n_importance=samples, beta=0.7)
    tx, ty, tw = tensors(x, y, weight)

    def value(twin):
        eps = noise(24, samples, 3).transpose(0, 1)
        log_p, _, _ = twin.log_weights(tx, ty, eps, likelihood)
        mu, logvar = twin.encode(tx, ty)
        kl = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)
        return (tw * (0.7 * kl - log_p.mean(0))).mean()

    compared(model, model._arguments(x, y, weight, KEY, np.array(0.7, np.float32)), value)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_iwae(likelihood):
    model, x, y, weight = fitted(likelihood=likelihood, objective="iwae", n_importance=4)
    tx, ty, tw = tensors(x, y, weight)

    def value(twin):
        log_p, prior, q = twin.log_weights(tx, ty, noise(24, 4, 3).transpose(0, 1), likelihood)
        return -(tw * (torch.logsumexp(log_p + prior - q, 0) - math.log(4))).mean()

    compared(model, model._arguments(x, y, weight, KEY, np.array(1, np.float32)), value)


def test_free_bits():
    model, x, y, weight = fitted(free_bits=0.23)
    tx, ty, tw = tensors(x, y, weight)

    def value(twin):
        log_p, _, _ = twin.log_weights(tx, ty, noise(1, 24, 3), "gaussian")
        mu, logvar = twin.encode(tx, ty)
        kl = (0.5 * (mu**2 + logvar.exp() - logvar - 1) * tw[:, None]).mean(0)
        assert (kl > 0.23).any() and (kl < 0.23).any()
        return torch.clamp(kl, min=0.23).sum() - (tw * log_p[0]).mean()

    compared(model, model._arguments(x, y, weight, KEY, np.array(1, np.float32)), value)


def test_semi_supervised():
    """The sum over classes, written out."""
    model, x, y, weight = fitted(semi_supervised=True)
    codes = np.where(np.arange(24) < 9, y, -1)
    tx, _, tw = tensors(x, y, weight)

    def value(twin):
        h = F.silu(twin.linear("classifier.net.layers.0", tx))
        log_q = torch.log_softmax(twin.linear("classifier.net.out", h), 1)
        eps = noise(24, 3, 3)
        total = 0.0
        bounds = []
        for c in range(3):
            all_c = torch.full((24,), c)
            log_p, _, _ = twin.log_weights(tx, all_c, eps[:, c][None], "gaussian")
            mu, logvar = twin.encode(tx, all_c)
            kl = 0.5 * (mu**2 + logvar.exp() - logvar - 1).sum(1)
            bounds.append(log_p[0] - kl + math.log(model.priors_[c]))
        for i in range(24):
            if codes[i] >= 0:
                each = bounds[codes[i]][i] + model._strength * log_q[i, codes[i]]
            else:
                each = sum(log_q[i, c].exp() * (bounds[c][i] - log_q[i, c]) for c in range(3))
            total = total - tw[i] * each / 24
        return total

    compared(model, model._arguments(x, codes, weight, KEY, np.array(1, np.float32)), value)


def test_vqvae():
    """log p(x | code) + 0.25 |z - sg(code)|^2, the gradient of the code's vector passed on to z; van den Oord et al.
    (2017), equation 3 without its middle term, which the moving averages replace."""
    X, weight = np.random.default_rng(0).standard_normal((24, 6)), np.linspace(0.5, 1.5, 24).astype(np.float32)
    model = VQVAE(n_codes=5, code_dim=2, positions=3, hidden=(8,), epochs=2, batch_size=12, random_state=0).fit(X)
    x = model.scaling_.forward("", X)
    book = torch.tensor(model._net.quantiser.codebook(), dtype=torch.float64)
    tx, _, tw = tensors(x, np.zeros(24, np.int64), weight)

    def value(twin):
        z = twin.linear("encoder.out", F.silu(twin.linear("encoder.layers.0", tx))).reshape(72, 2)
        code = book[torch.cdist(z.detach(), book).argmin(1)]
        through = (z + (code - z).detach()).reshape(24, 6)
        out = twin.linear("decoder.out", F.silu(twin.linear("decoder.layers.0", through)))
        commitment = ((z - code) ** 2).reshape(24, 6).sum(1)
        return (tw * (0.25 * commitment - twin.log_prob(tx, out, "gaussian"))).mean()

    compared(model, (x, weight), value)
