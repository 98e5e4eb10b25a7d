"""The command line: what it prints, writes and returns, and what an interruption leaves behind.

Seen to fail: with the model saved only at the end, with KeyboardInterrupt not caught.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import generant
from generant import diffusion, io
from generant.cli import main
from generant.cli.demo import _choose_backend
from generant.models import Diffusion

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SOURCES = str(Path(generant.__file__).parent.parent)


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    """`generant` in a process of its own."""
    path = os.pathsep.join(p for p in (SOURCES, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        [sys.executable, "-m", "generant.cli", *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def test_info_is_show_config(capsys):
    assert main(["info"]) == 0
    assert capsys.readouterr().out == f"{generant.show_config()}\n"


def test_demo_writes_what_it_promises(tmp_path, capsys):
    assert main(["demo", "--quick", "--epochs", "12", "--seed", "3", "--out", str(tmp_path / "a" / "b")]) == 0
    out = tmp_path / "a" / "b"
    names = {"samples.png", "loss.png", "metrics.json", "model.safetensors", "config.json"}
    assert set(os.listdir(out)) == names
    for picture in ("samples.png", "loss.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    report = io.load_json(out / "metrics.json")
    assert report["seed"] == 3 and report["model"]["epochs"] == 12
    assert set(report["scores"]) == {"diffusion samples", "one Gaussian per class", "real training images"}
    for row in report["scores"].values():
        assert len(row) == 8 and np.isfinite(list(row.values())).all()
    floor = report["scores"]["real training images"]
    assert floor["svc_accuracy"] > 0.96 and floor["precision"] > 0.9 and floor["recall"] > 0.9
    assert abs(floor["kid"]) < 0.002 and abs(floor["mmd2"]) < 0.002
    assert 0.9 < floor["nearest_training_distance"] / report["held_out_nearest_training_distance"] < 1.1
    assert report["scores"]["one Gaussian per class"]["svc_accuracy"] > 0.93

    printed = capsys.readouterr()
    table = [line for line in printed.out.splitlines() if line.startswith("|")]
    assert len(table) == 5 and len({len(line) for line in table}) == 1
    assert all(line.count("|") == 10 for line in table)
    assert "loss=" in printed.err and "images/s" in printed.err

    samples = Diffusion.load(out).sample(20, np.arange(20) % 10, random_state=1)
    assert samples.shape == (20, 64) and samples.min() >= 0 and samples.max() <= 1


def test_same_seed_same_files_on_any_number_of_threads(tmp_path):
    found = []
    for threads in ("1", "2"):
        out = tmp_path / threads
        done = start("demo", "--quick", "--epochs", "3", "--out", str(out), GENERANT_NUM_THREADS=threads)
        _, err = done.communicate(timeout=120)
        assert done.returncode == 0, err
        loaded = io.load_json(out / "metrics.json")
        arrays = io.load_arrays(out / "model.safetensors")
        weights = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
        found.append((weights, loaded["scores"], (out / "samples.png").read_bytes()))
    assert found[0] == found[1]


def test_interrupt_saves_and_exits_130_without_a_traceback(tmp_path):
    process = start("demo", "--quick", "--epochs", "100000", "--out", str(tmp_path))
    shown = ""
    while "loss=" not in shown:  # at least an epoch is done
        character = process.stderr.read(1)
        assert character, shown
        shown += character
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "was saved to" in err
    assert set(os.listdir(tmp_path)) == {"model.safetensors", "config.json"}
    assert np.isfinite(Diffusion.load(tmp_path).sample(3, 7, random_state=0)).all()


def test_divergence_saves_and_exits_1(tmp_path, monkeypatch, capsys):
    plain, calls = diffusion.Objective.prepare, []

    def prepare(self, *args):
        calls.append(1)
        found = plain(self, *args)
        return found._replace(weight=found.weight * float("nan")) if len(calls) == 8 else found

    monkeypatch.setattr(diffusion.Objective, "prepare", prepare)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "training stopped, the weights of step 7 are kept" in err and "the model of step 7 was saved" in err
    assert Diffusion.load(tmp_path).n_iter_ == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["demo", "--seed", "-1"], "--seed must lie in 0 ... 2^64 - 1, got -1"),
        (["demo", "--out", "{file}"], "file"),
    ],
)
def test_bad_arguments_give_one_line_and_status_2(tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    if "--out" not in arguments:
        arguments = [*arguments, "--out", str(tmp_path / "out")]
    assert main([a.format(file=tmp_path / "file") for a in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("generant demo: error: ") and message in err and err.count("\n") == 1


def test_unknown_options_and_backends_are_refused(capsys):
    for arguments in (["demo", "--backend", "tpu"], ["demo", "--nope"], ["fly"], []):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "generant" in capsys.readouterr().err


def test_a_missing_extra_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("generant.cli.demo.find_spec", lambda name: None if name == "sklearn" else object())
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "the demo needs scikit-learn: pip install 'generant[demo]'" in capsys.readouterr().err


def test_backend_is_chosen_by_the_flag_once_per_process(monkeypatch):
    code = "from generant.cli.demo import _choose_backend; print(_choose_backend('definition')['backend'])"
    environment = {**os.environ, "PYTHONPATH": SOURCES, "GENERANT_BACKEND": ""}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout == "definition\n"

    serving = generant.show_config()["backend"]
    other = "definition" if serving != "definition" else "numba"
    monkeypatch.setenv("GENERANT_BACKEND", serving)  # restored afterwards
    with pytest.raises(ValueError, match=f"--backend {other}: this process already uses {serving}"):
        _choose_backend(other)


def test_the_command_imports_nothing_heavy():
    heavy = {"sklearn", "matplotlib", "tqdm", "safetensors", "numba", "torch"}
    code = f"import sys, generant.cli; print({heavy} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": SOURCES}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "set()"
