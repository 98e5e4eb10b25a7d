"""What a network predicts, and the two numbers that turn it into the denoised D.

At x = alpha data + sigma noise every prediction in use is a linear function of x and D, so D = a_x x + a_p prediction:
`conversion` gives (a_x, a_p) in float64, and the step kernel applies them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from .plan import alpha_of

__all__ = ["PREDICTIONS", "conversion", "denoiser_of"]


def _denoised(alpha: float, sigma: float) -> tuple[float, float]:
    return 0.0, 1.0


def _epsilon(alpha: float, sigma: float) -> tuple[float, float]:
    return 1 / alpha, -sigma / alpha


def _v(alpha: float, sigma: float) -> tuple[float, float]:
    square = alpha * alpha + sigma * sigma
    return alpha / square, -sigma / square


def _flow(alpha: float, sigma: float) -> tuple[float, float]:
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


def _score(alpha: float, sigma: float) -> tuple[float, float]:
    return 1 / alpha, sigma * sigma / alpha


PREDICTIONS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "denoised": _denoised,  # data itself, x0
    "epsilon": _epsilon,  # the noise
    "v": _v,  # alpha noise - sigma data, Salimans and Ho (2022)
    "flow": _flow,  # noise - data, the velocity of a straight line: Liu et al. (2023), Lipman et al. (2023)
    "score": _score,  # gradient of the log-density of x
}


def conversion(prediction: Any, alpha: float, sigma: float) -> tuple[float, float]:
    """(a_x, a_p) such that D = a_x x + a_p prediction, at x = alpha data + sigma noise.

    prediction: a name in PREDICTIONS, or an object such as `Edm` whose convert(sigma) gives them for alpha = 1.
    """
    if isinstance(prediction, str):
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        if alpha == 0 and prediction in ("epsilon", "score"):
            raise ValueError(
                f"prediction {prediction!r} says nothing about the data where alpha is 0 (sigma = {sigma:g}): take "
                "'v', 'denoised' or 'flow', or start at a lower noise level"
            )
        a_x, a_p = PREDICTIONS[prediction](alpha, sigma)
    else:
        a_x, a_p = prediction.convert(sigma / alpha)
        a_x = a_x / alpha
    if not np.isfinite([a_x, a_p]).all():
        raise ValueError(f"prediction {prediction!r} cannot be converted at alpha = {alpha:g}, sigma = {sigma:g}")
    return float(a_x), float(a_p)


def denoiser_of(
    network: Callable[[Any, float], Any],
    prediction: Any,
    *,
    form: str = "ve",
    time: Callable[[float], float] | None = None,
) -> Callable[[Any, float], Any]:
    """D(x; sigma) of x = data + sigma noise, from a network that predicts something else of x in some form.

    network(x, told): told is sigma in the form's own coordinates, or time(level) of the noise-to-signal ratio. The
    result is made of ops, so it is differentiable where the network is.
    """

    def denoiser(x: Any, level: float) -> Any:
        alpha = alpha_of(form, level)
        sigma = alpha * level
        seen = x if alpha == 1 else ops.affine(x, scale=alpha)
        said = network(seen, sigma if time is None else time(level))
        a_x, a_p = conversion(prediction, alpha, sigma)
        scaled = said if a_p == 1 else ops.affine(said, scale=a_p)
        return scaled if a_x == 0 else ops.add(ops.affine(seen, scale=a_x), scaled)

    return denoiser
