"""The decays of an average with warm-up against those of diffusers.

Seen to fail: with min_decay for the first update.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import optim

torch = pytest.importorskip("torch")
training_utils = pytest.importorskip("diffusers.training_utils")


@pytest.mark.parametrize("power", [None, 2 / 3, 0.75])
def test_the_decays_are_those_of_diffusers(power) -> None:
    options = {} if power is None else dict(power=power, inv_gamma=2.0, min_decay=0.2)
    peer = training_utils.EMAModel(
        [torch.nn.Parameter(torch.zeros(2))], decay=0.95, use_ema_warmup=power is not None, **options
    )
    ours = optim.EMA(np.zeros(2), decay=0.95, warmup=True, **options)
    decays = []
    for _ in range(400):
        ours.update()
        decays.append(ours.decay[0])
    wanted = [peer.get_decay(step) for step in range(1, 401)]
    same = 1 if power is None else 0  # without a power the first update is theirs alone: they copy, we take 1 / 10
    np.testing.assert_allclose(decays[same:], wanted[same:], rtol=1e-12)
