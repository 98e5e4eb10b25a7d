"""attention where the generated tests do not look: against torch for every head size and awkward lengths, each form of
the bias, keys hidden from everybody, magnitudes, memory, independence of the batch, second derivatives.

Seen to fail: with the running sum not scaled down when the maximum grows; with the diagonal block not masked; with the
stride of a bias that is shared by all heads left at t s; with dq of the second part of the keys not added; with the
zeros of a row that sees no key taken out; with the number of parts counted over the batch.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from generant import ops
from generant.autograd import grad, vjp
from generant.ops import attention

LENGTHS = [(1, 1), (7, 48), (48, 7), (65, 129), (129, 65)]


def heads(n, t, h, d, seed, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((n, t, h, d)).astype(dtype)


def inputs(n, t, s, h, d, e=None, dtype=np.float32):
    return heads(n, t, h, d, 1, dtype), heads(n, s, h, d, 2, dtype), heads(n, s, h, e or d, 3, dtype)


def torchs(torch, q, k, v, bias=None, causal=False, g=None):
    """torch's output in float64, and the gradients of <g, output>."""
    leaves = [torch.tensor(x.astype(float), requires_grad=True) for x in (q, k, v)]
    mask = None
    if bias is not None:
        leaves.append(torch.tensor(bias.astype(float), requires_grad=True))
        mask = leaves[3]
    if causal:
        hidden = torch.full((q.shape[1], k.shape[1]), -np.inf, dtype=torch.float64).triu(1)
        mask = hidden if mask is None else mask + hidden
    out = torch.nn.functional.scaled_dot_product_attention(*[x.transpose(1, 2) for x in leaves[:3]], attn_mask=mask)
    out = out.transpose(1, 2)
    grads = [] if g is None else torch.autograd.grad(out, leaves, torch.tensor(g.astype(float)))
    return out.detach().numpy(), [x.numpy() for x in grads]


def agree(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("d", [1, 8, 40, 64, 96, 128, 256])
def test_it_is_torchs_with_its_gradients(d, causal):
    torch = pytest.importorskip("torch")
    for t, s in LENGTHS:
        q, k, v = inputs(2, t, s, 3, d)
        g = heads(2, t, 3, d, 4)
        want, wanted = torchs(torch, q, k, v, causal=causal, g=g)
        got, pull = vjp(lambda *x: attention(*x, causal=causal), q, k, v)
        agree(got, want, 2e-6)
        for ours, theirs in zip(pull(g), wanted, strict=True):
            agree(ours, theirs, 4e-6)


def test_causal_is_torchs_flag():
    torch = pytest.importorskip("torch")
    q, k, v = inputs(1, 65, 65, 2, 8)
    t = [torch.tensor(x).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*t, is_causal=True).transpose(1, 2)
    agree(attention(q, k, v, causal=True), want.numpy(), 2e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", [(1, 1), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("hidden", [False, True])
def test_every_form_of_the_bias(form, causal, hidden):
    """... and with a third of the keys hidden by -inf, from different queries."""
    torch = pytest.importorskip("torch")
    for t, s in LENGTHS[1:]:
        q, k, v = inputs(2, t, s, 3, 20, 9)
        g, rng = heads(2, t, 3, 9, 4), np.random.default_rng(5)
        bias = rng.standard_normal((*form, t, s)).astype(np.float32)
        if hidden:
            bias[rng.random(bias.shape) < 1 / 3] = -np.inf
            bias[..., 0] = 0  # torch has NaN where nothing is seen
        want, wanted = torchs(torch, q, k, v, bias, causal, g)
        got, pull = vjp(lambda *x: attention(*x, causal=causal), q, k, v, bias)
        agree(got, want, 2e-6)
        for ours, theirs in zip(pull(g), wanted, strict=True):
            agree(ours, theirs, 5e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_query_that_sees_no_key_gives_zero_and_has_no_gradient(dtype):
    q, k, v = inputs(1, 30, 300, 2, 8, dtype=dtype)
    bias = np.zeros((1, 1, 30, 300), dtype)
    bias[0, 0, 4] = -np.inf
    bias[0, 0, 5, :290] = -np.inf  # sees the last keys only, after a block of none
    out, lse = attention.all(q, k, v, bias)
    assert not out[0, 4].any()
    assert (lse[0, :, 4] == -np.inf).all()
    agree(out[0, 5], attention(q[:, 5:6], k[:, 290:], v[:, 290:])[0, 0], 2e-6)
    _, pull = vjp(attention, q, k, v, bias)
    dq, dk, dv, dbias = pull(np.ones_like(out))
    assert np.isfinite(dk).all() and np.isfinite(dv).all() and not dq[0, 4].any() and not dbias[0, 0, 4].any()
    bias[:] = -np.inf
    assert not attention(q, k, v, bias).any()
    assert not attention(q, k[:, :0], v[:, :0]).any()
    assert grad(lambda q: ops.sum(ops.square(grad(lambda q: ops.sum(attention(q, k, v, bias)))(q))))(q).any() == 0


def test_the_log_sum_exp_is_natural():
    q, k, v = inputs(1, 5, 700, 1, 16, dtype=np.float64)
    score = q[0, :, 0] @ k[0, :, 0].T / 4
    np.testing.assert_allclose(attention.all(q, k, v)[1][0, 0], np.log(np.exp(score).sum(1)), rtol=1e-13)


@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4])
def test_no_magnitude_overflows(size):
    """Scores to 1e9: where one key wins, its value is the output; rising scores scale every block before down."""
    q, k, v = inputs(1, 40, 900, 2, 16)
    k = np.sort(k, axis=1)
    wide = np.einsum("nthd,nshd->nhts", q.astype(float) * size, k.astype(float) * size) / 4
    p = np.exp(wide - wide.max(-1, keepdims=True))
    want = np.einsum("nhts,nshd->nthd", p / p.sum(-1, keepdims=True), v)
    got = attention(q * np.float32(size), k * np.float32(size), v)
    assert np.isfinite(got).all()
    agree(got, want, 1e-5 * max(1, size))


def test_a_nan_stays_in_its_row():
    q, k, v = inputs(1, 20, 300, 2, 8)
    q[0, 3, 1, 2] = np.nan
    out = attention(q, k, v)
    assert np.isnan(out[0, 3, 1]).all()
    assert np.isnan(out).sum() == 8
    k[0, 250, 0, 0] = np.nan
    assert np.isnan(attention(q, k, v)[0, :, 0]).all()


@pytest.mark.parametrize("h", [1, 2, 5])
def test_rows_depend_neither_on_the_batch_nor_on_the_threads(h, threads):
    q, k, v = inputs(9, 70, 700, h, 33)  # more blocks of keys than parts
    g = heads(9, 70, h, 33, 4)

    def everything(x, y, z, g):
        out, pull = vjp(attention, x, y, z)
        return [out, *pull(g)]

    threads(1)
    whole = everything(q, k, v, g)
    for n in (1, 2, 4):
        threads(n)
        for a, b in zip(whole, everything(q, k, v, g), strict=True):
            assert a.tobytes() == b.tobytes()
        for i in (0, 8):
            for a, b in zip(whole, everything(*(x[i : i + 1] for x in (q, k, v, g))), strict=True):
                assert a[i].tobytes() == b[0].tobytes()


def test_no_matrix_of_weights_is_formed(native):
    """4000 x 4000 float32 would be 64 MB per head; scratch does not know the batch."""
    q, k, v = inputs(1, 4000, 4000, 1, 8)

    def peak(f):
        f()
        tracemalloc.start()
        try:
            f()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: attention(q, k, v)) < 2e6
    assert peak(lambda: vjp(attention, q, k, v)[1](v)) < 8e6


