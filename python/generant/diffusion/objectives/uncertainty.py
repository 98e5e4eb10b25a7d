"""A weight of the levels that is learned: every level's loss divided by its own size, as a small module estimates it.

Karras et al. (2024), "EDM2", after Kendall et al. (2018): minimised over u, L / exp(u) + u has exp(u) = E[L], so all
levels contribute gradients of one size. Train the module together with the network and throw it away.
"""

from __future__ import annotations

from typing import Any

from ... import ops
from ...nn import FourierFeatures, Linear, Module
from ...random import Stream

__all__ = ["Uncertainty", "uncertain"]


def uncertain(losses: Any, u: Any) -> Any:
    """mean(losses / exp(u) + u): losses, u (n,). A scalar, differentiable in both. Karras et al. (2024), section 2."""
    return ops.mean(ops.add(ops.mul(losses, ops.exp(ops.affine(u, scale=-1.0))), u))


class Uncertainty(Module):
    """u(c_noise): one linear layer on Fourier features of what the network is told of the level; begins as 0.

    c_noise (n,). Returns (n,).
    """

    def __init__(self, stream: Stream, *, features: int = 64) -> None:
        self.features = FourierFeatures(features)
        self.out = Linear(features, 1, stream, gain=0.0)

    def __call__(self, c_noise: Any) -> Any:
        return ops.reshape(self.out(self.features(c_noise)), shape=(c_noise.shape[0],))
