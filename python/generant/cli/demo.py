"""Fit a diffusion model to the UCI digits, sample from it and score the samples.

A fifth of the 1797 real images is held out and only ever used for scoring. Beside the samples stand two yardsticks: the
real training images, which no model can be expected to beat, and samples of one Gaussian per class.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import pictures, runs

if TYPE_CHECKING:
    from ..data import Digits
    from ..models import Diffusion

__all__ = ["add_arguments", "run"]

EPOCHS, SAMPLES = 360, 1500
QUICK = {"epochs": 70, "width": 128, "blocks": 1, "learning_rate": 5e-3, "n_steps": 10}
QUICK_SAMPLES = 500
NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
BASELINE = 7  # purpose of the random stream of the Gaussians
COLUMNS = {
    "kid": ("KID x 1000", "{:.2f}", 1000),
    "mmd2": ("MMD^2 x 1000", "{:.2f}", 1000),
    "precision": ("precision", "{:.3f}", 1),
    "recall": ("recall", "{:.3f}", 1),
    "density": ("density", "{:.3f}", 1),
    "coverage": ("coverage", "{:.3f}", 1),
    "nearest_training_distance": ("nearest training image", "{:.3f}", 1),
    "svc_accuracy": ("SVC accuracy", "{:.3f}", 1),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the split, the model and the samples (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results (default runs/demo)")
    parser.add_argument("--epochs", type=int, help=f"passes over the training images (default {EPOCHS})")
    parser.add_argument("--quick", action="store_true", help="a small model, briefly: does everything work?")
    parser.add_argument("--backend", choices=("native", "numba", "definition", "cuda"),
                        help="not the best one installed; cuda: fit and sample on the GPU")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    begun = time.perf_counter()
    missing = [name for module, name in NEEDED.items() if not find_spec(module)]
    if missing:
        raise ImportError(f"the demo needs {' and '.join(missing)}: pip install 'generant[demo]'")
    if arguments.epochs is not None and arguments.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {arguments.epochs}")
    if not 0 <= arguments.seed < 2**64:
        raise ValueError(f"--seed must lie in 0 ... 2^64 - 1, got {arguments.seed}")
    config, device = _choose_backend(arguments.backend), "cuda" if arguments.backend == "cuda" else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)

    from .. import io
    from ..data import digits
    from ..models import Diffusion, DivergedError
    from ..ops import _device

    data = digits(random_state=arguments.seed)
    print(f"generant {config['generant']}: {config['backend']} backend, {config['threads']} threads, {config['ISA']}")
    if device == "cuda":
        print(f"fit and sample on the GPU: {config['CUDA']}")
    print(f"UCI digits: {len(data.train)} training images, {len(data.held_out)} held out, 8 x 8 pixels, 10 classes")
    settings: dict[str, Any] = dict(QUICK) if arguments.quick else {"epochs": EPOCHS}
    if arguments.epochs is not None:
        settings["epochs"] = arguments.epochs
    model = Diffusion(**settings, random_state=arguments.seed, verbose=1)
    try:
        model.fit(_device.to_device(data.train) if device == "cuda" else data.train, data.train_labels)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {_save(model, arguments.out)}", file=sys.stderr)
        raise
    except DivergedError as error:
        print(f"generant demo: error: {error}\n{_save(model, arguments.out)}", file=sys.stderr)
        return 1
    _save(model, arguments.out)
    fitted = time.perf_counter()

    n = QUICK_SAMPLES if arguments.quick else SAMPLES
    labels = np.arange(n) % 10
    samples = _device.from_device(model.sample(n, labels, random_state=arguments.seed))
    sampled = time.perf_counter()
    scores = _scores(data, samples, labels, arguments.seed)

    shown = np.concatenate([samples[labels == label][:10] for label in range(10)]).reshape(-1, 8, 8)
    picture = pictures.grid(shown, title="Sampled digits by class", labels=range(10), columns=10, ink=True)
    io.write(arguments.out / "samples.png", picture)
    io.write(arguments.out / "loss.png", pictures.curve(model.history_, ylabel="weighted denoising loss"))
    done = time.perf_counter()
    seconds = {"fit": fitted - begun, "sample": sampled - fitted, "score": done - sampled, "all": done - begun}
    report = {
        "seed": arguments.seed,
        "quick": arguments.quick,
        "device": device,
        "config": {k: str(v) for k, v in config.items()},
        "model": {k: v for k, v in model.get_params().items() if k != "callbacks"},
        "n_samples": n,
        "final_loss": model.history_[-1]["loss"],
        "images_per_second": float(np.median([h["images_per_second"] for h in model.history_])),
        "seconds": seconds,
        **scores,
    }
    io.save_json(arguments.out / "metrics.json", report)
    print(f"\n{_table(scores)}\n")
    print(_caption(data, scores, n))
    print(
        f"\nfit {seconds['fit']:.1f} s ({report['images_per_second']:.0f} images/s), sample {seconds['sample']:.1f} s, "
        f"score {seconds['score']:.1f} s: {seconds['all']:.1f} s in all. Written to {arguments.out}/: samples.png, "
        "loss.png, metrics.json, model.safetensors, config.json"
    )
    return 0


def _choose_backend(wanted: str | None) -> dict[str, Any]:
    """The configuration in force, with the backend that was asked for; it can be chosen once per process.

    "cuda" is the GPU beside the best backend of the CPU; an error if there is none.
    """
    if wanted == "cuda":
        runs.check_device("--backend cuda", "cuda")
        wanted = None
    if wanted is not None:
        os.environ["GENERANT_BACKEND"] = wanted
    from .. import show_config

    config = show_config()
    if wanted is not None and config["backend"] != wanted:
        raise ValueError(f"--backend {wanted}: this process already uses {config['backend']}")
    return config


def _save(model: Diffusion, out: Path) -> str:
    """Save the model if there is one; says what happened."""
    if not hasattr(model, "networks_"):
        return "no training step was finished, so there is nothing to save"
    model.save(out)
    return f"the model of step {model.n_iter_} was saved to {out}/"


# ---- scores ----


def _gaussians(data: Digits, n: int, seed: int) -> np.ndarray:
    """Samples of one Gaussian per class, mean and covariance of its training images; row i is of class i % 10."""
    from .. import ops
    from ..random import Stream

    z = ops.normal(Stream(seed, BASELINE).at(0), dtype="float64", shape=(n, data.train.shape[1]))
    out = np.empty_like(z)
    for label in range(10):
        members = data.train[data.train_labels == label].astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(members.T))
        out[label::10] = members.mean(0) + z[label::10] * np.sqrt(values.clip(0)) @ vectors.T
    return out.clip(0, 1).astype(np.float32)


def _scores(data: Digits, samples: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """Every row of the table, by set; and the distance of the held-out images that a sample's is compared with."""
    from sklearn.svm import SVC  # type: ignore[import-untyped]

    from .. import metrics, pairwise

    bandwidth = metrics.median_distance(data.held_out, data.train)

    def row(images: np.ndarray, of: np.ndarray) -> dict[str, float]:
        found = metrics.prdc(data.held_out, images, k=5)
        own = images is data.train  # then the nearest other one
        distances = pairwise.knn(images, k=1)[0] if own else metrics.nearest_distance(images, data.train)[0]
        classifier = SVC(gamma="scale").fit(images, of)
        return {
            "kid": metrics.kid(data.held_out, images, subsets=None).mean,
            "mmd2": float(metrics.mmd2(data.held_out, images, bandwidth=bandwidth)),
            **{name: float(found[name]) for name in ("precision", "recall", "density", "coverage")},
            "nearest_training_distance": float(np.median(distances)),
            "svc_accuracy": float(classifier.score(data.held_out, data.held_out_labels)),
        }

    rows = {
        "diffusion samples": row(samples, labels),
        "one Gaussian per class": row(_gaussians(data, len(samples), seed), np.arange(len(samples)) % 10),
        "real training images": row(data.train, data.train_labels),
    }
    held_out = float(np.median(metrics.nearest_distance(data.held_out, data.train)[0]))
    return {
        "scores": rows,
        "bandwidth": bandwidth,
        "held_out_nearest_training_distance": held_out,
        "nearest_distance_ratio": rows["diffusion samples"]["nearest_training_distance"] / held_out,
        "memorised_fraction": metrics.memorised_fraction(samples, data.train),
    }


def _table(scores: dict[str, Any]) -> str:
    """The scores as a Markdown table whose source is aligned too."""
    head = ["against held-out digits", *(title for title, _, _ in COLUMNS.values())]
    body = [
        [name, *(form.format(row[column] * factor) for column, (_, form, factor) in COLUMNS.items())]
        for name, row in scores["scores"].items()
    ]
    widths = [max(len(cells[i]) for cells in [head, *body]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *numbers = cells
        padded = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(numbers, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:]), ""])
    return "\n".join([line(head), rule, *map(line, body)])


def _caption(data: Digits, scores: dict[str, Any], n: int) -> str:
    held = scores["held_out_nearest_training_distance"]
    return (
        f"{n} samples against {len(data.held_out)} held-out real digits, in pixel space; the training images are the "
        f"floor. MMD^2: Gaussian kernel of\nbandwidth {scores['bandwidth']:.2f}. Nearest training image: median "
        f"distance; held-out digits have {held:.3f}, so the samples stand at "
        f"{scores['nearest_distance_ratio']:.2f}\nof it (copies: 0), and {scores['memorised_fraction']:.1%} are much "
        "nearer to one training image than to any other. SVC accuracy: on the\nheld-out real digits, of a classifier "
        "trained on that row alone."
    )
