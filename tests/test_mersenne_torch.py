"""The torch-cpu noise stream against PyTorch itself.

Seen to fail: with the second number of a pair from the cosine, with the radius from u in place of 1 - u, with the tail
of a call not drawn again, with the second number of a pair forgotten between calls, with 31 bits of the seed.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from generant.diffusion.mersenne import TorchCpuNoise
from generant.diffusion.plan import Plan, Stage
from generant.diffusion.sampling import Stepper

torch = pytest.importorskip("torch")

BOUND = {"float32": 1e-6, "float64": 1e-13}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_length_is_reproduced(dtype):
    """Each length from a fresh seed, then all of them from one generator, so that what is kept between calls counts."""
    lengths = [*range(41), 1000, 1009]
    generator, noise = torch.Generator().manual_seed(5), TorchCpuNoise(5)
    for n in lengths:
        torch.manual_seed(n)
        expected = torch.randn(n, dtype=getattr(torch, dtype)).numpy()
        np.testing.assert_allclose(TorchCpuNoise(n).normal(n, dtype), expected, rtol=0, atol=BOUND[dtype])
        expected = torch.randn(n, dtype=getattr(torch, dtype), generator=generator).numpy()
        np.testing.assert_allclose(noise.normal(n, dtype), expected, rtol=0, atol=BOUND[dtype])


@pytest.mark.parametrize("seed", [0, 1, 2**31 + 7, 2**32 - 1, 2**32 + 3, 2**64 - 1, -1, -(2**63)])
def test_every_seed_is_reproduced(seed):
    expected = torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(seed)).numpy()
    np.testing.assert_allclose(TorchCpuNoise(seed).normal((3, 8, 9)), expected, rtol=0, atol=1e-6)


def test_calls_of_all_kinds_share_one_stream():
    generator, noise = torch.Generator().manual_seed(123), TorchCpuNoise(123)
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 6, rng.integers(1, 4)))
        dtype = ["float32", "float64"][rng.integers(2)]
        kind = {"dtype": getattr(torch, dtype), "generator": generator}
        if rng.integers(2):
            expected, got = torch.randn(shape, **kind).numpy(), noise.normal(shape, dtype)
            np.testing.assert_allclose(got, expected, rtol=0, atol=BOUND[dtype])
        else:  # no function between the word and the number: the same bits
            np.testing.assert_array_equal(noise.uniform(shape, dtype), torch.rand(shape, **kind).numpy())


def test_a_large_image_is_reproduced():
    expected = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(9)).numpy()
    np.testing.assert_allclose(TorchCpuNoise(9).normal((4, 3, 64, 64)), expected, rtol=0, atol=1e-6)


def test_a_run_with_noise_is_repeated():
    """Ancestral steps written in PyTorch with a generator, and a plan given the same seed's numbers."""
    levels, shape = np.geomspace(10.0, 0.1, 8).tolist(), (2, 5, 5, 3)
    rows = [(s, t, t * (1 - t * t / (s * s)) ** 0.5) for s, t in pairwise(levels)]
    downs = [t * t / s for s, t, _ in rows]
    generator = torch.Generator().manual_seed(21)
    expected = torch.randn(shape, generator=generator) * levels[0]
    for (s, _, up), down in zip(rows, downs, strict=True):
        denoised = torch.tanh(expected) / (1 + s)
        expected = denoised + down / s * (expected - denoised) + up * torch.randn(shape, generator=generator)

    stages = [Stage(s, c_x=d / s, c_d=1 - d / s, c_noise=up) for (s, _, up), d in zip(rows, downs, strict=True)]
    stepper = Stepper(Plan("ancestral", stages, final=(1.0, levels[-1])))
    noise = TorchCpuNoise(21)
    x = noise.normal(shape) * np.float32(levels[0])
    for i, (s, _, _) in enumerate(rows):
        x, _ = stepper.step(i, x, np.tanh(x) / np.float32(1 + s), noise=noise.normal(shape))
    np.testing.assert_allclose(x, expected.numpy(), rtol=0, atol=2e-5)
