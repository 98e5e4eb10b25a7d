"""Numba twin of the convolution of a normalised image: the twins of its parts, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import conv as _conv  # noqa: F401  (registers conv2d_act)
from . import group_norm as _group_norm  # noqa: F401  (registers group_norm)
from ._kernel import KERNELS, kernel


@kernel
def group_norm_conv2d(
    x: Any, gain: Any, bias: Any, scale: Any, shift: Any, w: Any, b: Any, residual: Any,
    y: Any, mean: Any, rstd: Any, groups: int, eps: float, activation: str,
) -> None:  # fmt: skip
    u = np.empty_like(x)
    KERNELS["group_norm"](x, gain, bias, scale, shift, u, mean, rstd, groups, eps, activation)
    KERNELS["conv2d_act"](u, w, b, residual, y, None, "identity", (1, 1), (1, 1, 1, 1), (1, 1), 1, "auto", "float32")
