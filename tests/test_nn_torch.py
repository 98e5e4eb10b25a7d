"""The layers and networks against PyTorch's, in float32: outputs, gradients, running statistics.

Seen to fail: with the skips of a level taken in another order, with attention at other levels, with groups of another
size, with heads and channels exchanged, with the shift left out, with the biased variance in the running statistics.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from generant import nn, ops
from generant.autograd import vjp
from generant.random import Stream

torch = pytest.importorskip("torch")

_spec = importlib.util.spec_from_file_location("torch_twins", Path(__file__).with_name("torch_twins.py"))
twins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(twins)


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def shaken(model, scale=0.1):
    for i, p in enumerate(nn.named_parameters(model).values()):
        p += np.float32(scale) * normals(*p.shape, seed=100 + i)
    return model


def close(ours, theirs, of=None, tolerance=1e-5):
    """Within 1e-5 of the size of the numbers (of those of `of`, where sums cancel)."""
    theirs = theirs.detach().numpy()
    size = max(abs(theirs).max(), 0 if of is None else of, 1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * size)


def channels_first(x):
    """A torch leaf of x, and the same as (n, c, h, w) where x is images."""
    leaf = torch.tensor(x, requires_grad=x.dtype.kind == "f")
    return leaf, leaf.permute(0, 3, 1, 2) if leaf.ndim == 4 else leaf


def agree(ours, theirs, *inputs, tolerance=1e-5, **options):
    """Outputs, and the gradients of a weighted sum of them in all parameters and inputs."""
    leaves, views = zip(*map(channels_first, inputs), strict=True)
    expected = theirs(*views)
    expected = expected.permute(0, 2, 3, 1) if expected.ndim == 4 else expected
    y = ours(*inputs, **options)
    close(y, expected, tolerance=tolerance)
    weights = normals(*y.shape, seed=7)
    (expected * torch.from_numpy(weights)).sum().backward()

    floats = [x for x in inputs if x.dtype.kind == "f"]

    def of_inputs(*xs):
        xs = iter(xs)
        return ours(*[next(xs) if x.dtype.kind == "f" else x for x in inputs], **options)

    state = {path: a.copy() for path, a in nn.state(ours).items()}  # statistics move with every training pass
    _, pull = vjp(of_inputs, *floats)
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    for g, leaf in zip(pull(weights), leaves, strict=True):
        close(g, leaf.grad, tolerance=tolerance)
    nn.load_state(ours, state)
    _, grads = nn.value_and_grad(lambda model: ops.sum(ops.mul(model(*inputs, **options), weights)))(ours)
    nn.load_state(ours, state)
    largest = max(abs(g).max() for g in grads)
    for (path, _), g in zip(nn.named_parameters(ours).items(), grads, strict=True):
        close(g, twins.as_ours(theirs, path, grad=True), of=0.01 * largest, tolerance=tolerance)


@pytest.mark.parametrize("options", [
    dict(), dict(kernel=1), dict(kernel=4, stride=2, padding=1, bias=False), dict(groups=2, kernel=(3, 1)),
    dict(kernel=1, stride=2),
])  # fmt: skip
@pytest.mark.parametrize("c, o", [(6, 4), (24, 32)])
def test_conv2d(c, o, options):
    ours = shaken(nn.Conv2d(c, o, Stream(0), **options))
    options = {"kernel": 3, **options}
    kernel = options.pop("kernel")
    same = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    theirs = torch.nn.Conv2d(c, o, kernel, **{"padding": same, **options})
    twins.copy_state(ours, theirs)
    agree(ours, theirs, normals(3, 9, 8, c))


@pytest.mark.parametrize("options", [dict(), dict(kernel=3, stride=1), dict(kernel=(5, 4), stride=(3, 2), padding=0)])
def test_conv_transpose2d(options):
    ours = shaken(nn.ConvTranspose2d(6, 5, Stream(0), **options))
    options = {"kernel": 4, "stride": 2, "padding": 1, **options}
    theirs = torch.nn.ConvTranspose2d(6, 5, options.pop("kernel"), **options)
    twins.copy_state(ours, theirs)
    agree(ours, theirs, normals(3, 5, 4, 6))


def test_upsample_and_downsample():
    for ours, theirs in (
        (nn.Upsample(6, 5, Stream(0)), twins.TorchUpsample(6, 5)),
        (nn.Downsample(6, 5, Stream(0)), twins.TorchDownsample(6, 5)),
    ):
        twins.copy_state(shaken(ours), theirs)
        agree(ours, theirs, normals(3, 5, 4, 6))


def test_linear_norms_and_embedding():
    x, images = normals(5, 3, 8), normals(4, 3, 5, 8)
    for ours, theirs, value in (
        (nn.Linear(8, 5, Stream(0)), torch.nn.Linear(8, 5), x),
        (nn.LayerNorm(8), torch.nn.LayerNorm(8), x),
        (nn.RMSNorm(8), torch.nn.RMSNorm(8, eps=1e-6), x),
        (nn.GroupNorm(8, groups=2), torch.nn.GroupNorm(2, 8), images),
        (nn.Embedding(7, 4, Stream(0)), torch.nn.Embedding(7, 4), np.array([3, 6, 0, 3])),
    ):
        twins.copy_state(shaken(ours), theirs)
        agree(ours, theirs, value)


def test_batch_norm_and_its_running_statistics():
    ours, theirs = shaken(nn.BatchNorm(8, momentum=0.3)), torch.nn.BatchNorm2d(8, momentum=0.3)
    theirs.load_state_dict({"weight": torch.from_numpy(ours.gain.copy()), "bias": torch.from_numpy(ours.bias.copy()),
                            "running_mean": torch.zeros(8), "running_var": torch.ones(8)}, strict=False)  # fmt: skip
    for i in range(4):
        x = 1 + 2 * normals(4, 3, 5, 8, seed=i)
        close(ours(x, training=True), theirs(channels_first(x)[1]).permute(0, 2, 3, 1))
    close(ours.mean.value, theirs.running_mean)
    close(ours.var.value, theirs.running_var)
    agree(ours, theirs, x, training=True)
    theirs.load_state_dict({"running_mean": torch.from_numpy(ours.mean.value.copy()),
                            "running_var": torch.from_numpy(ours.var.value.copy())}, strict=False)  # fmt: skip
    theirs.eval().zero_grad()
    agree(ours, theirs, x)


@pytest.mark.parametrize("heads, s", [(1, None), (4, None), (2, 7)])
def test_attention(heads, s):
    """Against scaled_dot_product_attention between products of q, k and v; to a context against MultiheadAttention."""
    x, d_context = normals(3, 5, 16), None if s is None else 6
    ours = shaken(nn.Attention(16, Stream(0), heads=heads, d_context=d_context))
    if s is None:
        theirs = twins.TorchAttention(16, heads)
        twins.copy_state(ours, theirs)
        agree(ours, theirs, x)
        return
    theirs = torch.nn.MultiheadAttention(16, heads, kdim=6, vdim=6, batch_first=True)
    parts = [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_bias.copy_(torch.from_numpy(np.concatenate([part.bias for part in parts])))
        for name, part in zip("qkv", parts, strict=True):
            getattr(theirs, f"{name}_proj_weight").copy_(torch.from_numpy(part.weight.T.copy()))
        theirs.out_proj.weight.copy_(torch.from_numpy(ours.out.weight.T.copy()))
        theirs.out_proj.bias.copy_(torch.from_numpy(ours.out.bias))
    context = normals(3, s, 6, seed=1)
    t = torch.from_numpy(context)
    close(ours(x, context), theirs(torch.from_numpy(x), t, t, need_weights=False)[0])


@pytest.mark.parametrize("options", [
    dict(), dict(d_embedding=6), dict(d_embedding=6, scale_shift=False), dict(d_embedding=6, resample="up"),
    dict(resample="down"),
])  # fmt: skip
@pytest.mark.parametrize("c, o", [(8, 12), (32, 32)])
def test_res_block(c, o, options):
    ours, theirs = shaken(nn.ResBlock(c, o, Stream(0), **options)), twins.TorchResBlock(c, o, **options)
    twins.copy_state(ours, theirs)
    agree(ours, theirs, normals(3, 8, 6, c), *[normals(3, 6, seed=1)] * ("d_embedding" in options))


@pytest.mark.parametrize("size, options", [
    (8, dict(classes=5)),
    (7, dict(channels=(16, 24, 32), scale_shift=True, heads=2, attention=(0, -1))),
    (6, dict(channels=(8, 12), blocks=2, up_blocks=2, out=2, attention=())),
])  # fmt: skip
def test_unet(size, options):
    ours, theirs = shaken(nn.UNet2D(1, Stream(0), **options), 0.03), twins.TorchUNet2D(1, **options)
    twins.copy_state(ours, theirs)
    inputs = [normals(3, size, size, 1), normals(3, seed=1)]
    if "classes" in options:
        inputs.append(np.array([0, 4, 2]))
    agree(ours, theirs, *inputs)
