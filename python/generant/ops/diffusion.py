"""The two passes every diffusion model is made of: adding noise to data, and one step of a sampler.

Both are linear combinations of a few arrays and of noise that is generated where it is used and never stored, so they
cost one read of each input and one write. A sampler is a table of coefficients; what distinguishes DDIM, Euler, Heun,
DPM-Solver++ or an ancestral step is a row of that table, not a kernel.

Kernels with fused multiply-add give the same bits on the CPU and on a GPU, noise and thresholds included. Only sums
over a sample, those of denoising_loss and of `rescale`, are made in an order of each device's own, in double: what is
made of them agrees to the last bit or two in float32, to 1e-13 in float64.
"""
import numpy as np

from . import activation, arithmetic, layout, reduce
from ._table import op, rule
from .random import normal, normals

__all__ = ["add_noise", "denoising_loss", "denoising_loss_bwd", "q_sample", "sampler_step"]

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
    gx = arithmetic.mul(g, layout.reshape(alpha, shape=_column(x))) if needs[0] else None
    g_alpha = _row_sums(arithmetic.mul(g, x)) if needs[1] else None
    g_sigma = _row_sums(arithmetic.mul(g, normal(key, shape=x.shape, dtype=_dtype(x)))) if needs[2] else None
    return [gx, g_alpha, g_sigma, None]


rule(q_sample, _q_sample_rule)


COEF = ("a_x", "a_p", "a_u", "c_x", "c_d", "c_1", "c_2", "c_3", "c_4", "c_noise", "number", "g_x", "g_d")


@op("x: n ..., noise: n ..., alpha: n, sigma: n -> n ...", sizes=SIZES, composite=True)
def add_noise(x, noise, alpha, sigma):
    """alpha_i x_i + sigma_i noise_i: q_sample with noise that is given, and any other combination of two by sample.

    x, noise: n ...; alpha, sigma: n. Returns n .... The velocity alpha noise - sigma x is add_noise(noise, x, alpha,
    -sigma). Kingma et al. (2021), eq. 1.
    """
    return arithmetic.add(
        arithmetic.mul(layout.reshape(alpha, shape=_column(x)), x),
        arithmetic.mul(layout.reshape(sigma, shape=_column(x)), noise),
    )


def _check_step(x, prediction, uncond=None, h1=None, h2=None, h3=None, h4=None, keys=None, coef=None, **_):
    if keys is None and coef is not None and coef[9] != 0:
        raise TypeError(f"sampler_step: c_noise is {coef[9]} but keys is None; wanted n x 2 uint64, a key per sample")


def _bounds(dims, attrs):
    clip, threshold = attrs["clip"], attrs["threshold"]
    if clip is not None and threshold is not None:
        raise ValueError(f"clip is {clip} and threshold is {threshold}; only one of them can bound D")
    if clip is not None and not clip >= 0:
        raise ValueError(f"clip must be at least 0, got {clip}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability, 0 ... 1, got {threshold}")
    if not attrs["threshold_max"] >= 1:
        raise ValueError(f"threshold_max must be at least 1, got {attrs['threshold_max']}")
    return {}


STEP = "x: n ..., prediction: n ..., uncond?: n ..., h1?: n ..., h2?: n ..., h3?: n ..., h4?: n ..., keys?: n 2 uint64"
STEP_ATTRS: list[dict] = [dict(), dict(clip=1.0), dict(threshold=0.8, threshold_max=1.5), dict(rescale=0.7)]


@op(STEP + ", coef: 13 float64 -> n ..., n ...", caches=1, sizes=SIZES, attrs=STEP_ATTRS, check=_check_step,
    derive=_bounds, domain={"coef": "positive"})
def sampler_step(x, prediction, uncond=None, h1=None, h2=None, h3=None, h4=None, keys=None, coef=None, *, clip=None,
                 threshold=None, threshold_max=1.0, rescale=0.0):
    """D = a_x x + a_p prediction + a_u uncond, bounded; x_next = c_x x + c_d D + sum_k c_k h_k + c_noise z.

    x: the current samples; prediction, uncond: what the network said, with guidance if a_u is not 0; h1 ... h4: arrays
    that earlier steps left, absent where unused; keys: a key per sample, of its z = normal((seed, stream + number)),
    not read if c_noise is 0; coef: 13 float64 = (a_x, a_p, a_u, c_x, c_d, c_1, c_2, c_3, c_4, c_noise, number, g_x,
    g_d). clip: D is kept in [-clip, clip]. threshold: with s the quantile of |D| over the sample, of that
    probability, kept in [1, threshold_max], D is clipped to [-s, s] and divided by s (Saharia et al., 2022). rescale:
    the guided prediction is multiplied by rescale std(prediction) / std(guided) + 1 - rescale, over the sample (Lin
    et al., 2023, eq. 15, 16). Returns x_next, and as its cache h = g_x x + g_d D, for later steps (`sampler_step.all`
    returns both). One pass over memory: 12 bytes per element for a float32 step without history; a sample's noise
    does not depend on the others. Raises TypeError where c_noise is not 0 and keys is absent. Not differentiable.
    """
    a_x, a_p, a_u, c_x, c_d, c_1, c_2, c_3, c_4, c_noise, _, g_x, g_d = coef.astype(x.dtype)
    if rescale and uncond is not None:
        scale = _guidance_scale(prediction, uncond, coef[1], coef[2], rescale)
        a_p, a_u = a_p * scale, a_u * scale
    denoised = a_x * x + a_p * prediction
    if uncond is not None:
        denoised = denoised + a_u * uncond
    if clip is not None:
        denoised = np.clip(denoised, -clip, clip)
    if threshold is not None:
        limit = _per_sample(_quantile(np.abs(denoised), threshold).clip(1, threshold_max).astype(x.dtype), x)
        denoised = np.clip(denoised, -limit, limit) / limit
    y = c_x * x + c_d * denoised
    for c, h in ((c_1, h1), (c_2, h2), (c_3, h3), (c_4, h4)):
        if h is not None:
            y = y + c * h
    if keys is not None and c_noise != 0:
        number = np.array([int(coef[10])], np.uint64)
        z = normals.definition(keys, number, np.ones(1), dtype=_dtype(x), shape=x.shape[1:])
        y = y + c_noise * z
    return y, g_x * x + g_d * denoised


