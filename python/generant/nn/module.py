"""Models as plain objects: attributes that are arrays are the parameters, attributes that are modules are the parts.

Nothing is registered. A model is flattened by looking at it: arrays are told apart by identity, so a tied weight is one
leaf however often it occurs, and lists, tuples and dicts are looked into. `value_and_grad` calls the loss on a
look-alike whose arrays are traced; it is read-only, because what is assigned to it would vanish with it.

`pack` moves all parameters into one buffer and leaves views of it in the model, so that a gradient clip, an optimiser
step, an average or a copy of all weights is one call on one array.

Not here: training loops, modes (train and eval behave alike), and hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import autograd
from ..ops import _device

__all__ = [
    "Buffer", "Module", "Packed", "load_state", "look_alike", "move", "named_buffers", "named_parameters", "pack",
    "state", "to_device", "to_host", "value_and_grad",
]  # fmt: skip

ALIGNMENT = 16  # elements: parameters begin on cache lines


class Buffer:
    """An array that belongs to a model and is saved with it, but is not trained: frequencies, running statistics.

    `value` is the array.
    """

    def __init__(self, value: Any) -> None:
        self.value: Any = value if _device.is_device(value) else np.asarray(value)

    @classmethod
    def of(cls, value: Any) -> Buffer:
        """A Buffer of this very array, or of one that is traced."""
        made = object.__new__(cls)
        made.value = value
        return made

    def __repr__(self) -> str:
        return f"Buffer(shape={self.value.shape}, dtype={self.value.dtype})"


class Module:
    """Subclass it, assign arrays and modules as attributes, define __call__."""

    _traced = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._traced:
            raise TypeError(
                f"{type(self).__name__}.{name} was assigned inside value_and_grad: the traced copy is read-only. "
                "Return new state from the loss and assign it outside"
            )
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        n = sum(p.size for p in named_parameters(self).values())
        return f"{type(self).__name__}({n} parameters)"


def _is_array(o: Any) -> bool:
    return hasattr(o, "shape") and hasattr(o, "dtype") and not isinstance(o, np.generic)


def _parts(o: Any) -> Iterator[tuple[Any, Any]] | None:
    """(key, part) of a container, or None if o is not one."""
    if isinstance(o, Module):
        return iter(list(vars(o).items()))
    if isinstance(o, Mapping):
        return iter(list(o.items()))
    if isinstance(o, (list, tuple)):
        return iter(list(enumerate(o)))
    return None


def _walk(model: Any) -> Iterator[tuple[str, Any]]:
    """(path, array or Buffer), depth first in attribute order; every occurrence, also of tied weights."""
    open_: list[int] = []

    def visit(o: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(o, Buffer) or _is_array(o):
            yield path, o
            return
        parts = _parts(o)
        if parts is None:
            return
        if id(o) in open_:
            raise ValueError(f"{path or type(o).__name__} contains itself: a model must be a tree of modules")
        open_.append(id(o))
        for key, part in parts:
            yield from visit(part, f"{path}.{key}" if path else str(key))
        open_.pop()

    yield from visit(model, "")


def named_parameters(model: Any) -> dict[str, Any]:
    """Path -> array of every parameter, in attribute order; a tied weight once, under its first path."""
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, o in _walk(model):
        if isinstance(o, Buffer) or id(o) in seen:
            continue
        if o.dtype not in (np.float32, np.float64):
            raise TypeError(f"{path} is an array of {o.dtype}, parameters are float32 or float64: wrap it in nn.Buffer")
        seen.add(id(o))
        found[path] = o
    return found


def named_buffers(model: Any) -> dict[str, Any]:
    """Path -> array of every Buffer, in attribute order."""
    return {path: o.value for path, o in _walk(model) if isinstance(o, Buffer)}


def look_alike(o: Any, new: dict[int, Any]) -> Any:
    """A read-only copy of the structure o in which the array with id i, a Buffer's too, is new[i]."""
    if isinstance(o, Buffer):
        return Buffer.of(new[id(o.value)]) if id(o.value) in new else o
    if _is_array(o):
        return new.get(id(o), o)
    if isinstance(o, Module):
        made = object.__new__(type(o))
        made.__dict__.update({key: look_alike(part, new) for key, part in vars(o).items()}, _traced=True)
        return made
    if isinstance(o, Mapping):
        return MappingProxyType({key: look_alike(part, new) for key, part in o.items()})
    if isinstance(o, (list, tuple)):
        return tuple([look_alike(part, new) for part in o])
    return o


def value_and_grad(loss: Callable[..., Any]) -> Callable[..., tuple[Any, list]]:
    """loss(model, *rest) -> scalar, or a tuple whose first entry is one.

    value_and_grad(loss)(model, *rest) returns what loss returned and the gradient of its scalar in every parameter, in
    the order of `named_parameters`.
    """

    def run(model: Any, *rest: Any) -> tuple[Any, list]:
        leaves = list(named_parameters(model).values())
        names = [id(leaf) for leaf in leaves]

        def of_leaves(traced: list, *rest: Any) -> Any:
            return loss(look_alike(model, dict(zip(names, traced, strict=True))), *rest)

        return autograd.value_and_grad(of_leaves)(leaves, *rest)

    return run


