"""Run folders: what fit writes, and what sample, interpolate, score and evaluate make of it or refuse.

Seen to fail: with the model saved only at the end, with the split of evaluate drawn from another seed, with the classes
of samples not those that were asked for.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import generant
from generant import io, models
from generant.cli import main, pictures, runs

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.once

N = 60
SMALL = {
    "vae": ["hidden=(8,)", "latent_dim=2", "n_importance_score=5", "epochs=4"],
    "vqvae": ["hidden=(8,)", "n_codes=4", "code_dim=2", "positions=2", "epochs=2"],
    "gan": ["architecture=mlp", "hidden=(8,)", "latent_dim=4", "latent_signs=0", "frequencies=2", "watch_every=0",
            "epochs=2"],
    "diffusion": ["width=8", "blocks=1", "n_steps=3", "epochs=2"],
}  # fmt: skip


def images():
    """Two classes of 6 x 6: bright above, bright below."""
    y = np.array(["below", "above"])[np.arange(N) % 2]
    x = np.random.default_rng(0).uniform(0, 0.2, (N, 6, 6))
    x[y == "above", :3] += 0.7
    x[y == "below", 3:] += 0.7
    return x.astype(np.float32), y


def fit(kind, data, out, *more, settings=()):
    given = [word for setting in (*SMALL[kind], "batch_size=16", *settings) for word in ("--set", setting)]
    return main(["fit", kind, "--data", str(data), "--out", str(out), "--quiet", *given, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and a run of every family."""
    path = tmp_path_factory.mktemp("runs")
    x, y = images()
    np.savez(path / "data.npz", x=x, y=y)
    np.save(path / "rows.npy", np.random.default_rng(1).standard_normal((N, 2)))
    for kind in SMALL:
        assert fit(kind, path / "data.npz", path / kind, "--held-out", "0.25", "--seed", "3") == 0
    assert fit("gan", path / "rows.npy", path / "points") == 0
    return path


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def refused(capsys, command, *messages):
    assert main([str(word) for word in command]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"generant {command[0]}: error: ") and err.count("\n") == 1, err
    for message in messages:
        assert message in err, err


# ---- fit ----


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_holds_all_that_it_should(folder, kind):
    run = folder / kind
    model = models.load(run)
    epochs = model.epochs
    names = {f"samples-epoch-{round(e):04d}.png" for e in np.geomspace(1, epochs, 5)}
    kept = {"config.json", "model.safetensors", "run.json", "history.csv", "loss.png", "checkpoint.safetensors"}
    assert set(os.listdir(run)) == names | kept
    assert type(model).__name__.lower() == kind and model._seed == 3 and model.classes_.tolist() == ["above", "below"]
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, epochs + 1))
    assert [float(row["loss"]) for row in rows] == [h["loss"] for h in model.history_]
    assert io.load_json(run / "run.json") == {
        "data": str(folder / "data.npz"), "held_out": 0.25, "labels": True, "seed": 3
    }  # fmt: skip
    for name in (*names, "loss.png"):
        image = pixels(run / name)
        assert min(image.shape[:2]) > 200 and image.std() > 10, f"{name} is blank"


def test_the_command_fits_what_python_fits(folder):
    x, _ = images()
    held = runs.parts(str(folder / "data.npz"), 0.25, 3)
    assert (len(held.x), len(held.held_x)) == (44, 16) and (held.held_y == "above").sum() == 8
    np.testing.assert_array_equal(
        np.sort(np.concatenate([held.x, held.held_x]).reshape(N, -1), 0), np.sort(x.reshape(N, -1), 0)
    )
    params = {"hidden": (8,), "latent_dim": 2, "n_importance_score": 5, "epochs": 4, "batch_size": 16}
    ours = models.VAE(**params, random_state=3).fit(held.x, held.y)
    theirs = models.load(folder / "vae")
    np.testing.assert_array_equal(ours.sample(5, random_state=0), theirs.sample(5, random_state=0))


