"""A network and what trains it: packed parameters, their gradient, an optimiser and an average, as one state.

`state` is a nested dict of all arrays that a training step reads or changes. A step is a function of (state, inputs):
`network(state)` is the network that reads its parameters from there, `update(state, gradients)` changes them. Called
with the learner's own state a step runs at once; `generant.record` calls it with a traced one.

Not here: which loss, which batches, how long.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from .. import ops, optim
from ..ops import _device
from .module import load_state, look_alike, move, named_buffers, named_parameters, pack, state

__all__ = ["Learner"]


class Learner:
    """network with an optimiser: a function of the flat parameters, `lambda p: optim.Adam(p, lr=1e-3)` say.

    clip: the norm to which gradients are cut. ema: a function of the flat parameters that returns an `optim.EMA`, or
    None. A gradient that is not finite changes nothing. device: "cuda" or "cpu", where the network's arrays are moved
    to and all others are; where the network is, if None.
    """

    def __init__(
        self,
        network: Any,
        optimiser: Callable[[Any], Any],
        *,
        clip: float = math.inf,
        ema: Callable[[Any], optim.EMA] | None = None,
        device: str | None = None,
    ) -> None:
        if not clip > 0:
            raise ValueError(f"Learner: clip must be positive, got {clip}")
        if not callable(optimiser):
            raise TypeError(f"Learner: optimiser must be a function of the flat parameters, got {optimiser!r}")
        if device is not None:
            move(network, _device.checked_device("Learner", device))
        self.module, self.clip = network, clip
        self.packed = pack(network)
        self.gradient = self.packed.zeros()
        self.optimiser = optimiser(self.packed.data)
        self.ema = None if ema is None else ema(self.packed.data)
        self._parameters = list(named_parameters(network).values())
        self._buffers = named_buffers(network)

    @property
    def state(self) -> dict[str, Any]:
        """params, gradient, buffers, optimiser and ema: arrays, nested."""
        found = {"params": self.packed.data, "gradient": self.gradient, "buffers": dict(self._buffers)}
        found["optimiser"] = dict(self.optimiser.state)
        if self.ema is not None:
            found["ema"] = dict(self.ema.state)
        return found

    def network(self, state: dict[str, Any], *, averaged: bool = False) -> Any:
        """The network whose parameters are those of `state` (of its average, if asked for and kept)."""
        flat = state["ema"]["average"] if averaged and self.ema is not None else state["params"]
        places = zip(self._parameters, self.packed.offsets, self.packed.shapes, strict=True)
        new = {id(p): ops.part(flat, shape=tuple(shape), offset=offset) for p, offset, shape in places}
        new |= {id(a): state["buffers"][path] for path, a in self._buffers.items()}
        return look_alike(self.module, new)

    def update(self, state: dict[str, Any], gradients: Any) -> tuple[Any, Any]:
        """One step of the optimiser and of the average. Returns (ok, norm): (1,) uint8 and (1,) float64.

        gradients: in the order of `named_parameters`. ok: whether their norm, before clipping, is finite.
        """
        gradient, wanted = state["gradient"], [tuple(s) for s in self.packed.shapes]
        if [tuple(g.shape) for g in gradients] != wanted:
            raise ValueError(
                f"Learner.update: gradients must be one per parameter, of shapes {wanted}, got "
                f"{[tuple(g.shape) for g in gradients]}"
            )
        ops.pack_(gradient, *gradients, offsets=tuple(self.packed.offsets))
        ok, norm = ops.clip_norm_(gradient, limit=self.clip)
        self.optimiser.step(gradient, ok, at={**state["optimiser"], "params": state["params"]})
        if self.ema is not None:
            self.ema.apply(ok, at={**state["ema"], "params": state["params"]})
        return ok, norm

    def prepare(self, lr: float | None = None) -> None:
        """What a step finds in the state and does not work out itself: the learning rate, the average's decay."""
        if lr is not None:
            self.optimiser.lr[0] = lr
        if self.ema is not None:
            self.ema.prepare()

    def finish(self) -> Any:
        """The trained network, with its averaged parameters if there is an average: a module of its own arrays, there
        where the learner's are."""
        flat = self.packed.data if self.ema is None else self.ema.average
        made = copy.deepcopy(self.module)
        for own, view in zip(named_parameters(made).values(), self.packed.views(flat), strict=True):
            own[...] = view
        return made

    def load_network(self, trained: Any) -> None:
        """Take over the parameters and buffers of a network of the same structure."""
        load_state(self.module, state(trained))
        if self.ema is not None:
            self.ema.average[...] = self.packed.data

    def reread(self) -> None:
        """To be called after the arrays of `state` were changed from outside."""
        if self.ema is not None:
            self.ema.reread()
