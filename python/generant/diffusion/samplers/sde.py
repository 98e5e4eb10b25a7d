"""Samplers of the reverse equation with noise, and the churn of EDM.

For dx = (1 + eta) (x - D) / sigma dsigma + sqrt(2 eta sigma) dW, backwards in sigma, everything but D integrates in
closed form. In lambda = -log sigma, with h = log(s / t), the SDE forms of DPM-Solver++ are

    x' = (t / s) e^(-eta h) x + (integral of e^.. D) + t sqrt(1 - e^(-2 eta h)) z

and differ in the polynomial they put for D. Every noise here is an increment over its stage's own span of levels, and
spans of different stages do not overlap: independent numbers and one Brownian path are both right. The order of a plan
with noise is that of the distribution's variance (weak); along one path all of these converge at order 1 (strong).
Not here: how a path is made (bridge).
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1, inf, log, sqrt
from typing import Any

from ..plan import Plan, Stage, checked_levels
from .ancestral import checked_number, split_step

__all__ = ["dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde", "edm_churn"]

SOLVERS = ("midpoint", "heun")


def dpmpp_sde(sigmas: Any, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5) -> Plan:
    """x' = (down / s) x + (1 - down / s) ((1 - q) D + q D_m) + s_noise up z, q = 1 / (2 r): the two-stage SDE form.

    D_m is called at m = s^(1 - r) t^r, where a first step of the same kind, with its noise, leads. The second noise is
    the first one and the increment from m to t, in the clock sigma^-2 in which they add up; the first one is known from
    x_m, x and D, so each stage draws one normal number per element. sigmas: levels that fall strictly; eta, s_noise as
    `euler_ancestral`; r: where the middle is, in log sigma, above 0 and below 1. Two calls per level, one to 0.
    The variance converges at order 2. Lu et al. (2022), "DPM-Solver++", algorithm 1 and section 5, by `split_step`.
    """
    name = "dpmpp_sde"
    eta, s_noise = checked_number(name, "eta", eta), checked_number(name, "s_noise", s_noise)
    if not 0 < r < 1:
        raise ValueError(f"{name}: r must lie between 0 and 1, got {r}")
    levels = checked_levels(name, sigmas)
    stages = []
    for s, t in pairwise(levels):
        if t == 0:
            stages.append(Stage(s))
            continue
        m = s * (t / s) ** r
        down_m, up_m = split_step(s, m, eta)
        down, up = split_step(s, t, eta)
        a, b, q = down_m / s, down / s, 1 / (2 * r)
        stages.append(Stage(s, c_x=a, c_d=1 - a, c_noise=s_noise * up_m, span=(s, m)))
        first = (t / m) ** 2 * (s - m) * (s + m) / ((s - t) * (s + t))  # share of the variance that m has seen
        old = up / up_m * sqrt(first) if up_m else 0.0
        terms = [("x", 1, b - old * a), ("h", 1, (1 - b) * (1 - q) - old * (1 - a))]
        stages.append(
            Stage(
                m, c_x=old, c_d=(1 - b) * q, terms=tuple(term for term in terms if abs(term[2]) > 1e-15),
                c_noise=s_noise * up * sqrt(1 - first), span=(m, t),
            )
        )  # fmt: skip
    return Plan(name, stages, order=2, final=(1.0, levels[-1]))


def dpmpp_2m_sde(sigmas: Any, *, eta: float = 1.0, s_noise: float = 1.0, solver: str = "midpoint") -> Plan:
    """x' = (t / s) e^(-eta h) x + p D + w (D - D') h / h' + s_noise t sqrt(1 - e^(-2 eta h)) z: the SDE form of 2M.

    H = (1 + eta) h, p = 1 - e^-H; w = p / 2 for solver "midpoint", 1 - p / H for "heun", the exact integral. D' is of
    the last level, h' the last step; the first step has w = 0, a step to 0 gives D. One call per level. sigmas: levels
    that fall strictly. Lu et al. (2022), "DPM-Solver++", section 5, eq. 18.
    """
    name = "dpmpp_2m_sde"
    if solver not in SOLVERS:
        raise ValueError(f"{name}: solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    return _multistep(name, sigmas, eta, s_noise, depth=2, midpoint=solver == "midpoint")


def dpmpp_3m_sde(sigmas: Any, *, eta: float = 1.0, s_noise: float = 1.0, damped: bool = False) -> Plan:
    """x' = (t / s) e^(-eta h) x + the exact integral of a parabola through D, D', D'' + noise: the SDE form of 3M.

    damped: half of the parabola's second-order term, as this method is in circulation: order 2 instead of 3 where
    eta is 0, and steadier with few steps. The first steps have a constant and a line. One call per level. Arguments
    else as `dpmpp_2m_sde`. Lu et al. (2022), "DPM-Solver++", with the noise of section 5.
    """
    return _multistep("dpmpp_3m_sde", sigmas, eta, s_noise, depth=3, half=damped)


def _multistep(
    name: str, sigmas: Any, eta: float, s_noise: float, *, depth: int, midpoint: bool = False, half: bool = False
) -> Plan:
    eta, s_noise = checked_number(name, "eta", eta), checked_number(name, "s_noise", s_noise)
    levels = checked_levels(name, sigmas)
    stages: list[Stage] = []
    steps: list[float] = []  # in log sigma
    for s, t in pairwise(levels):
        if t == 0:
            stages.append(Stage(s))
            continue
        h = log(s / t)
        total = (1 + eta) * h
        p = -expm1(-total)  # integrals of 1, u, u^2 for u in 0 ... 1, with the weight total e^(-total (1 - u))
        p_u = p / 2 if midpoint else 1 - p / total
        p_uu = (0.5 if half else 1.0) * (1 - 2 * p_u / total)
        c_d = p
        terms: tuple[tuple[str, int, float], ...] = ()
        back = min(len(steps), depth - 1)
        if back == 1:
            slope = p_u * h / steps[-1]
            c_d, terms = p + slope, (("h", 1, -slope),)
        elif back == 2:
            r0, r1 = steps[-1] / h, steps[-2] / h
            # D(u) = D + u d1 + u^2 d2 through u = 0, -r0, -r0 - r1
            curve = (p_uu + p_u * r0) / (r0 + r1)
            c_1, c_2 = (p_u + curve) / r0, curve / r1
            c_d, terms = p + c_1, (("h", 1, -c_1 - c_2), ("h", 2, c_2))
        noise = s_noise * t * sqrt(-expm1(-2 * eta * h))
        stages.append(Stage(s, c_x=exp(-total), c_d=c_d, terms=terms, c_noise=noise, span=(s, t)))
        steps.append(h)
    order = depth if eta == 0 and not half else 2
    return Plan(name, stages, order=order, final=(1.0, levels[-1]))


def edm_churn(
    sigmas: Any,
    *,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = inf,
    s_noise: float = 1.0,
    heun: bool = True,
) -> Plan:
    """Up from s to (1 + gamma) s by noise, gamma = min(s_churn / steps, sqrt 2 - 1), then a Heun step down to t.

    sigmas: levels that fall strictly. gamma is 0 where s is not in [s_min, s_max]. s_noise: factor of the noise. heun:
    False leaves out the second call of each step, which the step to 0 never has. The noise of a step is added by the
    stage before it, that of the first by a stage without a call. Karras et al. (2022), algorithm 2.
    """
    name = "edm_churn"
    s_churn, s_noise = checked_number(name, "s_churn", s_churn), checked_number(name, "s_noise", s_noise)
    if not 0 <= s_min <= s_max:
        raise ValueError(f"{name}: 0 <= s_min <= s_max must hold, got s_min = {s_min} and s_max = {s_max}")
    levels = checked_levels(name, sigmas)
    steps = len(levels) - 1
    gamma = min(s_churn / steps, sqrt(2) - 1)
    raised = [s * (1 + gamma) if s_min <= s <= s_max else s for s in levels[:-1]]

    def churn(i: int) -> dict[str, Any]:
        """The noise that leads into step i, if there is one."""
        if i == steps or raised[i] == levels[i]:
            return {}
        s, up = levels[i], raised[i]
        # A path gives it the increment over the step it belongs to: those do not overlap, the rises themselves do.
        return {"c_noise": s_noise * sqrt((up - s) * (up + s)), "span": (s, levels[i + 1])}

    stages = [Stage(levels[0], c_x=1.0, c_d=0.0, call=False, **churn(0))] if churn(0) else []
    for i, t in enumerate(levels[1:]):
        s = raised[i]
        corrected = heun and t > 0
        stages.append(Stage(s, c_x=t / s, c_d=1 - t / s, **({} if corrected else churn(i + 1))))
        if corrected:
            c = (s - t) / (2 * t)
            stages.append(Stage(t, c_x=1.0, c_d=c, terms=(("h", 1, -c),), **churn(i + 1)))
    return Plan(name, stages, order=2 if heun else 1, final=(1.0, levels[-1]))