def test_without_labels_and_from_folders_of_images(folder, tmp_path):
    x, y = images()
    for i, image in enumerate(x):
        (tmp_path / "in" / y[i]).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).clip(0, 255).astype(np.uint8)).save(tmp_path / "in" / y[i] / f"{i}.png")
    assert fit("vae", tmp_path / "in", tmp_path / "a") == 0
    assert models.load(tmp_path / "a").classes_.tolist() == ["above", "below"]
    assert fit("vae", tmp_path / "in", tmp_path / "b", "--no-labels") == 0
    assert models.load(tmp_path / "b").classes_ is None
    assert main(["sample", str(tmp_path / "b"), "-n", "3", "--out", str(tmp_path / "b.npy")]) == 0
    assert np.load(tmp_path / "b.npy").shape == (3, 6, 6)


def test_a_latent_diffusion_names_its_autoencoder(folder, tmp_path):
    assert fit("vae", folder / "data.npz", tmp_path / "vae", "--no-labels") == 0
    given = (f"autoencoder={tmp_path / 'vae'}",)
    assert fit("diffusion", folder / "data.npz", tmp_path / "run", settings=given) == 0
    model = models.load(tmp_path / "run")
    assert model.sample(3, "above").shape == (3, 6, 6) and model.autoencoder.latent_dim == 2
    assert main(["interpolate", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")]) == 0
    assert main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "b.png")]) == 0
    assert main(["score", str(tmp_path / "run"), "--data", str(folder / "data.npz")]) == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("depth=3", "--set depth: VAE has no such parameter; it has latent_dim, hidden, architecture"),
        ("latent_dim", "--set latent_dim: wanted KEY=VALUE"),
        ("=3", "wanted KEY=VALUE"),
        ("hidden=(3,", "'(3,' is not a Python literal such as"),
        ("latent_dim=__import__('os')", "is not a Python literal"),
        ("latent_dim=many", "VAE: latent_dim must be an integer, got str 'many'"),
        ("prior=cubic", "VAE: prior is 'cubic', wanted one of normal, mixture, vamp"),
        ("epochs=0", "wanted an integer of at least 1"),
        ("random_state=3", "--set random_state: --seed says that"),
        ("epochs=3", "--set epochs is given twice"),
    ],
)
def test_settings_that_are_refused(folder, tmp_path, capsys, setting, message):
    command = ["fit", "vae", "--data", folder / "data.npz", "--out", tmp_path / "run", "--set", setting]
    more = ["--set", "epochs=2"] if "twice" in message else []
    refused(capsys, [*command, *more], message)
    assert not (tmp_path / "run").exists()


def test_settings_are_python_literals_or_words():
    from generant.cli.fit import parse_settings

    given = ["hidden=(3, 4)", "likelihood=bernoulli", "beta=1e-1", "early_stopping=True", "channels=[1, 2]"]
    assert parse_settings(models.VAE, [*given, "prior='vamp'"]) == {
        "hidden": (3, 4), "likelihood": "bernoulli", "beta": 0.1, "early_stopping": True, "channels": (1, 2),
        "prior": "vamp",
    }  # fmt: skip


def test_what_fit_refuses(folder, tmp_path, capsys):
    start = ["fit", "vae", "--out", tmp_path / "run", "--data"]
    refused(capsys, [*start, tmp_path / "nowhere.npz"], "nowhere.npz does not exist, and the data sets by name are")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nonsense")
    refused(capsys, [*start, tmp_path / "broken.npz"], "broken.npz is not a readable .npz file")
    (tmp_path / "empty").mkdir()
    refused(capsys, [*start, tmp_path / "empty"], "holds no images")
    np.save(tmp_path / "nan.npy", np.full((3, 2), np.nan))
    refused(capsys, [*start, tmp_path / "nan.npy"], "NaN")
    refused(capsys, [*start, folder / "rows.npy", "--labels"], "--labels", "has no labels")
    refused(capsys, [*start, folder / "rows.npy", "--held-out", "1"], "--held-out must lie in 0 ... 1")
    refused(capsys, [*start, folder / "rows.npy", "--seed", "-1"], "--seed must lie in")
    refused(capsys, [*start, folder / "rows.npy", "--resume"], "checkpoint.safetensors does not exist")
    assert not (tmp_path / "run").exists()
    before = {path: path.read_bytes() for path in (folder / "vae").iterdir()}
    again = ["fit", "vae", "--data", folder / "rows.npy", "--out", folder / "vae"]
    refused(capsys, again, "is there already")
    refused(capsys, [*again, "--resume", "--quiet"], "checkpoint.safetensors was written with")
    assert before == {path: path.read_bytes() for path in (folder / "vae").iterdir()}
    with pytest.raises(SystemExit):
        main(["fit", "transformer", "--data", "digits", "--out", str(tmp_path)])


