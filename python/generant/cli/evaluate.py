"""Score generated samples against real ones, from features or images.

REAL, FAKE and --train are .npy, .npz or .safetensors files of shape (n, d), or folders of images, whose pixels are
scaled to 0 ... 1. Of files that hold several arrays give FILE:NAME, or --key if the name is the same in all. Pixels say
little about large images: extract features with a network of your choice and give those, as files or as --features,
one .npz or .safetensors file with arrays named real, fake and perhaps train.

  generant evaluate real.npz fake.npz
  generant evaluate held_out/ samples/ --train training/ --metrics prdc,kid,authenticity --json scores.json

In place of FAKE, or of both, stands a run of generant fit; as many samples as there are real ones are drawn from it.
Alone it is compared with what fit held out, and with what it was trained on.

  generant evaluate runs/vae
  generant evaluate runs/vae --data digits
  generant evaluate held_out.npy runs/vae --train training.npy
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from . import runs

__all__ = ["add_arguments", "run"]

KINDS = ".npy, .npz or .safetensors, or a folder of images"

METRICS = """\
metrics by default:  fd kid mind precision recall density coverage vendi
  and with --train:  authenticity memorised_fraction nearest_train_ratio ct
only if named, as they take longer or repeat others:
                     mmd2 cmmd energy sliced_wasserstein sinkhorn realism rarity
  and with --train:  mifid fld
