"""Models with an encoder and a decoder: transform, inverse_transform, reconstruct, interpolate.

VAE and VQVAE share these verbs. Not here: what encoder and decoder are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops import _device
from ..ops._dispatch import to_host
from .estimator import check_count, check_data
from .generative import GenerativeModel

__all__ = ["LatentModel"]


class LatentModel(GenerativeModel):
    """Subclasses define `_latents`, `_decoded`, `_latent_shape`; rows are scaled, labels are class numbers or None.

    labels_matter: whether encoder and decoder are conditioned on the labels of `fit`. What is given as a CuPy array is
    worked on by the GPU and comes back as one, except by `interpolate`.
    """

    labels_matter = True

    def _latents(self, x: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        """The latents (m, ...) of scaled rows x (m, d)."""
        raise TypeError(f"{type(self).__name__} does not say what its latents are")

    def _decoded(self, z: np.ndarray, codes: np.ndarray | None) -> np.ndarray:
        """Scaled rows (m, d) of latents z (m, ...)."""
        raise TypeError(f"{type(self).__name__} does not say what it decodes to")

    def _latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample's latents."""
        raise TypeError(f"{type(self).__name__} does not say what its latents are")

    def _labels_of(self, where: str, x: np.ndarray, y: Any) -> np.ndarray | None:
        """Class numbers for rows whose labels may be left out: the most probable ones then."""
        if self.classes_ is None:
            if y is not None:
                raise ValueError(f"{where}: y was given, but the model was fitted without labels")
            return None
        if not self.labels_matter:
            return None
        if y is None:
            return self._likeliest(x)
        y = np.asarray(to_host(where, "y", y))
        return self._encode(where, np.full(len(x), y[()]) if y.ndim == 0 else y, len(x))

    def _likeliest(self, x: np.ndarray) -> np.ndarray:
        raise ValueError(f"{type(self).__name__} was fitted with labels; give y")

    def transform(self, X: Any, y: Any = None) -> np.ndarray:
        """The latents of X, (n, latent_dim): the mean of q(z | x), given the labels y of a conditional model.

        Without y a conditional model takes the most probable class of every row.
        """
        self._fitted("transform")
        where = f"{type(self).__name__}.transform"
        x = self.scaling_.forward(where, X)
        codes = self._labels_of(where, x, y)
        found = self._beside(X)._latents(*[_device.beside(X, a) for a in (x, codes)])
        kept = X if _device.is_device(X) else np.asarray(to_host(where, "X", X))
        return found.astype(np.float64) if kept.dtype == np.float64 else found

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """fit, then transform."""
        return self.fit(X, y).transform(X, y)

    def inverse_transform(self, Z: Any, y: Any = None) -> np.ndarray:
        """What latents Z (n, latent_dim) stand for, shaped like X: the mean of p(x | z, y); y where fit had labels."""
        self._fitted("inverse_transform")
        where, shape = f"{type(self).__name__}.inverse_transform", self._latent_shape()
        z = np.asarray(to_host(where, "Z", Z))
        if z.dtype.kind not in "fiub" or not np.isfinite(z).all():
            raise ValueError(f"{where}: Z must hold finite real numbers, got dtype {z.dtype}")
        if z.shape[1:] != shape:
            raise ValueError(f"{where}: Z must have shape (n, {', '.join(map(str, shape))}), got {z.shape}")
        if y is None and self.classes_ is not None and self.labels_matter:
            raise ValueError(f"{where}: the model was fitted with labels; y must be given")
        codes = self._labels_of(where, z, y)
        there = self._beside(Z)
        return there._present(there._decoded(*[_device.beside(Z, a) for a in (z, codes)]))

    def _beside(self, X: Any) -> Any:
        """The model as it is where X lives."""
        return self._at("cuda" if _device.is_device(X) else "cpu")

    def reconstruct(self, X: Any, y: Any = None) -> np.ndarray:
        """What decoding the latents of X gives, shaped like X."""
        self._fitted("reconstruct")
        where = f"{type(self).__name__}.reconstruct"
        x = self.scaling_.forward(where, X)
        codes = self._labels_of(where, x, y)
        x, codes = (_device.beside(X, a) for a in (x, codes))
        there = self._beside(X)
        return there._present(there._decoded(there._latents(x, codes), codes))

    def interpolate(self, a: Any, b: Any, n: int = 8, y: Any = None) -> np.ndarray:
        """n samples on the straight line of latents from a to b, both included: (n, ...) from two samples a, b (...).

        y: the class of all of them, of a conditional model; the most probable one of a if absent.
        """
        self._fitted("interpolate")
        where = f"{type(self).__name__}.interpolate"
        n = check_count(where, "n", n, 2)
        ends = [np.asarray(to_host(where, name, end)) for name, end in (("a", a), ("b", b))]
        if ends[0].shape != ends[1].shape:
            raise ValueError(f"{where}: a and b must have one shape, got {ends[0].shape} and {ends[1].shape}")
        x = check_data(where, np.stack(ends))
        x = self.scaling_.forward(where, x)
        codes = self._labels_of(where, x, y)
        codes = None if codes is None else np.repeat(codes[:1], 2)
        z = self._latents(x, codes)
        t = np.linspace(0, 1, n).reshape(n, *(1,) * (z.ndim - 1)).astype(z.dtype)
        codes = None if codes is None else np.repeat(codes[:1], n)
        return self._present(self._decoded((1 - t) * z[0] + t * z[1], codes))
