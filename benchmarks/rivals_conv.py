"""Convolutions and resampling as torch does them (see rivals.py).

torch as documented gets contiguous n c h w; channels_last is the memory order that is also ours. Forward alone, its
best setting is what torch.compile makes of a frozen model: weights in the blocks oneDNN wants, packed beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import work_conv as kinds
from layouts import for_torch
from registry import rival


def _conv2d(torch: Any, work: Any) -> Callable:
    return partial(torch.nn.functional.conv2d, **work.options())


def _conv_transpose2d(torch: Any, work: Any) -> Callable:
    return partial(torch.nn.functional.conv_transpose2d, stride=work.stride, padding=work.padding)


def _upsample_conv2d(torch: Any, work: Any) -> Callable:
    interpolate, conv2d = torch.nn.functional.interpolate, torch.nn.functional.conv2d
    return lambda x, w: conv2d(interpolate(x, scale_factor=2), w, padding=1)


def _forward(function: Callable, a: Any, work: Any, as_ours: bool = False) -> Callable[[], Any]:
    torch, x, w = for_torch(a, work, "x", "w", as_ours=as_ours)
    return partial(function(torch, work), x, w)


def _gradients(with_x: bool, a: Any, work: Any, as_ours: bool = False) -> Callable[[], Any]:
    torch, x, w, g = for_torch(a, work, "x", "w", "g", as_ours=as_ours)
    conv2d, wanted = _conv2d(torch, work), (x, w) if with_x else (w,)
    for v in wanted:
        v.requires_grad_()

    def call():
        y = conv2d(x, w)
        return y, *torch.autograd.grad(y, wanted, g)

    return call


def _resampled(function: Callable, a: Any, work: Any, as_ours: bool = False) -> Callable[[], Any]:
    torch, x = for_torch(a, work, "x", as_ours=as_ours)
    return partial(function(torch.nn.functional), x)


SETUPS = {
    kinds.Conv: partial(_forward, _conv2d),
    kinds.ConvTranspose: partial(_forward, _conv_transpose2d),
    kinds.UpsampleConv: partial(_forward, _upsample_conv2d),
    kinds.ConvGradients: partial(_gradients, True),
    kinds.FirstLayer: partial(_gradients, False),
    kinds.MaxPool: partial(_resampled, lambda F: partial(F.max_pool2d, kernel_size=2)),
    kinds.AvgPool: partial(_resampled, lambda F: partial(F.avg_pool2d, kernel_size=2)),
    kinds.Resize: partial(_resampled, lambda F: partial(F.interpolate, scale_factor=2, mode="bilinear")),
}
for kind, setup in SETUPS.items():
    rival(kind, "torch", tuned=True)(setup)
    rival(kind, "torch channels_last", best=True, tuned=True)(partial(setup, as_ours=True))


@rival(kinds.Conv, "torch channels_last, packed weights", best=True, tuned=True, when=lambda work: work.c >= 32)
def _(a, work):
    torch, x, w = for_torch(a, work, "x", "w", as_ours=True)
    padding, stride, ones = [work.padding] * 2, [work.stride] * 2, [1, 1]
    blocks = torch.ops.mkldnn._reorder_convolution_weight(w, padding, stride, ones, work.groups, list(x.shape))
    convolve = torch.ops.mkldnn._convolution_pointwise

    @torch.inference_mode()
    def call():
        return convolve(x, blocks, None, padding, stride, ones, work.groups, "none", [], "")

    return call
