"""Random numbers, Numba: the pinned arithmetic of ops/random.py, element by element.

`fill_*(out, seed, stream, first)` write the elements of `out`, which begins at counter `first`; other families call
them for a block of noise at a time. Words, transform and interleaving are loops of their own over a small chunk,
because that is what LLVM turns into vector code (nine times as fast). fma is LLVM's own instruction, never a
contraction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .. import random as definition
from ._kernel import jit, kernel

f32, f64, i32, i64, u32, u64 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64
A, B, KEY_A, KEY_B = u64(0xD2511F53), u64(0xCD9E8D57), u64(0x9E3779B9), u64(0xBB67AE85)
CHUNK = 256                                            # counters at a time
LOW, HALF, TOP = u64(0xFFFFFFFF), u64(32), u64(1 << 63)
LOG32, SIN32, COS32, LN2_32 = (
    tuple(map(f32, c)) for c in (definition.LOG32, definition.SIN32, definition.COS32, definition.LN2_32)
)
LOG64, SIN64, COS64, LN2_64 = (
    tuple(map(f64, c)) for c in (definition.LOG64, definition.SIN64, definition.COS64, definition.LN2_64)
)


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


def _reinterpret(wanted: Any) -> Any:
    @intrinsic
    def cast(typing: Any, a: Any) -> Any:
        return wanted(a), lambda context, builder, signature, args: builder.bitcast(
            args[0], context.get_value_type(wanted)
        )

    return cast


as_i32, as_f32 = _reinterpret(types.int32), _reinterpret(types.float32)
as_i64, as_f64 = _reinterpret(types.int64), _reinterpret(types.float64)


@jit
def philox4(c0, c1, c2, c3, k0, k1):
    for _ in range(10):
        p, q = A * (c0 & LOW), B * (c2 & LOW)
        c0, c1, c2, c3 = ((q >> HALF) ^ c1 ^ k0) & LOW, q & LOW, ((p >> HALF) ^ c3 ^ k1) & LOW, p & LOW
        k0, k1 = (k0 + KEY_A) & LOW, (k1 + KEY_B) & LOW
    return c0, c1, c2, c3


@jit
def words(seed, stream, counter):
    return philox4(counter & LOW, counter >> HALF, stream & LOW, stream >> HALF, seed & LOW, seed >> HALF)


@jit
def pair32(a, b):
    j = i32(as_i32(f32(u32(a)) + f32(0.5)) - i32(0x4F3504F3))
    e = f32(i32(j >> i32(23)))
    t = as_f32(i32(i32(j & i32(0x7FFFFF)) + i32(0x3F3504F3))) - f32(1)
    z = t * t
    p = fma(LOG32[0], t, LOG32[1])
    p = fma(p, t, LOG32[2])
    p = fma(p, t, LOG32[3])
    p = fma(p, t, LOG32[4])
    p = fma(p, t, LOG32[5])
    p = fma(p, t, LOG32[6])
    y = fma(e, LN2_32[1], (p * t) * z) + z
    r = f32(math.sqrt(fma(e, LN2_32[0], fma(t, f32(-2), y))))
    v = f32(i32(u32((b << u64(2)) & LOW))) * f32(2.0**-31)
    w = v * v
    s = fma(fma(fma(SIN32[0], w, SIN32[1]), w, SIN32[2]), w, SIN32[3]) * v
    c = fma(fma(fma(COS32[0], w, COS32[1]), w, COS32[2]), w, f32(1))
    quadrant = ((b + u64(1 << 29)) & LOW) >> u64(30)
    odd = (quadrant & u64(1)) != u64(0)
    x, y = r * (s if odd else c), r * (c if odd else s)
    return (-x if ((quadrant + u64(1)) & u64(2)) != u64(0) else x), (-y if quadrant > u64(1) else y)


@jit
def pair64(a, b):
    j = as_i64(f64(a) + 0.5) - i64(0x43E6A09E667F3BCD)
    e = f64(j >> i64(52))
    t = as_f64((j & i64(0xFFFFFFFFFFFFF)) + i64(0x3FE6A09E667F3BCD)) - 1.0
    s = t / (2.0 + t)
    z, h = s * s, 0.5 * (t * t)
    p = LOG64[0]
    for k in LOG64[1:]:
        p = p * z + k
    g = s * (h + z * p)
    r = math.sqrt(-2.0 * (e * LN2_64[0] - ((h - (g + e * LN2_64[1])) - t)))
    v = f64(i64(b << u64(2))) * 2.0**-63
    w = v * v
    s, c = SIN64[0], COS64[0]
    for k in SIN64[1:]:
        s = s * w + k
    for k in COS64[1:]:
        c = c * w + k
    s, c = s * v, c * w + 1.0
    quadrant = (b + u64(1 << 61)) >> u64(62)
    odd = (quadrant & u64(1)) != u64(0)
    x, y = r * (s if odd else c), r * (c if odd else s)
    return (-x if ((quadrant + u64(1)) & u64(2)) != u64(0) else x), (-y if quadrant > u64(1) else y)


@jit
def unit32(a):
    return f32(a >> u64(8)) * f32(2.0**-24)


@jit
def unit64(a):
    return f64(a >> u64(11)) * 2.0**-53


@jit
def words32(w, seed, stream, first, n):
    for i in range(n):
        w[0, i], w[1, i], w[2, i], w[3, i] = words(seed, stream, first + u64(i))


@jit
def words64(w, seed, stream, first, n):
    for i in range(n):
        a, b, c, d = words(seed, stream, first + u64(i))
        e, f, g, h = words(seed, stream, first + u64(i) + TOP)
        w[0, i], w[1, i], w[2, i], w[3, i] = a << HALF | e, b << HALF | f, c << HALF | g, d << HALF | h


def _normals(pair: Any) -> Any:
    @jit
    def draw(w, z, n):
        for i in range(n):
            z[0, i], z[1, i] = pair(w[0, i], w[1, i])
            z[2, i], z[3, i] = pair(w[2, i], w[3, i])

    return draw


def _uniforms(unit: Any) -> Any:
    @jit
    def draw(w, z, n):
        for i in range(n):
            z[0, i], z[1, i], z[2, i], z[3, i] = unit(w[0, i]), unit(w[1, i]), unit(w[2, i]), unit(w[3, i])

    return draw


def _filler(some_words: Any, draw: Any) -> Any:
    @jit
    def fill(out, seed, stream, first):
        w, z = np.empty((4, CHUNK), np.uint64), np.empty((4, CHUNK), out.dtype)
        for begin in range(0, len(out), 4 * CHUNK):
            left = len(out) - begin
            n = min(CHUNK, (left + 3) // 4)
            some_words(w, seed, stream, first + u64(begin // 4), n)
            draw(w, z, n)
            whole = min(CHUNK, left // 4)
            for i in range(whole):
                for j in range(4):
                    out[begin + 4 * i + j] = z[j, i]
            if whole < n:
                for j in range(left % 4):
                    out[begin + 4 * whole + j] = z[j, whole]

    return fill


fill_normal32, fill_normal64 = _filler(words32, _normals(pair32)), _filler(words64, _normals(pair64))
fill_uniform32, fill_uniform64 = _filler(words32, _uniforms(unit32)), _filler(words64, _uniforms(unit64))


@kernel
def normal(key, out, shape):
    fill = fill_normal32 if out.dtype == np.float32 else fill_normal64
    fill(out.reshape(-1), key[0], key[1], u64(0))


@kernel
def uniform(key, out, shape):
    fill = fill_uniform32 if out.dtype == np.float32 else fill_uniform64
    fill(out.reshape(-1), key[0], key[1], u64(0))


def _rows_filler(fill: Any) -> Any:
    @jit
    def run(keys, streams, weights, out):
        z = np.empty(out.shape[1], out.dtype)
        for i in range(len(out)):
            for j in range(len(streams)):
                fill(z, keys[i, 0], keys[i, 1] + streams[j], u64(0))
                for k in range(len(z)):
                    out[i, k] += weights[j] * z[k]

    return run


rows32, rows64 = _rows_filler(fill_normal32), _rows_filler(fill_normal64)


@kernel
def normals(keys, streams, weights, out, shape):
    out[...] = 0
    if out.size:
        run = rows32 if out.dtype == np.float32 else rows64
        run(keys, streams, weights.astype(out.dtype), out.reshape(len(out), -1))


@jit
def philox_rows(counter, key, out):
    for i in range(len(counter)):
        c = philox4(u64(counter[i, 0]), u64(counter[i, 1]), u64(counter[i, 2]), u64(counter[i, 3]), u64(key[0]),
                    u64(key[1]))
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = c


@kernel
def philox(counter, key, out):
    philox_rows(counter, key, out)


@kernel
def advance_(key):
    key[1:] += u64(1)
