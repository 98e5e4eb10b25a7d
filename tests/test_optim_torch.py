"""Adam, AdamW and SGD against torch's, on 20 random gradients.

Seen to fail: with the decay of SGD decoupled, with nesterov's step along the momentum alone.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import optim

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("ours, theirs, options", [
    (optim.Adam, torch.optim.Adam, dict()),
    (optim.Adam, torch.optim.AdamW, dict(weight_decay=0.05)),
    (optim.AdamW, torch.optim.AdamW, dict()),
    (optim.SGD, torch.optim.SGD, dict()),
    (optim.SGD, torch.optim.SGD, dict(weight_decay=0.1)),
    (optim.SGD, torch.optim.SGD, dict(momentum=0.9, weight_decay=0.1)),
    (optim.SGD, torch.optim.SGD, dict(momentum=0.9, nesterov=True, weight_decay=0.1)),
])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-14)])
def test_steps_agree(ours, theirs, options, dtype, tolerance) -> None:
    rng = np.random.default_rng(1)
    p = rng.standard_normal(1003).astype(dtype)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    rival = theirs([parameter], lr=3e-3, **options)
    optimiser = ours(p, lr=3e-3, **options)
    for _ in range(20):
        g = rng.standard_normal(1003).astype(dtype)
        parameter.grad = torch.from_numpy(g.copy())
        rival.step()
        optimiser.step(g)
    np.testing.assert_allclose(p, parameter.detach().numpy(), rtol=0, atol=tolerance)
