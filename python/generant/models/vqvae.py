"""Autoencoders with discrete latents: VQVAE with a learned codebook, FSQ with a grid.

One estimator with two quantisers. A sample becomes codes, one for each of a few positions; a small autoregressive prior
over them (code_prior.py) is trained beside, on codes whose gradient stops, so that samples can be drawn.

Not here: quantisers (quantisers.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import nn, ops, optim
from ..ops import _device
from ..random import Stream
from . import likelihoods
from .code_prior import CodePrior
from .decoder_model import DecoderModel
from .estimator import check_count, check_data, check_real, check_widths
from .generative import NOISE
from .quantisers import EmaCodebook, FiniteScalar, perplexity, quantise
from .vae_networks import presented
from .vqvae_networks import CodedAutoencoder, coded_parts

__all__ = ["FSQ", "VQVAE"]


PRIOR_RATE = 3.0  # the prior's learning rate, in that of the autoencoder


class _Quantised(DecoderModel):
    """What VQVAE and FSQ share. Subclasses give `_quantiser`, and `commitment` if there is a loss."""

    positions: int
    commitment = 0.0
    labels_matter = False
    clip_norm = math.inf

    def _quantiser(self, stream: Stream) -> Any:
        raise TypeError(f"{type(self).__name__} does not say what its quantiser is")

    def _check(self) -> None:
        super()._check()
        name = type(self).__name__
        check_count(name, "positions", self.positions)
        check_real(name, "commitment", self.commitment, 0, math.inf)

    # ---- training ----

    @property
    def _net(self) -> Any:
        return self.networks_["autoencoder"]

    def _networks(self, stream: Stream) -> dict[str, Any]:
        shape, quantiser = self._sites(self.scaling_.shape), self._quantiser(stream)
        likelihood = likelihoods.likelihood(self.likelihood, shape[-1])
        width = presented(likelihood, np.zeros((1, shape[-1]), np.float32)).shape[1]
        encoder, decoder, grid = coded_parts(
            shape, width, likelihood.n_outputs(shape[-1]), quantiser.d, stream, hidden=tuple(self.hidden),
            channels=tuple(self.channels), positions=self.positions,
        )  # fmt: skip
        prior = CodePrior(quantiser.m, math.prod(grid), stream, classes=self._n_classes)
        return {"autoencoder": CodedAutoencoder(shape, grid, likelihood, encoder, decoder, quantiser), "prior": prior}

    def _average(self, name: str) -> Callable[[np.ndarray], optim.EMA] | None:
        """A codebook belongs to the encoder of the same step, so weights are averaged only where there is a grid."""
        return super()._average(name) if self.ema_decay else None

    def _learning_rate(self, name: str) -> float:
        """The prior is small and its targets move, so it learns faster."""
        return self.learning_rate * (PRIOR_RATE if name == "prior" else 1.0)

    def _inputs(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray, step: int) -> tuple:
        labels = np.zeros(len(x), np.int64) if codes is None else codes
        net = self._training.learners["autoencoder"].module
        u = ops.uniform(self._stream(NOISE).at(step), dtype="float64", shape=(net.quantiser.m,))
        return x, labels, weight, (u * (len(x) * math.prod(net.grid))).astype(np.int64)

    def _loss(self, net: Any, x: Any, weight: Any) -> tuple[Any, ...]:
        """-log p(x | codes) + commitment |z - sg(code)|^2, summed over a row, averaged over rows with their weights."""
        through, z, codes = quantise(net.quantiser, net.encode(x))
        loss = reconstruction = net.cost(x, net.decode(through), weight)
        if self.commitment:
            away = ops.reshape(ops.square(ops.sub(z, ops.stop_gradient(through))), shape=(x.shape[0], -1))
            cost = ops.mean(ops.mul(ops.sum(away, axis=1), weight))
            loss = ops.add(loss, ops.affine(cost, scale=self.commitment))
        return loss, reconstruction, z, codes

    def _step(self, state: dict[str, Any], x: Any, labels: Any, weight: Any, candidates: Any) -> dict[str, Any]:
        learner = self._training.learners["autoencoder"]
        net = learner.network(state["autoencoder"])
        (loss, reconstruction, z, codes), gradients = nn.value_and_grad(self._loss)(net, x, weight)
        ok, norm = learner.update(state["autoencoder"], gradients)
        net.quantiser.observe_(z, codes, candidates, ok)
        learner = self._training.learners["prior"]

        prior_loss, gradients = nn.value_and_grad(CodePrior.loss)(
            learner.network(state["prior"]), codes, labels, weight
        )
        learner.update(state["prior"], gradients)
        used = perplexity(z, codes, net.quantiser.m)
        return {
            "loss": loss, "reconstruction": reconstruction, "prior_loss": prior_loss, "perplexity": used, "norm": norm
        }  # fmt: skip

    def _validate(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray) -> float:
        return -float(np.mean(_device.from_device(weight) * self._score(x, codes)))

    # ---- codes ----

    def _coded(self, x: Any) -> Any:
        """Codes (n, t) of scaled rows."""
        net = self._net
        return quantise(net.quantiser, net.encode(x))[2].reshape(len(x), -1)

    def _from_codes(self, codes: Any) -> Any:
        """The parameters of p(x | codes), from codes (n, t)."""
        net = self._net
        return net.decode(net.quantiser.codebook()[codes.reshape(-1)])

    def encode(self, X: Any) -> np.ndarray:
        """The codes of X: (n, positions) int64, or (n, h', w') of a convolutional model."""
        self._fitted("encode")
        x = self.scaling_.forward(f"{type(self).__name__}.encode", X)
        return self._coded(x).reshape(len(x), *self._net.grid)

    def decode(self, codes: Any) -> np.ndarray:
        """What codes shaped as `encode` gives them stand for, shaped like X: the mean of p(x | codes)."""
        self._fitted("decode")
        where, grid, m = f"{type(self).__name__}.decode", self._net.grid, self._net.quantiser.m
        codes = check_data(where, codes)
        if codes.shape[1:] != grid or codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= m:
            raise ValueError(
                f"{where}: codes must be integers in 0 ... {m - 1} of shape (n, {', '.join(map(str, grid))}), got "
                f"{codes.dtype} {codes.shape} from {codes.min()} to {codes.max()}"
            )
        return self._present(self._expected(self._from_codes(codes.astype(np.int64))))

    def _latent_shape(self) -> tuple[int, ...]:
        net = self._net
        return (math.prod(net.grid) * net.quantiser.d,)

    def _latents(self, x: Any, codes: Any) -> Any:
        net = self._net
        return quantise(net.quantiser, net.encode(x))[0].reshape(len(x), -1)

    def _decoded(self, z: Any, codes: Any) -> Any:
        net = self._net
        rows = _device.namespace(z).ascontiguousarray(z, np.float32).reshape(-1, net.quantiser.d)
        return self._expected(self._from_codes(ops.nearest(rows, net.quantiser.codebook())[1]))

    # ---- sampling and scoring ----

    def _sample(self, codes: Any, keys: Any) -> Any:
        labels = _device.full(keys, (len(keys),), 0, np.int64) if codes is None else codes
        drawn = self.networks_["prior"].sample(keys, labels)
        return self._observed(self._from_codes(drawn), keys)

    def _score(self, x: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        """log p(x | codes) + log p(codes | y) of the codes that x has: one term of a sum, so a lower bound."""
        labels = _device.full(x, (len(x),), 0, np.int64) if codes is None else codes
        found, net = self._coded(x), self._net
        log_p = net.log_prob(x, self._from_codes(found))
        total = log_p.astype(np.float64) + self.networks_["prior"].log_prob(found, labels)
        shaped = _device.from_device(x).reshape(len(x), *net.shape)
        return _device.from_device(total) + net.likelihood.log_constant(shaped)


class VQVAE(_Quantised):
    """An autoencoder whose latents are entries of a codebook. van den Oord, Vinyals and Kavukcuoglu (2017).

    n_codes, code_dim: size of the codebook. commitment: weight of the distance from the encoder's output to its code.
    decay: of the moving averages that the codes are. reset_threshold: a code is replaced by a vector of the batch when
    it has been used less than this fraction of an even share. positions: codes per row of a perceptron; a convolutional
    model has one per pixel of the smallest image. hidden, architecture, channels, likelihood, observation_noise: as in
    VAE; the encoder and the decoder know nothing of labels, the prior over codes does. ema_decay: 0, see `_average`.

    sample draws codes from the prior (code_prior.py, with its limits). score_samples is a lower bound, log p(x | codes)
    + log p(codes | y). history_ has the perplexity of the codebook: how many codes are in use.
    """

    def __init__(
        self,
        *,
        n_codes: int = 512,
        code_dim: int = 16,
        commitment: float = 0.25,
        decay: float = 0.99,
        reset_threshold: float = 0.1,
        positions: int = 8,
        hidden: Sequence[int] = (256, 128),
        architecture: str = "auto",
        channels: Sequence[int] = (32, 64),
        likelihood: Any = "gaussian",
        observation_noise: bool | None = None,
        epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        ema_decay: float = 0.0,
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
        self.n_codes, self.code_dim, self.commitment, self.decay = n_codes, code_dim, commitment, decay
        self.reset_threshold, self.positions, self.hidden = reset_threshold, positions, hidden
        self.architecture, self.channels, self.likelihood = architecture, channels, likelihood
        self.observation_noise = observation_noise
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.ema_decay, self.early_stopping, self.validation_fraction = ema_decay, early_stopping, validation_fraction
        self.n_iter_no_change, self.tol, self.warm_start = n_iter_no_change, tol, warm_start
        self.checkpoint, self.checkpoint_every, self.random_state = checkpoint, checkpoint_every, random_state
        self.callbacks, self.verbose = callbacks, verbose

    def _check(self) -> None:
        super()._check()
        check_count("VQVAE", "n_codes", self.n_codes, 2)
        check_count("VQVAE", "code_dim", self.code_dim)
        check_real("VQVAE", "decay", self.decay, 0, 1)
        check_real("VQVAE", "reset_threshold", self.reset_threshold, 0, 1)

    def _quantiser(self, stream: Stream) -> Any:
        return EmaCodebook(self.n_codes, self.code_dim, stream, decay=self.decay, threshold=self.reset_threshold)


class FSQ(_Quantised):
    """An autoencoder whose latents are rounded to a grid of `levels`. Mentzer et al. (2024).

    levels: values in each of the dimensions of a code; their product is the number of codes, all of which can be used:
    there is no codebook to learn and none to collapse. The other parameters are those of VQVAE.
    """

    def __init__(
        self,
        *,
        levels: Sequence[int] = (8, 5, 5, 5),
        positions: int = 8,
        hidden: Sequence[int] = (256, 128),
        architecture: str = "auto",
        channels: Sequence[int] = (32, 64),
        likelihood: Any = "gaussian",
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
        self.levels, self.positions, self.hidden = levels, positions, hidden
        self.architecture, self.channels, self.likelihood = architecture, channels, likelihood
        self.observation_noise = observation_noise
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.ema_decay, self.early_stopping, self.validation_fraction = ema_decay, early_stopping, validation_fraction
        self.n_iter_no_change, self.tol, self.warm_start = n_iter_no_change, tol, warm_start
        self.checkpoint, self.checkpoint_every, self.random_state = checkpoint, checkpoint_every, random_state
        self.callbacks, self.verbose = callbacks, verbose

    def _check(self) -> None:
        super()._check()
        if not check_widths("FSQ", "levels", self.levels):
            raise ValueError("FSQ: levels must name at least one dimension")

    def _quantiser(self, stream: Stream) -> Any:
        return FiniteScalar(tuple(self.levels))