prdc stands for precision,recall,density,coverage and all for everything. What each is, and its options, is in the
Python function of that name: help(generant.metrics.frechet_distance) for fd, and so on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("real", nargs="?", type=Path, metavar="REAL", help="real samples; held-out ones with --train")
    parser.add_argument("fake", nargs="?", type=Path, metavar="FAKE", help="generated samples")
    parser.add_argument("--train", type=Path, help="training samples, for metrics that look for copies of them")
    parser.add_argument("--data", help="real samples for a run that stands alone: name, file or folder, as in fit")
    parser.add_argument("--samples", type=int, metavar="N", help="drawn from a run (default: as many as real)")
    parser.add_argument("--features", type=Path, metavar="FILE", help="features in place of REAL, FAKE and --train")
    parser.add_argument("--key", help="name of the array, in files that hold several")
    parser.add_argument("--metrics", help="names with commas between, or all (default: the quick ones; see below)")
    parser.add_argument("--k", type=int, default=5, help="neighbours for precision, recall, ... (default 5)")
    parser.add_argument("--ties", choices=("strict", "closed"), default="strict", help="is the rim part of a ball?")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is drawn at random (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write values, errors and settings there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no notes")
    parser.epilog = METRICS


def run(arguments: argparse.Namespace) -> int:
    if arguments.seed < 0:
        raise ValueError(f"--seed must be at least 0, got {arguments.seed}")
    if arguments.k < 1:
        raise ValueError(f"--k must be at least 1, got {arguments.k}")
    if arguments.samples is not None and arguments.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {arguments.samples}")
    metrics = None if arguments.metrics is None else [name.strip() for name in arguments.metrics.split(",")]

    def note(text: str) -> None:
        if not arguments.quiet:
            print(f"note: {text}", file=sys.stderr)

    points = _samples(arguments, note)
    columns = {str(name): x.shape[1] for name, x in points.items()}
    if len(set(columns.values())) > 1:
        raise ValueError(f"rows differ in length: {', '.join(f'{n} of {name}' for name, n in columns.items())}")

    from .. import __version__, io, show_config
    from ..metrics import evaluate

    with _Bar() as bar, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate(
            *points.values(), metrics=metrics, k=arguments.k, ties=arguments.ties, random_state=arguments.seed,
            progress=None if arguments.quiet else bar.show,
        )  # fmt: skip
    for text in dict.fromkeys(str(w.message) for w in caught):
        note(text)
    sizes = ", ".join(f"{len(x)} rows of {name}" for name, x in points.items())
    print(f"{sizes}, d = {next(iter(columns.values()))}\n\n{found}")
    if arguments.json is not None:
        config = show_config()
        about = {"generant": __version__, "backend": config["backend"], "files": [str(name) for name in points]}
        io.save_json(arguments.json, {**found.to_dict(), **about})
        note(f"written to {arguments.json}")
    return 0


class _Bar:
    """A progress bar on stderr, from the first metric on, gone at the end."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, name: str, done: int, total: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]

        if self._bar is None:
            self._bar = tqdm(total=total, desc="evaluate", leave=False, file=sys.stderr, unit="metric")
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()


# ---- reading ----


def _samples(arguments: argparse.Namespace, note: Any) -> dict[Any, np.ndarray]:
    """real, fake and perhaps train, by where each comes from, as (n, d) arrays."""
    paths = {name: getattr(arguments, name) for name in ("real", "fake", "train")}
    alone = paths["real"] is not None and paths["fake"] is None and runs.is_run(paths["real"])
    if arguments.data is not None and not alone:
        raise ValueError("--data is for a run that stands alone; give REAL and FAKE without it")
    if arguments.features is None and alone:
        return _run_and_its_data(arguments, note)
    if arguments.features is None:
        if paths["real"] is None or paths["fake"] is None:
            raise ValueError("give REAL and FAKE, or --features")
        drawn = runs.is_run(paths["fake"])
        read = {name: path for name, path in paths.items() if path is not None and not (drawn and name == "fake")}
        found = {name: _read(path, arguments.key, note) for name, path in read.items()}
        if drawn:
            model, _ = runs.load(paths["fake"])
            fake = _drawn(model, arguments.samples or len(found["real"]), arguments.seed)
            found = {"real": found.pop("real"), "fake": fake, **found}
        sources = {name: name if list(paths.values()).count(paths[name]) > 1 else paths[name] for name in found}
        return {sources[name]: x for name, x in found.items()}
    from ..data import image_paths

    arrays = _arrays(arguments.features)
    for name in ("real", "fake"):
        if name not in arrays:
            raise ValueError(f"{arguments.features} has no array {name!r}; it holds {', '.join(arrays)}")
    for name, path in paths.items():
        if path is None:
            continue
        if not path.is_dir() or name not in arrays:
            raise ValueError(f"--features stands in place of {path}; beside it, give folders of images or nothing")
        if (images := len(image_paths(path))) != len(arrays[name]):
            raise ValueError(f"{arguments.features}: {name} has {len(arrays[name])} rows, {path} {images} images")
    return {
        f"{arguments.features}:{name}": _rows(f"{arguments.features}:{name}", arrays[name], note)
        for name in paths
        if name in arrays
    }


def _run_and_its_data(arguments: argparse.Namespace, note: Any) -> dict[Any, np.ndarray]:
    """Held-out data, samples and training data of a run; with --data, that and samples."""
    path = arguments.real
    model, about = runs.load(path)
    if arguments.data is not None:
        found = {arguments.data: runs.parts(arguments.data, 0, 0).x}
    else:
        parts = runs.held_out_of(path, about)
        found = {"held-out": parts.held_x}
    (real,) = found.values()
    found[path] = _drawn(model, arguments.samples or len(real), arguments.seed)
    if arguments.train is not None:
        found["train"] = _read(arguments.train, arguments.key, note)
    elif arguments.data is None:
        found["train"] = parts.x
    return {name: x.reshape(len(x), -1) for name, x in found.items()}


def _drawn(model: Any, n: int, seed: int) -> np.ndarray:
    x = runs.draw(model, n, None, seed)[0]
    return x.reshape(n, -1)


def _read(path: Path, key: str | None, note: Any) -> np.ndarray:
    """The array of a file, or the images of a folder. `key` is for files that hold several; FILE:NAME goes before."""
    if runs.is_run(path):
        raise ValueError(f"{path} is a run of generant fit, which can stand for FAKE, or alone")
    if path.is_dir():
        return _pixels(path)
    wanted = None
    if not path.exists() and ":" in path.name:
        name, wanted = str(path).rsplit(":", 1)
        path = Path(name)
    arrays = _arrays(path)
    if wanted is None:
        wanted = next(iter(arrays)) if len(arrays) == 1 else key
    if wanted is None:
        raise ValueError(f"{path} holds {len(arrays)} arrays: {', '.join(arrays)}; choose one with --key")
    if wanted not in arrays:
        raise ValueError(f"{path} has no array {wanted!r}; it holds {', '.join(arrays) or 'none'}")
    return _rows(str(path), arrays[wanted], note)


def _rows(name: str, x: np.ndarray, note: Any) -> np.ndarray:
    if x.ndim < 2 or not x.size:
        raise ValueError(f"{name} must hold an array of shape (n, d), got {x.shape}")
    if x.ndim > 2:
        note(f"{name}: shape {x.shape} is read as {len(x)} rows of {x[0].size}")
        x = x.reshape(len(x), -1)
    return x


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    from .. import data, io

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return io.load_arrays(path)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path}: do not know how to read {path.suffix or 'a file without suffix'}; give {KINDS}")
    return data.read_arrays(path)


def _pixels(folder: Path) -> np.ndarray:
    """(n, pixels) float32 in 0 ... 1: the images of a folder in the order of their names."""
    from .. import data

    images = data.read_images(data.image_paths(folder))
    return images.reshape(len(images), -1)
