"""The kernel tests that run under AddressSanitizer and UndefinedBehaviorSanitizer: pytest tests/kernels_asan.py

Every op on every size of its table, in both precisions; then sizes around the edges of tiles and vectors, where a
kernel that reads or writes too far does so. Results are compared elsewhere: here the sanitizer is the judge. Not part
of the ordinary suite (the name does not start with test_), which does all this and more.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from generant import ops

_spec = importlib.util.spec_from_file_location("op_cases", Path(__file__).with_name("test_ops.py"))
assert _spec is not None and _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)

KEY = np.array([5, 6], np.uint64)
EDGES = (1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129)


def exact(*shape, dtype=np.float32, stream=0):
    """Normal numbers in an array that ends where its memory ends, so that one element too far is seen."""
    return np.array(ops.normal(np.array([1, stream], np.uint64), shape=shape, dtype=np.dtype(dtype).name))


@pytest.mark.parametrize("row, dims, attrs, optional, dtype", cases.CASES_BY_DTYPE)
def test_every_op_stays_inside_its_arrays(row, dims, attrs, optional, dtype):
    attrs = cases.call_attrs(row, attrs, dims, dtype)
    arrays = cases.make_arrays(row, dims, dtype, attrs, optional)
    with np.errstate(all="ignore"):
        cases.outputs(row.all, row, arrays, attrs)
        cases.outputs(row, row, arrays, attrs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", EDGES)
def test_matrix_products_around_the_tiles(n, dtype):
    for d, o in ((n, 1), (1, n), (n, n), (33, n), (n, 49), (257, n)):
        x, w, b, g = exact(n, d, dtype=dtype), exact(d, o, dtype=dtype), exact(o, dtype=dtype), exact(n, o, dtype=dtype)
        ops.matmul(x, w)
        ops.matmul_dx(g, w)
        ops.matmul_dw(x, g)
        ops.linear(x, w, b)
        ops.linear_act.all(x, w, b, activation="gelu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", (*EDGES, 1023, 1025, 4097, 16385, 70_001))
def test_rows_and_vectors_of_any_length(n, dtype):
    x, y = exact(n, dtype=dtype), exact(n, dtype=dtype, stream=1)
    for op in (ops.silu, ops.exp, ops.tanh, ops.gelu, ops.sum, ops.mean, ops.max):
        op(x)
    ops.add(x, y)
    ops.uniform(KEY, shape=(n,), dtype=dtype)
    ops.normal(KEY, shape=(n,), dtype=dtype)
    if n < 5000:
        a = exact(3, n, dtype=dtype)
        ops.add(a, x)
        ops.sum(a, axis=0)
        ops.sum(a, axis=1)
        ops.max(exact(n, 3, dtype=dtype), axis=0)
        out, mean, rstd = ops.layer_norm.all(a, x, y)
        ops.layer_norm_bwd.all(out, a, x, y, mean, rstd, need=(0, 1, 2))
        ops.gather(exact(n, 5, dtype=dtype), np.arange(n - 1, -1, -1))
        ops.scatter_add(exact(n, 5, dtype=dtype), np.zeros(n, np.int64), m=1)
    one = np.ones(1)
    ops.adam_(x, y.copy(), y * y, y, np.zeros(1, np.int64), one)
    ops.ema_(x, y, one)
    ops.clip_norm_(x, limit=1.0)
    image, scale = exact(2, n, dtype=dtype), exact(2, dtype=dtype)
    ops.q_sample(image, scale, scale, KEY)
    ops.add_noise(image, image, scale, scale)
    ops.denoising_loss.all(image, image, scale, scale, scale, KEY)
    ops.denoising_loss_bwd(scale, scale, image)
    keys, coef = np.array([[1, 2], [3, 4]], np.uint64), np.linspace(-1, 1, 13)
    for attrs in (dict(clip=1.0), dict(threshold=0.7, threshold_max=2.0), dict(rescale=0.5)):
        ops.sampler_step.all(image, image, image, image, None, image, None, keys, coef, **attrs)
    ops.normals(keys, np.array([0, 5], np.uint64), np.ones(2), shape=(n,), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", EDGES)
def test_pairs_around_the_tiles(n, dtype):
    for d in (1, 2, 3, 16, 17, 64, 65, 300):
        x, y = exact(n, d, dtype=dtype), exact(n + 3, d, dtype=dtype, stream=1)
        u, v, v5 = exact(n, dtype=dtype), exact(n + 3, dtype=dtype), exact(n + 3, 5, dtype=dtype)
        g, g5 = exact(n, 1, dtype=dtype), exact(n, 5, dtype=dtype)
        log_x, log_y = exact(n, dtype="f8"), exact(n + 3, dtype="f8")
        for kernel in ("rbf", "polynomial", "laplacian", "laplace"):
            ops.kernel_sum(x, kernel=kernel)
            ops.kernel_sum(x, y, u, v, kernel=kernel)
            ops.kernel_row_sums(x, kernel=kernel)
            ops.kernel_row_sums(x, y, kernel=kernel)
            ops.kernel_matvec(x, y, v5, kernel=kernel)
            ops.kernel_matvec_dx(x, y, g, v5[:, :1], kernel=kernel)
        ops.kernel_matvec(x, y, v5, log_x, log_y)
        ops.kernel_matvec_dx(x, y, g5, v5, log_x, log_y)
        ops.kernel_matvec_dx_bwd(x, x, y, g5, v5, log_x, log_y, need=(0, 1, 2, 3))
        ops.logsumexp(x, y, log_y, cost="euclidean")
        ops.softmax_matmul.all(x, y, v5, cost="dot")
        ops.knn(x, y, k=min(5, n + 3))
        ops.nearest(x, y, v * v + 1)
        ops.radius_count(x, y, abs(v), abs(u))
        ops.radius_min(x, y, abs(v))
        if n > 1:
            ops.knn(x, k=min(5, n - 1))


@pytest.mark.parametrize("n", EDGES)
def test_bfloat16_products_around_the_tiles(n):
    for d, o in ((n, 1), (1, n), (n, n), (33, n), (n, 49), (513, n)):
        x, w, b, g = exact(n, d), exact(d, o), exact(o), exact(n, o)
        ops.matmul(x, w, precision="bf16")
        ops.matmul_dx(g, w, precision="bf16")
        ops.matmul_dw(x, g, precision="bf16")
        ops.linear_act.all(x, w, b, activation="gelu", precision="bf16")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", (*EDGES, 8191, 8193))
def test_losses_around_vectors_and_blocks(n, dtype):
    one, labels = exact(1, dtype=dtype).reshape(()), np.arange(3) % n
    for shape in ((n,), (n, 1), (3, n), (n, 3)):
        x, y, weight = exact(*shape, dtype=dtype), exact(*shape, dtype=dtype, stream=1), exact(shape[0], dtype=dtype)
        for w in (None, weight):
            for loss, backward in ((ops.mse, ops.mse_bwd), (ops.bce_with_logits, ops.bce_with_logits_bwd)):
                loss(x, y, w)
                backward(one, x, y, w, need=(0, 1, 2))
        ops.gaussian_kl(x, y, y, x)
        ops.gaussian_kl_bwd(weight, x, y, y, x, need=(0, 1, 2, 3))
    logits = exact(3, n, dtype=dtype)
    _, shift, total = ops.cross_entropy.all(logits, labels, label_smoothing=0.1)
    ops.cross_entropy_bwd(one, logits, labels, None, shift, total, need=(0, 2), label_smoothing=0.1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", EDGES)
def test_attention_and_softmax_around_the_panels(n, dtype):
    for t, s, d, e in ((n, 5, 3, 9), (5, n, 9, 3), (n, n, 8, 8), (7, 133, n, 1), (7, 133, 1, n)):
        q, k, v = exact(2, t, 3, d, dtype=dtype), exact(2, s, 3, d, dtype=dtype), exact(2, s, 3, e, dtype=dtype)
        for causal in (False, True):
            for bias in (None, exact(1, 3, t, s, dtype=dtype), exact(2, 1, t, s, dtype=dtype)):
                out, lse = ops.attention.all(q, k, v, bias, causal=causal)
                need = (0, 1, 2) if bias is None else (0, 1, 2, 3)
                ops.attention_bwd(out, q, k, v, bias, out, lse, causal=causal, need=need)
                if dtype == "float32":
                    ops.attention(q, k, v, bias, causal=causal, precision="bf16")
    for x, axis in ((exact(3, n, dtype=dtype), 1), (exact(n, 3, dtype=dtype), 0), (exact(3, n, dtype=dtype), 0)):
        for op in (ops.softmax, ops.log_softmax):
            op(x, axis=axis)
        for op in (ops.softmax_bwd, ops.log_softmax_bwd):
            op(x, x, axis=axis)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", EDGES)
def test_images_around_the_vectors(n, dtype):
    for x in (exact(2, 5, 6, n, dtype=dtype), exact(1, n, 5, 3, dtype=dtype), exact(1, 5, n, 2, dtype=dtype)):
        _, h, w, _ = x.shape
        for attrs in (dict(window=1), dict(window=3, stride=1, padding=1), dict(window=2, padding=1)):
            y, index = ops.max_pool.all(x, **attrs)
            ops.max_pool_bwd(y, index, size=(h, w), **attrs)
            ops.max_pool_at(x, index, **attrs)
            ops.avg_pool_bwd(ops.avg_pool(x, **attrs), size=(h, w), **attrs)
        for mode in ("nearest", "bilinear"):
            ops.resize_bwd(ops.resize(x, size=(2 * h, w + 1), mode=mode), size=(h, w), mode=mode)
        ops.pad_bwd(ops.pad(x, padding=(2, 1, -1, 0), mode="replicate"), size=(h, w), padding=(2, 1, -1, 0),
                    mode="replicate")
        for f in (exact(4, 3, dtype=dtype), np.ones((3, 6), dtype)):
            y = ops.upfirdn2d(x, f, up=2, down=(1, 3), padding=3)
            ops.upfirdn2d_df(x, y, size=f.shape, up=2, down=(1, 3), padding=3)
    x, w = exact(2, 5, 3, n, dtype=dtype), exact(3, 3, n, 7, dtype=dtype)
    y = ops.upsample_conv2d(x, w)
    ops.upsample_conv2d_dx(y, w)
    ops.upsample_conv2d_dw(x, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", EDGES)
def test_channels_and_pixels_around_the_tiles(n, dtype):
    cases = [  # (size), c, (kernel), o, attributes
        ((3, n), 2, (3, 3), n, dict(padding=1)),
        ((2, n), n, (1, 3), 3, dict(padding=(0, 0, 1, 1), stride=2)),
        ((5, 4), n, (3, 3), n, dict(padding=1, groups=n)),
        ((4, 5), n, (2, 2), n, dict(padding=1, groups=n, stride=2)),
        ((4, n + 3), 8, (4, 4), 5, dict(padding=1, stride=2, algorithm="gemm")),
    ]
    for (h, w), c, kernel, o, a in cases:
        x, f = exact(2, h, w, c, dtype=dtype), exact(*kernel, c // a.get("groups", 1), o, dtype=dtype)
        y = ops.conv2d_act.all(x, f, exact(o, dtype=dtype), None, **a)[0]
        ops.conv2d_act(x, f, None, y.copy(), activation="identity", **a)
        ops.conv2d_dx(y.copy(), f, size=(h, w), **a)
        ops.conv2d_dw(x, y.copy(), kernel=kernel, **a)


@pytest.mark.parametrize("n", EDGES)
def test_bfloat16_convolutions_around_the_tiles(n):
    cases = [  # (size), c, (kernel), o, attributes
        ((3, 5), n, (1, 1), 3, {}),
        ((2, 3), 128, (1, 1), 128 + n, {}),
        ((3, n), 3, (3, 3), n, dict(padding=1)),
        ((2, n), n, (1, 3), 5, dict(padding=(0, 0, 1, 1), stride=2)),
        ((5, 4), 3 * n, (3, 3), 2 * 3, dict(padding=1, groups=3)),
        ((5, 4), n, (3, 3), n, dict(padding=1, groups=n)),
    ]
    for (h, w), c, kernel, o, a in cases:
        x, f = exact(2, h, w, c), exact(*kernel, c // a.get("groups", 1), o)
        y = ops.conv2d_act.all(x, f, exact(o), None, precision="bf16", **a)[0]
        ops.conv2d_act(x, f, None, y.copy(), activation="identity", precision="bf16", **a)
        ops.conv2d_dx(y.copy(), f, size=(h, w), precision="bf16", **a)
        ops.conv2d_dw(x, y.copy(), kernel=kernel, precision="bf16", **a)


@pytest.mark.parametrize("n", EDGES)
def test_winograd_around_the_tiles(n):
    wide = min(n, 65)
    for (h, w), c, o, kernel in (((3, n), 2, 5, 3), ((n, 4), 5, 2, 3), ((5, 6), wide, 3, 3), ((5, 6), 3, wide, 3),
                                 ((4, n + 3), 3, 5, 4), ((6, 5), wide, wide, 4)):  # fmt: skip
        x, f, b = exact(2, h, w, c), exact(kernel, kernel, c, o), exact(o)
        for algorithm in ("winograd4", "winograd2"):
            a = dict(padding=(1, 2, 0, 3), stride=kernel - 2, algorithm=algorithm)
            y = ops.conv2d_act.all(x, f, b, None, **a)[0]
            ops.conv2d_act(x, f, None, y.copy(), activation="identity", **a)
            ops.conv2d_dx(y.copy(), f, size=(h, w), **a)
            ops.conv2d_dw(x, y.copy(), kernel=(kernel, kernel), **a)
            if kernel == 3 or algorithm == "winograd4":
                u = ops.winograd_filter(f, padding=(1, 2, 0, 3), algorithm=algorithm)
                ops.winograd_conv2d(x, u.copy(), b, y.copy(), o=o, padding=(1, 2, 0, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", EDGES)
def test_normalisation_around_the_vectors(n, dtype):
    for shape, groups in (((2, 3, n), 1), ((1, n, 8), 2), ((3, 2, n), n)):
        x, gain, bias = exact(*shape, dtype=dtype), exact(shape[-1], dtype=dtype), exact(shape[-1], dtype=dtype)
        scale = exact(shape[0], shape[-1], dtype=dtype)
        y, mean, rstd = ops.group_norm.all(x, gain, bias, scale, scale, groups=groups, activation="silu")
        ops.group_norm_bwd(y, x, gain, bias, scale, scale, mean, rstd, need=(0, 1, 2, 3, 4), groups=groups,
                           activation="silu")  # fmt: skip
        ops.batch_norm.all(x, gain, bias)
        ops.rms_norm(x, gain)
    for (h, w), c, o, groups in (((3, n), 4, 5, 2), ((4, 5), min(n, 65), 24, 1), ((4, 5), 32, min(n, 65), 8)):
        x, gain, bias, scale = (exact(*s, dtype=dtype) for s in ((2, h, w, c), (c,), (c,), (2, c)))
        f, b, residual = exact(3, 3, c, o, dtype=dtype), exact(o, dtype=dtype), exact(2, h, w, o, dtype=dtype)
        ops.group_norm_conv2d(x, gain, bias, scale, scale, f, b, residual, groups=groups)
        ops.group_norm_conv2d(x, gain, bias, None, None, f, None, None, groups=groups)
