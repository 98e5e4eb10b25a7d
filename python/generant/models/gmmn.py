"""Generative moment matching networks: a generator trained on the maximum mean discrepancy of its samples to data.

No discriminator: all pairs of a batch are compared, which the pairwise kernels do in memory O(batch). Its adversarial
sister, in which the compared features are learned, is GAN(loss="mmd").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import nn, ops
from ..random import Stream
from .estimator import check_real
from .generative import NOISE
from .generator_model import GeneratorModel
from .moment_matching import mmd_loss

__all__ = ["GMMN"]


class GMMN(GeneratorModel):
    """Generative moment matching network, class-conditional if labels are given. Li, Swersky, Zemel (2015).

    Minimises the squared maximum mean discrepancy between a batch and as many samples under a sum of kernels, kernel
    "rbf" (the paper's) or "rational_quadratic". bandwidths: of the kernels, in units of the root mean square distance
    between two rows. With labels, class indicators at that distance are compared beside the rows, so that each class is
    matched. batch_size: every pair in it counts; the paper's is 1000. The other parameters are those of GAN.

    The discrepancy of raw pixels sees little detail: GMMN is for few features.
    """

    def __init__(
        self,
        *,
        latent_dim: int = 24,
        latent_signs: int = 12,
        architecture: str = "auto",
        hidden: Sequence[int] = (64, 64, 64),
        width: int = 32,
        kernel: str = "rbf",
        bandwidths: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.5),
        watch_every: int = 10,
        epochs: int = 400,
        batch_size: int = 500,
        learning_rate: float = 2e-3,
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
        self.architecture, self.hidden, self.width = architecture, hidden, width
        self.kernel, self.bandwidths, self.watch_every = kernel, bandwidths, watch_every
        self.epochs, self.batch_size, self.learning_rate, self.ema_decay = epochs, batch_size, learning_rate, ema_decay
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.n_iter_no_change, self.tol, self.warm_start = n_iter_no_change, tol, warm_start
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.random_state, self.callbacks, self.verbose = random_state, callbacks, verbose

    def _check(self) -> None:
        super()._check()
        self._choice("kernel", ("rbf", "rational_quadratic"))
        if not np.size(self.bandwidths) or not np.ndim(self.bandwidths):
            raise ValueError("GMMN: bandwidths must name at least one")
        for bandwidth in self.bandwidths:
            check_real("GMMN", "bandwidths", bandwidth, 1e-6, math.inf)

    def _networks(self, stream: Stream) -> dict[str, Any]:
        return {"generator": self._generator(stream)}

    def _inputs(self, x: np.ndarray, codes: np.ndarray | None, weight: np.ndarray, step: int) -> tuple:
        if len(x) < 2:
            raise ValueError("GMMN.fit: a discrepancy takes batches of at least 2 rows, got 1")
        key = self._stream(NOISE).at(step)
        if codes is None:
            return x, None, None, key
        marks = np.eye(self._n_classes, dtype=np.float32)[codes] * np.float32(self._distance / math.sqrt(2))
        return x, codes, marks, key

    @property
    def _distance(self) -> float:
        """The root mean square distance of two rows, which are scaled: sqrt(2 d) where their mean is 0."""
        return math.sqrt(2 * self.n_features_in_)

    def _step(self, state: dict[str, Any], *inputs: Any) -> dict[str, Any]:
        x, codes, marks, key = inputs
        learner, own = self._training.learners["generator"], state["generator"]
        widths = tuple(float(b) * self._distance for b in self.bandwidths)

        def marked(rows: Any) -> Any:
            return rows if marks is None else ops.concat(rows, marks, axis=-1)

        def loss(g: Any) -> Any:
            fake = ops.reshape(self._fake(g, x.shape[0], key, codes), shape=tuple(x.shape))
            return mmd_loss(marked(fake), marked(x), bandwidths=widths, kernel=self.kernel)

        value, grads = nn.value_and_grad(loss)(learner.network(own))
        return {"loss": value, "gradient_norm": learner.update(own, grads)[1]}
