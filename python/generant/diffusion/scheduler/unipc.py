"""UniPC: a predictor of order p, then a corrector of order p + 1 that costs no further call of the network.

One idea: predictor and corrector are one stage. The corrected x_i differs from the predicted one by a combination of
predictions m of up to four levels, and the next prediction of x starts from it, so all that is stored is the m.
Exact mode lowers the order at the end only below 15 steps, where that steadies; diffusers does so always, which leaves
order 2. A step to the level 0 is of order 1 in both: it is exact, and diffusers gives infinities for it if
lower_order_final is False. As there, thresholding is for predict_x0 only. Zhao et al. (2023). Not here: another solver
as predictor (solver_p).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..plan import Stage
from ..schedules.times import shift_of_mu
from .dpm_grid import (
    Levels,
    at_times,
    before,
    by_family,
    checked_families,
    family_of,
    finished,
    flow_shifted,
    levels_of,
    spaced,
)  # fmt: skip
from .dpm_multistep import FEW, checked_order, plan_of
from .dpm_steps import prediction_of, renamed, stage_of
from .registry import BETAS, Family, Grid, Program, Setting, common_bounds, register

__all__ = ["UNIPC"]

NAME = "UniPCMultistepScheduler"
DEFAULTS: dict[str, Any] = BETAS | {
    "solver_order": 2, "prediction_type": "epsilon", "thresholding": False, "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True,
    "disable_corrector": [], "solver_p": None, "use_karras_sigmas": False, "use_exponential_sigmas": False,
    "use_beta_sigmas": False, "use_flow_sigmas": False, "flow_shift": 1.0, "timestep_spacing": "linspace",
    "steps_offset": 0, "final_sigmas_type": "zero", "rescale_betas_zero_snr": False, "use_dynamic_shifting": False,
    "time_shift_type": "exponential", "sigma_min": None, "sigma_max": None, "shift_terminal": None,
}  # fmt: skip


def grid(setting: Setting, n: int | None, given: Mapping[str, Any]) -> Grid:
    """As DPM-Solver's, but for the end of Karras, exponential, Beta and flow levels, which is their own last one."""
    config, compat = setting.config, setting.compat
    if config["use_dynamic_shifting"] and given.get("mu") is None:
        raise ValueError(f"{NAME}: use_dynamic_shifting=True needs mu in set_timesteps")
    own = given.get("sigmas")
    if own is not None:
        if not config["use_flow_sigmas"]:
            raise ValueError(f"{NAME}: sigmas can be given only where use_flow_sigmas is true")
        own = np.array(own, np.float64)
        n = len(own)
    if n is None:
        raise ValueError(f"{NAME}: give either num_inference_steps or sigmas")
    family, zero = family_of(config), config["final_sigmas_type"] == "zero"
    if family is None:
        assert setting.tables is not None
        times = spaced(NAME, setting, n, last=int(config["num_train_timesteps"]))
        end = 0.0 if zero else float(setting.tables.sigmas[0])
        return finished(setting, times, at_times(setting, times), end, whole=False, form="vp")
    if family == "flow_sigmas":
        return _flow_grid(setting, n, own, given.get("mu"), zero)
    if own is not None:
        raise ValueError(f"{NAME}: sigmas cannot be given where use_{family} is true")
    flow = bool(config["use_flow_sigmas"])
    if flow and compat and family != "karras_sigmas":
        raise ValueError(f"{NAME}: use_flow_sigmas and use_{family} together have levels above 1 in diffusers")
    times, sigmas, end = by_family(setting, family, n, ends_at_zero=zero, flow=flow)
    whole = family == "karras_sigmas" and not flow
    return finished(setting, times, sigmas, 0.0 if zero else end, whole=whole, form="flow" if flow else "vp")


def _flow_grid(setting: Setting, n: int, own: np.ndarray | None, mu: float | None, zero: bool) -> Grid:
    config, steps = setting.config, int(setting.config["num_train_timesteps"])
    more = 0 if setting.compat or zero or own is not None else 1  # exact: the end is a level of its own
    if own is None:
        sigmas = np.linspace(1, 1 / steps, n + 1)[: n + more]
    else:
        sigmas = own
    if config["use_dynamic_shifting"]:
        assert mu is not None
        with np.errstate(divide="ignore"):
            shift = shift_of_mu(mu, config["time_shift_type"])
            sigmas = shift / (shift + (1 / sigmas - 1))
    else:
        sigmas = flow_shifted(sigmas, config["flow_shift"])
    if config["shift_terminal"]:
        sigmas = 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - config["shift_terminal"]))
    if abs(sigmas[0] - 1) < 1e-6:  # alpha = 0 has no logarithm
        sigmas[0] -= 1e-6
    end = 0.0 if zero else float(sigmas[-1])
    return finished(setting, sigmas[:n] * steps, sigmas[:n], end, whole=False, form="flow")


