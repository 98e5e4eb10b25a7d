"""Random numbers as a function of (seed, stream, element): Philox4x32-10, uniforms, Box-Muller normals.

Element e of an output is word e % 4 of Philox at counter (e // 4, stream), 64 bits each, under the key `seed`: it
depends neither on the shape nor on threads, batch or device, and a shorter array is a prefix of a longer one.
The float formulas are chains of +, -, *, fma, sqrt (and / in float64) in one fixed order, so every backend gives the
same bits. The definitions here are that order, spelled out; a float32 fma is computed exactly through float64.
float64 outputs take 32 further bits per element, from counter (e // 4 + 2^63, stream): they refine the float32
numbers of the same key instead of replacing them.

Not here: rejection methods (ziggurat), because a value would then depend on how often its neighbours were rejected.
"""
import numpy as np

from ._table import op

__all__ = ["advance_", "normal", "normals", "philox", "uniform"]

SHAPES: list[dict] = [dict(shape=()), dict(shape=(1,)), dict(shape=(7, 5)), dict(shape=(3, 67))]
SHAPES += [dict(shape=(7,), dtype="float64"), dict(shape=(3, 67), dtype="float64")]

LOW_WORDS = 1 << 63                                    # where in counter space the low halves of float64 elements lie


def _floats(text):
    return [float.fromhex(word) for word in text.split()]


# -2 (log(1 + t) - t + t^2 / 2) / t^3 on [sqrt(1/2) - 1, sqrt(2) - 1], highest power first: 3.5e-8 of the logarithm
LOG32 = _floats("-0x1.645ed0p-3 0x1.2432bep-2 -0x1.317452p-2 0x1.538248p-2 -0x1.98d7f2p-2 0x1.000382p-1 "
                "-0x1.5556d8p-1")
# sin(pi t / 4) / t and (cos(pi t / 4) - 1) / t^2 in powers of t^2, for |t| <= 1: 4e-9 and 4e-8
SIN32 = _floats("-0x1.2d9302p-15 0x1.465e92p-9 -0x1.4abbbap-4 0x1.921fb6p-1")
COS32 = _floats("-0x1.4e8448p-12 0x1.03b090p-6 -0x1.3bd39cp-2")
# (log((1 + s) / (1 - s)) - 2 s) / s^3 in powers of s^2, for |s| <= 0.1716: 2e-18
LOG64 = _floats("0x1.2f05634bd54d7p-3 0x1.39a1babe2ac94p-3 0x1.74663ee81c020p-3 0x1.c71c52095f033p-3 "
                "0x1.24924941f121fp-2 0x1.999999997fdb8p-2 0x1.5555555555592p-1")
SIN64 = _floats("0x1.e3eed5cfb0124p-38 -0x1.e30063a0372b0p-30 0x1.50782fca38d4fp-22 "
                "-0x1.32d2cce2d5363p-15 0x1.466bc67758700p-9 -0x1.4abbce625be41p-4 0x1.921fb54442d18p-1")
COS64 = _floats("-0x1.b263c353b6c7bp-42 0x1.f9cc40acd6483p-34 -0x1.a6d1ec7e0bd42p-26 "
                "0x1.e1f5068367b28p-19 -0x1.55d3c7e3c9280p-12 0x1.03c1f081b5aaep-6 -0x1.3bd3cc9be45dep-2")
# -2 log 2 and log 2 as a short head, whose product with an exponent is exact, and a tail
LN2_32 = _floats("-0x1.63p0 0x1.bd0106p-12")
LN2_64 = _floats("0x1.62e42fee00000p-1 0x1.a39ef35793c76p-33")


