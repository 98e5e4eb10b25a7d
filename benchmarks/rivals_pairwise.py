"""Sums and searches over all pairs as torch, KeOps and scikit-learn do them (see rivals.py).

torch as documented forms the matrix with cdist. Its best setting takes some rows at a time, as many as are fastest
here, and expands the square: one product into a buffer that is kept, then passes over it in place.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import work_pairwise as kinds
from registry import fastest, rival, with_keops, with_torch

CHUNKS = (32, 128, 512, 2048)


def in_chunks(a: Any, use: Callable, join: Callable) -> Callable[[], Any]:
    """join([use(half, rows), ...]) where half is -|x_i - y_j|^2 / 2 for some rows i, a buffer that may be changed."""
    torch, x, y = with_torch(a, "x", "y")
    x_half, y_half = (p.square().sum(1).mul_(-0.5) for p in (x, y))
    across = y.T

    def with_rows(rows: int) -> Callable[[], Any]:
        buffer = torch.empty(rows, len(y))

        @torch.inference_mode()
        def call():
            parts = []
            for start in range(0, len(x), rows):
                part = slice(start, min(start + rows, len(x)))
                half = torch.addmm(y_half, x[part], across, out=buffer[: part.stop - start])
                parts.append(use(half.add_(x_half[part, None]), part))
            return join(parts)

        return call

    return fastest(with_rows(min(rows, len(x))) for rows in CHUNKS)


def symbolic(a: Any) -> tuple[Any, Any]:
    """KeOps' symbolic x_i and y_j."""
    LazyTensor = with_keops()
    return LazyTensor(a.x[:, None, :]), LazyTensor(a.y[None, :, :])


# ---------------------------------------------------------------- sums


@rival(kinds.KernelSum, "torch")
def _(a, work):
    torch, x, y = with_torch(a, "x", "y")
    return lambda: torch.exp(-(torch.cdist(x, y) ** 2) / 2).sum()


@rival(kinds.KernelSum, "torch in chunks", best=True)
def _(a, work):
    return in_chunks(a, lambda half, rows: float(half.exp_().sum()), sum)


@rival(kinds.KernelSum, "KeOps")
def _(a, work):
    x, y = symbolic(a)
    return lambda: (-((x - y) ** 2).sum(-1) / 2).exp().sum(1).sum(dtype=np.float64)


@rival(kinds.KernelMatvec, "torch")
def _(a, work):
    torch, x, y, v = with_torch(a, "x", "y", "v")
    return lambda: torch.exp(-(torch.cdist(x, y) ** 2) / 2) @ v


@rival(kinds.KernelMatvec, "torch in chunks", best=True)
def _(a, work):
    torch, v = with_torch(a, "v")
    return in_chunks(a, lambda half, rows: half.exp_() @ v, torch.cat)


@rival(kinds.KernelMatvec, "KeOps")
def _(a, work):
    x, y = symbolic(a)
    return lambda: (-((x - y) ** 2).sum(-1) / 2).exp() @ a.v


@rival(kinds.LogSumExp, "torch")
def _(a, work):
    torch, x, y = with_torch(a, "x", "y")
    return lambda: torch.logsumexp(-(torch.cdist(x, y) ** 2), 1)


@rival(kinds.LogSumExp, "torch in chunks", best=True)
def _(a, work):
    torch, = with_torch()

    def use(half, rows):
        top = half.amax(1, keepdim=True)
        return half.sub_(top).mul_(2).exp_().sum(1).log_().add_(top[:, 0], alpha=2)

    return in_chunks(a, use, torch.cat)


@rival(kinds.LogSumExp, "KeOps")
def _(a, work):
    x, y = symbolic(a)
    return lambda: (-((x - y) ** 2).sum(-1)).logsumexp(1)


def _mmd_gradient(a: Any, work: Any, total: Callable) -> Callable[[], Any]:
    torch, x, y = with_torch(a, "x", "y")
    x, n = x.clone().requires_grad_(), work.n

    def call():
        within = (total(torch, x, x) + total(torch, y, y) - 2 * n * len(work.bandwidths)) / (n * (n - 1))
        value = within - 2 * total(torch, x, y) / n**2
        return value.detach(), *torch.autograd.grad(value, x)

    return call


@rival(kinds.MmdGradient, "torch")
def _(a, work):
    def total(torch, x, y):
        square = torch.cdist(x, y) ** 2
        return sum(torch.exp(-square / (2 * h * h)) for h in work.bandwidths).sum()

    return _mmd_gradient(a, work, total)


@rival(kinds.MmdGradient, "torch addmm, one exp", best=True)
def _(a, work):
    widths = work.bandwidths
    assert all(b == 2 * a for a, b in pairwise(widths))

    def total(torch, x, y):
        half = torch.addmm(y.square().sum(1) / -2, x, y.T) + x.square().sum(1)[:, None] / -2
        k = torch.exp(half / widths[-1] ** 2)
        value = k.sum()
        for _ in widths[1:]:
            k = k.square().square()  # half the bandwidth
            value = value + k.sum()
        return value

    return _mmd_gradient(a, work, total)


# ---------------------------------------------------------------- searches


@rival(kinds.Knn, "sklearn brute")
@rival(kinds.SelfKnn, "sklearn brute")
def _(a, work):
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=work.k, algorithm="brute").fit(a.y)
    return lambda: search.kneighbors(None if a.y is a.x else a.x)


@rival(kinds.Knn, "sklearn kd_tree", best=True, when=lambda work: work.d <= 8)
def _(a, work):
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=work.k, algorithm="kd_tree", n_jobs=-1)
    return lambda: search.fit(a.y).kneighbors(a.x)


@rival(kinds.Knn, "torch in chunks", best=True)
def _(a, work):
    torch, = with_torch()

    def join(parts):
        values, index = (torch.cat(p) for p in zip(*parts, strict=True))
        return values.mul_(-2).clamp_(0).sqrt_(), index

    return in_chunks(a, lambda half, rows: half.topk(work.k), join)


@rival(kinds.Nearest, "torch")
def _(a, work):
    torch, x, y = with_torch(a, "x", "y")
    return lambda: torch.cdist(x, y).min(1)


@rival(kinds.Nearest, "torch in chunks", best=True)
def _(a, work):
    torch, = with_torch()

    def join(parts):
        values, index = (torch.cat(p) for p in zip(*parts, strict=True))
        return values.mul_(-2).clamp_(0).sqrt_(), index

    return in_chunks(a, lambda half, rows: half.max(1), join)


@rival(kinds.Nearest, "sklearn")
def _(a, work):
    from sklearn.metrics import pairwise_distances_argmin_min

    return lambda: pairwise_distances_argmin_min(a.x, a.y)[::-1]


# ---------------------------------------------------------------- accuracy


@rival(kinds.OffsetDistances, "torch cdist")
def _(a, work):
    torch, x, y = with_torch(a, "x", "y")
    return lambda: torch.cdist(x, y).min(1)


@rival(kinds.OffsetDistances, "expanded square, float32")
def _(a, work):
    def call():  # as FAISS and every product of matrices does it
        square = (a.x * a.x).sum(1)[:, None] + (a.y * a.y).sum(1) - 2 * (a.x @ a.y.T)
        return np.sqrt(np.maximum(square.min(1), 0)), square.argmin(1)

    return call


@rival(kinds.OffsetDistances, "sklearn")
def _(a, work):
    from sklearn.metrics import pairwise_distances_argmin_min

    return lambda: pairwise_distances_argmin_min(a.x, a.y)[::-1]


