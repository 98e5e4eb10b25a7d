"""What generant is measured against: each family of work as other libraries do it.

The first entry of a library is the way its documentation writes it, on which the goals are set; entries marked `best`
are the fastest setting known to us (buffers kept, in place, fused, chunked to fit the cache, tuned malloc) and are
shown beside it. A setup function gets the inputs and the sizes and returns the function that is timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import work as kinds
from cases import Case

# glibc gives freed megabytes back to the system and pays for fresh pages at the next call; this makes it keep them
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


class Contender(NamedTuple):
    name: str
    setup: Callable[[Any, Any], Callable[[], Any]]  # (inputs, family) -> call
    kind: str  # ours, documented or best
    env: dict[str, str]


RIVALS: dict[type, list[Contender]] = {}


def rival(family: type, name: str, *, best: bool = False, tuned: bool = False):
    """Register a setup function; tuned=True registers it again under a tuned malloc."""

    def register(setup):
        entries = RIVALS.setdefault(family, [])
        entries.append(Contender(name, setup, "best" if best else "documented", {}))
        if tuned:
            entries.append(Contender(f"{name}, tuned malloc", setup, "best", TUNED_MALLOC))
        return setup

    return register


def contenders(case: Case) -> list[Contender]:
    """Ours first, then the rivals."""
    ours = Contender("generant", lambda a, work: work.ours(a), "ours", {})
    return [ours, *RIVALS.get(type(case.work), ())]


def _torch(a: Any = None, *names: str) -> tuple:
    """torch with the thread count of this run, and the named inputs as tensors."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    return (torch, *(torch.from_numpy(getattr(a, name)) for name in names))


# ---------------------------------------------------------------- products


@rival(kinds.Matmul, "torch")
def _(a, work):
    torch, x, w = _torch(a, "x", "w")
    return lambda: torch.matmul(x, w)


@rival(kinds.Matmul, "torch out=", best=True)
def _(a, work):
    torch, x, w = _torch(a, "x", "w")
    return partial(torch.matmul, x, w, out=torch.matmul(x, w))


@rival(kinds.Matmul, "numpy")
def _(a, work):
    return lambda: a.x @ a.w


@rival(kinds.Matmul, "numpy out=", best=True)
def _(a, work):
    import numpy as np

    return partial(np.matmul, a.x, a.w, out=a.x @ a.w)


@rival(kinds.LinearSilu, "torch")
def _(a, work):
    torch, x, w, b = _torch(a, "x", "w", "b")
    return lambda: torch.nn.functional.silu(torch.add(torch.matmul(x, w), b))


@rival(kinds.LinearSilu, "torch silu(linear)", best=True)
def _(a, work):
    torch, x, w, b = _torch(a, "x", "w", "b")
    w = w.T.contiguous()  # as nn.Linear stores it
    silu, linear = torch.nn.functional.silu, torch.nn.functional.linear
    return lambda: silu(linear(x, w, b), inplace=True)


# ---------------------------------------------------------------- random numbers and diffusion steps


@rival(kinds.Normals, "torch", tuned=True)
def _(a, work):
    (torch,) = _torch()
    return lambda: torch.randn(a.n)


@rival(kinds.Normals, "torch normal_", best=True)
def _(a, work):
    (torch,) = _torch()
    return torch.empty(a.n).normal_


@rival(kinds.Normals, "numpy")
def _(a, work):
    import numpy as np

    return partial(np.random.default_rng(0).standard_normal, a.n, np.float32)


@rival(kinds.Normals, "numpy out=", best=True)
def _(a, work):
    import numpy as np

    out = np.empty(a.n, np.float32)
    return partial(np.random.Generator(np.random.SFC64(0)).standard_normal, dtype=np.float32, out=out)


@rival(kinds.QSample, "torch", tuned=True)
def _(a, work):
    torch, x, alpha, sigma = _torch(a, "x", "alpha", "sigma")
    return lambda: alpha.view(-1, 1, 1, 1) * x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)


@rival(kinds.QSample, "torch in place", best=True)
def _(a, work):
    torch, x, alpha, sigma = _torch(a, "x", "alpha", "sigma")
    alpha, sigma, y, z = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1), torch.empty_like(x), torch.empty_like(x)

    @torch.inference_mode()
    def call():
        return torch.mul(x, alpha, out=y).addcmul_(z.normal_(), sigma)

    return call


@rival(kinds.Ancestral, "torch", tuned=True)
def _(a, work):
    torch, x, eps = _torch(a, "x", "eps")

    def call():
        denoised = ((x - work.sigma * eps) / work.alpha).clamp(-1, 1)
        return work.c_d * denoised + work.c_x * x + work.c_noise * torch.randn_like(x)

    return call


