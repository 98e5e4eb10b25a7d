"""The two passes every diffusion model is made of: adding noise to data, and one step of a sampler.

Both are linear combinations of a few arrays and of noise that is generated where it is used and never stored, so they
cost one read of each input and one write. A sampler is a table of coefficients; what distinguishes DDIM, Euler, Heun,
DPM-Solver++ or an ancestral step is a row of that table, not a kernel.
"""
import numpy as np

from . import arithmetic, layout, reduce
from ._table import op, rule
from .random import normal

__all__ = ["q_sample", "sampler_step"]

SIZES = [dict(n=1, _=()), dict(n=3, _=(2,)), dict(n=7, _=(5, 3)), dict(n=3, _=(67,)), dict(n=2, _=(300,))]


@op("x: n ..., alpha: n, sigma: n, key: 2 uint64 -> n ...", sizes=SIZES, keep="x")
def q_sample(x, alpha, sigma, key):
    """alpha_i x_i + sigma_i z: data at the noise level of each sample, z = normal(key, shape=x.shape).

    x: n ..., clean data; alpha, sigma: n; key: 2 uint64. Returns n .... z is not written to memory; its derivative in
    x, alpha and sigma is exact (sigma's generates z again). Kingma et al. (2021), eq. 1.
    """
    z = _noise(key, x)
    return _per_sample(alpha, x) * x + _per_sample(sigma, x) * z


def _q_sample_rule(gys, ys, needs, x, alpha, sigma, key):
    g, = gys
    column = (x.shape[0],) + (1,) * (len(x.shape) - 1)
    rest = tuple(range(1, len(x.shape)))

    def per_sample_sum(y):
        return reduce.sum(y, axis=rest) if rest else y

    gx = arithmetic.mul(g, layout.reshape(alpha, shape=column)) if needs[0] else None
    g_alpha = per_sample_sum(arithmetic.mul(g, x)) if needs[1] else None
    g_sigma = per_sample_sum(arithmetic.mul(g, normal(key, shape=x.shape, dtype=_dtype(x)))) if needs[2] else None
    return [gx, g_alpha, g_sigma, None]


rule(q_sample, _q_sample_rule)


def _check_noise(x, prediction, h1=None, h2=None, h3=None, key=None, coef=None, *, clip=None):
    if key is None and coef is not None and coef[7] != 0:
        raise TypeError(f"sampler_step: c_noise is {coef[7]} but key is None; it must be 2 uint64 = (seed, stream)")


@op("x: ..., prediction: ..., h1?: ..., h2?: ..., h3?: ..., key?: 2 uint64, coef: 8 float64 -> ..., ...", caches=1,
    sizes=[dict(_=()), dict(_=(7,)), dict(_=(3, 67)), dict(_=(2, 3, 50))], attrs=[dict(), dict(clip=1.0)],
    check=_check_noise)
def sampler_step(x, prediction, h1=None, h2=None, h3=None, key=None, coef=None, *, clip=None):
    """D = a_x x + a_p prediction, clipped to [-clip, clip]; x_next = c_x x + c_d D + sum_k c_k h_k + c_noise z.

    x: the current sample; prediction: what the network said; h1, h2, h3: earlier D or slopes, absent where unused;
    key: of z = normal(key, shape=x.shape), not read if c_noise is 0; coef: 8 float64 =
    (a_x, a_p, c_x, c_d, c_1, c_2, c_3, c_noise). Returns x_next, and as its cache the denoised D
    (`sampler_step.all` returns both). One pass over memory: 12 bytes per element for a float32 step without history.
    Raises TypeError where c_noise is not 0 and key is absent. Not differentiable.
    """
    a_x, a_p, c_x, c_d, c_1, c_2, c_3, c_noise = coef.astype(x.dtype)
    denoised = a_x * x + a_p * prediction
    if clip is not None:
        denoised = np.clip(denoised, -clip, clip)
    y = c_x * x + c_d * denoised
    for c, h in ((c_1, h1), (c_2, h2), (c_3, h3)):
        if h is not None:
            y = y + c * h
    if key is not None and c_noise != 0:
        y = y + c_noise * _noise(key, x)
    return y, denoised


def _noise(key, x):
    return normal.definition(key, dtype=_dtype(x), shape=x.shape)


def _dtype(x):
    return "float32" if x.dtype == np.float32 else "float64"


def _per_sample(a, x):
    return a.reshape((-1,) + (1,) * (x.ndim - 1))
