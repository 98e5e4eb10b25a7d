"""One step of DPM-Solver from earlier predictions: a polynomial through them, integrated against an exponential.

With lambda = log(alpha / sigma) the diffusion equation is linear but for the network. Over h = lambda' - lambda a step
is x' = A x + integral of a kernel times m, where m is the denoised D (the "++" solvers) or the noise eps; m is replaced
by the polynomial through its known values. A multistep solver knows them from earlier steps, a singlestep one from
inside this one; the algebra is the same. Lu et al. (2022a, 2022b). Not here: which order is used where (dpm_multistep,
dpm_singlestep), and how a grid is chosen (dpm_grid).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..plan import Stage
from .dpm_grid import Levels
from .registry import Grid, Setting, predicted

__all__ = ["ALGORITHMS", "Given", "dpm_step", "prediction_of", "renamed", "stage_of"]

ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")


def dpm_step(
    algorithm: str,
    solver: str,
    levels: Levels,
    start: int,
    to: int,
    nodes: Sequence[int],
    *,
    shipped: bool,
    halved_curve: bool = False,
) -> tuple[float, list[float], float]:
    """(A, weights, N) of x' = A x + sum_k weights_k m_k + N z, from level `start` to level `to`.

    nodes: the levels of up to three m; nodes[0] is `start`. solver: "midpoint" or "heun", how the slope of m is
    weighed with two nodes: both are of order 2. shipped: as diffusers has it, in the precision of the levels; the
    quadratic term of its "sde-dpmsolver++" is 1 too small, with which no order above 1 is left. halved_curve: its
    multistep solvers also halve the quadratic term, which leaves order 2 of 3. Lu et al. (2022a, 2022b).
    """
    h = levels.lam[to] - levels.lam[start]
    if h == 0 or np.isnan(h):  # the same level twice: nothing to do
        return 1.0, [0.0] * len(nodes), 0.0
    alpha, sigma = levels.alpha[to], levels.sigma[to]
    from_alpha, from_sigma = levels.alpha[start], levels.sigma[start]
    sde, data = algorithm.startswith("sde"), algorithm.endswith("++")
    minus_one = (lambda y: np.exp(y) - 1) if shipped else np.expm1
    noise: Any = 0.0
    second = third = middle = 0.0
    many = len(nodes) > 1
    if data:
        pace = 2 if sde else 1  # the kernel is pace exp(-pace (h - u)), u from 0 to h
        e = minus_one(-pace * h)
        keep, flat = sigma / from_sigma * (np.exp(-h) if sde else 1), -alpha * e
        if many:
            ph = pace * h
            third_term = (e + ph) / ph**2 - 0.5
            if shipped and sde:
                third_term = third_term + 1
            second, third, middle = alpha * (e / ph + 1), -alpha * third_term, -alpha * e / 2
        if sde:
            noise = sigma * np.sqrt(-e)
    else:
        twice = 2 if sde else 1
        e = minus_one(h)
        keep, flat = alpha / from_alpha, -twice * sigma * e
        if many:
            second = -twice * sigma * (e / h - 1)
            third, middle = -twice * sigma * ((e - h) / h**2 - 0.5), flat / 2
        if sde:
            noise = sigma * np.sqrt(minus_one(2 * h))
    weights = [float(flat)]
    if len(nodes) == 2:
        u = (levels.lam[nodes[1]] - levels.lam[start]) / h
        slope = (middle if solver == "midpoint" else second) / u
        weights = [float(flat - slope), float(slope)]
    elif len(nodes) == 3:
        weights = _quadratic(levels, h, nodes, flat, second, third * (1 if halved_curve else 2))
    return float(keep), weights, float(noise)


def _quadratic(levels: Levels, h: Any, nodes: Sequence[int], flat: Any, second: Any, curve: Any) -> list[float]:
    """flat m_0 + second h m' + curve h^2 m'' / 2 of the quadratic through three m, as weights of the three."""
    u1, u2 = ((levels.lam[k] - levels.lam[nodes[0]]) / h for k in nodes[1:])
    w1 = (second * u2 - curve) / (u1 * (u2 - u1))
    w2 = (curve - second * u1) / (u2 * (u2 - u1))
    return [float(flat - w1 - w2), float(w1), float(w2)]


