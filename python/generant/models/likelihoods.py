"""p(x | decoder output): Gaussian, Bernoulli, categorical, multinomial, discretised logistic, and a mixture of columns.

One interface. x (n, ..., d) has d features in its last axis, and `out` (n, ..., n_outputs(d)) is what the decoder gives
for them. Codes and counts are whole numbers in arrays of out's float dtype; plain arrays of another are converted.
    n_outputs(d)      how many numbers the decoder must give for d features
    log_prob(x, out)  (n,) nats, summed over features: ops only, differentiable in out and in learned variances
    cost(x, out, weight)  -mean(weight log_prob), a scalar: what training minimises
    log_constant(x)   (n,) float64: what log_prob leaves out because it depends on x alone; 0 but for the multinomial
    mean(out)         expected x;   mode(out): the most probable x, valid data even where a mean is not
    sample(key, out)  one draw of x
    samples(keys, out)  draws of x, row i by keys[i] (2 uint64), which lie where out does, and so do the draws
    check(where, x)   ValueError for data that p gives no probability; log_prob trusts its x
mode, sample, check and log_constant take plain arrays. Not here: priors of latents (priors.py), weights between
likelihood and prior.
"""

from __future__ import annotations

import itertools
import math
from numbers import Real
from typing import Any

import numpy as np

from .. import ops, random
from ..data.checks import check_count, check_real
from ..nn import Buffer, Module, to_host
from ..ops import _device

__all__ = [
    "Bernoulli", "Categorical", "DiscretisedLogistic", "Gaussian", "Likelihood", "Mixed", "Multinomial", "likelihood",
]  # fmt: skip

MIN_LOGVAR, MIN_LOGSCALE = -12.0, -7.0
NAMES = "bernoulli, categorical, gaussian, gaussian_features, gaussian_outputs, logistic, multinomial"


class Likelihood(Module):
    """The part of the interface that most distributions share."""

    def n_outputs(self, d: int) -> int:
        return d

    def log_prob(self, x: Any, out: Any) -> Any:
        terms = self._terms(self._fit(x, out), out)
        return ops.sum(terms, axis=tuple(range(1, len(terms.shape))))

    def cost(self, x: Any, out: Any, weight: Any) -> Any:
        """-mean of weight_n log_prob_n, a scalar; weight (n,). In one pass where there is an op for it."""
        return ops.affine(ops.mean(ops.mul(self.log_prob(x, out), weight)), scale=-1.0)

    def _terms(self, x: Any, out: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no density")

    def log_constant(self, x: Any) -> np.ndarray:
        return np.zeros(len(x))

    def mean(self, out: Any) -> Any:
        return out

    def mode(self, out: Any) -> Any:
        return self.mean(out)

    def sample(self, key: Any, out: Any) -> Any:
        raise TypeError(f"{type(self).__name__} cannot be sampled")

    def samples(self, keys: Any, out: Any) -> Any:
        host, keys = to_host(self) if _device.is_device(out) else self, _device.from_device(keys)
        rows = _device.from_device(out)
        drawn = [np.asarray(host.sample(key, rows[i : i + 1])) for i, key in enumerate(keys)]
        return _device.beside(out, np.concatenate(drawn))

    def check(self, where: str, x: Any) -> None:
        """All real numbers are data."""

    def _fit(self, x: Any, out: Any) -> Any:
        """x in out's dtype, if it can be converted, or an error if out does not fit it."""
        wanted = (*x.shape[:-1], self.n_outputs(x.shape[-1]))
        if tuple(out.shape) != wanted:
            name = type(self).__name__
            raise ValueError(f"{name}: out has shape {tuple(out.shape)}, wanted {wanted} for x of {tuple(x.shape)}")
        return x.astype(out.dtype) if x.dtype != out.dtype and hasattr(x, "astype") else x


def _refuse(where: str, x: Any, bad: Any, wanted: str) -> None:
    if bad.any():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), x.shape))
        raise ValueError(f"{where}: x must hold {wanted}, got {x[at]} at x{list(at)}")


