"""Many metrics of one sample at once, with error bars, from as few passes over all pairs as they need.

Precision, recall, density and coverage come from one neighbour search within each sample and one pass across;
authenticity, the memorised fraction and the nearest-train ratio from one search of the samples among the training rows.
Every pass is made when the first metric asks for it and kept until the last one that may.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops.neighbours import knn
from . import memorisation as memory
from . import mmd, neighbours, spectral, transport
from ._points import as_points, positive_integer
from .fld import fld
from .frechet import frechet_distance

RESAMPLES = 200  # of the bootstrap
Score = tuple[float, "float | None"]  # value and standard error, None where there is none
Progress = Callable[[str, int, int], Any]


class Evaluation(dict[str, float]):
    """Values by metric name. errors: standard errors, where there are any. seconds: how long each took (a pass over
    pairs counts for the first that needs it). skipped: metrics of the default set that these samples are too few for,
    and why. settings: sizes and options. str() is a table, to_dict() goes into JSON."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.errors: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.skipped: dict[str, str] = {}
        self.settings = settings

    def __str__(self) -> str:
        rows = [("metric", "value", "std. error", "")]
        for name, value in self.items():
            rows.append((name, *_figures(value, self.errors.get(name)), METRICS[name].better))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{n:<{widths[0]}}  {v:>{widths[1]}}  {e:>{widths[2]}}  {b}".rstrip() for n, v, e, b in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        for why in dict.fromkeys(self.skipped.values()):
            lines.append(f"left out: {', '.join(n for n in self.skipped if self.skipped[n] == why)} ({why})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts; a value that is not finite becomes None, which JSON has."""
        return {
            "metrics": {
                name: {"value": _finite(value), "standard_error": _finite(self.errors.get(name))}
                for name, value in self.items()
            },
            "skipped": dict(self.skipped),
            "settings": dict(self.settings),
            "seconds": dict(self.seconds),
        }


def _figures(value: float, error: float | None) -> tuple[str, str]:
    """A value and its error as text: two digits of the error, and the value to the same place."""
    if not error or not math.isfinite(error):
        return f"{value:.5g}", ""
    places = 1 - math.floor(math.log10(error))
    kind = f".{places}f" if 0 <= places <= 7 and abs(value) < 1e7 else ".3g"
    return f"{value:{kind}}", f"{error:{kind}}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


class _Passes:
    """The samples, and the passes over their pairs that have been made."""

    def __init__(
        self, real: NDArray[Any], fake: NDArray[Any], train: NDArray[Any] | None, k: int, ties: str, random_state: Any
    ) -> None:
        self.real, self.fake, self.k, self.ties = real, fake, k, ties
        self._train, self._random_state = train, random_state

    @property
    def train(self) -> NDArray[Any]:
        assert self._train is not None
        return self._train

    def seed(self, purpose: int) -> np.random.Generator:
        """A generator of its own for every metric, so that a value does not depend on which others are asked for."""
        return np.random.default_rng([self._random_state, purpose])

    @property
    def closed(self) -> bool:
        return self.ties == "closed"

    def _radius(self, name: str, x: NDArray[Any]) -> NDArray[Any]:
        if self.k >= len(x):
            raise ValueError(f"evaluate: k must be below {len(x)}, the rows of {name}, got {self.k}")
        return np.ascontiguousarray(knn(x, k=self.k)[0][:, -1])

    @cached_property
    def real_radius(self) -> NDArray[Any]:
        return self._radius("real", self.real)

    @cached_property
    def balls(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        radii = self.real_radius, self._radius("fake", self.fake)
        return neighbours.count_balls(self.real, self.fake, *radii, self.closed)

    @cached_property
    def fake_to_train(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if len(self.train) < 2:
            raise ValueError(f"evaluate: train must have at least 2 rows, got shape {self.train.shape}")
        return knn(self.fake, self.train, k=2)

    @cached_property
    def real_to_train(self) -> NDArray[Any]:
        return knn(self.real, self.train, k=1)[0][:, 0]

    @cached_property
    def train_to_train(self) -> NDArray[Any]:
        return knn(self.train, k=1)[0][:, 0]


# ---- the metrics ----


def _share(of: NDArray[Any]) -> Score:
    """A fraction and its binomial standard error, for which a hit and a miss are added: so it is never 0."""
    hits, n = int(np.count_nonzero(of)), len(of)
    p = (hits + 1) / (n + 2)
    return hits / n, math.sqrt(p * (1 - p) / (n + 2))


def _mean(of: NDArray[Any]) -> Score:
    return float(np.mean(of)), float(np.std(of, ddof=1) / math.sqrt(len(of))) if len(of) > 1 else None


def _fd(p: _Passes) -> Score:
    return float(frechet_distance(p.real, p.fake)), None


def _kid(p: _Passes) -> Score:
    value, error = mmd.kid(p.real, p.fake, subsets=None)
    return value, error if math.isfinite(error) else None


def _mmd2(p: _Passes) -> Score:
    return float(mmd.mmd2(p.real, p.fake, random_state=p.seed(2))), None


def _cmmd(p: _Passes) -> Score:
    return mmd.cmmd(p.real, p.fake, normalize=True), None


def _energy(p: _Passes) -> Score:
    return mmd.energy_distance(p.real, p.fake), None


def _precision(p: _Passes) -> Score:
    return _share(p.balls[0] > 0)


def _recall(p: _Passes) -> Score:
    return _share(p.balls[2] > 0)


def _density(p: _Passes) -> Score:
    return _mean(p.balls[0] / p.k)


def _coverage(p: _Passes) -> Score:
    return _share(p.balls[1] > 0)


def _realism(p: _Passes) -> Score:
    return float(np.median(neighbours.realism_in_balls(p.real, p.real_radius, p.fake))), None


def _rarity(p: _Passes) -> Score:
    radius = neighbours.rarity_in_balls(p.real, p.real_radius, p.fake, p.closed)
    inside = radius[~np.isnan(radius)]
    return _mean(inside.astype(np.float64)) if len(inside) else (math.nan, None)


def _vendi(p: _Passes) -> Score:
    return spectral.vendi_score(p.fake), None


def _mind(p: _Passes) -> Score:
    return transport.mind(p.real, p.fake, random_state=p.seed(3)), None


def _sliced(p: _Passes) -> Score:
    return transport.sliced_wasserstein(p.real, p.fake, random_state=p.seed(3)), None


def _sinkhorn(p: _Passes) -> Score:
    return transport.sinkhorn_divergence(p.real, p.fake), None


def _authenticity(p: _Passes) -> Score:
    distance, index = p.fake_to_train
    return _share(p.train_to_train[index[:, 0]] < distance[:, 0])


def _memorised(p: _Passes) -> Score:
    return _share(memory.much_nearer(p.fake_to_train[0], 1 / 3))


def _nearest_train(p: _Passes) -> Score:
    fake, real, rng = p.fake_to_train[0][:, 0], p.real_to_train, p.seed(4)
    ratio = memory.ratio_of_distances
    drawn = [ratio(rng.choice(fake, len(fake)), rng.choice(real, len(real))) for _ in range(RESAMPLES)]
    return ratio(fake, real), float(np.std(drawn, ddof=1)) if np.isfinite(drawn).all() else None


def _ct(p: _Passes) -> Score:
    return memory.ct_score(p.real, p.fake, p.train, random_state=p.seed(5)), None


def _fld(p: _Passes) -> Score:
    return fld(p.real, p.fake, p.train, random_state=p.seed(6)), None


def _mifid(p: _Passes) -> Score:
    return memory.mifid(p.real, p.fake, p.train), None


class _Metric(NamedTuple):
    score: Callable[[_Passes], Score]
    better: str
    train: bool = False  # needs training rows
    default: bool = True


METRICS = {
    "fd": _Metric(_fd, "lower is better"),
    "kid": _Metric(_kid, "lower is better, 0 for equal distributions"),
    "mmd2": _Metric(_mmd2, "lower is better, 0 for equal distributions", default=False),
    "cmmd": _Metric(_cmmd, "lower is better", default=False),
    "energy": _Metric(_energy, "lower is better", default=False),
    "mind": _Metric(_mind, "lower is better"),
    "sliced_wasserstein": _Metric(_sliced, "lower is better", default=False),
    "sinkhorn": _Metric(_sinkhorn, "lower is better", default=False),
    "precision": _Metric(_precision, "higher is better"),
    "recall": _Metric(_recall, "higher is better"),
    "density": _Metric(_density, "higher is better, 1 for equal distributions"),
    "coverage": _Metric(_coverage, "higher is better"),
    "realism": _Metric(_realism, "higher is better (median)", default=False),
    "rarity": _Metric(_rarity, "higher is rarer (mean of the rows in some ball)", default=False),
    "vendi": _Metric(_vendi, "effective number of different samples"),
    "authenticity": _Metric(_authenticity, "higher is better, towards 0 for copies", train=True),
    "memorised_fraction": _Metric(_memorised, "lower is better", train=True),
    "nearest_train_ratio": _Metric(_nearest_train, "1 is best, 0 for copies", train=True),
    "ct": _Metric(_ct, "0 is best, below -3 for copies", train=True),
    "mifid": _Metric(_mifid, "lower is better", train=True, default=False),
    "fld": _Metric(_fld, "lower is better, 0 for a perfect model", train=True, default=False),
}
PRDC = ("precision", "recall", "density", "coverage")


def _names(metrics: str | Iterable[str] | None, train: bool) -> dict[str, bool]:
    """Metrics to compute, in order: whether each must succeed, which those that were named must."""
    if metrics is None:
        return {name: False for name, metric in METRICS.items() if metric.default and (train or not metric.train)}
    names: dict[str, bool] = {}
    for name in [metrics] if isinstance(metrics, str) else metrics:
        if name == "all":
            for one, metric in METRICS.items():
                if train or not metric.train:
                    names.setdefault(one, False)
        elif name == "prdc":
            names |= dict.fromkeys(PRDC, True)
        elif name in METRICS:
            names[name] = True
        else:
            known = f"{', '.join(METRICS)}; prdc and all stand for several"
            raise ValueError(f"evaluate: unknown metric {name!r}; known are {known}")
    without = [name for name in names if METRICS[name].train and not train]
    if without:
        raise ValueError(f"evaluate: {', '.join(without)} compare with training rows: give train")
    if not names:
        raise ValueError("evaluate: metrics names none")
    return names


def evaluate(
    real: ArrayLike,
    fake: ArrayLike,
    train: ArrayLike | None = None,
    *,
    metrics: str | Iterable[str] | None = None,
    k: int = 5,
    ties: str = "strict",
    random_state: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Several metrics of fake against real, and against train where they look for copies: {name: value}, with errors.

    real (n, d): held-out rows if train is given, fake (m, d), train (l, d): features. metrics: names, or None for those
    that are quick: fd, kid, mind, precision, recall, density, coverage, vendi and, with train, authenticity,
    memorised_fraction, nearest_train_ratio, ct. "prdc" stands for four of them and "all" for every one there is (also
    mmd2, cmmd, energy, sliced_wasserstein, sinkhorn, realism (its median), rarity (its mean over rows in some ball)
    and, with train, mifid and fld). Each is the function whose name it abbreviates (fd: frechet_distance) at its
    defaults, but kid takes all pairs (subsets=None), cmmd scales rows to unit length, and vendi is of fake.
    k: neighbours of precision, recall, density, coverage, realism and rarity; ties as for prdc. random_state: an
    integer; values do not depend on which other metrics are asked for. progress(name, done, total) is called before
    every metric and at the end (name "").
    Standard errors: of kid that of its U-statistic; of precision, recall, coverage, authenticity and memorised_fraction
    binomial (a hit and a miss added, so that none is 0), of density and rarity std / sqrt(rows), balls and neighbours
    taken as given; of nearest_train_ratio by bootstrap of the distances (200 times). Others have none. Metrics that
    were not named and that the samples are too few for are skipped, and said so; named ones raise.
    Passes over pairs: n^2 / 2 + m^2 / 2 + n m for kid, once more for prdc, m l + n l + l^2 / 2 for the four of train.
    Memory O(n + m + l). Raises ValueError for unknown names (listing the known), other shapes, values not finite.
    """
    given: dict[str, Any] = dict(real=real, fake=fake) if train is None else dict(real=real, fake=fake, train=train)
    real, fake, *rest = as_points("evaluate", **given)
    k = positive_integer("evaluate", "k", k)
    neighbours.rim_belongs("evaluate", ties)
    if isinstance(random_state, bool) or not isinstance(random_state, (int, np.integer)) or random_state < 0:
        raise ValueError(f"evaluate: random_state must be an integer of at least 0, got {random_state!r}")
    names = _names(metrics, bool(rest))
    passes = _Passes(real, fake, rest[0] if rest else None, k, ties, int(random_state))
    settings: dict[str, Any] = {"n_real": len(real), "n_fake": len(fake), "dimensions": real.shape[1]}
    if rest:
        settings["n_train"] = len(rest[0])
    found = Evaluation({**settings, "k": k, "ties": ties, "random_state": int(random_state)})
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        begun = time.perf_counter()
        try:
            value, error = METRICS[name].score(passes)
        except ValueError as refused:
            if names[name]:
                raise
            found.skipped[name] = str(refused)
            continue
        found[name] = value
        if error is not None:
            found.errors[name] = error
        found.seconds[name] = time.perf_counter() - begun
    if progress is not None:
        progress("", len(names), len(names))
    return found
