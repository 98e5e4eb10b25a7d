"""A recorded step on a GPU: its kernels captured once as a CUDA graph, which one call replays.

A graph has fixed addresses, so inputs are copied into buffers of the plan and outputs out of them; both are small
beside a step. What has no kernel of its own runs from Python between two graphs. A place (arena, buffers, graphs)
belongs to one run at a time: a second thread gets a second one, and a run on another stream waits for the last by an
event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..ops import _device
from .plan import BYTES, Plan
from .tape import Call, Spec

__all__ = ["DevicePlan"]

ALIGNMENT = 256  # bytes: where arrays begin in a buffer
SMALL = 1 << 18  # bytes: buffers up to this are copied whole


class _Packed:
    """Arrays of these shapes in one buffer, so that one copy moves all of them where they are small."""

    def __init__(self, plan: DevicePlan, specs: Sequence[Spec]) -> None:
        ends = np.cumsum([0, *(-(-s.nbytes // ALIGNMENT) * ALIGNMENT for s in specs)]).tolist()
        self.specs, self.starts = specs, ends[:-1]
        self.whole = plan._empty(Spec((max(1, ends[-1]),), BYTES))
        self.parts, self.small = self.views(self.whole), ends[-1] <= SMALL
        self.host = np.zeros(len(self.whole) if self.small else 0, BYTES)
        self.on_host = self.views(self.host) if self.small else []

    def views(self, whole: Any) -> list[Any]:
        """The arrays in a buffer like `whole`."""
        places = zip(self.starts, self.specs, strict=True)
        return [whole[start : start + s.nbytes].view(s.dtype).reshape(s.shape) for start, s in places]

    def fill(self, given: Sequence[Any]) -> None:
        """Copy these arrays in, from the host or the GPU."""
        if self.small and len(given) > 1 and all(isinstance(a, np.ndarray) for a in given):
            for part, a in zip(self.on_host, given, strict=True):
                part[...] = a
            self.whole.set(self.host)
            return
        for part, a in zip(self.parts, given, strict=True):
            if isinstance(a, np.ndarray):
                part.set(a)
            else:
                part[...] = a


class _Place(NamedTuple):
    """Where one run works."""

    inputs: _Packed
    outputs: _Packed
    buffers: list[Any]  # state, inputs, constants, outputs, arena
    graphs: list[Any]  # one per item of the plan, None where Python runs it
    scratch: list[Any]
    event: Any
    stream: list[int]  # of the last run


class DevicePlan(Plan):
    """See Plan; state and inputs are CuPy arrays, inputs may also be NumPy arrays."""

    def __init__(self, layout: Any, state: Sequence[Any], inputs: list[Any], kept: list[int], eager: int) -> None:
        self._cupy = _device.cupy("record")
        self._inputs = [Spec(tuple(a.shape), a.dtype) for a in inputs]
        super().__init__(layout, state, len(inputs), kept, eager)

    def _empty(self, spec: Spec) -> Any:
        return _device.empty(self._cupy, "record", spec.shape, spec.dtype)

    def _new_arena(self) -> Any:
        inputs, outputs = _Packed(self, self._inputs), _Packed(self, self.layout.outputs)
        arena = self._empty(Spec((max(1, self.layout.arena),), BYTES))
        buffers = [*self.state, *inputs.parts, *self.layout.constants, *outputs.parts, arena]
        addresses = [_device.address(a) for a in buffers]
        graphs: list[Any] = []
        scratch: list[Any] = []
        for item in self._items:
            if isinstance(item, Call):
                graphs.append(None)
                continue
            scratch.append(self._empty(Spec((max(1, item.scratch()),), BYTES)))
            graphs.append(item.capture(addresses, _device.address(scratch[-1])))
        return _Place(inputs, outputs, buffers, graphs, scratch, self._cupy.cuda.Event(disable_timing=True), [])

    @staticmethod
    def _kernel_of(row: Any, specs: Sequence[Any], attrs: dict[str, Any], every: bool) -> tuple | None:
        if not hasattr(row, "implementation") or not row.has_kernel or _device.by_library(row, specs, attrs):
            return None
        return row.prepared(specs, attrs, every, _device.kernels)

    @staticmethod
    def _new_program() -> Any:
        return _device.program()

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """One step. inputs: dense, of the recorded shapes and dtypes. Returns what the step returned, as new arrays."""
        stream = self._cupy.cuda.get_current_stream()
        self._check_indices(inputs)
        try:
            place = self._arenas.pop()
        except IndexError:  # another thread runs this plan
            place = self._new_arena()
        if place.stream and place.stream[0] != stream.ptr:
            stream.wait_event(place.event)
        place.inputs.fill(inputs)
        for item, graph in zip(self._items, place.graphs, strict=True):
            if graph is None:
                self._call(item, place.buffers)
            else:
                graph.replay(stream.ptr)
        found = self._results(place)
        place.event.record(stream)
        place.stream[:] = [stream.ptr]
        self._arenas.append(place)
        return found

    def _results(self, place: _Place) -> list[Any]:
        """Copies of what the step returned: small ones in one, of which they are parts."""
        if len(self.kept) == 1 or not place.outputs.small:
            return [self._view(slot, place.buffers).copy() for slot in self.kept]
        fresh, first = list(place.buffers), self._start["output"]
        fresh[first : first + len(place.outputs.parts)] = place.outputs.views(place.outputs.whole.copy())
        found: list[Any] = []
        seen = set()
        for slot in self.kept:
            kind, number, _ = self.layout.places[slot]
            a = self._view(slot, fresh)
            found.append(a if kind == "output" and number not in seen else a.copy())
            if kind == "output":
                seen.add(number)
        return found

    def _check_indices(self, inputs: Sequence[Any]) -> None:
        """Indices that come from the host are looked at; kernels touch no memory for wrong ones on the device."""
        places, specs = self.layout.places, self.layout.specs
        for call in self._checks:
            given = [None if s is None else inputs[places[s].number] if self._given(s) else specs[s] for s in call.ins]
            if all(a is None or isinstance(a, (np.ndarray, Spec)) for a in given):
                call.op._check_values(*given, **call.attrs)  # type: ignore[attr-defined]

    def _view(self, slot: int, buffers: list[Any]) -> Any:
        place, spec = self.layout.places[slot], self.layout.specs[slot]
        whole = buffers[self._start[place.kind] + place.number].reshape(-1).view(BYTES)
        return whole[place.offset : place.offset + spec.nbytes].view(spec.dtype).reshape(spec.shape)
