"""Fewer steps by training: consistency models, from data or from a teacher, and reflow, which straightens a flow.

A consistency function f(x, sigma) says where the path through x ends. It is fitted by asking that two neighbouring
points of a path get one answer, that of the point nearer to the data being held fixed. Reflow replaces independent
pairs of data and noise by those that a trained flow joins. Everything is in the form x = data + sigma noise for
consistency and x = (1 - t) data + t noise for flows. Not here: sampling with what was trained (samplers), and loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..ops import _device
from .objectives.targets import checked_training_levels
from .plan import Plan
from .samplers.few_step import ConsistencyScaling
from .samplers.flow import flow_euler
from .sampling import sample

__all__ = [
    "consistency_distillation_loss", "consistency_function", "consistency_training_loss", "discretisation",
    "heun_step", "neighbours", "pseudo_huber", "reflow_pairs", "straightness",
]  # fmt: skip

Denoiser = Callable[[Any, np.ndarray, Any], Any]  # (x, sigma (n,), labels) -> like x
GROWTHS = ("exponential", "square")
HUBER = 0.00054  # c / sqrt(elements), Song and Dhariwal (2024), section 3.3


def consistency_function(network: Callable[..., Any], scaling: ConsistencyScaling) -> Denoiser:
    """f(x, sigma, labels) = c_skip x + c_out network(c_in x, c_noise, labels), sigma (n,) in float64.

    f = x at scaling.sigma_min. Song et al. (2023), eq. 5.
    """

    def f(x: Any, sigma: np.ndarray, labels: Any) -> Any:
        c_skip, c_out, c_in, c_noise = (_device.beside(x, c.astype(x.dtype)) for c in scaling.scalings(sigma))
        column = (len(c_in),) + (1,) * (len(x.shape) - 1)
        said = network(ops.mul(x, c_in.reshape(column)), c_noise, labels)
        return ops.add_noise(x, said, c_skip, c_out)

    return f


def discretisation(
    step: int, total: int, *, first: int = 10, last: int = 1280, growth: str = "exponential"
) -> int:
    """How many noise levels there are at a step, 0 ... total - 1: few at first, for little variance, then many.

    growth "exponential": min(first 2^floor(step / K), last) + 1, K = floor(total / (log2(last / first) + 1)): Song and
    Dhariwal (2024), section 3.4. "square": ceil(sqrt(step / total ((last + 1)^2 - first^2) + first^2) - 1) + 1, with
    2 and 150 in Song et al. (2023), appendix C.
    """
    if growth not in GROWTHS:
        raise ValueError(f"discretisation: growth must be one of {', '.join(GROWTHS)}, got {growth!r}")
    if not 1 <= first <= last:
        raise ValueError(f"discretisation: wanted 1 <= first <= last, got {first} and {last}")
    if total < 1 or step < 0:
        raise ValueError(f"discretisation: wanted total >= 1 and step >= 0, got {total} and {step}")
    step = min(step, total - 1)
    if growth == "square":
        # rounded a little down: a square root that is whole must not come out one level higher
        root = math.sqrt(step / total * ((last + 1) ** 2 - first**2) + first**2)
        return math.ceil(root - 1 - 1e-9) + 1
    period = max(1, math.floor(total / (math.log2(last / first) + 1)))
    doublings = min(step // period, math.ceil(math.log2(last / first)))
    return min(first * 2**doublings, last) + 1


def neighbours(key: Any, n: int, levels: Any, *, mean: float | None = -1.1, std: float = 2.0) -> np.ndarray:
    """n indices i of pairs (levels[i], levels[i + 1]), drawn as a log-normal level falls between them. (n,) int64.

    levels: rising, at least two. mean, std: of log sigma; mean=None: every pair is as likely, as in Song et al. (2023).
    Song and Dhariwal (2024), section 3.5.
    """
    s = _rising("neighbours", levels)
    if not 0 < std < math.inf:
        raise ValueError(f"neighbours: std must be positive and finite, got {std}")
    if mean is None:
        ends = np.arange(1.0, len(s))
    else:
        below = 0.5 * ops.erf((np.log(s) - mean) / (math.sqrt(2) * std))
        ends = np.cumsum(np.maximum(np.diff(below), 0))
    if not ends[-1] > 0:
        raise ValueError(f"neighbours: no level lies within reach of exp({mean} + {std} z)")
    numbers = ops.uniform(key, dtype="float64", shape=(n,))
    return np.minimum(np.searchsorted(ends / ends[-1], numbers, side="right"), len(s) - 2).astype(np.int64)


def pseudo_huber(a: Any, b: Any, *, c: float | None = None) -> Any:
    """sqrt(|a - b|^2 + c^2) - c of every sample: quadratic below c, the distance above.

    a, b (n, ...). c: 0.00054 sqrt(elements of a sample) unless given; 0 is the distance, without derivative at 0.
    Returns (n,). Song and Dhariwal (2024), section 3.3.
    """
    if c is None:
        c = HUBER * math.sqrt(max(1, math.prod(a.shape[1:])))
    if not 0 <= c < math.inf:
        raise ValueError(f"pseudo_huber: c must be at least 0 and finite, got {c}")
    return ops.affine(ops.sqrt(ops.affine(_square(a, b), shift=c * c)), shift=-c)


def _square(a: Any, b: Any) -> Any:
    rest = tuple(range(1, len(a.shape)))
    square = ops.square(ops.sub(a, b))
    return ops.sum(square, axis=rest) if rest else square


def _rising(owner: str, levels: Any) -> np.ndarray:
    s = checked_training_levels(owner, levels)
    if len(s) < 2 or not (np.diff(s) > 0).all():
        raise ValueError(f"{owner}: levels must be at least two that rise strictly, got {len(s)}")
    return s


def _ends(owner: str, x: Any, levels: Any, index: Any) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) level of every sample's pair."""
    s, i = _rising(owner, levels), np.asarray(index)
    if i.shape != (x.shape[0],) or i.dtype.kind not in "iu":
        raise ValueError(f"{owner}: index must be ({x.shape[0]},) integers, got {i.shape} {i.dtype}")
    if len(i) and not (0 <= i.min() and i.max() < len(s) - 1):
        raise ValueError(f"{owner}: index must lie in 0 ... {len(s) - 2}, got {i.min()} ... {i.max()}")
    return s[i], s[i + 1]


