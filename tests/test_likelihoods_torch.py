"""p(x | decoder output) and its gradient in the output against torch.distributions."""

from __future__ import annotations

import numpy as np
import pytest

from generant import ops
from generant.autograd import value_and_grad
from generant.models.likelihoods import likelihood

torch = pytest.importorskip("torch")
D = torch.distributions

pytestmark = pytest.mark.once


def logistic(out, x, levels):
    """The mass of the bin as in PixelCNN++: a difference of sigmoids, in float64."""
    mu, log_s = out.chunk(2, -1)
    y, h = 2 * x / (levels - 1) - 1, 1 / (levels - 1)
    upper, lower = (torch.sigmoid((y + s * h - mu) / log_s.clamp(min=-7).exp()) for s in (1, -1))
    upper, lower = torch.where(x == levels - 1, 1.0, upper), torch.where(x == 0, 0.0, lower)
    return (upper - lower).log()


def gaussian(out, x):
    mu, logvar = out.chunk(2, -1)
    return D.Normal(mu, (torch.nn.functional.softplus(logvar + 12) - 12).mul(0.5).exp()).log_prob(x)


CASES = {
    "gaussian_outputs": ("gaussian_outputs", lambda rng: rng.standard_normal((4, 3)), gaussian),
    "gaussian": (
        ("gaussian", 0.7),
        lambda rng: rng.standard_normal((4, 3)),
        lambda out, x: D.Normal(out, float(np.exp(np.float32(2 * np.log(0.7)) / np.float64(2)))).log_prob(x),
    ),
    "bernoulli": (
        "bernoulli",
        lambda rng: rng.integers(0, 2, (4, 3)),
        lambda out, x: D.Bernoulli(logits=out).log_prob(x),
    ),
    "bernoulli of grey": (
        "bernoulli",
        lambda rng: rng.random((4, 3)),
        lambda out, x: -torch.nn.functional.binary_cross_entropy_with_logits(out, x, reduction="none"),
    ),
    "categorical": (
        ("categorical", 5),
        lambda rng: rng.integers(0, 5, (4, 3)),
        lambda out, x: D.Categorical(logits=out.reshape(4, 3, 5)).log_prob(x),
    ),
    "multinomial": (
        "multinomial",
        lambda rng: rng.multinomial(6, [0.2, 0.5, 0.3], 4),
        lambda out, x: D.Multinomial(6, logits=out).log_prob(x)[:, None],
    ),
    "logistic": (("logistic", 9), lambda rng: rng.integers(0, 9, (4, 3)), lambda out, x: logistic(out, x, 9)),
}


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-11), ("float32", 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_density_and_gradient(name, dtype, tolerance, rng):
    spec, data, theirs = CASES[name]
    p = likelihood(spec, 3)
    x, out = data(rng).astype(dtype), rng.standard_normal((4, p.n_outputs(3))).astype(dtype)
    t = torch.tensor(out.astype(np.float64), requires_grad=True)
    want = theirs(t, torch.tensor(x.astype(np.float64))).sum(-1)
    weight = rng.standard_normal(4)
    (want * torch.tensor(weight)).sum().backward()
    _, g = value_and_grad(lambda o: ops.sum(ops.mul(p.log_prob(x, o), weight.astype(dtype))))(out)
    got = p.log_prob(x, out) + p.log_constant(x)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(g, t.grad.numpy(), rtol=tolerance, atol=tolerance)
