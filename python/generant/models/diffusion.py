"""A diffusion model with scikit-learn's manners: fit(X, y), sample(n_samples, y).

The denoiser is a residual MLP under EDM preconditioning, trained with Adam and averaged; sampling integrates the
probability-flow equation with a deterministic sampler. Everything random is a function of the seed and a position, so
the same seed gives the same model and the same samples on any number of threads.

Not here: convolutional denoisers; guidance and likelihoods, which generant.diffusion has, as methods of the model.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import diffusion, io, nn, ops, optim
from ..data.batches import batches
from ..random import Stream, seed_from, split
from .estimator import DivergedError, Estimator, NotFittedError, check_count, check_data, check_labels, check_real

__all__ = ["Diffusion"]

INIT, ORDER, LEVELS, NOISE, SAMPLE, LABELS = range(6)  # purposes of random streams
SIGMA_DATA = 0.5  # root mean square of the data as the network sees it: the unit of sigma in Karras et al. (2022)
CHUNK = 4096  # rows sampled at a time: bounds memory, does not change results
WARMUP = 100  # steps until the learning rate is full, at most a tenth of training
CLIP_NORM = 1.0  # of a step's gradient
HISTORY = ("epoch", "step", "loss")  # what a file keeps of history_: nothing that depends on the clock


class Diffusion(Estimator):
    """Diffusion model of rows, class-conditional if labels are given. Karras et al. (2022), "EDM".

    width, blocks: size of the residual MLP.  epochs, batch_size, learning_rate: Adam, warmed up and cooled to 0 along a
    cosine.  ema_decay: of the averaged weights, with which samples are drawn.  p_mean, p_std: mean and deviation of
    log sigma in training; sigma is in the unit in which the data has root mean square 0.5.  sampler: a name in
    diffusion.SAMPLERS, "heun" say; n_steps, sigma_min, sigma_max, rho: its noise levels.  clip: keep every feature of
    a sample in the range it has in X.  random_state: seed of `fit`.  callbacks: called as callback(model, entry of
    history_) after each epoch; a true result ends training.  verbose: show a progress bar.

    After fit: classes_ (None if unlabelled), n_features_in_, history_ (a dict per epoch: epoch, step, loss and, not
    saved, images_per_second), n_iter_ (steps). The same seed saves the same bytes.
    """

    def __init__(
        self,
        *,
        width: int = 256,
        blocks: int = 4,
        epochs: int = 250,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        ema_decay: float = 0.995,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        sampler: str = "heun",
        n_steps: int = 18,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        clip: bool = True,
        random_state: int | None = None,
        callbacks: Sequence[Callable[[Any, dict], Any]] = (),
        verbose: int = 0,
    ) -> None:
        self.width, self.blocks = width, blocks
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.ema_decay, self.p_mean, self.p_std = ema_decay, p_mean, p_std
        self.sampler, self.n_steps = sampler, n_steps
        self.sigma_min, self.sigma_max, self.rho, self.clip = sigma_min, sigma_max, rho, clip
        self.random_state, self.callbacks, self.verbose = random_state, callbacks, verbose

    # ---- fitting ----

    def fit(self, X: Any, y: Any = None) -> Diffusion:
        """Fit to rows X (n, ...) and, if given, one class label per row, y (n,).

        Raises DivergedError if the loss stops being finite. In that case, and when interrupted, the model keeps the
        last good weights and can sample and save.
        """
        X = check_data("Diffusion.fit", X)
        labels = None if y is None else check_labels("Diffusion.fit", y, len(X))
        for name in ("width", "blocks", "epochs", "batch_size"):
            check_count("Diffusion", name, getattr(self, name))
        infinity = math.inf
        for name, low, high in (
            ("learning_rate", 0, infinity), ("ema_decay", 0, 1), ("p_mean", -infinity, infinity), ("p_std", 0, infinity)
        ):
            check_real("Diffusion", name, getattr(self, name), low, high)
        self._plan()  # refuse a bad sampler before training, not after
        seed = seed_from(self.random_state)

        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # an earlier fit
        rows = X.reshape(len(X), -1).astype(np.float64)
        self.shape_, self.n_features_in_ = X.shape[1:], rows.shape[1]
        self.dtype_ = X.dtype if X.dtype in (np.float32, np.float64) else np.dtype(np.float32)
        self.offset_, self.low_, self.high_ = rows.mean(0), rows.min(0), rows.max(0)
        rows -= self.offset_
        self.scale_ = float(np.sqrt(np.mean(rows**2)) / SIGMA_DATA) or 1.0
        x = (rows / self.scale_).astype(np.float32)
        self.bound_ = float(np.abs(x).max())
        self.classes_, codes = None, None
        if labels is not None:
            self.classes_, codes = np.unique(labels, return_inverse=True)
            codes = codes.astype(np.int64)
            self.priors_ = np.bincount(codes) / len(codes)
        self._train(x, codes, seed)
        return self

    def _network(self, stream: Stream) -> nn.MlpDenoiser:
        classes = 0 if self.classes_ is None else len(self.classes_)
        return nn.MlpDenoiser(self.n_features_in_, stream, classes=classes, width=self.width, blocks=self.blocks)

    def _train(self, x: np.ndarray, codes: np.ndarray | None, seed: int) -> None:
        network = self._network(Stream(seed, INIT))
        packed = nn.pack(network)
        gradient = packed.zeros()
        slots = packed.views(gradient)
        adam = optim.Adam(packed.data, lr=self.learning_rate, beta2=0.99)
        ema = optim.EMA(packed.data, decay=self.ema_decay, warmup=True)
        edm = diffusion.Edm(SIGMA_DATA, p_mean=self.p_mean, p_std=self.p_std)
        loss_and_gradient = nn.value_and_grad(edm.loss)
        order, levels, noise = Stream(seed, ORDER), Stream(seed, LEVELS), Stream(seed, NOISE)

        size = min(self.batch_size, len(x))
        total = self.epochs * (len(x) // size)
        warmup = min(WARMUP, total // 10)
        self.history_: list[dict[str, float]] = []
        bar = self._progress(total * size)
        done = 0  # steps whose weights are good
        try:
            for epoch in range(self.epochs):
                losses, begun = [], time.perf_counter()
                for index in batches(len(x), size, order.at(epoch)):
                    labels = None if codes is None else codes[index]
                    sigma = edm.training_sigmas(levels.at(done), size)
                    loss, gradients = loss_and_gradient(network, x[index], labels, sigma, noise.at(done))
                    for slot, g in zip(slots, gradients, strict=True):
                        slot[...] = g
                    finite, norm = optim.clip(gradient, CLIP_NORM)
                    value = float(loss)
                    if not (finite[0] and math.isfinite(value)):
                        raise DivergedError(
                            f"Diffusion.fit: the loss is {value:.4g} and its gradient has norm {norm[0]:.4g} at step "
                            f"{done + 1} (epoch {epoch + 1}): training stopped, the weights of step {done} are kept. "
                            "A lower learning_rate may help"
                        )
                    adam.lr[0] = optim.cosine(done, lr=self.learning_rate, total=total, warmup=warmup)
                    adam.step(gradient, finite)
                    ema.update(finite)
                    done += 1
                    losses.append(value)
                    if bar is not None:
                        bar.update(size)
                rate = len(losses) * size / (time.perf_counter() - begun)
                entry = {"epoch": epoch + 1, "step": done, "loss": float(np.mean(losses)), "images_per_second": rate}
                self.history_.append(entry)
                if bar is not None:
                    bar.set_postfix(loss=f"{entry['loss']:.4f}", refresh=False)
                if any([callback(self, entry) for callback in self.callbacks]):
                    break
        finally:  # whatever ended training, its last good weights are the model
            if bar is not None:
                bar.close()
            if done:
                packed.data[...] = ema.average
                self.network_, self.n_iter_ = network, done

    def _progress(self, images: int) -> Any:
        if not self.verbose:
            return None
        from tqdm import tqdm  # type: ignore[import-untyped]

        return tqdm(total=images, desc="fit", unit=" images", unit_scale=True, dynamic_ncols=True)

    # ---- sampling ----

    def _plan(self) -> diffusion.Plan:
        if self.sampler not in diffusion.SAMPLERS:
            raise ValueError(f"Diffusion: sampler is {self.sampler!r}, wanted one of {', '.join(diffusion.SAMPLERS)}")
        check_count("Diffusion", "n_steps", self.n_steps)
        sigmas = diffusion.karras_sigmas(self.n_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        return diffusion.SAMPLERS[self.sampler](sigmas)

    def _fitted(self, what: str) -> None:
        if not hasattr(self, "network_"):
            raise NotFittedError(f"Diffusion.{what}: the model is not fitted yet; call fit first")

    def _codes(self, n: int, y: Any, seed: int) -> np.ndarray | None:
        """The class number of each sample to draw."""
        if self.classes_ is None:
            if y is not None:
                raise ValueError("Diffusion.sample: y was given, but the model was fitted without labels")
            return None
        if y is None:
            edges = np.cumsum(self.priors_)[:-1]
            return np.searchsorted(edges, ops.uniform(Stream(seed, LABELS).at(0), dtype="float64", shape=(n,)), "right")
        y = np.asarray(y)
        labels = check_labels("Diffusion.sample", np.full(n, y[()]) if y.ndim == 0 else y, n)
        known = np.isin(labels, self.classes_)
        if not known.all():
            first = int(np.argmin(known))
            raise ValueError(
                f"Diffusion.sample: y[{first}] is {labels[~known][0].item()!r}, which fit has not seen; "
                f"the classes are {', '.join(map(str, self.classes_))}"
            )
        return np.searchsorted(self.classes_, labels).astype(np.int64)

    def sample(self, n_samples: int = 1, y: Any = None, random_state: int | None = None) -> np.ndarray:
        """Draw n_samples rows, shaped like those of fit.

        y: the class of each sample, (n_samples,) or one for all; drawn as often as in training if absent. random_state:
        a seed; fresh entropy if None. A row depends on the seed, its place and its class only, not on n_samples.
        """
        self._fitted("sample")
        n = check_count("Diffusion.sample", "n_samples", n_samples)
        seed = seed_from(random_state)
        codes = self._codes(n, y, seed)
        plan, edm = self._plan(), diffusion.Edm(SIGMA_DATA)
        keys, rows = split(Stream(seed, SAMPLE).at(0), n), np.empty((n, self.n_features_in_))
        for start in range(0, n, CHUNK):
            part = slice(start, min(start + CHUNK, n))
            predict = edm.predictor(self.network_, None if codes is None else codes[part])
            x = diffusion.initial_noise(plan, keys[part], (self.n_features_in_,))
            rows[part] = diffusion.sample(
                predict, x, plan, prediction=edm, keys=keys[part], clip=self.bound_ if self.clip else None
            )
        rows = rows * self.scale_ + self.offset_
        if self.clip:
            np.clip(rows, self.low_, self.high_, out=rows)
        return rows.astype(self.dtype_).reshape(n, *self.shape_)

    # ---- files ----

    def save(self, path: str | os.PathLike) -> None:
        """Write the model to a folder, as model.safetensors and config.json."""
        self._fitted("save")
        params = {k: v for k, v in self.get_params().items() if k != "callbacks"}
        fitted = {
            "shape": list(self.shape_),
            "dtype": self.dtype_.name,
            "scale": self.scale_,
            "bound": self.bound_,
            "n_iter": self.n_iter_,
            "classes": None if self.classes_ is None else self.classes_.tolist(),
            "priors": None if self.classes_ is None else self.priors_.tolist(),
        }
        arrays = {f"network.{name}": a for name, a in nn.state(self.network_).items()}
        history = np.array([[h[name] for name in HISTORY] for h in self.history_], np.float64).reshape(-1, len(HISTORY))
        arrays |= {"offset": self.offset_, "low": self.low_, "high": self.high_, "history": history}
        io.save_model(path, type(self).__name__, arrays, {"params": params, "fitted": fitted})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Diffusion:
        """The model that `save` wrote to this folder. io.FormatError if the files are not such a model."""
        arrays, config = io.load_model(path, cls.__name__)
        try:
            model, fitted = cls(**config["params"]), config["fitted"]
            model.shape_ = tuple(fitted["shape"])
            model.n_features_in_ = math.prod(model.shape_)
            model.dtype_ = np.dtype(fitted["dtype"])
            model.scale_, model.bound_, model.n_iter_ = fitted["scale"], fitted["bound"], fitted["n_iter"]
            model.history_ = [
                {"epoch": int(e), "step": int(s), "loss": loss} for e, s, loss in arrays.pop("history").tolist()
            ]
            model.classes_ = None if fitted["classes"] is None else np.array(fitted["classes"])
            if model.classes_ is not None:
                model.priors_ = np.array(fitted["priors"])
            model.offset_, model.low_, model.high_ = (arrays.pop(name) for name in ("offset", "low", "high"))
            network = model._network(Stream(0, INIT))
            nn.load_state(network, {name.removeprefix("network."): a for name, a in arrays.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise io.FormatError(f"{path} does not hold a complete {cls.__name__} model: {error}") from error
        nn.pack(network)
        model.network_ = network
        return model
