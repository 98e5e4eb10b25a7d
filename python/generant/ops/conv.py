"""Convolution of images (NHWC) with filters (HWIO), its two partners, and what is written with them.

conv2d, conv2d_dx and conv2d_dw contract one trilinear form
    sum x[n, p * stride + i * dilation - top, q * stride + j * dilation - left, c] * w[i, j, c, o] * g[n, p, q, o]
over different indices, so together they are closed under differentiation. conv2d_act is conv2d with an epilogue; it is
not `fused`: its derivative is the activation's own row followed by the triple. A filter belongs to a group: output
channel o sees the c / groups input channels of its own group only.

Kernels sum every element in an order that depends on its own sample alone, so a sample of a result does not depend on
the batch it came in, nor on the number of threads.

precision="bf16" is in conv_bf16.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import activation as _activation
from ._table import bilinear_triple, op, rule
from .arithmetic import add
from .conv_bf16 import PRECISION, PRECISIONS, rounded
from .layout import reshape
from .matmul import ACTIVATIONS
from .reduce import sum_to

__all__ = ["conv1d", "conv2d", "conv2d_act", "conv2d_dw", "conv2d_dx", "conv_transpose2d"]

ALGORITHMS = ("auto", "gemm", "direct", "winograd2", "winograd4")
EPILOGUES = ("identity", *ACTIVATIONS)


# ---- geometry -------------------------------------------------------------------------------------------------------


def _pair(v: Any) -> tuple[int, int]:
    """(rows, columns) of an attribute that may be one number for both."""
    v = v if isinstance(v, tuple) else (v,)
    return (v * 2 if len(v) == 1 else v)[:2]


def _border(v: Any) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of one number, (rows, columns), or all four."""
    v = v if isinstance(v, tuple) else (v,)
    return v * 4 if len(v) == 1 else (v[0], v[0], v[1], v[1]) if len(v) == 2 else v


def _check_tuple(name: str, v: Any, wanted: str, lengths: tuple[int, ...], least: int) -> None:
    whole = isinstance(v, tuple) and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in v)
    if not whole or len(v) not in lengths:
        raise ValueError(f"{name} must be {wanted}, got {v[0] if isinstance(v, tuple) and len(v) == 1 else v!r}")
    if any(i < least for i in v):
        raise ValueError(f"{name} must be at least {least}, got {v[0] if len(v) == 1 else v}")


