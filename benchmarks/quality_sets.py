"""What quality.py measures: models of digits 8 x 8, of MNIST 28 x 28 and of points in the plane, a seed at a time.

Every subject is a name, its settings, and a function measure(seed, settings, show) that fits, samples and returns plain
numbers. show(name, images or points) is where pictures go. All draws are functions of the seed. Models and baselines of
a set see the same split and are judged on the same held-out rows.

Not here: which settings and seeds (SETS in quality.py), averages, goals and tables (quality_tables.py).
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.neighbors import KernelDensity
from sklearn.svm import SVC

from generant import data, metrics, models
from generant.models.diversity import modes_found

Show = Callable[[str, np.ndarray], None]


class Subject(NamedTuple):
    """A row of a table: what is fitted, how, on which seeds. seeds: how many at most, if it is not for all."""

    measure: Callable[[int, dict, Show], dict[str, float]]
    settings: dict[str, Any]
    seeds: int | None = None


class Clock:
    """Seconds of all threads of this process since the last look: what others do on the machine adds little to them."""

    def __init__(self) -> None:
        self.last = time.process_time()

    def __call__(self) -> float:
        last, self.last = self.last, time.process_time()
        return self.last - last


def made(settings: dict[str, Any], seed: int) -> Any:
    """The model that settings name. Falls of diversity in training are told by the figures, not by warnings."""
    kind = getattr(models, settings["model"])
    return kind(**{k: v for k, v in settings.items() if k != "model"}, random_state=seed)


def fitted(settings: dict[str, Any], seed: int, *rows: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return made(settings, seed).fit(*rows)


# ---------------------------------------------------------------- digits 8 x 8

LEVELS = 17  # of a pixel
SAMPLES = 5000


class Digits:
    """The split of a seed as whole numbers 0 ... 16, and the held-out rows dequantised: x = (k + u) / 17."""

    def __init__(self, seed: int) -> None:
        split = data.digits(held_out=0.3, random_state=seed)
        self.train, self.held = (np.rint(16 * a) for a in (split.train, split.held_out))
        self.train_labels, self.held_labels = split.train_labels, split.held_out_labels
        self.spread = np.random.default_rng([seed, 1]).random(self.held.shape)  # u, the same for everyone

    def dequantised(self, copies: int, seed: int) -> np.ndarray:
        """Training rows x = (k + u) / 17, so many times over, each with its own u."""
        rows = np.tile(self.train, (copies, 1))
        return (rows + np.random.default_rng([seed, 2]).random(rows.shape)) / LEVELS


def likeness(held: np.ndarray, fake: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """KID of all samples; precision and recall of as many samples as there are held-out rows; distance to copies."""
    balls = metrics.prdc(held, fake[: len(held)], k=5)
    return {
        "kid": metrics.kid(held, fake, subsets=None).mean,
        "precision": balls["precision"],
        "recall": balls["recall"],
        "nearest_ratio": metrics.nearest_train_ratio(held, fake, train),
        "memorised": metrics.memorised_fraction(fake, train),
    }


def on_samples_only(fake: np.ndarray, labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray) -> float:
    """Accuracy on real rows of a classifier that has seen nothing but samples."""
    return float(SVC(gamma="scale").fit(fake, labels).score(real, real_labels))


def log_mean(joint: np.ndarray) -> float:
    """Mean of log sum_c exp(joint[:, c])."""
    return float(np.logaddexp.reduce(joint, axis=1).mean())


def digits_model(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """A conditional model: as a classifier and a density where it has a likelihood, and by its samples.

    Everyone is given k / 16, but a Diffusion with dequantise is given k itself, and a GAN images. Samples are taken
    back to k / 16 before they are judged.
    """
    d, clock = Digits(seed), Clock()
    whole = settings.get("dequantise", False)
    shaped = lambda k: (k if whole else k / 16).astype(np.float32)
    rows = shaped(d.train).reshape(-1, 8, 8) if settings["model"] == "GAN" else shaped(d.train)
    found: dict[str, float] = {}
    if settings["model"] == "GAN":
        model = fitted(settings, seed, rows, d.train_labels)
    else:
        classifier = models.GenerativeClassifier(made(settings, seed)).fit(rows, d.train_labels)
        model = classifier.model_
    found["fit_seconds"] = clock()
    labels = np.arange(SAMPLES) % 10
    fake = model.sample(SAMPLES, labels, random_state=seed).reshape(SAMPLES, -1)
    found["sample_seconds"] = clock()
    if settings["model"] == "VAE":  # the middle of a bin
        fake = np.floor(fake * LEVELS)
    elif not whole:
        fake = np.rint(16 * fake)
    fake = (np.clip(fake, 0, 16) / 16).astype(np.float32)
    if settings["model"] != "GAN":
        clock()
        found["accuracy"] = float(classifier.score(shaped(d.held), d.held_labels))
        found["classify_seconds"] = clock()
        if whole:
            x = (d.held + d.spread - 0.5).astype(np.float32)
            found["nats"] = float(np.mean(model.score_samples(x))) + 64 * np.log(LEVELS)
        else:
            found["nats"] = float(np.mean(model.score_samples(((d.held + d.spread) / LEVELS).astype(np.float32))))
        found["score_seconds"] = clock()
    real = (d.held / 16).astype(np.float32)
    found["svc"] = on_samples_only(fake, labels, real, d.held_labels)
    show("samples", fake[:100].reshape(-1, 8, 8))
    return {**found, **likeness(real, fake, (d.train / 16).astype(np.float32))}


def digits_real(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """The training rows themselves, as if they were samples."""
    d = Digits(seed)
    train, held = (d.train / 16).astype(np.float32), (d.held / 16).astype(np.float32)
    found = likeness(held, train, train)
    return {
        "svc": on_samples_only(train, d.train_labels, held, d.held_labels),
        **{name: found[name] for name in ("kid", "precision", "recall")},
    }


def digits_mixture(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """A Gaussian mixture; components and kind of covariance by the likelihood of a fifth of the training rows."""
    d, clock = Digits(seed), Clock()
    order = np.random.default_rng([seed, 3]).permutation(len(d.train))
    out, kept = np.split(order, [len(order) // 5])
    whole, copies = d.dequantised(settings["copies"], seed), settings["copies"]
    pick = lambda index: np.concatenate([whole[index + i * len(order)] for i in range(copies)])
    kinds = itertools.product(*(settings[name] for name in ("components", "covariances", "added_variances")))
    mixture = lambda n, kind, added: GaussianMixture(n, covariance_type=kind, reg_covar=added, random_state=seed)
    best = max(kinds, key=lambda kind: mixture(*kind).fit(pick(kept)).score(whole[out]))
    chosen = mixture(*best).fit(whole)
    seconds = clock()
    fake = np.clip(np.floor(chosen.sample(SAMPLES)[0] * LEVELS), 0, 16)
    fake = np.random.default_rng([seed, 4]).permutation(fake) / 16
    nats = chosen.score((d.held + d.spread) / LEVELS)
    found = likeness(d.held / 16, fake, d.train / 16)
    return {"fit_seconds": seconds, "nats": nats, "chosen": best, **found}


def digits_kernels(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """A Gaussian on every training row; their width by the likelihood of a fifth of the rows."""
    d, clock = Digits(seed), Clock()
    whole = d.dequantised(1, seed)
    widths = np.geomspace(*settings["widths"]).tolist()
    search = GridSearchCV(KernelDensity(), {"bandwidth": widths}, cv=ShuffleSplit(1, test_size=0.2, random_state=seed))
    chosen = search.fit(whole).best_params_["bandwidth"]
    kernels = KernelDensity(bandwidth=chosen).fit(d.dequantised(settings["copies"], seed))
    seconds = clock()
    fake = np.clip(np.floor(kernels.sample(SAMPLES, random_state=seed) * LEVELS), 0, 16) / 16
    nats = float(np.mean(kernels.score_samples((d.held + d.spread) / LEVELS)))
    found = likeness(d.held / 16, fake, d.train / 16)
    return {"fit_seconds": seconds, "nats": nats, "bandwidth": chosen, **found}


# ---------------------------------------------------------------- MNIST, 5000 images


def mnist_model(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """A conditional model of 28 x 28 pixels, judged by 2000 samples in pixel space."""
    split, clock = data.mnist5k(held_out=0.2, random_state=seed), Clock()
    model = fitted(settings, seed, split.train, split.train_labels)
    found = {"fit_seconds": clock()}
    labels = np.arange(2000) % 10
    fake = model.sample(2000, labels, random_state=seed)
    found["sample_seconds"] = clock()
    show("samples", fake[:100])
    held, fake, train = (a.reshape(len(a), -1) for a in (split.held_out, fake, split.train))
    found["svc"] = on_samples_only(fake, labels, held, split.held_out_labels)
    return {**found, **likeness(held, fake, train)}


def mnist_real(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """The training images themselves, as if they were samples."""
    split = data.mnist5k(held_out=0.2, random_state=seed)
    held, train = (a.reshape(len(a), -1) for a in (split.held_out, split.train))
    mixed = np.random.default_rng(seed).permutation(len(train))
    found = likeness(held, train[mixed], train)
    return {
        "svc": on_samples_only(train, split.train_labels, held, split.held_out_labels),
        **{name: found[name] for name in ("kid", "precision", "recall")},
    }


def binary_mnist() -> tuple[np.ndarray, ...]:
    """(training images, labels, held-out images, labels), a pixel being 0 or 1; the same split for all seeds."""
    split = data.mnist5k(held_out=0.2, random_state=0)
    black = lambda x: (x >= 0.5).astype(np.float32)
    return black(split.train), split.train_labels, black(split.held_out), split.held_out_labels


def mnist_nll(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """Importance-sampled nats of held-out binary images given their labels, by the VAE."""
    train, labels, held, held_labels = binary_mnist()
    clock = Clock()
    model = fitted(settings, seed, train, labels)
    seconds = clock()
    return {"fit_seconds": seconds, "nll": -float(np.mean(model.score_samples(held, held_labels)))}


def mnist_twin_nll(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """The same of a network in torch that shares nothing with ours but its architecture and training recipe."""
    import torch_vae

    clock = Clock()
    net = torch_vae.trained(*binary_mnist()[:2], settings, seed)
    seconds = clock()
    found = torch_vae.importance_nll(net, *binary_mnist()[2:], settings["n_importance_score"])
    return {"fit_seconds": seconds, "nll": found}


# ---------------------------------------------------------------- points in the plane

POINTS = 2500
FRESH = 1000  # added to the seed of points that no model has seen
WIDTHS = (0.05, 0.2, 1.0)  # of the kernels whose sum tests points in the plane


def points(name: str, seed: int) -> np.ndarray:
    drawn = getattr(data, name)(POINTS, seed)
    return drawn.x if hasattr(drawn, "x") else drawn


def toy(seed: int, settings: dict, show: Show) -> dict[str, float]:
    """Samples against fresh points: energy distance beside that of two real samples, a test, and modes if there are."""
    name, clock = settings["points"], Clock()
    model = fitted({k: v for k, v in settings.items() if k != "points"}, seed, points(name, seed))
    found = {"fit_seconds": clock()}
    fake = model.sample(POINTS, random_state=seed)
    found["sample_seconds"] = clock()
    show(name, fake)
    real, other = points(name, FRESH + seed), points(name, 2 * FRESH + seed)
    test = metrics.mmd_test(real, fake, permutations=200, bandwidth=WIDTHS, random_state=seed)
    found |= {
        "energy": metrics.energy_distance(real, fake),
        "energy_real": metrics.energy_distance(real, other),
        "mmd2": test.statistic,
        "mmd2_threshold": test.threshold,
        "p": test.p_value,
    }
    if name in ("grid25", "ring8"):
        truth = getattr(data, name)(1, 0)
        found["modes"], found["near"] = modes_found(fake, truth.centres, truth.sigma)
        found["of"] = len(truth.centres)
    return found
