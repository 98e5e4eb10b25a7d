"""Fit a model to data and write a run folder.

DATA is digits, mnist5k, a toy (checkerboard, grid25, ring8, swiss_roll, two_moons), an .npy or .npz file (arrays x and,
if there are labels, y), or a folder of images, whose sub-folders are the labels. Settings are the parameters of the
model's class: see help(generant.models.VAE) and so on.

  generant fit vae --data digits --out runs/vae --set latent_dim=8 --set epochs=50
  generant fit diffusion --data images/ --out runs/images --held-out 0.1
  generant fit diffusion --data images/ --out runs/images --held-out 0.1 --resume
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from . import pictures, runs

__all__ = ["add_arguments", "parse_settings", "run"]

KINDS = {"vae": "VAE", "vqvae": "VQVAE", "fsq": "FSQ", "gan": "GAN", "gmmn": "GMMN", "diffusion": "Diffusion"}
OWN = {
    "random_state": "--seed", "checkpoint": "--out", "callbacks": "Python", "verbose": "--quiet",
    "warm_start": "--resume",
}  # fmt: skip
SHOWN = 5  # pictures of samples over time
CHECKPOINTS = 20  # at least so many in a run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="which model")
    parser.add_argument("--data", required=True, help="name, file or folder")
    parser.add_argument("--out", type=Path, required=True, help="the run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the model")
    parser.add_argument("--labels", action=argparse.BooleanOptionalAction, help="a conditional model? (if labelled)")
    parser.add_argument("--held-out", type=float, default=0.0, metavar="F", help="fraction not trained on (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the model and the samples (default 0)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of an interrupted run")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def parse_settings(kind: Any, given: list[str]) -> dict[str, Any]:
    """KEY=VALUE texts as parameters of a model class. Values are Python literals, or else strings."""
    known = {name: value for name, value in kind._parameters().items() if name not in OWN}
    found: dict[str, Any] = {}
    for setting in given:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not name:
            raise ValueError(f"--set {setting}: wanted KEY=VALUE")
        if name in OWN:
            raise ValueError(f"--set {name}: {OWN[name]} says that")
        if name not in known:
            raise ValueError(f"--set {name}: {kind.__name__} has no such parameter; it has {', '.join(known)}")
        if name in found:
            raise ValueError(f"--set {name} is given twice")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if not value.replace("_", "").replace("-", "").isalnum() and name != "autoencoder":
                raise ValueError(f"--set {setting}: {value!r} is not a Python literal such as 3, 1e-3, True, (64, 64), "
                                 "\"text\" or (\"logistic\", 17)") from None  # fmt: skip
            found[name] = value
        if isinstance(found[name], list):
            found[name] = tuple(found[name])
    return found


def run(arguments: argparse.Namespace) -> int:
    from .. import io, models
    from ..ops import _device

    if not find_spec("matplotlib"):
        raise ImportError("the pictures of a run need matplotlib: pip install 'generant[demo]'")
    out, seed = arguments.out, runs.check_seed(arguments.seed)
    device = runs.check_device("--device", arguments.device)
    kind = getattr(models, KINDS[arguments.kind])
    settings = parse_settings(kind, arguments.set)
    checkpoint = out / runs.CHECKPOINT
    if arguments.resume:
        if not checkpoint.exists():
            raise FileNotFoundError(f"--resume: {checkpoint} does not exist; run the command without --resume first")
    elif out.exists() and (not out.is_dir() or any((out / name).exists() for name in (io.CONFIG, checkpoint.name))):
        raise ValueError(f"--out {out} is there already; go on with --resume, remove it, or write to another folder")
    if settings.get("autoencoder") is not None:
        settings["autoencoder"] = models.load(settings["autoencoder"])
    found = runs.parts(arguments.data, arguments.held_out, seed)
    if arguments.labels and found.y is None:
        raise ValueError(f"--labels: {arguments.data} has no labels")
    y = None if arguments.labels is False else found.y
    model = kind(**settings, random_state=seed, verbose=0 if arguments.quiet else 1, checkpoint=checkpoint)
    if not isinstance(model.epochs, int) or model.epochs < 1:
        raise ValueError(f"--set epochs={model.epochs!r}: wanted an integer of at least 1")
    model._check_all()
    if "checkpoint_every" not in settings:
        steps = model.epochs * max(1, len(found.x) // model.batch_size)
        model.set_params(checkpoint_every=max(1, min(1000, steps // CHECKPOINTS)))
    model.set_params(callbacks=[_Snapshots(out, seed, model.epochs)])
    out.mkdir(parents=True, exist_ok=True)
    data = str(Path(arguments.data).resolve()) if Path(arguments.data).exists() else arguments.data
    about = {"data": data, "held_out": arguments.held_out, "labels": y is not None, "seed": seed}
    if not arguments.resume:
        io.save_json(out / runs.RUN, about)
    classes = "" if y is None else f", {len(np.unique(y))} classes"
    print(f"{kind.__name__} of {len(found.x)} samples {' x '.join(map(str, found.x.shape[1:]))}{classes}", flush=True)
    begun = time.perf_counter()
    try:
        x = _device.to_device(found.x) if device == "cuda" else found.x
        model.fit(x, y, resume=checkpoint if arguments.resume else None)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {_write(model, out)}", file=sys.stderr)
        raise
    except models.DivergedError as error:
        print(f"generant fit: error: {error}\n{_write(model, out)}", file=sys.stderr)
        return 1
    last = {k: v for k, v in model.history_[-1].items() if isinstance(v, float) and k != "images_per_second"}
    print(f"{_write(model, out)}, after {time.perf_counter() - begun:.1f} s: "
          f"{', '.join(f'{k} {v:.4g}' for k, v in last.items())}")  # fmt: skip
    return 0


class _Snapshots:
    """Pictures of samples of the same noise after 1, ..., all epochs, spaced evenly in their logarithm."""

    def __init__(self, out: Path, seed: int, epochs: int) -> None:
        self.out, self.seed = out, seed
        self.epochs = {round(e) for e in np.geomspace(1, epochs, SHOWN)}

    def __call__(self, model: Any, entry: dict[str, Any]) -> None:
        from .. import io

        epoch = entry["epoch"]
        if epoch in self.epochs:
            name = f"samples-epoch-{epoch:04d}.png"
            io.write(self.out / name, runs.show(model, self.seed, f"epoch {epoch}"))


def _write(model: Any, out: Path) -> str:
    """Write what there is of a model; says what."""
    from .. import io

    if not hasattr(model, "networks_"):
        return "no training step was finished, so there is nothing to save"
    model.save(out)
    if model.history_:
        io.write(out / "history.csv", runs.table(model.history_))
        io.write(out / "loss.png", pictures.curve(model.history_))
    return f"the model of step {model.n_iter_} was saved to {out}/"
