"""Generators and discriminators: shapes for any size, what they depend on, and the parts they are made of.

Seen to fail: with power iteration differentiated, at work without training=True, or its buffers handed out uncopied;
with consecutive samples grouped, without the constant under the root; with labels unchecked, a block that does not
begin as the identity, an image uncropped; with a residual generator that begins as a linear map of z onto 2 x 2 pixels;
with the generator of a discriminator's step traced.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from generant import nn, ops
from generant.autograd import TABLE, grad
from generant.models import adversarial
from generant.nn.conv import Conv2d
from generant.nn.gan import ProjectionHead
from generant.random import Stream

PAIRS = {
    "dcgan": (nn.DCGANGenerator, nn.DCGANDiscriminator, dict(width=4)),
    "resnet": (nn.ResNetGenerator, nn.ResNetDiscriminator, dict(width=4)),
    "mlp": (nn.MlpGenerator, nn.MlpDiscriminator, dict(hidden=(8, 8))),
}
LABELS = np.array([0, 2, 1, 1])


def normals(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pair(name, shape, classes=0, **of_discriminator):
    G, D, size = PAIRS[name]
    return G(3, shape, Stream(1), classes=classes, **size), D(
        shape, Stream(2), classes=classes, **size, **of_discriminator
    )


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (5, 7, 2), (1, 9, 3), (33, 30, 1)])
@pytest.mark.parametrize("name", PAIRS)
def test_images_of_any_size(name, shape):
    for options in ({}, dict(spectral=True, stddev_group=2)):
        generator, discriminator = pair(name, shape, classes=3, **options)
        x = generator(normals(4, 3), LABELS)
        assert x.shape == (4, *shape) and x.dtype == np.float32
        penalty = lambda d, x=x: adversarial.r1(d, x, LABELS)
        value, grads = nn.value_and_grad(penalty)(discriminator)
        assert discriminator(x, LABELS).shape == (4,)
        assert value > 0 and all(np.isfinite(g).all() for g in grads)


def test_rows_have_an_mlp_with_three_hidden_layers():
    generator, discriminator = nn.MlpGenerator(2, (2,), Stream(0)), nn.MlpDiscriminator((2,), Stream(0))
    weights = list(nn.named_parameters(generator).values())[::2]
    assert [p.shape for p in weights] == [(2, 128), (128, 128), (128, 128), (128, 2)]
    assert discriminator(generator(normals(5, 2))).shape == (5,)


@pytest.mark.parametrize("name", PAIRS)
def test_a_sample_does_not_depend_on_its_batch(name):
    generator, discriminator = pair(name, (8, 8, 1), classes=3)
    z = normals(4, 3)
    x = generator(z, LABELS)
    for i in range(4):
        np.testing.assert_array_equal(generator(z[i : i + 1], LABELS[i : i + 1])[0], x[i])
    np.testing.assert_allclose(discriminator(x, LABELS)[:1], discriminator(x[:1], LABELS[:1]), rtol=1e-5)


@pytest.mark.parametrize("G, size", [(G, size) for G, _, size in PAIRS.values()], ids=PAIRS)
def test_samples_begin_in_more_than_a_few_dimensions(G, size):
    size = {"hidden": (32, 32)} if "hidden" in size else {"width": 8}
    x = G(16, (8, 8, 1), Stream(3), **size)(normals(512, 16)).reshape(512, 64)
    variances = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert variances.sum() ** 2 / (variances**2).sum() > 6


@pytest.mark.parametrize("name", PAIRS)
def test_the_label_matters_to_both(name):
    generator, discriminator = pair(name, (8, 8, 1), classes=3)
    z = np.repeat(normals(1, 3), 3, axis=0)
    x = generator(z, np.arange(3))
    assert np.ptp(x, axis=0).max() > 1e-3
    same = np.repeat(x[:1], 3, axis=0)
    assert np.ptp(discriminator(same, np.arange(3))) > 1e-4


def test_the_projection_is_an_inner_product_of_features_and_class_vector():
    head, phi = ProjectionHead(6, Stream(0), classes=3, network="head"), normals(4, 6)
    plain = phi @ head.out.weight[:, 0] + head.out.bias
    np.testing.assert_allclose(head(phi, LABELS), plain + (phi * head.label.table[LABELS]).sum(1), rtol=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_normalisation_of_the_generator_is_a_choice(norm):
    generator = nn.DCGANGenerator(3, (8, 8, 1), Stream(0), width=8, norm=norm, out_activation="tanh")
    before = {k: v.copy() for k, v in nn.state(generator).items()}
    x = generator(normals(6, 3), training=True)
    assert x.shape == (6, 8, 8, 1) and abs(x).max() <= 1
    moved = [k for k, v in nn.state(generator).items() if (v != before[k]).any()]
    assert moved == (["norms.0.mean", "norms.0.var", "norms.1.mean", "norms.1.var"] if norm == "batch" else [])
    np.testing.assert_array_equal(generator(normals(6, 3))[:1], generator(normals(6, 3)[:1]))


def test_residual_blocks_begin_as_the_identity_and_learn():
    from generant.nn.resnet_gan import FixupBlock

    block, x = FixupBlock(4, Stream(0)), normals(2, 5, 5, 4)
    np.testing.assert_array_equal(block(x), x)
    _, grads = nn.value_and_grad(lambda b: ops.sum(ops.square(b(x))))(block)
    assert [bool(g.any()) for g in grads] == [False, False, True, True]


@pytest.mark.parametrize("name", PAIRS)
def test_errors_name_network_and_argument(name):
    G, D, size = PAIRS[name]
    generator = pair(name, (8, 8, 1), classes=3)[0]
    with pytest.raises(ValueError, match=f"{G.__name__}: labels .n,. are needed, as it was made with classes=3"):
        generator(normals(4, 3))
    with pytest.raises(ValueError, match=f"{D.__name__}: labels were given, but it was made without classes"):
        pair(name, (8, 8, 1))[1](normals(4, 8, 8, 1), LABELS)
    with pytest.raises(ValueError, match=f"{G.__name__}: latent_dim must be at least 1, got 0"):
        G(0, (8, 8, 1), Stream(0), **size)
    with pytest.raises(ValueError, match=f"{D.__name__}: stddev_group must be at least 0, got -1"):
        D((8, 8, 1), Stream(0), **size, stddev_group=-1)
    with pytest.raises(ValueError, match=f"{D.__name__}: shape must be"):
        D((8, 0, 1), Stream(0), **size)


def test_the_norm_must_be_known():
    with pytest.raises(ValueError, match="DCGANGenerator: norm must be 'group', 'batch' or None, got 'layer'"):
        nn.DCGANGenerator(3, (8, 8, 1), Stream(0), norm="layer")


# ---- a step of the discriminator ------------------------------------------------------------------------------------


def calls_of(f):
    """How often f calls each op, on whatever level of tracing."""
    found: Counter = Counter()

    def counting(name, run):
        def counted(*xs, **attrs):
            found[name] += 1
            return run(*xs, **attrs)

        return counted

    f()  # every op has chosen its kernel
    kept = {name: (op.run, op.run_all) for name, op in TABLE.items()}
    try:
        for name, op in TABLE.items():
            op.run, op.run_all = counting(name, op.run), counting(name, op.run_all)
        f()
    finally:
        for name, (run, run_all) in kept.items():
            TABLE[name].run, TABLE[name].run_all = run, run_all
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_a_discriminator_step_does_not_differentiate_the_generator(name):
    generator, discriminator = pair(name, (8, 8, 1))
    z, real = normals(4, 3), normals(4, 8, 8, 1, seed=1)
    fake, loss = generator(z), adversarial.LOSSES["relativistic"]

    def of_fake(d, fake):
        a, on_real = adversarial.logits_and_penalty(d, real)
        b, on_fake = adversarial.logits_and_penalty(d, fake)
        return loss.discriminator(a, b) + (on_real + on_fake) * 0.5

    alone = calls_of(lambda: nn.value_and_grad(of_fake)(discriminator, fake))
    whole = calls_of(lambda: nn.value_and_grad(lambda d: of_fake(d, generator(z)))(discriminator))
    forward = calls_of(lambda: generator(z))
    assert sum(forward.values()) > 3
    assert whole == alone + forward


# ---- minibatch standard deviation -----------------------------------------------------------------------------------


def stddev(x, group):
    """The definition, group by group."""
    n = len(x)
    m = n // group
    column = np.empty(n)
    for j in range(m):
        members = range(j, n, m)
        column[list(members)] = np.sqrt(x[list(members)].reshape(group, -1).var(0) + 1e-8).mean()
    shape = (n,) + (1,) * (x.ndim - 1)
    return np.concatenate([x, np.broadcast_to(column.reshape(shape), (*x.shape[:-1], 1))], axis=-1)


@pytest.mark.parametrize("n, group, used", [(8, 4, 4), (6, 4, 3), (5, 4, 1), (3, 16, 3)])
@pytest.mark.parametrize("rest", [(3,), (2, 3, 2)])
def test_minibatch_stddev_is_its_definition(n, group, used, rest):
    x = normals(n, *rest, dtype="float64")
    np.testing.assert_allclose(nn.minibatch_stddev(x, group=group), stddev(x, used), rtol=1e-12)


def test_minibatch_stddev_tells_a_collapsed_batch():
    x = np.repeat(normals(1, 5), 4, axis=0)
    assert nn.minibatch_stddev(x)[:, -1].max() < 1e-3 < nn.minibatch_stddev(normals(4, 5))[:, -1].min()


def test_minibatch_stddev_is_twice_differentiable():
    x, direction, h = normals(6, 3, dtype="float64"), normals(6, 3, seed=1, dtype="float64"), 1e-6
    weights = normals(6, 4, seed=2, dtype="float64")
    value = lambda x: ops.sum(ops.mul(weights, ops.square(nn.minibatch_stddev(x, group=3))))
    slope = lambda x: ops.sum(ops.square(grad(value)(x)))
    for f in (value, slope):
        want = (f(x + h * direction) - f(x - h * direction)) / (2 * h)
        np.testing.assert_allclose((grad(f)(x) * direction).sum(), want, rtol=1e-7)


def test_minibatch_stddev_names_a_bad_group():
    with pytest.raises(ValueError, match="minibatch_stddev: group must be at least 1, got 0"):
        nn.minibatch_stddev(normals(4, 2), group=0)


# ---- spectral normalisation -----------------------------------------------------------------------------------------


def layers(dtype="float64"):
    stream = Stream(5)
    return {
        "linear": (nn.Linear(7, 5, stream, gain=3.0, dtype=dtype), normals(4, 7, dtype=dtype)),
        "conv": (Conv2d(2, 6, stream, gain=3.0, dtype=dtype), normals(2, 5, 5, 2, dtype=dtype)),
        "embedding": (nn.Embedding(4, 3, stream, dtype=dtype), LABELS),
    }


@pytest.mark.parametrize("name", ["linear", "conv", "embedding"])
def test_the_largest_singular_value_becomes_one(name):
    layer, x = layers()[name]
    normed = nn.SpectralNorm(layer, Stream(6))
    for _ in range(200):
        normed(x, training=True)
    weight = normed.normalised()
    largest = np.linalg.svd(weight.reshape(-1, weight.shape[-1]), compute_uv=False)[0]
    np.testing.assert_allclose(largest, 1, rtol=1e-6)
    assert normed(x).shape == layer(x).shape


def test_one_training_call_is_one_step_of_power_iteration():
    layer, x = layers()["conv"]
    normed = nn.SpectralNorm(layer, Stream(6))
    before = nn.state(normed)
    u0, v0 = before["u"].copy(), before["v"].copy()
    normed(x)
    np.testing.assert_array_equal(normed.u.value, u0)
    np.testing.assert_array_equal(normed.v.value, v0)
    y = normed(x, training=True)
    matrix = layer.weight.reshape(-1, 6).T
    v = matrix.T @ u0
    v /= np.linalg.norm(v)
    u = matrix @ v
    u /= np.linalg.norm(u)
    np.testing.assert_allclose(normed.u.value, u, rtol=1e-12)
    np.testing.assert_allclose(normed.v.value, v, rtol=1e-12)
    np.testing.assert_allclose(y, (layer(x) - layer.bias) / (u @ matrix @ v) + layer.bias, rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "conv", "embedding"])
def test_sigma_is_differentiated_and_its_vectors_are_not(name):
    layer, x = layers()[name]
    normed = nn.SpectralNorm(layer, Stream(6))
    loss = lambda m: ops.sum(ops.square(ops.affine(m(x), shift=0.3)))
    value, (g, *_) = nn.value_and_grad(loss)(normed)
    weight = next(iter(nn.named_parameters(normed).values()))
    direction, keep, h = normals(*weight.shape, seed=3, dtype="float64"), weight.copy(), 1e-6
    weight += h * direction
    up = loss(normed)
    weight[...] = keep - h * direction
    down = loss(normed)
    weight[...] = keep
    np.testing.assert_allclose((g * direction).sum(), (up - down) / (2 * h), rtol=1e-6)
    assert value == loss(normed)


def test_the_step_of_power_iteration_is_not_differentiated():
    layer, x = layers()["linear"]
    normed = nn.SpectralNorm(layer, Stream(6))
    _, moving = nn.value_and_grad(lambda m: ops.sum(ops.square(m(x, training=True))))(normed)
    _, still = nn.value_and_grad(lambda m: ops.sum(ops.square(m(x))))(normed)  # with the vectors just found
    np.testing.assert_allclose(moving[0], still[0], rtol=1e-10)


def test_a_later_training_call_leaves_an_earlier_gradient_alone():
    layer, x = layers()["linear"]
    alone = nn.value_and_grad(lambda m: ops.sum(ops.square(m(x))))(nn.SpectralNorm(layer, Stream(6)))[1]
    both = nn.value_and_grad(
        lambda m: ops.add(ops.sum(ops.square(m(x))), ops.affine(ops.sum(m(x, training=True)), scale=0.0))
    )(nn.SpectralNorm(layer, Stream(6)))[1]
    np.testing.assert_allclose(both[0], alone[0], rtol=1e-12)


def test_spectral_vectors_are_saved_with_the_model():
    discriminator = nn.MlpDiscriminator((3,), Stream(0), hidden=(4,), classes=2, spectral=True)
    names = set(nn.state(discriminator)) - set(nn.named_parameters(discriminator))
    assert names == {f"{part}.{b}" for part in ("layers.0", "head.out", "head.label") for b in "uv"}


def test_spectral_norm_wants_a_weight():
    with pytest.raises(TypeError, match="SpectralNorm: layer must be a Linear, Conv2d or Embedding, got LayerNorm"):
        nn.SpectralNorm(nn.LayerNorm(3), Stream(0))
    with pytest.raises(TypeError, match=r"SpectralNorm: layer must be a Linear, .*, got ConvTranspose2d"):
        nn.SpectralNorm(nn.ConvTranspose2d(3, 4, Stream(0)), Stream(0))
