"""Dormand-Prince 5(4): steps chosen so that the local error stays below a tolerance.

The probability-flow equation dx/dsigma = (x - D) / sigma and the flow dx/dt = velocity = (x - D) / t are the same
formula in their own coordinates, so one solver does both. How many steps there are depends on x: this is a loop, not a
plan. What it found can become one: the levels it stopped at are good levels for samplers with fixed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import ops
from ...ops.layout import concatenate
from ..predictions import conversion

__all__ = ["Solution", "dormand_prince"]

NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# x between the ends of a step, x + step sum_i v_i sum_j DENSE[i][j] u^(j + 1): Shampine (1986), order 4
DENSE = (
    (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
    (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
    (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
    (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
    (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
I_POWER, P_POWER = 0.2 - 0.75 * 0.04, 0.04  # of this step's and the last step's error: Hairer, Norsett and Wanner


class Solution(NamedTuple):
    """What `dormand_prince` found. levels: of each sample, or the one list of all samples together."""

    x: Any
    levels: tuple[tuple[float, ...], ...]  # start, .. end, falling: where accepted steps met
    evaluations: int  # calls of the denoiser
    rejected: int  # steps that were taken back
    dense: tuple[Any, ...] = ()  # x at each level of `at`


def dormand_prince(
    denoiser: Callable[..., Any],
    x: Any,
    *,
    start: float,
    end: float,
    form: str = "ve",
    prediction: Any = "denoised",
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
    denoise: bool = True,
    at: Sequence[float] = (),
    together: bool = False,
    labels: Any = None,
    clip: float | None = None,
) -> Solution:
    """x at level `end`, or its D there, from x at `start`: order 5 with steps held to rtol |x| + atol. A `Solution`.

    denoiser(x, sigma), or denoiser(x, sigma, labels): what it returns is `prediction`, as in `sampling.sample`. x:
    (n, ...), at sigma = start. form: "ve", data + sigma noise, or "flow", (1 - sigma) data + sigma noise with start at
    most 1. end: above 0 and below start; denoise: finish with D, the exact step from there to 0, instead of x. at:
    levels in [end, start] at which x is wanted too, by interpolation of order 4. clip: D is kept in [-clip, clip].
    The error of a step is the root mean square over a sample's elements of the error estimate / (atol + rtol |x|).
    Each sample has its own steps, and is the same in any batch; the denoiser then sees one sample at a time, and its
    row of labels (n, ...). together: one sequence of steps for all, held to the worst sample's error, and calls of n
    samples: as many calls as the hardest needs, but a result that depends on the batch.
    Raises RuntimeError where max_steps do not suffice, or x or D is not finite. Dormand and Prince (1980); step control
    as Hairer, Norsett and Wanner (1993), II.4.
    """
    name = "dormand_prince"
    if form not in ("ve", "flow"):
        raise ValueError(f"{name}: form must be 've' or 'flow', got {form!r}")
    if not 0 < end < start < np.inf or (form == "flow" and start > 1):
        bound = "1 >= start" if form == "flow" else "start"
        raise ValueError(f"{name}: {bound} > end > 0 must hold, got start = {start} and end = {end}")
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0 and np.isfinite(rtol + atol)):
        raise ValueError(f"{name}: rtol and atol must be at least 0, one of them positive, got {rtol} and {atol}")
    if max_steps < 1:
        raise ValueError(f"{name}: max_steps must be at least 1, got {max_steps}")
    if not all(end <= level <= start for level in at):
        raise ValueError(f"{name}: at must lie in end ... start = {end} ... {start}, got {list(at)}")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"{name}: x must be n samples of at least one element each, got shape {tuple(x.shape)}")
    if labels is not None and labels.shape[0] != x.shape[0]:
        raise ValueError(f"{name}: there are {x.shape[0]} samples but {labels.shape[0]} labels")

    def solve(rows: slice) -> Solution:
        extra = () if labels is None else (labels[rows],)
        velocity = _Velocity(lambda y, sigma: denoiser(y, sigma, *extra), form, prediction, clip)
        wanted = tuple(map(float, at))
        return _solve(velocity, x[rows], float(start), float(end), rtol, atol, max_steps, denoise, wanted)

    if together or x.shape[0] == 1:
        return solve(slice(None))
    alone = [solve(slice(i, i + 1)) for i in range(x.shape[0])]
    return Solution(
        concatenate(*(s.x for s in alone), axis=0),
        tuple(s.levels[0] for s in alone),
        sum(s.evaluations for s in alone),
        sum(s.rejected for s in alone),
        tuple(concatenate(*(s.dense[k] for s in alone), axis=0) for k in range(len(at))),
    )


class _Velocity:
    """(x - D) / sigma of a network, and D alone; counts the calls."""

    def __init__(self, denoiser: Callable[[Any, float], Any], form: str, prediction: Any, clip: float | None) -> None:
        self.denoiser, self.form, self.prediction = denoiser, form, prediction
        self.bounds: dict[str, Any] = {} if clip is None else {"clip": float(clip)}
        self.calls = 0

    def _of(self, x: Any, sigma: float, c_x: float, c_d: float) -> Any:
        alpha = 1.0 if self.form == "ve" else 1 - sigma
        a_x, a_p = conversion(self.prediction, alpha, sigma)
        coef = np.array([a_x, a_p, 0.0, c_x, c_d, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        self.calls += 1
        said = self.denoiser(x, sigma)
        return ops.sampler_step(x, said, None, None, None, None, None, None, coef, **self.bounds)

    def __call__(self, x: Any, sigma: float) -> Any:
        return self._of(x, sigma, 1 / sigma, -1 / sigma)

    def denoised(self, x: Any, sigma: float) -> Any:
        return self._of(x, sigma, 0.0, 1.0)


def _combined(weights: Sequence[float], arrays: Sequence[Any]) -> Any:
    """sum_k weights_k arrays_k, arrays of weight 0 not read: one call of ops.sampler_step for up to six, two above."""
    used = [(w, a) for w, a in zip(weights, arrays, strict=True) if w]
    while len(used) > 6:
        used = [(1.0, _combined(*zip(*used[:6], strict=True))), *used[6:]]
    if len(used) == 1:
        return ops.affine(used[0][1], scale=used[0][0])
    w, a = zip(*used, strict=True)
    rest = [*w[2:], *[0.0] * (6 - len(w))]
    coef = np.array([0.0, 1.0, 0.0, w[0], w[1], *rest, 0.0, 0.0, 0.0, 0.0])
    return ops.sampler_step(*a[:2], None, *a[2:], *[None] * (6 - len(a)), None, coef)


def _norm(y: Any, scale: Any) -> float:
    """The root mean square of y / scale over a sample, of the worst sample."""
    rest = tuple(range(1, y.ndim))
    return float(ops.max(ops.mean(ops.square(ops.div(y, scale)), axis=rest))) ** 0.5


def _solve(
    velocity: _Velocity,
    x: Any,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    max_steps: int,
    denoise: bool,
    at: tuple[float, ...],
) -> Solution:
    scale_of = lambda y: ops.affine(ops.abs(y), scale=rtol, shift=atol)
    now, levels, rejected, before = start, [start], 0, 1.0
    dense: list[Any] = [x if level == start else None for level in at]
    slope = velocity(x, now)
    step = _first_step(velocity, x, slope, now, end, scale_of(x))
    grow = GROW
    while now > end:
        if len(levels) - 1 + rejected >= max_steps:
            raise RuntimeError(
                f"dormand_prince: {max_steps} steps, {rejected} of them rejected, led from {start:g} to {now:g} only, "
                f"not to {end:g}: raise max_steps or the tolerances (rtol = {rtol:g}, atol = {atol:g})"
            )
        last = step >= (now - end) * (1 - 1e-9)
        step = now - end if last else step
        slopes, y = [slope], x
        for node, row in zip(NODES[1:], STAGES, strict=True):
            y = _combined([1.0, *(-step * w for w in row)], [x, *slopes])
            slopes.append(velocity(y, end if last and node == 1 else now - step * node))
        error = _norm(_combined([step * w for w in ERROR], slopes), ops.maximum(scale_of(x), scale_of(y)))
        if not np.isfinite(error):
            raise RuntimeError(f"dormand_prince: x or the denoiser is not finite in the step from {now:g} by {step:g}")
        if error > 1:
            rejected += 1
            step *= max(SHRINK, SAFETY * error**-0.2)
            grow = 1.0
            if step <= 1e-14 * now:
                raise RuntimeError(f"dormand_prince: the step fell to {step:g} at {now:g}; allow a larger rtol or atol")
            continue
        following = end if last else now - step
        for k, level in enumerate(at):
            if following <= level < now:
                dense[k] = y if level == following else _between((now - level) / step, step, x, slopes)
        x, slope, now = y, slopes[-1], following  # the last stage is the first of the next step
        levels.append(now)
        error = max(error, 1e-10)
        step *= min(grow, max(SHRINK, SAFETY * error**-I_POWER * before**P_POWER))
        before, grow = error, GROW
    result = velocity.denoised(x, end) if denoise else x
    return Solution(result, (tuple(levels),), velocity.calls, rejected, tuple(dense))


def _first_step(velocity: _Velocity, x: Any, slope: Any, start: float, end: float, scale: Any) -> float:
    """A step on which x moves by a hundredth of what the tolerance allows it to be off, by two slopes: ibid., II.4."""
    d0, d1 = _norm(x, scale), _norm(slope, scale)
    trial = min(0.01 * d0 / d1 if min(d0, d1) > 1e-5 else 1e-6 * start, start - end)
    other = velocity(_combined([1.0, -trial], [x, slope]), start - trial)
    d2 = _norm(_combined([1.0, -1.0], [other, slope]), scale) / trial
    largest = max(d1, d2)
    guess = (0.01 / largest) ** 0.2 if largest > 1e-15 else start - end
    return min(100 * trial, guess, start - end)


def _between(u: float, step: float, x: Any, slopes: Sequence[Any]) -> Any:
    """x a fraction u into a step, from its slopes."""
    weights = [-step * sum(c * u ** (j + 1) for j, c in enumerate(row)) for row in DENSE]
    return _combined([1.0, *weights], [x, *slopes])
