"""Samplers of a few steps, for networks distilled to jump: consistency models, LCM and TCD.

The network's answer at any level is taken as the end of the path; each step jumps there and goes back up to the next
level by fresh noise. Not here: how such networks are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import hypot, sqrt
from typing import Any

import numpy as np

from ... import ops
from ..plan import Plan, Stage, checked_levels
from .ancestral import checked_number

__all__ = ["ConsistencyScaling", "consistency", "lcm", "tcd"]


class ConsistencyScaling:
    """f = c_skip x + c_out F(c_in x; c_noise) with f = x at sigma_min: what a consistency model predicts.

    With e = sigma - sigma_min and d = sigma_data: c_skip = d^2 / (e^2 + d^2), c_out = e d / sqrt(sigma^2 + d^2),
    c_in = 1 / sqrt(sigma^2 + d^2), c_noise = 250 log sigma. `sampling.sample` takes it as `prediction`.
    Song et al. (2023), "Consistency models", eq. 5 and appendix C.
    """

    def __init__(self, sigma_data: float = 0.5, *, sigma_min: float = 0.002) -> None:
        if not 0 < sigma_data < np.inf:
            raise ValueError(f"ConsistencyScaling: sigma_data must be positive and finite, got {sigma_data}")
        self.sigma_data = float(sigma_data)
        self.sigma_min = checked_number("ConsistencyScaling", "sigma_min", sigma_min)

    def scalings(self, sigma: Any) -> tuple[Any, Any, Any, Any]:
        """(c_skip, c_out, c_in, c_noise) at levels sigma > 0, in float64."""
        s, d = np.asarray(sigma, np.float64), self.sigma_data
        e, r = s - self.sigma_min, np.hypot(s, d)
        return d**2 / (e**2 + d**2), e * d / r, 1 / r, 250 * np.log(s)

    def convert(self, sigma: float) -> tuple[float, float]:
        """(c_skip, c_out): f as a combination of x and of what the network said."""
        c_skip, c_out, _, _ = self.scalings(sigma)
        return float(c_skip), float(c_out)

    def predictor(self, network: Callable[..., Any], labels: Any = None) -> Callable[[Any, float], Any]:
        """denoiser(x, sigma) = F(c_in x; c_noise, labels) for `sampling.sample`."""

        def predict(x: Any, sigma: float) -> Any:
            _, _, c_in, c_noise = self.scalings(sigma)
            return network(ops.affine(x, scale=float(c_in)), np.full(x.shape[0], c_noise, x.dtype), labels)

        return predict


def consistency(sigmas: Any, *, sigma_min: float = 0.002, s_noise: float = 1.0) -> Plan:
    """x' = f + s_noise sqrt(t^2 - sigma_min^2) z, f the network's jump from level s: multistep consistency sampling.

    sigmas: levels that fall strictly; where t is sigma_min or less, no noise is added. sigma_min: the level that f
    jumps to. D of the plan is f: say prediction=ConsistencyScaling(..) for a network that predicts F.
    Song et al. (2023), algorithm 1.
    """
    sigma_min = checked_number("consistency", "sigma_min", sigma_min)
    s_noise = checked_number("consistency", "s_noise", s_noise)
    levels = checked_levels("consistency", sigmas)
    stages = [
        Stage(s, c_noise=s_noise * sqrt((t - sigma_min) * (t + sigma_min)) if t > sigma_min else 0.0, span=(s, t))
        for s, t in pairwise(levels)
    ]
    return Plan("consistency", stages, final=(1.0, levels[-1]))


def lcm(
    sigmas: Any, *, times: Sequence[float] | None = None, sigma_data: float = 0.5, time_scaling: float = 10.0
) -> Plan:
    """x' = c_out D + c_skip sqrt(abar) x + t z: latent consistency. One call per level.

    c_skip = d^2 / (q^2 + d^2), c_out = q / sqrt(q^2 + d^2) for q = time_scaling times the network's time and
    d = sigma_data; sqrt(abar) x, abar = 1 / (1 + s^2), is x in the variance preserving form, for which they are meant.
    sigmas: n + 1 levels that fall strictly; times: the n times of their steps, which the network is told; None leaves
    c_skip = 0 and c_out = 1, which they all but are from time 1 on. Luo et al. (2023), algorithm 3 and appendix.
    """
    levels = checked_levels("lcm", sigmas)
    if times is not None and len(times) != len(levels) - 1:
        raise ValueError(f"lcm: times must be one for each of the {len(levels) - 1} steps, got {len(times)}")
    d = float(sigma_data)
    if not 0 < d < np.inf:
        raise ValueError(f"lcm: sigma_data must be positive and finite, got {sigma_data}")
    time_scaling = checked_number("lcm", "time_scaling", time_scaling)
    stages = []
    for i, (s, t) in enumerate(pairwise(levels)):
        c_skip, c_out, told = 0.0, 1.0, float("nan")
        if times is not None:
            told = float(times[i])
            q = time_scaling * told
            c_skip, c_out = d**2 / (q**2 + d**2), q / hypot(q, d)
        stages.append(Stage(s, time=told, c_x=c_skip / hypot(1, s), c_d=c_out, c_noise=t, span=(s, t)))
    return Plan("lcm", stages, final=(1.0, levels[-1]))


def tcd(sigmas: Any, *, gamma: float = 0.3, through: Sequence[float] | None = None) -> Plan:
    """x' = D + u (x - D) / s + sqrt(t^2 - u^2) z: a jump from s to u <= t, then noise up to t. One call per level.

    sigmas: n + 1 levels that fall strictly. through: the n levels u, in the paper those of the time (1 - gamma) times
    that of t; None: u = (1 - gamma) t, the same where the time is sigma. gamma: 0, no noise, ... 1, where it is `lcm`
    without its scalings. Zheng et al. (2024), "Trajectory consistency distillation", algorithm 4.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"tcd: gamma must lie in 0 ... 1, got {gamma}")
    levels = checked_levels("tcd", sigmas)
    ends = levels[1:]
    between = [(1 - gamma) * t for t in ends] if through is None else [float(u) for u in through]
    if len(between) != len(ends):
        raise ValueError(f"tcd: through must be one level for each of the {len(ends)} steps, got {len(between)}")
    stages = []
    for i, ((s, t), u) in enumerate(zip(pairwise(levels), between, strict=True)):
        if not 0 <= u <= t:
            raise ValueError(f"tcd: through[{i}] must lie in 0 ... {t} = sigmas[{i + 1}], got {u}")
        stages.append(Stage(s, c_x=u / s, c_d=1 - u / s, c_noise=sqrt((t - u) * (t + u)), span=(s, t)))
    return Plan("tcd", stages, final=(1.0, levels[-1]))
