"""Measures the models on real data: python benchmarks/quality.py digits|mnist|toys [--seeds 5] [--only NAME,...]

Fits every subject of a set with every seed and writes its figures to results/quality/SET.json, after each fit: what is
there already, with the same settings, is not run again, so that an interrupted run goes on where it was.
--pictures FOLDER writes samples as pictures. --docs FILE puts the tables of results/quality between the marks of FILE
and runs nothing.

Not here: how something is fitted and measured (quality_sets.py), and goals and tables (quality_tables.py).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import quality_sets as sets
from quality_sets import Subject
from quality_tables import write_docs
from run import THREADS

import generant

FOLDER = Path(__file__).with_name("results") / "quality"

MIXTURE = {
    "components": [1, 2, 5, 10, 15, 20, 40], "covariances": ["full", "tied", "diag", "spherical"],
    "added_variances": [1e-6, 3e-4], "copies": 4,
}  # fmt: skip
NLL = {
    "model": "VAE", "architecture": "conv", "likelihood": "bernoulli", "channels": (16, 32), "hidden": (128,),
    "latent_dim": 16, "epochs": 20, "batch_size": 128, "learning_rate": 1e-3, "ema_decay": 0.99,
    "n_importance_score": 100,
}  # fmt: skip
PLANE: dict[str, dict[str, Any]] = {
    "VAE": {"model": "VAE", "latent_dim": 2, "prior": "mixture", "n_components": 64, "kl_warmup": 1500, "epochs": 200,
            "learning_rate": 1e-2},
    "GAN": {"model": "GAN"},
    "Diffusion": {"model": "Diffusion", "width": 128, "blocks": 3},
}
SETS: dict[str, dict[str, Subject]] = {
    "digits": {
        "VAE": Subject(sets.digits_model, {
            "model": "VAE", "likelihood": ("logistic", 17), "hidden": (512, 256), "epochs": 80,
        }),
        "VAE with VampPrior": Subject(sets.digits_model, {
            "model": "VAE", "likelihood": ("logistic", 17), "hidden": (512, 256), "epochs": 100, "prior": "vamp",
            "n_components": 200,
        }),
        "GAN": Subject(sets.digits_model, {"model": "GAN"}),
        "Diffusion": Subject(sets.digits_model, {"model": "Diffusion", "dequantise": True}),
        "Gaussian mixture": Subject(sets.digits_mixture, MIXTURE),
        "kernel density": Subject(sets.digits_kernels, {"widths": [0.02, 0.3, 15], "copies": 4}),
        "training images": Subject(sets.digits_real, {}),
    },
    "mnist": {
        "VAE": Subject(sets.mnist_model, {
            "model": "VAE", "likelihood": "bernoulli", "channels": (32, 64), "epochs": 40, "prior": "vamp",
            "n_components": 100,
        }, 1),
        "GAN": Subject(sets.mnist_model, {"model": "GAN", "epochs": 80, "batch_size": 128}, 1),
        "Diffusion": Subject(sets.mnist_model, {
            "model": "Diffusion", "channels": (32, 64, 64), "epochs": 20, "batch_size": 64,
        }, 1),
        "training images": Subject(sets.mnist_real, {}, 1),
        "VAE of binary pixels": Subject(sets.mnist_nll, NLL, 3),
        "its twin in torch": Subject(sets.mnist_twin_nll, NLL, 3),
    },
    "toys": {
        "GAN: grid25": Subject(sets.toy, {**PLANE["GAN"], "points": "grid25"}, 10),
        **{
            f"{family}: {points}": Subject(sets.toy, {**settings, "points": points}, 3)
            for points in ("ring8", "two_moons", "swiss_roll")
            for family, settings in PLANE.items()
        },
    },
}  # fmt: skip


def plain(x: Any) -> Any:
    """Numbers of NumPy as those of Python, tuples as lists: what JSON gives back."""
    return json.loads(json.dumps(x, default=lambda v: v.item()))


def parameters(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of the model that they name: a default that changes makes figures stale."""
    if "model" not in settings:
        return plain(settings)
    own = {k: v for k, v in settings.items() if k != "points"}
    return plain({**sets.made(own, 0).get_params(deep=False), **settings, "random_state": None})


