"""What a denoiser is fitted to: the preconditioning and the loss of Karras et al. (2022), "EDM".

A network F sees inputs of unit variance and is asked for targets of unit variance at every noise level; the denoiser is
D(x; sigma) = c_skip x + c_out F(c_in x; c_noise). With x = data + sigma z, input and target are two combinations of the
same data and the same noise, under one key, so the noise is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import ops

__all__ = ["Edm"]


class Edm:
    """Preconditioning for data of root mean square sigma_data. Karras et al. (2022), table 1 and section 5."""

    def __init__(self, sigma_data: float = 0.5, *, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        if not 0 < sigma_data < np.inf:
            raise ValueError(f"Edm: sigma_data must be positive and finite, got {sigma_data}")
        self.sigma_data, self.p_mean, self.p_std = float(sigma_data), float(p_mean), float(p_std)

    def scalings(self, sigma: Any) -> tuple[Any, Any, Any, Any]:
        """c_skip = d^2 / r^2, c_out = s d / r, c_in = 1 / r, c_noise = log(s) / 4 for r^2 = s^2 + d^2, in float64."""
        s, d = np.asarray(sigma, np.float64), self.sigma_data
        r = np.hypot(s, d)
        return d**2 / r**2, s * d / r, 1 / r, np.log(s) / 4

    def training_sigmas(self, key: Any, n: int) -> np.ndarray:
        """exp(p_mean + p_std z): the levels the loss looks at, log-normal. Returns (n,) float64."""
        return np.exp(self.p_mean + self.p_std * ops.normal(key, dtype="float64", shape=(n,)))

    def mixtures(self, sigma: Any) -> tuple[Any, Any, Any, Any]:
        """(in_x, in_z, b_x, b_z): the network's input in_x data + in_z z and its target b_x data + b_z z, in float64.

        The target is c_in (s data / d - d z), which does not cancel at small s as (data - c_skip (data + s z)) / c_out
        does.
        """
        c_in, s, d = self.scalings(sigma)[2], np.asarray(sigma, np.float64), self.sigma_data
        return c_in, c_in * s, c_in * s / d, -c_in * d

    def prepare(self, sigma: Any, dtype: Any = "float32") -> tuple[np.ndarray, ...]:
        """(in_x, in_z, c_noise, b_x, b_z, weight) at levels sigma (n,): what `prepared_loss` needs; the weight is 1."""
        in_x, in_z, b_x, b_z = self.mixtures(sigma)
        columns = (in_x, in_z, self.scalings(sigma)[3], b_x, b_z, np.ones_like(in_x))
        return tuple([c.astype(dtype) for c in columns])

    def pair(self, x: Any, sigma: np.ndarray, key: Any) -> tuple[Any, Any]:
        """The network's input and its target, see `mixtures`. x (n, ...), sigma (n,)."""
        in_x, in_z, _, b_x, b_z, _ = self.prepare(sigma, x.dtype)
        return ops.q_sample(x, in_x, in_z, key), ops.q_sample(x, b_x, b_z, key)

    def prepared_loss(self, network: Callable[..., Any], x: Any, labels: Any, prepared: Any, key: Any) -> Any:
        """`loss` at prepared levels, in ops alone: what a recorded step calls."""
        in_x, in_z, c_noise, b_x, b_z, weight = prepared
        said = network(ops.q_sample(x, in_x, in_z, key), c_noise, labels)
        return ops.mean(ops.denoising_loss(said, x, b_x, b_z, weight, key))

    def loss(self, network: Callable[..., Any], x: Any, labels: Any, sigma: np.ndarray, key: Any) -> Any:
        """mean((F(c_in (x + s z); c_noise, labels) - target)^2): the weighted loss lambda(s) |D - x|^2 of the paper.

        lambda = r^2 / (s d)^2 is 1 / c_out^2, so in terms of F the weight is 1 at every level (eq. 144).
        x (n, ...), labels (n,) or None, sigma (n,). Returns a scalar.
        """
        return self.prepared_loss(network, x, labels, self.prepare(sigma, x.dtype), key)

    def convert(self, sigma: float) -> tuple[float, float]:
        """(c_skip, c_out): how `samplers.sample` turns the prediction F into D."""
        c_skip, c_out, _, _ = self.scalings(sigma)
        return float(c_skip), float(c_out)

    def predictor(self, network: Callable[..., Any], labels: Any = None) -> Callable[[Any, float], Any]:
        """predict(x, sigma) = F(c_in x; c_noise, labels) for `samplers.sample`."""

        def predict(x: Any, sigma: float) -> Any:
            _, _, c_in, c_noise = self.scalings(sigma)
            return network(ops.affine(x, scale=float(c_in)), np.full(x.shape[0], c_noise, x.dtype), labels)

        return predict
