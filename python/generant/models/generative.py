"""What VAE, GAN and diffusion models share as estimators: fit, partial_fit, sample, save and load.

A model says what its networks are (`_networks`), what a batch turns into (`_inputs`), what a step does (`_step`) and
how rows are drawn (`_sample`); the loop is in training.py. Everything random is a function of the seed and a position,
so the same seed gives the same model and the same samples on any number of threads.

A model that is fitted to CuPy arrays trains on the GPU and samples there; its networks_ are host arrays all the same,
so that files, pickles and sampling on the CPU know no difference. `_at` is the model as it is on a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .. import io, nn, ops, optim
from ..ops import _device
from ..ops._dispatch import to_host
from ..random import Stream, seed_from, split
from .estimator import Estimator, check_count, check_data, check_labels, check_real, not_fitted
from .scaling import Scaling
from .training import Training

__all__ = ["GenerativeModel"]

INIT, ORDER, LEVELS, NOISE, SAMPLE, LABELS, SPLIT, VALIDATION, EVALUATE = range(9)  # purposes of random streams
CHUNK = 1 << 21  # numbers drawn at a time: bounds memory, does not change results
# not part of what a model is, or a model itself
UNSAVED = ("callbacks", "verbose", "checkpoint", "checkpoint_every", "warm_start", "autoencoder")
PASSING = ("_training", "_twin", "_calls")  # attributes that follow from the others, or are of a training under way
Self = TypeVar("Self", bound="GenerativeModel")


class GenerativeModel(Estimator):
    """Base of the estimators. Constructor parameters every model has:

    epochs, batch_size, learning_rate: Adam's, warmed up and cooled to 0 along a cosine. ema_decay: of the averaged
    weights, which are the model. early_stopping: hold out validation_fraction of the rows and stop when the validation
    loss has not fallen by tol for n_iter_no_change epochs; the best weights are kept. warm_start: fit goes on from the
    last one. checkpoint, checkpoint_every: a file, rewritten every so many steps, for fit(resume=). callbacks: called
    as callback(model, entry of history_) after each epoch; a true result ends training. verbose: a progress bar.

    After fit, device_ is where it ran: "cuda" if X was a CuPy array, else "cpu", which a loaded or copied model has.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    ema_decay: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    warm_start: bool
    checkpoint: Any
    checkpoint_every: int
    random_state: int | None
    callbacks: Any
    verbose: int

    # fitted
    scaling_: Scaling
    classes_: np.ndarray | None
    networks_: dict[str, Any]
    device_: str

    clip_norm = 1.0  # of a step's gradient

    # ---- what a model defines ----

    def _check(self) -> None:
        """Raise on bad constructor parameters; called before anything is forgotten."""

    def _scale(self, X: np.ndarray) -> Scaling:
        """The scaling of training data X."""
        return Scaling.standard(X)

    def _networks(self, stream: Stream) -> dict[str, Any]:
        """The trained networks by name, freshly drawn. scaling_ and classes_ are set."""
        raise TypeError(f"{type(self).__name__} does not say what its networks are")

    def _rows(self) -> int:
        """How many rows a step takes."""
        return self.batch_size

    def _order(self, weight: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Which rows an epoch goes through, (n,), before they are shuffled. weight (n,) of mean 1; key 2 uint64."""
        return np.arange(len(weight))

    def _inputs(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray, step: int) -> tuple:
        """The arrays of a training step besides the state. x (b, d), codes (b,) int64 or None, weight (b,) of mean 1.

        Everything here is NumPy; what depends on the step number (keys, levels, annealed weights) is worked out here.
        """
        return x, codes, weight, self._stream(NOISE).at(step)

    def _step(self, state: dict[str, Any], *inputs: Any) -> dict[str, Any]:
        """One training step: losses and gradient norms by name, "loss" first. Ops only: it is recorded and replayed."""
        raise TypeError(f"{type(self).__name__} does not say what a training step is")

    def _validate(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray) -> float:
        """What early stopping watches, on held-out rows: lower is better. networks_ are the averages at this moment.

        On a GPU the rows are there, and so are networks_; see `_at`.
        """
        raise TypeError(f"{type(self).__name__} does not say what a validation loss is")

    def _sample(self, codes: np.ndarray | None, keys: np.ndarray) -> np.ndarray:
        """One scaled row (m, d) per key; row i depends on keys[i] (2 uint64) and codes[i] only.

        On a GPU codes, keys, networks_ and what is returned are there; see `_at`.
        """
        raise TypeError(f"{type(self).__name__} does not say how rows are drawn")

    def _optimiser(self, name: str) -> Callable[[np.ndarray], Any]:
        """The optimiser of the network of that name, as a function of its flat parameters."""
        return lambda params: optim.Adam(params, lr=self.learning_rate, beta2=0.99)

    def _average(self, name: str) -> Callable[[np.ndarray], optim.EMA] | None:
        """The average of the network of that name, or None where its last weights are the model."""
        return lambda params: optim.EMA(params, decay=self.ema_decay, warmup=True)

    def _fitted_config(self) -> dict[str, Any]:
        """More fitted numbers for config.json; `_load_fitted` takes them back."""
        return {}

    def _fitted_arrays(self) -> dict[str, np.ndarray]:
        """More fitted arrays for the file."""
        return {}

    def _load_fitted(self, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take back what `_fitted_config` and `_fitted_arrays` gave. Called before `_networks`."""

    def _encode(self, where: str, y: Any, n: int) -> np.ndarray:
        """Labels as class numbers; sets nothing."""
        labels = check_labels(where, y, n)
        classes = np.asarray(self.classes_)
        known = np.isin(labels, classes)
        if not known.all():
            first = int(np.argmin(known))
            raise ValueError(
                f"{where}: y[{first}] is {labels[~known][0].item()!r}, which fit has not seen; "
                f"the classes are {', '.join(map(str, classes))}"
            )
        return np.searchsorted(classes, labels).astype(np.int64)

    # ---- fitting ----

    @property
    def _n_classes(self) -> int:
        return 0 if self.classes_ is None else len(self.classes_)

    def _stream(self, purpose: int) -> Stream:
        return Stream(self._seed, purpose)

    def _checked(self, where: str, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, Any, np.ndarray]:
        X = check_data(where, _device.from_device(X))
        labels = None if y is None else check_labels(where, y, len(X))
        weight = np.ones(len(X))
        if sample_weight is not None:
            weight = np.asarray(to_host(where, "sample_weight", sample_weight), np.float64)
            if weight.shape != (len(X),):
                raise ValueError(f"{where}: sample_weight must have shape ({len(X)},), got {weight.shape}")
            if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
                raise ValueError(f"{where}: sample_weight must be finite, at least 0 and not all zero")
            used = weight > 0  # the others have no influence, be it on the scaling
            X, labels, weight = X[used], None if labels is None else labels[used], weight[used]
            weight = weight / weight.mean()
        return X, labels, weight.astype(np.float32)

    def _check_all(self) -> None:
        name = type(self).__name__
        for count in ("epochs", "batch_size", "n_iter_no_change", "checkpoint_every"):
            check_count(name, count, getattr(self, count))
        for number, low, high in (("learning_rate", 0, math.inf), ("ema_decay", 0, 1), ("tol", 0, math.inf),
                                  ("validation_fraction", 0, 1)):
            check_real(name, number, getattr(self, number), low, high)
        if self.early_stopping and not 0 < self.validation_fraction < 1:
            raise ValueError(f"{name}: validation_fraction must lie between 0 and 1, got {self.validation_fraction}")
        if not hasattr(self.callbacks, "__iter__") or not all(map(callable, self.callbacks)):
            raise TypeError(f"{name}: callbacks must be a sequence of functions, got {self.callbacks!r}")
        self._check()

    def _begin(self, X: np.ndarray, labels: Any, classes: Any = None) -> None:
        """Forget an earlier fit and prepare for these rows."""
        seed = seed_from(self.random_state)
        scaling = self._scale(X)  # may refuse X; nothing is forgotten then
        for name in [name for name in vars(self) if name.endswith("_") or name in (*PASSING, "_seed")]:
            delattr(self, name)
        self._seed, self.scaling_ = seed, scaling
        self.n_features_in_ = scaling.size
        self.classes_ = None
        if labels is not None:
            self.classes_ = np.unique(labels if classes is None else check_labels("partial_fit", classes, len(classes)))
        self.history_: list[dict[str, Any]] = []
        self.n_iter_ = 0

    def _count(self, codes: np.ndarray | None, weight: np.ndarray) -> None:
        """Rows of each class that were trained on, by weight, and the priors that follow from them."""
        if codes is not None:
            known = codes >= 0
            rows = np.bincount(codes[known], weight[known], minlength=self._n_classes)
            self.class_count_ = getattr(self, "class_count_", 0) + rows
            self.priors_ = self.class_count_ / self.class_count_.sum()

    def _scaled(self, where: str, X: Any) -> np.ndarray:
        """X as scaled rows (n, d) float32, refused if the model can give them no probability."""
        return self.scaling_.forward(where, X)

    def _learners(self, device: str) -> dict[str, nn.Learner]:
        made = {}
        for name, network in self._networks(self._stream(INIT)).items():
            made[name] = nn.Learner(
                network, self._optimiser(name), clip=self.clip_norm, ema=self._average(name), device=device
            )
        return made

    def fit(self: Self, X: Any, y: Any = None, sample_weight: Any = None, *, resume: Any = None) -> Self:
        """Fit to rows or images X (n, ...) and, if given, one class label per row, y (n,).

        sample_weight (n,): how much each row counts; 0 leaves it out. resume: a file that `checkpoint` wrote in a run
        with the same parameters and data; training goes on from there and ends with the same bits as without the
        interruption. Raises DivergedError if the loss stops being finite. In that case, and when interrupted, the model
        keeps the last good weights and can sample and save. A CuPy array X is fitted on its GPU, whatever y is; every
        batch is made on the host.
        """
        where = f"{type(self).__name__}.fit"
        device = self._device_of(where, X)
        X, labels, weight = self._checked(where, X, y, sample_weight)
        self._check_all()
        before = dict(vars(self))
        try:
            goes_on = self.warm_start and hasattr(self, "networks_")
            if not goes_on:
                self._begin(X, labels)
            training = self._continued(device)
            x = self._scaled(where, X)
            codes = self._training_codes(where, labels, len(x))
            if not goes_on:
                self._count(codes, weight)
            training.run(x, codes, weight, epochs=self.epochs, resume=resume)
        except BaseException:
            if not hasattr(self, "networks_"):  # refused before the first step: what was fitted earlier stays
                vars(self).clear()
                vars(self).update(before)
            raise
        return self

    def partial_fit(
        self: Self, X: Any, y: Any = None, sample_weight: Any = None, *, classes: Any = None
    ) -> Self:
        """One pass over X at a constant learning rate, going on from what was fitted before, if anything was.

        classes: all labels that will ever occur, where the first call does not show them all.
        """
        where = f"{type(self).__name__}.partial_fit"
        device = self._device_of(where, X)
        X, labels, weight = self._checked(where, X, y, sample_weight)
        self._check_all()
        if not hasattr(self, "networks_"):
            self._begin(X, labels, classes)
        training = self._continued(device)
        x = self._scaled(where, X)
        codes = self._training_codes(where, labels, len(x))
        self._count(codes, weight)
        training.run(x, codes, weight, epochs=1, constant=True)
        return self

    def _training_codes(self, where: str, labels: Any, n: int) -> np.ndarray | None:
        if (labels is None) != (self.classes_ is None):
            was = "without" if self.classes_ is None else "with"
            raise ValueError(f"{where}: the model was fitted {was} labels; y must be given again or left out again")
        return None if labels is None else self._encode(where, labels, n)

    @staticmethod
    def _device_of(where: str, X: Any) -> str:
        """Where a model is trained on X."""
        return _device.checked_device(where, "cuda" if _device.is_device(X) else "cpu")

    def _continued(self, device: str) -> Training:
        """The training under way, or a new one: of the loaded networks if there are some."""
        if not hasattr(self, "_training"):
            learners = self._learners(device)
            for name, network in getattr(self, "networks_", {}).items():
                learners[name].load_network(network)
            self._training = Training(self, learners, device)
        elif self._training.device != device:
            self._training = self._training.moved(device)
        self._training.follow()
        self.device_ = device
        return self._training

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies: without the training under way, as a saved file is, and for the CPU."""
        kept = {name: value for name, value in vars(self).items() if name not in PASSING}
        return {**kept, "device_": "cpu"} if "device_" in kept else kept

    # ---- sampling ----

    def _fitted(self, what: str) -> None:
        if not hasattr(self, "networks_"):
            raise not_fitted(f"{type(self).__name__}.{what}")

    def _codes(self, n: int, y: Any, seed: int) -> np.ndarray | None:
        """The class number of each sample to draw: y's, or drawn as often as in training."""
        where = f"{type(self).__name__}.sample"
        if self.classes_ is None:
            if y is not None:
                raise ValueError(f"{where}: y was given, but the model was fitted without labels")
            return None
        if y is None:
            edges = np.cumsum(self.priors_)[:-1]
            return np.searchsorted(edges, ops.uniform(Stream(seed, LABELS).at(0), dtype="float64", shape=(n,)), "right")
        y = np.asarray(to_host(where, "y", y))
        return self._encode(where, np.full(n, y[()]) if y.ndim == 0 else y, n)

    def sample(
        self, n_samples: int = 1, y: Any = None, random_state: int | None = None, *, device: str | None = None
    ) -> Any:
        """Draw n_samples rows, shaped like those of fit.

        y: the class of each sample, (n_samples,) or one for all; drawn as often as in training if absent. random_state:
        a seed; fresh entropy if None. A row depends on the seed, its place and its class only, not on n_samples.
        device: "cpu" returns a NumPy array, "cuda" runs on the GPU and returns a CuPy array, of the same numbers but
        for rounding; None is where the model was fitted.
        """
        return self._drawn(n_samples, y, random_state, device)

    def _drawn(self, n_samples: int, y: Any, random_state: int | None, device: str | None, **options: Any) -> Any:
        """What `sample` returns; options are for `_sample`."""
        self._fitted("sample")
        where = f"{type(self).__name__}.sample"
        n = check_count(where, "n_samples", n_samples)
        there = self._at(_device.checked_device(where, device, getattr(self, "device_", "cpu")))
        seed = seed_from(random_state)
        codes, keys = self._codes(n, y, seed), split(Stream(seed, SAMPLE).at(0), n)
        if there is not self:
            codes, keys = None if codes is None else _device.to_device(codes), _device.to_device(keys)
        size = max(16, CHUNK // self.n_features_in_)
        parts = [slice(i, min(i + size, n)) for i in range(0, n, size)]
        rows = [there._sample(None if codes is None else codes[part], keys[part], **options) for part in parts]
        return there._present(_device.namespace(keys).concatenate(rows))

    def _at(self: Self, device: str) -> Self:
        """The model as `device` sees it: itself on the "cpu", on "cuda" a twin whose networks_ are on the GPU.

        The twin is kept, and with it what it recorded, until networks_ are others.
        """
        if device == "cpu":
            return self
        kept = vars(self).get("_twin")
        if kept is None or kept[0] is not self.networks_:
            twin = object.__new__(type(self))
            twin.networks_ = {name: nn.to_device(network) for name, network in self.networks_.items()}
            kept = self._twin = (self.networks_, twin)
        twin = kept[1]
        twin.__dict__.update({k: v for k, v in vars(self).items() if k not in ("networks_", *PASSING)}, device_="cuda")
        return twin

    def _present(self, rows: np.ndarray) -> np.ndarray:
        """Scaled rows, on the host or on a GPU, as the user's there."""
        return self.scaling_.back(rows, clip=getattr(self, "clip", False))

    # ---- files ----

    def save(self, path: str | os.PathLike) -> None:
        """Write the model to a folder, as model.safetensors and config.json."""
        self._fitted("save")
        fitted = {
            **self._fitted_config(),
            "scaling": self.scaling_.config(),
            "n_iter": self.n_iter_,
            "seed": self._seed,
            "classes": None if self.classes_ is None else self.classes_.tolist(),
            "class_count": None if self.classes_ is None else self.class_count_.tolist(),
            "history": [
                {k: (v if not isinstance(v, float) or math.isfinite(v) else None) for k, v in entry.items()
                 if k != "images_per_second"} for entry in self.history_
            ],
        }  # fmt: skip
        where = f"{type(self).__name__}.save"
        params = {k: io.plain(where, k, v) for k, v in self.get_params(deep=False).items() if k not in UNSAVED}
        arrays = {f"scaling.{name}": a for name, a in self.scaling_.arrays().items()}
        arrays |= {f"fitted.{name}": a for name, a in self._fitted_arrays().items()}
        for name, network in self.networks_.items():
            arrays |= {f"{name}.{path}": a for path, a in nn.state(network).items()}
        io.save_model(path, type(self).__name__, arrays, {"params": params, "fitted": fitted})

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike) -> Self:
        """The model that `save` wrote to this folder. io.FormatError if the files are not such a model."""
        arrays, config = io.load_model(path, cls.__name__)

        def under(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

        try:
            params = {k: tuple(v) if isinstance(v, list) else v for k, v in config["params"].items()}
            model, fitted = cls(**params), config["fitted"]
            model.scaling_ = Scaling.load(under("scaling."), fitted["scaling"])
            model.n_features_in_ = model.scaling_.size
            model.n_iter_, model._seed, model.history_ = fitted["n_iter"], fitted["seed"], fitted["history"]
            model.classes_ = None if fitted["classes"] is None else np.array(fitted["classes"])
            if model.classes_ is not None:
                model.class_count_ = np.array(fitted["class_count"])
                model.priors_ = model.class_count_ / model.class_count_.sum()
            model._load_fitted(fitted, under("fitted."))
            networks = model._networks(Stream(0, INIT))
            for name, network in networks.items():
                nn.load_state(network, under(f"{name}."))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise io.FormatError(f"{path} does not hold a complete {cls.__name__} model: {error}") from error
        model.networks_, model.device_ = networks, "cpu"
        return model
