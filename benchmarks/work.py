"""The kinds of work that are measured: their inputs, what generant runs, and how a result is judged.

`inputs` is seeded, so every contender sees the same arrays. `ours(a)` returns the function that is timed; rivals*.py
have the others. `error(result, a)` is the distance to a float64 reference computed here, independent of generant; for
random numbers it is how many standard deviations their moments are off. Above `tolerance`, a contender fails and is
not timed. Here: products, random numbers, sampler steps, the optimiser and overhead; work_conv.py, work_norm.py and
work_attention.py have the layers of networks, work_models.py whole models, work_pairwise.py sums and searches over all
pairs, work_metrics.py the scores. Sizes and goals are in cases*.py.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import machine
import numpy as np


class Family:
    """Defaults shared by all kinds of work; sizes are the fields of the subclass."""

    tolerance = 1e-5
    checked_calls = 1  # the result after this many calls is judged
    unit = ""  # of the error: relative unless said otherwise
    timed_inside = False  # the call returns its own time in seconds
    keeps = False  # memory is what a contender keeps (weights, optimiser, plans) and the peak of a call above it
    judged_small = False  # agreement is shown on small(): the reference would take longer than the measurement

    def small(self) -> Family:
        """The same work at a size for tests."""
        return self

    def lacks(self) -> str:
        """What this machine must have for the work to tell anything and has not; it is not run then."""
        return ""

    def pairs(self) -> float:
        """How many pairs of rows are visited, a pair of a set with itself counted twice."""
        return 0.0

    def note(self, result: Any, a: Any) -> str:
        """What else is to be told beside the error."""
        return ""

    def flop(self) -> float:
        return 0.0

    def bytes(self) -> float:
        """Least traffic: every input read once, every output written once."""
        return 0.0


def relative(result: Any, exact: np.ndarray) -> float:
    """max |result - exact| / max |exact|."""
    return float(np.abs(np.asarray(result, np.float64) - exact).max() / np.abs(exact).max())


def moments(z: np.ndarray) -> float:
    """How many standard deviations mean, variance or kurtosis of z are away from a standard normal's, at worst."""
    z = np.asarray(z, np.float64).ravel()
    square = z * z
    off = (z.mean(), (square.mean() - 1) / 2**0.5, ((square * square).mean() - 3) / 96**0.5)
    return float(max(map(abs, off)) * z.size**0.5)


def normal(shape: Any, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)


@dataclass(frozen=True)
class Matmul(Family):
    n: int
    d: int
    o: int

    def small(self):
        return replace(self, n=min(self.n, 200), d=min(self.d, 200), o=min(self.o, 200))

    def inputs(self):
        return SimpleNamespace(x=normal((self.n, self.d)), w=normal((self.d, self.o), 1), b=normal(self.o, 2))

    def ours(self, a):
        from generant import ops

        return lambda: ops.matmul(a.x, a.w)

    def error(self, result, a):
        return relative(result, a.x.astype(np.float64) @ a.w)

    def flop(self):
        return 2.0 * self.n * self.d * self.o


@dataclass(frozen=True)
class LinearSilu(Matmul):
    def inputs(self):
        a = super().inputs()
        a.w *= np.float32(self.d**-0.5)
        return a

    def ours(self, a):
        from generant import ops

        return lambda: ops.linear_act(a.x, a.w, a.b, activation="silu")

    def error(self, result, a):
        h = a.x.astype(np.float64) @ a.w + a.b
        return relative(result, h / (1 + np.exp(-h)))


@dataclass(frozen=True)
class LinearBf16(Matmul):
    """x w + b from factors that are rounded to bfloat16, where the CPU multiplies them."""

    tolerance = 2e-2

    def inputs(self):
        a = super().inputs()
        a.w *= np.float32(self.d**-0.5)
        return a

    def lacks(self):
        return "" if machine.has("avx512_bf16") else "this CPU has no avx512_bf16"

    def ours(self, a):
        from generant import ops

        return lambda: ops.linear(a.x, a.w, a.b, precision="bf16")

    def error(self, result, a):
        return relative(result, a.x.astype(np.float64) @ a.w + a.b)

    def flop(self):
        return 0.0  # the peak that is measured is that of float32


@dataclass(frozen=True)
class Normals(Family):
    n: int
    tolerance, unit = 6.0, " sd"

    def inputs(self):
        return SimpleNamespace(n=self.n)

    def ours(self, a):
        from generant import ops, random

        keys = random.Stream(0)
        return lambda: ops.normal(next(keys), shape=(a.n,))

    def error(self, result, a):
        return moments(result)


