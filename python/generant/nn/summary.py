"""What a model is made of: the shape, the parameters and the multiply-adds of every layer, from one forward pass.

The pass is traced, so that every op passes by with its shapes, but nothing is kept. Only products are counted: of
matrices, convolutions, attention; not what is done once per element. Nor is memory: a recorded plan knows its own.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from ..autograd import Trace
from .module import Buffer, Module, _is_array, _parts, named_parameters

__all__ = ["Summary", "summary"]


def _of_product(shapes: list, out: tuple) -> int:
    """Every output sums d, or kh kw c, products."""
    return prod(out) * prod(shapes[1][:-1])


def _of_transposed(shapes: list, out: tuple) -> int:
    """Every input reaches kh kw c outputs."""
    return prod(shapes[0]) * prod(shapes[1][:-1])


def _of_norm_conv(shapes: list, out: tuple) -> int:
    return prod(out) * prod(shapes[5][:-1])


def _of_attention(shapes: list, out: tuple) -> int:
    """<q_i, k_j> and the weighted sum of v_j, for every pair."""
    return (prod(shapes[0]) + prod(out)) * shapes[1][1]


PRODUCTS = ("matmul", "linear", "linear_act", "conv1d", "conv2d", "conv2d_act", "winograd_conv2d", "upsample_conv2d")
COUNTS = {
    **dict.fromkeys(PRODUCTS, _of_product), **dict.fromkeys(("conv2d_dx", "conv_transpose2d"), _of_transposed),
    "group_norm_conv2d": _of_norm_conv, "attention": _of_attention,
}  # fmt: skip


class _Watch(Trace):
    """A trace that counts the multiply-adds of the calls it is told of."""

    __slots__ = ("multiply_adds",)

    def __init__(self) -> None:
        super().__init__(self._count)
        self.multiply_adds = 0

    def _count(self, op: Any, attrs: dict, slots: list, inputs: list, outs: tuple) -> None:
        if op.name in COUNTS:
            shapes = [None if x is None else tuple(x.shape) for x in inputs]
            self.multiply_adds += COUNTS[op.name](shapes, tuple(outs[0].shape))


class Row:
    """One module: path, kind (its class), shape of what it returned last, parameters and multiply_adds with all its
    parts, depth in the tree and calls."""

    def __init__(self, path: str, kind: str, parameters: int, depth: int) -> None:
        self.path, self.kind, self.parameters, self.depth = path, kind, parameters, depth
        self.shape: Any = None
        self.multiply_adds = self.calls = 0


class Summary:
    """rows: every module that was called, the model first; parameters, multiply_adds and flops (two to a multiply-add)
    of the model. Prints as a table; a module's numbers include its parts'."""

    def __init__(self, rows: list[Row], inputs: tuple) -> None:
        self.rows, self.inputs = rows, inputs
        self.parameters, self.multiply_adds = rows[0].parameters, rows[0].multiply_adds
        self.flops = 2 * self.multiply_adds

    def __repr__(self) -> str:
        table = [("layer", "kind", "output", "parameters", "multiply-adds")]
        for row in self.rows:
            times = f" x{row.calls}" if row.calls > 1 else ""
            name = "  " * row.depth + (row.path or row.kind)
            table.append((name, row.kind + times, str(row.shape), f"{row.parameters:,}", f"{row.multiply_adds:,}"))
        widths = [max(len(line[i]) for line in table) for i in range(5)]
        left = [f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {shape:<{widths[2]}}" for name, kind, shape, _, _ in table]
        lines = [f"{a}  {n:>{widths[3]}}  {m:>{widths[4]}}" for a, (_, _, _, n, m) in zip(left, table, strict=True)]
        rule = "-" * len(lines[0])
        shapes = ", ".join(str(tuple(x.shape)) for x in self.inputs if x is not None)
        total = f"{self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds, {self.flops:,} FLOPs for inputs"
        return "\n".join([lines[0], rule, *lines[1:], rule, f"{total} {shapes}"])


def _shape(y: Any) -> Any:
    return tuple(y.shape) if hasattr(y, "shape") else [_shape(v) for v in y] if isinstance(y, (list, tuple)) else None


def _watched(o: Any, new: dict[int, Any], path: str, depth: int, rows: list[Row], watch: _Watch) -> Any:
    """A copy of the structure o with its arrays boxed, whose modules write a row when they are called."""
    if isinstance(o, Buffer):
        return o
    if _is_array(o):
        return new.get(id(o), o)
    parts = _parts(o)
    if parts is None:
        return o
    inner = depth + isinstance(o, Module)
    made = {key: _watched(part, new, f"{path}.{key}" if path else str(key), inner, rows, watch) for key, part in parts}
    if not isinstance(o, Module):
        return made if isinstance(o, dict) else tuple(made.values())
    row = Row(path, type(o).__name__, sum(p.size for p in named_parameters(o).values()), depth)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, row.calls = watch.multiply_adds, row.calls + 1
        if row.calls == 1:
            rows.append(row)
        y = type(o).__call__(self, *args, **kwargs)
        row.shape, row.multiply_adds = _shape(y), row.multiply_adds + watch.multiply_adds - before
        return y

    copy: Any = object.__new__(type(type(o).__name__, (type(o),), {"__call__": call}))
    copy.__dict__.update(made, _traced=True)
    return copy


def summary(model: Module, *inputs: Any, **options: Any) -> Summary:
    """The table of model(*inputs, **options): path, output shape, parameters and multiply-adds of every module called.

    inputs: arrays as the model takes them; zeros do. Parameters of modules that were not called count in those that
    hold them. The model is not changed, but for running statistics if it is told to train. Time of one forward pass.
    """
    if not isinstance(model, Module):
        raise TypeError(f"summary: model must be a Module, got {type(model).__name__}")
    watch, rows = _Watch(), list[Row]()
    new = {id(p): watch.box(p) for p in named_parameters(model).values()}
    boxed = [watch.box(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]
    try:
        _watched(model, new, "", 0, rows, watch)(*boxed, **options)
    finally:
        watch.closed = True
    return Summary(rows, inputs)
