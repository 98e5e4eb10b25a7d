"""`record`: a training step, or one call of a denoiser, recorded once per shape and replayed over planned memory.

The recorded function stays an ordinary function of (state, inputs): it is called with traced arrays once and never
again, so whatever it does besides ops is done once. Numbers that change from call to call are arrays; a Python number
is part of the plan's key. Not here: loops whose length depends on data.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import Trace, Var
from ..ops import _device, _dispatch
from .device_plan import DevicePlan
from .lower import Place, lower
from .plan import Plan
from .tape import Tape, leaves, map_arrays

__all__ = ["Recorded", "record"]


def record(step: Callable[..., Any], state: Any, *, frozen: Any = (), check: int = 1, plans: int = 8) -> Recorded:
    """step(state, *inputs) as a function of the inputs that records itself at the first call of every shape.

    state: dicts, lists or tuples of arrays that the step reads or changes in place. inputs: arrays, or None, whole
    numbers, strings and truth values, which choose a plan. The step returns an array, or a tuple or dict of arrays.
    frozen: arrays, of the state or read by the step without being handed to it, that never change and are made
    read-only; what depends on those of the state alone is worked out once.
    check: so many replays are compared with the step itself, bit by bit, on copies of the state. plans: how many are
    kept, the least recently used one is forgotten. Called on traced arrays, the step itself runs.
    Raises ValueError where the step reads an array that is none of these, RuntimeError where a replay differs.
    """
    return Recorded(step, state, frozen=frozen, check=check, plans=plans)


class Recorded:
    """See `record`. print() shows its plans: calls, planned memory, and what the step needed without a plan."""

    def __init__(
        self, step: Callable[..., Any], state: Any, *, frozen: Any = (), check: int = 1, plans: int = 8
    ) -> None:
        if not callable(step):
            raise TypeError(f"record: step must be a function of (state, *inputs), got {type(step).__name__}")
        if plans < 1 or check < 0:
            raise ValueError(f"record: plans must be at least 1 and check at least 0, got {plans} and {check}")
        self.step, self.state, self.check, self.limit = step, state, check, plans
        self._frozen = leaves([frozen])
        fixed = {id(a) for a in self._frozen}
        self._state = [a for a in leaves(state) if id(a) not in fixed]
        for a in self._state:
            if not (a.flags.carray if isinstance(a, np.ndarray) else a.flags.c_contiguous):
                raise ValueError("record: state must be contiguous, writeable NumPy arrays or CuPy arrays")
        everything = [*self._state, *self._frozen]
        self.on_device = bool(everything) and _device.is_device(everything[0])
        if any(_device.is_device(a) != self.on_device for a in everything):
            raise ValueError("record: state and frozen arrays must all be on the host or all on a GPU")
        ordered = sorted(self._state, key=_device.address)
        for a, b in itertools.pairwise(ordered):
            if _device.address(a) + a.nbytes > _device.address(b) and b.nbytes:
                raise ValueError("record: two arrays of the state overlap; declare the buffer and take ops.part of it")
        for a in self._frozen:
            if isinstance(a, np.ndarray):
                a.flags.writeable = False
        self.plans: OrderedDict[tuple, tuple[Plan, Any]] = OrderedDict()
        self._left: dict[tuple, int] = {}  # comparisons still to be made

    def __call__(self, *inputs: Any) -> Any:
        if any(isinstance(a, Var) for a in inputs):
            return self.step(self.state, *inputs)
        everything = [*self._state, *self._frozen]
        if not everything:  # the inputs say where
            everything = [a for a in inputs if _device.is_device(a)]
            self.on_device = bool(everything)
        if not self.on_device:
            return self._run(inputs)
        with _device.gpu_of(everything[0]):
            return self._run(inputs)

    def _run(self, inputs: tuple) -> Any:
        inputs = tuple([self._input(a) for a in inputs])
        key = ((bool, self.on_device),
               *[(a.shape, a.dtype.num) if _device.is_array(a) else (type(a), a) for a in inputs])  # fmt: skip
        arrays = [a for a in inputs if _device.is_array(a)]
        if key not in self.plans:
            return self._record(key, inputs)
        self.plans.move_to_end(key)
        plan, build = self.plans[key]
        if self._left.get(key, 0) > 0:
            self._left[key] -= 1
            return build(self._compared(plan, inputs, arrays))
        return build(plan.run(arrays))

    def _input(self, a: Any) -> Any:
        if a is None or isinstance(a, (bool, int, str)):
            return a
        if isinstance(a, float):
            raise TypeError("record: a float input would be part of the plan; pass numpy.array(x, dtype) instead")
        if isinstance(a, np.ndarray) and a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative:
            return a
        if _device.is_device(a):
            if not self.on_device:
                raise TypeError("record: an input is on a GPU, but the state is on the host")
            return _device.dense(a)
        return _dispatch.as_dense("record", "an input", a, None, False)

    # ---- the first call ----

    def _record(self, key: tuple, inputs: tuple) -> Any:
        inputs = tuple([_device.to_device(a) if self.on_device and isinstance(a, np.ndarray) else a for a in inputs])
        arrays = [a for a in inputs if _device.is_array(a)]
        tape = Tape(self._frozen, next(iter([*self._state, *self._frozen, *arrays]), None))
        boxes = {id(a): tape.box(a) for a in self._state}
        for a in self._frozen:
            boxes[id(a)] = tape.box_constant(a)
        places = {boxes[id(a)].slot: Place("state", i, 0) for i, a in enumerate(self._state)}
        given = [tape.box(a) if _device.is_array(a) else a for a in inputs]
        for i, var in enumerate([a for a in given if isinstance(a, Var)]):
            places[var.slot] = Place("input", i, 0)
        try:
            result = self.step(map_arrays(lambda a: boxes[id(a)], self.state), *given)
        finally:
            tape.trace.closed = True
        kept: list[int] = []

        def keep(a: Any) -> Result:
            if not isinstance(a, Var) or a.trace is not tape.trace:
                raise ValueError("record: the step returns an array that its ops did not make from state and inputs")
            kept.append(a.slot)
            return Result(len(kept) - 1)

        template = map_arrays(keep, result)
        values = [a.value.copy() for a in leaves_of(result)]
        layout = lower(tape, places, kept)
        if _device.is_device(tape.like):
            plan: Plan = DevicePlan(layout, self._state, arrays, kept, tape.peak)
        else:
            plan = Plan(layout, self._state, len(arrays), kept, tape.peak)

        def build(found: list[Any]) -> Any:
            return _built(template, found)

        if len(self.plans) >= self.limit:
            self._left.pop(self.plans.popitem(last=False)[0], None)
        self.plans[key], self._left[key] = (plan, build), self.check
        return build(values)

    # ---- trust, but verify ----

    def _compared(self, plan: Plan, inputs: tuple, arrays: list[Any]) -> list[Any]:
        """A replay, with an error if the step itself, on copies, gives other bits."""
        trace = Trace(note=lambda *call: None)  # operators mean ops to traced arrays, as they did when it was recorded
        copies = {id(a): a.copy() for a in self._state}
        boxes: dict[int, Any] = {}
        if self.on_device:
            inputs = map_arrays(_device.to_device, inputs)

        def box(a: Any) -> Any:
            return boxes.setdefault(id(a), trace.box(copies.get(id(a), a)))

        result = self.step(map_arrays(box, self.state), *map_arrays(box, inputs))
        trace.closed = True
        expected = [a.value for a in leaves_of(result)]
        found = plan.run(arrays)
        wrong = [f"result {i}" for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not _same(a, b)]
        wrong += [
            f"state {i} of shape {a.shape}" for i, a in enumerate(self._state) if not _same(a, copies[id(a)])
        ]
        if wrong:
            raise RuntimeError(
                f"record: the replay differs from the step in {', '.join(wrong[:5])}; the step does something besides "
                "ops of its state and inputs: a number that changes must come in as an array"
            )
        return found

    def __repr__(self) -> str:
        lines = [f"Recorded({getattr(self.step, '__name__', 'step')}): {len(self.plans)} plan(s)"]
        for key, (plan, _) in self.plans.items():
            shapes = ", ".join("x".join(map(str, k[0])) or "scalar" for k in key if isinstance(k[0], tuple))
            lines.append(
                f"  inputs {shapes}: {plan.calls} calls, planned memory {plan.arena / 1e6:.3f} MB, without a plan "
                f"{plan.eager / 1e6:.3f} MB, {plan.placed} gradients written in place"
            )
        return "\n".join(lines)


class Result(int):
    """Which array of a replay stands here."""


def leaves_of(result: Any) -> list[Any]:
    """The arrays of a result in order, repeated ones too."""
    found: list[Any] = []
    map_arrays(found.append, result)
    return found


def _built(template: Any, found: list[Any]) -> Any:
    if isinstance(template, dict):
        return {name: _built(part, found) for name, part in template.items()}
    if isinstance(template, (list, tuple)):
        return type(template)([_built(part, found) for part in template])
    return found[template] if isinstance(template, Result) else template


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(_device.from_device(a)), np.asarray(_device.from_device(b))
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
