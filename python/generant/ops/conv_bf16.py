"""Convolution in bfloat16: what precision="bf16" means for conv2d, its gradients and conv2d_act (float32 arrays only).

Both operands are rounded to bfloat16 and sums are float32, as for matrix products (matmul.py); bias, residual and
activation stay in float32. The convolutions of a derivative take the same attribute, and rounding itself counts as the
identity there. Products of such operands are exact in float32, so the error against this definition is that of a
float32 convolution by "gemm" or "direct". Bits may differ between instruction sets, not between numbers of threads.

Never by Winograd's algorithm, whose transforms need the digits: "auto", "winograd2" and "winograd4" take the direct
kernel where there is one and the product elsewhere. A 3x3 convolution with stride 1 has then 2.25 or 4 times the
products of float32 and is usually slower than it; 4x4 with stride 2 has 2.56 times as many and is still faster.

Up to twice as fast on processors with AVX512-BF16 (`generant info`: avx512bf16): every product of the forward pass and
of the gradient in x, and the gradient in 1x1 filters of at least 2^14 numbers. The other gradients in w, the direct
kernels and other processors round copies of both operands in scratch and compute in float32: no faster than it.
"""

from __future__ import annotations

from typing import Any

from .matmul import PRECISION as OF_PRODUCTS
from .matmul import PRECISIONS
from .matmul import _operands as rounded

__all__ = ["PRECISION", "PRECISIONS", "rounded"]

PRECISION: dict[str, Any] = dict(float32_only=OF_PRODUCTS["float32_only"], variants={"precision": "bf16"})
