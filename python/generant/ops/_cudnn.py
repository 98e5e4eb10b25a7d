"""Convolutions of device arrays by cuDNN, where `generant[cudnn]` is installed: conv2d, its dx and dw in float32.

cuDNN is reached through nvidia-cudnn-frontend, whose graph API takes sizes and strides: images are n h w c as they lie,
filters are turned once per call, since cuDNN wants their channels innermost. Products are in float32 proper: engines
that would round to TF32 are left out. A graph is built once per shape. What cuDNN refuses goes to our own kernels, and
so does everything with GENERANT_CUDNN=0. In a recorded step such a convolution runs from Python, between two CUDA
graphs.
"""

from __future__ import annotations

import os
import warnings
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

__all__ = ["OPS", "run", "serves"]

OPS = ("conv2d", "conv2d_dx", "conv2d_dw")


@cache
def library() -> ModuleType | None:
    """The module cudnn, or None where it is not installed or not wanted."""
    if os.environ.get("GENERANT_CUDNN", "") == "0":
        return None
    try:
        import cudnn
    except ImportError:
        return None
    return cudnn


class Shape(NamedTuple):
    """What a graph is built for."""

    op: str
    n: int
    h: int
    w: int
    c: int
    kernel: tuple[int, int]
    d: int
    o: int
    out: tuple[int, int]
    stride: tuple[int, int]
    border: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]


refused: set[Shape] = set()


def serves(op: str, attrs: dict[str, Any], dtype: np.dtype) -> bool:
    """Whether cuDNN is asked for this call at all: float32 without an algorithm of ours."""
    if op not in OPS or dtype != np.float32 or library() is None:
        return False
    return attrs["algorithm"] == "auto" and attrs["precision"] == "float32"


def _shape(op: str, a: Any, b: Any, attrs: dict[str, Any], out: tuple[int, ...]) -> Shape:
    pair = lambda v: tuple(v) if len(v) == 2 else tuple(v) * 2
    padding = attrs["padding"]
    border = (
        padding * 4 if len(padding) == 1 else (padding[0],) * 2 + (padding[1],) * 2 if len(padding) == 2 else padding
    )
    image, grid = (a.shape, out) if op == "conv2d" else (out, a.shape) if op == "conv2d_dx" else (a.shape, b.shape)
    filter_ = out if op == "conv2d_dw" else b.shape
    return Shape(
        op,
        image[0],
        image[1],
        image[2],
        image[3],
        tuple(filter_[:2]),
        filter_[2],
        filter_[3],
        tuple(grid[1:3]),
        pair(attrs["stride"]),
        tuple(border),
        pair(attrs["dilation"]),
    )


@cache
def _handle(device: int) -> Any:
    cudnn: Any = library()
    return cudnn.create_handle()


@lru_cache(maxsize=256)
def _graph(s: Shape, device: int) -> tuple[Any, Any, Any, Any, int]:
    """(graph, first input, second input, output, bytes of workspace)."""
    cudnn: Any = library()
    float32 = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(
        handle=_handle(device), io_data_type=float32, intermediate_data_type=float32, compute_data_type=float32
    )

    def images(name: str, h: int, w: int, c: int) -> Any:
        return graph.tensor(name=name, dim=[s.n, c, h, w], stride=[h * w * c, 1, w * c, c], data_type=float32)

    kh, kw = s.kernel
    dim, strides = [s.o, s.d, kh, kw], [kh * kw * s.d, 1, kw * s.d, s.d]  # o kh kw d in memory
    about = dict(
        pre_padding=[s.border[0], s.border[2]],
        post_padding=[s.border[1], s.border[3]],
        stride=list(s.stride),
        dilation=list(s.dilation),
    )
    if s.op == "conv2d":
        first, second = images("x", s.h, s.w, s.c), graph.tensor(name="w", dim=dim, stride=strides, data_type=float32)
        made = graph.conv_fprop(image=first, weight=second, **about)
        size = ([s.n, s.o, *s.out], [s.out[0] * s.out[1] * s.o, 1, s.out[1] * s.o, s.o])
    elif s.op == "conv2d_dx":
        first, second = images("g", *s.out, s.o), graph.tensor(name="w", dim=dim, stride=strides, data_type=float32)
        made = graph.conv_dgrad(loss=first, filter=second, **about)
        size = ([s.n, s.c, s.h, s.w], [s.h * s.w * s.c, 1, s.w * s.c, s.c])
    else:
        first, second = images("x", s.h, s.w, s.c), images("g", *s.out, s.o)
        made = graph.conv_wgrad(image=first, loss=second, **about)
        size = (dim, strides)
    made.set_output(True).set_dim(size[0]).set_stride(size[1]).set_data_type(float32)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.deselect_numeric_notes([cudnn.numerical_note.TENSOR_CORE, cudnn.numerical_note.DOWN_CONVERT_INPUTS])
    graph.deselect_numeric_notes([cudnn.numerical_note.NONDETERMINISTIC])
    graph.check_support()
    graph.build_plans()
    return graph, first, second, made, graph.get_workspace_size()


def run(cp: Any, op: str, arrays: tuple, attrs: dict[str, Any], out: tuple[int, ...]) -> Any | None:
    """The convolution, or None where cuDNN has no engine for it. arrays: the op's two, dense CuPy arrays."""
    a, b = arrays
    if 0 in a.shape or 0 in b.shape or 0 in out:
        return None
    shape = _shape(op, a, b, attrs, out)
    if shape in refused:
        return None
    cudnn: Any = library()
    device = a.data.device_id
    try:
        graph, first, second, made, workspace = _graph(shape, device)
    except Exception as error:  # an unsupported shape, or another version of the library: ours is right in any case
        refused.add(shape)
        warnings.warn(
            f"{op}: cuDNN does not serve {shape}: {error}; generant's own kernel does", RuntimeWarning, stacklevel=5
        )
        return None
    if op != "conv2d_dw":
        b = cp.ascontiguousarray(b.transpose(3, 0, 1, 2))
    kh, kw, d, o = (*shape.kernel, shape.d, shape.o)
    y = cp.empty((o, kh, kw, d) if op == "conv2d_dw" else out, np.float32)
    space = cp.empty((max(1, workspace),), np.uint8)
    handle = _handle(device)
    cudnn.set_stream(handle=handle, stream=cp.cuda.get_current_stream().ptr)
    graph.execute({first: a, second: b, made: y}, space, handle=handle)
    return cp.ascontiguousarray(y.transpose(1, 2, 3, 0)) if op == "conv2d_dw" else y
