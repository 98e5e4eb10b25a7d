"""A recorded step as it runs: native kernels in a C++ loop, and in between whatever has no native kernel.

A plan holds no values but constants: state and inputs are addressed where they are, outputs are new at every run, and
everything else is in an arena, of which a second one is made if two threads run the plan at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ops import TABLE, _dispatch
from ..ops._spec import DTYPE_NUMBER
from .lower import Layout, Place
from .tape import Call, Spec

__all__ = ["Plan"]

BYTES = np.dtype(np.uint8)


def _empty(spec: Spec) -> np.ndarray:
    native = _dispatch.native_module() if _dispatch.backend() == "native" else None
    if native is None or spec.dtype not in DTYPE_NUMBER:
        return np.empty(spec.shape, spec.dtype)
    return native.empty(spec.shape, DTYPE_NUMBER[spec.dtype])


class Plan:
    """The calls of a step over planned memory.

    calls: how many are left; arena: bytes of planned memory; eager: bytes alive at once when the step ran without a
    plan; placed: gradients that are written straight into their flat buffer.
    """

    def __init__(self, layout: Layout, state: Sequence[Any], inputs: int, kept: list[int], eager: int) -> None:
        self.layout, self.state, self.kept = layout, list(state), kept
        self.calls, self.arena, self.eager, self.placed = len(layout.calls), layout.arena, eager, layout.placed
        starts = (len(self.state), inputs, len(layout.constants), len(layout.outputs))
        self._start = dict(zip(("state", "input", "constant", "output", "arena"), np.cumsum([0, *starts]).tolist(),
                               strict=True))  # fmt: skip
        self._items: list[Any] = []  # programs of kernels, and calls for Python
        self._checks: list[Call] = []
        for call in layout.calls:
            self._emit(call)
        self._arenas: list[Any] = [self._new_arena()]

    def _new_arena(self) -> Any:
        return _empty(Spec((max(1, self.layout.arena),), BYTES))

    # ---- what a plan on a device does otherwise ----

    @staticmethod
    def _kernel_of(row: Any, specs: Sequence[Any], attrs: dict[str, Any], every: bool) -> tuple | None:
        """(kernel number, outputs, attributes) of `Row.prepared`, or None where Python runs the op."""
        if not hasattr(row, "implementation") or row.implementation() != "native":
            return None
        return row.prepared(specs, attrs, every)

    @staticmethod
    def _new_program() -> Any:
        native: Any = _dispatch.native_module()
        return native.Program()

    # ---- making ----

    def _operand(self, slot: int | None, spec: Spec | None = None) -> tuple | None:
        if slot is None:
            return None
        place = self.layout.places[slot]
        shape, dtype = spec or self.layout.specs[slot]
        return self._start[place.kind] + place.number, place.offset, DTYPE_NUMBER[dtype], tuple(shape)

    def _emit(self, call: Call) -> None:
        row: Any = call.op
        if row.name == "pack_":
            for slot, offset in zip(call.ins[1:], call.attrs["offsets"], strict=True):
                self._copy(call.ins[0], offset, slot)  # type: ignore[arg-type]
            return
        if row.name == "stop_gradient":
            self._copy(call.outs[0], 0, call.ins[0])  # type: ignore[arg-type]
            return
        if getattr(row, "check", None) is not None and any(self._given(s) for s in call.ins):
            self._checks.append(call)
        specs = [None if s is None else self.layout.specs[s] for s in call.ins]
        every = any(s is not None for s in call.outs[row.n_public :])
        found = self._kernel_of(row, specs, call.attrs, every)
        if found is None:
            self._items.append(call)
            return
        kernel, wanted, values = found
        outs = [None if w is None else self._operand(s) for s, w in zip(call.outs, wanted, strict=True)]
        ins = [self._operand(s) for s in call.ins] + [None] * (row.n_arrays - len(call.ins))
        self._native(kernel, ins, outs, list(values))

    def _given(self, slot: int | None) -> bool:
        """Whether a slot is an input of whole numbers, which a kernel would take for indices."""
        return (
            slot is not None and self.layout.places[slot].kind == "input"
            and self.layout.specs[slot].dtype.kind == "i"
        )  # fmt: skip

    def _native(self, kernel: int, ins: list, outs: list, values: list) -> None:
        if not self._items or isinstance(self._items[-1], Call):
            self._items.append(self._new_program())
        self._items[-1].add(kernel, ins, outs, values)

    def _copy(self, flat: int, offset: int, slot: int) -> None:
        """Copy an array to the elements from `offset` of another, unless it is there already."""
        places, spec = self.layout.places, self.layout.specs[slot]
        there = places[flat]._replace(offset=places[flat].offset + offset * spec.dtype.itemsize)
        if places[slot] == there or not spec.nbytes:
            return
        line = Spec((spec.nbytes // spec.dtype.itemsize,), spec.dtype)
        row: Any = TABLE["assign_"]
        to = -1 - len(self.layout.specs)  # a name for this part of the buffer
        self.layout.places[to], self.layout.specs[to] = there, line
        from_ = to - 1
        self.layout.places[from_], self.layout.specs[from_] = places[slot], line
        found = self._kernel_of(row, [line, line], {}, True)
        if found is not None:
            self._native(found[0], [self._operand(to), self._operand(from_)], [], list(found[2]))
        else:
            self._items.append(Call(row, {}, (to, from_), ()))

    # ---- running ----

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One step. inputs: dense, of the recorded shapes and dtypes. Returns what the step returned, as new arrays."""
        layout = self.layout
        outputs = [_empty(spec) for spec in layout.outputs]
        try:
            arena = self._arenas.pop()
        except IndexError:  # another thread runs this plan
            arena = self._new_arena()
        buffers = [*self.state, *inputs, *layout.constants, *outputs, arena]
        for call in self._checks:
            call.op._check_values(  # type: ignore[attr-defined]
                *[None if s is None else self._view(s, buffers) if self._given(s) else layout.specs[s]
                  for s in call.ins], **call.attrs
            )  # fmt: skip
        for item in self._items:
            if isinstance(item, Call):
                self._call(item, buffers)
            else:
                item.run(buffers)
        found: list[np.ndarray] = []
        seen: set[Place] = set()
        for slot in self.kept:
            place = layout.places[slot]
            a = self._view(slot, buffers)
            whole = place.kind == "output" and place not in seen
            seen.add(place)
            found.append(outputs[place.number].reshape(a.shape) if whole and a.size == outputs[place.number].size
                         else a.copy())  # fmt: skip
        self._arenas.append(arena)
        return found

    def _view(self, slot: int, buffers: list[np.ndarray]) -> np.ndarray:
        place, spec = self.layout.places[slot], self.layout.specs[slot]
        return np.ndarray(spec.shape, spec.dtype, buffers[self._start[place.kind] + place.number], place.offset)

    def _call(self, call: Call, buffers: list[np.ndarray]) -> None:
        ins = [None if s is None else self._view(s, buffers) for s in call.ins]
        for slot, value in zip(call.outs, call.op.run_all(*ins, **call.attrs), strict=True):
            if slot is not None:
                self._view(slot, buffers)[...] = value
