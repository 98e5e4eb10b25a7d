"""The integrals behind every multistep method: of a polynomial through past values, times an exponential.

One function, accurate to rounding for steps of any length. Closed forms (the phi functions) would lose digits by
cancellation where steps are short; Gauss-Legendre sums on short panels do not. Not here: which variable is integrated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["integrals"]

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(12)
PANEL = 4.0  # longest panel, in units of 1 / |rate|: 12 points are exact to rounding there


def integrals(nodes: Sequence[float], a: float, b: float, *, rate: float) -> list[float]:
    """w_j = integral from a to b of exp(rate (u - b)) L_j(u) du, L_j the polynomial that is 1 at nodes[j], 0 at others.

    sum_j w_j f(nodes[j]) is then the integral of exp(rate (u - b)) f(u) for every polynomial f of degree below
    len(nodes). nodes: distinct, at most 8 or so. Returns len(nodes) floats.
    """
    edges = np.linspace(a, b, 1 + max(1, int(np.ceil(abs(rate * (b - a)) / PANEL))))
    half = np.diff(edges)[:, None] / 2
    u = edges[:-1, None] + half * (1 + POINTS)
    measure = half * WEIGHTS * np.exp(rate * (u - b))
    weights = []
    for j, node in enumerate(nodes):
        others = [other for k, other in enumerate(nodes) if k != j]
        lagrange = np.ones_like(u)
        for other in others:
            lagrange *= (u - other) / (node - other)
        weights.append(float((measure * lagrange).sum()))
    return weights