@dataclass(frozen=True)
class QSample(Family):
    """alpha_i x_i + sigma_i z with fresh noise z."""

    shape: tuple
    tolerance, unit = 6.0, " sd"

    def inputs(self):
        t = np.linspace(0.1, 1.4, self.shape[0])
        alpha, sigma = np.cos(t).astype(np.float32), np.sin(t).astype(np.float32)
        return SimpleNamespace(x=normal(self.shape, scale=0.5), alpha=alpha, sigma=sigma)

    def ours(self, a):
        from generant import ops, random

        keys = random.Stream(0)
        return lambda: ops.q_sample(a.x, a.alpha, a.sigma, next(keys))

    def error(self, result, a):
        alpha, sigma = (v.astype(np.float64).reshape(-1, 1, 1, 1) for v in (a.alpha, a.sigma))
        return moments((result - alpha * a.x) / sigma)

    def bytes(self):
        return 8.0 * np.prod(self.shape)


def step_coefficients(**some):
    """The coefficients of ops.sampler_step by name; the others are 0."""
    from generant.ops.diffusion import COEF

    return np.array([float(some.get(name, 0.0)) for name in COEF])


@dataclass(frozen=True)
class Ddim(Family):
    """From level (alpha, sigma) to (alpha_next, sigma_next) along the noise the network predicted."""

    shape: tuple
    alpha, sigma, alpha_next, sigma_next = 0.6, 0.8, 0.8, 0.6

    def inputs(self):
        return SimpleNamespace(x=normal(self.shape), eps=normal(self.shape, 1))

    def ours(self, a):
        from generant import ops

        ratio = self.sigma_next / self.sigma
        c_d = self.alpha_next - ratio * self.alpha
        coef = step_coefficients(a_x=1 / self.alpha, a_p=-self.sigma / self.alpha, c_x=ratio, c_d=c_d)
        return lambda: ops.sampler_step(a.x, a.eps, None, None, None, None, None, None, coef)

    def error(self, result, a):
        x, eps = a.x.astype(np.float64), a.eps.astype(np.float64)
        return relative(result, self.alpha_next * (x - self.sigma * eps) / self.alpha + self.sigma_next * eps)

    def bytes(self):
        return 12.0 * np.prod(self.shape)


@dataclass(frozen=True)
class Heun(Family):
    """The correction of a second-order step from noise level s to t: the mean of the slopes at both ends."""

    shape: tuple
    s, t = 2.0, 1.5

    def inputs(self):
        first, denoised = normal(self.shape, scale=0.5), normal(self.shape, 1, 0.5)
        x0 = normal(self.shape, 2, self.s)
        slope = (x0 - first) / np.float32(self.s)  # at the beginning, where the network said `first`
        euler = x0 + np.float32(self.t - self.s) * slope
        return SimpleNamespace(x0=x0, first=first, slope=slope, euler=euler, denoised=denoised)

    def ours(self, a):
        from generant import ops

        c = (self.s - self.t) / (2 * self.t)
        coef = step_coefficients(a_p=1.0, c_x=1.0, c_d=c, c_1=-c)
        return lambda: ops.sampler_step(a.euler, a.denoised, None, a.first, None, None, None, None, coef)

    def error(self, result, a):
        x0, first = a.x0.astype(np.float64), a.first.astype(np.float64)
        slope = (x0 - first) / self.s
        end = (x0 + (self.t - self.s) * slope - a.denoised) / self.t
        return relative(result, x0 + (self.t - self.s) * (slope + end) / 2)

    def bytes(self):
        return 16.0 * np.prod(self.shape)


@dataclass(frozen=True)
class Ancestral(Ddim):
    """DDPM: clipped denoised, posterior mean, fresh noise."""

    tolerance, unit = 6.0, " sd"
    c_x, c_d, c_noise = 0.4, 0.5, 0.35

    def ours(self, a):
        from generant import ops, random

        coef = step_coefficients(
            a_x=1 / self.alpha, a_p=-self.sigma / self.alpha, c_x=self.c_x, c_d=self.c_d, c_noise=self.c_noise
        )
        keys = random.split(0, self.shape[0])

        def step():
            coef[10] += 1  # other noise every time
            return ops.sampler_step(a.x, a.eps, None, None, None, None, None, keys, coef, clip=1.0)

        return step

    def error(self, result, a):
        x, eps = a.x.astype(np.float64), a.eps.astype(np.float64)
        denoised = np.clip((x - self.sigma * eps) / self.alpha, -1, 1)
        return moments((result - self.c_x * x - self.c_d * denoised) / self.c_noise)


