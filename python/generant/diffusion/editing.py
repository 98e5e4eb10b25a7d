"""Samples that keep something of given data: `sdedit`, `inpaint` (with RePaint's resampling), `interpolate`, `slerp`.

All of them are runs of ordinary plans. A run that starts in the middle, or again, gets the plan of the levels that are
left, so that no multistep method looks back on what was another run. They take a sampler and its levels, not a plan.
The sampler is any function from levels to a plan; of its own options, of another form and of times it is told first:

    lambda sigmas: rescaled(dpmpp_2m(sigmas), "vp", times)

Not here: encoding by itself, which is `sample` along `samplers.ddim_inverse`; what to do with masks of other sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops, random
from ..ops import _device
from .plan import Plan
from .sampling import initial_noise, sample, sample_keys

__all__ = ["inpaint", "interpolate", "repaint_descents", "sdedit", "slerp"]

Sampler = Callable[[Any], Plan]
KNOWN = 1 << 48  # number of the noise on what is known: beyond those of stages and of Brownian paths
DESCENT = 1 << 49  # apart in stream: the keys of two descents
PARALLEL = 1e-4  # radians: arcs below are straight to 1e-9 of their length


def _noised(data: Any, alpha: float, sigma: float, keys: Any, number: int) -> Any:
    """alpha data + sigma z, z with a key per sample."""
    kind = "float64" if data.dtype == np.float64 else "float32"
    z = random.normals(keys, tuple(data.shape[1:]), kind, stream=number, scale=sigma)
    return ops.add(ops.affine(data, scale=alpha), z)


def sdedit(
    denoiser: Callable[[Any, float], Any],
    image: Any,
    sampler: Sampler,
    sigmas: Any,
    *,
    strength: float,
    keys: Any,
    **options: Any,
) -> Any:
    """Image to image: the data, noised to a level in the middle, and the last steps of the sampler from there.

    image: (n, ...), data. sampler(levels): a plan; sigmas: the levels of the full run. strength: 0 ... 1, the share of
    its steps that are run, rounded to a whole number of them: 0 returns the image, 1 starts at the first level, from
    which a run from noise differs only by the faded image. keys: (n, 2) uint64, or a seed or key to split; options: of
    `sample`. Returns an array like image. ValueError where strength is not that. Meng et al. (2022), algorithm 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"sdedit: strength must lie in 0 ... 1, got {strength}")
    levels = np.asarray(sigmas, np.float64)
    steps = round(float(strength) * (len(levels) - 1))
    if steps == 0:
        return image.copy()
    plan = sampler(levels[len(levels) - 1 - steps :])
    keys = sample_keys(keys, image.shape[0], image)
    alpha, _ = plan.initial
    x = ops.add(ops.affine(image, scale=alpha), initial_noise(plan, keys, image.shape[1:], str(image.dtype)))
    return sample(denoiser, x, plan, keys=keys, **options)


def repaint_descents(n: int, jump_length: int, jump_n_sample: int) -> list[tuple[int, int]]:
    """The runs (from, to) of RePaint over n steps, in steps that remain: each is followed by a jump up to the next one.

    Where a multiple of jump_length remains, but for the highest, the last jump_length steps are run jump_n_sample times
    in all. Lugmayr et al. (2022), appendix B.
    """
    for name, value in (("jump_length", jump_length), ("jump_n_sample", jump_n_sample)):
        if value < 1:
            raise ValueError(f"inpaint: {name} must be at least 1, got {value}")
    if jump_n_sample == 1:
        return [(n, 0)]
    runs, high = [], n
    for low in reversed(range(0, n - jump_length, jump_length)):
        runs += [(high, low), *[(low + jump_length, low)] * (jump_n_sample - 1)]
        high = low
    return runs if high == 0 else [*runs, (high, 0)]


