"""Convolutions of images (n, h, w, c), and the two that change their size.

Bias, residual and activation are the convolution's epilogue where there is one. Filters begin as normals of variance
gain^2 / fan in, biases as zeros.
"""

from __future__ import annotations

from typing import Any

from .. import ops
from ..data.checks import check_counts
from ..random import Stream
from . import init
from .linear import activated
from .module import Module

__all__ = ["Conv2d", "ConvTranspose2d", "Downsample", "Upsample"]


def _pair(layer: str, name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """(rows, columns) of a size that may be one number for both."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ValueError(f"{layer}: {name} must be an integer or (rows, columns), got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{layer}: {name} must be at least {least}, got {value}")
    return pair


class Conv2d(Module):
    """activation(conv2d(x, weight) + bias + residual).

    x (n, h, w, c), residual of the output's shape or None. Returns (n, p, q, o), p = (h + 2 padding - kernel) // stride
    + 1. weight (kernel, kernel, c / groups, o). padding None is kernel // 2, which keeps the size at stride 1 and an
    odd kernel. kernel, stride, padding: an integer or (rows, columns). `activation`: a name of ops.conv2d_act, or None.
    """

    def __init__(
        self,
        c: int,
        o: int,
        stream: Stream,
        *,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        bias: bool = True,
        activation: str | None = None,
        gain: float = 1.0,
        dtype: Any = "float32",
    ) -> None:
        check_counts("Conv2d", c=c, o=o, groups=groups)
        if c % groups or o % groups:
            raise ValueError(f"Conv2d: groups must divide c = {c} and o = {o}, got {groups}")
        kernel = _pair("Conv2d", "kernel", kernel, 1)
        same = kernel[0] // 2, kernel[1] // 2
        self.stride = _pair("Conv2d", "stride", stride, 1)
        self.padding = same if padding is None else _pair("Conv2d", "padding", padding, 0)
        self.groups, self.activation = groups, activation
        self.weight = init.lecun_normal((*kernel, c // groups, o), stream, gain=gain, dtype=dtype)
        self.bias = init.zeros((o,), dtype=dtype) if bias else None

    def __call__(self, x: Any, residual: Any = None) -> Any:
        window = dict(stride=self.stride, padding=self.padding, groups=self.groups)
        if self.activation is None and residual is None:
            if self.bias is None:
                return ops.conv2d(x, self.weight, **window)
            if self.weight.shape[:2] == (1, 1) and window == dict(stride=(1, 1), padding=(0, 0), groups=1):
                return ops.linear(x, ops.reshape(self.weight, shape=self.weight.shape[2:]), self.bias)
        activation = self.activation or "identity"
        return ops.conv2d_act(x, self.weight, self.bias, residual, activation=activation, **window)


class ConvTranspose2d(Module):
    """activation(conv2d_dx(x, weight) + bias): a convolution's gradient used forwards, to enlarge images.

    x (n, h, w, c). Returns (n, p, q, o), p = (h - 1) stride - 2 padding + kernel; the defaults double the size. weight
    (kernel, kernel, o, c) is the filter of the convolution from o to c channels whose gradient this is; fan in is
    c kernel^2 / stride^2, the numbers that one output sums. Radford, Metz, Chintala (2016).
    """

    def __init__(
        self,
        c: int,
        o: int,
        stream: Stream,
        *,
        kernel: int | tuple[int, int] = 4,
        stride: int | tuple[int, int] = 2,
        padding: int | tuple[int, int] = 1,
        bias: bool = True,
        activation: str | None = None,
        gain: float = 1.0,
        dtype: Any = "float32",
    ) -> None:
        check_counts("ConvTranspose2d", c=c, o=o)
        kernel = _pair("ConvTranspose2d", "kernel", kernel, 1)
        self.stride = _pair("ConvTranspose2d", "stride", stride, 1)
        self.padding = _pair("ConvTranspose2d", "padding", padding, 0)
        fan_in = c * kernel[0] * kernel[1] / (self.stride[0] * self.stride[1])
        self.weight = init.normal((*kernel, o, c), stream, std=gain / max(fan_in, 1) ** 0.5, dtype=dtype)
        self.bias = init.zeros((o,), dtype=dtype) if bias else None
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        sizes = zip(x.shape[1:3], self.stride, self.padding, self.weight.shape[:2], strict=True)
        size = tuple([(n - 1) * stride - 2 * padding + kernel for n, stride, padding, kernel in sizes])
        y = ops.conv2d_dx(x, self.weight, size=size, stride=self.stride, padding=self.padding)
        y = y if self.bias is None else ops.add(y, self.bias)
        return activated("ConvTranspose2d", self.activation, y)


class Upsample(Module):
    """A 3 x 3 convolution of the image with every pixel repeated twice by twice, whose enlarged image is never formed.

    x (n, h, w, c). Returns (n, 2 h, 2 w, o), or its first rows and columns where a smaller `size` is asked for.
    """

    def __init__(self, c: int, o: int, stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> None:
        check_counts("Upsample", c=c, o=o)
        self.weight = init.lecun_normal((3, 3, c, o), stream, gain=gain, dtype=dtype)
        self.bias = init.zeros((o,), dtype=dtype)

    def __call__(self, x: Any, *, size: tuple[int, int] | None = None) -> Any:
        y = ops.upsample_conv2d(x, self.weight)
        if size is not None and tuple(size) != tuple(y.shape[1:3]):
            below, right = y.shape[1] - size[0], y.shape[2] - size[1]
            y = ops.pad_bwd(y, size=tuple(size), padding=(0, below, 0, right))  # the adjoint of padding cuts it off
        return ops.add(y, self.bias)


class Downsample(Module):
    """A 3 x 3 convolution with stride 2.

    x (n, h, w, c). Returns (n, ceil(h / 2), ceil(w / 2), o).
    """

    def __init__(self, c: int, o: int, stream: Stream, *, gain: float = 1.0, dtype: Any = "float32") -> None:
        self.conv = Conv2d(c, o, stream, stride=2, gain=gain, dtype=dtype)

    def __call__(self, x: Any) -> Any:
        return self.conv(x)
