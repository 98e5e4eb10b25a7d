"""Generative adversarial networks: a generator that a discriminator cannot tell from data, with scikit-learn's manners.

A training step is the discriminator's step and the generator's, recorded as one plan. Each step traces the network that
it changes and no other: samples are constants in the discriminator's, so nothing of it runs back through the generator.
Not here: the losses (adversarial.py), the networks (generant.nn), how collapse is told (diversity.py), and generators
that need no discriminator (gmmn.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import nn, ops, optim
from ..random import Stream, split
from . import adversarial
from .estimator import check_count, check_real
from .generative import NOISE
from .generator_model import GeneratorModel
from .moment_matching import mmd_loss, mmd_witness

__all__ = ["GAN"]

LOSSES = (*adversarial.LOSSES, "mmd")
FEATURES = 16  # of the critic of loss "mmd". Binkowski et al. (2018), sec. 5
ANNEALED = 0.7  # the part of training in which gamma falls


class FeatureHead(nn.Module):
    """The features that the critic of MMD-GAN compares: a linear layer in place of the head `replaced`. (n, 16)."""

    def __init__(self, replaced: Any, stream: Stream) -> None:
        first = next(iter(nn.named_parameters(replaced).values()))
        self.out = nn.Linear(first.shape[0], FEATURES, stream)

    def __call__(self, phi: Any, labels: Any = None, *, training: bool = False) -> Any:
        return self.out(phi)


class GAN(GeneratorModel):
    """Generative adversarial network, class-conditional if labels are given. Goodfellow et al. (2014).

    The default is R3GAN: the relativistic loss with zero-centred gradient penalties on data and on samples, whose
    training converges where others cycle. Huang et al. (2024).

    latent_dim: coordinates of z, standard normal but for the first latent_signs, which are -1 or 1: a continuous image
    of a normal is connected, and data in separate pieces would be joined by bridges (Khayatkhoei et al. 2018).
    architecture: "mlp", "dcgan", "resnet" (R3GAN's, without normalisation), or "auto": "dcgan" for images, "mlp" for
    rows. hidden: widths of an mlp; frequencies: so many random Fourier features of a row are shown to its
    discriminator; width: channels of the others. loss: "relativistic", "non_saturating", "least_squares", "hinge",
    "wasserstein", or "mmd", in which the critic gives features and the loss is their maximum mean discrepancy
    (Binkowski et al. 2018). gamma: weight of (R1 + R2) / 2; 1 if None, but 0 for "wasserstein", "mmd" and with
    spectral_norm. It falls to gamma_final along a cosine of its logarithm: if None, to a tenth for images, as the paper
    has it, and to 0.002 for rows, whose modes can be a hundred times narrower than the data. lambda_gp: weight of the
    penalty (|gradient| - 1)^2 between data and samples; 10 for "wasserstein" and "mmd", otherwise 0, if None. n_critic:
    steps of the discriminator in a step, 5 for "wasserstein" and "mmd", otherwise 1, if None; each has a batch of its
    own. spectral_norm: Miyato et al. (2018). stddev_group: show the discriminator how samples differ in groups of so
    many; 0: no. learning_rate: of both (Adam, beta1 = 0), unless discriminator_learning_rate is given (Heusel et al.
    2017). ema_decay: of the averaged generator, which draws the samples. watch_every: epochs between looks at the
    diversity of samples, 0 for none; history_ then has recall and diversity, and a fall is warned of. Rows with
    sample_weight are drawn as often as it says.

    Early stopping watches the energy distance of samples to the held-out rows. The other parameters are those of every
    model; the default epochs are for a few thousand rows, and what counts is some 5000 steps.
    """

    clip_norm = math.inf
    bounded = True

    def __init__(
        self,
        *,
        latent_dim: int = 24,
        latent_signs: int = 12,
        architecture: str = "auto",
        hidden: Sequence[int] = (64, 64, 64),
        frequencies: int = 16,
        width: int = 32,
        loss: str = "relativistic",
        gamma: float | None = None,
        gamma_final: float | None = None,
        lambda_gp: float | None = None,
        n_critic: int | None = None,
        spectral_norm: bool = False,
        stddev_group: int = 0,
        watch_every: int = 10,
        epochs: int = 600,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        discriminator_learning_rate: float | None = None,
        ema_decay: float = 0.999,
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
        self.latent_dim, self.latent_signs = latent_dim, latent_signs
        self.architecture, self.hidden, self.frequencies, self.width = architecture, hidden, frequencies, width
        self.loss, self.gamma, self.gamma_final, self.lambda_gp = loss, gamma, gamma_final, lambda_gp
        self.n_critic, self.spectral_norm, self.stddev_group = n_critic, spectral_norm, stddev_group
        self.watch_every = watch_every
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.discriminator_learning_rate, self.ema_decay = discriminator_learning_rate, ema_decay
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.n_iter_no_change, self.tol, self.warm_start = n_iter_no_change, tol, warm_start
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.random_state, self.callbacks, self.verbose = random_state, callbacks, verbose

    # ---- what None and "auto" stand for ----

    @property
    def _critic(self) -> bool:
        """Whether the discriminator measures a distance, for which it is trained further and kept Lipschitz."""
        return self.loss in ("wasserstein", "mmd")

    @property
    def _gamma(self) -> float:
        return (0.0 if self._critic or self.spectral_norm else 1.0) if self.gamma is None else self.gamma

    @property
    def _lambda_gp(self) -> float:
        return (10.0 if self._critic else 0.0) if self.lambda_gp is None else self.lambda_gp

    @property
    def _n_critic(self) -> int:
        return (5 if self._critic else 1) if self.n_critic is None else self.n_critic

    # ---- what the base asks for ----

    def _check(self) -> None:
        super()._check()
        self._choice("loss", LOSSES)
        check_count("GAN", "frequencies", self.frequencies, 0)
        check_count("GAN", "stddev_group", self.stddev_group, 0)
        check_count("GAN", "n_critic", self._n_critic)
        for number in ("gamma", "lambda_gp", "discriminator_learning_rate", "gamma_final"):
            if getattr(self, number) is not None:
                check_real("GAN", number, getattr(self, number), 0, math.inf)
        if self.gamma_final == 0:
            raise ValueError("GAN: gamma_final must be positive, got 0; gamma=0 is without a penalty")

    def _networks(self, stream: Stream) -> dict[str, Any]:
        made = {"generator": self._generator(stream)}
        shape, classes = self._shape, self._n_classes
        seen: dict[str, Any] = dict(classes=classes, spectral=self.spectral_norm, stddev_group=self.stddev_group)
        if not self._images:
            d: Any = nn.MlpDiscriminator(shape, stream, hidden=self.hidden, frequencies=self.frequencies, **seen)
        elif self.architecture == "resnet":
            d = nn.ResNetDiscriminator(shape, stream, width=self.width, **seen)
        else:
            d = nn.DCGANDiscriminator(shape, stream, width=self.width, **seen)
        if self.loss == "mmd":
            if classes:
                raise ValueError("GAN.fit: the critic of loss 'mmd' knows no classes; leave y out")
            d.head = FeatureHead(d.head, stream)
        return {**made, "discriminator": d}

    def _optimiser(self, name: str) -> Callable[[np.ndarray], Any]:
        return lambda params: optim.Adam(params, lr=self.learning_rate, beta1=0.0, beta2=0.99)

    def _average(self, name: str) -> Callable[[np.ndarray], optim.EMA] | None:
        return super()._average(name) if name == "generator" else None

    def _learning_rate(self, name: str) -> float:
        own = self.discriminator_learning_rate
        return self.learning_rate if name == "generator" or own is None else own

    # ---- training ----

    def _rows(self) -> int:
        return self.batch_size * self._n_critic

    def _gamma_at(self, step: int) -> float:
        """gamma of a step: from the first to the last along a cosine of its logarithm, then constant."""
        training, first, last = self._training, self._gamma, self.gamma_final
        if last is None:
            last = first * (0.1 if self._images else 0.002)
        if not first or training.constant:
            return last if first else 0.0
        done = min(1.0, (step - training.first) / max(1.0, ANNEALED * training.total))
        return last * (first / last) ** (0.5 * (1 + math.cos(math.pi * done)))

    def _inputs(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray, step: int) -> tuple:
        times = self._n_critic
        if self.loss == "mmd" and len(x) < 2 * times:
            raise ValueError(f"GAN.fit: loss 'mmd' takes at least 2 n_critic = {2 * times} rows, got {len(x)}")
        keys = split(self._stream(NOISE).at(step), 2 * times + 1)
        parts = []
        for i, at in enumerate(np.resize(np.arange(len(x)), (times, max(1, len(x) // times)))):
            parts += [x[at], None if codes is None else codes[at], keys[2 * i], keys[2 * i + 1]]
        return np.array(self._gamma_at(step) / 2, np.float32), keys[-1], *parts

    def _discriminator_loss(self, d: Any, real: Any, fake: Any, codes: Any, half_gamma: Any, key: Any) -> tuple:
        """(what is minimised, the loss without penalties, the mean squared gradient on data and samples or 0)."""
        see = lambda x, *labels: d(x, *labels, training=True)
        penalty = ops.affine(half_gamma, scale=0.0)
        if self._gamma:
            (r, r1), (f, r2) = (adversarial.logits_and_penalty(see, x, codes) for x in (real, fake))
            penalty = ops.add(r1, r2)
        else:
            r, f = see(real, codes), see(fake, codes)
        if self.loss == "mmd":
            loss = ops.affine(mmd_loss(f, r), scale=-1.0)
            judge: Any = lambda x: mmd_witness(see(x), f, r)
        else:
            loss, judge = adversarial.LOSSES[self.loss].discriminator(r, f), see
        total = ops.add(loss, ops.mul(half_gamma, penalty)) if self._gamma else loss
        if self._lambda_gp:
            u = ops.uniform(key, shape=(real.shape[0],))
            slope = adversarial.gradient_penalty(judge, real, fake, u, codes)
            total = ops.add(total, ops.affine(slope, scale=self._lambda_gp))
            penalty = ops.add(penalty, slope)
        return total, loss, penalty

    def _generator_loss(self, g: Any, d: Any, real: Any, codes: Any, key: Any) -> Any:
        fake = d(self._fake(g, real.shape[0], key, codes), codes)
        if self.loss == "mmd":
            return mmd_loss(fake, d(real))
        loss = adversarial.LOSSES[self.loss]
        return loss.generator(fake, d(real, codes) if loss.paired else None)

    def _step(self, state: dict[str, Any], *inputs: Any) -> dict[str, Any]:
        half_gamma, key, *parts = inputs
        learners = self._training.learners
        g_learner, d_learner = learners["generator"], learners["discriminator"]
        g_state, d_state = state["generator"], state["discriminator"]
        g = g_learner.network(g_state)
        shape = self._shape
        for i in range(0, len(parts), 4):
            x, codes, key_z, key_u = parts[i : i + 4]
            real = ops.reshape(x, shape=(x.shape[0], *shape))
            fake = self._fake(g, x.shape[0], key_z, codes)  # a constant: this trace follows the discriminator only
            d = d_learner.network(d_state)
            (_, loss, penalty), grads = nn.value_and_grad(self._discriminator_loss)(
                d, real, fake, codes, half_gamma, key_u
            )
            d_norm = d_learner.update(d_state, grads)[1]
        g_loss, grads = nn.value_and_grad(self._generator_loss)(g, d_learner.network(d_state), real, codes, key)
        g_norm = g_learner.update(g_state, grads)[1]
        return {
            "loss": loss, "generator_loss": g_loss, "penalty": penalty, "gradient_norm": d_norm,
            "generator_gradient_norm": g_norm,
        }  # fmt: skip
