"""Filters transformed ahead for Winograd's algorithm, and the convolution that takes them.

conv2d transforms its filter in every call. A filter that does not change, as in sampling, is transformed once by
winograd_filter; `prepare_conv2d` puts both together and gives the bits that conv2d_act gives. F(M, R) makes M outputs
of a filter of R taps from N = M + R - 1 products: filter and input are polynomials, multiplied by their values at N - 1
points and at infinity (Toom-Cook). A 4x4 filter with stride 2 is four 2x2 filters, one per phase of the pixels.
Lavin and Gray (2016), arXiv 1509.09308, eq. 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import activation as _activation
from ._table import op
from .conv import EPILOGUES, _border, _pair, conv2d_act

__all__ = ["prepare_conv2d", "winograd_conv2d", "winograd_filter"]

COLUMNS = 32  # kFilterColumns of csrc/winograd.h
POINTS = {(4, 3): (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2), (2, 3): (0, 1, -1), (4, 2): (3 / 8, -3 / 8, 5 / 4, -5 / 4)}
VARIANTS = {36: (4, 3), 16: (2, 3), 100: (4, 2)}  # products per tile -> (M, R); 100 = 4 phases of 25
ALGORITHMS = ("winograd4", "winograd2")


def matrices(m: int, r: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A' (m, n), G (n, r) and B' (n, n) with y = A' [(G w) * (B' d)], n = m + r - 1."""
    points, n = np.array(POINTS[m, r], np.longdouble), m + r - 1
    a, g, b = np.zeros((m, n), np.longdouble), np.zeros((n, r), np.longdouble), np.zeros((n, n), np.longdouble)
    for i, p in enumerate(points):
        others = np.delete(points, i)
        a[:, i], g[i] = p ** np.arange(m), p ** np.arange(r) / np.prod(p - others)
        b[i, : n - 1] = _polynomial(others)
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = _polynomial(points)
    return a.astype(dtype), g.astype(dtype), b.astype(dtype)


def _polynomial(roots: np.ndarray) -> np.ndarray:
    """The coefficients of prod (x - root), lowest first."""
    c = np.ones(1, np.longdouble)
    for root in roots:
        c = np.concatenate([[0], c]) - root * np.concatenate([c, [0]])
    return c


def _taps(size: int, border: int, a: int) -> tuple[int, int]:
    """The filter's first row for pixels 2 k + a, and the shift: y[p] reads pixels p + shift, p + shift + 1 of them."""
    first = (border + a) % 2
    return first, (first - border - a) // 2


def _phases(kernel: int, padding: Any) -> list[tuple[int, int, int, int]]:
    """(first row, first column, shift of rows, shift of columns) of every 2x2 filter in a 4x4 one."""
    top, _, left, _ = _border(padding)
    rows, columns = [[_taps(kernel, border, a) for a in (0, 1)] for border in (top, left)]
    return [(i, j, p, q) for i, p in rows for j, q in columns]


