"""evaluate and its command: the values of the single metrics, their error bars, what is read, written and refused.

Seen to fail: with a metric left out of the help; with fractions of 0 given no error; with a standard deviation in place
of a standard error; with the seed left out; with the neighbour search of real made twice; with skipped metrics raised;
with pickles allowed; with pixels not scaled, 16 bit ones by 255; with shapes of images or rows not compared; with
images in another order.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import generant
from generant import io, metrics
from generant.cli import main
from generant.metrics import evaluate

REAL, FAKE, TRAIN = (
    (np.random.default_rng(seed).standard_normal((n, 6)) + shift).astype(np.float32)
    for seed, n, shift in ((0, 150, 0.0), (1, 120, 0.2), (2, 180, 0.0))
)
DEFAULT = ["fd", "kid", "mind", "precision", "recall", "density", "coverage", "vendi"]
WITH_TRAIN = ["authenticity", "memorised_fraction", "nearest_train_ratio", "ct"]


@pytest.fixture(scope="module")
def everything():
    return evaluate(REAL, FAKE, TRAIN, metrics="all")


# ---- values ----


def test_values_are_those_of_the_single_metrics(everything):
    one = {
        "fd": metrics.frechet_distance(REAL, FAKE),
        "kid": metrics.kid(REAL, FAKE, subsets=None).mean,
        "cmmd": metrics.cmmd(REAL, FAKE, normalize=True),
        "energy": metrics.energy_distance(REAL, FAKE),
        "sinkhorn": metrics.sinkhorn_divergence(REAL, FAKE),
        **metrics.prdc(REAL, FAKE),
        "realism": np.median(metrics.realism(REAL, FAKE, k=5)),
        "rarity": np.nanmean(metrics.rarity(REAL, FAKE, k=5).astype(np.float64)),
        "vendi": metrics.vendi_score(FAKE),
        "authenticity": metrics.authenticity(FAKE, TRAIN),
        "memorised_fraction": metrics.memorised_fraction(FAKE, TRAIN),
        "nearest_train_ratio": metrics.nearest_train_ratio(REAL, FAKE, TRAIN),
        "mifid": metrics.mifid(REAL, FAKE, TRAIN),
    }
    for name, want in one.items():
        assert everything[name] == pytest.approx(float(want), rel=1e-12), name
    drawn = {"mind": metrics.mind, "sliced_wasserstein": metrics.sliced_wasserstein, "mmd2": metrics.mmd2}
    for name, metric in drawn.items():
        assert everything[name] == pytest.approx(metric(REAL, FAKE), rel=0.1), name
    assert abs(everything["fld"] - metrics.fld(REAL, FAKE, TRAIN)) < 5
    assert everything.settings == {
        "n_real": 150, "n_fake": 120, "dimensions": 6, "n_train": 180, "k": 5, "ties": "strict", "random_state": 0,
    }  # fmt: skip
    assert not everything.skipped and set(everything.seconds) == set(everything)
    assert all(type(value) is float for value in everything.values())


def test_a_value_does_not_depend_on_the_other_metrics_nor_on_chance(everything):
    some = evaluate(REAL, FAKE, TRAIN, metrics=["ct", "prdc", "mind", "nearest_train_ratio"])
    assert list(some) == ["ct", "precision", "recall", "density", "coverage", "mind", "nearest_train_ratio"]
    for name, value in some.items():
        assert value == everything[name] and some.errors.get(name) == everything.errors.get(name)
    other = evaluate(REAL, FAKE, metrics="mind", random_state=1)
    assert list(other) == ["mind"] and other["mind"] != everything["mind"]


def test_the_default_sets():
    assert list(evaluate(REAL, FAKE)) == DEFAULT
    assert list(evaluate(REAL, FAKE, TRAIN)) == DEFAULT + WITH_TRAIN
    assert "fld" not in evaluate(REAL, FAKE, metrics="all")


def test_k_and_ties_reach_the_metrics():
    real, fake = np.round(REAL[:, :2] * 2), np.round(FAKE[:, :2] * 2)  # a grid: rims matter
    for k, ties in ((3, "strict"), (3, "closed"), (7, "closed")):
        want = metrics.prdc(real, fake, k=k, ties=ties)
        assert evaluate(real, fake, metrics="prdc", k=k, ties=ties) == pytest.approx(want, rel=1e-12)
        got = evaluate(real, fake, metrics=["rarity"], k=k, ties=ties)["rarity"]
        assert got == pytest.approx(np.nanmean(metrics.rarity(real, fake, k=k, ties=ties)), rel=1e-6)


def test_passes_over_pairs_are_shared(monkeypatch):
    calls = []
    module = sys.modules["generant.metrics.evaluate"]
    plain_knn, plain_count = module.knn, metrics.neighbours.radius_count

    def knn(x, y=None, *, k=5):
        calls.append(("knn", len(x), None if y is None else len(y)))
        return plain_knn(x, y, k=k)

    def radius_count(x, y, *radii, closed):
        calls.append(("radius_count", len(x), len(y)))
        return plain_count(x, y, *radii, closed=closed)

    monkeypatch.setattr(module, "knn", knn)
    monkeypatch.setattr(metrics.neighbours, "radius_count", radius_count)
    names = ["prdc", "realism", "rarity", "authenticity", "memorised_fraction", "nearest_train_ratio"]
    evaluate(REAL, FAKE, TRAIN, metrics=names)
    assert sorted(calls, key=str) == sorted(
        [
            ("knn", 150, None), ("knn", 120, None), ("radius_count", 120, 150),
            ("knn", 120, 180), ("knn", 180, None), ("knn", 150, 180),
        ],
        key=str,
    )  # fmt: skip


# ---- error bars ----


def test_error_bars_are_the_spread_over_samples():
    """Over fresh samples of the same model the fractions spread about as much as one sample says they do."""
    rng = np.random.default_rng(3)
    real, train = rng.standard_normal((400, 3)), rng.standard_normal((300, 3))
    found = [evaluate(real, rng.standard_normal((150, 3)) + 0.8, train, metrics=NAMES) for _ in range(40)]
    for name in NAMES:
        spread = np.std([f[name] for f in found], ddof=1)
        said = np.mean([f.errors[name] for f in found])
        assert 0.6 < spread / said < 1.7, (name, spread, said)


NAMES = ["precision", "density", "authenticity"]


def test_a_fraction_of_0_or_1_still_has_an_error():
    found = evaluate(REAL, REAL + 100, REAL, metrics=["precision", "coverage", "authenticity"])
    assert found["precision"] == found["coverage"] == 0 and found["authenticity"] == 1
    assert all(0 < found.errors[name] < 0.02 for name in found)


# ---- results ----


def test_the_table_and_the_dict(everything):
    lines = str(everything).splitlines()
    assert lines[0].split() == ["metric", "value", "std.", "error"] and set(lines[1]) == {"-"}
    assert [line.split()[0] for line in lines[2:]] == list(everything)
    assert f"{everything['fd']:.5g}" in lines[2 + list(everything).index("fd")]
    density = lines[2 + list(everything).index("density")].split()
    assert density[2] == f"{everything.errors['density']:.3f}"  # two digits of the error, and the value as far
    assert density[1] == f"{everything['density']:.3f}"
    plain = json.loads(json.dumps(everything.to_dict(), allow_nan=False))
    assert plain["metrics"]["density"] == {
        "value": everything["density"], "standard_error": everything.errors["density"],
    }  # fmt: skip
    assert plain["metrics"]["fd"]["standard_error"] is None
    far = evaluate(REAL, REAL + 100, metrics="rarity")
    assert np.isnan(far["rarity"]) and far.to_dict()["metrics"]["rarity"]["value"] is None


def test_progress_is_reported():
    seen = []
    evaluate(REAL, FAKE, metrics="prdc", progress=lambda *what: seen.append(what))
    names = ["precision", "recall", "density", "coverage", ""]
    assert seen == [(name, done, 4) for done, name in enumerate(names)]


@pytest.mark.filterwarnings("ignore:frechet_distance")
def test_few_rows_skip_what_cannot_be_said():
    found = evaluate(REAL[:4], FAKE[:3])
    assert list(found.skipped) == ["precision", "recall", "density", "coverage"]
    assert "k must be below 4, the rows of real, got 5" in found.skipped["recall"]
    assert "left out: precision, recall, density, coverage (" in str(found)
    with pytest.raises(ValueError, match="k must be below 4, the rows of real, got 5"):
        evaluate(REAL[:4], FAKE[:3], metrics="recall")
    for metrics_of in (None, "all"):
        alone = evaluate(REAL[:1], FAKE[:1], TRAIN[:1], metrics=metrics_of)
        assert "vendi" in alone and {"fd", "kid", "authenticity"} <= set(alone.skipped)
    with pytest.raises(ValueError, match=r"fd|frechet_distance"):
        evaluate(REAL[:1], FAKE[:1], metrics=["all", "fd"])


def test_all_equal_points():
    same = np.ones((40, 3))
    found = evaluate(same, same, same)
    assert found["precision"] == found["coverage"] == 0 and found["memorised_fraction"] == 1
    assert found["kid"] == found["fd"] == found["mind"] == found.errors["kid"] == 0
    assert found["vendi"] == pytest.approx(1)


@pytest.mark.parametrize("dtype", ["i4", "u1", "f2", "f4", "f8"])
def test_whatever_numpy_reads(dtype):
    rng = np.random.default_rng(5)
    x, y = (rng.integers(0, 9, (n, 8)).astype(dtype) for n in (60, 50))
    want = evaluate(x.astype(np.float64), y.astype(np.float64))
    y.flags.writeable = False
    got = evaluate(np.repeat(x, 2, axis=1)[:, ::2], y)
    assert dict(got) == pytest.approx(dict(want), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: evaluate(x, x, metrics="fid"), "unknown metric 'fid'; known are fd, kid, .*; prdc and all stand"),
        (lambda x: evaluate(x, x, metrics=["fd", "ct"]), "evaluate: ct compare with training rows: give train"),
        (lambda x: evaluate(x, x, metrics=[]), "evaluate: metrics names none"),
        (lambda x: evaluate(x, x, k=0), "evaluate: k must be a positive integer, got 0"),
        (lambda x: evaluate(x, x, ties="open"), "evaluate: ties must be one of strict, closed, got 'open'"),
        (lambda x: evaluate(x, x, random_state=None), "random_state must be an integer of at least 0, got None"),
        (lambda x: evaluate(x, x[:, :2]), "evaluate: all arguments must have equally many columns"),
        (lambda x: evaluate(x, x[:0]), "evaluate: fake must have at least 1 row"),
        (lambda x: evaluate(x, x, np.full((3, 6), np.nan)), r"evaluate: train must be finite, but 3 rows are not"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(REAL)


# ---- the command ----


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("real.npz", REAL)
    np.save("fake.npy", FAKE)
    np.savez("two.npz", features=TRAIN, labels=np.arange(180))
    io.save_arrays("train.safetensors", {"x": TRAIN})
    return tmp_path


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("generant evaluate: error: ") and err.count("\n") == 1, err
    return err


def test_command_prints_a_table_and_writes_json(files, capsys):
    assert main(["evaluate", "real.npz", "fake.npy", "--train", "train.safetensors", "--json", "a/b.json"]) == 0
    out, err = capsys.readouterr()
    want = evaluate(REAL, FAKE, TRAIN)
    assert out == f"150 rows of real.npz, 120 rows of fake.npy, 180 rows of train.safetensors, d = 6\n\n{want}\n"
    assert "vendi" in err and "note: written to a/b.json" in err
    written = io.load_json("a/b.json")
    assert written["metrics"] == want.to_dict()["metrics"] and written["settings"] == want.settings
    assert written["generant"] == generant.__version__
    assert written["files"] == ["real.npz", "fake.npy", "train.safetensors"]
    assert os.listdir("a") == ["b.json"]


def test_command_options(files, capsys):
    arguments = ["--metrics", "prdc, mind", "--k", "3", "--ties", "closed", "--seed", "4", "--quiet"]
    assert main(["evaluate", "real.npz", "fake.npy", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert str(evaluate(REAL, FAKE, metrics=["prdc", "mind"], k=3, ties="closed", random_state=4)) in out


def test_command_finds_arrays_by_name(files, capsys):
    for given in (["two.npz:features"], ["two.npz", "--key", "features"]):
        assert main(["evaluate", "real.npz", "fake.npy", "--metrics", "authenticity", "--train", *given]) == 0
    message = "two.npz holds 2 arrays: features, labels; choose one with --key"
    assert message in refused(capsys, "real.npz", "two.npz")
    assert "two.npz has no array 'x'; it holds features, labels" in refused(capsys, "real.npz", "two.npz", "--key", "x")
    assert "real.npz has no array 'x'; it holds arr_0" in refused(capsys, "real.npz:x", "fake.npy")
    assert "two.npz must hold an array of shape (n, d), got (180,)" in refused(capsys, "real.npz", "two.npz:labels")


def test_command_says_what_is_wrong_with_a_file(files, capsys):
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez("objects.npz", np.array([{}], object))
    np.save("wide.npy", FAKE.repeat(2, axis=1))
    Path("cut.npy").write_bytes(Path("fake.npy").read_bytes()[:300])
    Path("cut.npz").write_bytes(Path("real.npz").read_bytes()[:300])
    Path("text.npy").write_text("hello")
    Path("notes.txt").write_text("hello")
    Path("empty").mkdir()
    assert "nope.npz does not exist" in refused(capsys, "real.npz", "nope.npz")
    for name in ("objects.npy", "objects.npz"):
        assert f"{name} holds Python objects, and unpickling runs what is in the file" in refused(capsys, name, name)
    for name in ("cut.npy", "cut.npz"):
        assert f"{name} is not a readable {name[3:]} file: " in refused(capsys, "real.npz", name)
    assert "text.npy" in refused(capsys, "real.npz", "text.npy")
    assert "notes.txt: do not know how to read .txt; give .npy" in refused(capsys, "real.npz", "notes.txt")
    assert "empty holds no images" in refused(capsys, "real.npz", "empty")
    assert "rows differ in length: 6 of real.npz, 12 of wide.npy" in refused(capsys, "real.npz", "wide.npy")
    assert "give REAL and FAKE, or --features" in refused(capsys, "real.npz")
    assert "--seed must be at least 0, got -1" in refused(capsys, "real.npz", "fake.npy", "--seed", "-1")
    assert "--k must be at least 1, got 0" in refused(capsys, "real.npz", "fake.npy", "--k", "0")
    assert "unknown metric 'fid'" in refused(capsys, "real.npz", "fake.npy", "--metrics", "fid")
    assert "give train" in refused(capsys, "real.npz", "fake.npy", "--metrics", "fd,ct")


def save_image(path, pixels, mode=None):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(exist_ok=True)
    picture = image.fromarray(pixels)
    (picture if mode is None else picture.convert(mode)).save(path)


def test_command_reads_folders_of_images(files, capsys):
    rng = np.random.default_rng(6)
    real, fake = (rng.integers(0, 256, (n, 4, 5, 3), dtype=np.uint8) for n in (30, 20))
    for name, images in (("real", real), ("fake", fake)):
        for i, pixels in enumerate(images):
            save_image(Path(name) / f"{i:03d}.png", pixels)
    Path("real/notes.txt").write_text("not an image")
    assert main(["evaluate", "real", "fake", "--metrics", "prdc,mind", "--quiet"]) == 0
    want = evaluate(*(x.reshape(len(x), -1).astype(np.float32) / 255 for x in (real, fake)), metrics=["prdc", "mind"])
    assert f"30 rows of real, 20 rows of fake, d = 60\n\n{want}" in capsys.readouterr().out

    rows = {"real": REAL[:30], "fake": FAKE[:20]}
    np.savez("features.npz", **rows)
    assert main(["evaluate", "real", "fake", "--features", "features.npz", "--metrics", "mind", "--quiet"]) == 0
    assert str(evaluate(REAL[:30], FAKE[:20], metrics="mind")) in capsys.readouterr().out
    np.savez("features.npz", real=REAL, fake=FAKE)
    message = "features.npz: real has 150 rows, real 30 images"
    assert message in refused(capsys, "real", "fake", "--features", "features.npz")
    message = "--features stands in place of real.npz; beside it, give folders of images or nothing"
    assert message in refused(capsys, "real.npz", "fake", "--features", "features.npz")
    assert main(["evaluate", "--features", "features.npz", "--metrics", "mind", "--quiet"]) == 0
    np.savez("features.npz", real=REAL)
    assert "features.npz has no array 'fake'; it holds real" in refused(capsys, "--features", "features.npz")

    Path("fake/b.png").write_bytes(b"not a picture")
    assert "fake/b.png cannot be read as an image" in refused(capsys, "real", "fake")
    Path("fake/b.png").write_bytes(Path("fake/001.png").read_bytes()[:60])
    assert "fake/b.png cannot be read as an image" in refused(capsys, "real", "fake")
    save_image(Path("fake/b.png"), real[0, :3])
    assert "images differ in shape: fake/b.png has (3, 5, 3), fake/000.png (4, 5, 3)" in refused(capsys, "real", "fake")


@pytest.mark.parametrize(
    "mode, shape, scale", [("L", (4, 4), 255), ("RGBA", (4, 4, 3), 255), ("P", (4, 4, 3), 255), ("1", (4, 4), 255)]
)
def test_pixels_are_scaled_to_one(files, mode, shape, scale):
    from generant.data.files import read_image

    save_image(Path("images/a.png"), np.full((4, 4, 3), 255, np.uint8), mode)
    got = read_image(Path("images/a.png"))
    assert got.shape == shape and got.dtype == np.float32 and (got == 1).all()


def test_images_are_rows_in_the_order_of_their_names(files):
    from generant.cli.evaluate import _pixels

    for name, value in (("b1", 51), ("a2", 102), ("a10", 0), ("c0", 255)):
        save_image(Path("images") / f"{name}.png", np.full((2, 2), value, np.uint8))
    np.testing.assert_allclose(_pixels(Path("images")), np.array([0, 0.4, 0.2, 1])[:, None] * np.ones(4), rtol=1e-6)


def test_sixteen_bit_pixels(files):
    from generant.data.files import read_image

    pixels = np.array([[0, 65535], [13107, 26214]], np.uint16)
    save_image(Path("images/a.png"), pixels)
    np.testing.assert_allclose(read_image(Path("images/a.png")), [[0, 1], [0.2, 0.4]])
    save_image(Path("images/b.tif"), pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"b.tif: pixels of mode F are not read; save it as 8 bit grey or RGB"):
        read_image(Path("images/b.tif"))


def test_images_in_an_array_are_flattened(files, capsys):
    np.save("images.npy", FAKE.reshape(120, 2, 3))
    assert main(["evaluate", "real.npz", "images.npy", "--metrics", "mind"]) == 0
    out, err = capsys.readouterr()
    assert "note: images.npy: shape (120, 2, 3) is read as 120 rows of 6" in err
    assert str(evaluate(REAL, FAKE, metrics="mind")) in out


def test_the_command_in_a_process_of_its_own(files):
    env = {**os.environ, "PYTHONPATH": str(Path(generant.__file__).parent.parent), "GENERANT_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "generant.cli", "evaluate", "real.npz", "fake.npy", "--metrics", "prdc"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "coverage" in done.stdout, done.stderr
    assert str(evaluate(REAL, FAKE, metrics="prdc")) in done.stdout
    missing = subprocess.run([*command[:-2], "--json", "fake.npy/x"], env=env, capture_output=True, text=True)
    assert missing.returncode == 2 and "Traceback" not in missing.stderr


def test_the_help_names_the_metrics(capsys):
    doc = inspect.getdoc(evaluate)
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = capsys.readouterr().out.split("metrics by default:")[1]
    by_default, named = (part.split("and with --train:") for part in shown.split("only if named"))
    for name, metric in sys.modules["generant.metrics.evaluate"].METRICS.items():
        assert name in doc, f"evaluate's docstring does not say what {name} is"
        assert name in (by_default if metric.default else named)[metric.train].split("prdc stands for")[0].split()
