"""First values of parameters, drawn from counter-based random numbers: the same seed gives the same bits anywhere.

A weight is (..., o), its last axis being the outputs: (d, o) of a linear layer, (kh, kw, c, o) of a convolution. Its
fan in is the number of inputs that one output sums, kh kw c; its fan out the number of outputs that one input reaches,
kh kw o. gain multiplies the standard deviation.
"""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import numpy as np

from .. import ops
from ..random import Stream

__all__ = [
    "he_normal", "he_uniform", "lecun_normal", "normal", "orthogonal", "xavier_normal", "xavier_uniform", "zeros",
]


def normal(shape: tuple[int, ...], stream: Stream, *, std: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Independent normals of the given standard deviation."""
    return ops.normal(next(stream), shape=tuple(shape), dtype=str(np.dtype(dtype))) * np.dtype(dtype).type(std)


def _uniform(shape: tuple[int, ...], stream: Stream, variance: float, dtype: Any) -> np.ndarray:
    """Uniform on [-a, a) with a = sqrt(3 variance)."""
    u = ops.uniform(next(stream), shape=tuple(shape), dtype=str(np.dtype(dtype)))
    return (2 * u - 1) * u.dtype.type(sqrt(3 * variance))


def _fans(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan in, fan out)."""
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"{name}: shape must be that of a weight, (d, o) or (kh, kw, c, o), got {shape}")
    return prod(shape[:-1]), prod(shape[:-2]) * shape[-1]


def lecun_normal(shape: tuple[int, ...], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Normals of variance gain^2 / fan in: a layer keeps the scale of its input. LeCun et al. (1998), 4.6."""
    return normal(shape, stream, std=gain / np.sqrt(_fans("lecun_normal", shape)[0]), dtype=dtype)


def he_normal(shape: tuple[int, ...], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Normals of variance 2 gain^2 / fan in, for layers followed by a rectifier. He et al. (2015), eq. 10."""
    return normal(shape, stream, std=gain * sqrt(2 / _fans("he_normal", shape)[0]), dtype=dtype)


def he_uniform(shape: tuple[int, ...], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Uniform numbers of variance 2 gain^2 / fan in. He et al. (2015), eq. 10."""
    return _uniform(shape, stream, 2 * gain**2 / _fans("he_uniform", shape)[0], dtype)


def xavier_normal(shape: tuple[int, ...], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Normals of variance 2 gain^2 / (fan in + fan out). Glorot, Bengio (2010), eq. 12."""
    return normal(shape, stream, std=gain * sqrt(2 / sum(_fans("xavier_normal", shape))), dtype=dtype)


def xavier_uniform(shape: tuple[int, ...], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """Uniform numbers of variance 2 gain^2 / (fan in + fan out). Glorot, Bengio (2010), eq. 16."""
    return _uniform(shape, stream, 2 * gain**2 / sum(_fans("xavier_uniform", shape)), dtype)


def orthogonal(shape: tuple[int, ...], stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> np.ndarray:
    """gain Q, Q uniform among the matrices (fan in, o) with orthonormal columns, or rows where fan in < o.

    Q is that of the QR decomposition, in float64, of a matrix of normals, with the signs of R's diagonal; it is the
    only one here whose last bits depend on the LAPACK in use. Saxe, McClelland, Ganguli (2014).
    """
    rows, columns = _fans("orthogonal", shape)[0], shape[-1]
    a = normal((max(rows, columns), min(rows, columns)), stream, dtype="float64")
    q, r = np.linalg.qr(a)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), dtype).reshape(shape)


def zeros(shape: tuple[int, ...], *, dtype: Any = "float32") -> np.ndarray:
    """Zeros: biases, and the last layer of a residual branch, which then begins as the identity."""
    return np.zeros(shape, dtype)
