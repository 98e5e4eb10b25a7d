"""What is measured at which size, and the goals: data that the printed tables are checked against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from work import (
    Adam,
    Ancestral,
    Chain,
    Ddim,
    Heun,
    Import,
    KernelSum,
    Knn,
    Launch,
    LinearSilu,
    Matmul,
    Normals,
    QSample,
    Small,
)


@dataclass(frozen=True)
class Case:
    """Work of one size. goals: rival -> ours is at least so many times as fast; seconds and memory (bytes): at most;
    peak: at least this fraction of the machine's."""

    name: str
    work: Any
    goals: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    memory: float | None = None
    peak: float | None = None


IMAGES, SMALL = (64, 3, 64, 64), (1, 3, 32, 32)
SHAPES = [(128, 256, 256), (500, 256, 256), (128, 784, 512)]
CASES = [
    *(Case(f"matmul {n}", Matmul(n, n, n), {"torch": 1.1, "numpy": 1.0}, peak=0.88) for n in (1024, 2048, 4096)),
    *(Case("matmul {}x{}x{}".format(*s), Matmul(*s), {"torch": 1.0, "numpy": 1.0}) for s in SHAPES),
    *(Case("linear+silu {}x{}x{}".format(*s), LinearSilu(*s), {"torch": 1.4}) for s in SHAPES),
    Case("normal 16 M", Normals(1 << 24), {"torch": 8, "numpy": 15}),
    Case("q_sample 64x3x64x64", QSample(IMAGES), {"torch": 8}),
    Case("noisy step 64x3x64x64", Ancestral(IMAGES), {"torch": 8}),
    Case("DDIM step 64x3x64x64", Ddim(IMAGES), {"torch": 4}),
    Case("Heun step 64x3x64x64", Heun(IMAGES), {"torch": 2.5}),
    Case("noisy step 1x3x32x32", Ancestral(SMALL), {"torch": 5}),
    Case("DDIM step 1x3x32x32", Ddim(SMALL), {"torch": 5}),
    Case("Heun step 1x3x32x32", Heun(SMALL), {"torch": 5}),
    Case("Adam 40 x 64x64", Adam(40, (64, 64)), {"torch": 25, "torch fused": 8}),
    Case("Adam 10 M", Adam(1, (10_000_000,)), {"torch fused": 1.0}),
    Case("rbf kernel_sum 10k x 10k, d=64", KernelSum(10_000, 64), {"torch": 8}, memory=32e6),
    Case("rbf kernel_sum 10k x 10k, d=2", KernelSum(10_000, 2), {"torch": 15}, memory=32e6),
    Case("knn k=5 10k x 10k, d=64", Knn(10_000, 64), {"sklearn": 3}),
    Case("launch of no work", Launch(), seconds=0.3e-6),
    Case("tanh (4, 8)", Small("tanh"), seconds=2.5e-6),
    Case("add (4, 8)", Small("add"), seconds=2.5e-6),
    Case("value and gradient, 20 x (linear, tanh)", Chain(), {"torch": 1 / 0.6}),
    Case("import generant", Import("generant"), seconds=10e-3),
    Case("import generant.ops", Import("generant.ops")),
]