def test_ctrl_c_saves_and_resume_goes_on_to_the_same_bits(folder, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(generant.__file__).parent.parent), "GENERANT_NUM_THREADS": "1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def command(out, *more):
        given = ("hidden=(16,)", "epochs=40", "batch_size=1", "checkpoint_every=100")
        settings = [word for setting in given for word in ("--set", setting)]
        return [sys.executable, "-m", "generant.cli", "fit", "vae", "--quiet", "--data", str(folder / "rows.npy"),
                "--out", str(out), *settings, *more]  # fmt: skip

    process = subprocess.Popen(command(cut), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.time() + 60
    while not (cut / runs.CHECKPOINT).exists() and process.poll() is None and time.time() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted: the model of step" in err and "Traceback" not in err, err
    stopped = models.load(cut)
    assert 0 < stopped.n_iter_ < 2400
    for out, more in ((cut, ["--resume"]), (whole, [])):
        done = subprocess.run(command(out, *more), env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


# ---- sample ----


def test_samples_are_the_models(folder, tmp_path, capsys):
    for kind in SMALL:
        model, out = models.load(folder / kind), tmp_path / f"{kind}.npz"
        assert main(["sample", str(folder / kind), "-n", "9", "--seed", "5", "--out", str(out)]) == 0
        with np.load(out) as found:
            np.testing.assert_array_equal(found["x"], model.sample(9, random_state=5))
            np.testing.assert_array_equal(found["x"], model.sample(9, found["y"], random_state=5))
    assert capsys.readouterr().out.count("9 samples 6 x 6 written to") == len(SMALL)
    out = tmp_path / "one.npz"
    assert main(["sample", str(folder / "vae"), "-n", "4", "--y", "below", "--out", str(out)]) == 0
    with np.load(out) as found:
        assert found["y"].tolist() == ["below"] * 4
        np.testing.assert_array_equal(found["x"], models.load(folder / "vae").sample(4, "below", random_state=0))


def test_a_picture_shows_the_samples(folder, tmp_path):
    out = tmp_path / "grid.png"
    assert main(["sample", str(folder / "vae"), "-n", "9", "--out", str(out)]) == 0
    image = pixels(out)
    assert abs(image.shape[0] - image.shape[1]) < 20 and image.std() > 20
    assert main(["sample", str(folder / "points"), "-n", "500", "--out", str(tmp_path / "cloud.png")]) == 0
    cloud = pixels(tmp_path / "cloud.png")
    assert (cloud == 255).all(-1).mean() > 0.5 and (cloud.min(-1) < 200).mean() > 0.003


def test_what_sample_refuses(folder, tmp_path, capsys):
    out = tmp_path / "x.npz"
    start = ["sample", folder / "vae", "--out"]
    refused(capsys, ["sample", tmp_path / "nowhere", "--out", out], "nowhere does not exist")
    refused(capsys, ["sample", tmp_path, "--out", out], "holds no model: it has no config.json")
    refused(capsys, [*start, tmp_path / "x.gif"], "the name must end in .png, .npz, .npy")
    refused(capsys, [*start, out, "-n", "0"], "-n must be at least 1, got 0")
    refused(capsys, [*start, out, "--y", "left"], "--y left is not one of the classes above, below")
    refused(capsys, ["sample", folder / "points", "--out", out, "--y", "1"], "the model was fitted without labels")
    broken = tmp_path / "broken"
    for name, spoil, message in (
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:-20]), "is not a readable safetensors file"),
        ("model.safetensors", Path.unlink, "model.safetensors does not exist"),
        ("config.json", lambda p: p.write_text("{"), "config.json is not a JSON file"),
        ("config.json", lambda p: p.write_text('{"model": "Estimator"}'), "does not describe a model of generant"),
        ("config.json", lambda p: p.write_text("[1]"), "does not describe a model of generant"),
        ("run.json", lambda p: p.write_text("[1]"), "run.json was not written by generant fit"),
    ):
        shutil.copytree(folder / "vae", broken)
        spoil(broken / name)
        refused(capsys, ["sample", broken, "--out", out], message)
        shutil.rmtree(broken)
    assert not out.exists()


