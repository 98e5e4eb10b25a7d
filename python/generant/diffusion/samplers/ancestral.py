"""Ancestral samplers: each step goes further down than it is asked to, and comes up again by adding noise.

From level s to t the deterministic part lands at `down` and noise of standard deviation `up` is added, with
down^2 + up^2 = t^2: whatever solves the equation to `down`, the noise level after the step is t. DDPM and DDIM are the
same step, written for x = alpha data + sigma noise, so here they differ in the choice of `up` alone; `plan.rescaled`
brings them to that form. Not here: samplers that integrate the noise along with the equation (sde), a variance that the
network predicts (learned_variance).
"""

from __future__ import annotations

from itertools import pairwise
from math import hypot, isfinite, sqrt
from typing import Any

from ..plan import Plan, Stage, checked_levels

__all__ = ["VARIANCES", "ddim", "ddpm", "dpm2_ancestral", "dpmpp_2s_ancestral", "euler_ancestral", "split_step"]

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")


def split_step(s: float, t: float, eta: float) -> tuple[float, float]:
    """(down, up): up = min(t, eta t sqrt(1 - t^2 / s^2)), down^2 = t^2 - up^2, for a step from level s to t.

    At eta = 1, up^2 is the variance of x at level t given x at level s and the data, and down = t^2 / s.
    """
    up = min(t, eta * t * sqrt((s - t) * (s + t)) / s)
    return sqrt((t - up) * (t + up)), up


def checked_number(sampler: str, name: str, value: Any) -> float:
    """value as a float, finite and at least 0."""
    number = float(value)
    if not (isfinite(number) and number >= 0):
        raise ValueError(f"{sampler}: {name} must be finite and at least 0, got {value}")
    return number


def _to_down(name: str, sigmas: Any, eta: float, s_noise: float) -> Plan:
    eta, s_noise = checked_number(name, "eta", eta), checked_number(name, "s_noise", s_noise)
    levels = checked_levels(name, sigmas)
    stages = []
    for s, t in pairwise(levels):
        down, up = split_step(s, t, eta)
        stages.append(Stage(s, c_x=down / s, c_d=1 - down / s, c_noise=s_noise * up, span=(s, t)))
    return Plan(name, stages, order=1, final=(1.0, levels[-1]))


def euler_ancestral(sigmas: Any, *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """x' = D + down (x - D) / s + s_noise up z: an Euler step to `down`, then noise. One call per level.

    sigmas: levels that fall strictly. eta: 0 no noise ... 1 as much as the posterior has. s_noise: factor of the noise.
    Weak order 1. Song et al. (2021), "Score-based generative modeling through SDEs", appendix F.
    """
    return _to_down("euler_ancestral", sigmas, eta, s_noise)


def ddim(sigmas: Any, *, eta: float = 0.0) -> Plan:
    """x' = D + sqrt(t^2 - v) (x - D) / s + sqrt(v) z, v = eta^2 t^2 (1 - t^2 / s^2): from no noise to DDPM's.

    With abar = 1 / (1 + sigma^2), v is the paper's eta^2 (1 - abar_t) / (1 - abar_s) (1 - abar_s / abar_t), over
    abar_t because x is data + sigma noise here. eta: 0 ... 1. Song, Meng and Ermon (2021), eq. 12, 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"ddim: eta must lie in 0 ... 1, got {eta}")
    return _to_down("ddim", sigmas, eta, 1.0)


def ddpm(sigmas: Any, *, variance: str = "fixed_small") -> Plan:
    """x' = (t / s)^2 x + (1 - (t / s)^2) D + sqrt(v) z: the mean of x at level t given x at level s and data D.

    variance: v in terms of abar = 1 / (1 + sigma^2) and beta = 1 - abar_s / abar_t, in the coordinates of
    x = sqrt(abar) data + ...: "fixed_small" beta (1 - abar_t) / (1 - abar_s), right for data that is a point;
    "fixed_large" beta, right for data of variance 1. "_log" gives the same numbers: it names how a variance is stored
    elsewhere. A step to 0 adds no noise. Weak order 1. Ho, Jain and Abbeel (2020), section 3.2; a variance that the
    network predicts is `learned_variance.learned_noise`, on the "fixed_small" plan.
    """
    if variance not in VARIANCES:
        raise ValueError(f"ddpm: variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    levels = checked_levels("ddpm", sigmas)
    stages = []
    for s, t in pairwise(levels):
        keep = (t / s) ** 2
        up = split_step(s, t, 1.0)[1]
        if variance.startswith("fixed_large") and t > 0:
            up = sqrt((s - t) * (s + t)) * hypot(1, t) / hypot(1, s)
        stages.append(Stage(s, c_x=keep, c_d=1 - keep, c_noise=up, span=(s, t)))
    return Plan("ddpm", stages, order=1, final=(1.0, levels[-1]))


def _by_middle(name: str, sigmas: Any, eta: float, s_noise: float, exponential: bool) -> Plan:
    """Two calls a step: at s, and at the geometric middle m of s and `down`, where an Euler step leads.

    The second stage holds x_m, D_m and D. The first x is (s x_m - (s - m) D) / m, so it need not be kept.
    """
    eta, s_noise = checked_number(name, "eta", eta), checked_number(name, "s_noise", s_noise)
    levels = checked_levels(name, sigmas)
    stages = []
    for s, t in pairwise(levels):
        down, up = split_step(s, t, eta)
        noise = s_noise * up
        if down == 0:
            stages.append(Stage(s, c_x=0.0, c_d=1.0, c_noise=noise, span=(s, t)))
            continue
        m = sqrt(s * down)
        stages.append(Stage(s, c_x=m / s, c_d=1 - m / s))
        if exponential:  # x' = (down / s) x + (1 - down / s) D_m
            c_d, c_1 = 1 - down / s, -down / m * (1 - m / s)
        else:  # x' = x + (down - s) (x_m - D_m) / m
            c_d, c_1 = (s - down) / m, -(s - m) / m
        terms = (("h", 1, c_1),)
        stages.append(Stage(m, c_x=down / m, c_d=c_d, terms=terms, c_noise=noise, span=(s, t)))
    return Plan(name, stages, order=2, final=(1.0, levels[-1]))


def dpm2_ancestral(sigmas: Any, *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """x' = x + (down - s) (x_m - D_m) / m + s_noise up z: the slope at m, the geometric middle of s and down.

    Two calls per level, one where down is 0. Arguments as `euler_ancestral`. The variance converges at order 2.
    Karras et al. (2022), algorithm 1 with the midpoint of Lu et al. (2022), "DPM-Solver", DPM-Solver-2.
    """
    return _by_middle("dpm2_ancestral", sigmas, eta, s_noise, exponential=False)


def dpmpp_2s_ancestral(sigmas: Any, *, eta: float = 1.0, s_noise: float = 1.0) -> Plan:
    """x' = (down / s) x + (1 - down / s) D_m + s_noise up z: D of the geometric middle m of s and down, then noise.

    Two calls per level, one where down is 0. Arguments as `euler_ancestral`. The variance converges at order 2.
    Lu et al. (2022), "DPM-Solver++", algorithm 1 with r = 1 / 2, then noise as in `euler_ancestral`.
    """
    return _by_middle("dpmpp_2s_ancestral", sigmas, eta, s_noise, exponential=True)
