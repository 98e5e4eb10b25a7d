"""Diffusion models with scikit-learn's manners: fit(X, y), sample(n_samples, y), score(X), of rows, images or latents.

One idea: a model is four independent choices, each by name: the network (denoisers), what it is fitted to (an objective
of generant.diffusion, flow matching among them), the levels and the sampler of a run, and whether an autoencoder stands
before it. Everything random is a function of the seed and a position.

Not here: the training loop (training), likelihoods (diffusion_score), editing and distillation (generant.diffusion).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import diffusion, io, nn, ops
from ..ops import _device
from ..random import Stream, fold_in, uniform
from . import denoisers, diffusion_score
from .density import DensityModel
from .estimator import check_count, check_data, check_real, check_widths
from .generative import EVALUATE, LEVELS, NOISE, VALIDATION, GenerativeModel
from .scaling import Scaling

__all__ = ["Diffusion"]

CHUNK = 4096  # rows, or this many times 64 pixels, that a network sees at a time: bounds memory, changes no result
DROP, SPREAD = 2, 3  # what a step's key is folded with, to draw whose label is hidden and the noise of whole numbers
ROUNDS = 4  # levels at which every held-out row is looked at


class Diffusion(DensityModel):
    """Diffusion model of rows, images or latents, class-conditional if labels are given.

    architecture: "mlp", a residual MLP of `width` and `blocks` (4); "unet", a U-Net with a width per level in
    `channels`, `blocks` (1) per level, `attention` at those levels with `heads` (1); "dit", a transformer over patches
    of `patch` pixels, with `width`, `blocks` (4), `heads` (4); "auto", "unet" for images of at least 16 x 16, else
    "mlp". autoencoder: a fitted model with transform and inverse_transform, such as a VAE: the diffusion is one of
    its latents (Rombach et al., 2022).

    objective: what the network predicts, "edm" (Karras et al., 2022), "epsilon", "v", "denoised", "score" or "flow",
    or a ready `diffusion.Objective`. form: of the noisy x, "ve", "vp" or "flow". times, weighting: names in
    diffusion.objectives, how levels are drawn and weighted in training. process: what level a time has, a name in
    PROCESSES. None chooses what goes with the prediction; "flow" alone is flow matching (Lipman et al., 2023). p_mean,
    p_std: of log sigma where times are "lognormal". Levels are in the unit in which the data has root mean square 0.5.

    p_uncond: share of training labels that are hidden, for classifier-free guidance; guidance: its weight in sampling,
    1 for none (Ho and Salimans, 2022). dequantise: X are whole numbers, to which every step adds noise uniform on
    [-1/2, 1/2); samples are rounded. sampler: a name in diffusion.SAMPLERS; n_steps, sigma_min, sigma_max, rho,
    schedule: its levels, schedule one of "karras", "exponential", "beta" and "process". clip: keep every feature of a
    sample in the range it has in X. The other parameters are those of every model, see `GenerativeModel`.

    After fit: classes_ (None if unlabelled), n_features_in_, history_ (a dict per epoch: epoch, step, loss, norm and,
    not saved, images_per_second), n_iter_ (steps), networks_. The same seed saves the same bytes.
    """

    def __init__(
        self,
        *,
        architecture: str = "auto",
        width: int = 256,
        blocks: int | None = None,
        channels: Sequence[int] = (32, 64, 64),
        attention: Sequence[int] = (-1,),
        heads: int | None = None,
        patch: int = 2,
        autoencoder: Any = None,
        objective: Any = "edm",
        form: str | None = None,
        times: str | None = None,
        weighting: str | None = None,
        process: str | None = None,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        p_uncond: float = 0.0,
        guidance: float = 1.0,
        dequantise: bool = False,
        sampler: str = "heun",
        n_steps: int = 18,
        schedule: str = "karras",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        clip: bool = True,
        epochs: int = 250,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        ema_decay: float = 0.995,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        warm_start: bool = False,
        checkpoint: Any = None,
        checkpoint_every: int = 1000,
        random_state: int | None = None,
        callbacks: Sequence[Callable[[Any, dict], Any]] = (),
        verbose: int = 0,
    ) -> None:
        self.architecture, self.width, self.blocks = architecture, width, blocks
        self.channels, self.attention, self.heads, self.patch = channels, attention, heads, patch
        self.autoencoder = autoencoder
        self.objective, self.form, self.times = objective, form, times
        self.weighting, self.process = weighting, process
        self.p_mean, self.p_std, self.p_uncond, self.guidance = p_mean, p_std, p_uncond, guidance
        self.dequantise = dequantise
        self.sampler, self.n_steps, self.schedule = sampler, n_steps, schedule
        self.sigma_min, self.sigma_max, self.rho, self.clip = sigma_min, sigma_max, rho, clip
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.ema_decay, self.early_stopping = ema_decay, early_stopping
        self.validation_fraction, self.n_iter_no_change, self.tol = validation_fraction, n_iter_no_change, tol
        self.warm_start, self.checkpoint, self.checkpoint_every = warm_start, checkpoint, checkpoint_every
        self.random_state, self.callbacks, self.verbose = random_state, callbacks, verbose

    # ---- the choices ----

    def _check(self) -> None:
        name = type(self).__name__
        for count in ("width", "patch", "n_steps"):
            check_count(name, count, getattr(self, count))
        check_widths(name, "channels", self.channels)
        for count in ("blocks", "heads"):
            if getattr(self, count) is not None:
                check_count(name, count, getattr(self, count))
        for number, low, high in (("p_mean", -math.inf, math.inf), ("p_std", 0, math.inf), ("p_uncond", 0, 1)):
            check_real(name, number, getattr(self, number), low, high)
        check_real(name, "guidance", self.guidance, -math.inf, math.inf)
        if self.architecture not in denoisers.ARCHITECTURES:
            names = ", ".join(denoisers.ARCHITECTURES)
            raise ValueError(f"{name}: architecture must be one of {names}, got {self.architecture!r}")
        if self.p_uncond == 1:
            raise ValueError(f"{name}: p_uncond must be below 1, or no label is ever seen")
        if self.guidance != 1 and not self.p_uncond:
            raise ValueError(
                f"{name}: guidance = {self.guidance} needs a model that was trained without labels too: set p_uncond, "
                "to 0.1 say"
            )
        self._plan(self._objective())  # refuse a bad sampler before training, not after

    def _objective(self) -> diffusion.Objective:
        return denoisers.make_objective(
            self.objective, form=self.form, times=self.times, weighting=self.weighting, process=self.process,
            p_mean=self.p_mean, p_std=self.p_std,
        )  # fmt: skip

    def _plan(self, objective: diffusion.Objective) -> diffusion.Plan:
        if self.sampler not in diffusion.SAMPLERS:
            raise ValueError(f"Diffusion: sampler is {self.sampler!r}, wanted one of {', '.join(diffusion.SAMPLERS)}")
        levels = denoisers.sampling_levels(
            self.schedule, self.n_steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho,
            level=denoisers.level_of(self.process, objective.form),
        )  # fmt: skip
        plan = diffusion.SAMPLERS[self.sampler](levels)
        return plan if objective.form == "ve" else diffusion.rescaled(plan, objective.form)

    def _scale(self, X: np.ndarray) -> Scaling:
        what = getattr(self.objective, "prediction", None)
        scaling = Scaling.standard(X, rms=getattr(what, "sigma_data", denoisers.SIGMA_DATA))
        denoisers.chosen(self.architecture, scaling.image)
        return scaling

    def _networks(self, stream: Stream) -> dict[str, Any]:
        self.objective_ = self._objective()
        classes = self._n_classes + (1 if self.classes_ is not None and self.p_uncond else 0)
        return {"denoiser": denoisers.build(self, stream, classes=classes)}

    @property
    def network_(self) -> Any:
        """The trained denoiser: network(x, c_noise, labels)."""
        return self.networks_["denoiser"]

    @property
    def _image(self) -> tuple[int, int, int] | None:
        """(h, w, c) if the network sees images."""
        shape = self.scaling_.image
        return None if denoisers.chosen(self.architecture, shape) == "mlp" else shape

    @property
    def _at_once(self) -> int:
        """How many rows a network sees at a time."""
        image = self._image
        return CHUNK if image is None else max(1, CHUNK * 64 // (image[0] * image[1]))

    def _shaped(self, x: np.ndarray) -> np.ndarray:
        """Scaled rows as the network wants them."""
        image = self._image
        return x if image is None else x.reshape(-1, *image)

    @property
    def _denoiser(self) -> denoisers.Denoiser:
        """The trained network, its calls recorded."""
        kept = vars(self).get("_calls")
        if kept is None or kept.network is not self.network_:
            kept = self._calls = denoisers.Denoiser(self.network_)
        return kept

    # ---- fitting ----

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, resume: Any = None) -> Diffusion:
        """As `GenerativeModel.fit`; with an autoencoder, to the latents of X."""
        return super().fit(self._latents("fit", X), y, sample_weight, resume=resume)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, classes: Any = None) -> Diffusion:
        """As `GenerativeModel.partial_fit`; with an autoencoder, on the latents of X."""
        return super().partial_fit(self._latents("partial_fit", X), y, sample_weight, classes=classes)

    def _latents(self, method: str, X: Any) -> Any:
        if self.autoencoder is None:
            return X
        place, X = X, check_data(f"Diffusion.{method}", X)
        for verb in ("transform", "inverse_transform"):
            if not hasattr(self.autoencoder, verb):
                raise TypeError(f"Diffusion: autoencoder has no {verb}: {self.autoencoder!r}")
        own = self.autoencoder
        if isinstance(own, type):
            raise TypeError(f"Diffusion: autoencoder must be a fitted model, got the class {own.__name__}")
        if getattr(own, "labels_matter", False) and getattr(own, "classes_", None) is not None:
            raise ValueError("Diffusion: autoencoder was fitted with labels and cannot decode without; fit it to X")
        return self._through("transform", _device.beside(place, X))

    def _through(self, verb: str, x: Any) -> Any:
        """What the autoencoder makes of x, where x is; one of another library works on the host."""
        own = self.autoencoder
        given = x if isinstance(own, GenerativeModel) else _device.from_device(x)
        found = getattr(own, verb)(given)
        return _device.to_device(found) if _device.is_device(x) else np.asarray(found)

    def _begin(self, X: np.ndarray, labels: Any, classes: Any = None) -> None:
        super()._begin(X, labels, classes)
        if self.autoencoder is not None:  # X are latents; what a latent decodes to is what was given
            self.n_features_in_ = math.prod(np.shape(self.autoencoder.inverse_transform(X[:1]))[1:])

    def __sklearn_clone__(self) -> Diffusion:
        """An unfitted copy whose autoencoder is this one, fitted as it is."""
        return type(self)(**self.get_params(deep=False))

    def _inputs(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray, step: int) -> tuple:
        key, n = self._stream(NOISE).at(step), len(x)
        if codes is not None and self.p_uncond:
            hidden = uniform(fold_in(key, DROP), n, "float64") < self.p_uncond
            codes = np.where(hidden, np.int64(self._n_classes), codes)
        if self.dequantise:
            x = x + (uniform(fold_in(key, SPREAD), x.shape) - np.float32(0.5)) / np.float32(self.scaling_.scale)
        prepared = self.objective_.prepare(self.objective_.levels(self._stream(LEVELS).at(step), n), x.dtype, key)
        prepared = prepared._replace(weight=prepared.weight * weight)
        return self._shaped(x), codes, key, *[c for c in prepared if c is not None]

    def _step(self, state: dict[str, Any], *inputs: Any) -> dict[str, Any]:
        x, codes, key, *prepared = inputs
        learner = self._training.learners["denoiser"]
        loss = lambda network: ops.mean(self.objective_.prepared_losses(network, x, codes, prepared, key))
        value, gradients = nn.value_and_grad(loss)(learner.network(state["denoiser"]))
        return {"loss": value, "norm": learner.update(state["denoiser"], gradients)[1]}

    def _validate(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray) -> float:
        """The training loss, always at the same levels and noises."""
        total = 0.0
        for start in range(0, len(x), self._at_once):
            part = slice(start, start + self._at_once)
            data, labels = self._shaped(x[part]), None if codes is None else codes[part]
            for i in range(ROUNDS):
                key = self._stream(VALIDATION).at(start * ROUNDS + i)
                levels = self.objective_.levels(fold_in(key, 0), len(data))
                losses = self.objective_.losses(self.network_, data, labels, levels, key)
                total += float((losses * weight[part]).sum(dtype=np.float64))
        return total / (ROUNDS * float(weight.sum()))

    # ---- sampling ----

    def sample(
        self, n_samples: int = 1, y: Any = None, random_state: int | None = None, *, guidance: float | None = None,
        device: str | None = None,
    ) -> Any:  # fmt: skip
        """Draw n_samples rows, shaped like those of fit.

        y: the class of each sample, (n_samples,) or one for all; drawn as often as in training if absent. random_state:
        a seed; fresh entropy if None. guidance: instead of the model's. A row depends on the seed, its place and its
        class only, not on n_samples. device: "cpu" returns a NumPy array, "cuda" runs on the GPU and returns a CuPy
        array, of the same numbers but for rounding; None is where the model was fitted.
        """
        self._fitted("sample")
        weight = check_real("Diffusion.sample", "guidance", self.guidance if guidance is None else guidance,
                            -math.inf, math.inf)  # fmt: skip
        if weight != 1 and (self.classes_ is None or not self.p_uncond):
            raise ValueError(
                f"Diffusion.sample: guidance = {weight:g} needs a model that was fitted with labels and p_uncond > 0"
            )
        return self._drawn(n_samples, y, random_state, device, weight=weight)

    def _sample(self, codes: Any, keys: Any, weight: float = 1.0) -> Any:
        goal, network = self.objective_, self._denoiser
        plan, shape = self._plan(goal), self._image or (self.scaling_.size,)
        xp = _device.namespace(keys)
        rows = xp.empty((len(keys), self.scaling_.size), np.float64)
        for start in range(0, len(keys), self._at_once):
            part = slice(start, min(start + self._at_once, len(keys)))
            labels, guidance = None if codes is None else codes[part], None
            if labels is not None and weight != 1:
                both = xp.concatenate([labels, _device.full(labels, labels.shape, self._n_classes, labels.dtype)])
                guidance = diffusion.Guidance(weight, goal.predictor(network, both), batched=True)
            said = diffusion.sample(
                goal.predictor(network, labels), diffusion.initial_noise(plan, keys[part], shape), plan,
                prediction=goal.prediction, keys=keys[part], guidance=guidance, clip=self._bound if self.clip else None,
            )  # fmt: skip
            rows[part] = said.reshape(len(said), -1)
        return rows

    @property
    def _bound(self) -> float:
        """The largest number that scaled training data held."""
        s = self.scaling_
        return float((np.maximum(s.high - s.offset, s.offset - s.low).max() + 0.5 * self.dequantise) / s.scale)

    def _present(self, rows: np.ndarray) -> np.ndarray:
        found = super()._present(rows)
        if self.dequantise:
            found = _device.namespace(found).rint(found)
        return found if self.autoencoder is None else self._through("inverse_transform", found)

    # ---- likelihoods ----

    def _score(self, x: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        return diffusion_score.flow_nats(self, x, codes, self._stream(EVALUATE))

    def class_scores(self, X: Any) -> np.ndarray:
        """log p(x | class) for every class of `classes_`, (n, classes), in nats; of latents, with an autoencoder.

        Above 8 features an estimate, the variational one of a few levels: all classes are judged by the same noise, so
        differences are sharper than values; see `score_samples` for those. Li et al. (2023), "diffusion classifier".
        """
        self._fitted("class_scores")
        if self.classes_ is None:
            raise ValueError("Diffusion.class_scores: the model was fitted without labels")
        x = self.scaling_.forward("Diffusion.class_scores", self._latents("class_scores", X))
        if self.scaling_.size <= diffusion_score.EXACT:
            return self._exact_class_scores(x)
        found = diffusion_score.class_bounds(self, x, self._n_classes, self._stream(EVALUATE))
        return found + self._log_density()

    def score_samples(self, X: Any, y: Any = None) -> np.ndarray:
        """log p(x) of every row in nats, (n,), by the probability flow; log p(x | y) if labels y (n,) are given.

        The density is that of X with noise of sigma_min. Above 8 features its divergence is estimated with random
        probes, the same for the same place in X, and a conditional model without y gives log p(x | c) + log p(c) -
        log p(c | x), c the likeliest class by `class_scores`. Song et al. (2021), eq. 39.
        """
        self._fitted("score_samples")
        if self.autoencoder is not None:
            raise TypeError("Diffusion.score_samples: of latents is no likelihood of X; leave the autoencoder away")
        if self.classes_ is None or y is not None or self.scaling_.size <= diffusion_score.EXACT:
            return super().score_samples(X, y)
        joint = self.class_scores(X) + self._log_priors
        best = joint.argmax(axis=1)
        top = joint.max(axis=1)
        posterior = top - diffusion_score.logsumexp(joint)
        nats = self._score(self.scaling_.forward("Diffusion.score_samples", X), best.astype(np.int64))
        return nats + self._log_density() + self._log_priors[best] - posterior

    def bits_per_dim(self, X: Any, y: Any = None) -> np.ndarray:
        """-log2 p(x) per number of X, (n,). Integers are dequantised first: uniform noise on [-1/2, 1/2) is added, and
        the bits are a bound on those of the integers themselves (Theis et al., 2016).
        """
        self._fitted("bits_per_dim")
        X = check_data("Diffusion.bits_per_dim", X)
        if X.dtype.kind in "iub":
            X = X + (uniform(self._stream(EVALUATE).at(1 << 32), X.shape, "float64") - 0.5)
        return -self.score_samples(X, y) / (self.n_features_in_ * math.log(2))

    # ---- files ----

    def _fitted_config(self) -> dict[str, Any]:
        if not isinstance(self.objective, str):
            raise TypeError(
                "Diffusion.save: a ready objective cannot be written to a file; name its prediction, form, times and "
                f"weighting instead of {self.objective!r}"
            )
        own = self.autoencoder
        return {"n_features_in": self.n_features_in_, "autoencoder": None if own is None else type(own).__name__}

    def _load_fitted(self, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.n_features_in_ = config["n_features_in"]

    def save(self, path: str | os.PathLike) -> None:
        """Write the model to a folder, as model.safetensors and config.json; its autoencoder to a folder in it."""
        super().save(path)
        if self.autoencoder is not None:
            self.autoencoder.save(Path(path) / "autoencoder")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Diffusion:
        """The model that `save` wrote to this folder. io.FormatError if the files are not such a model."""
        from .. import models

        model = super().load(path)
        kind = io.load_json(Path(path) / io.CONFIG)["fitted"]["autoencoder"]
        if kind is not None:
            if kind not in models.__all__:
                raise io.FormatError(f"{path} needs an autoencoder of class {kind!r}, which generant.models has not")
            model.autoencoder = getattr(models, kind).load(Path(path) / "autoencoder")
        return model