# ---- interpolate ----


def test_lines_begin_and_end_at_samples(folder, tmp_path):
    for kind in ("vae", "vqvae", "gan", "diffusion"):
        out = tmp_path / f"{kind}.npz"
        line = ["interpolate", str(folder / kind), "-n", "5", "--y", "below", "--seed", "2"]
        assert main([*line, "--out", str(out)]) == 0
        with np.load(out) as found:
            line = found["x"]
        assert line.shape == (5, 6, 6) and np.isfinite(line).all()
        model = models.load(folder / kind)
        ends = model.sample(2, "below", random_state=2)
        if kind in ("vae", "vqvae"):
            ends = model.reconstruct(ends, "below" if kind == "vae" else None)
        np.testing.assert_allclose(line[[0, -1]], ends, atol=1e-5)
    assert main(["interpolate", str(folder / "vae"), "--lines", "3", "--out", str(tmp_path / "strip.png")]) == 0
    image = pixels(tmp_path / "strip.png")
    assert image.shape[1] > 2 * image.shape[0] and image.std() > 20


def test_neighbours_on_a_line_are_near(folder):
    line = models.interpolate(models.load(folder / "diffusion"), 30, "above", 0).reshape(30, -1)
    steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    assert steps.max() < 0.5 * np.linalg.norm(line[0] - line[-1]) or steps.max() < 0.5


def test_what_interpolate_refuses(folder, tmp_path, capsys):
    refused(capsys, ["interpolate", folder / "vae", "-n", "1", "--out", tmp_path / "a.png"], "-n must be at least 2")
    refused(capsys, ["interpolate", folder / "vae", "--lines", "0", "--out", tmp_path / "a.png"], "--lines must be")
    with pytest.raises(TypeError, match="there is no line between samples of a object"):
        models.interpolate(object())
    with pytest.raises(models.NotFittedError, match=r"VAE\.interpolate: the model is not fitted"):
        models.interpolate(models.VAE())


# ---- score, evaluate ----


def test_scores_are_the_models(folder, capsys):
    held = runs.parts(str(folder / "data.npz"), 0.25, 3).held_x
    for kind in ("vae", "vqvae", "diffusion"):
        assert main(["score", str(folder / kind)]) == 0
        nats = models.load(folder / kind).score(held)
        out = capsys.readouterr().out
        assert "16 samples of 36 numbers" in out and f"log-likelihood: {nats:.4f} nats per sample" in out
        assert f"bits per dim: {-nats / 36 / math.log(2):.4f}" in out
    assert main(["score", str(folder / "vae"), "--data", str(folder / "data.npz"), "-n", "7"]) == 0
    assert f"{models.load(folder / 'vae').score(images()[0][:7]):.4f}" in capsys.readouterr().out


def test_whole_numbers_under_a_density_are_bounded(tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 4, (400, 3))
    np.save(tmp_path / "x.npy", x)
    assert fit("vae", tmp_path / "x.npy", tmp_path / "density", settings=("observation_noise=True",)) == 0
    levels = ("likelihood=('categorical',4)",)
    assert fit("vae", tmp_path / "x.npy", tmp_path / "mass", settings=levels) == 0
    found = []
    for name, told in (("density", "lower bound of the log-likelihood of whole numbers: "), ("mass", "log-likelihood: ")):
        assert main(["score", str(tmp_path / name), "--data", str(tmp_path / "x.npy")]) == 0
        last = capsys.readouterr().out.splitlines()[-2:]
        assert last[0].startswith(told)
        found.append(float(last[1].removeprefix("bits per dim: ")))
    assert found[0] > 2 and found[1] == pytest.approx(2, abs=0.15)  # four levels, all as likely: 2 bits
    assert f"{models.load(tmp_path / 'mass').score(x):.4f}" in last[0]


