"""softmax and log_softmax where the generated tests do not look: against torch on every axis, rows of -inf, magnitudes,
NaN, bad axes.

Seen to fail: with the tail of a row summed without its mask; with the maximum of a row taken over its full
vectors only.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant.autograd import vjp
from generant.ops import log_softmax, softmax

OPS = [softmax, log_softmax]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 33, 5), (4, 3, 65), (5, 1, 1025), (2, 3, 4, 9)])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 3e-6), (np.float64, 1e-14)])
def test_it_is_torchs_on_every_axis(op, shape, dtype, tolerance):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    x, g = (3 * rng.standard_normal(shape).astype(dtype) for _ in range(2))
    for axis in range(-len(shape), len(shape)):
        t = torch.tensor(x.astype(float), requires_grad=True)
        want = getattr(torch, op.name)(t, axis)
        want.backward(torch.tensor(g.astype(float)))
        got, pull = vjp(lambda x: op(x, axis=axis), x)
        size = max(1, np.abs(want.detach().numpy()).max())
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=0, atol=tolerance * size)
        slope = t.grad.numpy()
        np.testing.assert_allclose(pull(g)[0], slope, rtol=0, atol=tolerance * 10 * max(1, np.abs(slope).max()))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_entries_and_masked_rows(axis, dtype):
    """-inf gives exactly 0, and a row of nothing else zeros, not NaN; its logarithm is -inf."""
    x = np.random.default_rng(0).standard_normal((19, 19)).astype(dtype)
    x[3, 5] = -np.inf
    x[(slice(None), 7) if axis == 0 else 7] = -np.inf
    y, z = softmax(x, axis=axis), log_softmax(x, axis=axis)
    assert y[3, 5] == 0 and z[3, 5] == -np.inf
    rows = y.sum(axis)
    assert rows[7] == 0
    np.testing.assert_allclose(np.delete(rows, 7), 1, rtol=1e-6)
    assert (np.take(z, 7, 1 - axis) == -np.inf).all()
    np.testing.assert_allclose(np.exp(z), y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1])
def test_magnitudes_and_nan(axis):
    x = np.array([[1e30, -1e30], [3e38, 3e38]], np.float32)
    np.testing.assert_array_equal(softmax(x), [[1, 0], [0.5, 0.5]])
    assert np.isfinite(log_softmax(x)).all()
    x = np.zeros((12, 12), np.float32)
    x[2, 2] = np.nan
    for op in OPS:
        bad = np.isnan(op(x, axis=axis))
        assert np.take(bad, 2, 1 - axis).all() and bad.sum() == 12


def test_nothing_and_bad_axes():
    assert softmax(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert log_softmax(np.zeros((0, 3), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"softmax: axis must be from -2 to 1 for shape \(2, 3\), got 2"):
        softmax(np.zeros((2, 3)), axis=2)
