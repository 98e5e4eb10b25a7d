"""Philox, uniforms and normals: known answers, the same bits on every backend, and the distribution itself.

The numbers are deterministic, so every statistical bound here either holds for good or points at a change.
Seen to fail: with nine rounds; with fma replaced by a * b + c, or rounded twice (hashes, fma); with one word of a
counter used twice (neighbours); with the 32 bits of u cut to 24 (tails, transform, hashes).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from math import erf

import numpy as np
import pytest

import generant
from generant import ops, random
from generant.ops import _dispatch
from generant.ops.random import _box_muller32, _box_muller64, _fma

N = 1_000_000
GOLDEN = {
    ("normal", "float32"): "f032d610b571f476171809912fab8169d251784febdb77263bd65afbbdf0f097",
    ("normal", "float64"): "15e1b37d419f8836d3e3601119961f57bed02394e0ccdaca4806875e892e63e6",
    ("uniform", "float32"): "3ad3886b70bdea1becb2b5a5f66e570349f22c5f9e1bbb79780ed4944f4f5978",
    ("uniform", "float64"): "084ad72b1b601d35fdd14528cf77caecfc1816ecfd09a72da13e1ae86e8a6e44",
}


def digest(name: str, dtype: str, n: int = N) -> str:
    values = getattr(ops, name)(random.key(2**40 + 12345, 2**33 + 7), shape=(n,), dtype=dtype)
    return hashlib.sha256(values.tobytes()).hexdigest()


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint32)


@pytest.mark.parametrize("counter, key, answer", [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_philox_known_answers(counter, key, answer) -> None:
    """Random123's kat_vectors for philox4x32 with 10 rounds."""
    np.testing.assert_array_equal(ops.philox(words(*counter)[None], words(*key))[0], words(*answer))


