"""The convolution of a normalised image against its parts, whose bits it has.

Seen to fail: with shift left out of the affine map, with the rows under a row of tiles kept although the sample
changed, with du in the place of u in the rule.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import ops, vjp

SHAPES = [(1, 16, 16, 32, 48, 8), (3, 9, 13, 40, 24, 5), (5, 4, 4, 24, 33, 24), (2, 6, 5, 160, 32, 32),
          (4, 5, 3, 7, 3, 1)]  # fmt: skip


def problem(n, h, w, c, o, groups, modulated=True):
    rng = np.random.default_rng(n + c)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x = normal(n, h, w, c) * 3 + 5
    arrays = [x, normal(c), normal(c), normal(n, c) * 0.3 if modulated else None, normal(n, c) if modulated else None,
              normal(3, 3, c, o) / np.float32(3 * np.sqrt(c)), normal(o), normal(n, h, w, o)]
    return arrays, dict(groups=groups)


def parts(x, gain, bias, scale, shift, w, b, residual, *, groups, activation="silu"):
    u = ops.group_norm(x, gain, bias, scale, shift, groups=groups, activation=activation)
    return ops.conv2d_act(u, w, b, residual, activation="identity", padding=(1, 1, 1, 1))


@pytest.mark.parametrize("activation", ["silu", "identity"])
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_parts(shape, modulated, activation, native):
    arrays, attrs = problem(*shape, modulated)
    fused = ops.group_norm_conv2d(*arrays, activation=activation, **attrs)
    apart = parts(*arrays, activation=activation, **attrs)
    scale = np.sqrt(np.mean(apart**2))
    if shape[3] >= 24:  # by Winograd's algorithm
        assert fused.tobytes() == apart.tobytes()
    assert np.abs(fused - apart).max() <= 3e-6 * scale  # else the sums are cut into chains at other places
    without = ops.group_norm_conv2d(*arrays[:6], activation=activation, **attrs)
    np.testing.assert_allclose(without + arrays[6] + arrays[7], fused, atol=1e-4 * scale)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_its_gradients_are_those_of_its_parts(shape):
    arrays, attrs = problem(*shape)
    fused, pull = vjp(lambda *a: ops.group_norm_conv2d(*a, **attrs), *arrays)
    _, pull_parts = vjp(lambda *a: parts(*a, **attrs), *arrays)
    g = np.random.default_rng(7).standard_normal(fused.shape).astype(np.float32)
    for ours, theirs in zip(pull(g), pull_parts(g), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_a_sample_does_not_depend_on_its_batch_or_on_threads(threads):
    (x, gain, bias, scale, shift, w, b, residual), attrs = problem(6, 10, 9, 32, 24, 4)
    wanted = ops.group_norm_conv2d(x, gain, bias, scale, shift, w, b, residual, **attrs)
    for n in (1, 2, 3):
        threads(n)
        for _ in range(50):  # workers with a sample each, at the same time
            whole = ops.group_norm_conv2d(x, gain, bias, scale, shift, w, b, residual, **attrs)
            assert whole.tobytes() == wanted.tobytes()
        for i in range(6):
            s = slice(i, i + 1)
            one = ops.group_norm_conv2d(x[s], gain, bias, scale[s], shift[s], w, b, residual[s], **attrs)
            assert one.tobytes() == wanted[s].tobytes()


def test_what_does_not_fit_is_named():
    arrays, _ = problem(*SHAPES[0])
    with pytest.raises(ValueError, match="group_norm_conv2d: groups is 5, wanted a divisor of the 32 channels"):
        ops.group_norm_conv2d(*arrays, groups=5)
    arrays[5] = arrays[5][:2]
    with pytest.raises(ValueError, match=r"group_norm_conv2d: w must have shape \(3 3 c o\), got \(2"):
        ops.group_norm_conv2d(*arrays, groups=8)
