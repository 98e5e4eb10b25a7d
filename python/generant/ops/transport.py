"""Entropic optimal transport between point sets, in O(n m d) time per iteration and O(n + m) memory.

Sinkhorn's iteration in the log domain, two calls of logsumexp each. The potentials are float64 whatever the points are.
Here is one transport problem; the debiased divergence is three of them and stands in generant.pairwise.
"""

from typing import Any

import numpy as np

from . import _device
from ._device import numbers
from ._table import op, rule
from .activation import affine, exp, log
from .arithmetic import add, mul
from .kernel_matvec import kernel_matvec_dx
from .layout import cast, reshape
from .logsumexp import _ones, logsumexp
from .reduce import expand
from .reduce import sum as _sum

__all__ = ["sinkhorn"]

# f <- f + step (T f - f) for a set with itself. T' has eigenvalues in [-1, 0] (the kernel is positive definite), so the
# error shrinks by |1 - step (1 + mu)|, mu in [0, 1]; two steps at the roots of Chebyshev's polynomial: 1/17 together.
SYMMETRIC_STEPS = (1 / (1.5 + 0.5 * 0.5**0.5), 1 / (1.5 - 0.5 * 0.5**0.5))
SCALING = 0.5  # of reg, per iteration of the start
MEMORY = 8  # steps that an extrapolation looks back on
GAIN = 0.05  # a step beyond the plain one must gain this share of what that gains in the dual objective
OMEGA = 1.8  # over-relaxation where nothing is extrapolated


def _weights(given: Any, points: Any) -> Any:
    """The weights of a side: uniform if absent."""
    n = points.shape[0]
    return _device.full(points, (n,), 1 / n, np.float64) if given is None else given


def _check_measures(x: Any, y: Any, a: Any, b: Any, rho: float | None, symmetric: bool) -> None:
    """Refuse weights that no measure has, sums that differ, and sides that should be equal and are not."""
    totals = []
    for name, points, given in (("a", x, a), ("b", y, b)):
        w = _weights(given, points)
        wrong, total = numbers(w.size - (w >= 0).sum(), w.sum())  # NaN is not >= 0
        if wrong or not 0 < total < np.inf:
            raise ValueError(f"sinkhorn: {name} must be finite, not negative and not all 0")
        totals.append(total)
    if rho is None and abs(totals[0] - totals[1]) > 1e-6 * max(totals):
        raise ValueError(
            f"sinkhorn: a and b must have the same sum, got {totals[0]:.9g} and {totals[1]:.9g}; rho= allows for a "
            "difference"
        )

    def same(one: Any, two: Any) -> bool:
        if one is two or one is None or two is None:
            return one is two
        return one.shape == two.shape and bool(_device.namespace(one).array_equal(one, two))

    if symmetric and not (same(x, y) and same(a, b)):
        raise ValueError("sinkhorn: symmetric=True needs y equal to x and b equal to a")


def _check_sinkhorn(
    x, y, a=None, b=None, *, reg, cost="sqeuclidean", rho=None, tol=1e-3, max_iter=1000, scaling=None, symmetric=False,
    linear=True,
):  # fmt: skip
    if not 0 < reg < np.inf:
        raise ValueError(f"sinkhorn: reg must be positive and finite, got {reg!r}")
    if rho is not None and not 0 < rho < np.inf:
        raise ValueError(f"sinkhorn: rho must be positive and finite, or None for fixed marginals, got {rho!r}")
    if not 0 <= tol < np.inf:
        raise ValueError(f"sinkhorn: tol must be at least 0, got {tol!r}")
    if max_iter < 1:
        raise ValueError(f"sinkhorn: max_iter must be at least 1, got {max_iter!r}")
    if scaling is not None and not 0 <= scaling < 1:
        raise ValueError(f"sinkhorn: scaling must be at least 0 and below 1, got {scaling!r}")
    if x.shape[0] == 0 or y.shape[0] == 0:
        raise ValueError(f"sinkhorn: x and y need at least one row each, got shapes {x.shape} and {y.shape}")
    if _device.is_array(x):  # on a GPU its values are not at hand here: the definition looks at them there
        _check_measures(x, y, a, b, rho, symmetric)


