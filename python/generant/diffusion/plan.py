"""A sampler as a table: what a `Plan` is, how it prints and how it is stored.

Every sampler here is a list of stages. Stage i calls the network once, at x_i = alpha data + sigma noise, turns the
prediction into the denoised D_i, and moves on:

    h_i     = g_x x_i + g_d D_i                                      what later stages may look back on (default: D_i)
    x_{i+1} = c_x x_i + c_d D_i + sum_k c_k r_k + c_noise z          r_k: h or x of an earlier stage, at most four

All coefficients follow from the noise levels alone. They are computed once, in float64, and each stage is one call of
ops.sampler_step. Not here: how the coefficients come about (samplers), and the loop that runs them (sampling).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["FORMS", "Plan", "Stage", "alpha_of", "checked_levels", "rescaled"]

FORMS = ("ve", "vp", "flow")
MAX_TERMS = 4  # history arrays that ops.sampler_step takes


class Stage(NamedTuple):
    """One call of the network and the step after it. See the head of this file for the symbols."""

    sigma: float  # x = alpha data + sigma noise, where the network is called
    alpha: float = 1.0
    time: float = float("nan")  # what the denoiser is told instead of sigma, where that is another number
    c_x: float = 0.0
    c_d: float = 1.0
    terms: tuple[tuple[str, int, float], ...] = ()  # (("h" | "x", how many stages back, coefficient), ...)
    c_noise: float = 0.0
    g_x: float = 0.0
    g_d: float = 1.0
    span: tuple[float, float] = (float("nan"), float("nan"))  # the levels sigma / alpha that the noise is between
    call: bool = True  # False: only noise is added, before the first call

    @property
    def told(self) -> float:
        """What the denoiser is told: `time`, or sigma where there is none."""
        return self.sigma if np.isnan(self.time) else self.time


class Plan:
    """An immutable table of stages. `print(plan)` shows it, `to_dict` and `from_dict` store it.

    name: the sampler; stages: tuple of Stage; form: "ve" (alpha = 1), "vp" (alpha^2 + sigma^2 = 1) or "flow"
    (alpha = 1 - sigma): what x is. order: of convergence, 0 where the notion does not apply. final: (alpha, sigma) of
    the result.
    """

    __slots__ = ("final", "form", "name", "order", "stages")
    name: str
    stages: tuple[Stage, ...]
    form: str
    order: float
    final: tuple[float, float]

    def __init__(
        self, name: str, stages: Iterable[Stage], *, form: str = "ve", order: float = 0, final: tuple[float, float]
    ) -> None:
        stages = tuple(stages)
        if form not in FORMS:
            raise ValueError(f"Plan: form must be one of {', '.join(FORMS)}, got {form!r}")
        if not stages:
            raise ValueError(f"Plan: {name} has no stages")
        for i, stage in enumerate(stages):
            numbers = (stage.sigma, stage.alpha, stage.c_x, stage.c_d, stage.c_noise, stage.g_x, stage.g_d)
            if not np.isfinite([*numbers, *(c for _, _, c in stage.terms)]).all():
                raise ValueError(f"Plan: stage {i} of {name} has a coefficient that is not finite: {stage}")
            if len(stage.terms) > MAX_TERMS:
                raise ValueError(f"Plan: stage {i} of {name} looks back on {len(stage.terms)} arrays, at most 4 can be")
            for kind, back, _ in stage.terms:
                if kind not in ("h", "x") or not 1 <= back <= i:
                    raise ValueError(f"Plan: stage {i} of {name} looks back on {kind} of {back} stages ago")
        for slot, value in zip(self.__slots__, (final, form, name, order, stages), strict=True):
            object.__setattr__(self, slot, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Plan is immutable: cannot set {name}")

    def __len__(self) -> int:
        return len(self.stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.form, tuple([(s.sigma, s.c_x, s.c_d, s.c_noise) for s in self.stages])))

    @property
    def evaluations(self) -> int:
        """How often the network is called."""
        return sum(stage.call for stage in self.stages)

    @property
    def stochastic(self) -> bool:
        """Whether any stage adds noise."""
        return any(stage.c_noise != 0 for stage in self.stages)

    @property
    def sigmas(self) -> np.ndarray:
        """The level of every stage and of the result. (len + 1,) float64."""
        return np.array([*(stage.sigma for stage in self.stages), self.final[1]])

    @property
    def initial(self) -> tuple[float, float]:
        """(alpha, sigma) of the x that the plan starts from."""
        return self.stages[0].alpha, self.stages[0].sigma

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON; NaN (no time, no span) is null. The same bits come back."""

        def number(x: float) -> float | None:
            return None if np.isnan(x) else float(x)

        stages = []
        for s in self.stages:
            row: dict[str, Any] = {
                name: number(value) for name, value in s._asdict().items() if name not in ("terms", "span", "call")
            }
            row["terms"] = [[kind, back, float(c)] for kind, back, c in s.terms]
            row["span"], row["call"] = [number(level) for level in s.span], s.call
            stages.append(row)
        return {
            "name": self.name, "form": self.form, "order": self.order, "final": list(map(float, self.final)),
            "stages": stages,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` described. ValueError where data is no such description."""

        def number(x: Any) -> float:
            return float("nan") if x is None else float(x)

        try:
            stages = []
            for row in data["stages"]:
                fields = {k: number(v) for k, v in row.items() if k not in ("terms", "span", "call")}
                terms = tuple((str(kind), int(back), float(c)) for kind, back, c in row["terms"])
                low, high = map(number, row["span"])
                stages.append(Stage(**fields, terms=terms, span=(low, high), call=bool(row["call"])))
            alpha, sigma = map(float, data["final"])
            return cls(data["name"], stages, form=data["form"], order=data["order"], final=(alpha, sigma))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"Plan.from_dict: this does not describe a plan: {error!r}") from error

    def __repr__(self) -> str:
        return f"Plan({self.name!r}, {len(self)} stages, form={self.form!r}, order={self.order})"

    def __str__(self) -> str:
        head = f"{self.name}: {self.evaluations} evaluations, order {self.order}, {self.form}"
        lines = [head, f"{'stage':>5} {'sigma':>11} {'c_x':>11} {'c_d':>11} {'c_noise':>11}  looks back on"]
        for i, s in enumerate(self.stages):
            back = ", ".join(f"{c:+.5g} {kind}[-{k}]" for kind, k, c in s.terms)
            lines.append(f"{i:5d} {s.sigma:11.5g} {s.c_x:11.5g} {s.c_d:11.5g} {s.c_noise:11.5g}  {back}".rstrip())
        lines.append(f"{'':5} {self.final[1]:11.5g}")
        return "\n".join(lines)


def checked_levels(sampler: str, sigmas: Any, *, at_least: int = 2, name: str = "sigmas") -> list[float]:
    """Levels as a list of floats: finite, falling strictly, ending at or above 0, `at_least` of them."""
    try:
        levels = np.asarray(sigmas, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{sampler}: {name} must be numbers, got {sigmas!r}") from None
    if levels.ndim != 1 or len(levels) < at_least:
        raise ValueError(
            f"{sampler}: {name} must be a vector of at least {at_least} noise levels, got shape {levels.shape}"
        )
    if not np.isfinite(levels).all():
        first = int(np.argmin(np.isfinite(levels)))
        raise ValueError(f"{sampler}: {name} must be finite, got {name}[{first}] = {levels[first]}")
    if not (np.diff(levels) < 0).all():
        first = int(np.argmax(np.diff(levels) >= 0))
        raise ValueError(
            f"{sampler}: {name} must fall strictly, got {name}[{first}] = {levels[first]} and "
            f"{name}[{first + 1}] = {levels[first + 1]}"
        )
    if levels[-1] < 0:
        raise ValueError(f"{sampler}: {name} must end at or above 0, got {levels[-1]}")
    return levels.tolist()


def alpha_of(form: str, level: float) -> float:
    """alpha of x = alpha data + sigma noise at the noise-to-signal ratio level = sigma / alpha.

    "ve": 1; "vp": 1 / sqrt(1 + level^2); "flow": 1 / (1 + level).
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    return 1.0 if form == "ve" else float(1 / np.hypot(1, level)) if form == "vp" else 1 / (1 + level)


def rescaled(plan: Plan, form: str, times: Mapping[float, float] | None = None) -> Plan:
    """A plan in the variance exploding form, made to run on x = alpha data + sigma noise of another form.

    Only scales change: x_i stands for alpha_i times what it was, and D stays D. times: what the denoiser is told, by
    level sigma / alpha.
    """
    if plan.form != "ve":
        raise ValueError(f"rescaled: {plan.name} is in form {plan.form!r} already")
    alphas = [alpha_of(form, stage.sigma) for stage in plan.stages]
    end = alpha_of(form, plan.final[1])
    stages = []
    for i, stage in enumerate(plan.stages):
        a, b = alphas[i], alphas[i + 1] if i + 1 < len(alphas) else end
        terms = tuple((kind, k, c * b if kind == "h" else c * b / alphas[i - k]) for kind, k, c in stage.terms)
        time = stage.time if times is None else times.get(stage.sigma, stage.time)
        stages.append(
            stage._replace(
                sigma=a * stage.sigma, alpha=a, time=time, c_x=stage.c_x * b / a, c_d=stage.c_d * b, terms=terms,
                c_noise=stage.c_noise * b, g_x=stage.g_x / a,
            )
        )  # fmt: skip
    return Plan(plan.name, stages, form=form, order=plan.order, final=(end, end * plan.final[1]))