@op("counter: n 4 uint32, key: 2 uint32 -> n 4 uint32", sizes=[dict(n=1), dict(n=7), dict(n=33)])
def philox(counter, key):
    """Philox4x32-10: ten rounds of two 32 x 32 -> 64 bit products that turn a counter and a key into 128 random bits.

    counter: n 4 uint32, least significant word first; key: 2 uint32. Returns n 4 uint32.
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        p, q = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (q >> shift) ^ c1 ^ np.uint64(k0), q & low, (p >> shift) ^ c3 ^ np.uint64(k1), p & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


@op("key: 2 uint64 -> ...", sizes=[dict()], attrs=SHAPES, shape=lambda shapes, attrs: (tuple(attrs["shape"]),))
def uniform(key, *, dtype="float32", shape):
    """floor(2^24 x) / 2^24 (float64: 2^53) of x = random bits / 2^32 (2^64): uniform on [0, 1), 0 included, 1 not.

    key: 2 uint64 = (seed, stream). Returns an array of the given shape. The same bits on every backend.
    """
    n = _count(shape)
    high = _words(key, n, 0)
    if dtype == "float32":
        u = (high >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    else:
        bits = high.astype(np.uint64) << np.uint64(32) | _words(key, n, LOW_WORDS)
        u = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return u.reshape(-1)[:n].reshape(shape)


@op("key: 2 uint64 -> ...", sizes=[dict()], attrs=SHAPES, shape=lambda shapes, attrs: (tuple(attrs["shape"]),))
def normal(key, *, dtype="float32", shape):
    """sqrt(-2 log u) (cos 2 pi v, sin 2 pi v): independent standard normal numbers.

    u, v are neighbouring random words (0, 1 and 2, 3 of each counter), all 32 (float64: 64) bits of them, so the tails
    reach 6.7 (9.5) standard deviations. key: 2 uint64 = (seed, stream). Returns an array of the given shape.
    float32 errs by 3 ulp of the transform of the rounded u, v. The same bits on every backend. Box and Muller (1958).
    """
    n = _count(shape)
    high = _words(key, n, 0)
    if dtype == "float32":
        z = [_box_muller32(high[:, i], high[:, i + 1]) for i in (0, 2)]
    else:
        bits = high.astype(np.uint64) << np.uint64(32) | _words(key, n, LOW_WORDS)
        z = [_box_muller64(bits[:, i], bits[:, i + 1]) for i in (0, 2)]
    return np.stack(z[0] + z[1], axis=1).reshape(-1)[:n].reshape(shape)


@op("keys: n 2 uint64, streams: m uint64, weights: m float64 -> n ...", sizes=[dict(n=1, m=1), dict(n=7, m=3)],
    attrs=[dict(shape=()), dict(shape=(3,)), dict(shape=(7, 29)), dict(shape=(5,), dtype="float64")],
    shape=lambda shapes, attrs: ((shapes[0][0], *attrs["shape"]),))
def normals(keys, streams, weights, *, dtype="float32", shape):
    """sum_j weights_j z_ij, z_ij = normal((seed_i, stream_i + streams_j)): standard normal numbers, a key per sample.

    keys: n 2 uint64 = (seed, stream); streams: m uint64; weights: m float64, rounded to the output's type. Returns
    n rows of the given shape; a row depends on its own key only. One stream of weight 1 gives the bits of `normal`.
    """
    weights = weights.astype(np.float32 if dtype == "float32" else np.float64)
    rows = []
    with np.errstate(over="ignore"):
        for seed, stream in keys:
            row = sum(
                w * normal.definition(np.array([seed, stream + s], np.uint64), dtype=dtype, shape=shape)
                for w, s in zip(weights, streams, strict=True)
            )
            rows.append(np.broadcast_to(row, shape))
    return np.stack(rows) if rows else np.empty((0, *shape), weights.dtype)


@op("key: 2 uint64 ->", effects=(0,), sizes=[dict()])
def advance_(key):
    """stream += 1: the next numbers of a key, as an effect that a recorded step repeats. key: 2 uint64, in place."""
    key[1:] += np.uint64(1)


def _count(shape):
    n = 1
    for size in shape:
        n *= int(size)
    return n


def _words(key, n, offset):
    """Philox at counters (offset + 0, 1, ..; stream): enough rows of four words for n elements."""
    seed, stream = int(key[0]), int(key[1])
    index = np.arange((n + 3) // 4, dtype=np.uint64) + np.uint64(offset)
    counter = np.empty((len(index), 4), np.uint32)
    counter[:, 0], counter[:, 1] = index & np.uint64(0xFFFFFFFF), index >> np.uint64(32)
    counter[:, 2], counter[:, 3] = stream & 0xFFFFFFFF, stream >> 32
    return philox.definition(counter, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))


def _fma(a, b, c):
    """The float32 nearest to a b + c. In float64 the product is exact and the sum is rounded to odd, which makes the
    second rounding harmless (Boldo and Melquiond 2008)."""
    p, c = np.float64(a) * np.float64(b), np.float64(c)
    s = p + c
    t = s - p
    lost = (p - (s - t)) + (c - t)
    bits = s.view(np.int64)
    bits = bits + np.where((lost != 0) & (bits & 1 == 0), np.where((lost > 0) == (s > 0), 1, -1), 0)
    return bits.view(np.float64).astype(np.float32)


def _horner32(coefficients, x):
    p = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = _fma(p, x, np.float32(c))
    return p


def _horner64(coefficients, x):
    p = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = p * x + c
    return p


def _box_muller32(a, b):
    f = np.float32
    # -2 log((a + 1/2) / 2^32): the exponent is split off so that the rest lies in [sqrt(1/2), sqrt(2))
    j = (a.astype(f) + f(0.5)).view(np.int32) - np.int32(0x4F3504F3)
    e = (j >> 23).astype(f)
    t = ((j & 0x7FFFFF) + np.int32(0x3F3504F3)).view(f) - f(1)
    z = t * t
    y = (_horner32(LOG32, t) * t) * z
    y = _fma(e, f(LN2_32[1]), y) + z
    r = np.sqrt(_fma(e, f(LN2_32[0]), _fma(t, f(-2), y)))
    # the angle: quadrant from the two highest bits, the rest as t in [-1, 1] eighths of a turn
    t = (b << np.uint32(2)).view(np.int32).astype(f) * f(2.0**-31)
    w = t * t
    sin, cos = _horner32(SIN32, w) * t, _fma(_horner32(COS32, w), w, f(1))
    return _rotate(r, sin, cos, (b + np.uint32(1 << 29)) >> np.uint32(30))


def _box_muller64(a, b):
    i, f = np.int64, np.float64
    j = (a.astype(f) + 0.5).view(i) - i(0x43E6A09E667F3BCD)
    e = (j >> 52).astype(f)
    t = ((j & i(0xFFFFFFFFFFFFF)) + i(0x3FE6A09E667F3BCD)).view(f) - 1.0
    s = t / (2.0 + t)
    z = s * s
    h = 0.5 * (t * t)
    y = s * (h + z * _horner64(LOG64, z))              # log(1 + t) = t - (h - y)
    log = e * LN2_64[0] - ((h - (y + e * LN2_64[1])) - t)
    r = np.sqrt(-2.0 * log)
    t = (b << np.uint64(2)).view(i).astype(f) * 2.0**-63
    w = t * t
    sin, cos = _horner64(SIN64, w) * t, _horner64(COS64, w) * w + 1.0
    return _rotate(r, sin, cos, (b + np.uint64(1 << 61)) >> np.uint64(62))


def _rotate(r, sin, cos, quadrant):
    odd, left, below = quadrant % 2 == 1, (quadrant == 1) | (quadrant == 2), quadrant > 1
    x, y = r * np.where(odd, sin, cos), r * np.where(odd, cos, sin)
    return np.where(left, -x, x), np.where(below, -y, y)
