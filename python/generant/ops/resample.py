"""Pooling, resizing, filtering and padding of images (NHWC).

avg_pool, resize and pad are separable linear maps, y = A x B^T for every channel, with the taps of A and B in
_taps.py; the `_bwd` op of each is its adjoint. upfirdn2d (zero insertion, finite impulse response filter, decimation)
is closed under differentiation: its gradient in x is upfirdn2d with up and down exchanged. max_pool remembers which
place of its window it took; its gradient and that of its gradient only look there.

Every map is vectorised over channels or over whole rows of the image, and no intermediate image is formed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _taps
from ._device import beside
from ._table import op, rule
from ._taps import image_size, integers

__all__ = [
    "avg_pool", "avg_pool_bwd", "blur", "max_pool", "max_pool_at", "max_pool_bwd", "pad", "pad_bwd", "resize",
    "resize_bwd", "upfirdn2d", "upfirdn2d_df",
]

WHOLE = (0, 0, 0, 0)


def _separable(x: Any, size: tuple[int, int], rows: _taps.Taps, columns: _taps.Taps) -> Any:
    """A x B^T for every sample and channel."""
    _, h, w, _ = x.shape
    a, b = _taps.matrix(rows, size[0], h, x.dtype), _taps.matrix(columns, size[1], w, x.dtype)
    return np.einsum("qw,npwc->npqc", b, np.einsum("ph,nhwc->npwc", a, x))


def _agree(dims: dict, expected: tuple[int, int], size: tuple[int, int]) -> None:
    if (dims["p"], dims["q"]) != expected:
        raise ValueError(f"g is {dims['p']} x {dims['q']}, but an input of size {size} gives {expected}")


# ---- pooling --------------------------------------------------------------------------------------------------------


def _windows(attrs: dict) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """window, stride (the window where none is given) and padding, complete."""
    window = integers("window", attrs["window"], 2, 1)
    stride = window if attrs["stride"] in ((), None) else integers("stride", attrs["stride"], 2, 1)
    padding = integers("padding", attrs["padding"], 4, 0)
    if padding[0] >= window[0] or padding[1] >= window[0] or padding[2] >= window[1] or padding[3] >= window[1]:
        raise ValueError(f"padding must be smaller than the window {window}, got {padding}: a window would be empty")
    return window, stride, padding


def _pooled(size: tuple[int, int], attrs: dict) -> tuple[int, int]:
    window, stride, padding = _windows(attrs)
    room = [size[k] + padding[2 * k] + padding[2 * k + 1] - window[k] for k in (0, 1)]
    if min(room) < 0 or min(size) < 1:
        raise ValueError(f"window {window} does not fit an image of size {size} with padding {padding}")
    return room[0] // stride[0] + 1, room[1] // stride[1] + 1


def _pool_sizes(dims: dict, attrs: dict) -> dict:
    p, q = _pooled((dims["h"], dims["w"]), attrs)
    return {"p": p, "q": q}


def _unpool_sizes(dims: dict, attrs: dict) -> dict:
    h, w = size = image_size(attrs["size"])
    _agree(dims, _pooled(size, attrs), size)
    return {"h": h, "w": w}


def _max_pool_sizes(dims: dict, attrs: dict) -> dict:
    window = integers("window", attrs["window"], 2, 1)
    if window[0] * window[1] > 256:
        raise ValueError(f"window must have at most 256 places, got {window}")
    return _unpool_sizes(dims, attrs) if "size" in attrs else _pool_sizes(dims, attrs)


def _max_pool_at_sizes(dims: dict, attrs: dict) -> dict:
    sizes = _max_pool_sizes(dims, attrs)
    _agree(dims, (sizes["p"], sizes["q"]), (dims["h"], dims["w"]))
    return {}


POOL_SIZES = [dict(n=1, h=3, w=3, c=1), dict(n=2, h=5, w=7, c=3), dict(n=2, h=8, w=6, c=19)]
POOL_CASES: list[dict[str, Any]] = [dict(), dict(window=(3, 2), stride=(2, 1), padding=(1, 2, 0, 1))]


def _mean_taps(size: tuple, pooled: tuple, attrs: dict) -> list[_taps.Taps]:
    window, stride, padding = _windows(attrs)
    include = attrs["count_include_pad"]
    return [_taps.pool(size[k], pooled[k], window[k], stride[k], padding[2 * k], include) for k in (0, 1)]


@op("x: n h w c -> n p q c", sizes=POOL_SIZES, attrs=[*POOL_CASES, dict(POOL_CASES[1], count_include_pad=True)],
    derive=_pool_sizes, keep="")
def avg_pool(x: Any, *, window: tuple = (2, 2), stride: tuple | None = (), padding: tuple = WHOLE,
             count_include_pad: bool = False) -> Any:
    """The mean over every window of rows and columns.

    x (n, h, w, c); window, stride (rows, columns), stride () or None is the window; padding (top, bottom, left, right)
    of zeros, which count only with count_include_pad. Returns (n, p, q, c), p = (h + top + bottom - window) // stride
    + 1. Time O(n c (h w + p q) window): rows first, then columns. Raises ValueError if a window could miss the image.
    """
    attrs = dict(window=window, stride=stride, padding=padding, count_include_pad=count_include_pad)
    pooled = _pooled(x.shape[1:3], attrs)
    return _separable(x, pooled, *_mean_taps(x.shape[1:3], pooled, attrs))


@op("g: n p q c -> n h w c", sizes=[dict(n=1, p=1, q=1, c=1), dict(n=2, p=3, q=4, c=3), dict(n=2, p=3, q=4, c=19)],
    attrs=[dict(size=(3, 3)), dict(size=(6, 8)), dict(size=(4, 4), **POOL_CASES[1]),
           dict(size=(4, 4), count_include_pad=True, **POOL_CASES[1])],
    derive=_unpool_sizes, keep="")
def avg_pool_bwd(g: Any, *, size: tuple, window: tuple = (2, 2), stride: tuple | None = (), padding: tuple = WHOLE,
                 count_include_pad: bool = False) -> Any:
    """The adjoint of avg_pool on inputs of `size` (h, w): every g, divided by the size of its window, goes back there.

    g (n, p, q, c). Returns (n, h, w, c). The other attributes are avg_pool's.
    """
    attrs = dict(window=window, stride=stride, padding=padding, count_include_pad=count_include_pad)
    rows, columns = _mean_taps(size, g.shape[1:3], attrs)
    return _separable(g, size, _taps.adjoint(rows), _taps.adjoint(columns))


def _places(padded: Any, window: Any, stride: Any, pooled: Any) -> Any:
    """For every place of the window its number and the view of `padded` that all windows have there."""
    for k in range(window[0] * window[1]):
        i, j = divmod(k, window[1])
        yield k, padded[:, i : i + (pooled[0] - 1) * stride[0] + 1 : stride[0],
                        j : j + (pooled[1] - 1) * stride[1] + 1 : stride[1]]


def _padded(x: Any, padding: Any) -> Any:
    return np.pad(x, ((0, 0), tuple(padding[:2]), tuple(padding[2:]), (0, 0)))


@op("x: n h w c -> n p q c, n p q c uint8", sizes=POOL_SIZES, attrs=POOL_CASES, derive=_max_pool_sizes, caches=1,
    keep="y")
def max_pool(x: Any, *, window: tuple = (2, 2), stride: tuple | None = (), padding: tuple = WHOLE) -> Any:
    """The largest value in every window; NaN if one is in it. Padding is never chosen, and of equals the first is.

    x (n, h, w, c); window of at most 256 places, stride, padding: as in avg_pool. Returns (n, p, q, c);
    `max_pool.all` also returns the place that was chosen, row * window[1] + column (n, p, q, c) uint8.
    """
    attrs = dict(window=window, stride=stride, padding=padding)
    window, stride, padding = _windows(attrs)
    pooled = _pooled(x.shape[1:3], attrs)
    shape = (x.shape[0], *pooled, x.shape[3])
    y, index, seen = np.zeros(shape, x.dtype), np.zeros(shape, np.uint8), np.zeros(shape, bool)
    inside = _places(_padded(np.ones(x.shape, bool), padding), window, stride, pooled)
    for (k, v), (_, real) in zip(_places(_padded(x, padding), window, stride, pooled), inside, strict=True):
        take = real & (~seen | (v > y) | np.isnan(v))
        y, index, seen = np.where(take, v, y), np.where(take, np.uint8(k), index), seen | real
    return y, index


@op("g: n p q c, index: n p q c uint8 -> n h w c",
    sizes=[dict(n=1, p=1, q=1, c=1, k=4), dict(n=2, p=3, q=4, c=3, k=4), dict(n=2, p=3, q=4, c=19, k=6)],
    attrs=[dict(size=(3, 3)), dict(size=(6, 8)), dict(size=(4, 4), **POOL_CASES[1])],
    domain={"index": "k"}, derive=_max_pool_sizes, keep="x")
def max_pool_bwd(g: Any, index: Any, *, size: tuple, window: tuple = (2, 2), stride: tuple | None = (),
                 padding: tuple = WHOLE) -> Any:
    """The gradient of max_pool on inputs of `size` (h, w): g is added where `index` says, zero elsewhere.

    g (n, p, q, c); index (n, p, q, c) uint8; an index outside the image or the window adds nothing.
    Returns (n, h, w, c).
    """
    window, stride, padding = _windows(dict(window=window, stride=stride, padding=padding))
    x = _padded(np.zeros((g.shape[0], *size, g.shape[3]), g.dtype), padding)
    for k, at in _places(x, window, stride, g.shape[1:3]):
        at += np.where(index == k, g, g.dtype.type(0))
    return np.ascontiguousarray(x[:, padding[0] : padding[0] + size[0], padding[2] : padding[2] + size[1]])


@op("x: n h w c, index: n p q c uint8 -> n p q c",
    sizes=[dict(n=1, h=3, w=3, p=1, q=1, c=1, k=4), dict(n=2, h=6, w=8, p=3, q=4, c=3, k=4),
           dict(n=2, h=4, w=4, p=3, q=4, c=19, k=6)],
    attrs=POOL_CASES, domain={"index": "k"}, derive=_max_pool_at_sizes, keep="x")
def max_pool_at(x: Any, index: Any, *, window: tuple = (2, 2), stride: tuple | None = (),
                padding: tuple = WHOLE) -> Any:
    """x at the places a max_pool chose: the adjoint of max_pool_bwd.

    x (n, h, w, c); index (n, p, q, c) uint8; an index outside the image or the window reads zero.
    Returns (n, p, q, c).
    """
    window, stride, padding = _windows(dict(window=window, stride=stride, padding=padding))
    y = np.zeros(index.shape, x.dtype)
    for k, v in _places(_padded(x, padding), window, stride, index.shape[1:3]):
        y = np.where(index == k, v, y)
    return y


def _size(x: Any) -> tuple[int, int]:
    return int(x.shape[1]), int(x.shape[2])


def _without(attrs: dict, *names: str) -> dict:
    return {k: v for k, v in attrs.items() if k not in names}


rule(avg_pool, lambda gys, ys, needs, x, **a: [avg_pool_bwd(gys[0], size=_size(x), **a)])
rule(avg_pool_bwd, lambda gys, ys, needs, g, **a: [avg_pool(gys[0], **_without(a, "size"))])
rule(max_pool, lambda gys, ys, needs, x, **a: [
    None if gys[0] is None else max_pool_bwd(gys[0], ys[1], size=_size(x), **a)
])
rule(max_pool_bwd, lambda gys, ys, needs, g, index, **a: [
    max_pool_at(gys[0], index, **_without(a, "size")) if needs[0] else None, None
])
rule(max_pool_at, lambda gys, ys, needs, x, index, **a: [
    max_pool_bwd(gys[0], index, size=_size(x), **a) if needs[0] else None, None
])


# ---- resizing -------------------------------------------------------------------------------------------------------

MODES = ("nearest", "bilinear", "nearest-exact")


def _resized(dims: dict, attrs: dict) -> dict:
    p, q = image_size(attrs["size"])
    if (p and not dims["h"]) or (q and not dims["w"]):
        raise ValueError(f"an image of size {(dims['h'], dims['w'])} cannot be resized to {(p, q)}")
    return {"p": p, "q": q}


def _unresized(dims: dict, attrs: dict) -> dict:
    h, w = image_size(attrs["size"])
    if (dims["p"] and not h) or (dims["q"] and not w):
        raise ValueError(f"an image of size {(h, w)} cannot have been resized to {(dims['p'], dims['q'])}")
    return {"h": h, "w": w}


RESIZE_CASES: list[dict[str, Any]] = [
    dict(size=(10, 14)), dict(size=(3, 9), mode="bilinear"), dict(size=(10, 4), mode="nearest-exact"),
    dict(size=(9, 13), mode="bilinear", align_corners=True),
]


@op("x: n h w c -> n p q c", sizes=[dict(n=1, h=1, w=1, c=1), dict(n=2, h=5, w=7, c=3), dict(n=2, h=5, w=7, c=19)],
    attrs=RESIZE_CASES, choices={"mode": MODES}, derive=_resized, keep="")
def resize(x: Any, *, size: tuple, mode: str = "nearest", align_corners: bool = False) -> Any:
    """x at `size` (rows, columns) by interpolation, without a filter against aliasing.

    "nearest": x[floor(o * n_in / n_out)]; "nearest-exact": the same of o + 1/2; "bilinear": at (o + 1/2) * n_in / n_out
    - 1/2, the outermost pixels continued, or with align_corners at o * (n_in - 1) / (n_out - 1). The conventions of
    torch.nn.functional.interpolate, with exact positions. x (n, h, w, c). Returns (n, p, q, c).
    """
    rows, columns = (_taps.resize(x.shape[k + 1], size[k], mode, align_corners) for k in (0, 1))
    return _separable(x, size, rows, columns)


@op("g: n p q c -> n h w c", sizes=[dict(n=1, p=1, q=1, c=1), dict(n=2, p=10, q=14, c=3), dict(n=2, p=5, q=8, c=19)],
    attrs=[dict(size=(5, 7)), *RESIZE_CASES[1:]], choices={"mode": MODES}, derive=_unresized, keep="")
def resize_bwd(g: Any, *, size: tuple, mode: str = "nearest", align_corners: bool = False) -> Any:
    """The adjoint of resize on inputs of `size` (h, w); the other attributes are resize's.

    g (n, p, q, c). Returns (n, h, w, c).
    """
    rows, columns = (_taps.adjoint(_taps.resize(size[k], g.shape[k + 1], mode, align_corners)) for k in (0, 1))
    return _separable(g, size, rows, columns)


rule(resize, lambda gys, ys, needs, x, **a: [resize_bwd(gys[0], **{**a, "size": _size(x)})])
rule(resize_bwd, lambda gys, ys, needs, g, **a: [resize(gys[0], **{**a, "size": _size(g)})])


# ---- padding --------------------------------------------------------------------------------------------------------

PAD_MODES = ("constant", "reflect", "replicate")


def _padded_size(size: tuple[int, int], attrs: dict) -> tuple[int, int]:
    padding = integers("padding", attrs["padding"], 4)
    for k in (0, 1):
        before, after = padding[2 * k : 2 * k + 2]
        if size[k] + before + after < 0 or -before > size[k] or -after > size[k]:
            raise ValueError(f"padding {padding} crops more than an image of size {size} has")
        if attrs["mode"] == "reflect" and max(before, after) >= max(size[k], 1):
            raise ValueError(f"padding {padding} reflects more than an image of size {size} has beside its edge")
        if attrs["mode"] == "replicate" and max(before, after) > 0 and not size[k]:
            raise ValueError(f"padding {padding} replicates the edge of an image of size {size}, which has none")
    return size[0] + padding[0] + padding[1], size[1] + padding[2] + padding[3]


def _pad_sizes(dims: dict, attrs: dict) -> dict:
    p, q = _padded_size((dims["h"], dims["w"]), attrs)
    return {"p": p, "q": q}


def _unpad_sizes(dims: dict, attrs: dict) -> dict:
    h, w = size = image_size(attrs["size"])
    _agree(dims, _padded_size(size, attrs), size)
    return {"h": h, "w": w}


PAD_CASES: list[dict[str, Any]] = [dict(padding=(1, 2, 3, 0), value=0.5), dict(padding=(2, -1, 3, 1), mode="reflect"),
             dict(padding=(0, 4, -2, 3), mode="replicate")]


def _pad_taps(size: Any, padded: Any, padding: Any, mode: str) -> list[_taps.Taps]:
    padding = integers("padding", padding, 4)
    return [_taps.pad(size[k], padded[k], padding[2 * k], mode) for k in (0, 1)]


@op("x: n h w c -> n p q c", sizes=[dict(n=1, h=5, w=4, c=1), dict(n=2, h=5, w=7, c=3), dict(n=2, h=4, w=6, c=19)],
    attrs=PAD_CASES, choices={"mode": PAD_MODES}, derive=_pad_sizes, keep="")
def pad(x: Any, *, padding: tuple = WHOLE, mode: str = "constant", value: float = 0.0) -> Any:
    """x with rows and columns added around it; negative padding crops.

    x (n, h, w, c); padding (top, bottom, left, right); mode "constant" adds `value`, "reflect" mirrors at the centre
    of the outermost pixel, "replicate" repeats it. Returns (n, h + top + bottom, w + left + right, c).
    """
    size = _padded_size(x.shape[1:3], dict(padding=padding, mode=mode))
    rows, columns = _pad_taps(x.shape[1:3], size, padding, mode)
    y = np.full((x.shape[0], *size, x.shape[3]), value, x.dtype)
    y[:, rows[0][:, None], columns[0]] = x[:, rows[1][:, None], columns[1]]
    return y


@op("g: n p q c -> n h w c", sizes=[dict(n=1, p=8, q=8, c=1), dict(n=2, p=8, q=8, c=19)],
    attrs=[dict(PAD_CASES[0], size=(5, 5)), dict(PAD_CASES[1], size=(7, 4)), dict(PAD_CASES[2], size=(4, 7))],
    choices={"mode": PAD_MODES}, derive=_unpad_sizes, keep="")
def pad_bwd(g: Any, *, size: tuple, padding: tuple = WHOLE, mode: str = "constant", value: float = 0.0) -> Any:
    """The adjoint of pad with value = 0 on inputs of `size` (h, w): what was added is added up where it came from.

    g (n, p, q, c). Returns (n, h, w, c). The other attributes are pad's.
    """
    rows, columns = _pad_taps(size, g.shape[1:3], padding, mode)
    return _separable(g, size, _taps.adjoint(rows), _taps.adjoint(columns))


rule(pad, lambda gys, ys, needs, x, **a: [pad_bwd(gys[0], size=_size(x), **a)])
rule(pad_bwd, lambda gys, ys, needs, g, **a: [pad(gys[0], **{**_without(a, "size"), "value": 0.0})])


# ---- filters --------------------------------------------------------------------------------------------------------


def _filtered(size: tuple[int, int], k: tuple[int, int], attrs: dict) -> tuple[int, int]:
    up, down = integers("up", attrs["up"], 2, 1), integers("down", attrs["down"], 2, 1)
    padding = integers("padding", attrs["padding"], 4)
    if min(k) < 1:
        raise ValueError(f"the filter f is empty: {k[0]} x {k[1]}")
    room = [size[i] * up[i] + padding[2 * i] + padding[2 * i + 1] - k[i] for i in (0, 1)]
    if min(room) < 0:
        raise ValueError(f"a filter of {k[0]} x {k[1]} does not fit an image of size {size} with up = {up} and "
                         f"padding = {padding}")
    return room[0] // down[0] + 1, room[1] // down[1] + 1


def _filter_sizes(dims: dict, attrs: dict) -> dict:
    p, q = _filtered((dims["h"], dims["w"]), (dims["k"], dims["l"]), attrs)
    return {"p": p, "q": q}


def _df_sizes(dims: dict, attrs: dict) -> dict:
    k, l = size = image_size(attrs["size"])
    _agree(dims, _filtered((dims["h"], dims["w"]), size, attrs), (dims["h"], dims["w"]))
    return {"k": k, "l": l}


def _filter_windows(x: Any, up: Any, padding: Any, down: Any, k: Any, pooled: Any) -> Any:
    """For every place of the filter what it meets: x with zeros inserted, padded or cropped, decimated."""
    n, h, w, c = x.shape
    (up_h, up_w), padding = integers("up", up, 2), integers("padding", padding, 4)
    z = np.zeros((n, h * up_h, w * up_w, c), x.dtype)
    z[:, ::up_h, ::up_w] = x
    z = _padded(z, np.maximum(padding, 0))
    cut = [max(-v, 0) for v in padding]
    z = z[:, cut[0] : z.shape[1] - cut[1], cut[2] : z.shape[2] - cut[3]]
    return _places(z, k, integers("down", down, 2), pooled)


FILTER_SIZES = [dict(n=1, h=2, w=3, c=1, k=1, l=1), dict(n=2, h=4, w=5, c=3, k=4, l=3),
                dict(n=2, h=5, w=4, c=19, k=3, l=4)]


@op("x: n h w c, f: k l -> n p q c", sizes=FILTER_SIZES,
    attrs=[dict(), dict(up=(2, 1), down=(1, 2), padding=(2, 1, 1, 1)),
           dict(up=(2, 2), down=(3, 1), padding=(3, -1, 0, 2), flip=True)],
    derive=_filter_sizes, keep="x")
def upfirdn2d(x: Any, f: Any, *, up: tuple = (1, 1), down: tuple = (1, 1), padding: tuple = WHOLE,
              flip: bool = False) -> Any:
    """Insert zeros, pad, filter, decimate: the resampling of StyleGAN2.

    x (n, h, w, c); f (k, l), one filter for all channels; up, down, (rows, columns): every pixel is followed by up - 1
    zeros, and every down-th result is kept; padding (top, bottom, left, right) of the image with zeros, negative crops.
    A convolution; with flip a correlation. Returns (n, p, q, c), p = (h up + top + bottom - k) // down + 1.
    The zeros are never stored nor multiplied, and a filter of rank one (an outer product) runs over rows, then over
    columns. Karras et al. (2020), appendix; scipy.signal.upfirdn in two dimensions.
    """
    k = f.shape
    pooled = _filtered(x.shape[1:3], k, dict(up=up, down=down, padding=padding))
    taps = (f if flip else f[::-1, ::-1]).reshape(-1)
    y = np.zeros((x.shape[0], *pooled, x.shape[3]), x.dtype)
    for i, v in _filter_windows(x, up, padding, down, k, pooled):
        y += taps[i] * v
    return y


@op("x: n h w c, g: n p q c -> k l",
    sizes=[dict(n=1, h=4, w=5, p=1, q=3, c=1), dict(n=2, h=4, w=5, p=8, q=3, c=3), dict(n=3, h=4, w=5, p=8, q=3, c=19)],
    attrs=[dict(size=(4, 3)), dict(size=(4, 3), up=(2, 1), down=(1, 2), padding=(2, 1, 1, 1)),
           dict(size=(4, 3), up=(2, 1), down=(1, 2), padding=(2, 1, 1, 1), flip=True)],
    derive=_df_sizes, keep="x")
def upfirdn2d_df(x: Any, g: Any, *, size: tuple, up: tuple = (1, 1), down: tuple = (1, 1), padding: tuple = WHOLE,
                 flip: bool = False) -> Any:
    """The gradient of upfirdn2d in its filter of `size` (k, l), summed over samples, pixels and channels.

    x (n, h, w, c); g (n, p, q, c). Returns (k, l). The other attributes are upfirdn2d's.
    """
    df = np.zeros(size[0] * size[1], x.dtype)
    for i, v in _filter_windows(x, up, padding, down, size, g.shape[1:3]):
        df[i] = (v * g).sum()
    return df.reshape(size) if flip else np.ascontiguousarray(df.reshape(size)[::-1, ::-1])


def _exchanged(x: Any, g: Any, k: Any, a: dict) -> dict:
    """The attributes with which upfirdn2d maps the gradient g of its output to that of its input x."""
    up, down = integers("up", a["up"], 2), integers("down", a["down"], 2)
    padding = integers("padding", a["padding"], 4)
    back: list[int] = []
    for i in (0, 1):
        before = padding[2 * i]
        back += [k[i] - 1 - before, x.shape[i + 1] * up[i] - g.shape[i + 1] * down[i] + before - up[i] + 1]
    return dict(up=down, down=up, padding=tuple(map(int, back)), flip=not a["flip"])


def _upfirdn2d_rule(gys: Any, ys: Any, needs: Any, x: Any, f: Any, **a: Any) -> list:
    g = gys[0]
    return [
        upfirdn2d(g, f, **_exchanged(x, g, f.shape, a)) if needs[0] else None,
        upfirdn2d_df(x, g, size=tuple(f.shape), **a) if needs[1] else None,
    ]


def _upfirdn2d_df_rule(gys: Any, ys: Any, needs: Any, x: Any, g: Any, *, size: tuple, **a: Any) -> list:
    return [
        upfirdn2d(g, gys[0], **_exchanged(x, g, size, a)) if needs[0] else None,
        upfirdn2d(x, gys[0], **a) if needs[1] else None,
    ]


rule(upfirdn2d, _upfirdn2d_rule)
rule(upfirdn2d_df, _upfirdn2d_df_rule)


def _blurred(dims: dict, attrs: dict) -> dict:
    taps, up, down = attrs["taps"], attrs["up"], attrs["down"]
    if not taps or not sum(taps):
        raise ValueError(f"taps must not be empty nor sum to zero, got {taps}")
    if min(up, down) < 1 or max(up, down) > len(taps):
        raise ValueError(f"up and down must be from 1 to the number of taps, got up = {up}, down = {down}")
    p, q = _filtered((dims["h"], dims["w"]), (len(taps),) * 2, _blur_attrs(len(taps), up, down))
    return {"p": p, "q": q}


def _blur_attrs(k: int, up: int, down: int) -> dict:
    before = (k + up - 1) // 2 if up > 1 else (k - down + 1) // 2
    after = (k - up) // 2 if up > 1 else (k - down) // 2
    return dict(up=(up, up), down=(down, down), padding=(before, after, before, after))


@op("x: n h w c -> n p q c", sizes=[dict(n=1, h=1, w=1, c=1), dict(n=2, h=6, w=4, c=5)],
    attrs=[dict(), dict(up=2), dict(down=2, taps=(1, 2, 1))], derive=_blurred, native=False, composite=True)
def blur(x: Any, *, taps: tuple = (1.0, 3.0, 3.0, 1.0), up: int = 1, down: int = 1) -> Any:
    """upfirdn2d with the outer product of `taps`, normalised: a low-pass filter that keeps the brightness.

    x (n, h, w, c); up enlarges and down reduces by that factor, centred as in StyleGAN2. Returns (n, p, q, c), with
    p = h up / down. Zhang (2019); Karras et al. (2020).
    """
    line = np.asarray(taps, np.float64) * (up / sum(taps))
    f = np.outer(line, line).astype(str(x.dtype).removeprefix("torch."))
    return upfirdn2d(x, beside(x, f), **_blur_attrs(len(taps), up, down))
