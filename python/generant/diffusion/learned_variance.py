"""DDPM whose variance the network predicts, per element: it says two arrays, a prediction and a variance.

A plan holds numbers, not arrays. So the "fixed_small" plan of `ddpm` stays as it is, and each stage's standard normal
numbers are stretched by the ratio of the predicted standard deviation to the plan's own.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot, log
from typing import Any

import numpy as np

from .. import ops, random
from .plan import Plan
from .sampling import Stepper, sample_keys

__all__ = ["LEARNED", "deviation", "learned_noise", "sample_learned"]

LEARNED = ("learned_range", "learned")


def learned_noise(plan: Plan, i: int, values: Any, keys: np.ndarray, *, variance: str = "learned_range") -> Any:
    """z (std predicted / std of the plan): what `Stepper.step(noise=)` takes, from the variance the network said.

    plan: `ddpm(.., variance="fixed_small")`, rescaled or not; i: the stage; values: n ..., of x's shape; keys: (n, 2)
    uint64. variance: "learned_range": log v = (1 + values) / 2 log(beta) + (1 - values) / 2 log(posterior variance), so
    -1 is "fixed_small" and 1 is "fixed_large"; "learned": v = values, the variance in x's own coordinates. Returns
    an array of values' shape, or None where the stage adds no noise. Nichol and Dhariwal (2021), eq. 15.
    """
    if variance not in LEARNED:
        raise ValueError(f"learned_noise: variance must be one of {', '.join(LEARNED)}, got {variance!r}")
    if plan.name != "ddpm":
        raise ValueError(f"learned_noise: plan must be ddpm's, got {plan.name}")
    stage = plan.stages[i]
    if stage.c_noise == 0:
        return None
    dtype = "float32" if str(values.dtype).endswith("float32") else "float64"
    z = random.normals(keys, tuple(values.shape[1:]), dtype, stream=i + 1)
    s, t = stage.span
    ratio = 2 * log(s * hypot(1, t) / (t * hypot(1, s)))  # beta / posterior variance = (1 - abar_s) / (1 - abar_t)
    small = 2 * log(stage.c_noise)
    return ops.affine(ops.mul(z, deviation(values, small, small + ratio, variance)), scale=1 / stage.c_noise)


def deviation(values: Any, small: float, large: float, variance: str = "learned_range") -> Any:
    """The standard deviation that the network predicted: exp of half of log v, which lies between small and large.

    log v = (1 + values) / 2 large + (1 - values) / 2 small for "learned_range"; v = values for "learned".
    """
    if variance == "learned":
        return ops.sqrt(values)
    return ops.exp(ops.affine(values, scale=(large - small) / 4, shift=(large + small) / 4))


def sample_learned(
    network: Callable[[Any, float], tuple[Any, Any]],
    x: Any,
    plan: Plan,
    *,
    keys: Any,
    prediction: Any = "epsilon",
    variance: str = "learned_range",
    clip: float | None = None,
    callback: Callable[[int, Any], Any] | None = None,
) -> Any:
    """Run x through `ddpm`'s plan with the variance the network predicts: the samples, in x's shape.

    network(x, sigma): (prediction, values), each of x's shape; of a network with twice the channels, its two halves.
    variance: what the values are, see `learned_noise`. Other arguments as `sampling.sample`.
    """
    if plan.name != "ddpm":
        raise ValueError(f"sample_learned: plan must be ddpm's, got {plan.name}")
    keys = sample_keys(keys, x.shape[0], x)
    stepper = Stepper(plan, prediction=prediction, clip=clip)
    for i, stage in enumerate(plan.stages):
        said, values = network(x, stage.told)
        noise = learned_noise(plan, i, values, keys, variance=variance)
        x, h = stepper.step(i, x, said, noise=noise)
        if callback is not None and callback(i, h) is True:
            break
    return x