@dataclass(frozen=True)
class Adam(Family):
    """A step on `tensors` parameters of the same shape; generant keeps them in one flat buffer."""

    tensors: int
    shape: tuple
    tolerance, checked_calls = 1e-3, 3  # relative to the largest change
    lr = 1e-2

    def inputs(self):
        n = self.tensors * int(np.prod(self.shape))
        return SimpleNamespace(p=normal(n), g=normal(n, 1), shapes=(self.tensors, *self.shape))

    def ours(self, a):
        from generant import ops

        p, m, v = a.p.copy(), np.zeros_like(a.p), np.zeros_like(a.p)
        step, lr = np.zeros(1, np.int64), np.array([self.lr])

        def call():
            ops.adam_(p, m, v, a.g, step, lr)
            return p

        return call

    def error(self, result, a):
        p, g, m, v = a.p.astype(np.float64), a.g.astype(np.float64), 0.0, 0.0
        for t in range(1, self.checked_calls + 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - self.lr * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return float(np.abs(np.asarray(result).ravel() - p).max() / np.abs(p - a.p).max())

    def bytes(self):
        return 28.0 * self.tensors * np.prod(self.shape)


@dataclass(frozen=True)
class Launch(Family):
    """A kernel that does nothing, on one input and one output."""

    def inputs(self):
        return SimpleNamespace(x=normal((4, 8)), y=normal((4, 8)))

    def ours(self, a):
        from functools import partial

        from generant import _native

        return partial(_native.launch, _native.kernels()["noop"], (a.x,), (a.y,), ())

    def error(self, result, a):
        return 0.0


@dataclass(frozen=True)
class Small(Family):
    """One op on (4, 8) arrays: all overhead."""

    op: str

    def inputs(self):
        return SimpleNamespace(arrays=[normal((4, 8), i) for i in range(2 if self.op == "add" else 1)])

    def ours(self, a):
        from functools import partial

        from generant import ops

        return partial(getattr(ops, self.op), *a.arrays)

    def error(self, result, a):
        return relative(result, getattr(np, self.op)(*(x.astype(np.float64) for x in a.arrays)))


@dataclass(frozen=True)
class Chain(Family):
    """Value and gradient, in all 40 parameters, of the sum after 20 times (linear, tanh) on x (4, 8)."""

    depth: int = 20

    def inputs(self):
        w = [normal((8, 8), 2 * i, 8**-0.5) for i in range(self.depth)]
        return SimpleNamespace(x=normal((4, 8), 99), w=w, b=[normal(8, 2 * i + 1, 0.1) for i in range(self.depth)])

    def ours(self, a):
        from generant import ops, value_and_grad

        def value(parameters):
            h = a.x
            for w, b in zip(parameters[: self.depth], parameters[self.depth :], strict=True):
                h = ops.tanh(ops.linear(h, w, b))
            return ops.sum(h)

        f, parameters = value_and_grad(value), a.w + a.b
        return lambda: f(parameters)

    def error(self, result, a):
        hs = [a.x.astype(np.float64)]
        for w, b in zip(a.w, a.b, strict=True):
            hs.append(np.tanh(hs[-1] @ w + b))
        g, grads_w, grads_b = np.ones_like(hs[-1]), [], []
        for h, y, w in zip(hs[-2::-1], hs[:0:-1], a.w[::-1], strict=True):
            g = g * (1 - y * y)
            grads_w, grads_b, g = [h.T @ g, *grads_w], [g.sum(0), *grads_b], g @ w.T
        exact = [hs[-1].sum(), *grads_w, *grads_b]
        value, grads = result
        return max(relative(r, e) for r, e in zip([value, *grads], exact, strict=True))


@dataclass(frozen=True)
class Import(Family):
    """Importing a module where NumPy is imported already, in a fresh interpreter."""

    module: str
    timed_inside = True

    def inputs(self):
        return None

    def seconds(self, module):
        program = f"import time, numpy; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        return float(subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE).stdout)

    def ours(self, a):
        return lambda: self.seconds(self.module)

    def error(self, result, a):
        return 0.0