def step_weights(
    levels: Levels, i: int, order: int, *, data: bool, kind: str
) -> tuple[float, list[float], list[float], float]:
    """(A, predictor, corrector, ahead) of the step from level i to i + 1.

    x_{i+1} = A x_i + sum_k predictor_k m_{i-k}, and once m_{i+1} is known A x_i + sum_k corrector_k m_{i-k} + ahead
    m_{i+1}. kind: "bh1" takes B(h) = h, "bh2" B(h) = e^h - 1. Zhao et al. (2023), eq. 3, 5 and 9.
    """
    h = levels.lam[i + 1] - levels.lam[i]
    if h == 0:
        return 1.0, [0.0] * order, [0.0] * order, 0.0
    scale = levels.alpha[i + 1] if data else levels.sigma[i + 1]
    parts = (levels.sigma if data else levels.alpha)[i : i + 2]
    keep = parts[1] / parts[0]
    hh = -h if data else h
    grown = np.expm1(hh)
    b_h = hh if kind == "bh1" else grown
    one = np.ones((), levels.lam.dtype)[()]
    ratios = [(levels.lam[i - k] - levels.lam[i]) / h for k in range(1, order)] + [one]
    rows, right, phi, factorial = [], [], grown / hh - 1, 1
    for k in range(1, order + 1):
        rows.append(np.power(np.array(ratios), k - 1))
        right.append(phi * factorial / b_h)
        factorial *= k + 1
        phi = phi / hh - one / factorial
    matrix, right_side = np.stack(rows), np.array(right)
    half = [one / 2]
    c = half if order == 1 else np.linalg.solve(matrix, right_side)
    p = [] if order == 1 else half if order == 2 else np.linalg.solve(matrix[:-1, :-1], right_side[:-1])
    s = float(scale * b_h)
    earlier = [-s * float(rho) / float(r) for rho, r in zip(p, ratios[:-1], strict=True)]
    corrected = [-s * float(rho) / float(r) for rho, r in zip(c[:-1], ratios[:-1], strict=True)]
    ahead = -s * float(c[-1])
    now = -float(scale * grown)
    return float(keep), [now - sum(earlier), *earlier], [now - sum(corrected) - ahead, *corrected], ahead


def program(setting: Setting, grid: Grid, begin: int, options: Mapping[str, Any]) -> Program:
    """Stage i corrects x_i with m_i, then predicts x_{i+1}; no history before `begin`."""
    config, levels, n = setting.config, levels_of(setting, grid), len(grid.timesteps)
    data, kind, wanted = bool(config["predict_x0"]), config["solver_type"], config["solver_order"]
    lower = config["lower_order_final"] and (setting.compat or n < FEW)
    without = set(config["disable_corrector"])
    stages: list[Stage] = []
    last: tuple[list[float], list[float], float] | None = None
    for i in range(begin, n):
        if levels.sigma[i + 1] == 0:  # the denoised itself, whatever x is
            stages.append(stage_of(levels, grid, i, keep=0.0, weights={0: float(levels.alpha[n])}, data=True))
            continue
        order = min(wanted, n - i, i - begin + 1) if lower else min(wanted, i - begin + 1)
        keep, predictor, corrector, ahead = step_weights(levels, i, order, data=data, kind=kind)
        weights = dict(enumerate(predictor))
        if last is not None and i - 1 not in without:
            weights[0] += keep * last[2]
            for k, (q, p) in enumerate(zip(last[1], last[0], strict=True)):
                weights[k + 1] = weights.get(k + 1, 0.0) + keep * (q - p)
        last = predictor, corrector, ahead
        stages.append(stage_of(levels, grid, i, keep=keep, weights=weights, data=data))
    return Program(plan_of(NAME, stages, grid, levels, wanted if lower else wanted + 1))


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replacements for values of other classes; ValueError where values do not go together."""
    checked_families(NAME, config)
    checked_order(NAME, config)
    if config["solver_p"] is not None:
        raise ValueError(
            f"{NAME}: solver_p must be None, other predictors are not supported, got {config['solver_p']!r}"
        )
    if config["shift_terminal"] is not None and not config["use_flow_sigmas"]:
        raise ValueError(f"{NAME}: shift_terminal needs use_flow_sigmas=True")
    if config["final_sigmas_type"] not in ("zero", "sigma_min"):
        raise ValueError(f"{NAME}: final_sigmas_type must be zero or sigma_min, got {config['final_sigmas_type']!r}")
    if config["time_shift_type"] not in ("exponential", "linear"):
        raise ValueError(f"{NAME}: time_shift_type must be exponential or linear, got {config['time_shift_type']!r}")
    foreign = {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}
    return renamed(NAME, config, "solver_type", ("bh1", "bh2"), foreign)


UNIPC = register(
    Family(
        NAME,
        DEFAULTS,
        grid=grid,
        program=program,
        prediction=lambda setting: prediction_of(NAME, setting, data=bool(setting.config["predict_x0"])),
        accepts=("sigmas", "mu"),
        floor=True,
        start=before,
        check=check,
        bounds=lambda config: common_bounds(config) if config["predict_x0"] else {},
    )
)