@rival(kinds.Ancestral, "torch in place", best=True)
def _(a, work):
    torch, x, eps = _torch(a, "x", "eps")
    y, z = torch.empty_like(x), torch.empty_like(x)

    @torch.inference_mode()
    def call():
        torch.sub(x, eps, alpha=work.sigma, out=y).mul_(1 / work.alpha).clamp_(-1, 1).mul_(work.c_d)
        return y.add_(x, alpha=work.c_x).add_(z.normal_(), alpha=work.c_noise)

    return call


@rival(kinds.Ddim, "torch", tuned=True)
def _(a, work):
    _, x, eps = _torch(a, "x", "eps")

    def call():
        denoised = (x - work.sigma * eps) / work.alpha
        return work.alpha_next * denoised + work.sigma_next * eps

    return call


@rival(kinds.Ddim, "torch in place", best=True)
def _(a, work):
    torch, x, eps = _torch(a, "x", "eps")
    y, scale = torch.empty_like(x), work.alpha_next / work.alpha

    @torch.inference_mode()
    def call():
        return torch.mul(x, scale, out=y).add_(eps, alpha=work.sigma_next - scale * work.sigma)

    return call


@rival(kinds.Heun, "torch", tuned=True)
def _(a, work):
    _, x0, slope, euler, denoised = _torch(a, "x0", "slope", "euler", "denoised")

    def call():  # as in the code of Karras et al. (2022)
        end = (euler - denoised) / work.t
        return x0 + (work.t - work.s) * (0.5 * slope + 0.5 * end)

    return call


@rival(kinds.Heun, "torch in place", best=True)
def _(a, work):
    torch, euler, denoised, first = _torch(a, "euler", "denoised", "first")
    y, c = torch.empty_like(euler), (work.s - work.t) / (2 * work.t)

    @torch.inference_mode()
    def call():
        return torch.add(euler, denoised, alpha=c, out=y).sub_(first, alpha=c)

    return call


# ---------------------------------------------------------------- optimiser


def _adam(a, work, flat=False, **options):
    torch, p, g = _torch(a, "p", "g")
    shape = (1, -1) if flat else a.shapes
    parameters = [q.clone().requires_grad_() for q in p.reshape(shape)]
    for q, slope in zip(parameters, g.reshape(shape), strict=True):
        q.grad = slope.clone()
    optimiser = torch.optim.Adam(parameters, lr=work.lr, **options)

    def call():
        optimiser.step()
        return parameters

    return call


rival(kinds.Adam, "torch")(_adam)
rival(kinds.Adam, "torch fused")(partial(_adam, fused=True))
rival(kinds.Adam, "torch foreach", best=True)(partial(_adam, foreach=True))
rival(kinds.Adam, "torch fused, flat", best=True)(partial(_adam, flat=True, fused=True))


# ---------------------------------------------------------------- all pairs


@rival(kinds.KernelSum, "torch")
def _(a, work):
    torch, x, y = _torch(a, "x", "y")
    return lambda: torch.exp(-(torch.cdist(x, y) ** 2) / 2).sum()


@rival(kinds.KernelSum, "torch, 128 rows", best=True)
def _(a, work):
    torch, x, y = _torch(a, "x", "y")

    @torch.inference_mode()
    def call():
        return sum(torch.cdist(part, y).square_().mul_(-0.5).exp_().sum(dtype=torch.float64) for part in x.split(128))

    return call


@rival(kinds.Knn, "sklearn")
def _(a, work):
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=work.k, algorithm="brute").fit(a.y)
    return lambda: search.kneighbors(a.x)


# ---------------------------------------------------------------- overhead


@rival(kinds.Small, "torch")
def _(a, work):
    torch, = _torch()
    return partial(getattr(torch, work.op), *map(torch.from_numpy, a.arrays))


@rival(kinds.Small, "numpy")
def _(a, work):
    import numpy as np

    return partial(getattr(np, work.op), *a.arrays)


def _chain(a, work, fused):
    torch, x = _torch(a, "x")
    ws, bs = ([torch.from_numpy(p).clone().requires_grad_() for p in group] for group in (a.w, a.b))

    def call():
        h = x
        for w, b in zip(ws, bs, strict=True):
            h = torch.tanh(torch.addmm(b, h, w) if fused else h @ w + b)
        value = h.sum()
        return value.detach(), torch.autograd.grad(value, ws + bs)

    return call


rival(kinds.Chain, "torch")(partial(_chain, fused=False))
rival(kinds.Chain, "torch addmm", best=True)(partial(_chain, fused=True))


@rival(kinds.Import, "torch")
def _(a, work):
    _torch()  # not installed: not a rival
    return lambda: work.seconds("torch")
