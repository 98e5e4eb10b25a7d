"""Normalisation and the ResNet block as torch does them (see rivals.py); also the block from our own unfused ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import work_norm as kinds
from layouts import for_torch
from registry import rival, with_torch

# ---------------------------------------------------------------- group_norm and the ResNet block


def _group_norm(torch: Any, work: Any) -> Callable:
    group_norm, silu = torch.nn.functional.group_norm, torch.nn.functional.silu
    return lambda x, gain, bias: silu(group_norm(x, work.groups, gain, bias, kinds.EPS))


def _block(torch: Any, work: Any) -> Callable:
    norm, conv2d = _group_norm(torch, work), torch.nn.functional.conv2d

    def block(x, gain1, bias1, w1, b1, gain2, bias2, w2, b2):
        h = conv2d(norm(x, gain1, bias1), w1, b1, padding=1)
        return x + conv2d(norm(h, gain2, bias2), w2, b2, padding=1)

    return block


def _forward(function: Callable, names: tuple, a: Any, work: Any, as_ours: bool = False) -> Callable[[], Any]:
    torch, *xs = for_torch(a, work, *names, as_ours=as_ours)
    return partial(function(torch, work), *xs)


def _gradients(function: Callable, names: tuple, a: Any, work: Any, as_ours: bool = False) -> Callable[[], Any]:
    torch, *xs, g = for_torch(a, work, *names, "g", as_ours=as_ours)
    layer = function(torch, work)
    for x in xs:
        x.requires_grad_()

    def call():
        y = layer(*xs)
        return y, *torch.autograd.grad(y, xs, g)

    return call


SETUPS = {
    kinds.GroupNormSilu: partial(_forward, _group_norm, ("x", "gain", "bias")),
    kinds.GroupNormSiluGradients: partial(_gradients, _group_norm, ("x", "gain", "bias")),
    kinds.ResBlock: partial(_forward, _block, kinds.PARAMETERS),
    kinds.ResBlockGradients: partial(_gradients, _block, kinds.PARAMETERS),
}
for kind, setup in SETUPS.items():
    rival(kind, "torch", tuned=True)(setup)
    rival(kind, "torch channels_last", best=True, tuned=True)(partial(setup, as_ours=True))


@rival(kinds.ResBlock, "generant, unfused", best=True)
@rival(kinds.ResBlockGradients, "generant, unfused", best=True)
def _(a, work):
    from generant import ops

    return work.call(partial(work.unfused, ops), a)


# ---------------------------------------------------------------- rows and channels


@rival(kinds.LayerNorm, "torch", tuned=True)
def _(a, work):
    torch, x, gain, bias = with_torch(a, "x", "gain", "bias")
    return partial(torch.nn.functional.layer_norm, x, (work.d,), gain, bias, kinds.EPS)


@rival(kinds.RmsNorm, "torch", tuned=True)
def _(a, work):
    torch, x, gain = with_torch(a, "x", "gain")
    return partial(torch.nn.functional.rms_norm, x, (work.d,), gain, kinds.EPS)


@rival(kinds.BatchNorm, "torch", tuned=True)
def _(a, work):
    torch, x, gain, bias = with_torch(a, "x", "gain", "bias")
    return partial(torch.nn.functional.batch_norm, x, None, None, gain, bias, True, 0.1, kinds.EPS)


@rival(kinds.Softmax, "torch", tuned=True)
def _(a, work):
    torch, x = with_torch(a, "x")
    return partial(torch.softmax, x, 1)
