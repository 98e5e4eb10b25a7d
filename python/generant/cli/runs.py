"""Run folders: what `generant fit` writes and the other commands read.

A run holds model.safetensors and config.json (the model, see `models.load`), run.json (its data), history.csv,
loss.png, pictures of samples by epoch, and a checkpoint to go on from.
"""

from __future__ import annotations

import csv
import io as text
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import pictures

__all__ = ["CHECKPOINT", "RUN", "Parts", "bounds", "check_device", "check_seed", "draw", "held_out_of", "is_run",
           "label_of", "load", "parts", "show", "table"]  # fmt: skip

RUN, CHECKPOINT = "run.json", "checkpoint.safetensors"
SPLIT = 6  # purpose of the random stream


class Parts(NamedTuple):
    """x, y: samples and labels (or None) that are trained on; held_x, held_y: those held out, None if none are."""

    x: np.ndarray
    y: Any
    held_x: Any
    held_y: Any


def parts(data: str, held_out: float, seed: int) -> Parts:
    """A data set, by name or path, of which a fraction is held out: of every class, if there are labels."""
    from .. import data as sets
    from ..random import Stream, permutation

    if not 0 <= held_out < 1:
        raise ValueError(f"--held-out must lie in 0 ... 1 and be below 1, got {held_out}")
    found = sets.load(data)
    if not held_out:
        return Parts(found.x, found.y, None, None)
    if found.y is not None:
        kept, out = sets.stratified_split(found.y, held_out, Stream(seed, SPLIT))
    else:
        order = permutation(Stream(seed, SPLIT).at(0), len(found.x))
        count = max(1, round(held_out * len(found.x)))
        kept, out = np.sort(order[count:]), np.sort(order[:count])
    if not len(kept):
        raise ValueError(f"--held-out {held_out} leaves nothing to train on: {data} has {len(found.x)} samples")
    labels = (None, None) if found.y is None else (found.y[kept], found.y[out])
    return Parts(found.x[kept], labels[0], found.x[out], labels[1])


def held_out_of(folder: Path, about: dict[str, Any]) -> Parts:
    """The data of a run; ValueError if nothing was held out."""
    if not about.get("held_out"):
        raise ValueError(f"{folder} held nothing out; give --data, or fit with --held-out 0.2")
    return parts(about["data"], about["held_out"], about["seed"])


def is_run(path: Path) -> bool:
    """Whether this is a folder with a saved model."""
    from .. import io

    return (path / io.CONFIG).is_file()


def load(path: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a run, and what run.json says, {} if there is none."""
    from .. import io, models

    about = io.load_json(path / RUN) if (path / RUN).exists() else {}
    if not isinstance(about, dict) or (about and not {"data", "held_out", "seed"} <= about.keys()):
        raise io.FormatError(f"{path / RUN} was not written by generant fit")
    return models.load(path), about


def check_seed(seed: int) -> int:
    """The seed, or an error."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"--seed must lie in 0 ... 2^64 - 1, got {seed}")
    return seed


def check_device(flag: str, device: str) -> str:
    """The device, or an error that begins with the flag if there is no such thing here."""
    from ..ops import _device

    try:
        return _device.checked_device(flag, device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def label_of(model: Any, given: str | None) -> Any:
    """The class that was named on the command line, None if none was."""
    if given is None:
        return None
    if model.classes_ is None:
        raise ValueError(f"--y {given}: the model was fitted without labels")
    for label in model.classes_:
        if str(label) == given:
            return label
    raise ValueError(f"--y {given} is not one of the classes {', '.join(map(str, model.classes_))}")


def draw(
    model: Any, n: int, y: Any, seed: int, device: str | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and the class of each, None of a model without classes; classes come as often as in training if y is
    None. device: where they are drawn."""
    from ..ops import _device

    labels = None
    if model.classes_ is not None:
        labels = np.full(n, y) if y is not None else model.classes_[model._codes(n, None, seed)]
    return _device.from_device(model.sample(n, labels, random_state=seed, device=device)), labels


def bounds(model: Any) -> tuple[float, float]:
    """The least and the greatest number in the training data."""
    if model.scaling_.dtype == np.uint8:
        return 0.0, 255.0
    return float(np.min(model.scaling_.low)), float(np.max(model.scaling_.high))


def show(model: Any, seed: int, title: str) -> bytes:
    """A picture of samples of one seed: of a conditional model, a row per class."""
    from ..ops import _device

    images = model.scaling_.image is not None
    options: dict[str, Any] = {"title": title}
    if getattr(model, "autoencoder", None) is None:
        options["bounds"] = bounds(model)
    if not images and getattr(model, "autoencoder", None) is None:
        n = 1000 if model.scaling_.size == 2 else 64
        return pictures.picture(_device.from_device(model.sample(n, random_state=seed)), **options)
    if model.classes_ is None:
        return pictures.picture(_device.from_device(model.sample(64, random_state=seed)), **options)
    classes = model.classes_[:10]
    x = _device.from_device(model.sample(10 * len(classes), np.repeat(classes, 10), random_state=seed))
    return pictures.picture(x, columns=10, labels=classes, **options)


def table(history: list[dict[str, Any]]) -> bytes:
    """The history as CSV: a line per epoch, a column for whatever any epoch has."""
    out = text.StringIO()
    columns = list(dict.fromkeys(key for entry in history for key in entry))
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return out.getvalue().encode()
