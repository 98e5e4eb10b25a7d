"""Maximum mean discrepancy as a loss: a generator is trained until no function of a kernel's space tells it from data.

GMMN takes it between samples (or an autoencoder's codes of them), MMD-GAN between features of a critic that maximises
it. All pairs count, and the pairwise kernels need memory O(n), not n^2. The score of this name is metrics.mmd2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .. import ops
from ..pairwise import kernel_matvec, kernel_sum

__all__ = ["mmd_loss", "mmd_witness"]

ALPHAS = (0.2, 0.5, 1.0, 2.0, 5.0)  # Binkowski et al. (2018), sec. 5


def _terms(function: str, kernel: str, bandwidths: Sequence[float], alphas: Sequence[float]) -> Iterator[dict]:
    """Attributes of the pairwise functions, for each call that the mixture takes."""
    if kernel not in ("rational_quadratic", "rbf"):
        raise ValueError(f"{function}: kernel must be 'rational_quadratic' or 'rbf', got {kernel!r}")
    if not (len(bandwidths) and len(alphas)):
        raise ValueError(f"{function}: a mixture needs at least one bandwidth and one alpha")
    for alpha in alphas if kernel == "rational_quadratic" else (1.0,):
        yield dict(kernel=kernel, bandwidth=tuple(bandwidths), alpha=alpha)


def mmd_loss(
    fake_features: Any,
    real_features: Any,
    *,
    bandwidths: Sequence[float] = (1.0,),
    kernel: str = "rational_quadratic",
    alphas: Sequence[float] = ALPHAS,
) -> Any:
    """mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_ij k(x_i, y_j): the unbiased squared MMD.

    fake_features x (n, d), real_features y (m, d), n, m >= 2. k is the sum over the bandwidths h of
    exp(-|x - y|^2 / (2 h^2)) for kernel "rbf" (Li et al. 2015, eq. 3 and sec. 4), or over bandwidths and alphas of
    (1 + |x - y|^2 / (2 alpha h^2))^-alpha for "rational_quadratic" (Binkowski et al. 2018, sec. 5), whose tails reach
    samples that are far from all data. Returns a scalar in the features' dtype, formed in float64; below 0 by chance
    where the distributions agree. Differentiable twice in both.
    Time (n^2 / 2 + m^2 / 2 + n m) d per alpha, memory O(n + m). Raises ValueError for fewer than 2 rows.
    """
    n, m = fake_features.shape[0], real_features.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"mmd_loss: both samples must have at least 2 rows, got {n} and {m}")
    total = None
    for a in _terms("mmd_loss", kernel, bandwidths, alphas):
        own = ops.affine(kernel_sum(fake_features, exclude_diagonal=True, **a), scale=1 / (n * (n - 1)))
        data = ops.affine(kernel_sum(real_features, exclude_diagonal=True, **a), scale=1 / (m * (m - 1)))
        across = ops.affine(kernel_sum(fake_features, real_features, **a), scale=-2 / (n * m))
        term = ops.add(ops.add(own, data), across)
        total = term if total is None else ops.add(total, term)
    return ops.cast(total, dtype=fake_features.dtype.name)


def mmd_witness(
    x: Any,
    fake_features: Any,
    real_features: Any,
    *,
    bandwidths: Sequence[float] = (1.0,),
    kernel: str = "rational_quadratic",
    alphas: Sequence[float] = ALPHAS,
) -> Any:
    """mean_j k(x_i, y_j) - mean_j k(x_i, f_j): where the function that tells data from samples best is high.

    x (q, d), fake_features f (n, d), real_features y (m, d); the kernel of mmd_loss. Returns (q,). Plays the critic in
    adversarial.gradient_penalty for MMD-GAN. Time q (n + m) d per alpha, memory O(q + n + m).
    Binkowski et al. (2018), sec. 2 and 3.3.
    """
    total = None
    for a in _terms("mmd_witness", kernel, bandwidths, alphas):
        for points, sign in ((real_features, 1.0), (fake_features, -1.0)):
            column = ops.slice_axis(points, start=0, stop=1)  # ones are made of an array: nothing from outside
            term = kernel_matvec(x, points, ops.full_like(column, value=sign / points.shape[0]), **a)
            total = term if total is None else ops.add(total, term)
    return ops.reshape(total, shape=(x.shape[0],))