def stage_of(
    levels: Levels,
    grid: Grid,
    i: int,
    *,
    keep: float,
    weights: Mapping[int, float],
    noise: float = 0.0,
    data: bool,
    base: int = 0,
    start: int | None = None,
    divisor: float | None = None,
) -> Stage:
    """The stage of step i: x' = keep x_base + sum weights_k m_{i-k} + noise z, where m is D (data) or the noise eps.

    weights: by how many steps back. base: how many steps back the x is that the step leads from. start: the level the
    noise leads from (default i). eps = (x - alpha D) / divisor (default sigma) is what is kept where data is False.
    """  # fmt: skip
    alpha, sigma = float(levels.alpha[i]), float(levels.sigma[i])
    terms = [("h", back, w) for back, w in sorted(weights.items()) if back > 0 and w != 0]
    c_x, c_d, now = 0.0, 0.0, weights.get(0, 0.0)
    if base:
        terms.insert(0, ("x", base, keep))
    else:
        c_x = keep
    if data:
        c_d, g_x, g_d = now, 0.0, 1.0
    else:
        over = sigma if divisor is None else divisor
        c_x, c_d, g_x, g_d = c_x + now / over, -now * alpha / over, 1 / over, -alpha / over
    return Stage(
        sigma=sigma, alpha=alpha, time=float(grid.timesteps[i]), c_x=c_x, c_d=c_d, terms=tuple(terms), c_noise=noise,
        g_x=g_x, g_d=g_d, span=(levels.ratio(i if start is None else start), levels.ratio(i + 1)),
    )  # fmt: skip


def renamed(name: str, config: Mapping[str, Any], key: str, choices: Sequence[str], foreign: Mapping[str, str]) -> dict:
    """The replacement of config[key] where another class's value stands there; ValueError for any other value."""
    value = config[key]
    if value in choices:
        return {}
    if value in foreign:
        return {key: foreign[value]}
    raise ValueError(f"{name}: {key} must be one of {', '.join(choices)}, got {value!r}")


class Given:
    """A prediction with D = a_x x + a_p prediction, for (a_x, a_p) = rule(alpha, sigma) at levels of one form."""

    def __init__(self, form: str, rule: Any) -> None:
        self.form, self.rule = form, rule

    def convert(self, ratio: float) -> tuple[float, float]:
        """(alpha a_x, a_p): the first is of x / alpha."""
        alpha = 1 / (1 + ratio) if self.form == "flow" else float(1 / np.hypot(1, ratio))
        a_x, a_p = self.rule(alpha, ratio * alpha)
        return alpha * a_x, a_p


def prediction_of(name: str, setting: Setting, *, data: bool) -> Any:
    """What the network says, by prediction_type. data: the solver works on D, else on the noise.

    In compat mode as diffusers converts it where the levels are not of the form that the prediction belongs to: it
    takes the ratio for the level of a flow, and the velocity of a flow for one of a variance preserving path.
    """
    flow = bool(setting.config.get("use_flow_sigmas"))
    choices: dict[str, Any] = {"epsilon": "epsilon", "sample": "denoised", "v_prediction": "v"}
    if data:
        choices["flow_prediction"] = "flow"
    if setting.compat and flow:
        rule = (lambda a, s: (a, -s)) if data else (lambda a, s: ((1 - s * s) / a, -s))
        choices["v_prediction"] = Given("flow", rule)
    if setting.compat and not flow and data:
        choices["flow_prediction"] = Given("vp", lambda a, s: (1.0, -s / a))
    return predicted(name, setting, choices)
