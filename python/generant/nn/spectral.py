"""Spectral normalisation: a layer whose weight is divided by an estimate of its largest singular value.

The estimate is one step of power iteration per training call, from the vectors of the step before: weights move little
between steps, so it follows them. Not here: normalisation of embeddings' gradients, or of transposed convolutions.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .. import ops
from ..random import Stream
from . import init
from .conv import Conv2d
from .embedding import Embedding
from .linear import Linear
from .module import Buffer, Module

__all__ = ["SpectralNorm"]

FIRST_STEPS = 15  # of power iteration at construction, as torch takes
TINY = 1e-24  # squared length below which a vector is not stretched to length 1


def _unit(x: Any) -> Any:
    """A column divided by its length."""
    return ops.mul(x, ops.rsqrt(ops.clip(ops.sum(ops.square(x), axis=0, keepdims=True), low=TINY)))


class SpectralNorm(Module):
    """layer with weight W / sigma, sigma = u^T W v: a Linear, Conv2d or Embedding of Lipschitz constant about 1.

    W (o, fan in) is the weight as a matrix, a filter's too, which bounds the convolution within a factor. With
    training=True a step v <- W^T u / |W^T u|, u <- W v / |W v| is taken first, in place; otherwise u and v stay as they
    are. Differentiation sees sigma as a function of W, and u and v as constants.
    Called as the layer is: (x, ..., training=False). Miyato et al. (2018), algorithm 1.
    """

    def __init__(self, layer: Module, stream: Stream) -> None:
        if not isinstance(layer, (Linear, Conv2d, Embedding)):
            raise TypeError(f"SpectralNorm: layer must be a Linear, Conv2d or Embedding, got {type(layer).__name__}")
        self.layer, self.name = layer, "table" if isinstance(layer, Embedding) else "weight"
        weight = getattr(layer, self.name)
        o = weight.shape[-1]
        self.u = Buffer(_unit(init.normal((o, 1), stream, dtype=weight.dtype)).reshape(o))
        self.v = Buffer(np.zeros(weight.size // o, weight.dtype))
        for _ in range(FIRST_STEPS):
            self._iterate(self._matrix(weight))

    @staticmethod
    def _matrix(weight: Any) -> Any:
        """The weight (fan in, o), the transpose of W."""
        return ops.reshape(weight, shape=(prod(weight.shape[:-1]), weight.shape[-1]))

    def _iterate(self, matrix: Any) -> tuple[Any, Any]:
        """One step of power iteration, kept in the buffers: the new u (o, 1) and v (fan in, 1)."""
        v = _unit(ops.matmul(matrix, ops.reshape(self.u.value, shape=(-1, 1))))
        u = _unit(ops.matmul_dw(matrix, v))
        ops.assign_(self.u.value, ops.reshape(u, shape=(-1,)))
        ops.assign_(self.v.value, ops.reshape(v, shape=(-1,)))
        return u, v

    def normalised(self, *, training: bool = False) -> Any:
        """W / sigma, in the layer's layout."""
        weight = getattr(self.layer, self.name)
        matrix = self._matrix(weight)
        if training:
            u, v = self._iterate(ops.stop_gradient(matrix))
        else:
            u, v = (ops.reshape(ops.stop_gradient(b.value), shape=(-1, 1)) for b in (self.u, self.v))  # copies: a later
            # training call moves the buffers, and the gradient of this one still needs them
        return ops.div(weight, ops.sum(ops.mul(v, ops.matmul(matrix, u))))

    def __call__(self, *args: Any, training: bool = False) -> Any:
        layer: Any = object.__new__(type(self.layer))  # the same layer with another weight; a traced one is read-only
        layer.__dict__.update(vars(self.layer), **{self.name: self.normalised(training=training)})
        return layer(*args)


def normalise(layer: Any, stream: Stream, wanted: bool) -> Any:
    """The layer, or the layer in a SpectralNorm."""
    return SpectralNorm(layer, stream) if wanted else layer


def call(layer: Any, *args: Any, training: bool) -> Any:
    """layer(*args), told whether it is training if it asks."""
    return layer(*args, training=training) if isinstance(layer, SpectralNorm) else layer(*args)
