"""UNet2D and DiT: shapes at every size, what they are before training, what they depend on, and their gradients.

Seen to fail: without the cut to the skip's size, without the label, with a last layer that is not zero, without the
last norm, without attention or with it where nobody asked, with patches put back in another order, with rows for
columns in the positions, with the second half of a block modulated by the first's scale.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from generant import nn, ops, optim
from generant.random import Stream
from generant.recording import record

_spec = importlib.util.spec_from_file_location("layer_cases", Path(__file__).with_name("test_nn_layers.py"))
layer_cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layer_cases)
check_gradients, normals, shaken = layer_cases.check_gradients, layer_cases.normals, layer_cases.shaken

F64 = {"dtype": "float64"}


def count(model):
    return sum(p.size for p in nn.named_parameters(model).values())


def unet(**options):
    return nn.UNet2D(2, Stream(0), **{**dict(channels=(4, 8), groups=2), **options})


def dit(**options):
    return nn.DiT((4, 6, 2), Stream(0), **{**dict(width=8, blocks=2, heads=2), **options})


def inputs(n=3, h=4, w=6, c=2, dtype="float64"):
    return normals(n, h, w, c).astype(dtype), normals(n, seed=1).astype(dtype)


LABELS = np.array([0, 4, 2])


@pytest.mark.once
@pytest.mark.parametrize("c, options, parameters", [
    (1, dict(), 701_345),                                 # for images of 8 x 8
    (1, dict(channels=(32, 64, 64)), 1_112_801),          # for images of 28 x 28
    (1, dict(scale_shift=True), 755_009),
    (1, dict(up_blocks=1), 543_393),
    # the network of Ho et al. (2020) for CIFAR-10, to the parameter
    (3, dict(channels=(128, 256, 256, 256), blocks=2, attention=(1,), features="sinusoidal"), 35_746_307),
])  # fmt: skip
def test_networks_have_the_parameters_of_their_papers(c, options, parameters, monkeypatch):
    monkeypatch.setattr(nn.init, "normal", lambda shape, stream, *, std=1.0, dtype="float32": np.zeros(shape, dtype))
    assert count(nn.UNet2D(c, Stream(0), **options)) == parameters


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6), (1, 1), (28, 28)])
def test_every_size_comes_back(size):
    """28 -> 14 -> 7 -> 4 -> 7 -> 14 -> 28: what is doubled too far is cut to the skip's size."""
    net = shaken(nn.UNet2D(2, Stream(0), out=3, channels=(4, 4, 8, 4), groups=2))
    x, c_noise = inputs(2, *size, dtype="float32")
    y = net(x, c_noise)
    assert y.shape == (2, *size, 3) and y.dtype == np.float32 and y.std() > 0


@pytest.mark.parametrize("make", [unet, dit])
def test_zero_before_training_and_only_the_last_layer_learns_at_first(make):
    net, (x, c_noise) = make(classes=5, **F64), inputs()
    assert not net(x, c_noise, LABELS).any()
    _, grads = nn.value_and_grad(lambda net: ops.sum(ops.mul(net(x, c_noise, LABELS), x)))(net)
    moved = {name for name, g in zip(nn.named_parameters(net), grads, strict=True) if g.any()}
    assert moved == {"leave.weight", "leave.bias"}


@pytest.mark.parametrize("make, options", [
    (unet, dict(classes=5)), (unet, dict(scale_shift=True, heads=2)),
    (unet, dict(blocks=2, up_blocks=2, attention=(), channels=(4, 4, 8))), (unet, dict(attention=(0, 1))),
    (dit, dict(classes=5)), (dit, dict(patch=1, features="sinusoidal")),
])  # fmt: skip
def test_gradients_agree_with_differences(make, options):
    net, (x, c_noise) = shaken(make(**options, **F64)), inputs()
    labels = (LABELS,) if "classes" in options else ()
    check_gradients(net, x, c_noise, *labels, one_by_one=False)
    _, grads = nn.value_and_grad(lambda net: ops.sum(ops.mul(net(x, c_noise, *labels), x)))(net)
    idle = {name for name, g in zip(nn.named_parameters(net), grads, strict=True) if abs(g).max() < 1e-9}
    assert all(name.endswith("key.bias") for name in idle)  # softmax does not see it; every other parameter matters


def test_odd_sizes_have_the_right_gradients():
    net, (x, c_noise) = shaken(unet(channels=(4, 4, 8), **F64)), inputs(2, 5, 7)
    check_gradients(net, x, c_noise, one_by_one=False)


@pytest.mark.parametrize("make", [unet, dit])
def test_noise_and_label_matter_to_their_own_sample_only(make):
    net, (x, c_noise) = shaken(make(classes=5)), inputs(dtype="float32")
    y = net(x, c_noise, LABELS)
    for noise, labels in ((c_noise + np.array([0, 0.5, 0], "f"), LABELS), (c_noise, np.array([0, 1, 2]))):
        other = net(x, noise, labels)
        np.testing.assert_array_equal(other[::2], y[::2])
        assert abs(other[1] - y[1]).max() > 1e-3
    np.testing.assert_allclose(net(x[1:2], c_noise[1:2], LABELS[1:2]), y[1:2], rtol=1e-5, atol=1e-5)


