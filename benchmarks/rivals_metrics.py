"""Scores and entropic transport as scikit-learn's, torch's and SciPy's users have them (see rivals.py)."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np
import work_metrics as kinds
from registry import keops_folder, rival, with_keops, with_torch


@rival(kinds.Prdc, "prdc", when=lambda work: work.n <= 20_000)  # beyond, its matrices do not fit the machine
def _(a, work):
    from prdc import compute_prdc

    def call():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            return compute_prdc(a.real, a.fake, nearest_k=5)

    return call


# ---------------------------------------------------------------- KID


def _subsets(a: Any, work: Any):
    rng = np.random.RandomState(0)
    for _ in range(work.subsets):
        yield tuple(x[rng.choice(len(x), work.size, replace=False)] for x in (a.real, a.fake))


def _torch_mmd2(torch, x, y, d):
    """As torch-fidelity and torchmetrics write it."""

    def kernel(x, y):
        return (x @ y.T * (1 / d) + 1) ** 3

    n = len(x)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    xx = (xx.sum(-1) - torch.diag(xx)).sum()
    yy = (yy.sum(-1) - torch.diag(yy)).sum()
    return (xx + yy) / (n * (n - 1)) - 2 * xy.sum(0).sum() / n**2


@rival(kinds.Kid, "torch")
def _(a, work):
    torch, = with_torch()

    def call():
        pairs = (map(torch.from_numpy, pair) for pair in _subsets(a, work))
        return np.mean([float(_torch_mmd2(torch, *pair, work.d)) for pair in pairs])

    return call


def _numpy_mmd2(x, y, d):
    n = len(x)
    xx, yy, xy = ((p @ q.T / d + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))  # p @ p.T costs half
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return within / (n * (n - 1)) - 2 * xy.sum() / n**2


@rival(kinds.Kid, "numpy")
def _(a, work):
    return lambda: np.mean([_numpy_mmd2(x, y, work.d) for x, y in _subsets(a, work)])


@rival(kinds.KidAccuracy, "torch, float32")
@rival(kinds.KidExact, "torch, float32")
def _(a, work):
    torch, x, y = with_torch(a, "real", "fake")
    return lambda: float(_torch_mmd2(torch, x, y, work.d))


@rival(kinds.KidAccuracy, "numpy, float32")
@rival(kinds.KidExact, "numpy, float32")
def _(a, work):
    return lambda: float(_numpy_mmd2(a.real, a.fake, work.d))


# ---------------------------------------------------------------- entropic transport


def _pot(a: Any, work: Any, dtype: type):
    keops_folder()  # POT imports it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ot

    x, y = a.x.astype(dtype), a.y.astype(dtype)
    ones = np.full(work.n, 1 / work.n, dtype)
    options = dict(method="sinkhorn_log", numItermax=work.iterations, stopThr=0, warn=False)
    return lambda: ot.sinkhorn2(ones, ones, ot.dist(x, y), work.reg, **options)


@rival(kinds.Sinkhorn, "POT")
def _(a, work):
    return _pot(a, work, np.float64)  # what its examples are in


@rival(kinds.Sinkhorn, "POT float32", best=True, when=lambda work: work.d > 8)  # it works on the matrix, whatever d
def _(a, work):
    return _pot(a, work, np.float32)


def _geomloss(a: Any, work: Any, backend: str, **options: Any):
    torch, x, y = with_torch(a, "x", "y")
    keops_folder()  # geomloss imports it
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, blur=work.blur, backend=backend, **options)

    @torch.no_grad()
    def call():
        return loss(x, y)

    return call


@rival(kinds.SinkhornDivergence, "geomloss tensorized")
def _(a, work):
    return _geomloss(a, work, "tensorized")


@rival(kinds.SinkhornDivergence, "geomloss KeOps")
def _(a, work):
    with_keops()
    return _geomloss(a, work, "online")


# ---------------------------------------------------------------- Frechet distance


def _by_sqrtm(mu1, sigma1, mu2, sigma2):
    """As pytorch-fid and its kin write it."""
    from scipy.linalg import sqrtm

    root = sqrtm(sigma1 @ sigma2)
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root.real))


def _by_eigvals(mu1, sigma1, mu2, sigma2):
    """As torchmetrics writes it."""
    trace = np.sqrt(np.linalg.eigvals(sigma1 @ sigma2).astype(complex)).sum().real
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * trace)


def _moments(x):
    return x.mean(0), np.cov(x, rowvar=False)


@rival(kinds.FrechetMoments, "scipy sqrtm")
def _(a, work):
    import scipy.linalg  # noqa: F401

    return lambda: _by_sqrtm(a.mu1, a.sigma1, a.mu2, a.sigma2)


@rival(kinds.FrechetMoments, "numpy eigh", best=True)
def _(a, work):
    return lambda: kinds.frechet(a.mu1, a.sigma1, a.mu2, a.sigma2)


@rival(kinds.FrechetFeatures, "np.cov, scipy sqrtm")
@rival(kinds.FrechetSelf, "np.cov, scipy sqrtm")
def _(a, work):
    import scipy.linalg  # noqa: F401

    return lambda: _by_sqrtm(*_moments(a.real), *_moments(a.fake))


@rival(kinds.FrechetFeatures, "np.cov, eigvals")
@rival(kinds.FrechetSelf, "np.cov, eigvals")
def _(a, work):
    return lambda: _by_eigvals(*_moments(a.real), *_moments(a.fake))


@rival(kinds.FrechetFeatures, "np.cov, eigh", best=True)
@rival(kinds.FrechetSelf, "np.cov, eigh", best=True)
def _(a, work):
    return lambda: kinds.frechet(*_moments(a.real), *_moments(a.fake))
