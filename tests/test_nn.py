"""Modules: what is a parameter, what a gradient is taken of, and the one buffer behind a packed model.

Seen to fail: with tied weights flattened twice, with the traced copy writable, with gaps in the packed offsets ignored.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import nn, ops
from generant.random import Stream


def rows(n: int, d: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d)).astype(dtype)


class Net(nn.Module):
    """Every kind of container, a tied weight, a buffer and things that are no arrays."""

    def __init__(self) -> None:
        stream = Stream(3)
        self.first = nn.Linear(3, 3, stream, activation="tanh", dtype="float64")
        self.tied = self.first.weight
        self.parts = [{"norm": nn.LayerNorm(3, dtype="float64")}, (nn.Linear(3, 2, stream, dtype="float64"),)]
        self.shift = nn.Buffer(np.full(3, 0.5))
        self.name, self.rate, self.nothing, self.scalar = "net", 0.1, None, np.float64(2)

    def __call__(self, x):
        h = ops.matmul(self.first(x), self.tied) + self.shift.value
        return self.parts[1][0](self.parts[0]["norm"](h))


def loss(net, x):
    return ops.mean(ops.square(net(x)))


def test_parameters_are_found_once_in_attribute_order():
    net = Net()
    found = nn.named_parameters(net)
    assert list(found) == [
        "first.weight", "first.bias", "parts.0.norm.gain", "parts.0.norm.bias", "parts.1.0.weight", "parts.1.0.bias",
    ]
    assert found["first.weight"] is net.tied
    assert repr(net) == "Net(26 parameters)"


def test_gradients_agree_with_finite_differences():
    net, x = Net(), rows(5, 3)
    value, grads = nn.value_and_grad(loss)(net, x)
    assert value == loss(net, x)
    for (name, p), g in zip(nn.named_parameters(net).items(), grads, strict=True):
        direction = np.random.default_rng(1).standard_normal(p.shape)
        keep, h = p.copy(), 1e-6
        p += h * direction
        up = loss(net, x)
        p[...] = keep - h * direction
        down = loss(net, x)
        p[...] = keep
        assert (g * direction).sum() == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-9), name


def test_further_outputs_of_the_loss_are_returned():
    net, x = Net(), rows(5, 3)
    (value, output), grads = nn.value_and_grad(lambda net, x: (loss(net, x), net(x)))(net, x)
    np.testing.assert_array_equal(output, net(x))
    assert value == loss(net, x) and len(grads) == 6


def test_traced_copy_is_read_only():
    net, x = Net(), rows(5, 3)

    def assigns(net, x):
        net.rate = 1.0
        return loss(net, x)

    def assigns_deeply(net, x):
        net.parts[1][0].bias = x
        return loss(net, x)

    def appends(net, x):
        net.parts.append(1)
        return loss(net, x)

    def sets_item(net, x):
        net.parts[0]["more"] = 1
        return loss(net, x)

    with pytest.raises(TypeError, match=r"Net\.rate was assigned inside value_and_grad"):
        nn.value_and_grad(assigns)(net, x)
    with pytest.raises(TypeError, match=r"Linear\.bias was assigned"):
        nn.value_and_grad(assigns_deeply)(net, x)
    with pytest.raises(AttributeError):
        nn.value_and_grad(appends)(net, x)
    with pytest.raises(TypeError):
        nn.value_and_grad(sets_item)(net, x)
    net.rate = 0.2  # the original stays writable
    assert nn.value_and_grad(loss)(net, x)[0] == loss(net, x)


def test_what_cannot_be_a_parameter_is_refused():
    net = Net()
    net.parts[0]["counts"] = np.zeros(3, np.int64)
    with pytest.raises(TypeError, match=r"parts\.0\.counts is an array of int64.*nn\.Buffer"):
        nn.named_parameters(net)
    net = Net()
    net.parts.append(net)
    with pytest.raises(ValueError, match=r"parts\.2 contains itself"):
        nn.named_parameters(net)


def test_pack_leaves_views_of_one_buffer():
    net, x = Net(), rows(5, 3)
    before, y = {k: v.copy() for k, v in nn.named_parameters(net).items()}, net(x)
    packed = nn.pack(net)
    after = nn.named_parameters(net)
    assert list(after) == list(before)
    for name, p in after.items():
        assert np.shares_memory(p, packed.data)
        assert p.ctypes.data % 64 == 0
        np.testing.assert_array_equal(p, before[name])
    assert net.tied is net.first.weight
    np.testing.assert_array_equal(net(x), y)
    packed.data[...] = 0
    assert not net(x).any()
    gradient = packed.zeros()
    for slot, g in zip(packed.views(gradient), nn.value_and_grad(loss)(net, x)[1], strict=True):
        slot[...] = g + 1
    assert np.count_nonzero(gradient) == 26


def test_pack_refuses_what_has_no_single_buffer():
    mixed = nn.Module()
    mixed.a, mixed.b = np.zeros(2, np.float32), np.zeros(2)
    with pytest.raises(TypeError, match="float32 and float64"):
        nn.pack(mixed)
    with pytest.raises(ValueError, match="no parameters"):
        nn.pack(nn.Module())


def test_state_round_trip_and_its_refusals():
    net, other = Net(), Net()
    nn.pack(net).data[...] = np.arange(nn.pack(net).data.size)
    net.shift.value[...] = 7
    saved = {k: v.copy() for k, v in nn.state(net).items()}
    assert "shift" in saved
    nn.load_state(other, saved)
    for name, array in nn.state(other).items():
        np.testing.assert_array_equal(array, saved[name])
    with pytest.raises(ValueError, match=r"missing \['shift'\], unknown \['more'\]"):
        nn.load_state(other, {**{k: v for k, v in saved.items() if k != "shift"}, "more": np.zeros(1)})
    with pytest.raises(ValueError, match=r"first\.bias is float64 \(4,\), wanted float64 \(3,\)"):
        nn.load_state(other, {**saved, "first.bias": np.zeros(4)})


def test_layers_are_their_formulas():
    x, stream = rows(4, 6), Stream(1)
    linear = nn.Linear(6, 3, stream, dtype="float64")
    linear.bias[...] = 2
    np.testing.assert_allclose(linear(x), x @ linear.weight + 2, rtol=1e-12)
    norm = nn.LayerNorm(6, dtype="float64")
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), expected, rtol=1e-9)
    table = nn.Embedding(5, 3, stream, dtype="float64")
    np.testing.assert_array_equal(table(np.array([4, 0, 4])), table.table[[4, 0, 4]])
    features = nn.FourierFeatures(8, low=1, high=8, dtype="float64")
    t = np.array([0.0, 0.3])
    angle = t[:, None] * np.array([1.0, 2.0, 4.0, 8.0])
    np.testing.assert_allclose(features(t), np.concatenate([np.sin(angle), np.cos(angle)], 1), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="even"):
        nn.FourierFeatures(3)


def test_initial_values_follow_the_seed_and_the_fan_in():
    a, b, c = (nn.Linear(400, 300, Stream(seed)).weight for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.99
    assert a.dtype == np.float32 and a.std() == pytest.approx(1 / 20, rel=0.02)


def test_denoiser_begins_at_zero_and_sees_its_conditions():
    net = nn.MlpDenoiser(7, Stream(0), classes=3, width=16, blocks=2)
    x, noise, labels = rows(4, 7, "float32"), np.zeros(4, np.float32), np.array([0, 1, 2, 0])
    assert not net(x, noise, labels).any()
    packed = nn.pack(net)
    packed.data += ops.normal(np.array([1, 0], np.uint64), shape=packed.data.shape) * np.float32(0.3)
    y = net(x, noise, labels)
    relabelled = np.abs(net(x, noise, np.array([1, 1, 2, 0])) - y).max(1)
    assert relabelled[0] > 1e-3 and not relabelled[1:].any()
    noisier = np.abs(net(x, np.array([0, 0.5, 0, 0], np.float32), labels) - y).max(1)
    assert noisier[1] > 1e-3 and not noisier[[0, 2, 3]].any()