def _refuse_codes(where: str, x: Any, levels: int) -> None:
    _refuse(where, x, (x < 0) | (x >= levels) | (x != np.floor(x)), f"whole numbers 0 ... {levels - 1}")


def _as(buffer: Buffer, like: Any) -> Any:
    value = buffer.value
    return value if value.dtype == like.dtype else ops.cast(value, dtype=like.dtype.name)


class Gaussian(Likelihood):
    """log N(x; out, exp(v)) = -1/2 sum (log 2 pi + v + (x - mu)^2 exp(-v)).

    logvar: a parameter () or (d,), learned with the decoder: one variance for all or one per feature, which finds the
    balance with the prior that beta would otherwise set (Rybkin, Daniilidis and Levine 2021, "sigma-VAE"). None: the
    decoder gives it, out = (mu, logvar). v is logvar where that is well above -12, and never below (the paper's bound,
    sigma > exp(-6)): densities of data that a decoder can match exactly have no upper bound. A Buffer: v, fixed.
    """

    def __init__(self, logvar: Any = None) -> None:
        self.logvar = logvar

    def n_outputs(self, d: int) -> int:
        return 2 * d if self.logvar is None else d

    def _parameters(self, out: Any) -> tuple[Any, Any]:
        if isinstance(self.logvar, Buffer):
            return out, _as(self.logvar, out)
        mu, v = ops.split(out, sections=2) if self.logvar is None else (out, self.logvar)
        return mu, ops.affine(ops.softplus(ops.affine(v, shift=-MIN_LOGVAR)), shift=MIN_LOGVAR)

    def _terms(self, x: Any, out: Any) -> Any:
        mu, v = self._parameters(out)
        square = ops.mul(ops.square(ops.sub(x, mu)), ops.exp(ops.affine(v, scale=-1.0)))
        return ops.affine(ops.add(square, v), scale=-0.5, shift=-0.5 * math.log(2 * math.pi))

    def cost(self, x: Any, out: Any, weight: Any) -> Any:
        if self.logvar is None or getattr(self.logvar, "value", self.logvar).shape:
            return super().cost(x, out, weight)
        self._fit(x, out)
        mu, v = self._parameters(out)
        half = 0.5 * math.prod(x.shape[1:])
        square = ops.mul(ops.affine(ops.mse(mu, x, weight), scale=half), ops.exp(ops.affine(v, scale=-1.0)))
        rest = ops.affine(v, scale=half, shift=half * math.log(2 * math.pi))
        return ops.add(square, ops.mul(ops.mean(weight), rest))

    def mean(self, out: Any) -> Any:
        return self._parameters(out)[0]

    def sample(self, key: Any, out: Any) -> Any:
        mu, v = self._parameters(out)
        return self._around(mu, v, ops.normal(key, shape=tuple(mu.shape), dtype=mu.dtype.name))

    def samples(self, keys: Any, out: Any) -> Any:
        mu, v = self._parameters(out)
        return self._around(mu, v, random.normals(keys, tuple(mu.shape[1:]), mu.dtype.name))

    def _around(self, mu: Any, v: Any, noise: Any) -> Any:
        return ops.add(mu, ops.mul(ops.exp(ops.affine(v, scale=0.5)), noise))


class Bernoulli(Likelihood):
    """x log p + (1 - x) log(1 - p) with p = sigmoid(out): x 0 or 1.

    x between 0 and 1, grey pixels, is taken as is commonly done: minus the binary cross-entropy, which is then not the
    logarithm of a normalised density (Loaiza-Ganem and Cunningham 2019); do not compare it with one.
    """

    def _terms(self, x: Any, out: Any) -> Any:
        return ops.sub(ops.mul(x, out), ops.softplus(out))

    def cost(self, x: Any, out: Any, weight: Any) -> Any:
        self._fit(x, out)
        return ops.affine(ops.bce_with_logits(out, x, weight), scale=float(math.prod(x.shape[1:])))

    def mean(self, out: Any) -> Any:
        return ops.sigmoid(out)

    def mode(self, out: Any) -> Any:
        return (out > 0).astype(out.dtype)

    def sample(self, key: Any, out: Any) -> Any:
        u = ops.uniform(key, shape=tuple(out.shape), dtype="float64")
        return (u < ops.sigmoid(out)).astype(out.dtype)

    def check(self, where: str, x: Any) -> None:
        _refuse(where, x, (x < 0) | (x > 1), "numbers in 0 ... 1")