def test_what_score_refuses(folder, capsys):
    refused(capsys, ["score", folder / "gan"], "a GAN has no likelihood; compare its samples with data: gener")
    wrong = ["score", folder / "vae", "--data", folder / "rows.npy"]
    refused(capsys, wrong, "X has 2 features, but VAE is expecting 36 features as input")
    refused(capsys, ["score", folder / "vae", "-n", "0"], "-n must be at least 1")
    refused(capsys, ["score", folder / "vae", "--data", folder / "nowhere"], "does not exist")
    assert fit("vae", folder / "rows.npy", folder / "all") == 0
    capsys.readouterr()
    refused(capsys, ["score", folder / "all"], "held nothing out; give --data, or fit with --held-out 0.2")


def test_evaluate_takes_a_run(folder, tmp_path, capsys):
    run, report = folder / "vae", tmp_path / "a.json"
    data = runs.parts(str(folder / "data.npz"), 0.25, 3)
    model = models.load(run)
    chosen = ["--metrics", "kid,prdc,memorised_fraction", "--quiet", "--json", str(report)]
    flat = lambda x: x.reshape(len(x), -1)
    values = lambda: {name: v["value"] for name, v in json.loads(report.read_text())["metrics"].items()}

    def expected(real, fake, train=None):
        names = ["kid", "prdc"] + ([] if train is None else ["memorised_fraction"])
        given = [flat(x) for x in (real, fake, train) if x is not None]
        return pytest.approx(dict(generant.metrics.evaluate(*given, metrics=names)), nan_ok=True)

    assert main(["evaluate", str(run), *chosen]) == 0
    assert "16 rows of held-out, 16 rows of" in capsys.readouterr().out
    assert values() == expected(data.held_x, model.sample(16, random_state=0), data.x)
    np.save(tmp_path / "real.npy", flat(data.held_x))
    np.save(tmp_path / "train.npy", flat(data.x))
    start = ["evaluate", str(tmp_path / "real.npy"), str(run)]
    assert main([*start, "--train", str(tmp_path / "train.npy"), "--samples", "30", *chosen]) == 0
    assert values() == expected(data.held_x, model.sample(30, random_state=0), data.x)
    chosen[1] = "kid,prdc"
    assert main(["evaluate", str(run), "--data", str(folder / "data.npz"), *chosen]) == 0
    assert values() == expected(images()[0], model.sample(60, random_state=0))
    capsys.readouterr()
    refused(capsys, [*start, "--data", "digits"], "--data is for a run that stands alone")
    refused(capsys, [*start, "--samples", "0"], "--samples must be at least 1")
    refused(capsys, ["evaluate", folder / "points"], "held nothing out")
    refused(capsys, ["evaluate", run, tmp_path / "real.npy"], "is a run of generant fit, which can stand for FAKE")
    refused(capsys, ["evaluate", folder / "rows.npy", run], "rows differ in length: 2 of", "36 of")


# ---- pictures, load ----


def test_a_grid_has_every_image_where_it_belongs():
    x = np.zeros((6, 4, 4, 3), np.uint8)
    x[np.arange(6), :, :, np.arange(6) % 3] = 255
    image = np.asarray(Image.open(BytesIO(pictures.grid(x, columns=3))).convert("RGB"))
    for i, colour in enumerate(np.eye(3, dtype=int) * 255):
        at = np.argwhere((image == colour).all(-1))
        assert len(at) > 1000
        left = at[:, 1].mean() / image.shape[1]
        assert left == pytest.approx((i + 0.5) / 3, abs=0.06)
    grey = pictures.grid(np.linspace(0, 1, 4)[:, None, None] * np.ones((4, 5, 5)))
    grey = np.asarray(Image.open(BytesIO(grey)).convert("L"))
    assert {0, 85, 170, 255} <= set(np.unique(grey))
    dark = pictures.grid(np.ones((1, 5, 5)), ink=True)
    assert (np.asarray(Image.open(BytesIO(dark)).convert("L")) == 0).mean() > 0.4
    rows = np.asarray(Image.open(BytesIO(pictures.picture(np.random.default_rng(0).standard_normal((20, 7))))))
    assert rows.std() > 10


def test_a_table_of_a_history_has_every_column():
    text = runs.table([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "recall": 1.0}]).decode()
    assert text == "epoch,loss,recall\n1,0.5,\n2,0.25,1.0\n"


def test_load_finds_the_class(folder, tmp_path):
    assert [type(models.load(folder / kind)).__name__ for kind in SMALL] == ["VAE", "VQVAE", "GAN", "Diffusion"]
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        models.load(folder / "data.npz")
