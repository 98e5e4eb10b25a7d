"""Attention as torch does it (see rivals.py): heads before tokens, or views of projections as their products lie."""

from __future__ import annotations

from functools import partial

import work_attention as kinds
from layouts import for_torch
from registry import rival


def _attention(a, work, as_ours=False):
    torch, q, k, v = for_torch(a, work, "q", "k", "v", as_ours=as_ours)
    return partial(torch.nn.functional.scaled_dot_product_attention, q, k, v)


def _gradients(a, work, as_ours=False):
    torch, *xs, g = for_torch(a, work, "q", "k", "v", "g", as_ours=as_ours)
    attend = torch.nn.functional.scaled_dot_product_attention
    for x in xs:
        x.requires_grad_()

    def call():
        y = attend(*xs)
        return y, *torch.autograd.grad(y, xs, g)

    return call


for kind, setup in ((kinds.Attention, _attention), (kinds.AttentionGradients, _gradients)):
    rival(kind, "torch", tuned=True)(setup)
    rival(kind, "torch transposed views", best=True, tuned=True)(partial(setup, as_ours=True))


@rival(kinds.AttentionBf16, "generant float32")
def _(a, work):
    return kinds.Attention.ours(work, a)


@rival(kinds.AttentionBf16, "torch bf16")
def _(a, work):
    torch, *xs = for_torch(a, work, "q", "k", "v")
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(*(x.bfloat16() for x in xs)).float()  # float32 in and out, as ours