def inpaint(
    denoiser: Callable[[Any, float], Any],
    image: Any,
    known: Any,
    sampler: Sampler,
    sigmas: Any,
    *,
    keys: Any,
    jump_length: int = 10,
    jump_n_sample: int = 1,
    **options: Any,
) -> Any:
    """Data that agrees with image where known is true, and is sampled elsewhere.

    After every stage x is replaced by alpha image + sigma z where known: exactly image at the end, if the levels end in
    0. The rest has seen only noisy neighbours, late: repeated steps let it settle (RePaint). With jump_n_sample above
    1, noise is added to go back jump_length steps, which are run again, at the places of `repaint_descents`, with a
    fresh draw each time. A sampler with noise of its own (ancestral, DDPM) mixes best.

    image: (n, ...); what it holds elsewhere is not read. known: bool, of image's shape or one that broadcasts to it.
    sampler(levels): a plan; sigmas: levels. keys: (n, 2) uint64, or a seed or key to split; a sample depends on its own
    key only. options: of `sample`, but for edit and callback. Returns an array like image. About jump_n_sample times
    the calls of a plain run. ValueError where known does not fit. Song et al. (2021), appendix I.2; Lugmayr et al.
    (2022), algorithm 1.
    """
    if taken := {"edit", "callback"} & set(options):
        raise TypeError(f"inpaint: {', '.join(sorted(taken))} cannot be given here; see sample")
    if known.dtype != bool:
        raise ValueError(f"inpaint: known must be bool, got {known.dtype}")
    try:
        fits = np.broadcast_shapes(known.shape, image.shape) == tuple(image.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"inpaint: known must broadcast to image's shape {tuple(image.shape)}, got {known.shape}")
    levels, keys = np.asarray(sigmas, np.float64), sample_keys(keys, image.shape[0], image)
    known, where = _device.beside(image, known), _device.namespace(image).where
    n = len(levels) - 1
    x: Any = None
    at = (0.0, 0.0)  # (alpha, sigma) of x
    for turn, (high, low) in enumerate(repaint_descents(n, jump_length, jump_n_sample)):
        plan = sampler(levels[n - high : n - low + 1])
        own = keys + _device.beside(keys, np.array([0, turn * DESCENT], np.uint64))  # uint64 wraps
        if x is None:
            x = initial_noise(plan, own, image.shape[1:], str(image.dtype))
            alpha, sigma = plan.initial
            x = where(known, _noised(image, alpha, sigma, own, KNOWN), x)
        elif plan.initial != at:
            kept = plan.initial[0] / at[0]
            x = _noised(x, kept, float(np.sqrt(plan.initial[1] ** 2 - (kept * at[1]) ** 2)), own, 0)
        ends = [(stage.alpha, stage.sigma) for stage in plan.stages[1:]] + [plan.final]

        def edit(i: int, x: Any, ends: Any = ends, own: Any = own) -> Any:
            alpha, sigma = ends[i]
            return where(known, _noised(image, alpha, sigma, own, KNOWN + 1 + i), x)

        x, at = sample(denoiser, x, plan, keys=own, edit=edit, **options), plan.final
    return x


def slerp(a: Any, b: Any, weight: Any) -> Any:
    """sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b, theta the angle between a_i and b_i.

    a, b: (n, ...), noise: a straight line between two would be too short halfway, and its decoded image too smooth.
    weight: a number, or one per sample, (n,). Samples that are nearly parallel, opposite or 0 get the straight line.
    Shoemake (1985).
    """
    if a.shape != b.shape:
        raise ValueError(f"slerp: a and b must have one shape, got {a.shape} and {b.shape}")
    if _device.is_device(a) != _device.is_device(b):
        raise TypeError("slerp: one of a and b is on the host and the other on a GPU; move one of them")
    n = a.shape[0]
    flat_a, flat_b = a.reshape(n, -1), b.reshape(n, -1)
    inner = lambda u, v: (u * v).sum(axis=1, dtype=np.float64)
    w = np.broadcast_to(np.asarray(_device.from_device(weight), np.float64), (n,))
    w = _device.beside(a, np.ascontiguousarray(w))
    size = np.sqrt(inner(flat_a, flat_a) * inner(flat_b, flat_b))
    theta = np.arccos(np.clip(inner(flat_a, flat_b) / np.where(size == 0, 1, size), -1, 1))
    sine = np.sin(theta)
    straight = (sine < PARALLEL) | (size == 0)
    divisor = np.where(straight, 1, sine)
    to_a = np.where(straight, 1 - w, np.sin((1 - w) * theta) / divisor).astype(a.dtype)
    to_b = np.where(straight, w, np.sin(w * theta) / divisor).astype(a.dtype)
    column = (n,) + (1,) * (a.ndim - 1)
    return to_a.reshape(column) * a + to_b.reshape(column) * b


def interpolate(
    denoiser: Callable[[Any, float], Any],
    x0: Any,
    x1: Any,
    weights: Any,
    *,
    inverse: Plan,
    plan: Plan,
    **options: Any,
) -> Any:
    """Between two data in noise space: both to noise along `inverse`, the arc between them, and back along `plan`.

    x0, x1: (n, ...). weights: (m,), 0 gives back x0 and 1 x1, up to the error of the two plans. inverse: a plan from
    data to noise, `samplers.ddim_inverse`; plan: one from noise to data, over the same levels. options: of `sample`,
    for both ways. Returns (m, n, ...). ValueError where plan does not start where inverse ends, or adds noise.
    Song, Meng and Ermon (2021), sections 5.3 and 5.4.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not len(weights) or not np.isfinite(weights).all():
        raise ValueError(f"interpolate: weights must be a vector of finite numbers, got {weights}")
    if not np.allclose(inverse.final, plan.initial, rtol=1e-6, atol=0):
        raise ValueError(
            f"interpolate: inverse ends at alpha, sigma = {inverse.final} and plan starts at {plan.initial}"
        )
    if inverse.stochastic or plan.stochastic:
        raise ValueError("interpolate: a plan that adds noise does not lead back; take a deterministic sampler")
    z0, z1 = (sample(denoiser, x, inverse, **options) for x in (x0, x1))
    return np.stack([sample(denoiser, slerp(z0, z1, w), plan, **options) for w in weights])
