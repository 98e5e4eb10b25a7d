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
from ..random import Stream, split
from .denoisers import SIGMA_DATA

__all__ = ["EXACT", "class_bounds", "flow_nats", "logsumexp"]

EXACT = 8  # features up to which the trace is exact; above, it is estimated with random probes
PROBES, STEPS = 2, 16
LEVELS = 16  # of the class scores
LOWEST, HIGHEST = 0.05, 8.0  # between which the classes differ, in the unit of sigma


class _Flow:
    """D of some rows and the trace of its derivative, both from one call of the network per probe."""

    def __init__(self, model: Any, labels: np.ndarray | None, probes: list[np.ndarray], share: float) -> None:
        self.goal, self.network = model.objective_, model._denoiser
        self.labels, self.probes, self.share = labels, probes, share

    def denoised(self, x: Any, sigma: float) -> Any:
        in_x, told, a, gain = self.goal.at(sigma)
        inputs = ops.affine(x, scale=in_x)
        rest = [np.full(len(x), told, x.dtype), self.labels]
        if self.goal.self_conditioning is not None:
            rest.append(np.zeros_like(inputs))
        calls = [self.network.traced(v, inputs, *rest) for v in self.probes]
        traces = np.sum([np.asarray(trace, np.float64) for _, trace in calls], axis=0) * self.share
        self.trace = in_x * (a * math.prod(x.shape[1:]) + gain * traces)
        return ops.add(ops.affine(inputs, scale=a), ops.affine(calls[0][0], scale=gain))

    def divergence(self, x: Any, sigma: float) -> np.ndarray:
        """Of what `denoised` was last asked for."""
        return self.trace


def flow_nats(model: Any, x: np.ndarray, codes: np.ndarray | None, stream: Stream) -> np.ndarray:
    """log p(x | class) of scaled rows (m, d), in nats: density of data with sigma_min noise. (m,) float64."""
    d, keys, found = x.shape[1], split(stream.at(0), len(x)), np.empty(len(x))
    for start in range(0, len(x), model._at_once):
        part = slice(start, start + model._at_once)
        if d <= EXACT:
            drawn = [np.broadcast_to(v, x[part].shape) for v in np.eye(d)]
        else:
            one = np.ones(1)
            drawn = [np.sign(ops.normals(keys[part], np.array([i], np.uint64), one, shape=(d,))) for i in range(PROBES)]
        probes = [model._shaped(np.ascontiguousarray(v, x.dtype)) for v in drawn]
        flow = _Flow(model, None if codes is None else codes[part], probes, 1.0 if d <= EXACT else 1 / PROBES)
        found[part] = diffusion.log_likelihood(
            flow.denoised, model._shaped(x[part]), sigma_min=model.sigma_min, sigma_max=model.sigma_max,
            sigma_data=SIGMA_DATA, n_steps=STEPS, divergence=flow.divergence,
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
    size = max(1, model._at_once // classes)
    found = np.empty((len(x), classes))
    for start in range(0, len(x), size):
        rows = x[start : start + size].astype(np.float64)
        m = len(rows)
        data = model._shaped(np.repeat(x[start : start + size], classes, axis=0))
        labels = np.tile(np.arange(classes, dtype=np.int64), m)
        total = np.zeros((m, classes))
        for i, s in enumerate(levels):
            z = ops.normal(stream.at(i), shape=(d,))
            for noise in (z, -z):
                shown = np.broadcast_to(model._shaped(noise[None]), data.shape)
                lost = goal.losses(
                    network, data, labels, np.full(len(data), s), None, noise=np.ascontiguousarray(shown)
                )
                gaussian = np.mean((s * s * rows - v * s * noise) ** 2, axis=1) / (v + s * s) ** 2 / (s * s)
                total -= width[i] * d / 2 * (lost.reshape(m, classes).astype(np.float64) - gaussian[:, None])
        normal = -0.5 * (np.sum(rows**2, axis=1) / v + d * math.log(2 * math.pi * v))
        found[start : start + size] = normal[:, None] + total
    return found


def logsumexp(a: np.ndarray) -> np.ndarray:
    """log of the sum of exp over the columns of a (n, m), (n,)."""
    top = a.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(a - top).sum(axis=1))