def test_second_order_is_torchs():
    torch = pytest.importorskip("torch")
    q, k, v = inputs(2, 9, 13, 2, 5, dtype=np.float64)
    bias = heads(1, 2, 9, 13, 7, np.float64)
    w = heads(2, 9, 2, 5, 8, np.float64)

    def penalty(q):
        return ops.sum(ops.square(grad(lambda q: ops.sum(ops.mul(attention(q, k, v, bias, causal=True), w)))(q)))

    x = torch.tensor(q, requires_grad=True)
    score = torch.einsum("nthd,nshd->nhts", x, torch.tensor(k)) / 5**0.5 + torch.tensor(bias)
    p = torch.softmax(score + torch.full((9, 13), -np.inf, dtype=torch.float64).triu(1), -1)
    out = (torch.einsum("nhts,nshe->nthe", p, torch.tensor(v)) * torch.tensor(w)).sum()
    (g,) = torch.autograd.grad(out, x, create_graph=True)
    (want,) = torch.autograd.grad((g**2).sum(), x)
    np.testing.assert_allclose(grad(penalty)(q), want.numpy(), rtol=1e-10, atol=1e-12)


def test_bad_biases_and_scales_are_named():
    q, k, v = inputs(2, 5, 6, 3, 4)
    with pytest.raises(ValueError, match=r"attention: bias must have g = 1 or heads = 3 in its shape .*, got 2"):
        attention(q, k, v, np.zeros((1, 2, 5, 6), np.float32))
    with pytest.raises(ValueError, match=r"attention: bias must have b = 1 or n = 2 in its shape .*, got 3"):
        attention(q, k, v, np.zeros((3, 1, 5, 6), np.float32))
    for scale in (float("nan"), float("inf"), (1.0,)):
        with pytest.raises(ValueError, match="attention: scale must be a finite number or None"):
            attention(q, k, v, scale=scale)
    with pytest.raises(ValueError, match="attention_bwd: need lists 3, the bias, but there is no bias"):
        out, lse = attention.all(q, k, v)
        ops.attention_bwd(out, q, k, v, None, out, lse, need=(3,))
