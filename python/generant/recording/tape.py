"""What a recorded step did: the op calls in order, with shapes in place of values.

Arrays of the declared state, of the inputs and of what is frozen are leaves; every other array is the result of a call.
A call that reads an array which is none of these is refused: on replay nobody would know whether it still holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..autograd import Op, Trace, Var
from ..ops import _device, _dispatch

__all__ = ["Call", "Spec", "Tape", "leaves", "map_arrays"]


class Spec(NamedTuple):
    """Shape and dtype of an array that is not kept."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Call(NamedTuple):
    """An op call: slots of its arrays; None where an array is absent or not wanted."""

    op: Op
    attrs: dict[str, Any]
    ins: tuple[int | None, ...]
    outs: tuple[int | None, ...]


def map_arrays(f: Callable[[Any], Any], tree: Any) -> Any:
    """tree (dicts, lists and tuples of arrays) with f(a) for every array; everything else stays."""
    if isinstance(tree, dict):
        return {name: map_arrays(f, part) for name, part in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([map_arrays(f, part) for part in tree])
    return f(tree) if isinstance(tree, Var) or _device.is_array(tree) else tree


def leaves(tree: Any) -> list[Any]:
    """The arrays of a tree in order, each once."""
    found: dict[int, Any] = {}
    map_arrays(lambda a: found.setdefault(id(a), a), tree)
    return list(found.values())


class Tape:
    """Records one run of step(state, *inputs). like: an array that lives where the others do."""

    def __init__(self, frozen: list[Any], like: Any = None) -> None:
        self.like = like
        self.calls: list[Call] = []
        self.specs: dict[int, Spec] = {}
        self.constants: dict[int, Any] = {}  # slot -> array
        self._slot_of: dict[int, int] = {}  # id of a constant -> its slot
        self._frozen = [_bounds(a) for a in frozen]
        self._live = self.peak = 0
        self.trace = Trace(self._note)

    def box(self, array: Any) -> Var:
        """The traced array of a leaf."""
        var: Any = self.trace.box(array)
        self.specs[var.slot] = Spec(array.shape, array.dtype)
        return var

    def box_constant(self, array: Any) -> Var:
        """The traced array of a leaf that never changes."""
        var = self.box(array)
        self.constants[var.slot] = array
        self._slot_of[id(array)] = var.slot
        return var

    def _note(self, op: Op, attrs: dict, slots: list, inner: list, outs: tuple) -> None:
        number = _dispatch.float_type_of(inner)
        ins = []
        for i, (slot, a) in enumerate(zip(slots, inner, strict=True)):
            if slot is None and a is not None:
                slot = self._constant(op, i, a, number)
            ins.append(slot)
        for var in outs:
            if var is not None:
                self.specs[var.slot] = Spec(tuple(var.value.shape), var.value.dtype)
                self._watch(var.value)
        attrs = {k: _plain(v) for k, v in attrs.items()}
        self.calls.append(Call(op, attrs, tuple(ins), tuple([None if o is None else o.slot for o in outs])))

    def _constant(self, op: Op, i: int, a: Any, number: Any) -> int:
        """The slot of an array or number that is not traced: frozen, or refused."""
        if isinstance(a, (int, float, np.generic)):
            a = _device.full(self.like, (), a, number or np.float64)
        elif id(a) in self._slot_of:
            return self._slot_of[id(a)]
        elif not self._is_frozen(a):
            raise ValueError(
                f"record: {op.name} reads an array of shape {tuple(a.shape)} (its argument {i}) that is neither state "
                "nor input nor frozen, nor made from them by ops; pass it in, or declare it frozen"
            )
        self.trace.size += 1
        slot = self.trace.size
        self.constants[slot], self._slot_of[id(a)] = a, slot
        self.specs[slot] = Spec(a.shape, a.dtype)
        return slot

    def _is_frozen(self, a: Any) -> bool:
        if not _device.is_array(a) or not a.flags.c_contiguous:
            return False
        low, high = _bounds(a)
        return any(first <= low and high <= last for first, last in self._frozen)

    def _watch(self, value: Any) -> None:
        """Count the bytes that are alive at once while the step runs: what an eager step needs."""
        if value.base is not None and _device.is_array(value.base):
            return  # a view
        size = value.nbytes
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(value, self._gone, size).atexit = False

    def _gone(self, size: int) -> None:
        self._live -= size


def _bounds(a: Any) -> tuple[int, int]:
    """First and last address of a dense array."""
    first = _device.address(a)
    return first, first + a.nbytes


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value.item() if isinstance(value, np.generic) else value