def _grid(size: tuple, kernel: tuple, a: dict[str, Any], groups_of: dict[str, int]) -> tuple[int, int]:
    """The output's (rows, columns), after every attribute has been checked."""
    _check_tuple("stride", a["stride"], "an integer or (rows, columns)", (1, 2), 1)
    _check_tuple("dilation", a["dilation"], "an integer or (rows, columns)", (1, 2), 1)
    _check_tuple(
        "padding", a["padding"], "an integer, (rows, columns) or (top, bottom, left, right)", (1, 2, 4), 0
    )
    groups = a["groups"]
    if groups < 1:
        raise ValueError(f"groups must be at least 1, got {groups}")
    for letter, n in groups_of.items():
        if n % groups:
            raise ValueError(f"{letter} = {n} is not a multiple of groups = {groups}")
    stride, dilation, border = _pair(a["stride"]), _pair(a["dilation"]), _border(a["padding"])
    grid = []
    for axis, word in enumerate(("rows", "columns")):
        padded, reach = size[axis] + sum(border[2 * axis : 2 * axis + 2]), dilation[axis] * (kernel[axis] - 1) + 1
        if kernel[axis] < 1:
            raise ValueError(f"the filter has {kernel[axis]} {word}, wanted at least 1")
        if reach > padded:
            raise ValueError(f"the filter reaches over {reach} {word} but the padded input has {padded}")
        grid.append((padded - reach) // stride[axis] + 1)
    return grid[0], grid[1]


def _check_grid(name: str, found: tuple, grid: tuple[int, int], what: str) -> None:
    if tuple(found) != grid:
        raise ValueError(f"{name} has (rows, columns) = {tuple(found)}, but {what} gives {grid}")


def _conv2d_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    grid = _grid((dims["h"], dims["w"]), (dims["kh"], dims["kw"]), a, {"c": dims["c"], "o": dims["o"]})
    if dims["d"] * a["groups"] != dims["c"]:
        raise ValueError(
            f"x has c = {dims['c']} channels in groups = {a['groups']}, so w must have "
            f"{dims['c'] // a['groups']} input channels (kh kw d o), got d = {dims['d']}"
        )
    if "p" in dims:
        _check_grid("residual", (dims["p"], dims["q"]), grid, "the convolution")
    return {"p": grid[0], "q": grid[1]}


def _conv2d_dx_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    _check_tuple("size", a["size"], "(rows, columns) of the input", (2,), 0)
    grid = _grid(a["size"], (dims["kh"], dims["kw"]), a, {"o": dims["o"]})
    _check_grid("g", (dims["p"], dims["q"]), grid, f"size = {a['size']}")
    return {"h": a["size"][0], "w": a["size"][1], "c": dims["d"] * a["groups"]}


def _conv2d_dw_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    _check_tuple("kernel", a["kernel"], "(rows, columns) of the filter", (2,), 1)
    grid = _grid((dims["h"], dims["w"]), a["kernel"], a, {"c": dims["c"], "o": dims["o"]})
    _check_grid("g", (dims["p"], dims["q"]), grid, f"kernel = {a['kernel']}")
    return {"kh": a["kernel"][0], "kw": a["kernel"][1], "d": dims["c"] // a["groups"]}


# ---- the definitions: one product of matrices per tap and group -----------------------------------------------------


def _padded(x, padding):
    top, bottom, left, right = _border(padding)
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _taps(x, kernel, grid, stride, dilation):
    """(i, j, what tap (i, j) of a filter reads) for every tap: views of the padded x."""
    stride, dilation = _pair(stride), _pair(dilation)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            h, w = i * dilation[0], j * dilation[1]
            rows = slice(h, h + (grid[0] - 1) * stride[0] + 1, stride[0])
            yield i, j, x[:, rows, w : w + (grid[1] - 1) * stride[1] + 1 : stride[1]]


def _channels(total, groups):
    """The channels of each group."""
    return [slice(total // groups * k, total // groups * (k + 1)) for k in range(groups)]


def _conv2d(x, w, stride, padding, dilation, groups):
    kernel, a = w.shape[:2], {"stride": _pair(stride), "padding": _border(padding), "dilation": _pair(dilation)}
    grid = _grid(x.shape[1:3], kernel, {**a, "groups": groups}, {})
    y = np.zeros((x.shape[0], *grid, w.shape[3]), x.dtype)
    for i, j, patch in _taps(_padded(x, padding), kernel, grid, stride, dilation):
        for c, o in zip(_channels(x.shape[3], groups), _channels(w.shape[3], groups), strict=True):
            y[..., o] += patch[..., c] @ w[i, j][:, o]
    return y


def _case(n, size, c, kernel, o, stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """Sizes and attributes for the generated tests, of all ops of the triple."""
    a = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    (h, w), (kh, kw), (p, q) = size, kernel, _grid(size, kernel, {k: v if k == "groups" else (v,) if isinstance(v, int)
                                                                  else v for k, v in a.items()}, {})
    return dict(n=n, h=h, w=w, c=c, kh=kh, kw=kw, d=c // groups, o=o, p=p, q=q, size=size, kernel=kernel, **a)


SIZES = [
    _case(1, (1, 1), 1, (1, 1), 1),
    _case(2, (5, 7), 3, (3, 3), 17, padding=1),
    _case(3, (4, 3), 8, (1, 1), 5),
    _case(2, (7, 6), 2, (2, 3), 3, stride=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2)),
    _case(1, (6, 8), 6, (4, 4), 4, stride=2, padding=1, groups=2),
    _case(2, (6, 5), 5, (3, 3), 5, padding=(1, 1), groups=5),
    _case(1, (7, 7), 9, (3, 3), 9, stride=(2, 2), padding=(0, 1, 1, 0), groups=9),
    _case(1, (5, 4), 3, (3, 3), 6, padding=1, groups=3),
    _case(2, (4, 5), 13, (3, 3), 2, padding=1),
    _case(1, (9, 11), 40, (3, 3), 21, stride=(1, 2), padding=1),
]
CHOICES: dict[str, tuple[str, ...]] = {"algorithm": ALGORITHMS, "precision": PRECISIONS}


@op(
    "x: n h w c, w: kh kw d o -> n p q o",
    sizes=SIZES,
    attrs=[{}, dict(algorithm="gemm")],
    choices=CHOICES,
    derive=_conv2d_sizes,
    **PRECISION,
)
def conv2d(
    x: Any,
    w: Any,
    *,
    stride: Any = (1, 1),
    padding: Any = (0, 0, 0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    algorithm: str = "auto",
    precision: str = "float32",
) -> Any:
    """The cross-correlation of images with filters, which deep learning calls convolution:
    y[n, p, q, o] = sum over i, j, c of x[n, p * stride + i * dilation - top, q * stride + j * dilation - left, c]
    * w[i, j, c, o], with zeros outside x.

    x (n, h, w, c); w (kh, kw, c / groups, o). stride and dilation: an integer or (rows, columns); padding: an integer,
    (rows, columns) or (top, bottom, left, right). Returns (n, p, q, o), where
    p = (h + top + bottom - dilation * (kh - 1) - 1) // stride + 1. Time O(n p q kh kw c o / groups).
    Raises ValueError for attributes out of range, channels that do not fit, a filter larger than the padded input.

    algorithm, the same for the gradients; errors are those of the native float32 kernels with filters of unit gain,
    relative to the root mean square of the result (rms; at most); the Numba twin of gemm sums in one chain and may
    exceed them. All but the result is scratch that does not grow with the batch:
      "gemm"       implicit matrix product (the plain one for 1x1): 4e-7; 5e-6. Packed filters, a window per thread.
      "direct"     lanes along the channels, for depthwise filters and at most four outputs: as gemm.
      "winograd4"  F(4x4, 3x3) for 3x3 filters with stride 1, F(4x4, 2x2) of every phase for 4x4 with stride 2, in
                   float32 (Lavin and Gray 2016, arXiv 1509.09308): 1.2e-6; 2e-5 up to 512 channels. Four (6.3) times
                   the filter, and under 9 MB per thread.
      "winograd2"  F(2x2, 3x3): 8e-7; 1.3e-5. 1.8 times the filter.
      "auto"       by the shape of a sample, so that results do not depend on the batch: winograd for at least 24
                   channels and outputs where its tiles fit, direct where there is such a kernel, else gemm.
    What does not suit a shape falls to the product. Winograd's intermediate sums may be 4e3 times the result, so where
    that overflows float32 it gives inf or NaN earlier than a product, and for all pixels of a tile.
    precision: "float32" (that of the arrays) or "bf16": see conv_bf16.py.
    """
    x, w = rounded(precision, x, w)
    return _conv2d(x, w, stride, padding, dilation, groups)


@op(
    "g: n p q o, w: kh kw d o -> n h w c",
    sizes=SIZES,
    attrs=[{}, dict(algorithm="gemm")],
    choices=CHOICES,
    derive=_conv2d_dx_sizes,
    **PRECISION,
)
def conv2d_dx(
    g: Any,
    w: Any,
    *,
    size: tuple[int, int],
    stride: Any = (1, 1),
    padding: Any = (0, 0, 0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    algorithm: str = "auto",
    precision: str = "float32",
) -> Any:
    """The gradient of conv2d in x: every g[n, p, q, o] * w[i, j, c, o] added to the pixel that tap (i, j) read.

    g (n, p, q, o); w (kh, kw, c / groups, o); size = (h, w) of x; the rest as in conv2d. Returns (n, h, w, c).
    With a stride every phase of the pixels meets its own taps only, so nothing is multiplied by inserted zeros.
    Raises ValueError as conv2d does, and if g is not what conv2d makes of that size.
    """
    g, w = rounded(precision, g, w)
    c, border = w.shape[2] * groups, _border(padding)
    padded = _padded(np.zeros((g.shape[0], *size, c), g.dtype), padding)
    for i, j, patch in _taps(padded, w.shape[:2], g.shape[1:3], stride, dilation):
        for k, o in zip(_channels(c, groups), _channels(w.shape[3], groups), strict=True):
            patch[..., k] += g[..., o] @ w[i, j][:, o].T
    return padded[:, border[0] : border[0] + size[0], border[2] : border[2] + size[1]]


@op(
    "x: n h w c, g: n p q o -> kh kw d o",
    sizes=SIZES,
    attrs=[{}, dict(algorithm="gemm")],
    choices=CHOICES,
    derive=_conv2d_dw_sizes,
    **PRECISION,
)
def conv2d_dw(
    x: Any,
    g: Any,
    *,
    kernel: tuple[int, int],
    stride: Any = (1, 1),
    padding: Any = (0, 0, 0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    algorithm: str = "auto",
    precision: str = "float32",
) -> Any:
    """The gradient of conv2d in w: for every tap, the product of what it read with g, summed over all pixels.

    x (n, h, w, c); g (n, p, q, o); kernel = (kh, kw); the rest as in conv2d. Returns (kh, kw, c / groups, o).
    Pixels are summed in at most 16 groups, which take as much memory as filters up to 16 MiB together.
    Raises ValueError as conv2d does, and if g is not what conv2d makes with that kernel.
    """
    x, g = rounded(precision, x, g)
    c, o = x.shape[3], g.shape[3]
    dw = np.zeros((*kernel, c // groups, o), x.dtype)
    for i, j, patch in _taps(_padded(x, padding), kernel, g.shape[1:3], stride, dilation):
        for k, m in zip(_channels(c, groups), _channels(o, groups), strict=True):
            dw[i, j][:, m] = np.tensordot(patch[..., k], g[..., m], axes=([0, 1, 2], [0, 1, 2]))
    return dw


bilinear_triple(
    conv2d, conv2d_dx, conv2d_dw,
    dx_attrs=lambda x: {"size": tuple(x.shape[1:3])},
    dw_attrs=lambda w: {"kernel": tuple(w.shape[:2])},
)  # fmt: skip


# ---- with an epilogue -----------------------------------------------------------------------------------------------


@op(
    "x: n h w c, w: kh kw d o, b?: o, residual?: n p q o -> n p q o, n p q o",
    sizes=[SIZES[1], SIZES[2], SIZES[5], SIZES[8]],
    attrs=[dict(activation=a) for a in ("identity", "silu", "leaky_relu")],
    choices={"activation": EPILOGUES, **CHOICES},
    derive=_conv2d_sizes,
    **PRECISION,
    caches=1,
    keep="xy",
)
def conv2d_act(
    x: Any,
    w: Any,
    b: Any = None,
    residual: Any = None,
    *,
    activation: str = "silu",
    stride: Any = (1, 1),
    padding: Any = (0, 0, 0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    algorithm: str = "auto",
    precision: str = "float32",
) -> Any:
    """activation(conv2d(x, w) + b + residual), bit-equal to the ops one after the other.

    x (n, h, w, c); w (kh, kw, c / groups, o); b (o,) and residual (n, p, q, o) may be None; activation: "identity" or
    one of those of linear_act; the rest as in conv2d. Returns (n, p, q, o); `conv2d_act.all` also returns
    h = conv2d(x, w) + b + residual. The epilogue costs no pass of its own: it runs on results still in the cache.
    """
    x, w = rounded(precision, x, w)
    h = _conv2d(x, w, stride, padding, dilation, groups)
    if b is not None:
        h = h + b
    if residual is not None:
        h = h + residual
    return (h if activation == "identity" else getattr(_activation, activation)(h)), h


def _conv2d_act_rule(gys, ys, needs, x, w, b=None, residual=None, *, activation="silu", **a):
    gy, gh = gys
    if gy is not None:
        if activation != "identity":
            row = getattr(_activation, activation + "_bwd")
            gy = row(gy, ys[1] if getattr(_activation, activation).ref == "x" else ys[0])
        gh = gy if gh is None else add(gh, gy)
    needs = [*needs, False, False][:4]
    return [
        conv2d_dx(gh, w, size=tuple(x.shape[1:3]), **a) if needs[0] else None,
        conv2d_dw(x, gh, kernel=tuple(w.shape[:2]), **a) if needs[1] else None,
        sum_to(gh, shape=b.shape) if needs[2] else None,
        gh if needs[3] else None,
    ]


rule(conv2d_act, _conv2d_act_rule)


# ---- written with the triple ----------------------------------------------------------------------------------------


def _conv1d_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    _check_tuple("padding", a["padding"], "an integer or (before, after)", (1, 2), 0)
    wide = dict(
        stride=(a["stride"],), dilation=(a["dilation"],), groups=a["groups"],
        padding=(0, 0, *(a["padding"] * 2)[:2]),
    )  # fmt: skip
    sizes = dict(h=max(1, a["dilation"]), w=dims["t"], c=dims["c"], kh=1, kw=dims["k"], d=dims["d"], o=dims["o"])
    return {"s": _conv2d_sizes(sizes, wide)["q"]}


@op(
    "x: n t c, w: k d o -> n s o",
    sizes=[dict(n=2, t=7, c=3, k=3, d=3, o=4), dict(n=1, t=12, c=4, k=2, d=2, o=6, groups=2, stride=2, padding=(1, 0))],
    attrs=[{}],
    choices=CHOICES,
    derive=_conv1d_sizes,
    float32_only=PRECISION["float32_only"],
    native=False,
    composite=True,
)
def conv1d(
    x: Any,
    w: Any,
    *,
    stride: int = 1,
    padding: Any = (0, 0),
    dilation: int = 1,
    groups: int = 1,
    algorithm: str = "auto",
    precision: str = "float32",
) -> Any:
    """conv2d of sequences, which are images of one row.

    x (n, t, c); w (k, c / groups, o); stride and dilation integers; padding an integer or (before, after).
    Returns (n, s, o), s = (t + before + after - dilation * (k - 1) - 1) // stride + 1.
    """
    padding = padding if isinstance(padding, tuple) else (padding,)
    y = conv2d(
        reshape(x, shape=(x.shape[0], 1, *x.shape[1:])),
        reshape(w, shape=(1, *w.shape)),
        stride=(1, stride),
        padding=(0, 0, *(padding * 2)[:2]),
        dilation=(1, dilation),
        groups=groups,
        algorithm=algorithm,
        precision=precision,
    )
    return reshape(y, shape=(y.shape[0], *y.shape[2:]))


def _transposed_size(grid, kernel, stride, padding, output_padding, dilation) -> tuple[int, int]:
    """torch's formula: the smallest input that a convolution takes to this grid, and output_padding more."""
    stride, dilation, border, more = _pair(stride), _pair(dilation), _border(padding), _pair(output_padding)
    rows, columns = (
        (grid[k] - 1) * stride[k] - border[2 * k] - border[2 * k + 1] + dilation[k] * (kernel[k] - 1) + more[k] + 1
        for k in (0, 1)
    )
    return rows, columns


def _conv_transpose2d_sizes(dims: dict[str, Any], a: dict[str, Any]) -> dict[str, int]:
    kernel = dims["kh"], dims["kw"]
    _grid(kernel, (1, 1), a, {"o": dims["o"]})              # the attributes alone
    _check_tuple("output_padding", a["output_padding"], "an integer or (rows, columns)", (1, 2), 0)
    if any(more >= stride for more, stride in zip(_pair(a["output_padding"]), _pair(a["stride"]), strict=True)):
        raise ValueError(f"output_padding = {a['output_padding']} must be smaller than stride = {a['stride']}")
    names = ("stride", "padding", "output_padding", "dilation")
    size = _transposed_size((dims["h"], dims["w"]), kernel, *(a[k] for k in names))
    if min(size) < 1:
        raise ValueError(f"the output would have (rows, columns) = {size}; padding = {a['padding']} is too large")
    return {"p": size[0], "q": size[1], "c": dims["d"] * a["groups"]}


@op(
    "x: n h w o, w: kh kw d o -> n p q c",
    sizes=[dict(n=2, h=3, w=4, kh=4, kw=4, d=3, o=2, stride=2, padding=1),
           dict(n=1, h=4, w=2, kh=3, kw=2, d=2, o=4, stride=(2, 3), padding=(1, 0, 0, 1), output_padding=(1, 0),
                dilation=(1, 2), groups=2)],
    attrs=[{}],
    choices=CHOICES,
    derive=_conv_transpose2d_sizes,
    float32_only=PRECISION["float32_only"],
    native=False,
    composite=True,
)  # fmt: skip
def conv_transpose2d(
    x: Any,
    w: Any,
    *,
    stride: Any = (1, 1),
    padding: Any = (0, 0, 0, 0),
    output_padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
    algorithm: str = "auto",
    precision: str = "float32",
) -> Any:
    """Transposed convolution: conv2d_dx used forwards, to enlarge images.

    x (n, h, w, o); w (kh, kw, c / groups, o) is the filter of the convolution from c to o channels whose gradient this
    is, so its last axis is the one summed over. torch's conv_transpose2d wants that filter as (o, c / groups, kh, kw),
    which is w.transpose(3, 2, 0, 1). Returns (n, p, q, c), p = (h - 1) * stride - top - bottom
    + dilation * (kh - 1) + output_padding + 1. padding shrinks the result; output_padding < stride adds rows below and
    columns on the right, for the sizes that a stride does not tell apart. Dumoulin, Visin (2016).
    """
    size = _transposed_size(x.shape[1:3], w.shape[:2], stride, padding, output_padding, dilation)
    return conv2d_dx(
        x, w, size=size, stride=stride, padding=padding, dilation=dilation, groups=groups, algorithm=algorithm,
        precision=precision,
    )  # fmt: skip