@pytest.mark.once
def test_attention_is_where_it_was_asked_for():
    names = list(nn.named_parameters(unet(attention=())))
    assert not any("attention" in name for name in names)
    assert any("middle.0.attention" in name for name in nn.named_parameters(unet()))
    assert [name for name in nn.named_parameters(unet(attention=(0,))) if name.endswith("0.attention.norm.gain")] == [
        "down.0.0.attention.norm.gain", "middle.0.attention.norm.gain", "up.1.0.attention.norm.gain",
    ]


def test_a_dit_sees_patches_at_their_places():
    """Without positions, exchanging two patches exchanges the output; with them it does not."""
    net, (x, c_noise) = shaken(dit(**F64)), inputs()
    exchanged = x.copy()
    exchanged[:, :2, :2], exchanged[:, 2:, 4:] = x[:, 2:, 4:], x[:, :2, :2]
    assert abs(net(exchanged, c_noise)[:, :2, :2] - net(x, c_noise)[:, 2:, 4:]).max() > 1e-3
    net.positions.value[...] = 0
    y, other = net(x, c_noise), net(exchanged, c_noise)
    np.testing.assert_allclose(other[:, :2, :2], y[:, 2:, 4:], atol=1e-10)
    np.testing.assert_allclose(other[:, 2:, 2:4], y[:, 2:, 2:4], atol=1e-10)


@pytest.mark.once
def test_positions_and_frequencies_are_kept_but_not_trained():
    net = dit(**F64)
    frozen = set(nn.state(net)) - set(nn.named_parameters(net))
    assert {"positions", "condition.features.frequencies"} <= frozen
    rows, columns = np.divmod(np.arange(6), 3)
    f = np.array([1, 0.01])
    wanted = [wave(np.outer(place, f)) for place in (rows, columns) for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(net.positions.value, np.concatenate(wanted, 1), atol=1e-12)
    assert set(nn.state(unet())) - set(nn.named_parameters(unet())) == {"condition.features.frequencies"}


def test_a_tied_block_is_trained_once():
    net, (x, c_noise) = unet(**F64), inputs()
    net.middle[1].block.conv_in = net.middle[1].block.conv_out
    net = shaken(net)
    assert "middle.1.block.conv_in.weight" in nn.named_parameters(net)
    assert "middle.1.block.conv_out.weight" not in nn.named_parameters(net)
    check_gradients(net, x, c_noise, one_by_one=False)


@pytest.mark.parametrize("make, size", [(unet, (4, 6)), (unet, (5, 3)), (dit, (4, 6))])
def test_a_recorded_step_has_the_bits_of_the_step(make, size):
    x, c_noise = inputs(3, *size, dtype="float32")
    trained = []
    for recorded in (False, True):
        learner = nn.Learner(make(classes=5), lambda p: optim.Adam(p, lr=1e-2), clip=1.0)

        def step(state, x, c_noise, labels, learner=learner):
            loss = lambda net: ops.mse(net(x, c_noise, labels), x)
            value, gradients = nn.value_and_grad(loss)(learner.network(state))
            learner.update(state, gradients)
            return value

        learner.prepare()
        run = record(step, learner.state) if recorded else lambda *xs: step(learner.state, *xs)
        values = [float(run(x, c_noise, LABELS)) for _ in range(4)]
        trained.append([*values, *learner.packed.data])
    assert trained[0] == trained[1] and trained[0][3] < trained[0][0]


@pytest.mark.once
@pytest.mark.parametrize("run, message", [
    (lambda: unet(channels=()), "UNet2D: channels must be one positive width per level"),
    (lambda: unet(up_blocks=3), "UNet2D: blocks must be at least 1 and up_blocks from 1 to blocks"),
    (lambda: unet(attention=(2,)), r"UNet2D: attention must list levels from -2 to 1, got \(2,\)"),
    (lambda: unet(features="random"), "Condition: features must be one of fourier, sinusoidal, got 'random'"),
    (lambda: unet(classes=2)(*inputs()), "Condition: labels are None, but the network was made with classes = 2"),
    (lambda: unet()(*inputs(), LABELS), "Condition: labels are given, but the network was made with classes = 0"),
    (lambda: dit(patch=3), "DiT: patch must divide the 4 rows and 6 columns"),
    (lambda: dit(width=6), "DiT: width must be a multiple of 4, got 6"),
    (lambda: dit()(*inputs(h=8)), r"DiT: x must be images \(n, h, w, c\) of shape \(4, 6, 2\), got \(3, 8, 6, 2\)"),
])  # fmt: skip
def test_what_cannot_be_made_is_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
