"""Parameters as parts of one flat buffer, and gradients gathered into another.

`part` reads: a view that shares the buffer's memory, so that a later change of the buffer shows in it. `pack_` writes.
Both exist so that a recorded step can tell which memory an array lives in; neither has a kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Op
from ._device import address
from ._table import op, rule

__all__ = ["pack_", "part"]


def _part_shape(shapes: tuple, attrs: dict) -> tuple:
    (buffer,), shape, offset = shapes, tuple(attrs["shape"]), attrs["offset"]
    if offset < 0 or offset + int(np.prod(shape, dtype=np.int64)) > buffer[0]:
        raise ValueError(f"elements {offset} and following of shape {shape} are not in a buffer of {buffer[0]}")
    return (shape,)


@op("p: n -> ...", shape=_part_shape, sizes=[dict(n=20)], attrs=[dict(shape=(2, 3), offset=4), dict(shape=(20,))],
    native=False, keep="x")
def part(p: Any, *, shape: tuple[int, ...], offset: int = 0) -> Any:
    """p[offset : offset + size] in a shape, sharing p's memory. p (n,). Differentiable in p."""
    return p[offset : offset + int(np.prod(shape, dtype=np.int64))].reshape(shape)


@op("g: ... -> n", native=False, sizes=[dict(n=20, _=(2, 3))], attrs=[dict(n=20, offset=4)], keep="")
def part_t(g: Any, *, n: int, offset: int = 0) -> Any:
    """Zeros (n,) with g from `offset` on: the adjoint of `part`."""
    out = np.zeros_like(g, shape=n)
    out[offset : offset + g.size] = g.ravel()
    return out


rule(part, lambda gys, ys, needs, p, shape, offset=0: [part_t(gys[0], n=int(p.shape[0]), offset=offset)])
rule(part_t, lambda gys, ys, needs, g, n, offset=0: [part(gys[0], shape=tuple(g.shape), offset=offset)])


def _pack(flat: Any, *parts: Any, offsets: tuple[int, ...]) -> tuple:
    for start, a in zip(offsets, parts, strict=True):
        place = flat[start : start + a.size].reshape(a.shape)
        if address(place) != address(a):
            place[...] = a
    return ()


pack_ = Op("pack_", lambda *xs, **a: _pack(*xs, **a) or None, _pack, n_public=0, keep="", effects=(0,))
pack_.__doc__ = """Copy arrays into a flat buffer, in place: the one of size s at offset o becomes flat[o : o + s].

pack_(flat (n,), *arrays, offsets=(o, ...)). A recorded step lets gradients be written there at once where it can.
"""
