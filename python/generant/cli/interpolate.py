"""Walk from one sample of a run to another: a strip of images, one per line, or an array.

In the latents of a VAE, in the noise of a GAN, or in the noise that a diffusion starts from.

  generant interpolate runs/vae --out strip.png -n 10 --lines 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from . import runs
from .sample import check_suffix, write_samples

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder that generant fit, or save, wrote")
    parser.add_argument("-n", type=int, default=8, help="samples on a line, its ends included (default 8)")
    parser.add_argument("--lines", type=int, default=1, help="how many lines, each of the next seed (default 1)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png, .npz (array x) or .npy")
    parser.add_argument("--y", metavar="LABEL", help="the class of all (default: the first)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the ends (default 0)")


def run(arguments: argparse.Namespace) -> int:
    from ..models.interpolation import interpolate

    seed = runs.check_seed(arguments.seed)
    if arguments.n < 2:
        raise ValueError(f"-n must be at least 2, got {arguments.n}")
    if arguments.lines < 1:
        raise ValueError(f"--lines must be at least 1, got {arguments.lines}")
    check_suffix(arguments.out)
    model, _ = runs.load(arguments.folder)
    label = runs.label_of(model, arguments.y)
    x = np.concatenate([interpolate(model, arguments.n, label, seed + i) for i in range(arguments.lines)])
    write_samples(arguments.out, x, None, model, columns=arguments.n)
    print(f"{arguments.lines} x {arguments.n} samples written to {arguments.out}")
    return 0