def _filter_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    kernel = dims["kh"], dims["kw"]
    if kernel not in ((3, 3), (4, 4)):
        raise ValueError(f"w must be 3 x 3, or 4 x 4 for stride 2, got {kernel[0]} x {kernel[1]}")
    if kernel == (4, 4) and a["algorithm"] == "winograd2":
        raise ValueError("4 x 4 filters have algorithm 'winograd4' only")
    k = 100 if kernel == (4, 4) else 36 if a["algorithm"] == "winograd4" else 16
    return {"k": k, "m": -(-dims["o"] // COLUMNS)}


@op(
    "w: kh kw c o -> k m c 32",
    sizes=[dict(kh=3, kw=3, c=1, o=1), dict(kh=3, kw=3, c=5, o=35)],
    attrs=[dict(), dict(algorithm="winograd2")],
    choices={"algorithm": ALGORITHMS},
    derive=_filter_sizes,
    keep="x",
    single=True,
)
def winograd_filter(w: Any, *, padding: Any = (1, 1, 1, 1), algorithm: str = "winograd4") -> Any:
    """G w G', the filter as winograd_conv2d multiplies with it. Not differentiable.

    w (3, 3, c, o) for stride 1, by F(4x4, 3x3) or F(2x2, 3x3); or (4, 4, c, o) for stride 2, by F(4x4, 2x2) of every
    phase, which depends on the padding. Returns (k, ceil(o / 32), c, 32), zero beyond o; k = 36, 16 or 100 products per
    tile. 4, 1.8 or 6.3 times as large as w. Raises ValueError for other sizes.
    """
    kh, _, c, o = w.shape
    m, r = (4, 2) if kh == 4 else (4, 3) if algorithm == "winograd4" else (2, 3)
    g = matrices(m, r, w.dtype)[1]
    parts = [w] if kh == 3 else [w[i::2, j::2] for i, j, _, _ in _phases(4, padding)]
    u = np.concatenate([_twice(g, part).reshape(-1, c, o) for part in parts])
    u = np.concatenate([u, np.zeros((*u.shape[:2], -o % COLUMNS), u.dtype)], axis=2)
    return u.reshape(len(u), c, -1, COLUMNS).transpose(0, 2, 1, 3)


def _twice(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """matrix applied along the first two axes of x."""
    return np.einsum("ai,bj,ij...->ab...", matrix, matrix, x)


def _conv_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    if dims["k"] not in VARIANTS:
        raise ValueError(f"u must come from winograd_filter and have {', '.join(map(str, VARIANTS))} products, "
                         f"got k = {dims['k']}")
    if dims["c"] < 1:
        raise ValueError("x has no channels")
    o = dims.get("o", a["o"])
    if a["o"] != o or not 32 * dims["m"] - 32 < o <= 32 * dims["m"]:
        raise ValueError(f"o = {a['o']} does not fit u with m = {dims['m']} blocks of 32 outputs"
                         + (f" and o = {o}" if a["o"] != o else ""))
    border = _border(a["padding"])
    if min(border) < 0:
        raise ValueError(f"padding must be at least 0, got {a['padding']}")
    kernel, stride = (4, 2) if dims["k"] == 100 else (3, 1)
    grid = [(dims[x] + border[2 * i] + border[2 * i + 1] - kernel) // stride + 1 for i, x in enumerate("hw")]
    if min(grid) < 1:
        raise ValueError(f"the filter is larger than the padded input, ({dims['h']}, {dims['w']}) and {border}")
    if dims.get("p", grid[0]) != grid[0] or dims.get("q", grid[1]) != grid[1]:
        raise ValueError(f"residual has (rows, columns) = {(dims['p'], dims['q'])}, but the convolution gives {grid}")
    return {"p": grid[0], "q": grid[1]}


def _case(n: int, h: int, w: int, c: int, o: int, k: int, padding: Any = (1, 1, 1, 1)) -> dict[str, Any]:
    stride, kernel = (2, 4) if k == 100 else (1, 3)
    p, q = ((s + padding[2 * i] + padding[2 * i + 1] - kernel) // stride + 1 for i, s in enumerate((h, w)))
    return dict(n=n, h=h, w=w, c=c, o=o, k=k, m=-(-o // COLUMNS), p=p, q=q, padding=padding)


@op(
    "x: n h w c, u: k m c 32, b?: o, residual?: n p q o -> n p q o",
    sizes=[_case(1, 1, 1, 1, 1, 36), _case(2, 5, 9, 3, 33, 36), _case(2, 5, 3, 17, 5, 16, (0, 1, 2, 1)),
           _case(1, 6, 5, 5, 9, 100), _case(1, 9, 7, 130, 4, 36)],
    attrs=[dict(), dict(activation="identity")],
    choices={"activation": EPILOGUES},
    derive=_conv_sizes,
    keep="x",
    single=True,
)  # fmt: skip
def winograd_conv2d(
    x: Any,
    u: Any,
    b: Any = None,
    residual: Any = None,
    *,
    o: int,
    padding: Any = (1, 1, 1, 1),
    activation: str = "silu",
) -> Any:
    """activation(conv2d(x, w) + b + residual) with u = winograd_filter(w): A' [(G w G') * (B' x B)] A for every tile.
    Not differentiable: train with conv2d_act, which gives the same bits under the same `algorithm`.

    x (n, h, w, c); u (k, ceil(o / 32), c, 32); b (o,) and residual (n, p, q, o) may be None; o outputs; stride 1, or
    2 where k is 100. Returns (n, p, q, o). Rounding error relative to the output's root mean square in float32: rms
    1.2e-6, at most 2e-5 (k = 36, c <= 512), two thirds of it otherwise. Scratch: a few MB per thread, whatever the
    batch. Raises ValueError where u, o and padding do not fit.
    """
    m, r = VARIANTS[u.shape[0]]
    n_taps = m + r - 1
    at, _, bt = matrices(m, r, x.dtype)
    border, (n, h, w, c) = _border(padding), x.shape
    stride = 2 if r == 2 else 1
    p, q = ((s + border[2 * i] + border[2 * i + 1] - stride - 2) // stride + 1 for i, s in enumerate((h, w)))
    rows, columns = -(-p // m), -(-q // m)
    filters = u.transpose(0, 2, 1, 3).reshape(u.shape[0], c, -1)[..., :o].reshape(-1, n_taps, n_taps, c, o)
    shifts = [(-border[0], -border[2])] if r == 3 else [phase[2:] for phase in _phases(4, padding)]
    total = np.zeros((n_taps, n_taps, n, rows, columns, o), x.dtype)
    for (k, f), (first, left) in zip(enumerate(filters), shifts, strict=True):
        part = x[:, k // 2 :: stride, k % 2 :: stride]
        tall = np.zeros((n, rows * m + r - 1, columns * m + r - 1, c), x.dtype)  # from row `first`, column `left` on
        i0, j0 = max(first, 0), max(left, 0)
        inside = part[:, i0 : first + tall.shape[1], j0 : left + tall.shape[2]]
        tall[:, i0 - first : i0 - first + inside.shape[1], j0 - left : j0 - left + inside.shape[2]] = inside
        for i in range(rows):
            for j in range(columns):
                tile = tall[:, i * m : i * m + n_taps, j * m : j * m + n_taps].transpose(1, 2, 0, 3)
                total[:, :, :, i, j] += np.einsum("abnc,abco->abno", _twice(bt, tile), f)
    y = np.einsum("ai,bj,ijnrso->nrasbo", at, at, total).reshape(n, rows * m, columns * m, o)[:, :p, :q]
    y = y if b is None else y + b
    y = y if residual is None else y + residual
    return y if activation == "identity" else getattr(_activation, activation)(y)


def _variant(h: int, w: int, c: int, o: int, kernel: int, padding: Any) -> str | None:
    """The algorithm that conv2d takes for float32 images of this size, as winograd_choice in csrc/winograd_conv.h."""
    if min(c, o) < 24:
        return None
    border, stride = _border(padding), kernel - 2
    p, q = ((s + border[2 * i] + border[2 * i + 1] - kernel) // stride + 1 for i, s in enumerate((h, w)))
    if min(p, q) < 1:
        return None

    def cost(m: int, n: int) -> float:
        return -(-p // m) * -(-q // m) * n * n / (p * q)

    if kernel == 4:
        return "winograd4" if 4 * cost(4, 5) <= 10 else None
    four, two = cost(4, 6), cost(2, 4)
    return None if min(four, two) > 6 else "winograd4" if four < two else "winograd2"


def filter_variant(x_shape: tuple, w: Any, *, stride: Any, padding: Any, dilation: Any = (1, 1), groups: int = 1,
                   algorithm: str = "auto", precision: str = "float32", **rest: Any) -> str | None:
    """The algorithm of winograd_filter that suits conv2d(x, w) with these attributes; None where conv2d uses none."""
    _, h, width, c = x_shape
    kernel = w.shape[0]
    suits = (
        w.dtype == np.float32 and w.shape[:2] in ((3, 3), (4, 4)) and c == w.shape[2] and groups == 1
        and set(_pair(stride)) == {kernel - 2} and set(_pair(dilation)) == {1}
        and algorithm == "auto" and precision == "float32"
    )  # fmt: skip
    return _variant(h, width, c, w.shape[3], kernel, padding) if suits else None


def prepare_conv2d(
    w: Any, b: Any = None, *, stride: int = 1, padding: Any = (1, 1, 1, 1), activation: str = "identity"
) -> Callable[..., Any]:
    """convolve(x, residual=None) = conv2d_act(x, w, b, residual, ...), for filters that do not change.

    w (kh, kw, c, o); b (o,) or None; stride, padding and activation as in conv2d_act. The filter is transformed when an
    image first asks for it; afterwards a call saves that (7 % of 4 images of 32x32x128, a quarter of 16 of 8x8x256).
    The result has the bits of conv2d_act. w must not be changed afterwards. Not differentiable.
    """
    filters: dict[str, Any] = {}

    def convolve(x: Any, residual: Any = None) -> Any:
        found = filter_variant(x.shape, w, stride=stride, padding=padding)
        if found is None:
            return conv2d_act(x, w, b, residual, stride=(stride,), padding=padding, activation=activation)
        if found not in filters:
            filters[found] = winograd_filter(w, padding=padding, algorithm=found)
        return winograd_conv2d(x, filters[found], b, residual, o=w.shape[3], padding=padding, activation=activation)

    return convolve
