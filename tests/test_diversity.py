"""Watching for mode collapse: both figures where they are known, the rule of the warning, the count of modes.

Seen to fail: with recall and precision exchanged, with the warning after one bad measurement, with a low recall counted
from the start, with samples counted at any distance.
"""

from __future__ import annotations

import numpy as np
import pytest

from generant.models.diversity import Diversity, collapse_warning, modes_found

pytestmark = pytest.mark.once


def normals(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_the_same_distribution_has_both_near_one():
    found = Diversity(normals(800, 2, 0)).measure(normals(900, 2, 1))
    assert found["recall"] > 0.9 and 0.85 < found["diversity"] < 1.15


def test_a_generator_that_repeats_itself_has_no_diversity():
    x = np.repeat(normals(50, 2, 1), 8, axis=0)
    assert Diversity(normals(400, 2, 0)).measure(x)["diversity"] == 0


def test_a_dropped_half_halves_recall():
    x = normals(400, 2, 1)
    x[:, 0] = abs(x[:, 0])
    found = Diversity(normals(400, 2, 0)).measure(x)
    assert 0.4 < found["recall"] < 0.65 and found["diversity"] < 0.9


def test_samples_that_cover_more_than_the_data_are_not_short_of_recall():
    x = 3 * normals(400, 2, 1)
    assert Diversity(normals(400, 2, 0), k=3).measure(x)["recall"] > 0.9


def test_images_of_any_number_are_compared_with_as_many_rows_of_data():
    reference, samples = normals(3000, 16, 0).reshape(-1, 4, 4), normals(40, 16, 1).reshape(-1, 4, 4)
    found = Diversity(reference).measure(samples)
    assert 0.8 < found["diversity"] < 1.2
    np.testing.assert_equal(Diversity(reference.astype(float)).measure(samples).keys(), found.keys())
    assert len(Diversity(reference, rows=100).reference) == 100


def test_copies_in_the_data_do_not_make_a_distance_of_zero():
    found = Diversity(np.repeat(normals(20, 2, 0), 3, axis=0)).measure(normals(60, 2, 1))
    assert 0 < found["diversity"] < np.inf


def history(*pairs):
    return [{"recall": r, "diversity": d} for r, d in pairs]


@pytest.mark.parametrize(
    "pairs, warned",
    [
        ([(0.9, 1.0)], None),
        ([(0.9, 1.0), (0.9, 0.4)], None),
        ([(0.9, 1.0), (0.9, 0.4), (0.9, 0.45)], "nearest-neighbour distance of samples is 0.45"),
        ([(0.9, 1.0), (0.9, 0.4), (0.9, 0.6)], None),
        ([(0.9, 1.0), (0.9, 0.4), (0.9, 0.4), (0.9, 0.9)], None),
        ([(0.0, 1.0)] * 4, None),
        ([(0.0, 1.0)] * 5, "samples reach 0 % of the data"),
        ([(0.5, 1.0)] * 4 + [(0.05, 1.0)], None),
        ([(0.5, 1.0)] * 4 + [(0.05, 1.0), (0.08, 1.0)], "samples reach 8 % of the data"),
        ([], None),
    ],
)
def test_the_rule_of_the_warning(pairs, warned):
    found = collapse_warning(history(*pairs))
    assert found is None if warned is None else warned in found and found.startswith("mode collapse: ")


def test_modes_are_counted_by_samples_near_them():
    centres = np.array([[x, y] for x in (-4, 0, 4) for y in (-4, 0, 4)], float)
    rng = np.random.default_rng(0)
    x = np.concatenate([c + 0.05 * rng.standard_normal((30, 2)) for c in centres[:5]])
    x = np.concatenate([x, centres[5] + 0.01 * rng.standard_normal((19, 2)), np.tile([3.0, 0.0], (31, 1))])
    modes, near = modes_found(x, centres, 0.05)
    assert modes == 5
    assert abs(near - 169 / 200) < 0.02
    assert modes_found(x, centres, 0.05, at_least=1)[0] == 6
    assert modes_found(x.astype(np.float32), centres, 0.05, within=1e3) == (6, 1.0)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"Diversity: reference must have at least k . 1 = 6 distinct rows"):
        Diversity(np.ones((50, 2)))
    with pytest.raises(ValueError, match=r"Diversity: reference must be finite"):
        Diversity(np.full((50, 2), np.nan))
    watch = Diversity(normals(50, 2, 0))
    with pytest.raises(ValueError, match=r"Diversity.measure: samples have 3 features, the reference has 2"):
        watch.measure(normals(50, 3, 0))
    with pytest.raises(ValueError, match=r"Diversity.measure: samples must have at least k . 1 = 6 rows, got 4"):
        watch.measure(normals(4, 2, 0))
    with pytest.raises(ValueError, match=r"modes_found: samples \(n, d\) and centres \(m, d\), got shapes"):
        modes_found(normals(4, 2, 0), normals(4, 3, 0), 0.1)


def test_data_in_clusters_are_no_reason_to_warn():
    """A generator begins more diverse than clustered data are: only what falls below the data's own counts."""
    fallen = [{"recall": 1.0, "diversity": d} for d in (6.4, 2.8, 1.3, 0.9, 0.8)]
    assert collapse_warning(fallen) is None
    assert "mode collapse" in str(collapse_warning([*fallen, *fallen[:1], *[{"recall": 1.0, "diversity": 0.4}] * 2]))
