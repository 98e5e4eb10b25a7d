"""The mixture prior and its gradients against torch.distributions.MixtureSameFamily."""

from __future__ import annotations

import numpy as np
import pytest

from generant import ops
from generant.autograd import value_and_grad
from generant.models.priors import mixture_log_prob

torch = pytest.importorskip("torch")
D = torch.distributions

pytestmark = pytest.mark.once


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-11), ("float32", 1e-5)])
def test_density_and_gradients(dtype, tolerance, rng):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((6, 3), (4, 3), (4, 3), (4,))]
    z, mu, logvar, logits = ts = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
    parts = D.Independent(D.Normal(mu, (0.5 * logvar).exp()), 1)
    want = D.MixtureSameFamily(D.Categorical(logits=logits), parts).log_prob(z)
    weight = rng.standard_normal(6)
    (want * torch.tensor(weight)).sum().backward()
    _, grads = value_and_grad(lambda a: ops.sum(ops.mul(mixture_log_prob(*a), weight.astype(dtype))))(arrays)
    np.testing.assert_allclose(mixture_log_prob(*arrays), want.detach().numpy(), rtol=tolerance)
    for g, t in zip(grads, ts, strict=True):
        np.testing.assert_allclose(g, t.grad.numpy(), rtol=tolerance, atol=tolerance)
