"""What generant is measured against: each family of work as other libraries do it.

Here: products, random numbers, sampler steps, the optimiser, and overhead. rivals_conv.py, rivals_norm.py and
rivals_attention.py have the layers of networks, rivals_models.py whole models, rivals_pairwise.py sums and searches
over all pairs, rivals_metrics.py the scores; importing this module registers all of them.
"""

from __future__ import annotations

from functools import partial

import rivals_attention  # noqa: F401
import rivals_conv  # noqa: F401
import rivals_diffusion  # noqa: F401
import rivals_metrics  # noqa: F401
import rivals_models  # noqa: F401
import rivals_norm  # noqa: F401
import rivals_pairwise  # noqa: F401
import work as kinds
from registry import contenders, rival, with_torch

__all__ = ["contenders"]

# ---------------------------------------------------------------- products


@rival(kinds.Matmul, "torch")
def _(a, work):
    torch, x, w = with_torch(a, "x", "w")
    return lambda: torch.matmul(x, w)


@rival(kinds.Matmul, "torch out=", best=True)
def _(a, work):
    torch, x, w = with_torch(a, "x", "w")
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
    torch, x, w, b = with_torch(a, "x", "w", "b")
    return lambda: torch.nn.functional.silu(torch.add(torch.matmul(x, w), b))


@rival(kinds.LinearSilu, "torch silu(linear)", best=True)
def _(a, work):
    torch, x, w, b = with_torch(a, "x", "w", "b")
    w = w.T.contiguous()  # as nn.Linear stores it
    silu, linear = torch.nn.functional.silu, torch.nn.functional.linear
    return lambda: silu(linear(x, w, b), inplace=True)


@rival(kinds.LinearBf16, "generant float32")
def _(a, work):
    from generant import ops

    return lambda: ops.linear(a.x, a.w, a.b)


@rival(kinds.LinearBf16, "torch float32")
def _(a, work):
    torch, x, w, b = with_torch(a, "x", "w", "b")
    return partial(torch.nn.functional.linear, x, w.T.contiguous(), b)


@rival(kinds.LinearBf16, "torch bf16")
def _(a, work):
    torch, x, w, b = with_torch(a, "x", "w", "b")
    w, b = w.T.contiguous().bfloat16(), b.bfloat16()
    linear = torch.nn.functional.linear
    return lambda: linear(x.bfloat16(), w, b).float()  # float32 in and out, as ours


@rival(kinds.LinearBf16, "torch bf16 in and out", best=True)
def _(a, work):
    torch, x, w, b = with_torch(a, "x", "w", "b")
    return partial(torch.nn.functional.linear, x.bfloat16(), w.T.contiguous().bfloat16(), b.bfloat16())


# ---------------------------------------------------------------- random numbers and diffusion steps


@rival(kinds.Normals, "torch", tuned=True)
def _(a, work):
    (torch,) = with_torch()
    return lambda: torch.randn(a.n)


@rival(kinds.Normals, "torch normal_", best=True)
def _(a, work):
    (torch,) = with_torch()
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
    torch, x, alpha, sigma = with_torch(a, "x", "alpha", "sigma")
    return lambda: alpha.view(-1, 1, 1, 1) * x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)


@rival(kinds.QSample, "torch in place", best=True)
def _(a, work):
    torch, x, alpha, sigma = with_torch(a, "x", "alpha", "sigma")
    alpha, sigma, y, z = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1), torch.empty_like(x), torch.empty_like(x)

    @torch.inference_mode()
    def call():
        return torch.mul(x, alpha, out=y).addcmul_(z.normal_(), sigma)

    return call


@rival(kinds.Ancestral, "torch", tuned=True)
def _(a, work):
    torch, x, eps = with_torch(a, "x", "eps")

    def call():
        denoised = ((x - work.sigma * eps) / work.alpha).clamp(-1, 1)
        return work.c_d * denoised + work.c_x * x + work.c_noise * torch.randn_like(x)

    return call


@rival(kinds.Ancestral, "torch in place", best=True)
def _(a, work):
    torch, x, eps = with_torch(a, "x", "eps")
    y, z = torch.empty_like(x), torch.empty_like(x)

    @torch.inference_mode()
    def call():
        torch.sub(x, eps, alpha=work.sigma, out=y).mul_(1 / work.alpha).clamp_(-1, 1).mul_(work.c_d)
        return y.add_(x, alpha=work.c_x).add_(z.normal_(), alpha=work.c_noise)

    return call


@rival(kinds.Ddim, "torch", tuned=True)
def _(a, work):
    _, x, eps = with_torch(a, "x", "eps")

    def call():
        denoised = (x - work.sigma * eps) / work.alpha
        return work.alpha_next * denoised + work.sigma_next * eps

    return call


@rival(kinds.Ddim, "torch in place", best=True)
def _(a, work):
    torch, x, eps = with_torch(a, "x", "eps")
    y, scale = torch.empty_like(x), work.alpha_next / work.alpha

    @torch.inference_mode()
    def call():
        return torch.mul(x, scale, out=y).add_(eps, alpha=work.sigma_next - scale * work.sigma)

    return call


@rival(kinds.Heun, "torch", tuned=True)
def _(a, work):
    _, x0, slope, euler, denoised = with_torch(a, "x0", "slope", "euler", "denoised")

    def call():  # as in the code of Karras et al. (2022)
        end = (euler - denoised) / work.t
        return x0 + (work.t - work.s) * (0.5 * slope + 0.5 * end)

    return call


@rival(kinds.Heun, "torch in place", best=True)
def _(a, work):
    torch, euler, denoised, first = with_torch(a, "euler", "denoised", "first")
    y, c = torch.empty_like(euler), (work.s - work.t) / (2 * work.t)

    @torch.inference_mode()
    def call():
        return torch.add(euler, denoised, alpha=c, out=y).sub_(first, alpha=c)

    return call


# ---------------------------------------------------------------- optimiser


def _adam(a, work, flat=False, **options):
    torch, p, g = with_torch(a, "p", "g")
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


# ---------------------------------------------------------------- overhead


@rival(kinds.Small, "torch")
def _(a, work):
    torch, = with_torch()
    return partial(getattr(torch, work.op), *map(torch.from_numpy, a.arrays))


@rival(kinds.Small, "numpy")
def _(a, work):
    import numpy as np

    return partial(getattr(np, work.op), *a.arrays)


def _chain(a, work, fused):
    torch, x = with_torch(a, "x")
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
    with_torch()  # not installed: not a rival
    return lambda: work.seconds("torch")