class _Side:
    """The points of one side: their weights, and what is optimal for them when the other side's potential is fixed."""

    def __init__(self, points: Any, weights: Any, rho: float | None) -> None:
        self.points, self.weights, self.rho = points, weights, rho
        self.np = _device.namespace(points)
        with np.errstate(divide="ignore"):
            self.logs = self.np.log(weights)

    def zeros(self) -> Any:
        return self.np.zeros(len(self.weights))

    def row_potential(self, other: "_Side", potential: Any, reg: float, cost: str) -> Any:
        """s with exp((f_i - s_i) / reg) = marginal_i / weight_i of the plan of f and the other side's potential."""
        bias = self.np.asarray(other.logs + potential / reg, np.float64)
        lse = logsumexp(self.points, other.points, bias, scale=1 / reg, cost=cost)
        return -reg * self.np.asarray(lse, np.float64)

    def best(self, s: Any, reg: float) -> Any:
        """The potential that maximises the dual objective."""
        return s if self.rho is None else s / (1 + reg / self.rho)

    def utility(self, f: Any) -> Any:
        """What the dual objective gives for f, per weight."""
        return f if self.rho is None else -self.rho * self.np.expm1(-f / self.rho)

    def target(self, f: Any) -> Any:
        """The marginal per weight at which f is optimal."""
        return 1 if self.rho is None else self.np.exp(-f / self.rho)

    def error(self, f: Any, s: Any, reg: float) -> Any:
        """The L1 distance of the plan's marginal to what is optimal for f."""
        return self.weights @ self.np.abs(self.np.exp((f - s) / reg) - self.target(f))

    def objective(self, f: Any, s: Any, reg: float) -> Any:
        """The dual objective as a function of f alone, up to a constant."""
        return self.weights @ (self.utility(f) - reg * self.np.exp((f - s) / reg))

    def relaxed(self, f: Any, best: Any, s: Any, reg: float, before: Any, gained: Any) -> Any:
        """Beyond `best` by over-relaxation, if that gains enough (dual objective: `before` at f, `gained` at best)."""
        beyond = f + OMEGA * (best - f)
        return self.np.where(self.objective(beyond, s, reg) - before >= GAIN * gained, beyond, best)


def _extrapolation(tail: list[tuple], weights: Any) -> Any:
    """Anderson's correction of the last step: what least squares over the steps before makes of it.

    tail: pairs of a point f and the step T f - f. Walker & Ni (2011), eq. 2.2, in the norm of the weights; by
    Gram-Schmidt from the newest difference on, where those that say nothing new become 0.
    """
    xp = _device.namespace(weights)
    root = xp.sqrt(weights)
    rest, correction = tail[-1][1] * root, xp.zeros_like(root)
    known, moves = xp.zeros((len(tail) - 1, len(root))), xp.zeros((len(tail) - 1, len(root)))
    for i, ((point, step), (next_point, next_step)) in enumerate(zip(tail[-2::-1], tail[:0:-1], strict=True)):
        move = next_step - step
        along, move = move * root, move + (next_point - point)
        size = along @ along
        for _ in range(2):  # once more, against rounding
            share = known[:i] @ along
            along -= share @ known[:i]
            move -= share @ moves[:i]
        length = along @ along
        new = length > 1e-18 * size
        scale = xp.where(new, length, 1) ** -0.5 * new
        known[i], moves[i] = along * scale, move * scale
        share = known[i] @ rest
        rest -= share * known[i]
        correction -= share * moves[i]
    return correction


def _start(x: Any, y: Any, reg: float, cost: str, scaling: float) -> list[float]:
    """Regularisations from the diameter down to reg, without reg."""
    xp = _device.namespace(x)
    low, high = xp.minimum(x.min(axis=0), y.min(axis=0)), xp.maximum(x.max(axis=0), y.max(axis=0))
    square = float((((high - low).astype(np.float64)) ** 2).sum())
    found, at = [], square if cost == "sqeuclidean" else square**0.5
    while scaling > 0 and reg < at < np.inf:
        found.append(at)
        at *= scaling
    return found


def _solve(one, two, reg, cost, tol, max_iter, start):
    """Alternating maximisation: (f, g, the utilities of both, marginal error, iterations)."""
    f, done = one.zeros(), 0
    mass = sum(numbers(one.weights.sum(), two.weights.sum())) / 2
    for at in start[: max_iter - 1]:
        g = two.best(two.row_potential(one, f, at, cost), at)
        f, done = one.best(one.row_potential(two, g, at, cost), at), done + 1
    rounding, trust = np.finfo(one.points.dtype).eps, 1.0
    tail: list[tuple] = []
    tried: tuple | None = None
    while True:
        g = two.best(two.row_potential(one, f, reg, cost), reg)
        gained, done = two.weights @ two.utility(g), done + 1
        objective = one.weights @ one.utility(f) + gained - reg * (two.weights @ (two.target(g) * two.np.ones_like(g)))
        if tried is not None and not objective >= tried[0]:  # extrapolated too far: less of it, or none
            _, best, step, safe = tried
            trust /= 10
            if trust >= 0.05 and done < max_iter - 1:
                f = best + trust * step
            else:
                f, tail, tried = safe, [], None
            continue
        s = one.row_potential(two, g, reg, cost)
        best = one.best(s, reg)
        (error,) = numbers(one.error(f, s, reg) / mass)  # of the plan of f and g; best can but lower it
        if not error > tol or done >= max_iter:
            return best, g, sum(numbers(one.weights @ one.utility(best), gained)), error, done
        if tol == 0:
            f = best
            continue
        trust, tail = max(min(1.0, 4 * trust), 0.1), [*tail[-MEMORY:], (f, best - f)]
        before = one.objective(f, s, reg)
        gain = one.objective(best, s, reg) - before
        safe, tried = one.relaxed(f, best, s, reg, before, gain), None
        if len(tail) > 1 and done < max_iter - 1:
            noise = rounding * (one.weights @ one.np.abs(one.utility(f)) + two.weights @ two.np.abs(two.utility(g)))
            tried = objective + GAIN * gain - noise, best, _extrapolation(tail, one.weights), safe
        f = safe if tried is None else best + trust * tried[2]


