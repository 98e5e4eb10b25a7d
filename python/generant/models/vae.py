"""A variational autoencoder with scikit-learn's manners: fit, sample, score, transform, reconstruct, interpolate.

The parts are files of their own: p(x | z) in likelihoods.py, p(z) in priors.py, encoders and decoders in
vae_networks.py, bounds in vae_objectives.py. Here they are put together, and rows go in and come out.

Not here: discrete latents (vqvae.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import nn, ops
from ..ops import _device
from ..random import Stream, normals, permutation
from . import likelihoods, priors, vae_objectives
from .decoder_model import DecoderModel, row_keys
from .estimator import available_if, check_count, check_real
from .generative import CHUNK, EVALUATE, NOISE, SPLIT, VALIDATION
from .unknown_labels import fill_unknown, is_known
from .vae_networks import Autoencoder, Classifier, autoencoder_parts, presented

__all__ = ["VAE"]

NO_CLASSIFIER = "semi_supervised is off; GenerativeClassifier(model) classifies by Bayes' rule"
OBJECTIVES, PRIORS = ("elbo", "iwae"), ("normal", "mixture", "vamp")


class VAE(DecoderModel):
    """p(x | y) = int p(x | z, y) p(z) dz, trained through q(z | x, y). Kingma and Welling (2014).

    latent_dim: numbers in z. hidden: widths of the encoder, reversed for the decoder. architecture: "mlp", "conv"
    (images (h, w) or (h, w, c); channels, one halving of the size for each) or "auto": "conv" from 16 x 16 pixels on.
    likelihood: what p(x | z) is, as models.likelihoods.likelihood takes it; "gaussian" learns one variance. objective,
    n_importance: "elbo", or "iwae" with so many draws of z per row (Burda et al., 2016). beta, kl_warmup: the weight of
    the divergence and the steps over which it rises from 0 to beta. free_bits: nats per latent dimension that cost
    nothing. prior: "normal", "mixture" or "vamp" of n_components. Labels given to `fit` condition encoder and decoder.
    semi_supervised: y may hold -1 (None, NaN) where a label is unknown; a classifier q(y | x) is trained beside, with
    weight alpha (Kingma et al., 2014, "M2"), and `predict` asks it. n_importance_score: draws per row of
    `score_samples`. observation_noise: whether samples are drawn from p(x | z) or its mean; None: drawn, except that a
    "bernoulli" of grey pixels gives its mean. The remaining parameters are those of every model (GenerativeModel).

    X is standardised inside for Gaussians and taken to 0 ... 1 for "bernoulli". With ("logistic", k) and
    ("categorical", k) it holds codes 0 ... k - 1, or fractions in [0, 1]: those are binned into k equal parts, and
    scored as a density that is constant on each, so that x = (code + u) / k is scored without a bound in between.
    """

    def __init__(
        self,
        *,
        latent_dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        architecture: str = "auto",
        channels: Sequence[int] = (32, 64),
        likelihood: Any = "gaussian",
        objective: str = "elbo",
        n_importance: int = 1,
        beta: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        prior: str = "normal",
        n_components: int = 16,
        semi_supervised: bool = False,
        alpha: float = 0.1,
        n_importance_score: int = 100,
        observation_noise: bool | None = None,
        epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        ema_decay: float = 0.99,
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
        self.latent_dim, self.hidden, self.architecture, self.channels = latent_dim, hidden, architecture, channels
        self.likelihood, self.objective, self.n_importance = likelihood, objective, n_importance
        self.beta, self.kl_warmup, self.free_bits = beta, kl_warmup, free_bits
        self.prior, self.n_components = prior, n_components
        self.semi_supervised, self.alpha = semi_supervised, alpha
        self.n_importance_score, self.observation_noise = n_importance_score, observation_noise
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.ema_decay, self.early_stopping, self.validation_fraction = ema_decay, early_stopping, validation_fraction
        self.n_iter_no_change, self.tol, self.warm_start = n_iter_no_change, tol, warm_start
        self.checkpoint, self.checkpoint_every, self.random_state = checkpoint, checkpoint_every, random_state
        self.callbacks, self.verbose = callbacks, verbose

    clip_norm = math.inf

    def _check(self) -> None:
        super()._check()
        name = type(self).__name__
        for count in ("latent_dim", "n_importance", "n_components", "n_importance_score"):
            check_count(name, count, getattr(self, count))
        check_count(name, "kl_warmup", self.kl_warmup, 0)
        for number in ("beta", "free_bits", "alpha"):
            check_real(name, number, getattr(self, number), 0, math.inf)
        for choice, options in (("objective", OBJECTIVES), ("prior", PRIORS)):
            if getattr(self, choice) not in options:
                raise ValueError(f"{name}: {choice} is {getattr(self, choice)!r}, wanted one of {', '.join(options)}")
        if self.free_bits and (self.prior != "normal" or self.objective == "iwae"):
            raise ValueError(f"{name}: free_bits needs the elbo and a normal prior, whose divergence is known")
        if self.semi_supervised and (self.objective == "iwae" or self.n_importance > 1 or self.free_bits):
            raise ValueError(f"{name}: semi_supervised needs the elbo with n_importance = 1 and without free_bits")

    # ---- data ----

    def _begin(self, X: np.ndarray, labels: Any, classes: Any = None) -> None:
        if self.semi_supervised:
            if labels is None or not is_known(labels).any():
                raise ValueError(f"{type(self).__name__}.fit: semi_supervised needs y with at least one known label")
            known = is_known(labels)
            super()._begin(X, labels[known], classes)
            X, labels = X[known], labels[known]
        else:
            super()._begin(X, labels, classes)
        if self.prior == "vamp":
            index = np.resize(permutation(self._stream(SPLIT).at(1), len(X)), self.n_components)
            codes = None if labels is None else self._encode("VAE.fit", labels[index], len(index))
            self._pseudo = self.scaling_.forward("VAE.fit", X[index]), codes

    def _prior(self, stream: Stream, likelihood: Any) -> tuple[Any, Any]:
        """(p(z), the classes of its pseudo-inputs); None is the standard normal."""
        if self.prior == "normal":
            return None, None
        if self.prior == "mixture":
            return priors.MixturePrior(self.latent_dim, self.n_components, stream), None
        k = self.n_components
        empty = np.zeros((k, self.n_features_in_), np.float32), np.zeros(k, np.int64) if self._n_classes else None
        x, codes = getattr(self, "_pseudo", empty)  # a loaded model's come with its arrays
        high = {"Bernoulli": 1.0}.get(type(likelihood).__name__, self._levels() - 1.0 if self._levels() else None)
        low = 0.0 if high or isinstance(likelihood, likelihoods.Multinomial) else None
        return priors.VampPrior(x, low=low, high=high), codes

    def _checked(self, where: str, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, Any, np.ndarray]:
        return super()._checked(where, X, fill_unknown(y) if self.semi_supervised else y, sample_weight)

    def _training_codes(self, where: str, labels: Any, n: int) -> np.ndarray | None:
        if not self.semi_supervised:
            return super()._training_codes(where, labels, n)
        known = is_known(labels)
        self._strength = self.alpha * n / max(1, known.sum())
        codes = np.full(n, -1, np.int64)
        codes[known] = self._encode(where, labels[known], int(known.sum()))
        return codes

    # ---- training ----

    @property
    def _net(self) -> Any:
        return self.networks_["vae"]

    def _networks(self, stream: Stream) -> dict[str, Any]:
        shape = self._sites(self.scaling_.shape)
        likelihood = likelihoods.likelihood(self.likelihood, shape[-1])
        width = presented(likelihood, np.zeros((1, shape[-1]), np.float32)).shape[1]
        parts = autoencoder_parts(
            shape, width, likelihood.n_outputs(shape[-1]), self.latent_dim, stream, hidden=tuple(self.hidden),
            channels=tuple(self.channels), classes=self._n_classes,
        )  # fmt: skip
        classifier = None
        if self.semi_supervised:
            classifier = Classifier(
                shape, width, self._n_classes, stream, hidden=tuple(self.hidden), channels=tuple(self.channels)
            )
        prior, codes = self._prior(stream, likelihood)
        return {"vae": Autoencoder(shape, likelihood, *parts, prior, codes, classifier)}

    def _beta(self, step: int) -> np.ndarray:
        rise = min(1.0, (step + 1) / (self.kl_warmup + 1))
        return np.array(self.beta * rise, np.float32)

    def _inputs(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray, step: int) -> tuple:
        return self._arguments(x, codes, weight, self._stream(NOISE).at(step), self._beta(step))

    def _arguments(self, x: np.ndarray, codes: Any, weight: np.ndarray, key: np.ndarray, beta: np.ndarray) -> tuple:
        """What `_loss` takes."""
        if self.semi_supervised:
            onehot = (codes[:, None] == np.arange(self._n_classes)).astype(np.float32)
            log_priors = np.maximum(self._log_priors, -30.0)[None].astype(np.float32)  # finite: 0 times it is 0
            classes = np.tile(np.arange(self._n_classes), len(x))
            strength = np.array(self._strength, np.float32)
            return x, (codes >= 0).astype(np.float32), onehot, weight, key, beta, log_priors, classes, strength
        each = None if codes is None else np.repeat(codes, self.n_importance)
        return x, codes, each, weight, key, beta

    def _loss(self, net: Any, *inputs: Any) -> tuple[Any, ...]:
        if self.semi_supervised:
            return vae_objectives.m2(net, *inputs)
        if self.objective == "iwae":
            return vae_objectives.iwae(net, *inputs, samples=self.n_importance, latent=self.latent_dim)
        return vae_objectives.elbo(net, *inputs, samples=self.n_importance, free_bits=self.free_bits)

    def _step(self, state: dict[str, Any], *inputs: Any) -> dict[str, Any]:
        learner = self._training.learners["vae"]
        values, gradients = nn.value_and_grad(self._loss)(learner.network(state["vae"]), *inputs)
        _, norm = learner.update(state["vae"], gradients)
        names = ("loss", "reconstruction", "kl", "cross_entropy")
        return {**dict(zip(names, values, strict=False)), "norm": norm}

    def _validate(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray) -> float:
        key, beta = self._stream(VALIDATION).at(0), np.array(self.beta, np.float32)
        rows, labels, shares = (_device.from_device(a) for a in (x, codes, weight))
        inputs = [_device.beside(x, a) for a in self._arguments(rows, labels, shares, key, beta)]
        return float(self._loss(self._net, *inputs)[0])

    # ---- sampling and scoring ----

    def _prior_draws(self, keys: Any) -> Any:
        """z of every key, (m, latent)."""
        net, noise = self._net, normals(keys, (self.latent_dim,))
        if net.prior is None:
            return noise
        mu, logvar, logits = net.prior.components(net.encode_pseudo)
        u = 0.5 * (1 + ops.erf(normals(keys, (), "float64", stream=2) / 2**0.5))
        which = likelihoods.draw_levels(u, _device.full(mu, (len(mu),), 0.0, np.float64) if logits is None else logits)
        return mu[which] + np.exp(0.5 * logvar[which]) * noise

    def _sample(self, codes: Any, keys: Any) -> Any:
        net = self._net
        return self._observed(net.decode(self._prior_draws(keys), codes), keys)

    def _score(self, x: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        net, k = self._net, self.n_importance_score
        size = max(1, CHUNK // (k * max(self.n_features_in_, *self.hidden)))
        keys, scores = row_keys(x, self._stream(EVALUATE)), np.empty(len(x))
        for i in range(0, len(x), size):
            part = slice(i, min(i + size, len(x)))
            noise = ops.normals(keys[part], np.zeros(1, np.uint64), np.ones(1), shape=(k, self.latent_dim))
            chosen = None if codes is None else codes[part]
            scores[part] = vae_objectives.importance_log_prob(net, x[part], chosen, noise)
        return scores + net.likelihood.log_constant(x.reshape(len(x), *net.shape))

    # ---- classes ----

    @available_if(lambda model: model.semi_supervised, NO_CLASSIFIER)
    def predict_proba(self, X: Any) -> np.ndarray:
        """q(y | x) of a semi-supervised model, (n, classes), in the order of `classes_`."""
        self._fitted("predict_proba")
        where = f"{type(self).__name__}.predict_proba"
        return np.asarray(ops.softmax(self._net.class_logits(self.scaling_.forward(where, X))))

    @available_if(lambda model: model.semi_supervised, NO_CLASSIFIER)
    def predict(self, X: Any) -> np.ndarray:
        """The class to which q(y | x) gives most, (n,)."""
        proba = self.predict_proba(X)
        return self.classes_[np.argmax(proba, axis=1)]  # type: ignore[index]

    # ---- latents ----

    def _latent_shape(self) -> tuple[int, ...]:
        return (self.latent_dim,)

    def _latents(self, x: Any, codes: Any) -> Any:
        return self._net.encode(x, codes)[0]

    def _decoded(self, z: Any, codes: Any) -> Any:
        return self._expected(self._net.decode(z.astype(np.float32), codes))

    def _likeliest(self, x: np.ndarray) -> np.ndarray:
        if self.semi_supervised:
            return np.argmax(self._net.class_logits(x), axis=1)
        scores = [self._score(x, np.full(len(x), c, np.int64)) for c in range(self._n_classes)]
        return np.argmax(np.stack(scores, axis=1) + self._log_priors, axis=1)