def _distance(x: Any, near: Any, far: Any, low: np.ndarray, high: np.ndarray, c: float | None, weight: Any) -> Any:
    weights = 1 / (high - low) if weight is None else np.asarray(weight(low, high), np.float64)
    weights = _device.beside(x, weights.astype(x.dtype))
    return ops.mean(ops.mul(pseudo_huber(far, ops.stop_gradient(near), c=c), weights))


def consistency_training_loss(
    f: Denoiser,
    x: Any,
    labels: Any,
    levels: Any,
    index: Any,
    key: Any,
    *,
    fixed: Denoiser | None = None,
    c: float | None = None,
    weight: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Any:
    """mean(weight pseudo_huber(f(x + s' z, s'), f(x + s z, s))), s = levels[i], s' = levels[i + 1], one z for both.

    f(x, sigma (n,), labels): the consistency function, as of `consistency_function`; of f(x + s z, s) no gradient is
    taken. x (n, ...): data; levels: rising, levels[0] where f is the identity; index (n,): i, as of `neighbours`.
    fixed: another f for the lower point, such as an average of the weights. c: see `pseudo_huber`. weight(s, s'):
    1 / (s' - s) unless given. Returns a scalar. Song and Dhariwal (2024), eq. 7 and section 3.4.
    """
    low, high = _ends("consistency_training_loss", x, levels, index)
    one, at_high, at_low = (_device.beside(x, a.astype(x.dtype)) for a in (np.ones(len(low)), high, low))
    far = f(ops.q_sample(x, one, at_high, key), high, labels)
    near = (fixed or f)(ops.q_sample(x, one, at_low, key), low, labels)
    return _distance(x, near, far, low, high, c, weight)


def heun_step(denoiser: Denoiser, x: Any, high: np.ndarray, low: np.ndarray, labels: Any = None) -> Any:
    """x at the levels `low` on the paths through x at the levels `high`, both (n,), by one step of Heun's method.

    denoiser(x, sigma (n,), labels) = D. Two calls. Karras et al. (2022), algorithm 1.
    """
    cast = lambda a: _device.beside(x, a.astype(x.dtype))
    ratio = low / high
    d = denoiser(x, high, labels)
    euler = ops.add_noise(x, d, cast(ratio), cast(1 - ratio))
    d_low = denoiser(euler, low, labels)
    # the slope at `low` is (euler - D') / low = (x - D) / high + (D - D') / low, and half the difference is missing
    return ops.add(euler, ops.add_noise(d_low, d, cast((high - low) / (2 * low)), cast((low - high) / (2 * low))))


def consistency_distillation_loss(
    f: Denoiser,
    teacher: Denoiser,
    x: Any,
    labels: Any,
    levels: Any,
    index: Any,
    key: Any,
    *,
    fixed: Denoiser | None = None,
    c: float | None = None,
    weight: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Any:
    """mean(weight pseudo_huber(f(x', s'), f(x_s, s))): x' = x + s' z, and x_s one Heun step of the teacher below it.

    teacher(x, sigma (n,), labels) = D. Other arguments as `consistency_training_loss`. Song et al. (2023), algorithm 2.
    """
    low, high = _ends("consistency_distillation_loss", x, levels, index)
    one, at_high = (_device.beside(x, a.astype(x.dtype)) for a in (np.ones(len(low)), high))
    noisy = ops.q_sample(x, one, at_high, key)
    below = ops.stop_gradient(heun_step(teacher, noisy, high, low, labels))
    return _distance(x, (fixed or f)(below, low, labels), f(noisy, high, labels), low, high, c, weight)


def reflow_pairs(denoiser: Callable[[Any, float], Any], z: Any, plan: Plan, *, prediction: Any = "flow") -> Any:
    """The data that the plan makes of noise z: x, so that (x, z) are the pairs to fit the next flow to.

    denoiser, prediction: as of `sampling.sample`; z (n, ...): standard normal; plan: one that adds no noise. Then
    Objective("flow", form="flow").loss(.., noise=z). Liu et al. (2023), algorithm 1.
    """
    if plan.stochastic:
        raise ValueError(f"reflow_pairs: {plan.name} adds noise, so it does not join one x to each z")
    return sample(denoiser, ops.affine(z, scale=plan.initial[1]), plan, prediction=prediction)


def straightness(denoiser: Callable[[Any, float], Any], z: Any, times: Any) -> float:
    """The time integral of mean |v(x_t, t) - (z - x_0)|^2 along the flow's own paths: 0 if they are straight.

    denoiser(x, t) = v, the velocity noise - data; z (n, ...); times: 1 ... 0, falling, Euler's steps. |.|^2 sums over
    the elements of a sample. Liu et al. (2023), eq. 3.
    """
    plan = flow_euler(times)
    said: list[Any] = []

    def recorded(x: Any, t: float) -> Any:
        said.append(denoiser(x, t))
        return said[-1]

    end = sample(recorded, z, plan, prediction="flow")
    straight = ops.sub(z, end)
    steps = -np.diff(plan.sigmas)
    total = sum(h * float(ops.mean(_square(v, straight))) for h, v in zip(steps.tolist(), said, strict=True))
    return float(total)
