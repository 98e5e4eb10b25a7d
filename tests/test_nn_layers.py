"""The layers against their definitions in NumPy, their gradients against differences, and what they begin as.

Seen to fail: with the fan in of a filter without its window, without the signs in `orthogonal`, with a strided 1 x 1
convolution as a matrix product, with the upper rows cut off after upsampling, with running statistics of momentum
1 - m, of the biased variance or moved in every call, with heads and channels exchanged, keys as values, with a residual
branch that is not zero at first, with the embedding or its shift left out, with the norm after the averages of "down",
with transposed convolutions counted as plain ones.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import nn, ops
from generant.random import Stream

F64 = {"dtype": "float64"}


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def shaken(model, scale=0.3):
    """The model with every parameter moved, so that nothing is zero any more."""
    for i, p in enumerate(nn.named_parameters(model).values()):
        p += scale * normals(*p.shape, seed=100 + i).astype(p.dtype)
    return model


def check_gradients(model, *inputs, one_by_one=True, **options):
    """The gradients in all parameters of a weighted sum of the output, against central differences in float64."""
    weights = normals(*model(*inputs, **options).shape, seed=7)

    def loss(model):
        return ops.sum(ops.mul(model(*inputs, **options), weights))

    _, grads = nn.value_and_grad(loss)(model)
    found = list(nn.named_parameters(model).items())
    directions = [normals(*p.shape, seed=i) for i, (_, p) in enumerate(found)]
    steps = [[i] for i in range(len(found))] if one_by_one else [range(len(found))]
    for step in steps:
        h, values = 1e-5, []
        for sign in (1, -2, 1):
            for i in step:
                found[i][1][...] += sign * h * directions[i]
            values.append(float(loss(model)))
        wanted = (values[0] - values[1]) / (2 * h)
        got = sum(float((grads[i] * directions[i]).sum()) for i in step)
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-6), [found[i][0] for i in step]


# ---- first values ---------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("shape", [(200, 300), (3, 3, 40, 60)])
@pytest.mark.parametrize("name, variance", [
    ("lecun_normal", lambda a, b: 1 / a), ("he_normal", lambda a, b: 2 / a), ("he_uniform", lambda a, b: 2 / a),
    ("xavier_normal", lambda a, b: 2 / (a + b)), ("xavier_uniform", lambda a, b: 2 / (a + b)),
])  # fmt: skip
def test_first_values_have_the_variance_of_their_paper(name, shape, variance):
    fan_in, fan_out = np.prod(shape[:-1]), np.prod(shape[:-2]) * shape[-1]
    draw = getattr(nn.init, name)
    w = draw(shape, Stream(1), gain=1.5)
    wanted = 1.5 * np.sqrt(variance(fan_in, fan_out))
    assert w.dtype == np.float32 and w.shape == shape
    assert w.std() == pytest.approx(wanted, rel=0.02) and abs(w.mean()) < 0.02 * wanted
    if name.endswith("uniform"):
        assert 0.999 * wanted < abs(w).max() / np.sqrt(3) <= wanted * (1 + 1e-6)
    np.testing.assert_array_equal(w, draw(shape, Stream(1), gain=1.5))
    assert (w != draw(shape, Stream(2), gain=1.5)).any()


@pytest.mark.once
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (3, 3, 2, 6), (1, 1, 3, 8)])
def test_orthogonal_has_orthonormal_columns_or_rows(shape):
    w = nn.init.orthogonal(shape, Stream(0), gain=2.0, dtype="float64").reshape(-1, shape[-1]) / 2
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(min(w.shape)), atol=1e-12)


@pytest.mark.once
def test_orthogonal_is_uniform_over_the_orthogonal_matrices():
    """The mean of each element and of the trace are zero; without the signs of R the diagonal would not be."""
    draws = np.stack([nn.init.orthogonal((3, 3), Stream(i), dtype="float64") for i in range(400)])
    assert abs(draws.mean(0)).max() < 0.12 and np.mean(np.linalg.det(draws) > 0) == pytest.approx(0.5, abs=0.1)


# ---- linear, convolutions -------------------------------------------------------------------------------------------


def test_linear_without_bias():
    layer, x = nn.Linear(3, 5, Stream(0), bias=False, activation="tanh", **F64), normals(4, 3)
    assert list(nn.named_parameters(layer)) == ["weight"]
    np.testing.assert_allclose(layer(x), np.tanh(x @ layer.weight), rtol=1e-12)
    layer.activation = None
    np.testing.assert_allclose(layer(x), x @ layer.weight, rtol=1e-12)
    check_gradients(layer, x)


def convolved(x, w, stride, padding, groups):
    """The definition, output by output."""
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    kh, kw, d, o = w.shape
    y = np.zeros((x.shape[0], (x.shape[1] - kh) // stride[0] + 1, (x.shape[2] - kw) // stride[1] + 1, o))
    for n, p, q, k in np.ndindex(y.shape):
        c = k // (o // groups) * d
        patch = x[n, p * stride[0] : p * stride[0] + kh, q * stride[1] : q * stride[1] + kw, c : c + d]
        y[n, p, q, k] = (patch * w[..., k]).sum()
    return y


@pytest.mark.parametrize("options, padding", [
    (dict(), (1, 1)), (dict(kernel=1), (0, 0)), (dict(kernel=1, bias=False), (0, 0)), (dict(kernel=5), (2, 2)),
    (dict(stride=2, groups=2), (1, 1)), (dict(kernel=(2, 3), stride=(1, 2), padding=(0, 1)), (0, 1)),
    (dict(kernel=4, stride=2, padding=1, bias=False), (1, 1)), (dict(kernel=1, stride=2), (0, 0)),
])  # fmt: skip
def test_conv2d_is_its_definition(options, padding):
    layer, x = shaken(nn.Conv2d(4, 6, Stream(0), **options, **F64)), normals(2, 5, 6, 4)
    stride, groups = options.get("stride", 1), options.get("groups", 1)
    wanted = convolved(x, layer.weight, (stride, stride) if isinstance(stride, int) else stride, padding, groups)
    wanted = wanted if layer.bias is None else wanted + layer.bias
    np.testing.assert_allclose(layer(x), wanted, atol=1e-12)
    residual = normals(*wanted.shape, seed=1)
    np.testing.assert_allclose(layer(x, residual), wanted + residual, atol=1e-12)
    layer.activation = "leaky_relu"
    np.testing.assert_allclose(layer(x, residual), ops.leaky_relu(wanted + residual), atol=1e-12)
    layer.activation = None
    check_gradients(layer, x)


def test_a_kernel_of_odd_size_keeps_the_size_and_the_scale():
    x = normals(4, 32, 32, 16).astype("float32")
    for kernel in (1, 3, 5):
        y = nn.Conv2d(16, 16, Stream(0), kernel=kernel)(x)
        assert y.shape == x.shape and y[:, 4:-4, 4:-4].std() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("options", [dict(), dict(kernel=3, stride=1), dict(kernel=(2, 5), stride=(2, 3), padding=0)])
def test_conv_transpose2d_is_the_adjoint_of_conv2d(options):
    """<up(x), g> = <x, conv(g)> with the same filter, and the defaults double the size."""
    layer, x = nn.ConvTranspose2d(3, 2, Stream(0), bias=False, **options, **F64), normals(2, 4, 3, 3)
    y = layer(x)
    if not options:
        assert y.shape == (2, 8, 6, 2)
    g = normals(*y.shape, seed=1)
    back = ops.conv2d(g, layer.weight, stride=layer.stride, padding=layer.padding)
    assert (y * g).sum() == pytest.approx((x * back).sum(), rel=1e-10)
    check_gradients(layer, x)


def test_conv_transpose2d_keeps_the_scale_and_activates():
    x = normals(4, 16, 16, 32).astype("float32")
    layer = nn.ConvTranspose2d(32, 32, Stream(0))
    assert layer(x)[:, 4:-4, 4:-4].std() == pytest.approx(1, rel=0.1)
    layer.bias += np.float32(0.5)
    plain, layer.activation = layer(x), "relu"
    np.testing.assert_array_equal(layer(x), np.maximum(plain, 0))


def test_upsample_and_downsample():
    up, down = shaken(nn.Upsample(3, 4, Stream(0), **F64)), shaken(nn.Downsample(3, 4, Stream(1), **F64))
    x = normals(2, 3, 4, 3)
    wanted = convolved(x.repeat(2, 1).repeat(2, 2), up.weight, (1, 1), (1, 1), 1) + up.bias
    np.testing.assert_allclose(up(x), wanted, atol=1e-12)
    np.testing.assert_allclose(up(x, size=(5, 7)), wanted[:, :5, :7], atol=1e-12)
    np.testing.assert_allclose(down(x), convolved(x, down.conv.weight, (2, 2), (1, 1), 1) + down.conv.bias, atol=1e-12)
    assert down(normals(1, 7, 8, 3)).shape == (1, 4, 4, 4)
    check_gradients(up, x, size=(5, 8))
    check_gradients(down, x)


# ---- normalisation --------------------------------------------------------------------------------------------------


def test_norms_are_their_definitions():
    x, rows = normals(2, 3, 4, 12), normals(5, 7)
    group = shaken(nn.GroupNorm(12, groups=5, **F64))
    assert group.groups == 4  # the largest divisor of 12 that is not above 5
    parts = x.reshape(2, 12, 4, 3)
    parts = (parts - parts.mean((1, 3), keepdims=True)) / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-5)
    scale, shift = normals(2, 12, seed=1), normals(2, 12, seed=2)
    wanted = parts.reshape(x.shape) * group.gain + group.bias
    np.testing.assert_allclose(group(x), wanted, atol=1e-12)
    wanted = wanted * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(group(x, scale, shift), wanted, atol=1e-12)
    rms = shaken(nn.RMSNorm(7, **F64))
    np.testing.assert_allclose(rms(rows), rows / np.sqrt((rows**2).mean(1, keepdims=True) + 1e-6) * rms.gain)
    plain = nn.LayerNorm(7, affine=False, **F64)
    assert not nn.named_parameters(plain)
    np.testing.assert_array_equal(plain(rows), nn.LayerNorm(7, **F64)(rows))
    check_gradients(group, x, scale, shift)
    check_gradients(rms, rows)


def test_batch_norm_keeps_running_statistics_of_what_it_was_trained_on():
    layer = nn.BatchNorm(3, momentum=0.1, activation="tanh", **F64)
    mean, var = np.zeros(3), np.ones(3)
    for i in range(5):
        x = 2 + 3 * normals(4, 2, 2, 3, seed=i)
        y = layer(x, training=True)
        np.testing.assert_allclose(y, np.tanh((x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)), atol=1e-9)
        mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
        var = 0.9 * var + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.mean.value, mean)
    np.testing.assert_allclose(layer.var.value, var)
    np.testing.assert_allclose(layer(x), np.tanh((x - mean) / np.sqrt(var + 1e-5)), atol=1e-12)
    np.testing.assert_allclose(layer(x)[:1], layer(x[:1]), rtol=1e-12)  # does not depend on the batch
    np.testing.assert_allclose(layer.mean.value, mean)                  # nor changes anything
    assert list(nn.named_parameters(layer)) == ["gain", "bias"] and set(nn.state(layer)) > {"mean", "var"}


def test_batch_norm_inside_a_gradient_moves_its_statistics_once():
    layer, x = shaken(nn.BatchNorm(3, **F64)), normals(6, 3)
    check_gradients(layer, x)
    other = shaken(nn.BatchNorm(3, **F64))
    nn.value_and_grad(lambda layer: ops.sum(ops.square(layer(x, training=True))))(layer)
    other(x, training=True)
    np.testing.assert_array_equal(layer.mean.value, other.mean.value)
    np.testing.assert_array_equal(layer.var.value, other.var.value)
    check_gradients(layer, x, training=True)


# ---- attention, features, blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads, d_context", [(1, None), (3, None), (2, 5)])
def test_attention_is_its_definition(heads, d_context):
    layer = shaken(nn.Attention(6, Stream(0), heads=heads, d_context=d_context, **F64))
    x, context = normals(2, 4, 6), None if d_context is None else normals(2, 7, d_context, seed=1)
    source = x if context is None else context
    q, k, v = layer.query(x), layer.key(source), layer.value(source)
    out = np.zeros_like(x)
    for n, h in np.ndindex(2, heads):
        at = slice(h * 6 // heads, (h + 1) * 6 // heads)
        scores = q[n][:, at] @ k[n][:, at].T / np.sqrt(6 // heads)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        out[n][:, at] = weights @ v[n][:, at]
    np.testing.assert_allclose(layer(x, context), layer.out(out), atol=1e-12)
    check_gradients(layer, x, context)


@pytest.mark.once
def test_features_are_sines_and_cosines():
    t, d = np.array([0.0, 1.0, 250.0]), 6
    f = np.array([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    angle = t[:, None] * f
    features = nn.SinusoidalFeatures(d, **F64)
    np.testing.assert_allclose(features(t), np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-9)
    assert not nn.named_parameters(features) and list(nn.state(features)) == ["frequencies"]
    low = nn.SinusoidalFeatures(d, period=100.0, **F64).frequencies.value[0]
    np.testing.assert_allclose(low, [1, 100 ** (-1 / 3), 100 ** (-2 / 3)])


def test_blocks_begin_as_the_identity():
    x, embedding = normals(2, 4, 4, 8).astype("float32"), normals(2, 5).astype("float32")
    np.testing.assert_array_equal(nn.ResBlock(8, 8, Stream(0), d_embedding=5)(x, embedding), x)
    np.testing.assert_array_equal(nn.AttentionBlock(8, Stream(0))(x), x)
    block = nn.ResBlock(8, 4, Stream(0))
    np.testing.assert_array_equal(block(x), block.skip(x))
    up, down = (nn.ResBlock(8, 8, Stream(0), resample=way) for way in ("up", "down"))
    np.testing.assert_array_equal(up(x), x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(down(x), x.reshape(2, 2, 2, 2, 2, 8).mean((2, 4)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [
    dict(d_embedding=5), dict(d_embedding=5, scale_shift=False), dict(), dict(resample="up"),
    dict(resample="down", d_embedding=5),
])  # fmt: skip
def test_res_block_is_its_parts(options):
    """Spelled out in unfused ops, and its gradients."""
    block, x = shaken(nn.ResBlock(8, 4, Stream(0), groups=2, **options, **F64)), normals(2, 4, 2, 8)
    embedding = normals(2, 5, seed=1) if "d_embedding" in options else None

    def norm(layer, h):
        parts = h.reshape(2, -1, layer.groups, h.shape[3] // layer.groups)
        parts = (parts - parts.mean((1, 3), keepdims=True)) / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-5)
        return parts.reshape(h.shape) * layer.gain + layer.bias

    def silu(h):
        return h / (1 + np.exp(-h))

    def resampled(h):
        n, rows, columns, c = h.shape
        if block.resample == "up":
            return h.repeat(2, 1).repeat(2, 2)
        return h if block.resample is None else h.reshape(n, rows // 2, 2, columns // 2, 2, c).mean((2, 4))

    assert block.norm_in.groups == 2 and block.norm_out.groups == 1  # at least four channels to a group
    h = resampled(silu(norm(block.norm_in, x)))
    h = convolved(h, block.conv_in.weight, (1, 1), (1, 1), 1) + block.conv_in.bias
    shift = 0 if embedding is None else (embedding @ block.shift.weight + block.shift.bias)[:, None, None]
    if block.scale is not None:
        h = norm(block.norm_out, h) * (1 + block.scale(embedding)[:, None, None]) + shift
    else:
        h = norm(block.norm_out, h + shift)
    h = convolved(silu(h), block.conv_out.weight, (1, 1), (1, 1), 1) + block.conv_out.bias
    wanted = h + resampled(x) @ block.skip.weight[0, 0] + block.skip.bias
    np.testing.assert_allclose(block(x, embedding), wanted, atol=1e-11)
    check_gradients(block, x, embedding)


def test_mlp():
    x = normals(5, 3)
    mlp = nn.MLP(3, 2, Stream(0), hidden=(4, 6), activation="tanh", **F64)
    wanted = x
    for layer in mlp.layers:
        wanted = np.tanh(wanted @ layer.weight + layer.bias)
    np.testing.assert_allclose(mlp(x), mlp.out(wanted), atol=1e-12)
    assert [layer.weight.shape for layer in mlp.layers] == [(3, 4), (4, 6)]
    check_gradients(mlp, x)
    assert not nn.MLP(3, 2, Stream(0), out_gain=0.0, **F64)(x).any()
    np.testing.assert_array_equal(nn.MLP(3, 2, Stream(1), hidden=(), **F64)(x), nn.Linear(3, 2, Stream(1), **F64)(x))


@pytest.mark.once
@pytest.mark.parametrize("make, message", [
    (lambda s: nn.Conv2d(3, 4, s, stride=0), "Conv2d: stride must be at least 1, got 0"),
    (lambda s: nn.Conv2d(3, 4, s, kernel=(3, 0)), r"Conv2d: kernel must be at least 1, got \(3, 0\)"),
    (lambda s: nn.Conv2d(3, 4, s, padding=1.5), "Conv2d: padding must be an integer"),
    (lambda s: nn.Conv2d(3, 4, s, groups=2), "Conv2d: groups must divide c = 3 and o = 4, got 2"),
    (lambda s: nn.Conv2d(0, 4, s), "Conv2d: c must be at least 1, got 0"),
    (lambda s: nn.ConvTranspose2d(3, 4, s, padding=-1), "ConvTranspose2d: padding must be at least 0, got -1"),
    (lambda s: nn.GroupNorm(3, groups=0), "GroupNorm: groups must be at least 1, got 0"),
    (lambda s: nn.Attention(6, s, heads=4), "Attention: heads must divide d = 6, got 4"),
    (lambda s: nn.SinusoidalFeatures(3), "SinusoidalFeatures: d must be even"),
    (lambda s: nn.ResBlock(4, 4, s, resample="left"), "ResBlock: resample must be None"),
    (lambda s: nn.ResBlock(4, 4, s, d_embedding=3)(np.zeros((1, 4, 4, 4), "f")), "embedding is None, but d_embedding"),
    (lambda s: nn.ResBlock(4, 4, s)(np.zeros((1, 4, 4, 4), "f"), np.zeros((1, 3), "f")), "d_embedding was None"),
    (lambda s: nn.Linear(0, 3, s), "Linear: d must be at least 1, got 0"),
    (lambda s: nn.Embedding(0, 3, s), "Embedding: m must be at least 1, got 0"),
    (lambda s: nn.GroupNorm(0), "GroupNorm: c must be at least 1, got 0"),
    (lambda s: nn.Linear(3, 3, s, activation="zap", bias=False)(np.ones((1, 3), "f")), "Linear: activation must be"),
    (lambda s: nn.ConvTranspose2d(3, 3, s, activation="exp")(np.ones((1, 2, 2, 3), "f")), "2d: activation must be"),
    (lambda s: nn.Learner(nn.Linear(3, 3, s), lambda p: None, clip=0.0), "Learner: clip must be positive, got 0.0"),
    (lambda s: nn.MlpDenoiser(3, s, width=4, blocks=1)(*np.ones((2, 2, 3), "f"), np.zeros(2, int)), "labels are given"),
    (lambda s: nn.MlpDenoiser(3, s, width=4, blocks=1, classes=2)(*np.ones((2, 2, 3), "f")), "labels are None"),
    (lambda s: nn.init.orthogonal((3,), s), "orthogonal: shape must be that of a weight"),
])  # fmt: skip
def test_what_cannot_be_made_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(Stream(0))


@pytest.mark.once
def test_sizes_are_whole_numbers():
    with pytest.raises(TypeError, match=r"Linear: o must be an integer, got float 2\.5"):
        nn.Linear(3, 2.5, Stream(0))
    with pytest.raises(TypeError, match="Learner: optimiser must be a function"):
        nn.Learner(nn.Linear(3, 3, Stream(0)), None)


# ---- summary --------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, stream):
        self.conv = nn.Conv2d(3, 8, stream, stride=2)
        self.parts = [nn.ConvTranspose2d(8, 4, stream), {"up": nn.Upsample(4, 5, stream)}]
        self.attention = nn.Attention(5, stream, d_context=6)
        self.shared = nn.Linear(5, 5, stream)
        self.norm = nn.BatchNorm(5)

    def __call__(self, x, context, index, training=False):
        h = self.parts[1]["up"](self.parts[0](self.conv(x)))
        h = self.norm(ops.reshape(h, shape=(h.shape[0], -1, 5)), training=training)
        return self.shared(self.shared(self.attention(h, context)))


class Half(nn.Module):
    def __init__(self, gain, weight):
        self.gain, self.weight = gain, weight

    def __call__(self, x):
        return ops.group_norm_conv2d(x, self.gain, self.gain, None, None, self.weight, groups=1)


@pytest.mark.once
def test_summary_counts_products():
    net = Net(Stream(0))
    inputs = np.zeros((2, 6, 4, 3), "f"), np.zeros((2, 7, 6), "f"), np.zeros(2, np.int64)
    found = nn.summary(net, *inputs, training=True)
    rows = {row.path: row for row in found.rows}
    counts = {
        "conv": 2 * 3 * 2 * 8 * 27, "parts.0": 2 * 3 * 2 * 8 * 16 * 4, "parts.1.up": 2 * 12 * 8 * 5 * 9 * 4, "norm": 0,
        "attention.query": 2 * 96 * 25, "attention.key": 2 * 7 * 30, "shared": 2 * 2 * 96 * 25,
        "attention": 2 * 96 * 25 + 2 * 2 * 7 * 30 + 2 * 96 * 7 * 10 + 2 * 96 * 25,
    }  # fmt: skip
    for path, count in counts.items():
        assert rows[path].multiply_adds == count, path
    top = ("conv", "parts.0", "parts.1.up", "norm", "attention", "shared")
    assert found.multiply_adds == sum(counts[path] for path in top) and found.flops == 2 * found.multiply_adds
    assert found.parameters == sum(p.size for p in nn.named_parameters(net).values())
    assert rows["conv"].shape == (2, 3, 2, 8) and rows["attention"].shape == (2, 96, 5) and rows["shared"].calls == 2
    text = str(found).splitlines()
    assert text[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert text[2].startswith("Net") and any("Linear x2" in line for line in text)
    assert f"{found.parameters:,} parameters" in text[-1] and "(2, 6, 4, 3), (2, 7, 6), (2,)" in text[-1]


@pytest.mark.once
def test_summary_counts_a_block_and_leaves_the_model_as_it_was():
    block = nn.ResBlock(4, 8, Stream(0), d_embedding=3)
    before = {name: p.copy() for name, p in nn.named_parameters(block).items()}
    found = nn.summary(block, np.zeros((1, 5, 5, 4), "f"), np.zeros((1, 3), "f"))
    assert found.multiply_adds == 25 * (9 * 4 * 8 + 9 * 8 * 8 + 4 * 8) + 2 * 3 * 8
    x, gain, w = np.zeros((2, 3, 3, 4), "f"), np.ones(4, "f"), np.zeros((3, 3, 4, 5), "f")
    assert nn.summary(Half(gain, w), x).multiply_adds == 18 * 9 * 4 * 5
    for name, p in nn.named_parameters(block).items():
        np.testing.assert_array_equal(p, before[name])
    assert type(block) is nn.ResBlock
    with pytest.raises(TypeError, match="summary: model must be a Module, got ndarray"):
        nn.summary(x)
