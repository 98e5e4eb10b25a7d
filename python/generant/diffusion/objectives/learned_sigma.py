"""Training the variance that a network predicts: the variational bound, in which the mean does not learn.

The bound of a discrete process is a sum over its levels of KL(q(x_{i-1} | x_i, data) || p(x_{i-1} | x_i)), between
Gaussians that differ in their means by a multiple of D - data, so by a multiple of prediction - target. The mean is
left to the ordinary loss: here the prediction is a constant. Not here: sampling with that variance (learned_variance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import ops
from ...ops import _device
from .objective import Objective
from .targets import checked_training_levels, target

__all__ = ["hybrid_loss", "variational_terms"]

SMALLEST = 1e-12  # of a bin's probability, so that its logarithm is finite
EDGE = 0.999  # data at least this far out belongs to the outermost bin, which has no end


def variational_terms(
    said: Any,
    values: Any,
    x: Any,
    index: Any,
    table: Any,
    key: Any,
    *,
    prediction: Any = "epsilon",
    form: str = "vp",
    bin: float | None = None,
) -> Any:
    """KL(q(x_{i-1} | x_i, data) || N(mean, v)) of every sample, in nats per element; for i = 0, -log p(data | x_0).

    said, values: n ..., what the network says of x_i: the prediction, of which no gradient is taken, and the variance
    by log v = (1 + values) / 2 log(beta) + (1 - values) / 2 log(posterior variance). x: n ..., data; index (n,): i;
    table (T,): levels sigma / alpha, rising; key: of the noise in x_i. bin: the data's step, 2 / 255 for 8-bit
    images in [-1, 1], whose probability is then that of the bin; None: the density of the Gaussian. T times the
    mean over uniform i is the bound, less a constant. Returns (n,). Nichol and Dhariwal (2021), section 3.1.
    """
    levels = checked_training_levels("variational_terms", table, form)
    i = np.asarray(index)
    if len(levels) < 2 or not (np.diff(levels) > 0).all():
        raise ValueError("variational_terms: table must be at least two levels that rise strictly")
    if i.shape != (x.shape[0],) or i.dtype.kind not in "iu":
        raise ValueError(f"variational_terms: index must be ({x.shape[0]},) integers, got {i.shape} {i.dtype}")
    if len(i) and not (0 <= i.min() and i.max() < len(levels)):
        raise ValueError(f"variational_terms: index must lie in 0 ... {len(levels) - 1}, got {i.min()} ... {i.max()}")
    if bin is not None and not 0 < bin < np.inf:
        raise ValueError(f"variational_terms: bin must be positive and finite, or None, got {bin}")

    s = levels[i]
    last = i == 0
    t = np.where(last, 0.0, levels[np.maximum(i, 1) - 1])
    gap = (s - t) * (s + t)
    small = np.log(np.where(last, 1.0, t**2 * gap / s**2))
    # the last step's posterior is a point: its variance is taken to be that of the step before
    low, high = levels[:2]
    small[last] = np.log(low**2 * (high**2 - low**2) / (high**2 * (1 + low**2)))
    large = np.log(gap * (1 + t**2) / (1 + s**2))
    goal = target(prediction, s, form=form)

    column = (len(i),) + (1,) * (len(x.shape) - 1)
    each = lambda a: _device.beside(x, a.astype(x.dtype))
    per_sample = lambda a: each(a).reshape(column)
    spread = lambda a: ops.expand(per_sample(a), shape=tuple(x.shape))
    log_v = ops.add(ops.mul(values, per_sample((large - small) / 2)), spread((large + small) / 2))
    scale = gap / s**2 * goal.gain  # of prediction - target, in the difference of the means; at i = 0 that of D - data
    mean = ops.mul(ops.stop_gradient(said), per_sample(scale))
    wanted = ops.q_sample(x, each(scale * goal.b_x), each(scale * goal.b_z), key)
    size = max(int(np.prod(x.shape[1:])), 1)
    terms = ops.affine(ops.gaussian_kl(mean, spread(small), wanted, log_v), scale=1 / size)
    if not last.any():
        return terms
    surprise = _surprise(ops.sub(wanted, mean), log_v, x, bin)
    rest = tuple(range(1, len(x.shape)))
    surprise = ops.mean(surprise, axis=rest) if rest else surprise
    return ops.add(ops.mul(terms, each(~last)), ops.mul(surprise, each(last)))


def _surprise(distance: Any, log_v: Any, x: Any, bin: float | None) -> Any:
    """-log of the probability of data at a distance from the mean, per element."""
    if bin is None:
        square = ops.mul(ops.square(distance), ops.exp(ops.affine(log_v, scale=-1.0)))
        return ops.affine(ops.add(square, log_v), scale=0.5, shift=0.5 * float(np.log(2 * np.pi)))
    unit = ops.exp(ops.affine(log_v, scale=-0.5, shift=-0.5 * float(np.log(2))))  # 1 / sqrt(2 v)
    below = lambda shift: ops.affine(ops.erf(ops.mul(ops.affine(distance, shift=shift), unit)), scale=0.5, shift=0.5)
    upper = ops.maximum(below(bin / 2), (x > EDGE).astype(x.dtype))
    lower = ops.mul(below(-bin / 2), (x >= -EDGE).astype(x.dtype))
    mass = ops.maximum(ops.sub(upper, lower), _device.full(x, tuple(x.shape), SMALLEST, x.dtype))
    return ops.affine(ops.log(mass), scale=-1.0)


def hybrid_loss(
    objective: Objective,
    network: Callable[..., tuple[Any, Any]],
    x: Any,
    labels: Any,
    index: Any,
    table: Any,
    key: Any,
    *,
    share: float = 1e-3,
    bin: float | None = None,
) -> Any:
    """mean(losses) + share T mean(variational_terms): the prediction learns from the one, the variance from the other.

    network(input, told, labels) returns (prediction, values), each of x's shape; index (n,): which of the T levels in
    `table` (rising) each sample is at. Returns a scalar. Nichol and Dhariwal (2021), eq. 16.
    """
    if not isinstance(objective.prediction, str) or objective.self_conditioning is not None:
        raise ValueError("hybrid_loss: objective must have a named prediction, not edm, and no self-conditioning")
    levels = np.asarray(table, np.float64)
    kept: list[Any] = []  # what the network said, which the loss of the prediction sees half of

    def first(*arguments: Any) -> Any:
        said, values = network(*arguments)
        kept[:] = [said, values]
        return said

    plain = objective.loss(first, x, labels, levels[np.asarray(index)], key)
    terms = variational_terms(
        kept[0], kept[1], x, index, levels, key, prediction=objective.prediction, form=objective.form, bin=bin
    )
    return ops.add(plain, ops.affine(ops.mean(terms), scale=share * len(levels)))