def test_element_e_is_word_e_mod_4_of_counter_e_div_4() -> None:
    """The documented mapping, for both float types and beyond 32 bits of seed and stream."""
    seed, stream, n = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 1003
    index = np.arange((n + 3) // 4)
    counter = np.zeros((len(index), 4), np.uint32)
    counter[:, 0], counter[:, 2], counter[:, 3] = index, stream & 0xFFFFFFFF, stream >> 32
    key = words(seed & 0xFFFFFFFF, seed >> 32)
    high = ops.philox(counter, key).reshape(-1)[:n]
    counter[:, 1] = 1 << 31
    low = ops.philox(counter, key).reshape(-1)[:n]
    u32 = random.uniform(random.key(seed, stream), n)
    u64 = random.uniform(random.key(seed, stream), n, "float64")
    np.testing.assert_array_equal(u32, (high >> 8) / 2.0**24)
    np.testing.assert_array_equal(u64, ((high.astype(np.uint64) << np.uint64(32) | low) >> np.uint64(11)) / 2.0**53)


@pytest.mark.parametrize("name, dtype", GOLDEN)
def test_golden_hashes(name: str, dtype: str) -> None:
    assert digest(name, dtype) == GOLDEN[name, dtype]


BACKENDS = [{"GENERANT_BACKEND": "native", "GENERANT_ISA": isa} for isa in ("base", "avx2", "avx512")]
BACKENDS += [{"GENERANT_BACKEND": "numba"}, {"GENERANT_BACKEND": "definition"}]


@pytest.mark.once
@pytest.mark.parametrize("env", BACKENDS, ids=lambda env: "-".join(env.values()))
def test_same_bits_on_every_backend(env: dict[str, str]) -> None:
    """Each backend and instruction set, in a process of its own (an ISA this machine lacks is capped to one it has)."""
    if env["GENERANT_BACKEND"] == "native" and _dispatch.native_module() is None:
        pytest.skip("no compiled module here")
    if env["GENERANT_BACKEND"] == "numba":
        pytest.importorskip("numba")
    program = f"""if True:
        import hashlib
        from generant import ops, random
        for name, dtype in {list(GOLDEN)}:
            values = getattr(ops, name)(random.key(2**40 + 12345, 2**33 + 7), shape=({N},), dtype=dtype)
            print(hashlib.sha256(values.tobytes()).hexdigest())
    """
    run = subprocess.run([sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == list(GOLDEN.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_shorter_arrays_are_prefixes(name: str, dtype: str) -> None:
    """Every length from 0 to beyond two blocks, and lengths around the work unit."""
    draw = getattr(random, name)
    whole = draw(5, 70_000, dtype)
    for n in [*range(300), 16383, 16385, 65535, 65536, 65537, 65540]:
        np.testing.assert_array_equal(draw(5, n, dtype), whole[:n])
    np.testing.assert_array_equal(draw(5, (70, 10, 100), dtype).reshape(-1), whole)
    np.testing.assert_array_equal(getattr(ops, name)(random.key(5), shape=7, dtype=dtype), whole[:7])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_any_number_of_threads(dtype: str) -> None:
    threads, seen = generant.get_num_threads(), set()
    try:
        for n in (1, 2, 3, 7):
            generant.set_num_threads(n)
            seen.add(random.normal(1, 1_000_003, dtype).tobytes())
            seen.add(random.normal(1, 8_000_003, dtype)[:1_000_003].tobytes())  # large ones bypass the caches
    finally:
        generant.set_num_threads(threads)
    assert len(seen) == 1


def test_float64_refines_float32() -> None:
    """The same key gives the same numbers in both precisions, up to the precision."""
    u32, u64 = random.uniform(3, N), random.uniform(3, N, "float64")
    np.testing.assert_array_equal(u32, np.floor(u64 * 2**24) / 2**24)
    z32, z64 = random.normal(3, N), random.normal(3, N, "float64")
    assert np.abs(z32 - z64).max() < 3e-5              # near u = 1 a float32 u is coarse
    assert np.abs(z32 - z64).mean() < 5e-8


def test_transform_against_libm() -> None:
    """float32 normals are Box-Muller of the rounded uniforms to 4 ulp, float64 to 4 ulp of long double."""
    n = 400_000
    index = np.arange(n // 4)
    counter = np.zeros((len(index), 4), np.uint32)
    counter[:, 0] = index
    w = ops.philox(counter, words(9, 0))
    a, b = w[:, ::2].reshape(-1), w[:, 1::2].reshape(-1)
    u = (a.astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2.0**32
    t = (b << np.uint32(2)).view(np.int32).astype(np.float32).astype(np.float64) * (np.pi / 4 / 2**31)
    angle = ((b + np.uint32(1 << 29)) >> np.uint32(30)) * (np.pi / 2)
    r = np.sqrt(-2 * np.log(u))
    exact = np.stack([r * np.cos(angle + t), r * np.sin(angle + t)], 1).reshape(-1)
    error = np.abs(random.normal(9, n) - exact) / np.spacing(np.abs(exact).astype(np.float32))
    assert np.quantile(error, 0.999) < 3
    assert error[np.abs(exact) > 1e-3].max() < 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_moments_and_distribution(dtype: str) -> None:
    """Moments to order 6 within 4 standard errors; Kolmogorov distance within the 0.1% point."""
    z = random.normal(random.key(11, 3), 4 * N, dtype).astype(np.float64)
    for order, (value, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96), (0, 945), (15, 10170)], start=1):
        assert abs(np.mean(z**order) - value) < 4 * np.sqrt(variance / len(z))
    u = random.uniform(random.key(11, 4), 4 * N, dtype).astype(np.float64)
    assert u.min() >= 0
    assert u.max() < 1
    for order in range(1, 7):
        variance = 1 / (2 * order + 1) - 1 / (order + 1) ** 2
        assert abs(np.mean(u**order) - 1 / (order + 1)) < 4 * np.sqrt(variance / len(u))
    grid = np.arange(1, len(z) + 1) / len(z)
    cdf = np.array([0.5 * (1 + erf(x / np.sqrt(2))) for x in np.sort(z)[::400]])
    assert np.abs(cdf - grid[::400]).max() * np.sqrt(len(z)) < 1.95
    assert np.abs(np.sort(u) - grid).max() * np.sqrt(len(u)) < 1.95


def test_tails() -> None:
    """Counts beyond 4, 4.5 and 5 standard deviations; the smallest word gives the largest number there is."""
    n = 8 * N
    z = random.normal(random.key(2024), n)
    for bound, p in ((4.0, 6.334e-5), (4.5, 6.795e-6), (5.0, 5.733e-7)):
        count = np.count_nonzero(np.abs(z) > bound)
        assert abs(count - n * p) < 4 * np.sqrt(n * p)
    assert np.abs(z).max() > 5
    zero = np.zeros(1, np.uint32)
    assert _box_muller32(zero, zero)[0][0] == pytest.approx(np.sqrt(2 * 33 * np.log(2)), rel=1e-6)
    assert _box_muller64(zero.astype(np.uint64), zero.astype(np.uint64))[0][0] == pytest.approx(9.493, abs=1e-3)
    assert _box_muller32(~zero, zero)[0][0] == 0        # u rounds to 1: the logarithm is 0, not NaN


def test_bits_are_balanced() -> None:
    """Every one of the 24 leading bits is set half of the time; 2^12 cells of two neighbours are equally full."""
    u = random.uniform(17, 4 * N)
    bits = (u * 2**24).astype(np.uint32)
    for i in range(24):
        assert abs(np.count_nonzero(bits >> np.uint32(i) & np.uint32(1)) - 2 * N) < 4 * np.sqrt(N)
    cells = (bits[0::2] >> np.uint32(18)) << np.uint32(6) | bits[1::2] >> np.uint32(18)
    counts = np.bincount(cells, minlength=4096)
    expected = 2 * N / 4096
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - 4095) < 4 * np.sqrt(2 * 4095)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std()))


@pytest.mark.parametrize("transform", [lambda z: z, np.abs, np.square], ids=["z", "|z|", "z^2"])
def test_neighbours_are_uncorrelated(transform) -> None:
    """Lanes of a counter, neighbouring counters, neighbouring streams and neighbouring seeds."""
    bound = 4 / np.sqrt(N / 4)
    z = transform(random.normal(random.key(1, 0), N))
    for lag in (1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 4096):
        assert abs(correlation(z[:-lag], z[lag:])) < bound
    lanes = z.reshape(-1, 4)
    for i in range(4):
        for j in range(i):
            assert abs(correlation(lanes[:, i], lanes[:, j])) < bound
    for seed, stream in ((1, 1), (2, 0), (0, 0), (1, 1 << 32), (1 | 1 << 32, 0)):
        assert abs(correlation(z, transform(random.normal(random.key(seed, stream), N)))) < bound


def test_advance_is_the_next_stream() -> None:
    key = random.key(4, 2**64 - 1)
    ops.advance_(key)
    np.testing.assert_array_equal(key, random.key(4, 0))
    ops.advance_(key)
    np.testing.assert_array_equal(random.normal(key, 5), random.normal(random.key(4, 1), 5))


def test_exact_fma_of_the_definition() -> None:
    """The emulation, where naive double rounding is wrong and against integers."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(3000).astype(np.float32) for _ in range(2))
    c = np.float32(-1) * a * b * (1 + rng.integers(-3, 4, 3000) * 2.0**-22).astype(np.float32)
    c[::2] = (rng.standard_normal(1500) * 2.0 ** rng.integers(-60, 60, 1500)).astype(np.float32)
    # a b = 2^-24 - 2^-70: the sum lies within 2^-70 of a tie, which float64 cannot see
    a[:2], b[:2], c[:2] = (2**23 + 1) * 2.0**-35, (2**23 - 1) * 2.0**-35, 1 + 2.0**-23
    a[1] *= -1
    for x, y, z, got in zip(a, b, c, _fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        distance = abs(Fraction(float(got)) - exact)
        for other in (np.nextafter(got, np.float32(np.inf)), np.nextafter(got, np.float32(-np.inf))):
            assert distance <= abs(Fraction(float(other)) - exact)


def test_streams_and_permutations() -> None:
    stream, other = random.Stream(5, purpose=1), random.Stream(5, purpose=2)
    first, second = next(stream), next(stream)
    np.testing.assert_array_equal(first, stream.at(0))
    np.testing.assert_array_equal(second, stream.at(1))
    assert len({k.tobytes() for k in (first, second, next(other), other.at(1))}) == 4
    order = random.permutation(random.key(3), 1000)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert np.any(order != np.arange(1000))
    np.testing.assert_array_equal(order, random.permutation(random.key(3), 1000))
    assert random.seed_from(7) == 7
    assert random.seed_from(None) != random.seed_from(None)
    np.testing.assert_array_equal(random.normal(7, 9), ops.normal(random.key(7, 0), shape=(9,)))


@pytest.mark.parametrize("make, error, words_of_it", [
    (lambda: random.key(1.5), TypeError, "seed must be an integer, got float"),
    (lambda: random.key(-1), ValueError, "seed must lie in"),
    (lambda: random.key(1, 2**64), ValueError, "stream must lie in"),
    (lambda: random.seed_from("a"), TypeError, "random_state must be an integer or None, got str"),
    (lambda: random.seed_from(2**64), ValueError, "random_state must lie in"),
    (lambda: ops.normal(np.array([1, 2]), shape=(3,)), TypeError, "key must be uint64, got int64"),
    (lambda: ops.normal(np.zeros(3, np.uint64), shape=(3,)), ValueError, "key"),
    (lambda: ops.normal(random.key(0), shape=(3,), dtype="float16"), TypeError, "dtype must be float32 or float64"),
])
def test_errors(make, error, words_of_it) -> None:
    with pytest.raises(error, match=words_of_it):
        make()