def _solve_symmetric(one, reg, cost, tol, max_iter):
    """A set with itself: one potential, one logsumexp per iteration. The value is that of the plan of f and T f."""
    f, done = one.zeros(), 0
    (mass,) = numbers(one.weights.sum())
    while True:
        s = one.row_potential(one, f, reg, cost)
        best = one.best(s, reg)
        (error,) = numbers(2 * one.error(f, s, reg) / mass)
        done += 1
        if not error > tol or done >= max_iter:
            return f, best, numbers(one.weights @ (one.utility(f) + one.utility(best)))[0], error, done
        f = f + SYMMETRIC_STEPS[done % 2] * (best - f)


def _kernel_of(reg: float, cost: str) -> dict[str, Any]:
    """exp(-cost / reg) as kernel_matvec's attributes."""
    if cost == "euclidean":
        return dict(kernel="laplace", bandwidth=(float(reg),))
    return dict(kernel="rbf", bandwidth=((0.5 * reg) ** 0.5,))


def _linear(one, two, f, g, reg, cost):
    """<C, P>. C is homogeneous: C = (<x, dC/dx> + <y, dC/dy>) / 2 for squared distances, without 2 for distances."""
    logs = [side.np.asarray(side.logs + p / reg, np.float64) for side, p in ((one, f), (two, g))]
    sides = [(one.points, two.points, *logs)]
    if two is not one:
        sides.append((two.points, one.points, *logs[::-1]))
    centre, total = one.points.mean(axis=0), 0.0
    for x, y, x_log, y_log in sides:
        gradient = kernel_matvec_dx(x, y, _ones(x), _ones(y), x_log, y_log, **_kernel_of(reg, cost))
        total -= reg * float(((x - centre) * gradient).sum(dtype=np.promote_types(x.dtype, np.float64)))
    return total * (3 - len(sides)) / (2 if cost == "sqeuclidean" else 1)


