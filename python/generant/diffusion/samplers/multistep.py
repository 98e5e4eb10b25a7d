"""Multistep samplers that integrate the slope d = (x - D) / sigma: LMS, DEIS, iPNDM, PLMS and PNDM.

x(t) = x(s) + integral from s to t of d dsigma, with d replaced by a polynomial through the last calls: in sigma (LMS),
in log sigma (DEIS), or in the number of the step (the others, whose coefficients are then the same fractions at every
step). All history is d. Not here: methods that integrate D (exponential).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..plan import Plan, checked_levels
from .quadrature import integrals
from .single import heun_step, rk4_step
from .start import checked_choice, checked_order, multistep, rk_start

__all__ = ["deis", "ipndm", "lms", "plms", "pndm"]

STARTS = ("rk", "euler")
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _slopes(
    name: str, sigmas: Any, weights: Any, *, most: int, order: int, start: str = "euler", first: Sequence[Any] = ()
) -> Plan:
    """The plan of x' = x + sum_k weights(nodes, t)_k d_k over the last `most` levels, nodes[0] = s."""
    levels = checked_levels(name, sigmas)
    row = lambda i: (1.0, weights(levels[max(0, i + 1 - most) : i + 1][::-1], levels[i + 1]))
    first = rk_start(name, levels, most) if start == "rk" else first
    return multistep(name, levels, row, order=order, start=first, slopes=True)


def _lms(nodes: Sequence[float], t: float) -> list[float]:
    return integrals(nodes, nodes[0], t, rate=0.0)


def _deis(nodes: Sequence[float], t: float) -> list[float]:
    v = np.log([*nodes, t]).tolist()
    return [t * w for w in integrals(v[:-1], v[0], v[-1], rate=1.0)]


def _adams(nodes: Sequence[float], t: float) -> list[float]:
    return [(t - nodes[0]) * c for c in ADAMS[len(nodes) - 1]]


def lms(sigmas: Any, *, order: int = 4, start: str | None = None) -> Plan:
    """Linear multistep: d is a polynomial in sigma through the last `order` calls, integrated exactly.

    One call per step. sigmas: (n + 1,) noise levels, falling strictly, ending at or above 0. order: 1 ... 4. start:
    "rk" (default for order > 2) takes the first order - 1 steps by a Runge-Kutta method, Heun for order 3 and RK4 for
    order 4, which is 2 or 9 more calls in all; "euler" begins at order 1 and adds a term per step, which limits the
    order to 2. Raises ValueError where sigmas or options are not that, or for start="rk" with fewer than `order` steps.
    Hairer, Norsett and Wanner (1993), section III.5: explicit Adams methods on steps of any length.
    """
    order = checked_order("lms", order, 4)
    start = checked_choice("lms", "start", start or ("rk" if order > 2 else "euler"), STARTS)
    reached = order if start == "rk" else min(order, 2)
    return _slopes("lms", sigmas, _lms, most=order, order=reached, start=start)


def deis(sigmas: Any, *, order: int = 3, start: str | None = None) -> Plan:
    """DEIS: d is a polynomial in log sigma through the last `order` calls, integrated exactly. One call per step.

    sigmas: as for `lms`. order: 1 ... 3. start: "rk" (default for order 3) takes the first order - 1 steps by Heun, one
    more call each; "euler" begins at order 1 and adds a term per step, which limits the order to 2. Raises ValueError
    as `lms` does. Zhang and Chen (2023), tAB-DEIS with log sigma as the time.
    """
    order = checked_order("deis", order, 3)
    start = checked_choice("deis", "start", start or ("rk" if order > 2 else "euler"), STARTS)
    reached = order if start == "rk" else min(order, 2)
    return _slopes("deis", sigmas, _deis, most=order, order=reached, start=start)


def ipndm(sigmas: Any, *, order: int = 4) -> Plan:
    """iPNDM: x' = x + (t - s) sum_k b_k d_k with the Adams-Bashforth fractions of equal steps. One call per step.

    sigmas: as for `lms`. order: 1 ... 4, how many calls a step combines; the first steps take fewer. Any number of
    steps will do. The fractions are exact where the levels are equally spaced in sigma; on levels that are a smooth
    function of the step the order is 2 at most, and on uneven ones 1. Raises ValueError where sigmas or order are not
    that. Zhang and Chen (2023).
    """
    order = checked_order("ipndm", order, 4)
    return _slopes("ipndm", sigmas, _adams, most=order, order=min(order, 2))


def plms(sigmas: Any) -> Plan:
    """PLMS: iPNDM of order 4 whose first step is Heun's: one call per step and one more.

    sigmas: as for `lms`. Of order 3 on levels equally spaced in sigma, 2 on smooth ones (see `ipndm`). Raises
    ValueError where sigmas are not that. Liu et al. (2022), with the start that latent diffusion made usual.
    """
    return _slopes("plms", sigmas, _adams, most=4, order=2, first=[heun_step])


def pndm(sigmas: Any, *, middles: Sequence[float] | None = None) -> Plan:
    """PNDM: iPNDM of order 4 whose first three steps are Runge-Kutta steps of four calls: nine calls more than steps.

    sigmas: as for `lms`, at least 4 steps. middles: the three levels in the middle of those steps, by default halfway
    in sigma; of a model trained on numbered times they would be the levels halfway in time. Of order 4 on levels
    equally spaced in sigma, 2 on smooth ones (see `ipndm`). Raises ValueError where sigmas or middles are not that.
    Liu et al. (2022).
    """
    levels = checked_levels("pndm", sigmas)
    first = rk_start("pndm", levels, 4)
    if middles is not None:
        if len(middles) != 3 or not all(s > m > t for s, m, t in zip(levels, middles, levels[1:], strict=False)):
            raise ValueError(f"pndm: middles must be 3 levels between the first 4 of sigmas, got {list(middles)}")
        first = [partial(rk4_step, middle=float(m)) for m in middles]
    return _slopes("pndm", sigmas, _adams, most=4, order=2, first=first)