class Results:
    """A result file, kept on disk at all times: {"set", "subjects": {name: {"settings", "parameters", "seeds": {seed:
    figures}}}}."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, empty = path, {"set": name, "subjects": {}}
        self.all: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty

    def has(self, name: str, settings: dict, seed: int) -> bool:
        entry = self.all["subjects"].get(name, {"parameters": None, "seeds": {}})
        return entry["parameters"] == parameters(settings) and str(seed) in entry["seeds"]

    def add(self, name: str, settings: dict, seed: int, found: dict, order: list[str]) -> None:
        """Figures of other parameters are forgotten."""
        subjects, told = self.all["subjects"], parameters(settings)
        if subjects.get(name, {}).get("parameters") != told:
            subjects[name] = {"settings": plain(settings), "parameters": told, "seeds": {}}
        seeds = subjects[name]["seeds"]
        seeds[str(seed)] = plain(found)
        subjects[name]["seeds"] = {k: seeds[k] for k in sorted(seeds, key=int)}
        self.all["subjects"] = {k: subjects[k] for k in order if k in subjects}
        self.all["machine"] = machine.describe()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.all, indent=1) + "\n")
        os.replace(unfinished, self.path)


def show(folder: Path | None, subject: str, seed: int, what: str, x: np.ndarray) -> None:
    """Images (n, h, w) as a picture with rows of ten; points (n, 2) of seed 0 as a file for `scatter`."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "_" for c in f"{subject} {what} {seed}")
    if x.ndim == 2:
        if seed == 0:
            np.save(folder / f"{subject}.npy", x)
        return
    from matplotlib.figure import Figure

    n, h, w = x.shape
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(x.reshape(n // 10, 10, h, w).swapaxes(1, 2).reshape(n // 10 * h, 10 * w), cmap="gray_r")
    axes.axis("off")
    axes.set_title(subject)
    figure.savefig(folder / f"{name}.png", dpi=100)


def scatter(folder: Path, subjects: list[str]) -> None:
    """All points that `show` kept, and real ones, in one picture: a row per distribution, a column per family."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(name.split(": ")[1] for name in subjects))
    columns = ["real", *PLANE]
    figure = Figure(figsize=(3 * len(columns), 3 * len(kinds)), layout="constrained")
    for kind, row in zip(kinds, figure.subplots(len(kinds), len(columns), squeeze=False), strict=True):
        for family, axes in zip(columns, row, strict=True):
            path = folder / f"{family}: {kind}.npy"
            axes.axis("off")
            if family == "real" or path.exists():
                x = sets.points(kind, sets.FRESH) if family == "real" else np.load(path)
                axes.plot(*x.T, ".", markersize=1.5)
                axes.set_aspect("equal")
                axes.set_title(f"{kind}: {family}", fontsize=9)
    figure.savefig(folder / "toys.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", nargs="?", choices=SETS, help="what to measure")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (a subject may want fewer or more)")
    parser.add_argument("--only", help="names of subjects with commas between, or their parts before a colon")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--pictures", type=Path, help="folder of pictures of samples")
    parser.add_argument("--docs", type=Path, help="write the tables of results/quality into this file")
    args = parser.parse_args()
    if args.docs:
        return write_docs(args.docs, args.out)
    if args.set is None:
        parser.error(f"say what to measure: {', '.join(SETS)}")
    pictures = args.pictures and args.pictures / args.set
    subjects, results = SETS[args.set], Results(args.out / f"{args.set}.json", args.set)
    wanted = [w.strip() for w in (args.only or "").split(",")]
    chosen = [n for n in subjects if not args.only or n in wanted or n.split(":")[0] in wanted]
    if not chosen:
        raise SystemExit(f"no subject is named {args.only}; there are: {'; '.join(subjects)}")
    most = max(args.seeds, *(subjects[n].seeds or 0 for n in chosen))
    for seed in range(most):
        for name in chosen:
            subject = subjects[name]
            if seed >= (args.seeds if subject.seeds is None else subject.seeds):
                continue
            if results.has(name, subject.settings, seed):
                continue
            begun = time.perf_counter()
            found = subject.measure(seed, subject.settings, partial(show, pictures, name, seed))
            found["seconds"] = time.perf_counter() - begun
            found |= {"generant": generant.__version__, "backend": str(generant.show_config()["backend"])}
            found |= {"threads": os.environ.get(THREADS[0], ""), "load": os.getloadavg()[0]}
            found["date"] = date.today().isoformat()
            results.add(name, subject.settings, seed, found, list(subjects))
            told = "  ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float))
            print(f"{name}, seed {seed}: {told}", flush=True)
    if args.set == "toys" and pictures:
        scatter(pictures, list(subjects))


if __name__ == "__main__":
    main()
