"""Tests of whether two samples come from one distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ops._kernel_function import KernelFunction
from ..ops.kernel_matvec import kernel_matvec
from ._points import as_points, positive_integer
from .mmd import PRECISIONS, kernel_of, one_of, refuse_overflow

ROWS = 1024  # rows of the table of labels that are in float64 at once


class MMDTest(NamedTuple):
    """What mmd_test returns."""

    statistic: float  # the squared MMD of the two samples
    p_value: float
    threshold: float  # reject at `level` where the statistic is above
    null: NDArray[np.float64]  # (permutations,) the statistic of every relabelling


def mmd_test(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    permutations: int = 1000,
    level: float = 0.05,
    kernel: str = "rbf",
    bandwidth: float | str | Sequence[float] = "median",
    estimator: str = "unbiased",
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    alpha: float = 1.0,
    precision: str = "float32",
    random_state: Any = 0,
) -> MMDTest:
    """Permutation test of equal distributions by the squared MMD: p = (1 + #{null >= statistic}) / (1 + permutations).

    real (n, d), fake (m, d): samples. The n + m rows are relabelled at random, n of them real, `permutations` times; p
    is exact whatever the kernel, its smallest value 1 / (1 + permutations). threshold is the 1 - level quantile of the
    null. kernel, bandwidth and the rest: as in mmd2, a median over both samples being the same for every relabelling;
    estimator: "unbiased" or "biased". random_state: seed or numpy Generator, of the relabellings.
    Every kernel value is computed once: K over all pairs times the labels as columns of B gives every statistic.
    Time (n + m)^2 (d + permutations), memory O((n + m) permutations). Values of the null within rounding of the
    statistic count as equal to it, as relabellings of small samples often are. Raises ValueError for other shapes,
    values that are not finite, fewer than 2 rows, permutations < 1, level outside (0, 1), and as mmd2 does.
    Gretton et al., A kernel two-sample test, JMLR 2012, sec. 5; Phipson and Smyth, Permutation p-values should never be
    zero, 2010, eq. 2.
    """
    real, fake = as_points("mmd_test", rows=2, real=real, fake=fake)
    permutations = positive_integer("mmd_test", "permutations", permutations)
    one_of("mmd_test", "estimator", estimator, ("unbiased", "biased"))
    one_of("mmd_test", "precision", precision, PRECISIONS)
    if not 0 < level < 1:
        raise ValueError(f"mmd_test: level must be in (0, 1), got {level!r}")
    rng = np.random.default_rng(random_state)
    attrs = kernel_of(
        "mmd_test", real, fake, 0,
        kernel=kernel, bandwidth=bandwidth, degree=degree, gamma=gamma, coef0=coef0, alpha=alpha,
    )  # fmt: skip
    dtype = np.float64 if precision == "exact" else real.dtype
    pooled = np.concatenate([real, fake]).astype(dtype, copy=False)
    labels = np.zeros((permutations + 1, len(pooled)), np.bool_)  # row 0: the samples as they are
    labels[0, : len(real)] = True
    for row in labels[1:]:
        row[rng.permutation(len(pooled))[: len(real)]] = True
    with np.errstate(over="ignore", invalid="ignore"):
        values = _statistics(pooled, labels, len(real), estimator == "unbiased", attrs)
    refuse_overflow("mmd_test", values)
    statistic, null = float(values[0]), values[1:]
    rounding = 100 * np.finfo(dtype).eps * float(np.abs(values).max())
    p_value = (1 + int(np.count_nonzero(null >= statistic - rounding))) / (1 + permutations)
    return MMDTest(statistic, p_value, float(np.quantile(null, 1 - level, method="higher")), null)


def _statistics(
    pooled: NDArray[Any], labels: NDArray[np.bool_], n: int, unbiased: bool, kernel: dict[str, Any]
) -> NDArray[np.float64]:
    """The squared MMD under every row of labels, of which n are True.

    With b = label - n / (n + m), of sum 0, b^T K b (1/n + 1/m)^2 is the biased estimate: what all kernel values share
    is gone before anything is rounded. K has no diagonal here; what the unbiased estimate divides otherwise, or the
    biased one adds from the diagonal, is added from the sums within both samples.
    """
    count = len(pooled)
    m, share = count - n, n / count
    columns = np.empty((count, len(labels) + 1), pooled.dtype)
    columns[:, 0] = 1  # K 1: the row sums
    np.subtract(labels.T, share, out=columns[:, 1:], casting="same_kind")
    product = kernel_matvec(pooled, pooled, columns, exclude_diagonal=True, **kernel)
    diagonal = np.empty(count)
    phi = KernelFunction(pooled.shape[1], **kernel)
    quadratic, linear, on_diagonal = np.zeros((3, len(labels)))
    rows = product[:, 0].astype(np.float64)
    for i in range(0, count, ROWS):
        part = slice(i, i + ROWS)
        b = labels[:, part].T - share
        quadratic += np.einsum("np,np->p", b, product[part, 1:])
        linear += rows[part] @ b
        if not unbiased:
            x = pooled[part].astype(np.float64)
            diagonal[part] = phi(phi.argument(x, x))
            on_diagonal += diagonal[part] @ b
    value = quadratic * (1 / n + 1 / m) ** 2
    if not unbiased:
        total = float(diagonal.sum())
        return value + (on_diagonal + share * total) / n**2 + ((1 - share) * total - on_diagonal) / m**2
    total = float(rows.sum())
    within_real = quadratic + 2 * share * linear + share**2 * total
    within_fake = quadratic - 2 * (1 - share) * linear + (1 - share) ** 2 * total
    return value + within_real / (n * n * (n - 1)) + within_fake / (m * m * (m - 1))
