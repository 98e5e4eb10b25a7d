"""From a tape to a plan: which calls are needed, and where every array lives.

In this order: views become aliases; what depends on frozen arrays only is worked out now; calls whose results nobody
reads are dropped; frozen filters are transformed; gradients are written where `pack_` would copy them; results that a
caller keeps get memory of their own; elementwise results go over an input that is not read again; the rest goes into
one arena (memory.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ops import TABLE, _device
from ..ops.winograd import filter_variant
from .memory import assign
from .tape import Call, Spec, Tape

__all__ = ["Layout", "Place", "lower"]

LARGEST_FILTERS = 64 << 20  # bytes of transformed filters a plan may hold; they take four times the memory
VIEWS = ("reshape", "part", "stop_gradient")


class Place(NamedTuple):
    """Where an array lives: kind "state", "input", "constant", "output" or "arena", which of them, offset in bytes."""

    kind: str
    number: int
    offset: int


class Layout(NamedTuple):
    """The calls that are left, the place of every slot they name, and what a plan must know besides."""

    calls: list[Call]
    places: dict[int, Place]
    specs: dict[int, Spec]
    constants: list[Any]
    outputs: list[Spec]  # buffers that are new at every run, by index
    arena: int  # bytes
    placed: int  # gradients written straight into their flat buffer


class _Lowering:
    def __init__(self, tape: Tape, leaves: dict[int, Place], kept: list[int]) -> None:
        self.tape, self.specs, self.kept = tape, dict(tape.specs), kept
        self.base: dict[int, tuple[Any, int]] = {}  # slot -> (Place of a leaf or slot of a result, offset in bytes)
        self.constants: list[Any] = []
        self.value_of: dict[int, Any] = {}  # constant slots
        for slot, place in leaves.items():
            self.base[slot] = (place, 0)
        for slot, array in tape.constants.items():
            self._make_constant(slot, array)
        self.changed = self._changed_in_place()
        self.calls: list[Call] = []
        for call in tape.calls:
            self._alias_or_fold(call)

    def _changed_in_place(self) -> set[Any]:
        """Leaves and results that some call changes, through whatever view."""
        root: dict[int, int] = {}
        for call in self.tape.calls:
            if call.op.name in VIEWS:
                root[call.outs[0]] = root.get(call.ins[0], call.ins[0])  # type: ignore[index, arg-type, assignment]
        changed = {
            (call.op.name, root.get(s, s))
            for call in self.tape.calls for i in call.op.effects if i < len(call.ins) and (s := call.ins[i]) is not None
        }  # fmt: skip
        for name, slot in changed:
            if slot in self.base and self.base[slot][0].kind != "state":
                raise ValueError(f"record: {name} changes an input or a frozen array; what is changed must be state")
        return {self.base[slot][0] if slot in self.base else slot for _, slot in changed}

    def _make_constant(self, slot: int, array: Any) -> None:
        self.base[slot] = (Place("constant", len(self.constants), 0), 0)
        self.constants.append(array if array.flags.c_contiguous else array.copy())
        self.value_of[slot] = self.constants[-1]

    def _alias_or_fold(self, call: Call) -> None:
        """Keep the call unless it is a view or its result is known already."""
        name, out = call.op.name, call.outs[0] if call.outs else None
        given = [s for s in call.ins if s is not None]
        if name == "full_like" and out is not None:
            shape, dtype = self.specs[out]
            self._make_constant(out, _device.full(self.tape.like, shape, call.attrs["value"], dtype))
        elif call.outs and not call.op.effects and all(s in self.value_of for s in given):
            arrays = [None if s is None else self.value_of[s] for s in call.ins]
            for slot, value in zip(call.outs, call.op.run_all(*arrays, **call.attrs), strict=True):
                if slot is not None:
                    self._make_constant(slot, value)
        elif name in VIEWS and out is not None and not self._must_copy(call):
            start = call.attrs.get("offset", 0) * self.specs[out].dtype.itemsize if name == "part" else 0
            target, offset = self.base[given[0]]
            self.base[out] = (target, offset + start)
        else:
            for slot in call.outs:
                if slot is not None:
                    self.base[slot] = (slot, 0)
            self.calls.append(call)

    def _must_copy(self, call: Call) -> bool:
        """stop_gradient of what may change before the copy is read."""
        return call.op.name == "stop_gradient" and self.base[call.ins[0]][0] in self.changed  # type: ignore[index]

    # ---- what is needed ----

    def drop_dead(self) -> None:
        live = {self.base[s][0] for s in self.kept}
        needed = []
        for call in reversed(self.calls):
            if call.op.effects or any(s is not None and s in live for s in call.outs):
                public = call.op.n_public
                if not any(s in live for s in call.outs[public:]):  # caches that no gradient reads
                    call = call._replace(outs=(*call.outs[:public], *[None] * len(call.outs[public:])))
                needed.append(call)
                live |= {self.base[s][0] for s in call.ins if s is not None}
        self.calls = needed[::-1]

    def prepare_filters(self) -> None:
        """Convolutions with frozen filters read them transformed already, as long as those are not too large."""
        if _device.is_device(self.tape.like):
            return  # the transformed layout is the CPU's
        budget = LARGEST_FILTERS
        for i, call in enumerate(self.calls):
            if call.op.name not in ("conv2d", "conv2d_act") or call.ins[1] not in self.value_of or any(call.outs[1:]):
                continue
            x, filter_, *rest = call.ins
            w = self.value_of[filter_]  # type: ignore[index]
            variant = filter_variant(self.specs[x].shape, w, **call.attrs)  # type: ignore[index]
            if variant is None or 4 * w.nbytes > budget:
                continue
            budget -= 4 * w.nbytes
            padding = call.attrs["padding"]
            self.tape.trace.size += 1
            u = self.tape.trace.size
            self._make_constant(u, TABLE["winograd_filter"].run(w, padding=padding, algorithm=variant))
            self.specs[u] = Spec(self.constants[-1].shape, self.constants[-1].dtype)
            attrs = {"o": w.shape[3], "padding": padding, "activation": call.attrs.get("activation", "identity")}
            self.calls[i] = Call(TABLE["winograd_conv2d"], attrs, (x, u, *rest), call.outs[:1])

    def spans(self) -> None:
        """First and last call that touches each result."""
        self.first: dict[Any, int] = {}
        self.last: dict[Any, int] = {}
        for i, call in enumerate(self.calls):
            for slot in (*call.ins, *call.outs):
                if slot is not None:
                    target = self.base[slot][0]
                    self.first.setdefault(target, i)
                    self.last[target] = i
        for slot in self.kept:
            self.last[self.base[slot][0]] = len(self.calls)

    # ---- where it goes ----

    def place(self) -> Layout:
        """Everything has a place afterwards."""
        self.drop_dead()
        self.prepare_filters()
        self.spans()
        homes: dict[int, Place] = {}  # results with a fixed place
        outputs = self._own_outputs(homes)
        placed = self._place_gradients(homes)
        shared = self._over_inputs(homes)
        arena = {}
        for call in self.calls:
            for slot in call.outs:
                if slot is not None and slot not in homes and slot not in shared:
                    arena[slot] = (self.first[slot], self.last[slot], self.specs[slot].nbytes)
        for slot, onto in shared.items():
            first, last, size = arena[onto]
            arena[onto] = (first, max(last, self.last[slot]), size)
        offsets, size = assign(arena)
        homes |= {slot: Place("arena", 0, at) for slot, at in offsets.items()}
        homes |= {slot: homes[onto] for slot, onto in shared.items()}
        places = {}
        for slot, (target, offset) in self.base.items():
            home = target if isinstance(target, Place) else homes.get(target)
            if home is not None:
                places[slot] = home._replace(offset=home.offset + offset)
        return Layout(self.calls, places, self.specs, self.constants, outputs, size, placed)

    def _own_outputs(self, homes: dict[int, Place]) -> list[Spec]:
        """Results that the caller keeps are written into memory that is new at every run."""
        made: list[Spec] = []
        for slot in self.kept:
            target, _ = self.base[slot]
            if not isinstance(target, Place) and target not in homes:
                homes[target] = Place("output", len(made), 0)
                made.append(self.specs[target])
        return made

    def _place_gradients(self, homes: dict[int, Place]) -> int:
        """Write what `pack_` gathers straight into the flat buffer where nobody can tell the difference."""
        born = {s: i for i, call in enumerate(self.calls) for s in call.outs if s is not None}
        touched: dict[Any, list[int]] = {}
        for i, call in enumerate(self.calls):
            for s in (*call.ins, *call.outs):
                if s is not None:
                    touched.setdefault(self.base[s][0], []).append(i)
        placed = 0
        for i, call in enumerate(self.calls):
            if call.op.name != "pack_":
                continue
            flat, start = self.base[call.ins[0]]  # type: ignore[index]
            parts: Any = call.ins[1:]
            for slot, offset in zip(parts, call.attrs["offsets"], strict=True):
                target, inner = self.base[slot]
                spec = self.specs[slot]
                fits = (
                    isinstance(flat, Place) and not isinstance(target, Place) and target not in homes
                    and inner == 0 and self.specs[target].nbytes == spec.nbytes
                    and self.last[target] == i and not any(born[target] <= j < i for j in touched.get(flat, ()))
                )  # fmt: skip
                if fits:
                    homes[target] = flat._replace(offset=flat.offset + start + offset * spec.dtype.itemsize)
                    placed += 1
        return placed

    def _over_inputs(self, homes: dict[int, Place]) -> dict[int, int]:
        """slot of an elementwise result -> slot of the result it is written over."""
        shared: dict[int, int] = {}
        root: Any = lambda s: shared.get(s, s)
        ends = dict(self.last)
        for i, call in enumerate(self.calls):
            row: Any = call.op
            if not getattr(row, "elementwise", False) or len(call.outs) != 1:
                continue
            (out,) = call.outs
            if out is None or out in homes:
                continue
            spec = self.specs[out]
            given = [s for s in call.ins if s is not None]
            for slot in given:
                target, offset = self.base[slot]
                if isinstance(target, Place) or target in homes or offset or self.specs[slot] != spec:
                    continue
                home = root(target)
                same = any(
                    not isinstance(self.base[s][0], Place) and root(self.base[s][0]) == home
                    and self.specs[s].shape != spec.shape for s in given
                )  # fmt: skip
                if ends[home] == i and self.specs[home].nbytes == spec.nbytes and not same:
                    shared[out] = home
                    ends[home] = self.last[out]
                    break
        return shared


def lower(tape: Tape, leaves: dict[int, Place], kept: list[int]) -> Layout:
    """leaves: slots of state and inputs; kept: slots of what the step returns."""
    return _Lowering(tape, leaves, kept).place()

