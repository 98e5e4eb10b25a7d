"""Batch and RMS normalisation beyond the generated tests: against torch, running statistics, far from zero.
"""

from __future__ import annotations

import numpy as np
import pytest

import generant
from generant import grad, ops


def inputs(shape, seed=0):
    rng = np.random.default_rng(seed)
    c = shape[-1]
    return [rng.standard_normal(s).astype(np.float32) for s in (shape, shape, (c,), (c,))]


@pytest.mark.parametrize("shape", [(5, 3), (4, 9, 7, 12), (3001, 33), (2, 64, 64, 8)])
def test_training_step_agrees_with_torch(shape):
    """Output, gradients, and running statistics with the unbiased variance."""
    torch = pytest.importorskip("torch")
    x, g, gain, bias = inputs(shape)
    c, count = shape[-1], int(np.prod(shape[:-1]))
    y, mean, rstd = ops.batch_norm.all(x, gain, bias)
    running_mean, running_var = np.full(c, 0.5, np.float32), np.full(c, 2.0, np.float32)
    t_mean, t_var = torch.full((c,), 0.5).double(), torch.full((c,), 2.0).double()
    ops.batch_norm_update_(running_mean, running_var, mean, rstd, count=count, momentum=0.3)
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, gain, bias)]
    flat = leaves[0].reshape(count, c)
    ty = torch.nn.functional.batch_norm(flat, t_mean, t_var, *leaves[1:], training=True, momentum=0.3).reshape(shape)
    grads = torch.autograd.grad(ty, leaves, torch.tensor(g, dtype=torch.float64))
    ours = ops.batch_norm_bwd.all(g, x, gain, bias, mean, rstd, need=(0, 1, 2))
    for a, b in zip((y, *ours, running_mean, running_var), (ty.detach(), *grads, t_mean, t_var), strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6 * float(abs(b).max()))
    want = (x - running_mean.astype("f8")) / np.sqrt(running_var.astype("f8") + 1e-5) * gain + bias
    np.testing.assert_allclose(ops.batch_norm_apply(x, gain, bias, running_mean, running_var), want, atol=1e-5)


def test_means_far_from_zero():
    x = (np.random.default_rng(0).standard_normal((5000, 7)) + 1e3).astype(np.float32)
    one, zero = np.ones(7, np.float32), np.zeros(7, np.float32)
    wide = x.astype(np.float64)
    y = ops.batch_norm(x, one, zero)
    np.testing.assert_allclose(y, (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), atol=3e-6)
    # the mean itself is only kept to float32's 3e-5 at 1000
    given = ops.batch_norm_apply(x, one, zero, wide.mean(0).astype("f4"), wide.var(0).astype("f4"))
    np.testing.assert_allclose(given, y, atol=1e-4)


def test_same_bits_for_any_thread_count():
    x, g, gain, bias = inputs((9001, 24))
    threads, results = generant.get_num_threads(), []
    try:
        for k in (1, 2, 3):
            generant.set_num_threads(k)
            y, mean, rstd = ops.batch_norm.all(x, gain, bias)
            results.append((y, mean, rstd, *ops.batch_norm_bwd.all(g, x, gain, bias, mean, rstd, need=(0, 1, 2))))
    finally:
        generant.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_a_batch_of_one_row_has_no_unbiased_variance():
    v = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="batch_norm_update_: count is 1"):
        ops.batch_norm_update_(v, v.copy(), v, v, count=1)


@pytest.mark.parametrize("shape", [(3, 1), (4, 5, 37), (500, 128)])
def test_rms_norm_agrees_with_torch(shape):
    torch = pytest.importorskip("torch")
    x, g, gain, _ = inputs(shape)
    leaves = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (x, gain)]
    y = torch.nn.functional.rms_norm(leaves[0], shape[-1:], leaves[1], 1e-6)
    theirs = torch.autograd.grad(y, leaves, torch.tensor(g, dtype=torch.float64))
    np.testing.assert_allclose(ops.rms_norm(x, gain), y.detach().numpy(), atol=4e-6)
    dx = grad(lambda x: ops.sum(ops.rms_norm(x, gain) * g))(x)
    dgain = grad(lambda gain: ops.sum(ops.rms_norm(x, gain) * g))(gain)
    for a, b in zip((dx, dgain), theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=4e-6 * max(1.0, float(abs(b).max())))
