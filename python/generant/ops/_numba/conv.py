"""Numba twins of the convolutions: loops over pixels and taps around a product with one row of a filter.

Every tap is summed on its own and then added, as in the definition. Outputs run in the inner loop, over slices: an
index that is a sum could be negative for all the compiler knows, and would not be vectorised.
"""

from __future__ import annotations

import numpy as np

from . import activation as _activation  # noqa: F401  (registers the activations that conv2d_act calls)
from ._kernel import KERNELS, jit, kernel


@jit
def _forward(x, w, y, geometry):
    """geometry: strides, first row and column, dilations, groups."""
    sh, sw, top, left, dh, dw, groups = geometry
    n, rows, columns, _ = x.shape
    kh, kw, d, o = w.shape
    go = o // groups
    s = np.empty(go, y.dtype)
    for k in range(n):
        for p in range(y.shape[1]):
            for q in range(y.shape[2]):
                for group in range(groups):
                    w_of, to = w[:, :, :, group * go :], y[k, p, q, group * go :]
                    for m in range(go):
                        to[m] = 0
                    for i in range(kh):
                        h = p * sh + i * dh - top
                        if h < 0 or h >= rows:
                            continue
                        for j in range(kw):
                            v = q * sw + j * dw - left
                            if v < 0 or v >= columns:
                                continue
                            from_x = x[k, h, v, group * d :]
                            for m in range(go):
                                s[m] = 0
                            for c in range(d):
                                xc, wc = from_x[c], w_of[i, j, c]
                                for m in range(go):
                                    s[m] += xc * wc[m]
                            for m in range(go):
                                to[m] += s[m]


@jit
def _gradient_x(g, w, dx, geometry):
    """w: kh kw o d, the transpose of a filter."""
    sh, sw, top, left, dh, dw, groups = geometry
    n, rows, columns, _ = g.shape
    kh, kw, o, d = w.shape
    go = o // groups
    s = np.empty(d, dx.dtype)
    for k in range(n):
        for h in range(dx.shape[1]):
            for v in range(dx.shape[2]):
                for group in range(groups):
                    to = dx[k, h, v, group * d :]
                    for m in range(d):
                        to[m] = 0
                    for i in range(kh):
                        p = h + top - i * dh
                        if p < 0 or p % sh != 0 or p // sh >= rows:
                            continue
                        for j in range(kw):
                            q = v + left - j * dw
                            if q < 0 or q % sw != 0 or q // sw >= columns:
                                continue
                            from_g, w_of = g[k, p // sh, q // sw, group * go :], w[i, j, group * go :]
                            for m in range(d):
                                s[m] = 0
                            for c in range(go):
                                gc, wc = from_g[c], w_of[c]
                                for m in range(d):
                                    s[m] += gc * wc[m]
                            for m in range(d):
                                to[m] += s[m]


@jit
def _gradient_w(x, g, out, geometry):
    sh, sw, top, left, dh, dw, groups = geometry
    n, rows, columns, _ = x.shape
    kh, kw, d, o = out.shape
    go = o // groups
    s = np.empty((d, go), out.dtype)
    out[:] = 0
    for k in range(n):
        for p in range(g.shape[1]):
            for i in range(kh):
                h = p * sh + i * dh - top
                if h < 0 or h >= rows:
                    continue
                for j in range(kw):
                    for group in range(groups):
                        s[:] = 0  # one row of pixels
                        for q in range(g.shape[2]):
                            v = q * sw + j * dw - left
                            if v < 0 or v >= columns:
                                continue
                            from_x, from_g = x[k, h, v, group * d :], g[k, p, q, group * go :]
                            for c in range(d):
                                xc, sc = from_x[c], s[c]
                                for m in range(go):
                                    sc[m] += xc * from_g[m]
                        for c in range(d):
                            to, sc = out[i, j, c, group * go :], s[c]
                            for m in range(go):
                                to[m] += sc[m]


def _geometry(stride, padding, dilation, groups):
    stride, padding, dilation = (v if isinstance(v, tuple) else (v,) for v in (stride, padding, dilation))
    top, left = padding[0], padding[len(padding) // 2]
    return (stride[0], stride[-1], top, left, dilation[0], dilation[-1], groups)


@kernel
def conv2d(x, w, y, stride, padding, dilation, groups, algorithm, precision):
    _forward(x, w, y, _geometry(stride, padding, dilation, groups))


@kernel
def conv2d_dx(g, w, dx, size, stride, padding, dilation, groups, algorithm, precision):
    _gradient_x(g, np.ascontiguousarray(w.transpose(0, 1, 3, 2)), dx, _geometry(stride, padding, dilation, groups))


@kernel
def conv2d_dw(x, g, dw, kernel, stride, padding, dilation, groups, algorithm, precision):
    _gradient_w(x, g, dw, _geometry(stride, padding, dilation, groups))


@kernel
def conv2d_act(x, w, b, residual, y, h, activation, stride, padding, dilation, groups, algorithm, precision):
    h = y if h is None else h
    conv2d(x, w, h, stride, padding, dilation, groups, algorithm, precision)
    if b is not None:
        h += b
    if residual is not None:
        h += residual
    if activation == "identity":
        y[...] = h
    else:
        KERNELS[activation](h, y, *((0.2,) if activation == "leaky_relu" else ()))