def _guidance_scale(prediction, uncond, a_p, a_u, rescale):
    """rescale std(prediction) / std(guided) + 1 - rescale per sample, guided = (a_p prediction + a_u uncond) / (a_p +
    a_u)."""
    wide = np.longdouble if prediction.dtype == np.longdouble else np.float64
    rest = tuple(range(1, prediction.ndim))
    guided = wide(a_p) * prediction.astype(wide) + wide(a_u) * uncond.astype(wide)
    spread, wanted = guided.std(axis=rest), abs(wide(a_p) + wide(a_u)) * prediction.astype(wide).std(axis=rest)
    ratio = np.divide(wanted, spread, out=np.ones_like(spread), where=spread > 0)
    return _per_sample((wide(rescale) * ratio + (1 - wide(rescale))).astype(prediction.dtype), prediction)


def _quantile(a, probability):
    """The quantile of each sample, interpolated between the two nearest of its numbers."""
    a = np.sort(a.reshape(len(a), -1), axis=1)
    at = (a.shape[1] - 1) * probability
    low = int(at)
    high = min(low + 1, a.shape[1] - 1)
    return a[:, low] + a.dtype.type(at - low) * (a[:, high] - a[:, low])


@op("prediction: n ..., x: n ..., b_x: n, b_z: n, weight: n, key: 2 uint64 -> n, n ...", caches=1, sizes=SIZES)
def denoising_loss(prediction, x, b_x, b_z, weight, key):
    """weight_i mean((prediction_i - (b_x_i x_i + b_z_i z_i))^2) of every sample, z the noise of q_sample under this
    key.

    prediction: n ..., what the network said of x noised; x: n ..., clean data; b_x, b_z: n, the target as a combination
    of data and noise (epsilon: 0, 1; v: -sigma, alpha; flow: -1, 1; denoised: 1, 0); weight: n; key: 2 uint64. Returns
    n, and as its cache the residual prediction - target, n ..., so that a gradient does not make the noise again
    (`denoising_loss.all` returns both). Neither noise nor target is written to memory. Differentiable in everything
    but the key.
    """
    residual = prediction - q_sample.definition(x, b_x, b_z, key)
    return weight * (residual * residual).mean(tuple(range(1, x.ndim)), dtype=x.dtype), residual


@op("g: n, weight: n, residual: n ... -> n ...", sizes=SIZES, composite=True)
def denoising_loss_bwd(g, weight, residual):
    """The gradient of sum(g denoising_loss) in prediction: 2 g_i weight_i / row residual_i.

    g, weight: n; residual: n ..., the cache of denoising_loss. Returns n ....
    """
    row = 1
    for length in residual.shape[1:]:
        row *= length
    scale = activation.affine(arithmetic.mul(g, weight), scale=2.0 / max(row, 1))
    return arithmetic.mul(layout.reshape(scale, shape=_column(residual)), residual)


def _denoising_loss_rule(gys, ys, needs, prediction, x, b_x, b_z, weight, key):
    (g, slope), residual = gys, ys[1]                  # of higher orders: a gradient of the residual, which is linear
    if g is not None and any(needs[:4]):
        through = denoising_loss_bwd(g, weight, residual)
        slope = through if slope is None else arithmetic.add(slope, through)
    minus = lambda y: activation.affine(y, scale=-1.0)
    target = lambda factor: minus(_row_sums(arithmetic.mul(slope, factor)))
    moved = [n and slope is not None for n in needs[:4]]
    return [
        slope if moved[0] else None,
        minus(arithmetic.mul(layout.reshape(b_x, shape=_column(x)), slope)) if moved[1] else None,
        target(x) if moved[2] else None,
        target(normal(key, shape=x.shape, dtype=_dtype(x))) if moved[3] else None,
        arithmetic.mul(g, _row_means(activation.square(residual))) if needs[4] and g is not None else None,
        None,
    ]


rule(denoising_loss, _denoising_loss_rule)


def _column(x):
    return (x.shape[0],) + (1,) * (len(x.shape) - 1)


def _row_sums(y):
    rest = tuple(range(1, len(y.shape)))
    return reduce.sum(y, axis=rest) if rest else y


def _row_means(y):
    rest = tuple(range(1, len(y.shape)))
    return reduce.mean(y, axis=rest) if rest else y


def _noise(key, x):
    return normal.definition(key, dtype=_dtype(x), shape=x.shape)


def _dtype(x):
    return "float32" if x.dtype == np.float32 else "float64"


def _per_sample(a, x):
    return a.reshape((-1,) + (1,) * (x.ndim - 1))