def _replace(o: Any, new: dict[int, Any]) -> Any:
    """o with every array of id i replaced by new[i]: modules, Buffers, lists and dicts in place, tuples anew."""
    if _is_array(o):
        return new.get(id(o), o)
    if isinstance(o, Buffer):
        o.value = new.get(id(o.value), o.value)
    if isinstance(o, Module):
        for key, part in list(vars(o).items()):
            o.__dict__[key] = _replace(part, new)
    elif isinstance(o, list):
        o[:] = [_replace(part, new) for part in o]
    elif isinstance(o, dict):
        for key, part in list(o.items()):
            o[key] = _replace(part, new)
    elif isinstance(o, tuple):
        return tuple([_replace(part, new) for part in o])
    return o


def _arrays(model: Any) -> list[Any]:
    """Every array of a model, Buffers' too."""
    return [o.value if isinstance(o, Buffer) else o for _, o in _walk(model)]


def to_device(model: Any) -> Any:
    """A copy of a model whose arrays are on the GPU, as CuPy arrays: called on CuPy arrays it runs there.

    A tied weight stays one array. RuntimeError or ImportError where there is no GPU or no CuPy.
    """
    return copy.deepcopy(model, {id(a): _device.to_device(a) for a in _arrays(model) if not _device.is_device(a)})


def to_host(model: Any) -> Any:
    """A copy of a model whose arrays are NumPy's: the way back from `to_device`."""
    return copy.deepcopy(model, {id(a): _device.from_device(a) for a in _arrays(model) if _device.is_device(a)})


def move(model: Any, device: str) -> None:
    """Put the model's arrays where device says, "cuda" or "cpu", in place."""
    there = device == "cuda"
    to = _device.to_device if there else _device.from_device
    _replace(model, {id(a): to(a) for a in _arrays(model) if _device.is_device(a) != there})


class Packed:
    """One buffer `data` (n,) with all parameters of a model, each at a cache line; the gaps stay zero.

    on_device: whether buffers are CuPy's.
    """

    def __init__(self, shapes: list[tuple[int, ...]], dtype: Any, on_device: bool = False) -> None:
        self.shapes, self.on_device = shapes, on_device
        self.offsets: list[int] = []
        n = 0
        for shape in shapes:
            self.offsets.append(n)
            size = int(np.prod(shape, dtype=np.int64))
            n += -(-size // ALIGNMENT) * ALIGNMENT
        self.data = self._zeroed(n, dtype)

    def _zeroed(self, n: int, dtype: Any) -> Any:
        """A zeroed (n,) buffer that begins on a cache line."""
        if self.on_device:
            return _device.cupy("pack").zeros(n, dtype)
        size = np.dtype(dtype).itemsize
        raw = np.zeros(n * size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + n * size].view(dtype)

    def zeros(self) -> Any:
        """A buffer of the same layout, for gradients, moments or averages."""
        return self._zeroed(self.data.size, self.data.dtype)

    def views(self, buffer: Any) -> list[Any]:
        """The parameters' places in a buffer of this layout, in the order of `named_parameters`."""
        ends = [o + int(np.prod(s, dtype=np.int64)) for o, s in zip(self.offsets, self.shapes, strict=True)]
        return [buffer[o:e].reshape(s) for o, e, s in zip(self.offsets, ends, self.shapes, strict=True)]


def pack(model: Any) -> Packed:
    """Move the model's parameters into one buffer; its attributes become views of it."""
    leaves = list(named_parameters(model).values())
    if not leaves:
        raise ValueError("pack: the model has no parameters")
    dtypes = sorted({str(leaf.dtype) for leaf in leaves})
    if len(dtypes) > 1:
        raise TypeError(f"pack: parameters must share one dtype, got {' and '.join(dtypes)}")
    places = {_device.is_device(leaf) for leaf in leaves}
    if len(places) > 1:
        raise TypeError("pack: some parameters are on the host and some on a GPU; see nn.to_device and nn.to_host")
    packed = Packed([leaf.shape for leaf in leaves], leaves[0].dtype, places.pop())
    views = packed.views(packed.data)
    for view, leaf in zip(views, leaves, strict=True):
        view[...] = leaf
    _replace(model, {id(leaf): view for leaf, view in zip(leaves, views, strict=True)})
    return packed


def state(model: Any) -> dict[str, np.ndarray]:
    """Path -> array of everything that a file must hold: parameters, then buffers."""
    return {**named_parameters(model), **named_buffers(model)}


def load_state(model: Any, arrays: dict[str, np.ndarray]) -> None:
    """Copy arrays named as in `state` into the model, in place. Names, shapes and dtypes must be those of the model.

    Either may be on the host or on a GPU.
    """
    own = state(model)
    missing, unknown = [k for k in own if k not in arrays], [k for k in arrays if k not in own]
    if missing or unknown:
        raise ValueError(
            f"load_state: the arrays are not those of {type(model).__name__}: missing {missing or 'none'}, "
            f"unknown {unknown or 'none'}"
        )
    for name, array in own.items():
        new = arrays[name]
        if new.shape != array.shape or new.dtype != array.dtype:
            raise ValueError(f"load_state: {name} is {new.dtype} {new.shape}, wanted {array.dtype} {array.shape}")
    for name, array in own.items():
        _device.put(array, arrays[name])
