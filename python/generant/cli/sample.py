"""Draw samples from a run: a picture, or an array.

  generant sample runs/vae -n 64 --out grid.png
  generant sample runs/vae -n 10000 --out samples.npz --y 3
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from . import pictures, runs

__all__ = ["add_arguments", "run", "write_samples"]

SUFFIXES = (".png", ".npz", ".npy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder that generant fit, or save, wrote")
    parser.add_argument("-n", type=int, default=64, help="how many (default 64)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png, .npz (arrays x, y) or .npy")
    parser.add_argument("--y", metavar="LABEL", help="the class of all (default: as often as in training)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to draw (default cpu)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same samples (default 0)")


def run(arguments: argparse.Namespace) -> int:
    seed = runs.check_seed(arguments.seed)
    if arguments.n < 1:
        raise ValueError(f"-n must be at least 1, got {arguments.n}")
    check_suffix(arguments.out)
    runs.check_device("--device", arguments.device)
    model, _ = runs.load(arguments.folder)
    x, labels = runs.draw(model, arguments.n, runs.label_of(model, arguments.y), seed, arguments.device)
    write_samples(arguments.out, x, labels, model)
    print(f"{len(x)} samples {' x '.join(map(str, x.shape[1:]))} written to {arguments.out}")
    return 0


def check_suffix(out: Path) -> None:
    """ValueError if samples cannot be written to such a file."""
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}")


def write_samples(out: Path, x: np.ndarray, labels: Any, model: Any, **options: Any) -> None:
    """Samples as a picture or as arrays, by the suffix."""
    from .. import io

    if out.suffix == ".png":
        own = {} if getattr(model, "autoencoder", None) is not None else {"bounds": runs.bounds(model)}
        io.write(out, pictures.picture(x, **own, **options))
        return
    buffer = BytesIO()
    if out.suffix == ".npy":
        np.save(buffer, x, allow_pickle=False)
    else:
        np.savez(buffer, x=x, **({} if labels is None else {"y": labels}))
    io.write(out, buffer.getvalue())
