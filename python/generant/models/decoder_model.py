"""What models have in common whose decoder gives the parameters of a likelihood: its data, its draws, its unit.

Labels, priors and bounds are the models' own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ops import _device
from ..random import Stream
from . import likelihoods
from .density import DensityModel
from .estimator import check_widths
from .latent import LatentModel
from .scaling import Scaling

__all__ = ["DecoderModel", "row_keys"]

ARCHITECTURES = ("auto", "mlp", "conv")


def row_keys(x: np.ndarray, stream: Stream) -> np.ndarray:
    """A key per row, (n, 2) uint64, that depends on what is in the row and not on where it stands."""
    words = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    odd = np.uint64(0x9E3779B97F4A7C15)
    key = stream.at(0)
    total = np.full(len(x), key[1])
    for column in words.T:  # a polynomial hash, mod 2^64
        total = (total ^ column) * odd
        total ^= total >> np.uint64(29)
    return np.stack([np.full(len(x), key[0]), total], axis=1)


class DecoderModel(LatentModel, DensityModel):
    """Constructor parameters every such model has: likelihood, architecture, observation_noise, as VAE describes them.

    Subclasses give `_net`, whose `likelihood` is a Likelihood.
    """

    likelihood: Any
    architecture: str
    observation_noise: bool | None
    hidden: Any
    channels: Any

    @property
    def _net(self) -> Any:
        raise TypeError(f"{type(self).__name__} does not say what its network is")

    def _check(self) -> None:
        name = type(self).__name__
        for widths in ("hidden", "channels"):
            check_widths(name, widths, getattr(self, widths))
        if self.architecture not in ARCHITECTURES:
            wanted = ", ".join(ARCHITECTURES)
            raise ValueError(f"{name}: architecture is {self.architecture!r}, wanted one of {wanted}")
        if self.observation_noise not in (None, True, False):
            raise ValueError(f"{name}: observation_noise must be True, False or None, got {self.observation_noise!r}")

    # ---- data ----

    def _levels(self) -> int:
        """Of a likelihood of codes; 0 of another."""
        made = self.likelihood
        if isinstance(made, str):
            return 256 if made == "logistic" else 0
        if isinstance(made, (list, tuple)) and made[0] in ("logistic", "categorical") and isinstance(made[1], int):
            return made[1]
        if isinstance(made, likelihoods.Categorical):
            return made.k
        return made.levels if isinstance(made, likelihoods.DiscretisedLogistic) else 0

    def _scale(self, X: np.ndarray) -> Scaling:
        where, levels = f"{type(self).__name__}.fit", self._levels()
        made = likelihoods.likelihood(self.likelihood, self._sites(X.shape[1:])[-1])
        if isinstance(made, likelihoods.Mixed) or self.likelihood == "gaussian_features":
            kinds = zip(getattr(made, "parts", [made]), getattr(made, "sizes", [math.prod(X.shape[1:])]), strict=True)
            chosen = np.concatenate([np.full(n, isinstance(part, likelihoods.Gaussian)) for part, n in kinds])
            made.check(where, X.reshape(len(X), *self._sites(X.shape[1:])))
            return Scaling.columns(X, chosen)
        if isinstance(made, likelihoods.Gaussian):
            return Scaling.standard(X)
        if levels and X.dtype.kind == "f" and (X != np.floor(X)).any():
            if X.min() < 0 or X.max() > 1:
                raise ValueError(f"{where}: X must hold codes 0 ... {levels - 1}, or fractions in 0 ... 1 to be binned")
            return Scaling.bins(X, levels)
        if isinstance(made, likelihoods.Bernoulli) and (X.min() < 0 or X.max() > 1):
            return Scaling.to_range(X, 0.0, 1.0)
        scaling = Scaling.none(X)
        made.check(where, X.reshape(len(X), *self._sites(X.shape[1:])))
        return scaling

    def _scaled(self, where: str, X: Any) -> np.ndarray:
        x, sites = super()._scaled(where, X), self._sites(self.scaling_.shape)
        made = likelihoods.likelihood(self.likelihood, sites[-1])
        if not isinstance(made, likelihoods.Bernoulli) or np.all(self.scaling_.scale == 1):  # else a range was fitted
            made.check(where, x.reshape(len(x), *sites))
        return x

    def _begin(self, X: np.ndarray, labels: Any, classes: Any = None) -> None:
        self._grey = bool(((X != 0) & (X != 1)).any())
        super()._begin(X, labels, classes)

    def _sites(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample as the decoder sees it: (d,), or (h, w, c) of a convolutional one."""
        image = (*shape, 1) if len(shape) == 2 else shape
        conv = self.architecture == "conv" or (
            self.architecture == "auto" and len(image) == 3 and min(image[:2]) >= 16 and image[2] <= 4
        )
        if conv and len(image) != 3:
            raise ValueError(f"{type(self).__name__}: architecture 'conv' needs images (n, h, w) or (n, h, w, c)")
        if conv and not (len(self.hidden) and len(self.channels)):
            raise ValueError(f"{type(self).__name__}: architecture 'conv' needs widths in hidden and in channels")
        return image if conv else (math.prod(shape),)

    def _log_density(self) -> float:
        net = self._net
        found = likelihoods.Gaussian, likelihoods.Mixed  # of a mixed table only the Gaussian columns are scaled
        density = isinstance(net.likelihood, found) or self.scaling_.levels
        return self.scaling_.log_density if density else 0.0

    # ---- what a decoder says ----

    def _expected(self, out: Any) -> Any:
        """The mean of p(x | z), or its mode where a mean is not data, (m, d)."""
        found = self._net.likelihood
        unordered = isinstance(found, (likelihoods.Categorical, likelihoods.Mixed))
        return (found.mode(out) if unordered else found.mean(out)).reshape(len(out), -1)

    def _observed(self, out: Any, keys: Any) -> Any:
        """Draws of p(x | out) or its mean, (m, d); row i depends on out[i] and keys[i] only."""
        likelihood = self._net.likelihood
        noisy = self.observation_noise
        if noisy is None:
            noisy = not (isinstance(likelihood, likelihoods.Bernoulli) and self._grey)
        if not noisy:
            return self._expected(out)
        other = keys + _device.beside(keys, np.array([0, 1], np.uint64))  # z used the stream itself
        return likelihood.samples(other, out).reshape(len(keys), -1)

    def _fitted_config(self) -> dict[str, Any]:
        return {"grey": self._grey}

    def _load_fitted(self, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self._grey = config["grey"]
