"""The loss of a denoiser as one object: target, levels and weight, and the pass through the network between them.

The noisy input comes from ops.q_sample and the loss from ops.denoising_loss under the same key, so neither the noise
nor the target is written to memory, and the gradient in the prediction is one more pass. Not here: the choices
themselves (targets, times, weightings).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ... import ops, random
from ...ops import _device
from .edm import Edm
from .targets import LARGEST, Target, checked_training_levels, scales, target
from .times import TIMES
from .weightings import WEIGHTINGS

__all__ = ["Objective", "Prepared"]

SELF = 1  # what the key is folded with to draw who is conditioned on its own estimate


def quarter_log(levels: np.ndarray) -> np.ndarray:
    """log(s) / 4: what the network is told of the level unless otherwise wanted. Karras et al. (2022), table 1."""
    return np.log(levels) / 4


def _chosen(what: str, given: Any, table: dict[str, Callable[..., np.ndarray]]) -> Callable[..., np.ndarray]:
    if callable(given):
        return given
    if given not in table:
        raise ValueError(f"Objective: {what} must be one of {', '.join(table)} or a function, got {given!r}")
    return table[given]


class Prepared(NamedTuple):
    """What a loss needs of its levels, each (n,): input, what the network is told, target, weight; and, with
    self-conditioning, the estimate own_x input + own_p prediction, 0 where it is not shown."""

    in_x: Any
    in_z: Any
    told: Any
    b_x: Any
    b_z: Any
    weight: Any
    own_x: Any = None
    own_p: Any = None


def _of_denoised(goal: Target) -> tuple[np.ndarray, np.ndarray]:
    """(a, gain) with D = a input + gain prediction: a makes D = data where the prediction is the target."""
    return -goal.gain * goal.b_z / goal.in_z, goal.gain  # the noise cancels


class Objective:
    """weight(s) |D - data|^2, for a network that predicts `prediction` from x = alpha data + sigma noise.

    prediction: "epsilon", "denoised", "v", "flow", "score", or "edm" or an `Edm`. form: "ve", "vp" or "flow", what x
    is, without effect on "edm". times: a name in TIMES or a function (key, n) -> levels. weighting: a name in
    WEIGHTINGS or a function of the levels, both of the loss of D; None leaves the loss of the prediction unweighted.
    told: what the network is told, a function of the levels; of a discrete process, whose levels are a rising table,
    lambda s: np.searchsorted(table, s) is the time step. self_conditioning: the share of samples whose network is
    also shown, as its fourth argument, its own first estimate of D, instead of zeros (Chen et al., 2023); None: three
    arguments only.
    """

    def __init__(
        self,
        prediction: Any = "epsilon",
        *,
        form: str = "vp",
        times: str | Callable[[Any, int], np.ndarray] = "uniform",
        weighting: str | Callable[[np.ndarray], np.ndarray] | None = None,
        told: Callable[[np.ndarray], np.ndarray] = quarter_log,
        self_conditioning: float | None = None,
    ) -> None:
        self.prediction = Edm() if prediction == "edm" else prediction
        self.form, self.told = form, told
        self._times = _chosen("times", times, TIMES)
        self._weighting = None if weighting is None else _chosen("weighting", weighting, WEIGHTINGS)
        if self_conditioning is not None and not 0 <= self_conditioning <= 1:
            raise ValueError(f"Objective: self_conditioning must be a share, 0 ... 1, or None, got {self_conditioning}")
        self.self_conditioning = self_conditioning
        scales(form, np.ones(1))  # refuses a form that is none
        target(self.prediction, np.ones(1), form=form)

    def __repr__(self) -> str:
        parts = [f"form={self.form!r}"]
        for name, choice in (("times", self._times), ("weighting", self._weighting)):
            if choice is not None:
                parts.append(f"{name}={getattr(getattr(choice, 'func', choice), '__name__', 'given')}")
        if self.self_conditioning is not None:
            parts.append(f"self_conditioning={self.self_conditioning}")
        what = self.prediction if isinstance(self.prediction, str) else type(self.prediction).__name__
        return f"Objective({what!r}, {', '.join(parts)})"

    def weighted(self, weighting: str | Callable[[np.ndarray], np.ndarray] | None) -> Objective:
        """For judging: the same objective with another weighting, and no estimate shown where one could be."""
        made = copy.copy(self)
        made._weighting = None if weighting is None else _chosen("weighting", weighting, WEIGHTINGS)
        made.self_conditioning = None if self.self_conditioning is None else 0.0
        return made

    def levels(self, key: Any, n: int) -> np.ndarray:
        """n noise levels sigma / alpha to train at. (n,) float64."""
        return self._times(key, n)

    def weight(self, levels: Any) -> np.ndarray:
        """The weight on the loss of the prediction, (n,) float64: that of D times (dD / dprediction)^2."""
        s = checked_training_levels("Objective.weight", levels, self.form)
        if self._weighting is None:
            return np.ones_like(s)
        weight = np.asarray(self._weighting(s), np.float64)
        if weight.shape != s.shape:
            raise ValueError(f"Objective: weighting must return {len(s)} numbers, got shape {weight.shape}")
        return weight * target(self.prediction, s, form=self.form).gain ** 2

    def prepare(self, levels: Any, dtype: Any = "float32", key: Any = None) -> Prepared:
        """What `prepared_losses` needs of the levels (n,), worked out in float64. key: see `losses`; unused without
        self-conditioning."""
        s = checked_training_levels("Objective.losses", levels, self.form)
        goal = target(self.prediction, s, form=self.form)
        columns = [goal.in_x, goal.in_z, self.told(s), goal.b_x, goal.b_z, self.weight(s)]
        if self.self_conditioning:
            chosen = random.uniform(random.fold_in(key, SELF), len(s), "float64") < self.self_conditioning
            columns += [c * chosen for c in _of_denoised(goal)]
        return Prepared(*[np.asarray(c, np.float64).astype(dtype) for c in columns])

    def prepared_losses(
        self, network: Callable[..., Any], x: Any, labels: Any, prepared: Any, key: Any, *, noise: Any = None
    ) -> Any:
        """`losses` at prepared levels, in ops alone: what a recorded step calls. prepared: the arrays of `prepare`."""
        p = Prepared(*prepared)
        inputs = ops.q_sample(x, p.in_x, p.in_z, key) if noise is None else ops.add_noise(x, noise, p.in_x, p.in_z)
        said = self._predict(network, inputs, labels, p)
        if noise is None:
            return ops.denoising_loss(said, x, p.b_x, p.b_z, p.weight, key)
        square = ops.square(ops.sub(said, ops.add_noise(x, noise, p.b_x, p.b_z)))
        rest = tuple(range(1, len(x.shape)))
        return ops.mul(p.weight, ops.mean(square, axis=rest) if rest else square)

    def losses(
        self,
        network: Callable[..., Any],
        x: Any,
        labels: Any,
        levels: Any,
        key: Any,
        *,
        noise: Any = None,
    ) -> Any:
        """The weighted loss of every sample, (n,): weight mean((network(input, told, labels) - target)^2).

        x (n, ...): data; labels (n,) or None; levels (n,): sigma / alpha; key: 2 uint64, of the noise; noise: like x,
        to be used instead, as after `ot_pairing`.
        """
        prepared = Prepared(*[_device.beside(x, c) for c in self.prepare(levels, x.dtype, key)])
        if len(prepared.told) != x.shape[0]:
            raise ValueError(f"Objective.losses: x has {x.shape[0]} samples and there are {len(prepared.told)} levels")
        if noise is not None and tuple(noise.shape) != tuple(x.shape):
            raise ValueError(f"Objective.losses: noise must have x's shape {x.shape}, got {noise.shape}")
        return self.prepared_losses(network, x, labels, prepared, key, noise=noise)

    def loss(
        self,
        network: Callable[..., Any],
        x: Any,
        labels: Any,
        levels: Any,
        key: Any,
        *,
        noise: Any = None,
        sample_weight: Any = None,
    ) -> Any:
        """The mean of `losses`; of sample_weight times them, if given (n,), as by `ImportanceSampler`. A scalar."""
        each = self.losses(network, x, labels, levels, key, noise=noise)
        if sample_weight is not None:
            each = ops.mul(each, _device.beside(each, np.asarray(_device.from_device(sample_weight)).astype(x.dtype)))
        return ops.mean(each)

    def _predict(self, network: Callable[..., Any], inputs: Any, labels: Any, p: Prepared) -> Any:
        if self.self_conditioning is None:
            return network(inputs, p.told, labels)
        nothing = ops.affine(inputs, scale=0.0)
        if p.own_x is None:
            return network(inputs, p.told, labels, nothing)
        first = ops.stop_gradient(network(inputs, p.told, labels, nothing))
        return network(inputs, p.told, labels, ops.add_noise(inputs, first, p.own_x, p.own_p))

    def at(self, level: float) -> tuple[float, float, float, float]:
        """(in_x, told, a, gain) at one level: input = in_x (data + level noise), D = a input + gain prediction."""
        s = np.array([level])
        goal = target(self.prediction, s, form=self.form)
        a, gain = _of_denoised(goal)
        return float(goal.in_x[0]), float(self.told(s)[0]), float(a[0]), float(gain[0])

    def predictor(self, network: Callable[..., Any], labels: Any = None) -> Callable[[Any, float], Any]:
        """predict(x, sigma) for `sampling.sample(.., prediction=objective.prediction)`, with a plan of the same form.

        sigma is that of x = alpha data + sigma noise. With self-conditioning it carries the network's last estimate
        from call to call, as network(input, told, labels, estimate): make one for every run. Chen et al. (2023).
        """
        carried: list[Any] = []

        def predict(x: Any, sigma: float) -> Any:
            alpha = {"ve": 1.0, "vp": max(0.0, 1 - sigma * sigma) ** 0.5, "flow": 1 - sigma}[self.form]
            alpha = max(alpha, 1 / LARGEST)
            in_x, told, *own = self.at(sigma / alpha)
            inputs = ops.affine(x, scale=in_x / alpha)
            rows = _device.full(x, (x.shape[0],), told, x.dtype)
            if self.self_conditioning is None:
                return network(inputs, rows, labels)
            said = network(inputs, rows, labels, carried[0] if carried else _device.zeros_like(inputs))
            carried[:] = [ops.add_noise(inputs, said, *[_device.full(x, (x.shape[0],), c, x.dtype) for c in own])]
            return said

        return predict
