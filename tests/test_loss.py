"""The losses beyond the generated tests: closed forms, extreme logits, what is refused, agreement with torch.

Seen to fail: with the largest logit not taken out, with sigmoid(x) - target as the slope, with the first weight
for all samples, with the caches of a rule in the place of an optional input, with partial sums merged twice.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import generant
from generant import grad, ops, value_and_grad

DTYPES = ["float32", "float64"]


def normal(*shape, seed=0, dtype="float32"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def classes(n, k, seed=1):
    return np.random.default_rng(seed).integers(0, k, n)


def close(got, want, dtype, scale=1.0):
    np.testing.assert_allclose(got, want, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps * scale)


# ---- closed forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_logits_cost_the_logarithm_of_the_classes(dtype):
    for k in (1, 2, 10, 1000):
        for size in (0.0, 1e4, -1e4):
            logits, labels = np.full((5, k), size, dtype), classes(5, k)
            for smoothing in (0.0, 0.3, 1.0):
                close(ops.cross_entropy(logits, labels, label_smoothing=smoothing), math.log(k), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_keep_their_digits(dtype):
    logits = np.array([[1e4, 0.0, -1e4]], dtype)
    for label, want in enumerate((0.0, 1e4, 2e4)):
        loss, slope = value_and_grad(lambda x, label=label: ops.cross_entropy(x, np.array([label])))(logits)
        assert float(loss) == want
        np.testing.assert_array_equal(slope, [np.eye(3, dtype=dtype)[0] - np.eye(3, dtype=dtype)[label]])
    near = np.array([[1e4, 1e4 - 0.5]], dtype)  # the difference is exact, so the loss must be
    close(ops.cross_entropy(near, np.array([1])), math.log1p(math.exp(0.5)), dtype)
    for x, target, want in ((1e4, 1, 0.0), (1e4, 0, 1e4), (-1e4, 0, 0.0), (-1e4, 1, 1e4), (0.0, 0.5, math.log(2))):
        close(ops.bce_with_logits(np.full(3, x, dtype), np.full(3, target, dtype)), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_class_that_cannot_be_costs_nothing(dtype):
    logits = np.array([[0.5, -np.inf, 0.5], [-np.inf, 2.0, -np.inf]], dtype)
    loss, slope = value_and_grad(lambda x: ops.cross_entropy(x, np.array([0, 1])))(logits)
    close(loss, math.log(2) / 2, dtype)
    close(slope, [[-0.25, 0, 0.25], [0, 0, 0]], dtype)
    assert ops.cross_entropy(logits, np.array([1, 1])) == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_slope_of_a_confident_logit_does_not_vanish(dtype):
    """sigmoid(x) - target would be 0 where it is -exp(-x)."""
    x = np.array([30.0, -30.0, 60.0], dtype)
    target = np.array([1.0, 0.0, 1.0], dtype)
    slope = grad(lambda x: ops.bce_with_logits(x, target))(x)
    np.testing.assert_allclose(slope, np.array([-1, 1, -1]) * np.exp(-np.abs(x.astype("f8"))) / 3, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_divergence_of_gaussians(dtype):
    mu, logvar = normal(7, 33, dtype=dtype), normal(7, 33, seed=1, dtype=dtype)
    assert (abs(ops.gaussian_kl(mu, logvar, mu, logvar)) <= 40 * np.finfo(dtype).eps).all()
    np.testing.assert_array_equal(ops.gaussian_kl(np.zeros((2, 3), dtype), np.zeros((2, 3), dtype)), [0, 0])
    m, v = mu.astype("f8"), logvar.astype("f8")
    close(ops.gaussian_kl(mu, logvar), 0.5 * (m * m + np.exp(v) - 1 - v).sum(1), dtype)
    zero = np.zeros_like(mu)
    np.testing.assert_array_equal(ops.gaussian_kl(mu, logvar), ops.gaussian_kl(mu, logvar, zero, zero))
    close(ops.gaussian_kl(zero, zero, mu, logvar), 0.5 * (v + (1 + m * m) * np.exp(-v) - 1).sum(1), dtype, 33)
    assert ops.gaussian_kl(mu.reshape(7, 3, 11), logvar.reshape(7, 3, 11)).shape == (7,)


@pytest.mark.parametrize("loss", [ops.mse, ops.bce_with_logits])
def test_weights_are_per_sample(loss):
    for shape in ((40,), (40, 1), (40, 7), (3, 20, 200)):
        x, target = normal(*shape), np.float32(abs(normal(*shape, seed=1)))
        weight = np.float32(abs(normal(shape[0], seed=2)))
        each = np.array([float(loss(x[i : i + 1], target[i : i + 1])) for i in range(len(x))])
        close(loss(x, target, weight), (weight * each).mean(), "float32")
        close(loss(x, target), each.mean(), "float32")
        slope = grad(lambda w: loss(x, target, w))(weight)
        close(slope, each / len(x), "float32")
        per_sample = weight.reshape(-1, *[1] * (x.ndim - 1)) * grad(lambda x: loss(x, target))(x)
        close(grad(lambda x: loss(x, target, weight))(x), per_sample, "float32")


def test_weights_of_classes_are_per_sample():
    logits, labels, weight = normal(9, 5), classes(9, 5), np.float32(abs(normal(9, seed=2)))
    each = np.array([float(ops.cross_entropy(logits[i : i + 1], labels[i : i + 1])) for i in range(9)])
    close(ops.cross_entropy(logits, labels, weight), (weight * each).mean(), "float32")
    close(grad(lambda w: ops.cross_entropy(logits, labels, w))(weight), each / 9, "float32")


def test_second_derivative_without_the_optional_arguments():
    """The Hessian of cross-entropy is (diag(p) - p p^T) / n; of mse 2 / N; what is left out does not shift the rest."""
    logits, labels = normal(1, 6, dtype="float64"), np.array([2])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    hessian = np.diag(p) - np.outer(p, p)
    for given in ((), (None,)):
        slope = grad(lambda y: ops.cross_entropy(y, labels, *given))
        for i in range(6):
            row = grad(lambda x, i=i: ops.sum(ops.mul(slope(x), np.eye(6)[i])))(logits)
            close(row[0], hessian[i], "float64")
        slope = grad(lambda y: ops.mse(y, np.ones((4, 3)), *given))
        close(grad(lambda x: ops.sum(slope(x)))(np.zeros((4, 3))), np.full((4, 3), 2 / 12), "float64")


def test_nan_is_not_hidden():
    x, target = normal(40, 3), np.float32(abs(normal(40, 3, seed=1)))
    x[17, 2] = np.nan
    assert np.isnan(ops.mse(x, target)) and np.isnan(ops.bce_with_logits(x, target))
    assert np.isnan(ops.cross_entropy(x, classes(40, 3)))
    assert np.isnan(ops.gaussian_kl(x, target)).tolist() == [i == 17 for i in range(40)]


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_same_bits_for_any_number_of_threads_over_many_blocks():
    x, target = normal(100_003), np.float32(abs(normal(100_003, seed=1)))
    wide, other, weight = x[:99_000].reshape(3, -1), target[:99_000].reshape(3, -1), target[:3]
    logits, labels = x[:90_000].reshape(-1, 30), classes(3000, 30)
    before, made = generant.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            generant.set_num_threads(threads)
            made.append([
                ops.mse(x, target), ops.mse(x, target, target), ops.mse(wide, other, weight),
                ops.bce_with_logits(x, target), *ops.cross_entropy.all(logits, labels), ops.gaussian_kl(wide, other),
                grad(lambda x: ops.mse(x, other, weight))(wide), grad(lambda x: ops.cross_entropy(x, labels))(logits),
            ])  # fmt: skip
    finally:
        generant.set_num_threads(before)
    for again in made[1:]:
        for a, b in zip(made[0], again, strict=True):
            assert a.tobytes() == b.tobytes()
    close(made[0][0], ((x.astype("f8") - target) ** 2).mean(), "float32")
    close(made[0][1], (target * (x.astype("f8") - target) ** 2).mean(), "float32")


def test_a_divergence_does_not_depend_on_its_batch():
    mu, logvar = normal(50, 77), normal(50, 77, seed=1)
    whole = ops.gaussian_kl(mu, logvar)
    for part in (slice(0, 1), slice(13, 30), slice(49, 50)):
        np.testing.assert_array_equal(ops.gaussian_kl(mu[part], logvar[part]), whole[part])


# ---- what is refused ------------------------------------------------------------------------------------------------

X, LABELS = np.zeros((3, 4), "f4"), np.array([0, 3, 1])
G, ROW = np.ones((), "f4"), np.ones(3, "f4")


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ops.mse(X[:0], X[:0]), ValueError, r"mse: x has shape \(0, 4\); there is no mean of"),
        (lambda: ops.bce_with_logits(X[:, :0], X[:, :0]), ValueError, r"bce_with_logits: x has shape \(3, 0\);"),
        (lambda: ops.cross_entropy(X[:0], LABELS[:0]), ValueError, r"cross_entropy: logits has shape \(0, 4\);"),
        (lambda: ops.cross_entropy(X[:, :0], LABELS), ValueError, r"cross_entropy: logits has shape \(3, 0\);"),
        (lambda: ops.cross_entropy(X, LABELS + 1), ValueError, r"cross_entropy: labels\[1\] is 4, wanted 0 <= label"),
        (lambda: ops.cross_entropy(X, LABELS - 1), ValueError, r"cross_entropy: labels\[0\] is -1, wanted 0 <= label"),
        (lambda: ops.cross_entropy(X, LABELS.astype("f4")), TypeError, r"cross_entropy: labels must be int64, got"),
        (lambda: ops.cross_entropy(X, LABELS, label_smoothing=1.5), ValueError, r"cross_entropy: label_smoothing is 1"),
        (lambda: ops.cross_entropy(X, LABELS, np.ones(2, "f4")), ValueError, r"cross_entropy: n is 3 but weight has n"),
        (lambda: ops.cross_entropy_bwd(G, X, LABELS + 1, None, ROW, ROW, need=(0,)), ValueError, r"labels\[1\] is 4"),
        (lambda: ops.cross_entropy_bwd(G, X, LABELS, None, ROW, ROW, need=(1,)), ValueError, r"labels are integers"),
        (lambda: ops.mse(X, X[0]), ValueError, r"mse: "),
        (lambda: ops.mse(G, G), ValueError, r"mse: x must have at least 1 dimensions"),
        (lambda: ops.gaussian_kl(X, X[:2]), ValueError, r"gaussian_kl: n is 3 but logvar has n = 2"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_samples_have_no_divergence():
    assert ops.gaussian_kl(X[:0], X[:0]).shape == (0,)
    np.testing.assert_array_equal(ops.gaussian_kl(X[:, :0], X[:, :0]), np.zeros(3))


# ---- torch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_torch(dtype):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, target, labels = normal(64, 11, dtype=dtype), abs(normal(64, 11, seed=1, dtype=dtype)), classes(64, 11)
    p, q = normal(2, 64, 11, seed=3, dtype=dtype)
    t_target, t_labels, t_p, t_q = map(torch.from_numpy, (target, labels, p, q))

    def divergence(x):
        a, b = (torch.distributions.Normal(m, torch.exp(v / 2)) for m, v in ((x, t_target), (t_p, t_q)))
        return torch.distributions.kl_divergence(a, b).sum()

    for ours, theirs in (
        (lambda x: ops.mse(x, target), lambda x: functional.mse_loss(x, t_target)),
        (lambda x: ops.bce_with_logits(x, target), lambda x: functional.binary_cross_entropy_with_logits(x, t_target)),
        (lambda x: ops.cross_entropy(x, labels), lambda x: functional.cross_entropy(x, t_labels)),
        (
            lambda x: ops.cross_entropy(x, labels, label_smoothing=0.1),
            lambda x: functional.cross_entropy(x, t_labels, label_smoothing=0.1),
        ),
        (lambda x: ops.sum(ops.gaussian_kl(x, target, p, q)), divergence),
    ):
        loss, slope = value_and_grad(ours)(x)
        t_x = torch.from_numpy(x).requires_grad_()
        t_loss = theirs(t_x)
        t_loss.backward()
        close(loss, t_loss.detach().numpy(), dtype)
        close(slope, t_x.grad.numpy(), dtype, scale=float(abs(t_x.grad).max()))


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch")
    x, labels = torch.from_numpy(normal(8, 3)), torch.from_numpy(classes(8, 3))
    slope = grad(lambda x: ops.cross_entropy(x, labels))(x)
    assert isinstance(slope, torch.Tensor) and slope.shape == (8, 3)
    bent = grad(lambda x: ops.sum(ops.square(grad(lambda y: ops.cross_entropy(y, labels))(x))))(x)
    assert isinstance(bent, torch.Tensor) and torch.isfinite(bent).all()
