"""load: a data set by its name or its path, as samples x, labels y and a name. One error says what is wrong with it.

What is read stays as it was stored, 8 bit pixels included; pictures become float32 in 0 ... 1. Not here: splits
(batches.py), scaling, and safetensors, which generant.io reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import toys
from .checks import check_data, check_labels
from .digits import read_digits
from .files import image_paths, read_arrays, read_images
from .mnist import read_mnist5k

__all__ = ["DataSet", "load"]

TOYS = ("checkerboard", "grid25", "ring8", "swiss_roll", "two_moons")
NAMES = ("digits", "mnist5k", *TOYS)
SAMPLES, LABELS = ("x", "images", "data"), ("y", "labels")  # names in an .npz file, the first one found
N_TOY = 2500


class DataSet(NamedTuple):
    """x: samples, rows (n, d) or images (n, h, w) or (n, h, w, c). y: labels (n,), integers or strings, or None."""

    x: np.ndarray
    y: np.ndarray | None
    name: str


def load(path_or_name: str | os.PathLike, *, n: int = N_TOY, random_state: int | None = 0) -> DataSet:
    """The data set of that name, file or folder.

    "digits": 1797 images (8, 8); "mnist5k": 5000 images (28, 28), see digits and mnist5k. "checkerboard", "grid25",
    "ring8", "swiss_roll", "two_moons": `n` points drawn from the seed `random_state`, which other data ignore.
    A path: .npz with an array x, images or data and perhaps y or labels; .npy; or a folder of images of one size, whose
    sub-folders, if it has some with images, are the labels (integers if all their names are). Samples come in the order
    of the file, or sorted by label and file name. A path wins over a name only if it is not a plain string: "./digits".
    Raises FileNotFoundError, ValueError (damaged, empty, of mixed sizes, NaN, objects), TypeError (not numbers).
    """
    if not isinstance(path_or_name, (str, os.PathLike)) or not os.fspath(path_or_name):
        raise TypeError(f"load: wanted the name of a data set or a path, got {path_or_name!r}")
    if isinstance(path_or_name, str) and path_or_name in NAMES:
        return _named(path_or_name, n, random_state)
    path = Path(path_or_name)
    if not path.exists():
        raise FileNotFoundError(f"load: {path} does not exist, and the data sets by name are {', '.join(NAMES)}")
    if path.is_dir():
        return _folder(path)
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz"):
        what = path.suffix or "a file without suffix"
        raise ValueError(f"load: {path}: do not know how to read {what}; give .npy, .npz or a folder of images")
    arrays = read_arrays(path)
    if suffix == ".npy":
        return _checked(path, arrays[path.stem], None)
    x, y = (next((arrays[name] for name in names if name in arrays), None) for names in (SAMPLES, LABELS))
    if x is None:
        held = ", ".join(arrays) or "no arrays"
        raise ValueError(f"load: {path} must hold an array named x, images or data, got {held}")
    return _checked(path, x, y)


def _named(name: str, n: int, random_state: int | None) -> DataSet:
    if name in TOYS:
        drawn = getattr(toys, name)(n, random_state)
        return DataSet(drawn.x if isinstance(drawn, toys.Gaussians) else drawn, None, name)
    x, y = read_digits() if name == "digits" else read_mnist5k()
    return DataSet(x.reshape(len(x), 8, 8) if name == "digits" else x, y, name)


def _folder(folder: Path) -> DataSet:
    labelled = [
        (sub.name, found)
        for sub in sorted(folder.iterdir(), key=lambda p: p.name)
        if sub.is_dir() and not sub.name.startswith(".") and (found := image_paths(sub, required=False))
    ]
    loose = image_paths(folder, required=not labelled)
    if loose and labelled:
        raise ValueError(f"load: {folder} holds images both beside and in sub-folders: {loose[0]}, {labelled[0][1][0]}")
    if not labelled:
        return _checked(folder, read_images(loose), None)
    if all(name.isascii() and name.isdecimal() for name, _ in labelled):
        labelled.sort(key=lambda pair: int(pair[0]))
        y = np.repeat(np.array([int(name) for name, _ in labelled], np.int64), [len(found) for _, found in labelled])
    else:
        y = np.repeat([name for name, _ in labelled], [len(found) for _, found in labelled])
    return _checked(folder, read_images([path for _, found in labelled for path in found]), y)


def _checked(path: Path, x: Any, y: Any) -> DataSet:
    x = check_data(f"load: {path}", x)
    if x.ndim > 4:
        raise ValueError(f"load: {path} must hold rows n d or images n h w or n h w c, got shape {x.shape}")
    return DataSet(x, None if y is None else check_labels(f"load: {path}", y, len(x)), path.stem)
