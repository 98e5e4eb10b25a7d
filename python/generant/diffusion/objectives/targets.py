"""What the network is shown and what it shall say: two combinations of the same data and the same noise.

With x_t = alpha data + sigma noise, every prediction p in use satisfies D = a_x x_t + a_p p. So its target is a
combination of data and noise too, and D - data = a_p (p - target): a weight on the loss of D is a_p^2 times that weight
on the loss of p, exactly, at every level. Not here: the choice of levels and of weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...ops import _device
from ..plan import FORMS
from ..predictions import PREDICTIONS
from .edm import Edm

__all__ = ["Target", "checked_training_levels", "scales", "target"]


class Target(NamedTuple):
    """input = in_x data + in_z noise, target = b_x data + b_z noise, D - data = gain (p - target). All (n,) float64."""

    in_x: np.ndarray
    in_z: np.ndarray
    b_x: np.ndarray
    b_z: np.ndarray
    gain: np.ndarray


LARGEST = 2.0**53  # stands for an infinite level: beside the noise, the data is then below the last bit


def checked_training_levels(owner: str, levels: Any, form: str = "ve") -> np.ndarray:
    """levels as (n,) float64 on the host. ValueError unless all are positive and, in form "ve", finite."""
    s = np.asarray(_device.from_device(levels), np.float64)
    if form != "ve":
        s = np.minimum(s, LARGEST)
    if s.ndim != 1:
        raise ValueError(f"{owner}: levels must be a vector, one level per sample, got shape {s.shape}")
    bad = ~((s > 0) & np.isfinite(s))
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(f"{owner}: levels must be positive and finite, got levels[{first}] = {s[first]}")
    return s


def scales(form: str, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) of x_t = alpha data + sigma noise at the levels sigma / alpha, float64.

    form "ve": alpha = 1; "vp": alpha^2 + sigma^2 = 1; "flow": alpha + sigma = 1.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    alpha = np.ones_like(levels) if form == "ve" else 1 / (np.hypot(1, levels) if form == "vp" else 1 + levels)
    return alpha, alpha * levels


def target(prediction: Any, levels: Any, *, form: str = "vp") -> Target:
    """The coefficients of input and target for what the network predicts, at noise levels sigma / alpha.

    prediction: "epsilon": noise; "denoised": data; "v": alpha noise - sigma data; "flow": noise - data; "score":
    -noise / sigma; "edm" or an `Edm`: its F, whose input is scaled to unit variance. levels (n,), positive;
    infinite, where x_t is noise alone, in forms other than "ve". form: see `scales`; "edm" looks at x_t / alpha in all.
    """
    s: Any = checked_training_levels("target", levels, form)
    if prediction == "edm":
        prediction = Edm()
    one, zero = np.ones_like(s), np.zeros_like(s)
    if isinstance(prediction, Edm):
        in_x, in_z, b_x, b_z = prediction.mixtures(s)
        sign = np.sign(prediction.convert(1.0)[1])  # some networks are trained to say -F
        return Target(in_x, in_z, sign * b_x, sign * b_z, sign * prediction.scalings(s)[1])
    alpha: Any
    sigma: Any
    alpha, sigma = scales(form, s)
    targets = {
        "epsilon": (zero, one), "denoised": (one, zero), "v": (-sigma, alpha), "flow": (-one, one),
        "score": (zero, -1 / sigma),
    }  # fmt: skip
    if not isinstance(prediction, str) or prediction not in targets:
        names = ", ".join([*targets, "edm"])
        raise ValueError(f"target: prediction must be one of {names} or an Edm, got {prediction!r}")
    gain = PREDICTIONS[prediction](alpha, sigma)[1] * one
    return Target(alpha, sigma, *targets[prediction], gain)
