"""split and concatenate: several arrays along an axis, by the ops for two.

Seen to fail: with the pieces in reverse order, with all arrays but the first left out, with the checks taken out.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant import grad, ops


def test_split_undoes_concatenate():
    rng = np.random.default_rng(0)
    for axis, count in ((0, 1), (1, 2), (2, 3), (-1, 4), (-2, 7)):
        parts = []
        for i in range(count):
            shape = [2, 3, 4]
            shape[axis] = i + 1
            parts.append(rng.standard_normal(shape))
        whole = ops.concatenate(*parts, axis=axis)
        np.testing.assert_array_equal(whole, np.concatenate(parts, axis))
        again = ops.split(whole, sizes=tuple(p.shape[axis] for p in parts), axis=axis)
        assert len(again) == count
        for a, b in zip(again, parts, strict=True):
            np.testing.assert_array_equal(a, b)


def test_sections_are_equal():
    x = np.arange(24.0).reshape(2, 12)
    for a, b in zip(ops.split(x, sections=3), np.split(x, 3, -1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_they_are_differentiable():
    x = np.arange(12.0).reshape(2, 6)

    def f(x):
        a, b, c = ops.split(x, sizes=(1, 2, 3))
        return ops.sum(ops.square(ops.concatenate(c, a, b, b)))

    np.testing.assert_allclose(grad(f)(x), 2 * x * np.array([1, 2, 2, 1, 1, 1]))


@pytest.mark.parametrize("wrong", [dict(), dict(sizes=(1, 2)), dict(sizes=(7, -1)), dict(sections=4), dict(sections=0),
                                   dict(sizes=(6,), sections=1), dict(sections=2, axis=2)])
def test_pieces_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="split: "):
        ops.split(np.zeros((2, 6)), **wrong)


def test_nothing_to_concatenate_is_refused():
    with pytest.raises(ValueError, match="concatenate: got no arrays"):
        ops.concatenate()
