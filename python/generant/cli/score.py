"""Log-likelihood of data under a run whose model has one: nats per sample and bits per dimension.

  generant score runs/vae --data test.npz
  generant score runs/vae                    the part that generant fit held out

Whole numbers under a density get uniform noise on [-1/2, 1/2) first, which makes the result a bound (Theis, van den Oord
and Bethge, 2016).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from . import runs

__all__ = ["add_arguments", "run"]

NOISE = 3  # purpose of the random stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder that generant fit, or save, wrote")
    parser.add_argument("--data", help="name, file or folder, as in generant fit (default: what fit held out)")
    parser.add_argument("-n", type=int, help="only the first N samples")


def run(arguments: argparse.Namespace) -> int:
    if arguments.n is not None and arguments.n < 1:
        raise ValueError(f"-n must be at least 1, got {arguments.n}")
    from ..random import Stream, uniform

    model, about = runs.load(arguments.folder)
    name = type(model).__name__
    if not hasattr(model, "score_samples"):
        raise ValueError(f"a {name} has no likelihood; compare its samples with data: generant evaluate")
    held = arguments.data is None
    x = runs.held_out_of(arguments.folder, about).held_x if held else runs.parts(arguments.data, 0, 0).x
    x, unit = x[: arguments.n], "log-likelihood"
    if x.dtype.kind in "iu" and model._log_density():  # a density: bound the probability of the integers themselves
        x = x + (uniform(Stream(0, NOISE).at(0), x.shape, "float64") - 0.5)
        unit = "lower bound of the log-likelihood of whole numbers"
    try:
        nats = np.asarray(model.score_samples(x), np.float64)
    except TypeError as error:
        raise ValueError(str(error)) from None
    spread = nats.std(ddof=1) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    d = math.prod(x.shape[1:])
    print(f"{name}, {len(x)} samples of {d} numbers")
    print(f"{unit}: {nats.mean():.4f} nats per sample (standard error {spread:.2g})")
    print(f"bits per dim: {-nats.mean() / (d * math.log(2)):.4f}")
    return 0
