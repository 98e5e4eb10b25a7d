"""A 3 x 3 convolution of an image enlarged twice by repeating pixels: what the decoders of diffusion models end in.

upsample_conv2d, its gradient in x and its gradient in w contract one trilinear form over different indices, so together
they are closed under differentiation. Kernels never form the enlarged image: each of the four phases of the output is a
2 x 2 convolution of the small image whose taps are sums of the nine, 16 products per pixel instead of 36.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._table import bilinear_triple, op

__all__ = ["upsample_conv2d", "upsample_conv2d_dw", "upsample_conv2d_dx"]

SIZES = [
    dict(n=1, h=1, w=1, c=1, o=1, p=2, q=2),
    dict(n=2, h=3, w=5, c=3, o=2, p=6, q=10),
    dict(n=3, h=4, w=2, c=17, o=19, p=8, q=4),
]


def _enlarged(x: Any) -> Any:
    """x with every pixel four times, and a border of zeros."""
    return np.pad(x.repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))


def _doubled(dims: dict, attrs: dict) -> dict:
    return {"p": 2 * dims["h"], "q": 2 * dims["w"]}


def _halved(dims: dict, attrs: dict) -> dict:
    if dims["p"] % 2 or dims["q"] % 2:
        raise ValueError(f"g must have even numbers of rows and columns, got {(dims['p'], dims['q'])}")
    return {"h": dims["p"] // 2, "w": dims["q"] // 2}


def _check_doubled(dims: dict, attrs: dict) -> dict:
    wanted = 2 * dims["h"], 2 * dims["w"]
    if (dims["p"], dims["q"]) != wanted:
        raise ValueError(f"g must be twice as large as x, {wanted}, got {(dims['p'], dims['q'])}")
    return {}


@op("x: n h w c, w: 3 3 c o -> n p q o", sizes=SIZES, derive=_doubled, keep="x")
def upsample_conv2d(x: Any, w: Any) -> Any:
    """conv2d(x with every pixel repeated twice by twice, w, padding=1).

    x (n, h, w, c); w (3, 3, c, o). Returns (n, 2 h, 2 w, o). 16 n h w c o products; memory: the result and twice
    16 c o numbers.
    """
    n, h, width, _ = x.shape
    z = _enlarged(x)
    y = np.zeros((n, 2 * h, 2 * width, w.shape[3]), x.dtype)
    for i in range(3):
        for j in range(3):
            y += z[:, i : i + 2 * h, j : j + 2 * width] @ w[i, j]
    return y


@op("g: n p q o, w: 3 3 c o -> n h w c", sizes=SIZES, derive=_halved, keep="x")
def upsample_conv2d_dx(g: Any, w: Any) -> Any:
    """The gradient of upsample_conv2d in x.

    g (n, 2 h, 2 w, o); w (3, 3, c, o). Returns (n, h, w, c). Raises ValueError if g has an odd size.
    """
    n, p, q, _ = g.shape
    z = np.zeros((n, p + 2, q + 2, w.shape[2]), g.dtype)
    for i in range(3):
        for j in range(3):
            z[:, i : i + p, j : j + q] += g @ w[i, j].T
    return z[:, 1:-1, 1:-1].reshape(n, p // 2, 2, q // 2, 2, w.shape[2]).sum((2, 4))


@op("x: n h w c, g: n p q o -> 3 3 c o", sizes=SIZES, derive=_check_doubled, keep="x")
def upsample_conv2d_dw(x: Any, g: Any) -> Any:
    """The gradient of upsample_conv2d in w, summed over samples and pixels.

    x (n, h, w, c); g (n, 2 h, 2 w, o). Returns (3, 3, c, o).
    """
    _, p, q, o = g.shape
    z, c = _enlarged(x), x.shape[3]
    dw = np.zeros((3, 3, c, o), x.dtype)
    for i in range(3):
        for j in range(3):
            dw[i, j] = z[:, i : i + p, j : j + q].reshape(x.shape[0] * p * q, c).T @ g.reshape(x.shape[0] * p * q, o)
    return dw


bilinear_triple(upsample_conv2d, upsample_conv2d_dx, upsample_conv2d_dw)
