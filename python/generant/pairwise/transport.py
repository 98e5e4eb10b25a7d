"""Entropic optimal transport between weighted point sets: the transport cost, or the debiased Sinkhorn divergence."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from ._arguments import Given, plain, run


@dataclass(frozen=True)
class Transport:
    """What `sinkhorn` found. Of a batch every field is an array over the batch axes (potentials with theirs behind)."""

    value: Any
    """The regularised transport cost, or the divergence if debiased. Differentiable."""
    value_linear: Any
    """The cost <C, P> of the plan alone (debiased: the same combination), what POT calls the loss."""
    potential_x: Any
    """f (n,) float64: P_ij = u_i v_j exp((f_i + g_j - C_ij) / reg). Debiased: less the potential of x with itself."""
    potential_y: Any
    """g (m,) float64."""
    marginal_error: Any
    """L1 distance of the plan's marginals from the given ones, as a fraction of the mass; the worst of the plans."""
    n_iter: Any
    """Iterations, the longest of the plans."""
    converged: Any
    """Whether marginal_error <= tol."""


def sinkhorn(
    x: Any,
    y: Any,
    x_weights: Any = None,
    y_weights: Any = None,
    *,
    reg: float | None = None,
    blur: float | None = None,
    cost: str = "sqeuclidean",
    unbalanced: float | None = None,
    debias: bool = False,
    tol: float = 1e-3,
    max_iter: int = 1000,
    n_threads: int | None = None,
) -> Transport:
    """Entropic optimal transport: min over P of <C, P> + reg KL(P | u v^T), P with row sums u and column sums v.

    x (..., n, d), y (..., m, d): points. x_weights u (..., n), y_weights v (..., m): >= 0, with equal sums; uniform
    with sum 1 if absent. cost: C = |x - y|^2 ("sqeuclidean") or |x - y| ("euclidean").
    reg: in the unit of C, as in POT and OTT; or blur, geomloss's length (p = 2: reg = 2 blur^2, p = 1: reg = blur;
    geomloss's squared cost is half of ours, and so is its value). Default: reg = 0.05.
    unbalanced: rho, the price of missing the marginals, rho KL(P 1 | u) + rho KL(P^T 1 | v); sums may then differ.
    debias: S(x, y) = T(x, y) - T(x, x) / 2 - T(y, y) / 2 (+ reg / 2 times the squared difference of the masses), which
    is 0 for equal measures, positive and without entropic bias (Feydy et al., AISTATS 2019, eq. 3 and 4); up to the
    error that tol leaves.
    Iterations in the log domain with float64 potentials, until the marginal error is at most tol; `converged` says
    whether max_iter sufficed, and with tol=0 exactly max_iter iterations run.
    Time n m d per iteration, memory O(n + m). value is differentiable once in x, y and the weights (envelope theorem).
    Raises ValueError for shapes that do not fit, rows that are not finite, weights that are negative or whose sums
    differ without `unbalanced`, and for reg, tol or max_iter out of range.
    Sinkhorn (1967); Cuturi, NeurIPS 2013; Schmitzer, SIAM J. Sci. Comput. 2019 (log domain).
    """
    if reg is not None and blur is not None:
        raise ValueError("sinkhorn: give reg or blur, not both")
    if blur is not None:
        if not isinstance(blur, numbers.Real) or not blur > 0:
            raise ValueError(f"sinkhorn: blur must be positive, got {blur!r}")
        reg = 2 * blur**2 if cost == "sqeuclidean" else blur
    settings: dict[str, Any] = dict(
        reg=0.05 if reg is None else reg, cost=cost, rho=unbalanced, tol=tol, max_iter=max_iter
    )

    if unbalanced is not None and not (isinstance(unbalanced, numbers.Real) and 0 < unbalanced < np.inf):
        raise ValueError(f"sinkhorn: unbalanced must be positive and finite, or None, got {unbalanced!r}")

    def call(x: Any, y: Any, u: Any, v: Any) -> tuple:
        masses = _mass("x_weights", u, x.shape[0]), _mass("y_weights", v, y.shape[0])
        if unbalanced is None and abs(masses[0] - masses[1]) > 1e-6 * max(masses):
            got = f"got {masses[0]:.9g} and {masses[1]:.9g}; unbalanced= allows for a difference"
            raise ValueError(f"sinkhorn: x_weights and y_weights must have the same sum, {got}")
        found = ops.sinkhorn(x, y, u, v, **settings)
        if not debias:
            return found
        own = [ops.sinkhorn(z, z, w, w, symmetric=True, **settings) for z, w in ((x, u), (y, v))]
        value, linear = (ops.sub(found[i], ops.affine(ops.add(own[0][i], own[1][i]), scale=0.5)) for i in (0, 1))
        if unbalanced is not None:
            mass = [1.0 if w is None else ops.sum(w) for w in (u, v)]
            value = value + settings["reg"] / 2 * (mass[0] - mass[1]) * (mass[0] - mass[1])
        potentials = [ops.sub(found[2 + i], own[i][2]) for i in (0, 1)]
        ends = [_stacked(t[i] for t in (found, *own)) for i in (4, 5, 6)]
        return value, linear, *potentials, ends[0].max(), ends[1].max(), ends[2].min()

    weights = (("x_weights", x_weights), ("y_weights", y_weights))
    given = Given("x", x), Given("y", y), *(Given(name, w, 1, optional=True, bias=True) for name, w in weights)
    value, linear, f, g, error, n_iter, converged = run("sinkhorn", call, *given, n_threads=n_threads)
    return Transport(value, linear, f, g, error, n_iter, plain(converged).astype(bool)[()])


def _stacked(values: Iterable[Any]) -> Any:
    """Scalars of several plans, traced or not, as one array."""
    arrays = [plain(value) for value in values]
    return _device.namespace(arrays[0]).stack(arrays)


def _mass(name: str, weights: Any, n: int) -> float:
    """The sum of the weights of n points; ValueError for weights that no measure has."""
    if weights is None:
        return 1.0
    w = plain(weights)
    wrong, total = _device.numbers(w.size - (w >= 0).sum(), w.sum())  # NaN is not >= 0
    if w.shape != (n,) or wrong or not 0 < total < np.inf:
        raise ValueError(f"sinkhorn: {name} must be {n} finite numbers >= 0, not all 0, got shape {w.shape}")
    return total
