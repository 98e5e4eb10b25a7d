"""Measure the samplers on Gaussian data, where the truth is known: their orders, or their distance to the data.

orders: the order of convergence of every sampler without noise, fitted, beside the one its plan states. The error is
that of the samples themselves, over several widths of data and up to 320 steps. Exit status 1 if one is not reached.
samplers: W2 between the data and what a sampler makes of noise in 10, 20 and 40 calls of a perfect network. Both are
Gaussian and their moments follow from the plan, so no number is drawn and the distance is exact.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..diffusion.analytic import Gaussian
    from ..diffusion.plan import Plan

__all__ = ["add_arguments", "run"]

NS, QUICK_NS = (10, 20, 40, 80, 160, 320), (10, 20, 40, 80, 160)
TOLERANCE = 0.25  # in the order: LMS of order 4 comes near it, from below, only with hundreds of steps
EVALUATIONS = (10, 20, 40)
VARIANTS: dict[str, list[dict[str, Any]]] = {  # options beside the default ones
    "dpmpp_3m": [{"damped": True}],
    "unipc": [{"order": 1}, {"order": 3}, {"variant": "bh1"}],
    "lms": [{"order": 1}, {"order": 2}, {"order": 3}],
    "deis": [{"order": 1}, {"order": 2}],
    "ipndm": [{"order": 2}, {"order": 3}],
    "ddim": [{"eta": 1.0}],
    "edm_churn": [{"s_churn": 20.0}],
}
FEW_STEP = ("consistency", "lcm")  # their network leads to sigma = 0 in one call
TIMED = (8, 3, 32, 32)  # the samples whose steps are timed, float32
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
COLOURS = ("#1f4e79", "#c0504d", "#3f8f5f", "#8064a2", "#d9822b", "#3aa6b9", "#7f7f7f", "#b5477f", "#6b5b2e", "#222222")
MARKERS = "osD^vP*X<>"

Sampler = Callable[[np.ndarray], "Plan"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("orders", "samplers"), help="what to measure")
    parser.add_argument("--out", type=Path, default=Path("runs/lab"), help="folder of the results (default runs/lab)")
    parser.add_argument("--quick", action="store_true", help="fewer steps and timings: does everything work?")


def run(arguments: argparse.Namespace) -> int:
    if not find_spec("matplotlib"):
        raise ImportError("the lab draws with matplotlib, which is not installed: pip install 'generant[demo]'")
    arguments.out.mkdir(parents=True, exist_ok=True)
    return (_orders if arguments.what == "orders" else _samplers)(arguments.out, arguments.quick)


def _every_sampler() -> Iterator[tuple[str, str, Sampler]]:
    """(title, name, sigmas -> plan) of every sampler and variant; the flow_ ones are given times of the same levels."""
    from ..diffusion.samplers import SAMPLERS, flow_euler, flow_heun, flow_rk4

    for name, sampler in SAMPLERS.items():
        for options in ({}, *VARIANTS.get(name, [])):
            said = ", ".join(f"{k}={v}" for k, v in options.items())
            yield f"{name}({said})" if said else name, name, partial(sampler, **options)
    for flow in (flow_euler, flow_heun, flow_rk4):
        yield flow.__name__, flow.__name__, partial(_on_straight_lines, flow)


def _on_straight_lines(flow: Callable[[Any], Plan], sigmas: np.ndarray) -> Plan:
    return flow(sigmas / (1 + sigmas))


# ---- orders ----


def _orders(out: Path, quick: bool) -> int:
    from .. import io
    from ..diffusion.analytic import convergence, fit_order

    ns = QUICK_NS if quick else NS
    levels = np.geomspace(20.0, 0.05, 21)
    rows: list[dict[str, Any]] = []
    for title, _, sampler in _every_sampler():
        plan = sampler(levels)
        if plan.stochastic or not plan.order:
            continue
        errors = convergence(sampler, ns=ns)
        uneven = convergence(sampler, ns=ns, grid="uneven")
        fitted = fit_order(ns, errors)
        rows.append({
            "sampler": title, "order": float(plan.order), "fitted": fitted, "fitted_uneven": fit_order(ns, uneven),
            "reached": bool(fitted > plan.order - TOLERANCE), "calls_per_step": plan.evaluations / 20,
            "errors": errors.tolist(), "errors_uneven": uneven.tolist(),
        })  # fmt: skip
    rows.sort(key=lambda row: row["order"])
    io.save_json(out / "orders.json", {"ns": list(ns), "tolerance": TOLERANCE, "samplers": rows})
    io.write(out / "orders.png", _orders_picture(ns, rows))
    _print_table(
        ("sampler", "order", "fitted", "on uneven levels", f"error, {ns[-1]} steps"),
        [
            (r["sampler"], f"{r['order']:g}", f"{r['fitted']:.2f}" + ("" if r["reached"] else " !"),
             f"{r['fitted_uneven']:.2f}", f"{r['errors'][-1]:.1e}")
            for r in rows
        ],
    )  # fmt: skip
    missed = [str(r["sampler"]) for r in rows if not r["reached"]]
    print(f"\nGaussian data, from sigma = 20 to 0.05 in {ns[0]} ... {ns[-1]} steps; slope of the last three.")
    print(f"Below the stated order by more than {TOLERANCE}: {', '.join(missed) or 'none'}. Written to {out}/")
    return 1 if missed else 0


# ---- samplers ----


def _data() -> Gaussian:
    """Eight widths from 1 to 0.03 along rotated axes, total variance 1, and a mean."""
    from ..diffusion.analytic import Gaussian

    widths = np.geomspace(1, 0.03, 8)
    i = np.arange(8)
    axes = np.sqrt(2 / 8) * np.cos(np.pi * (i[:, None] + 0.5) * i / 8)  # the cosine transform
    axes[:, 0] = np.sqrt(1 / 8)
    cov = (axes * widths**2) @ axes.T / (widths**2).sum()
    return Gaussian(0.5 * np.cos(i), (cov + cov.T) / 2)


def _with_calls(sampler: Sampler, calls: int) -> Plan | None:
    """The plan of most steps that calls the network at most `calls` times; None where that is too few to begin."""
    from ..diffusion.schedules import karras_sigmas

    for n in range(calls, 0, -1):
        try:
            plan = sampler(karras_sigmas(n, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX))
        except ValueError:  # a multistep method with fewer steps than its order
            return None
        if plan.evaluations <= calls:
            return plan
    return None


def _seconds_per_step(plan: Plan, runs: int) -> float:
    """The least of several runs with a network that costs nothing: what the sampler itself takes."""
    from ..diffusion.sampling import initial_noise, sample, sample_keys

    keys = sample_keys(0, TIMED[0])
    x = initial_noise(plan, keys, TIMED[1:])
    said = np.zeros_like(x)
    taken = []
    for _ in range(runs):
        begun = time.perf_counter()
        sample(lambda x, sigma: said, x, plan, keys=keys)
        taken.append((time.perf_counter() - begun) / len(plan))
    return min(taken)


def _samplers(out: Path, quick: bool) -> int:
    from .. import io
    from ..diffusion.analytic import gaussian_w2, moments

    data = _data()
    rows: list[dict[str, Any]] = []
    for title, name, sampler in _every_sampler():
        network = (lambda x, level: data.flow(x, level, 0.0)) if name in FEW_STEP else None
        distances: list[float | None] = []
        plan: Plan | None = None
        for calls in EVALUATIONS:
            plan = _with_calls(sampler, calls)
            found = None if plan is None else moments(plan, data, network=network)
            distances.append(None if found is None else gaussian_w2(*found, data.mean, data.cov))
        if plan is None:
            raise ValueError(f"{title} cannot run in {EVALUATIONS[-1]} calls")
        rows.append({
            "sampler": title, "order": float(plan.order), "noise": plan.stochastic, "w2": distances,
            "calls": plan.evaluations, "stages": len(plan),
            "ms_per_step": 1e3 * _seconds_per_step(plan, 2 if quick else 5),
        })  # fmt: skip
    io.save_json(out / "samplers.json", {"evaluations": list(EVALUATIONS), "timed": list(TIMED), "samplers": rows})
    io.write(out / "samplers.png", _samplers_picture(rows))
    _print_table(
        ("sampler", "order", "noise", *(f"W2, {n} calls" for n in EVALUATIONS), "ms per step"),
        [
            (r["sampler"], f"{r['order']:g}", "yes" if r["noise"] else "no",
             *("-" if w is None else f"{w:.2e}" for w in r["w2"]), f"{r['ms_per_step']:.3f}")
            for r in rows
        ],
    )  # fmt: skip
    print(
        f"\nW2 to Gaussian data of total variance 1 with the exact denoiser ({', '.join(FEW_STEP)}: the exact flow to "
        f"sigma = 0),\nKarras levels {SIGMA_MAX:g} ... {SIGMA_MIN:g}, 0. '-': that many calls are too few to begin. "
        f"Time without the network,\n{' x '.join(map(str, TIMED))} float32. Written to {out}/"
    )
    return 0


def _print_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    for row in [head, *body]:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *rest]))


# ---- pictures ----


def _curves(axes: Any, x: Sequence[int], rows: Sequence[Mapping[str, Any]], values: str) -> None:
    """A line per sampler. Those that agree are one line with all their names; None is left out."""
    named: dict[tuple, list[str]] = {}
    for row in rows:
        named.setdefault(tuple(None if v is None else float(f"{v:.4g}") for v in row[values]), []).append(row["label"])
    for k, (y, names) in enumerate(named.items()):
        shown = [(n, v) for n, v in zip(x, y, strict=True) if v is not None]
        axes.loglog(
            *zip(*shown, strict=True), color=COLOURS[k % 10], marker=MARKERS[(k + k // 10) % 10], markersize=4,
            linewidth=1.3, linestyle=("-", "--")[k // 10 % 2], label="\n= ".join(names),
        )  # fmt: skip
    axes.set_xticks(x, [str(n) for n in x])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _orders_picture(ns: Sequence[int], rows: Sequence[dict[str, Any]]) -> bytes:
    """A panel per order, each with the slope it should have."""
    from matplotlib.figure import Figure

    from .pictures import png

    orders = sorted({row["order"] for row in rows})
    figure = Figure(figsize=(3.9 * len(orders), 6.6), layout="constrained")
    for order, axes in zip(orders, figure.subplots(1, len(orders), squeeze=False)[0], strict=True):
        members = [{**r, "label": f"{r['sampler']}: {r['fitted']:.2f}"} for r in rows if r["order"] == order]
        _curves(axes, ns, members, "errors")
        n = np.array([ns[0], ns[-1]], float)
        worst = max(row["errors"][-1] for row in members)
        axes.plot(n, 3 * worst * (n / n[1]) ** -order, "--", color="#999999", linewidth=1, label=f"slope {order:g}")
        axes.set(title=f"order {order:g}", xlabel="steps", ylabel="error of samples" if order == orders[0] else None)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), title="fitted order",
                    title_fontsize=8, alignment="left")  # fmt: skip
    return png(figure)


def _samplers_picture(rows: Sequence[dict[str, Any]]) -> bytes:
    """W2 by calls, in three groups; names stand in the order of the last points. Few-step samplers are in the table."""
    from matplotlib.figure import Figure

    from .pictures import png

    groups: dict[str, Callable[[dict[str, Any]], bool]] = {
        "without noise, order 1 and 2": lambda row: not row["noise"] and 0 < row["order"] <= 2,
        "without noise, order 3 and 4": lambda row: not row["noise"] and row["order"] > 2,
        "with noise": lambda row: row["noise"] and row["order"] > 0,
    }
    figure = Figure(figsize=(16, 5.2), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True)
    for (title, belongs), axes in zip(groups.items(), panels, strict=True):
        members = [{**row, "label": row["sampler"]} for row in rows if belongs(row)]
        _curves(axes, EVALUATIONS, sorted(members, key=lambda row: -row["w2"][-1]), "w2")
        axes.set(title=title, xlabel="calls of the network")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[0].set_ylabel("W2 to Gaussian data of variance 1")
    return png(figure)
