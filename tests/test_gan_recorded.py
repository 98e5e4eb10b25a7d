"""Alternating steps of a generator and a discriminator, recorded and replayed: the bits of the steps themselves.

Every network with all that it can be asked for: classes, spectral normalisation whose vectors move in the step, batch
statistics, minibatch deviation, and all penalties, which differentiate through these.

Seen to fail: with a number that changes from step to step baked into minibatch_stddev, as an array and as a float.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import nn, ops, optim
from generant.models import adversarial
from generant.random import Stream
from generant.recording import record

pytestmark = pytest.mark.once

SHAPE, LATENT = (6, 6, 1), 3
PAIRS = {
    "dcgan": (nn.DCGANGenerator, nn.DCGANDiscriminator, dict(width=4), dict(norm="batch")),
    "resnet": (nn.ResNetGenerator, nn.ResNetDiscriminator, dict(width=4), {}),
    "mlp": (nn.MlpGenerator, nn.MlpDiscriminator, dict(hidden=(8, 8)), {}),
}


def make(name):
    """(a step of both players, its state)."""
    G, D, size, more = PAIRS[name]
    stream, loss = Stream(0), adversarial.LOSSES["relativistic"]
    generator = G(LATENT, SHAPE, stream, classes=3, **size, **more)
    discriminator = D(SHAPE, stream, classes=3, spectral=True, stddev_group=4, **size)
    players = {
        key: nn.Learner(network, lambda p: optim.Adam(p, lr=1e-2))
        for key, network in (("g", generator), ("d", discriminator))
    }
    for player in players.values():
        player.prepare(1e-2)

    def step(state, real, labels, key_d, key_g, u):
        draw = lambda key: ops.normal(key, shape=(real.shape[0], LATENT))
        fake = players["g"].network(state["g"])(draw(key_d), labels, training=True)

        def of_discriminator(d):
            see = lambda x, *labels: d(x, *labels, training=True)
            a, r1 = adversarial.logits_and_penalty(see, real, labels)
            b, r2 = adversarial.logits_and_penalty(see, fake, labels)
            slope = adversarial.gradient_penalty(see, real, fake, u, labels)
            return ops.add(loss.discriminator(a, b), ops.affine(ops.add(ops.add(r1, r2), slope), scale=0.5))

        def of_generator(g):
            d = players["d"].network(state["d"])
            return loss.generator(d(g(draw(key_g), labels, training=True), labels), d(real, labels))

        values = []
        for key, f in (("d", of_discriminator), ("g", of_generator)):
            value, gradients = nn.value_and_grad(f)(players[key].network(state[key]))
            players[key].update(state[key], gradients)
            values.append(value)
        return tuple(values)

    return step, {key: player.state for key, player in players.items()}


@pytest.mark.parametrize("name", PAIRS)
def test_a_recorded_step_has_the_bits_of_the_step(name):
    found = []
    for recorded in (False, True):
        step, state = make(name)
        call = record(step, state, check=2) if recorded else lambda *x, step=step, state=state: step(state, *x)
        rng = np.random.default_rng(0)
        losses = []
        for i in range(4):
            real, u = rng.standard_normal((8, *SHAPE)).astype(np.float32), rng.random(8).astype(np.float32)
            keys = np.array([[5, 2 * i], [5, 2 * i + 1]], np.uint64)
            losses.append([float(v) for v in call(real, rng.integers(0, 3, 8), *keys, u)])
        found.append((losses, state["d"]["params"], state["g"]["params"], *state["d"]["buffers"].values()))
    assert np.isfinite(found[0][0]).all()
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
