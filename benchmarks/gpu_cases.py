"""What gpu.py measures: each case makes inputs on the GPU, our call and torch's, and says what it moves or multiplies.

Sizes are those of an H100-class GPU; `small` ones only show that everything runs. A case is a function of (cp, torch,
small) that returns a Case; torch is as a user would write it in eager mode, on the same numbers, taken over by DLPack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from generant import ops, random

KEY = np.array([1, 2], np.uint64)


@dataclass
class Case:
    """One row of the table. bytes: moved at least; flops: multiplications and additions of the algorithm."""

    name: str
    ours: Callable[[], Any]
    torch: dict[str, Callable[[], Any]]  # contenders by name
    bytes: float = 0
    like: str = "copy"  # or "fill": what the bytes are held against
    flops: float = 0
    pairs: float = 0
    goal: str = ""
    tolerance: float | None = 1e-4  # of the largest value; None where the numbers are random and differ
    compare: Callable[[Any], Any] = field(default=lambda y: y)


def normal(cp: Any, *shape: int, stream: int = 0) -> Any:
    return random.normal(cp.asarray(np.array([3, stream], np.uint64)), shape)


def diffusion_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    n, c = (4, 64) if small else (1024, 3 * 64 * 64)
    x, prediction = normal(cp, n, c), normal(cp, n, c, stream=1)
    alpha, sigma = cp.full((n,), 0.8, np.float32), cp.full((n,), 0.6, np.float32)
    tx, tp, ta, ts = map(torch.from_dlpack, (x, prediction, alpha, sigma))
    keys = cp.asarray(random.split(KEY, n))
    euler = np.array([0, 1, 0, 0.7, 0.3, 0, 0, 0, 0, 0, 0, 0, 0])
    ancestral = np.array([0, 1, 0, 0.7, 0.2, 0, 0, 0, 0, 0.5, 3, 0, 0])

    def noisy():
        return 0.7 * tx + 0.2 * tp + 0.5 * torch.randn_like(tx)

    size = x.nbytes
    return [
        Case(
            "sampler step, Euler",
            lambda: ops.sampler_step(x, prediction, coef=euler),
            {"torch": lambda: 0.7 * tx + 0.3 * tp},
            bytes=3 * size,
            goal="85 % of copy, 3x",
        ),
        Case(
            "sampler step, ancestral",
            lambda: ops.sampler_step(x, prediction, None, None, None, None, None, keys, ancestral),
            {"torch": noisy},
            bytes=3 * size,
            goal="85 % of copy, 3x",
            tolerance=None,
        ),
        Case(
            "q_sample",
            lambda: ops.q_sample(x, alpha, sigma, KEY),
            {"torch": lambda: ta[:, None] * tx + ts[:, None] * torch.randn_like(tx)},
            bytes=2 * size,
            goal="85 % of copy, 3x",
            tolerance=None,
        ),
        Case(
            "normal",
            lambda: random.normal(cp.asarray(KEY), (n, c)),
            {"torch": lambda: torch.randn_like(tx)},
            bytes=size,
            like="fill",
            goal="90 % of write",
            tolerance=None,
        ),
    ]


def norm_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    cases = []
    shapes = ((2, 4, 4, 32),) if small else ((64, 64, 64, 128), (128, 8, 8, 64), (64, 28, 28, 64))
    for n, h, w, c in shapes:
        x, gain, bias = normal(cp, n, h, w, c), normal(cp, c, stream=1), normal(cp, c, stream=2)
        scale, shift = normal(cp, n, c, stream=3), normal(cp, n, c, stream=4)
        first = torch.from_dlpack(x).permute(0, 3, 1, 2)
        tg, tb, t1, t2 = map(torch.from_dlpack, (gain, bias, scale, shift))

        def modulated(first=first, tg=tg, tb=tb, t1=t1, t2=t2):
            y = (
                torch.nn.functional.group_norm(first, 8, tg, tb, 1e-5) * (1 + t1[:, :, None, None])
                + t2[:, :, None, None]
            )
            return torch.nn.functional.silu(y)

        cases.append(
            Case(
                f"group_norm + scale-shift + SiLU, {n}x{h}x{w}x{c}",
                lambda x=x, g=gain, b=bias, s=scale, t=shift: ops.group_norm(
                    x, g, b, s, t, groups=8, eps=1e-5, activation="silu"
                ),
                {"torch channels_last": modulated},
                bytes=2 * x.nbytes,
                goal="85 % of copy, 3x",
                compare=lambda y: (
                    y.permute(0, 2, 3, 1) if y.ndim == 4 and y.shape[1:] != () and hasattr(y, "permute") else y
                ),
            )
        )
    return cases


def pairwise_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    n, d = (128, 16) if small else (50_000, 64)
    x, y = normal(cp, n, d), normal(cp, n, d, stream=1)
    tx, ty = map(torch.from_dlpack, (x, y))
    few = 96 if small else 10_000  # torch holds n x m numbers at once
    gamma = 1.0 / (2 * d)

    def rbf_sum():
        return sum(
            torch.exp(torch.cdist(part, ty).square_().mul_(-gamma)).sum(dtype=torch.float64) for part in tx.split(few)
        )

    def nearest():
        return torch.cat([torch.cdist(part, ty).min(1).values for part in tx.split(few)])

    def knn():
        return torch.cat([torch.cdist(part, ty).topk(5, 1, largest=False).values for part in tx.split(few)])

    def logsumexp():
        return torch.cat([torch.logsumexp(torch.cdist(part, ty).square_().mul_(-0.5), 1) for part in tx.split(few)])

    flops = 2.0 * n * n * d
    return [
        Case(
            f"rbf kernel sum, n {n}, d {d}",
            lambda: ops.kernel_sum(x, y, kernel="rbf", bandwidth=d**0.5),
            {"torch": rbf_sum},
            pairs=n * n,
            flops=flops,
            goal="5e11 pairs/s, 5x",
        ),
        Case(
            f"nearest, n {n}, d {d}",
            lambda: ops.nearest(x, y)[0],
            {"torch": nearest},
            pairs=n * n,
            flops=flops,
            goal="3x",
            tolerance=1e-3,
        ),
        Case(
            f"knn, k 5, n {n}, d {d}",
            lambda: ops.knn(x, y, k=5)[0],
            {"torch": knn},
            pairs=n * n,
            flops=flops,
            goal="3x",
            tolerance=1e-3,
        ),
        Case(
            f"logsumexp, n {n}, d {d}",
            lambda: ops.logsumexp(x, y, scale=0.5),
            {"torch": logsumexp},
            pairs=n * n,
            flops=flops,
            tolerance=1e-3,
        ),
    ]


def attention_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    cases = []
    shapes = ((1, 64, 2, 32),) if small else ((8, 1024, 8, 64), (2, 4096, 8, 64), (8, 1024, 8, 128), (64, 64, 4, 64))
    attention = torch.nn.functional.scaled_dot_product_attention
    for n, t, heads, d in shapes:
        q, k, v = (normal(cp, n, t, heads, d, stream=i) for i in range(3))
        tq, tk, tv = (torch.from_dlpack(a).transpose(1, 2) for a in (q, k, v))
        flops = 4.0 * n * heads * t * t * d
        cases.append(
            Case(
                f"attention float32, {n}x{t}x{heads}x{d}",
                lambda q=q, k=k, v=v: ops.attention(q, k, v),
                {"torch SDPA": lambda q=tq, k=tk, v=tv: attention(q, k, v)},
                flops=flops,
                goal="2x",
                compare=lambda y: y.transpose(1, 2) if hasattr(y, "permute") else y,
            )
        )
        b = [a.to(torch.bfloat16) for a in (tq, tk, tv)]
        cases.append(
            Case(
                f"attention bf16, {n}x{t}x{heads}x{d}",
                lambda q=q, k=k, v=v: ops.attention(q, k, v, precision="bf16"),
                {"torch SDPA bf16": lambda b=b: attention(*b)},
                flops=flops,
                tolerance=5e-2,
                compare=lambda y: y.transpose(1, 2).float() if hasattr(y, "permute") else y,
            )
        )
        g = normal(cp, n, t, heads, d, stream=4)
        tg = torch.from_dlpack(g).transpose(1, 2)
        grads = [a.detach().clone().requires_grad_() for a in (tq, tk, tv)]

        def torch_backward(grads=grads, tg=tg):
            for a in grads:
                a.grad = None
            attention(*grads).backward(tg)
            return grads[0].grad

        cases.append(
            Case(
                f"attention float32, forward and gradients, {n}x{t}x{heads}x{d}",
                lambda q=q, k=k, v=v, g=g: _with_gradients(q, k, v, g),
                {"torch SDPA": torch_backward},
                flops=3.5 * flops,
                compare=lambda y: y.transpose(1, 2) if hasattr(y, "permute") else y,
            )
        )
    return cases


def _with_gradients(q: Any, k: Any, v: Any, g: Any) -> Any:
    y, lse = ops.attention.all(q, k, v)
    return ops.attention_bwd.all(g, q, k, v, None, y, lse, need=(0, 1, 2))[0]


def product_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    cases = []
    convolution = torch.nn.functional.conv2d
    shapes = (
        ((1, 8, 8, 8, 8, 3),)
        if small
        else ((64, 32, 32, 128, 128, 3), (16, 64, 64, 128, 128, 3), (128, 8, 8, 64, 64, 3), (64, 32, 32, 256, 256, 1))
    )
    for n, h, w, c, o, k in shapes:
        x, f, g = (
            normal(cp, n, h, w, c),
            normal(cp, k, k, c, o, stream=1) * (k * k * c) ** -0.5,
            normal(cp, n, h, w, o, stream=2),
        )
        tx, tg = (torch.from_dlpack(a).permute(0, 3, 1, 2) for a in (x, g))
        tf = torch.from_dlpack(f).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        pad, flops = k // 2, 2.0 * n * h * w * c * o * k * k
        here = lambda y: y.permute(0, 2, 3, 1) if hasattr(y, "permute") and y.ndim == 4 else y
        cases += [
            Case(
                f"conv2d {k}x{k}, {n}x{h}x{w}x{c} -> {o}",
                lambda x=x, f=f, p=pad: ops.conv2d(x, f, padding=p),
                {
                    "torch (cuDNN, no TF32)": lambda x=tx, f=tf, p=pad: convolution(x, f, padding=p),
                    # our own kernels one by one: with generant[cudnn] installed the first column is cuDNN's
                    "own product": lambda x=x, f=f, p=pad: ops.conv2d(x, f, padding=p, algorithm="gemm"),
                    "own Winograd": lambda x=x, f=f, p=pad: ops.conv2d(x, f, padding=p, algorithm="winograd4"),
                },
                flops=flops,
                goal="within 3 % with cuDNN",
                compare=here,
            ),
            Case(
                f"conv2d_dx {k}x{k}, {n}x{h}x{w}x{c} -> {o}",
                lambda g=g, f=f, p=pad, h=h, w=w: ops.conv2d_dx(g, f, padding=p, size=(h, w)),
                {
                    "torch (cuDNN, no TF32)": lambda x=tx, f=tf, g=tg, p=pad: torch.nn.grad.conv2d_input(
                        x.shape, f, g, padding=p
                    )
                },
                flops=flops,
                compare=here,
            ),
            Case(
                f"conv2d_dw {k}x{k}, {n}x{h}x{w}x{c} -> {o}",
                lambda x=x, g=g, p=pad, k=k: ops.conv2d_dw(x, g, padding=p, kernel=(k, k)),
                {
                    "torch (cuDNN, no TF32)": lambda x=tx, f=tf, g=tg, p=pad: torch.nn.grad.conv2d_weight(
                        x, f.shape, g, padding=p
                    )
                },
                flops=flops,
                compare=lambda y: y.permute(2, 3, 1, 0) if hasattr(y, "permute") else y,
            ),
        ]
    m = 64 if small else 4096
    a, b = normal(cp, m, m), normal(cp, m, m, stream=1)
    ta, tb = map(torch.from_dlpack, (a, b))
    cases.append(Case(f"matmul {m}", lambda: ops.matmul(a, b), {"torch": lambda: ta @ tb}, flops=2.0 * m**3))
    return cases


def other_cases(cp: Any, torch: Any, small: bool) -> list[Case]:
    n = 1000 if small else 1 << 26
    x, y = normal(cp, n), normal(cp, n, stream=1)
    tx, ty = map(torch.from_dlpack, (x, y))
    p, m, v, g = normal(cp, n), cp.zeros(n, np.float32), cp.zeros(n, np.float32), normal(cp, n, stream=2)
    step, lr = cp.asarray(np.ones(1, np.int64)), cp.asarray(np.full(1, 1e-3))
    q = torch.nn.Parameter(torch.from_dlpack(p).clone())
    q.grad = torch.from_dlpack(g).clone()
    adam = torch.optim.Adam([q], lr=1e-3, fused=torch.cuda.is_available())
    rows = n // 1000
    logits = x[: rows * 1000].reshape(rows, 1000)
    torch_logits = torch.from_dlpack(logits)
    return [
        Case("add", lambda: ops.add(x, y), {"torch": lambda: tx + ty}, bytes=3 * x.nbytes),
        Case("silu", lambda: ops.silu(x), {"torch": lambda: torch.nn.functional.silu(tx)}, bytes=2 * x.nbytes),
        Case(
            "adam_",
            lambda: ops.adam_(p, m, v, g, step, lr),
            {"torch fused": adam.step},
            bytes=7 * x.nbytes,
            tolerance=None,
        ),
        Case("sum", lambda: ops.sum(x), {"torch": lambda: tx.sum()}, bytes=x.nbytes, tolerance=1e-2),
        Case(
            "softmax, rows of 1000",
            lambda: ops.softmax(logits),
            {"torch": lambda: torch_logits.softmax(-1)},
            bytes=2 * logits.nbytes,
        ),
    ]


FAMILIES = {
    "diffusion": diffusion_cases,
    "norm": norm_cases,
    "pairwise": pairwise_cases,
    "attention": attention_cases,
    "products": product_cases,
    "other": other_cases,
}