class Categorical(Likelihood):
    """log softmax(out)_x for features with k levels: x codes 0 ... k - 1, out the k logits of each feature in turn.

    mean is the expected code, of use where the levels are ordered; mode the likeliest one.
    """

    def __init__(self, k: int) -> None:
        self.levels = Buffer(np.arange(check_count("Categorical", "k", k, 2), dtype=np.float32))

    @property
    def k(self) -> int:
        return self.levels.value.size

    def n_outputs(self, d: int) -> int:
        return self.k * d

    def _logits(self, out: Any) -> Any:
        return ops.reshape(out, shape=(*out.shape[:-1], out.shape[-1] // self.k, self.k))

    def _terms(self, x: Any, out: Any) -> Any:
        logits, levels = self._logits(out), _as(self.levels, out)
        distance = ops.abs(ops.sub(ops.reshape(x, shape=(*x.shape, 1)), levels))
        chosen = ops.relu(ops.affine(distance, scale=-1.0, shift=1.0))  # 1 at the code, 0 at the other levels
        return ops.mul(chosen, ops.log_softmax(logits))

    def mean(self, out: Any) -> Any:
        return ops.sum(ops.mul(ops.softmax(self._logits(out)), _as(self.levels, out)), axis=-1)

    def mode(self, out: Any) -> Any:
        return self._logits(out).argmax(-1).astype(out.dtype)

    def sample(self, key: Any, out: Any) -> Any:
        logits = self._logits(out)
        return draw_levels(ops.uniform(key, shape=tuple(logits.shape[:-1]), dtype="float64"), logits).astype(out.dtype)

    def check(self, where: str, x: Any) -> None:
        _refuse_codes(where, x, self.k)


def draw_levels(u: Any, logits: Any) -> Any:
    """The level in whose part of the cumulative distribution u (...) lies; logits (..., k)."""
    cumulative = np.cumsum(ops.softmax(logits.astype(np.float64)), -1)
    return (cumulative <= (u * cumulative[..., -1])[..., None]).sum(-1)


class Multinomial(Likelihood):
    """sum_i x_i log softmax(out)_i: counts x (n, d) of d items. Liang, Krishnan, Hoffman and Jebara (2018), equation 2.

    log_constant is log (sum x)! - sum log x_i!. mean and sample are for `total` counts per row.
    """

    def __init__(self, total: int = 1) -> None:
        self.total = check_count("Multinomial", "total", total)

    def _terms(self, x: Any, out: Any) -> Any:
        return ops.mul(x, ops.log_softmax(out))

    def log_constant(self, x: Any) -> np.ndarray:
        log_factorial = np.vectorize(lambda count: math.lgamma(count + 1), otypes=[np.float64])
        x = np.asarray(x, np.float64)
        return (log_factorial(x.sum(-1)) - log_factorial(x).sum(-1)).reshape(len(x), -1).sum(1)

    def mean(self, out: Any) -> Any:
        return ops.affine(ops.softmax(out), scale=float(self.total))

    def sample(self, key: Any, out: Any) -> Any:
        counts = np.zeros(out.shape, np.int64)
        place = np.arange(out.shape[-1])
        for one in random.split(key, self.total):  # memory of one trial
            u = ops.uniform(one, shape=tuple(out.shape[:-1]), dtype="float64")
            counts += draw_levels(u, out)[..., None] == place
        return counts.astype(out.dtype)

    def check(self, where: str, x: Any) -> None:
        _refuse(where, x, x < 0, "counts of at least 0")


class DiscretisedLogistic(Likelihood):
    """log P(x = k) of k = 0 ... levels - 1, P the mass of a logistic distribution in the bin of level k.

    out = (mu, log s), on the scale where levels lie on -1 ... 1, y_k, and bins reach h = 1 / (levels - 1) to either
    side, the outer ones to infinity. With a = (y + h - mu) / s, b = (y - h - mu) / s the mass is
    sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(-2 h / s)), whose logarithm needs no clamp.
    log s is at least -7. Salimans, Karpathy, Chen and Kingma (2017), "PixelCNN++", section 2.1, with one component.
    """

    def __init__(self, levels: int = 256) -> None:
        self.levels = check_count("DiscretisedLogistic", "levels", levels, 2)

    def n_outputs(self, d: int) -> int:
        return 2 * d

    def _parameters(self, out: Any) -> tuple[Any, Any]:
        mu, log_s = ops.split(out, sections=2)
        return mu, ops.clip(log_s, low=MIN_LOGSCALE)

    def _terms(self, x: Any, out: Any) -> Any:
        mu, log_s = self._parameters(out)
        step = 2.0 / (self.levels - 1)
        rate = ops.exp(ops.affine(log_s, scale=-1.0))  # 1 / s
        distance = ops.sub(ops.affine(x, scale=step, shift=-1.0), mu)
        a, b = (ops.mul(ops.affine(distance, shift=shift), rate) for shift in (step / 2, -step / 2))
        below, above = ops.softplus(ops.affine(a, scale=-1.0)), ops.softplus(b)
        # 1 - exp(-t) = 2 tanh(t / 2) / (1 + tanh(t / 2)) keeps its digits where t is small
        tanh = ops.tanh(ops.affine(rate, scale=step / 2))
        inside = ops.affine(ops.sub(ops.log(tanh), ops.log(ops.affine(tanh, shift=1.0))), shift=math.log(2.0))
        lowest = ops.relu(ops.affine(x, scale=-1.0, shift=1.0))  # 1 where x = 0, else 0
        highest = ops.relu(ops.affine(x, shift=2.0 - self.levels))
        not_lowest, not_highest = (ops.affine(o, scale=-1.0, shift=1.0) for o in (lowest, highest))
        both = ops.mul(not_lowest, not_highest)
        return ops.sub(ops.mul(inside, both), ops.add(ops.mul(below, not_highest), ops.mul(above, not_lowest)))

    def mean(self, out: Any) -> Any:
        """sum over k < levels - 1 of P(x > k)."""
        mu, log_s = self._parameters(out)
        step, rate = 2.0 / (self.levels - 1), ops.exp(ops.affine(log_s, scale=-1.0))
        total = ops.full_like(mu, value=0.0)
        for k in range(self.levels - 1):
            total = ops.add(total, ops.sigmoid(ops.mul(ops.affine(mu, shift=1.0 - (k + 0.5) * step), rate)))
        return total

    def mode(self, out: Any) -> Any:
        return self._nearest(self._parameters(out)[0])

    def _nearest(self, y: Any) -> Any:
        return np.clip(np.rint((y + 1) * ((self.levels - 1) / 2)), 0, self.levels - 1).astype(y.dtype)

    def sample(self, key: Any, out: Any) -> Any:
        mu, log_s = self._parameters(out)
        u = ops.uniform(key, shape=tuple(mu.shape), dtype="float64")
        quantile = ops.log(u) - ops.log(1 - u)
        return self._nearest(mu + np.exp(log_s) * quantile).astype(out.dtype)

    def check(self, where: str, x: Any) -> None:
        _refuse_codes(where, x, self.levels)


class Mixed(Likelihood):
    """Independent columns of different kinds: x (n, d), one entry of `columns` for each of the d columns.

    Entries are those of `likelihood`, say ["gaussian", ("categorical", 5), "bernoulli"]. A "gaussian" column learns a
    variance of its own. "multinomial" columns beside each other are the counts of one distribution.
    """

    def __init__(self, columns: Any) -> None:
        runs = [(spec, len(list(run))) for spec, run in itertools.groupby(_hashable(column) for column in columns)]
        if not runs:
            raise ValueError("Mixed: columns is empty")
        self.sizes = tuple(size for _, size in runs)
        self.parts = [likelihood("gaussian_features" if spec == "gaussian" else spec, size) for spec, size in runs]

    def n_outputs(self, d: int) -> int:
        if d != sum(self.sizes):
            raise ValueError(f"Mixed: {sum(self.sizes)} columns are described, x has {d}")
        return sum(self._widths())

    def _widths(self) -> tuple[int, ...]:
        return tuple(part.n_outputs(size) for part, size in zip(self.parts, self.sizes, strict=True))

    def _each(self, out: Any) -> Any:
        return zip(self.parts, ops.split(out, sizes=self._widths()), strict=True)

    def log_prob(self, x: Any, out: Any) -> Any:
        columns = ops.split(self._fit(x, out), sizes=self.sizes)
        terms = [part.log_prob(a, o) for a, (part, o) in zip(columns, self._each(out), strict=True)]
        total = terms[0]
        for term in terms[1:]:
            total = ops.add(total, term)
        return total

    def log_constant(self, x: Any) -> np.ndarray:
        columns = ops.split(x, sizes=self.sizes)
        return np.sum([part.log_constant(a) for part, a in zip(self.parts, columns, strict=True)], 0)

    def mean(self, out: Any) -> Any:
        return ops.concatenate(*[part.mean(o) for part, o in self._each(out)])

    def mode(self, out: Any) -> Any:
        return ops.concatenate(*[part.mode(o) for part, o in self._each(out)])

    def sample(self, key: Any, out: Any) -> Any:
        keys = random.split(key, len(self.parts))
        return ops.concatenate(*[part.sample(k, o) for k, (part, o) in zip(keys, self._each(out), strict=True)])

    def check(self, where: str, x: Any) -> None:
        self.n_outputs(x.shape[-1])
        start = 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            name = type(part).__name__.lower()
            part.check(f"{where}: {name} columns {start} ... {start + size - 1}", x[..., start : start + size])
            start += size


def _hashable(spec: Any) -> Any:
    return tuple(spec) if isinstance(spec, list) else spec


def likelihood(spec: Any, d: int) -> Likelihood:
    """The likelihood of d features that `spec` describes.

    "gaussian" (one learned variance), "gaussian_features" (one per feature), "gaussian_outputs" (given by the decoder),
    ("gaussian", sigma) (fixed); "bernoulli"; ("categorical", k); "multinomial" or ("multinomial", total); "logistic"
    (256 levels) or ("logistic", levels); a list of d of these for Mixed; or a Likelihood, which is returned.
    Raises ValueError for any other, and for a list of another length.
    """
    if isinstance(spec, Likelihood):
        spec.n_outputs(d)
        return spec
    name, number = spec, None
    if isinstance(spec, (list, tuple)):
        if not (len(spec) == 2 and isinstance(spec[0], str) and isinstance(spec[1], Real)):
            mixed = Mixed(spec)
            mixed.n_outputs(d)
            return mixed
        name, number = spec
    more: Any = () if number is None else (number,)
    if name == "gaussian":
        if number is None:
            return Gaussian(np.zeros((), np.float32))
        sigma = check_real("likelihood", "sigma", number, 1e-15, 1e15)
        return Gaussian(Buffer(np.array(2 * math.log(sigma), np.float32)))
    if name == "gaussian_features" and number is None:
        return Gaussian(np.zeros(d, np.float32))
    if name == "gaussian_outputs" and number is None:
        return Gaussian()
    if name == "bernoulli" and number is None:
        return Bernoulli()
    if name == "categorical" and number is not None:
        return Categorical(*more)
    if name == "multinomial":
        return Multinomial(*more)
    if name == "logistic":
        return DiscretisedLogistic(*more)
    raise ValueError(f"likelihood: unknown likelihood {spec!r}; there are {NAMES}, and categorical takes a number")
