"""Numba twins of the convolutions in bfloat16: those in float32, of rounded operands."""

from __future__ import annotations

from . import conv as _conv  # noqa: F401  (registers the kernels called here)
from ._kernel import KERNELS, kernel
from .matmul import _rounded


def _of_rounded(name, first, second, *rest):
    """The kernel in float32; the last of the rest is the precision."""
    a, b = (_rounded(v.reshape(1, v.size)).reshape(v.shape) for v in (first, second))
    KERNELS[name](a, b, *rest[:-1], "float32")


@kernel
def conv2d_bf16(x, w, *rest):
    _of_rounded("conv2d", x, w, *rest)


@kernel
def conv2d_dx_bf16(g, w, *rest):
    _of_rounded("conv2d_dx", g, w, *rest)


@kernel
def conv2d_dw_bf16(x, g, *rest):
    _of_rounded("conv2d_dw", x, g, *rest)


@kernel
def conv2d_act_bf16(x, w, *rest):
    _of_rounded("conv2d_act", x, w, *rest)
