"""Guidance: a second opinion on the score. Classifier-free, autoguidance, limited interval, rescale, classifiers.

`Guidance` combines two predictions, and the step kernel does the arithmetic. Every prediction type is a linear function
of x and D, with coefficients that the two share, so guided predictions, guided D and guided scores are the same thing:

    score = score_u + w (score_c - score_u), that of p_u(x)^(1 - w) p_c(x)^w.

`classifier_guidance` adds the gradient of a classifier to a denoiser and gives a denoiser again, so it can be one
of the two. Not here: thresholding of the guided D (sampling), the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import Any

from .. import autograd, ops
from .plan import Plan, Stage
from .predictions import conversion

__all__ = ["Guidance", "classifier_free", "classifier_guidance"]

Denoiser = Callable[[Any, float], Any]


class Guidance:
    """guided = uncond + weight (prediction - uncond), the extrapolation away from a second, worse denoiser.

    weight: 1 is no guidance; a number, or a function of the level sigma / alpha. uncond(x, sigma): the denoiser without
    its condition (classifier-free guidance, Ho and Salimans, 2022) or a smaller or less trained one (autoguidance,
    Karras et al., 2024). batched: uncond takes x twice, one copy behind the other, (2 n, ...), and returns the
    prediction on the first half and the second opinion on the second: one call of a network instead of two. interval:
    the levels sigma / alpha at which guidance is applied, ends included (Kynkaanniemi et al., 2024); elsewhere, and
    where weight is 1, the second denoiser is not called. rescale: how far the standard deviation of the prediction is
    restored, 0 ... 1 (Lin et al., 2023).
    """

    def __init__(
        self,
        weight: float | Callable[[float], float],
        uncond: Denoiser,
        *,
        batched: bool = False,
        interval: tuple[float, float] = (0.0, inf),
        rescale: float = 0.0,
    ) -> None:
        if not 0 <= rescale <= 1:
            raise ValueError(f"Guidance: rescale must lie in 0 ... 1, got {rescale}")
        if not interval[0] <= interval[1]:
            raise ValueError(f"Guidance: interval must be (low, high), got {interval}")
        self.weight = weight if callable(weight) else float(weight)
        if not callable(weight) and not isfinite(weight):
            raise ValueError(f"Guidance: weight must be finite, got {weight}")
        self.uncond, self.batched, self.interval, self.rescale = uncond, batched, interval, float(rescale)

    def weight_at(self, level: float) -> float:
        """The weight at a level sigma / alpha; 1 outside the interval."""
        if not self.interval[0] <= level <= self.interval[1]:
            return 1.0
        weight = float(self.weight(level)) if callable(self.weight) else self.weight
        if not isfinite(weight):
            raise ValueError(f"Guidance: weight must be finite, got {weight} at level {level:g}")
        return weight

    def predict(self, denoiser: Denoiser, x: Any, stage: Stage) -> tuple[Any, Any, float]:
        """(prediction, uncond or None, weight) at a stage."""
        weight = self.weight_at(stage.sigma / stage.alpha if stage.alpha else inf)
        if weight == 1:
            return denoiser(x, stage.told), None, 1.0
        if not self.batched:
            return denoiser(x, stage.told), self.uncond(x, stage.told), weight
        n = x.shape[0]
        both = self.uncond(ops.concat(x, x, axis=0), stage.told)
        if both.shape[0] != 2 * n:
            raise ValueError(
                f"Guidance: a batched denoiser must return {2 * n} predictions for x twice, got {both.shape[0]}"
            )
        halves = [ops.slice_axis(both, start=start, stop=start + n, axis=0) for start in (0, n)]
        return halves[0], halves[1], weight


def classifier_free(
    network: Callable[..., Any],
    condition: Any,
    null: Any,
    *,
    weight: float | Callable[[float], float],
    batched: bool = False,
    interval: tuple[float, float] = (0.0, inf),
    rescale: float = 0.0,
) -> tuple[Denoiser, Guidance]:
    """(denoiser, guidance) for `sample`: network(x, sigma, condition) away from network(x, sigma, null).

    condition, null: what the network takes as its third argument, with a row per sample: labels and the "no label"
    class, or embeddings of prompt and empty prompt. batched: one call per step, with both conditions one behind the
    other. The rest: see `Guidance`. Ho and Salimans (2022).
    """
    if tuple(condition.shape) != tuple(null.shape):
        raise ValueError(
            f"classifier_free: condition and null must have one shape, got {condition.shape} and {null.shape}"
        )
    second: Denoiser = lambda x, sigma: network(x, sigma, null)
    if batched:
        together = _behind_each_other(condition, null)
        second = lambda x, sigma: network(x, sigma, together)
    guidance = Guidance(weight, second, batched=batched, interval=interval, rescale=rescale)
    return lambda x, sigma: network(x, sigma, condition), guidance


def classifier_guidance(
    denoiser: Denoiser,
    log_prob: Callable[[Any, float], Any],
    *,
    scale: float = 1.0,
    prediction: str = "denoised",
    plan: Plan | None = None,
) -> Denoiser:
    """D + scale sigma^2 / alpha grad_x log p(y | x): a denoiser pushed towards what a classifier of noisy x calls y.

    log_prob(x, sigma): (n,), the log-probability of the wanted class, in generant.ops; its gradient is taken here.
    scale = 1 is Bayes' rule: the conditional denoiser, if both are exact. prediction: what the denoiser returns, and so
    does the result, D being linear in it: epsilon - scale sigma grad, score + scale grad, v - scale sigma / alpha grad
    at alpha^2 + sigma^2 = 1. plan: the plan to be run, where it tells the denoiser another number than sigma at
    alpha = 1 (its own times, or forms "vp" and "flow"). Dhariwal and Nichol (2021), algorithm 2.
    """
    scales: dict[float, tuple[float, float]] = {}
    name = "" if plan is None else plan.name
    for stage in () if plan is None else plan.stages:
        if stage.call and scales.setdefault(stage.told, (stage.alpha, stage.sigma)) != (stage.alpha, stage.sigma):
            raise ValueError(f"classifier_guidance: {name} tells the denoiser {stage.told} at two noise levels")
    slope = autograd.grad(lambda x, sigma: ops.sum(log_prob(x, sigma)))

    def guided(x: Any, sigma: float) -> Any:
        if plan is not None and sigma not in scales:
            raise ValueError(f"classifier_guidance: {name} never tells the denoiser {sigma}; is it another plan?")
        alpha, level = (1.0, sigma) if plan is None else scales[sigma]
        a_p = conversion(prediction, alpha, level)[1]
        push = scale * level * level / (alpha * a_p) if a_p else 0.0  # a_p is 0 where there is no noise
        return ops.add(denoiser(x, sigma), ops.affine(slope(x, sigma), scale=push))

    return guided


def _behind_each_other(a: Any, b: Any) -> Any:
    """a, then b; of any dtype, labels included, and on any device."""
    both = a.repeat(2, axis=0)
    n = a.shape[0]
    both[:n], both[n:] = a, b
    return both
