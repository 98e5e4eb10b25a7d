"""One Brownian path per sample, looked up where a sampler needs it: the same noise for any number of steps.

A path W runs over the clock tau = sigma^-2, because then the noise that DDPM, the ancestral samplers and the SDE forms
at eta = 1 add between levels s and t is t^2 (W(tau_t) - W(tau_s)), exactly: only D's discretisation distinguishes a
coarse run from a fine one. Other samplers get increments of the same path, which is right to the order of their steps.

W is a sum of Schauder functions (Levy, Ciesielski): the end of the path is one normal number, the middle of an interval
given its ends is their interpolation plus another, and so on. The middles are taken in log sigma, where steps are of
like size. Every number is `normal` of the sample's key and the node's own stream, so nothing is stored: an increment is
sum_j w_j z_j over some forty nodes, one call of ops.normals. Not here: when noise is added (the plans).
"""

from __future__ import annotations

from math import log2, sqrt
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from .plan import Plan

__all__ = ["BrownianBridge", "increment_weights"]

OCTAVES = 24.0  # levels from 2^24 to 2^-24 are told apart; beyond, the path stands still
DEPTH = 20  # halvings: 2^-20 of 48 octaves, a step of 3e-5 in log sigma
NODES = 1 << 32  # stream number of node 0, beyond those of stages
NEGLIGIBLE = 1e-10  # weights below this are left out


def _clock(place: float) -> float:
    """tau = sigma^-2 at a place: 0 is sigma = 2^24, 1 is 2^-24."""
    return 2.0 ** (4 * OCTAVES * place - 2 * OCTAVES)


def _place(level: float) -> float:
    if level <= 2.0**-OCTAVES:
        return 1.0
    return max(0.0, (OCTAVES - log2(level)) / (2 * OCTAVES))


def _path(place: float) -> dict[int, float]:
    """W at a place, as coefficients of the nodes' normal numbers. Node 0 is the end, 1 the middle, 2 k and 2 k + 1 the
    middles left and right of node k's, and the deepest ones stand for a single place in their interval."""
    low, high, node = 0.0, 1.0, 1
    start, tau = _clock(0.0), _clock(place)
    t_low, t_high = start, _clock(1.0)
    found = {0: (tau - start) / sqrt(t_high - start)}
    for depth in range(DEPTH + 1):
        if not t_low < tau < t_high:
            break
        middle = place if depth == DEPTH else (low + high) / 2
        t_mid = _clock(middle)
        share = (tau - t_low) / (t_mid - t_low) if place <= middle else (t_high - tau) / (t_high - t_mid)
        found[node] = share * sqrt((t_mid - t_low) * ((t_high - t_mid) / (t_high - t_low)))
        if place < middle:
            high, t_high, node = middle, t_mid, 2 * node
        else:
            low, t_low, node = middle, t_mid, 2 * node + 1
    return found


def increment_weights(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """(streams, weights): (W(end) - W(start)) / its standard deviation is sum_j weights_j z(streams_j).

    start, end: levels sigma / alpha, start above end; end may be 0. Returns (m,) uint64 and (m,) float64, of which the
    squares sum to 1; m is about 40. Raises ValueError where the path does not move between the two.
    """
    if not start > end >= 0:
        raise ValueError(f"increment_weights: levels must fall and not be negative, got {start} to {end}")
    first, last = _path(_place(start)), _path(_place(end))
    moved = {node: last.get(node, 0.0) - first.get(node, 0.0) for node in first.keys() | last.keys()}
    size = sqrt(sum(w * w for w in moved.values()))
    if size == 0:
        raise ValueError(
            f"increment_weights: levels {start} and {end} are not told apart: they must differ by a part "
            f"in 2^50 or more, and one of them lie between 2^-{OCTAVES:.0f} and 2^{OCTAVES:.0f}"
        )
    kept = sorted(node for node, w in moved.items() if abs(w) > NEGLIGIBLE * size)
    return np.array(kept, np.uint64) + np.uint64(NODES), np.array([moved[node] for node in kept]) / size


class BrownianBridge:
    """The noise of a plan's stages as increments of one path per sample: `increment(i, x)` is stage i's.

    plan: its stages say over which levels they add noise (`Stage.span`); keys: (n, 2) uint64, a path per sample. Two
    plans with the same keys follow the same paths. Raises ValueError where a stage with noise has no span.
    """

    def __init__(self, plan: Plan, keys: Any) -> None:
        self.keys = keys
        self._weights: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for i, stage in enumerate(plan.stages):
            if stage.c_noise == 0:
                continue
            if np.isnan(stage.span).any():
                raise ValueError(f"BrownianBridge: stage {i} of {plan.name} adds noise but has no span of levels")
            self._weights[i] = increment_weights(*stage.span)

    def increment(self, i: int, x: Any) -> Any:
        """Standard normal numbers of x's shape and dtype, c_noise times which is the noise of stage i. x: (n, ...)."""
        if i not in self._weights:
            raise ValueError(f"BrownianBridge.increment: stage {i} adds no noise")
        if x.shape[0] != len(self.keys):
            raise ValueError(f"BrownianBridge.increment: x has {x.shape[0]} samples, for {len(self.keys)} keys")
        streams, weights = (_device.beside(self.keys, a) for a in self._weights[i])
        dtype = "float32" if str(x.dtype).endswith("float32") else "float64"
        return ops.normals(self.keys, streams, weights, shape=tuple(x.shape[1:]), dtype=dtype)
