"""Likelihoods of a diffusion model: of rows by the probability flow, between classes by what each denoiser loses.

The flow gives log p(x | class) in nats but needs derivatives of the network at every step. To tell classes apart it is
not needed: by log p(x) = log N(x; 0, v) - integral of (loss of D - loss of the Gaussian's D) / s^2 over log s, with the
same noise for all classes, a few levels do (Kong et al., 2023; Li et al., 2023).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import diffusion, ops
from ..random import Stream, fold_in, split
from .denoisers import SIGMA_DATA

__all__ = ["class_bounds", "flow_nats"]

EXACT = 8  # features up to which the trace is exact; above, it is estimated with random probes
PROBES, STEPS = 4, 32
LEVELS, PAIRS = 24, 1  # of the class scores, and pairs z, -z of noise at each
LOWEST, HIGHEST = 0.03, 8.0  # between which the classes differ, in the unit of sigma
ROWS = 4096  # scored at a time


def flow_nats(model: Any, x: np.ndarray, codes: np.ndarray | None, stream: Stream) -> np.ndarray:
    """log p(x | class) of scaled rows (m, d), in nats: density of data with sigma_min noise. (m,) float64."""
    goal, network = model.objective_, model.networks_["denoiser"]
    exact = x.shape[1] <= EXACT
    keys, found = split(stream.at(0), len(x)), np.empty(len(x))
    for start in range(0, len(x), model._rows):
        part = slice(start, start + model._rows)
        labels = None if codes is None else codes[part]
        denoiser = diffusion.denoiser_of(goal.predictor(network, labels), goal.prediction, form=goal.form)
        found[part] = diffusion.log_likelihood(
            denoiser, model._shaped(x[part]), sigma_min=model.sigma_min, sigma_max=model.sigma_max,
            sigma_data=SIGMA_DATA, n_steps=STEPS, trace="exact" if exact else "hutchinson", key=keys[part],
            probes=PROBES,
        ).nats  # fmt: skip
    return found


def class_bounds(model: Any, x: np.ndarray, classes: int, stream: Stream) -> np.ndarray:
    """log p(x | class) of scaled rows (m, d) as the variational bound of a grid of levels, (m, classes) float64 nats.

    All rows and classes see the same noise, so that differences between classes are sharp and no row depends on those
    beside it.
    """
    goal, network = model.objective_.weighted("snr"), model._denoiser
    d = x.shape[1]
    levels = np.geomspace(LOWEST, HIGHEST, LEVELS)
    step = math.log(HIGHEST / LOWEST) / (LEVELS - 1)
    width = np.full(LEVELS, step)
    width[[0, -1]] /= 2  # trapezia
    v = SIGMA_DATA**2
    size = max(1, model._rows // classes)
    found = np.empty((len(x), classes))
    for start in range(0, len(x), size):
        rows = x[start : start + size].astype(np.float64)
        m = len(rows)
        data = model._shaped(np.repeat(x[start : start + size], classes, axis=0))
        labels = np.tile(np.arange(classes, dtype=np.int64), m)
        total = np.zeros((m, classes))
        for i, s in enumerate(levels):
            for pair in range(PAIRS):
                z = ops.normal(fold_in(stream.at(i), pair), shape=(d,))
                for noise in (z, -z):
                    lost = goal.losses(
                        network, data, labels, np.full(len(data), s), None,
                        noise=np.ascontiguousarray(np.broadcast_to(model._shaped(noise[None]), data.shape)),
                    ).astype(np.float64)  # fmt: skip
                    gaussian = np.mean((s * s * rows - v * s * noise) ** 2, axis=1) / (v + s * s) ** 2 / (s * s)
                    gain = lost.reshape(m, classes) - gaussian[:, None]
                    total -= width[i] * d / (2 * PAIRS) * gain
        normal = -0.5 * (np.sum(rows**2, axis=1) / v + d * math.log(2 * math.pi * v))
        found[start : start + size] = normal[:, None] + total
    return found


def logsumexp(a: np.ndarray) -> np.ndarray:
    """log of the sum of exp over the columns of a (n, m), (n,)."""
    top = a.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(a - top).sum(axis=1))
