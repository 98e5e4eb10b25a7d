"""Averages of the parameters whose length grows with training, and any other length made of their snapshots afterwards.

After t updates the average is sum_k w_k params_k with w_k = (k^(gamma+1) - (k-1)^(gamma+1)) / t^(gamma+1), k = 1 ... t:
close to a power k^gamma, and described by its standard deviation as a share of t, sigma_rel. Snapshots of a few such
averages at many times are a basis: `reconstruct` finds the combination whose weights are closest to those of the wanted
average, by least squares in the exact weights. Karras et al. (2024), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..ops import _device
from .state import Stateful, flat

__all__ = ["PowerEma", "Snapshot", "combination", "power_of", "reconstruct"]

CHUNK = 1 << 14  # updates whose weights are held at a time
CUTOFF = 1e-13  # of singular values, against the largest


def power_of(sigma_rel: float) -> float:
    """gamma >= 0 with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)): 6.94 for 0.1, 16.97 for 0.05.

    sigma_rel: in (0, 12^-1/2]. Karras et al. (2024), section 3.1.
    """
    if not 0 < sigma_rel <= 12**-0.5 * (1 + 1e-12):
        raise ValueError(f"power_of: sigma_rel must lie in (0, 12^-1/2 = 0.2887], got {sigma_rel}")
    t = float(sigma_rel) ** -2
    roots = np.roots([1, 7, 16 - t, 12 - t])
    return max(0.0, float(roots[np.abs(roots.imag) < 1e-6 * np.abs(roots)].real.max()))


class Snapshot(NamedTuple):
    """An average as it was after `step` updates. gamma: its exponent."""

    step: int
    gamma: float
    average: np.ndarray


class PowerEma(Stateful):
    """average_j <- beta_j average_j + (1 - beta_j) params, beta_j = (1 - 1/t)^(gamma_j + 1) at update t = 1, 2, ...

    sigma_rel: the relative lengths to track, one row of `averages` each. Keep `snapshots()` from time to time, and
    `reconstruct` makes an average of any length of them. Karras et al. (2024), section 3.1.
    """

    def __init__(self, params: Any, *, sigma_rel: Sequence[float] = (0.05, 0.1)) -> None:
        self.params = flat("PowerEma", params)
        self.sigma_rel = tuple(float(s) for s in sigma_rel)
        if not self.sigma_rel:
            raise ValueError("PowerEma: sigma_rel must name at least one length")
        self.gammas = tuple(power_of(s) for s in self.sigma_rel)
        self.averages = np.repeat(params[None], len(self.gammas), axis=0)
        self.count = _device.full(params, (1,), 0, np.int64)  # updates done
        self.decays = _device.full(params, (len(self.gammas), 1), 0.0, np.float64)  # of the coming update

    @property
    def state(self) -> dict[str, Any]:  # type: ignore[override]
        """averages, count, decays."""
        return {"averages": self.averages, "count": self.count, "decays": self.decays}

    def prepare(self) -> None:
        """Set `decays` for the coming update and count it: the part of `update` that is not recorded."""
        self.count += 1
        decays = (1 - 1 / int(self.count[0])) ** (np.array(self.gammas) + 1)
        _device.put(self.decays, decays[:, None])

    def apply(self, ok: Any = None) -> None:
        """Every average <- its decay average + (1 - decay) params, unless ok (1 uint8) is 0."""
        for j in range(len(self.gammas)):
            ops.ema_(self.averages[j], self.params, self.decays[j], ok)

    def update(self, ok: Any = None) -> None:
        """One update."""
        self.prepare()
        self.apply(ok)

    def snapshots(self) -> list[Snapshot]:
        """Copies of all averages as they are, on the host."""
        averages = np.array(_device.from_device(self.averages))
        return [Snapshot(int(self.count[0]), g, a.copy()) for g, a in zip(self.gammas, averages, strict=True)]


def weights(gamma: float, step: int, updates: np.ndarray) -> np.ndarray:
    """w_k of the average after `step` updates for k in updates, 0 for later ones. float64."""
    k = updates.astype(np.float64)
    with np.errstate(divide="ignore"):  # k = 1: its whole weight is new
        fresh = -np.expm1((gamma + 1) * np.log1p(-1 / k))
    return np.where(k <= step, np.minimum(k / step, 1) ** (gamma + 1) * fresh, 0.0)


def combination(steps: Sequence[int], gammas: Sequence[float], *, step: int, gamma: float) -> np.ndarray:
    """c minimising |sum_i c_i w_i - w|^2 over the updates, with sum(c) = 1; w_i, w: weights of the averages. float64.

    That the c sum to 1 makes the combination exact for what does not change. Time O(step m^2) for m snapshots.
    """
    times, powers = np.array(steps), np.array(gammas, np.float64)
    m = len(times)
    gram, right = np.zeros((m, m)), np.zeros(m)
    end = max(int(times.max()), step)
    for first in range(1, end + 1, CHUNK):
        k = np.arange(first, min(first + CHUNK, end + 1))
        basis = np.stack([weights(g, t, k) for g, t in zip(powers, times, strict=True)])
        gram += basis @ basis.T
        right += basis @ weights(gamma, step, k)
    size = np.sqrt(np.diag(gram))
    unit = gram / size / size[:, None]
    values, vectors = np.linalg.eigh(unit)
    keep = values > CUTOFF * values[-1]
    inverse = lambda v: (vectors[:, keep] @ ((vectors[:, keep].T @ (v / size)) / values[keep])) / size
    free, along = inverse(right), inverse(np.ones(m))
    return free + along * (1 - free.sum()) / along.sum()


def reconstruct(snapshots: Sequence[Snapshot], sigma_rel: float, *, step: int | None = None) -> np.ndarray:
    """The average of relative length sigma_rel after `step` updates (default: the last snapshot's), from snapshots.

    Of snapshots up to `step`. The more of them and the nearer their lengths, the more exact. Sums in float64; returns
    an array like a snapshot's. Karras et al. (2024), section 3.2.
    """
    if not snapshots:
        raise ValueError("reconstruct: there are no snapshots")
    step = max(s.step for s in snapshots) if step is None else step
    used = [s for s in snapshots if 1 <= s.step <= step]
    if not used or used[0].average.ndim != 1 or len({s.average.shape for s in used}) > 1:
        raise ValueError(f"reconstruct: snapshots up to step {step} must be flat arrays of one length, got {len(used)}")
    c = combination([s.step for s in used], [s.gamma for s in used], step=step, gamma=power_of(sigma_rel))
    total = np.zeros(used[0].average.shape, np.float64)
    for factor, snapshot in zip(c, used, strict=True):
        total += factor * snapshot.average
    return total.astype(used[0].average.dtype)