@op(
    "x: n d, y: m d, a?: n float64, b?: m float64 -> float64, float64, n float64, m float64, float64, int64, uint8",
    sizes=[dict(n=61, m=53, d=23), dict(n=1, m=61, d=1009)],
    attrs=[dict(reg=20.0, max_iter=3, tol=0.0, rho=8.0), dict(reg=3.0, cost="euclidean", max_iter=4, tol=0.0, rho=2.0)],
    domain={"a": "positive", "b": "positive"},
    choices={"cost": ("sqeuclidean", "euclidean")},
    check=_check_sinkhorn,
    native=False,
)
def sinkhorn(
    x, y, a=None, b=None, *, reg, cost="sqeuclidean", rho=None, tol=1e-3, max_iter=1000, scaling=None, symmetric=False,
    linear=True,
):  # fmt: skip
    """Entropic optimal transport: min over P of <C, P> + reg KL(P | a b^T), with P's marginals a and b.

    x (n, d), y (m, d): points. a (n,), b (m,) float64: weights, uniform if absent. C_ij = |x_i - y_j|^2 (cost
    "sqeuclidean") or |x_i - y_j| ("euclidean"). Returns
        value             the minimum, as the dual objective of the potentials: a lower bound of it, whenever it stops
        value_linear      <C, P> of the plan found; NaN if linear=False, which saves two passes
        f (n,), g (m,)    potentials: P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg); <a, f> = <b, g> for fixed marginals
        marginal_error    |P 1 - a|_1 + |P^T 1 - b|_1 before the last update of f, divided by the mass: no smaller than
                          that of the plan returned
        iterations        all of them, those of the start included
        converged         1 if marginal_error <= tol
    KL(P | Q) = sum P log(P / Q) - P + Q. Conventions: reg is POT's reg and OTT's epsilon; geomloss' blur with p = 2 has
    the cost |x - y|^2 / 2, so reg = 2 blur^2 and twice its value. POT's sinkhorn2 returns <C, P>, geomloss and OTT the
    value; POT's log potentials are log a + f / reg.
    rho: marginals need not be met but cost rho KL(P 1 | a) + rho KL(P^T 1 | b); geomloss' reach has rho = reach^p. The
    marginal error is then against the marginals a exp(-f / rho) at which the potentials are optimal.
    tol > 0: starts at reg = diameter^2 (or diameter), which shrinks by `scaling` per iteration (0: no such start), then
    iterates at reg, extrapolating from the steps before (Anderson 1965; Walker & Ni 2011). A step is kept only if it
    raises the dual objective by a share of what the plain one would, so it converges wherever that does. tol = 0:
    exactly max_iter plain iterations, g before f, from f = 0.
    symmetric: y is x and b is a. One potential (g = f), one logsumexp per iteration, the error shrinks about 4.1
    times per iteration near the solution.
    Time n m d per iteration, memory O(n + m). Potentials are float64; their error is that of logsumexp, about eps of
    x's dtype times the largest cost that counts. value is differentiable once, by the envelope theorem: in x and y
    through the plan, in a and b by the potentials. Nothing else is.
    Raises ValueError for reg, rho, tol, max_iter or scaling out of range, weights that are negative, not finite or all
    0, sums of weights that differ without rho, symmetric=True with different sides.
    """
    if _device.is_device(x):
        _check_measures(x, y, a, b, rho, symmetric)
    one = _Side(x, _weights(a, x), rho)
    two = one if symmetric else _Side(y, _weights(b, y), rho)
    with np.errstate(over="ignore", invalid="ignore"):
        if symmetric:
            f, last, utility, error, done = _solve_symmetric(one, reg, cost, tol, int(max_iter))
            f = (f + last) / 2
            g = f.copy()
        else:
            start = _start(x, y, reg, cost, SCALING if scaling is None else scaling) if tol > 0 else []
            f, g, utility, error, done = _solve(one, two, reg, cost, tol, int(max_iter), start)
            last = f
        mass, mass_one, mass_two, at_one, at_two = numbers(
            one.weights @ (one.target(last) * one.np.ones_like(f)), one.weights.sum(), two.weights.sum(),
            one.weights @ f, two.weights @ g,
        )  # fmt: skip
        value = utility - reg * (mass - mass_one * mass_two)
        along = _linear(one, two, f, g, reg, cost) if linear else np.nan
        if rho is None:
            shift = (at_two - at_one) / (2 * mass_one)
            f, g = f + shift, g - shift
    return np.float64(value), np.float64(along), f, g, np.float64(error), np.int64(done), np.uint8(error <= tol)


def _log_density(weights: Any, potential: Any, reg: float) -> Any:
    """log of weight times exp(potential / reg)."""
    scaled = affine(potential, scale=1 / reg)
    return affine(scaled, shift=-float(np.log(potential.shape[0]))) if weights is None else add(log(weights), scaled)


def _weight_gradient(g: Any, potential: Any, other: Any, reg: float, rho: float | None) -> Any:
    """d value / d weight_i = utility(f_i) - reg (marginal_i / weight_i - the other side's mass), times g."""
    if rho is None:
        slope = affine(potential, shift=-reg)
    else:
        slope = affine(exp(affine(potential, scale=-1 / rho)), scale=-rho - reg, shift=rho)
    mass = affine(_sum(other), scale=reg) if other is not None else np.full((), float(reg))
    return mul(g, add(slope, mass))


def _sinkhorn_rule(gys, ys, needs, x, y, a=None, b=None, *, reg, cost, rho, symmetric, **_):
    if any(g is not None for g in gys[1:]):
        raise TypeError(
            "sinkhorn: only its value is differentiable, and only once: the potentials are not (their gradient would "
            "need a linear system)"
        )
    _, _, f, g = ys[:4]
    x_log, y_log = _log_density(a, f, reg), _log_density(b, g, reg)
    need_x, need_y, need_a, need_b = [*needs, False, False][:4]

    def side(x: Any, y: Any, x_log: Any, y_log: Any) -> Any:
        outer = reshape(cast(affine(gys[0], scale=-reg), dtype=np.dtype(x.dtype).name), shape=(1, 1))
        outer = expand(outer, shape=(x.shape[0], 1))
        return kernel_matvec_dx(x, y, outer, _ones(y), x_log, y_log, **_kernel_of(reg, cost))

    dx = side(x, y, x_log, y_log) if need_x or (symmetric and need_y) else None
    dy = None if not need_y else dx if symmetric else side(y, x, y_log, x_log)
    return [
        dx if need_x else None, dy,
        _weight_gradient(gys[0], f, b, reg, rho) if need_a else None,
        _weight_gradient(gys[0], g, a, reg, rho) if need_b else None,
    ]  # fmt: skip


rule(sinkhorn, _sinkhorn_rule)
