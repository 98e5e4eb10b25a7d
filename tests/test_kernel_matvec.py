"""Kernel matrix products and their derivatives where the generated tests do not look: against the matrix, torch and
closed forms; logarithms that would overflow, kinks, NaN, memory.

Seen to fail: with derivatives at q = 0 left as they come; with the rule's dy without the logarithms; with exp(log) and
exp(q) multiplied in the Numba twin; without the factor 2 of the twin's 2 phi' h.
"""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest

from generant import ops
from generant.autograd import grad, vjp
from generant.ops import kernel_matvec, kernel_matvec_dx, kernel_matvec_dx_bwd, kernel_sum

KERNELS = [
    dict(bandwidth=1.5), dict(bandwidth=(0.7, 1.0, 3.0)), dict(bandwidth=(0.5, 1.0, 2.0, 4.0)),
    dict(kernel="laplace", bandwidth=2.0), dict(kernel="laplace", bandwidth=(1.0, 2.0)),
    dict(kernel="laplacian", bandwidth=3.0), dict(kernel="polynomial"),
    dict(kernel="polynomial", degree=2, gamma=0.5, coef0=0.0), dict(kernel="polynomial", degree=1, gamma=0.3),
    dict(kernel="energy"), dict(kernel="rational_quadratic", alpha=0.5, bandwidth=1.3),
    dict(kernel="rational_quadratic", alpha=2.0, bandwidth=(0.8, 2.0)), dict(kernel="matern32", bandwidth=2.0),
    dict(kernel="matern52", bandwidth=(1.0, 2.5)), dict(kernel="exp_dot"), dict(kernel="exp_dot", gamma=-0.2),
]  # fmt: skip
LOGS = [KERNELS[0], KERNELS[3], KERNELS[-2], KERNELS[-1]]


def name(attrs):
    return "-".join(str(v) for v in attrs.values())


every_kernel = pytest.mark.parametrize("attrs", KERNELS, ids=name)


def points(n, d, seed=0, dtype=np.float64, offset=0.0):
    return (np.random.default_rng(seed).standard_normal((n, d)) + offset).astype(dtype)


def matrix(x, y, lib=np, *, kernel="rbf", bandwidth=1.0, degree=3, gamma=None, coef0=1.0, alpha=1.0):
    """The kernel matrix, for NumPy arrays or (lib=torch) tensors."""
    delta, p = x[:, None] - y[None], x @ y.T
    gamma = 1 / x.shape[1] if gamma is None else gamma
    square, widths = (delta**2).sum(-1), bandwidth if isinstance(bandwidth, tuple) else (bandwidth,)
    if kernel == "polynomial":
        return (gamma * p + coef0) ** degree
    if kernel == "exp_dot":
        return lib.exp(gamma * p)
    if kernel == "energy":
        return -lib.sqrt(square)

    def one(h):
        if kernel == "rbf":
            return lib.exp(-square / (2 * h * h))
        if kernel == "laplacian":
            return lib.exp(-lib.abs(delta).sum(-1) / h)
        if kernel == "rational_quadratic":
            return (1 + square / (2 * alpha * h * h)) ** -alpha
        c = lib.sqrt(square) / h * {"laplace": 1, "matern32": 3**0.5, "matern52": 5**0.5}[kernel]
        return (1 if kernel == "laplace" else 1 + c if kernel == "matern32" else 1 + c + c**2 / 3) * lib.exp(-c)

    return functools.reduce(lambda a, b: a + b, map(one, widths))


def along(f, xs, seed=0):
    """(derivative of the scalar f in a random direction, the same by central differences), in float64."""
    rng = np.random.default_rng(seed)
    direction = [rng.standard_normal(x.shape) for x in xs]
    grads = vjp(f, *xs)[1](np.ones(()))
    ours = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True) if g is not None)

    def at(h):
        return float(f(*[x + h * d for x, d in zip(xs, direction, strict=True)]))

    h = 2e-4
    return ours, (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def slope(f, xs, seed=7):
    """The derivative of f along a fixed random direction, as a function of ops."""
    rng = np.random.default_rng(seed)
    direction = [rng.standard_normal(x.shape) for x in xs]

    def g(*xs):
        grads = vjp(f, *xs)[1](np.ones(()))
        terms = [ops.sum(ops.mul(a, d)) for a, d in zip(grads, direction, strict=True) if a is not None]
        return functools.reduce(ops.add, terms)

    return g


def weighted(out, seed=5):
    return ops.sum(ops.mul(out, np.random.default_rng(seed).standard_normal(out.shape)))


# ---- values ----


@every_kernel
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 3e-6)])
@pytest.mark.parametrize("d", [1, 2, 17, 70])
def test_matvec_is_the_matrix_times_vectors(attrs, dtype, tolerance, d):
    x, y, v = points(83, d, 1, dtype), points(141, d, 2, dtype), points(141, 5, 3, dtype)
    k = matrix(x.astype(float), y.astype(float), **attrs)
    np.testing.assert_allclose(
        kernel_matvec(x, y, v, **attrs), k @ v, rtol=0, atol=tolerance * (np.abs(k) @ np.abs(v)).max()
    )
    square = kernel_matvec(x, x[::-1], v[:83], exclude_diagonal=True, **attrs)
    k = matrix(x.astype(float), x[::-1].astype(float), **attrs)
    np.fill_diagonal(k, 0)
    np.testing.assert_allclose(square, k @ v[:83], rtol=0, atol=tolerance * (np.abs(k) @ np.abs(v[:83])).max())


@pytest.mark.parametrize("attrs", LOGS, ids=name)
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 1e-5)])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_logarithms_are_weights(attrs, dtype, tolerance, size):
    x, y, v = points(83, 3, 1, dtype), points(141, 3, 2, dtype), points(141, 2, 3, dtype)
    x_log, y_log = size * points(83, 1, 4)[:, 0], size * points(141, 1, 5)[:, 0] - 3 * size
    k = np.exp(x_log)[:, None] * matrix(x.astype(float), y.astype(float), **attrs) * np.exp(y_log)
    want, scale = k @ v, np.abs(k) @ np.abs(v)
    off = np.abs(kernel_matvec(x, y, v, x_log, y_log, **attrs) - want) / scale  # every row has its own magnitude
    assert off.max() < tolerance * max(1, size / 2)
    np.testing.assert_allclose(
        kernel_matvec(x, y, v, None, y_log, **attrs), kernel_matvec(x, y, v, np.zeros(83), y_log, **attrs)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_that_overflow_alone_do_not(dtype):
    """exp(900) and exp(-900) are not numbers in either precision; their product is 1."""
    x, v = points(9, 2, 1, dtype), points(9, 3, 2, dtype)
    high, low = np.full(9, 900.0), np.full(9, -900.0)
    for attrs in LOGS:
        want = kernel_matvec(x, x, v, **attrs)
        for logs in ((high, low), (low, high)):
            np.testing.assert_allclose(kernel_matvec(x, x, v, *logs, **attrs), want, rtol=3e-4, atol=1e-4)
            assert np.isfinite(kernel_matvec_dx(x, x, v, v, *logs, **attrs)).all()
    for attrs, far in (  # a kernel of exp(-900)
        (dict(), (0.0, 1800**0.5)), (dict(kernel="laplace"), (0.0, 900.0)),
        (dict(kernel="exp_dot", gamma=1.0), (30.0, -30.0)),
    ):  # fmt: skip
        a, b = (np.full((1, 1), c, dtype) for c in far)
        one, weight = np.ones((1, 1), dtype), np.array([900.0])
        for logs in ((weight, None), (None, weight), (weight / 2, weight / 2)):
            assert kernel_matvec(a, b, one, *logs, **attrs)[0, 0] == pytest.approx(1, rel=1e-3)
            assert np.isfinite(kernel_matvec_dx(a, b, one, one, *logs, **attrs)).all()


@pytest.mark.parametrize("attrs", LOGS, ids=name)
def test_a_log_of_minus_infinity_leaves_a_row_out(attrs):
    x, y, v, g = points(20, 3, 1), points(30, 3, 2), points(30, 2, 3), points(20, 2, 4)
    x_log, y_log = np.zeros(20), np.zeros(30)
    y_log[7:] = -np.inf
    x_log[5] = -np.inf
    out = kernel_matvec(x, y, v, x_log, y_log, **attrs)
    want = kernel_matvec(x, y[:7].copy(), v[:7].copy(), **attrs)
    want[5] = 0
    np.testing.assert_allclose(out, want, rtol=1e-12)
    for made in (kernel_matvec_dx(x, y, g, v, x_log, y_log, **attrs),
                 *kernel_matvec_dx_bwd(x, x, y, g, v, x_log, y_log, need=(0, 1, 2, 3), **attrs)):
        assert np.isfinite(made).all()


def test_one_pair_in_closed_form():
    x, y, v, g = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]), np.array([[2.0]]), np.array([[10.0]])
    delta, h = np.array([[3.0, -4.0]]), 5.0
    assert kernel_matvec(x, y, v, bandwidth=h)[0, 0] == pytest.approx(2 * np.exp(-0.5))
    for attrs, factor in (
        (dict(bandwidth=h), -np.exp(-0.5) / 25), (dict(kernel="energy"), -1 / 5),
        (dict(kernel="laplace", bandwidth=h), -np.exp(-1) / 25),
    ):  # fmt: skip
        np.testing.assert_allclose(kernel_matvec_dx(x, y, g, v, **attrs), 20 * factor * delta, rtol=1e-14)
    np.testing.assert_allclose(kernel_matvec_dx(x, y, g, v, kernel="polynomial", degree=2, gamma=1.0), 20 * 2 * y)
    np.testing.assert_allclose(
        kernel_matvec_dx(x, y, g, v, kernel="laplacian", bandwidth=7.0), 20 * -np.exp(-1) / 7 * np.sign(delta)
    )


@every_kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_points_have_no_nan(attrs, dtype):
    """Kernels with a kink have derivative 0 there, whatever the limit from outside; the others their own."""
    x = np.repeat(points(4, 3, 1, dtype), 5, axis=0)
    g, v, h = points(20, 2, 2, dtype), points(20, 2, 3, dtype), points(20, 3, 4, dtype)
    radial = attrs.get("kernel") not in ("polynomial", "exp_dot")
    same = kernel_matvec_dx(x[:5], x[:5], g[:5], v[:5], **attrs)
    assert np.isfinite(same).all()
    assert not (radial and same.any())
    assert np.isfinite(kernel_matvec_dx(x, x, g, v, **attrs)).all()
    for made in kernel_matvec_dx_bwd(h, x, x, g, v, need=(0, 1, 2, 3), **attrs):
        assert np.isfinite(made).all()


@every_kernel
def test_nan_stays_where_it_belongs(attrs):
    x, y, v = points(20, 3, 1), points(30, 3, 2), points(30, 2, 3)
    x[3, 1] = np.nan
    out, dx = kernel_matvec(x, y, v, **attrs), kernel_matvec_dx(x, y, points(20, 2, 4), v, **attrs)
    assert np.isnan(out[3]).all()
    assert np.isnan(dx[3]).any() or attrs.get("degree") == 1  # that one does not depend on x
    assert np.isfinite(np.delete(out, 3, axis=0)).all()
    assert np.isfinite(np.delete(dx, 3, axis=0)).all()
    assert np.isnan(kernel_matvec(y, x, v[:20], **attrs)).all()


@pytest.mark.parametrize("attrs", [KERNELS[i] for i in (0, 3, 9, 12)], ids=name)
@pytest.mark.parametrize("d", [3, 50])
def test_a_common_offset_costs_no_digits(attrs, d):
    """Coordinates that float32 holds exactly, near 0 and near 4096: differences are the same, so are the results."""
    rng = np.random.default_rng(3)
    x, y = (rng.integers(-8, 8, (n, d)).astype(np.float32) / 4 for n in (40, 50))
    g, v = points(40, 2, 1, np.float32), points(50, 2, 2, np.float32)
    far = x + np.float32(4096), y + np.float32(4096)
    for near, moved in (
        (kernel_matvec(x, y, v, **attrs), kernel_matvec(*far, v, **attrs)),
        (kernel_matvec_dx(x, y, g, v, **attrs), kernel_matvec_dx(*far, g, v, **attrs)),
    ):
        np.testing.assert_allclose(moved, near, rtol=0, atol=3e-5 * np.abs(near).max())  # exponents of 30


# ---- derivatives ----


@every_kernel
@pytest.mark.parametrize("exclude", [False, True])
def test_first_and_second_derivatives(attrs, exclude):
    """Generated tests leave logs in, which most kernels do not take: here without, in x, y and v, to second order."""
    xs = [points(11, 3, 1), points(11, 3, 2), points(11, 2, 3)]

    def f(x, y, v):
        return weighted(kernel_matvec(x, y, v, exclude_diagonal=exclude, **attrs))

    for g in (f, slope(f, xs)):
        ours, differences = along(g, xs)
        assert ours == pytest.approx(differences, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("attrs", LOGS, ids=name)
def test_derivatives_in_the_logarithms(attrs):
    xs = [points(9, 3, 1), points(12, 3, 2), points(12, 2, 3), points(9, 1, 4)[:, 0], points(12, 1, 5)[:, 0]]

    def f(*xs):
        return weighted(kernel_matvec(*xs, **attrs))

    for g in (f, slope(f, xs)):
        ours, differences = along(g, xs)
        assert ours == pytest.approx(differences, rel=1e-7, abs=1e-7)


@every_kernel
def test_derivative_of_the_derivative_op(attrs):
    """kernel_matvec_dx itself, in all its arguments; without some of them the others stay."""
    xs = [points(8, 3, 1), points(13, 3, 2), points(8, 2, 3), points(13, 2, 4)]

    def f(*xs):
        return weighted(kernel_matvec_dx(*xs, **attrs))

    ours, differences = along(f, xs)
    assert ours == pytest.approx(differences, rel=1e-7, abs=1e-7)
    h = points(8, 3, 6)
    every = kernel_matvec_dx_bwd(h, *xs, need=(0, 1, 2, 3), **attrs)
    for need in ((0,), (1,), (2,), (3,), (1, 2), (0, 3)):
        for i, made in enumerate(kernel_matvec_dx_bwd(h, *xs, need=need, **attrs)):
            if i in need:
                np.testing.assert_allclose(made, every[i], rtol=1e-12, atol=1e-14)
            else:
                assert made is None


def test_third_derivatives_are_refused():
    x, y, v = points(4, 2), points(5, 2, 1), points(5, 1, 2)
    f = slope(slope(lambda x: weighted(kernel_matvec(x, y, v)), [x]), [x])
    with pytest.raises(TypeError, match="kernel_matvec_dx_bwd is not differentiable"):
        grad(f)(x)


@every_kernel
def test_gradients_are_torchs(attrs):
    torch = pytest.importorskip("torch")
    x, y, v, g = points(31, 4, 1), points(23, 4, 2), points(23, 3, 3), points(31, 3, 4)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, y, v)]
    out = matrix(*tensors[:2], torch, **attrs) @ tensors[2]
    out.backward(torch.tensor(g))
    value, pull = vjp(lambda *a: kernel_matvec(*a, **attrs), x, y, v)
    np.testing.assert_allclose(value, out.detach().numpy(), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(pull(g), tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-9)


@every_kernel
@pytest.mark.parametrize("itself", [False, True])
def test_kernel_sum_gradients_are_torchs(attrs, itself):
    torch = pytest.importorskip("torch")
    x, y, u, v = points(31, 4, 1), points(23, 4, 2), points(31, 1, 3)[:, 0], points(23, 1, 4)[:, 0]
    inputs = (x, u) if itself else (x, y, u, v)
    tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
    if itself:  # every pair once: torch has no derivative of the square root on the diagonal
        a, p = tensors
        total = sum(2 * p[i] * (matrix(a[i : i + 1], a[i + 1 :], torch, **attrs) @ p[i + 1 :]).sum() for i in range(30))
    else:
        a, b, p, q = tensors
        total = p @ matrix(a, b, torch, **attrs) @ q
    total.backward()

    def ours_of(x, *rest):
        return kernel_sum(x, None, *rest, exclude_diagonal=True, **attrs) if itself else kernel_sum(x, *rest, **attrs)

    pull = vjp(ours_of, *inputs)[1]
    for ours, theirs in zip(pull(np.ones(())), tensors, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bandwidth", [1.3, (0.7, 1.4, 2.8)])
def test_second_order_is_torchs(bandwidth):
    """A Hessian-vector product of the squared norm of K v."""
    torch = pytest.importorskip("torch")
    x, y, v, w = points(15, 3, 1), points(12, 3, 2), points(12, 2, 3), points(15, 3, 4)

    def first(x):
        return ops.sum(ops.mul(grad(lambda x: ops.sum(ops.square(kernel_matvec(x, y, v, bandwidth=bandwidth))))(x), w))

    t = torch.tensor(x, requires_grad=True)
    out = ((matrix(t, torch.tensor(y), torch, bandwidth=bandwidth) @ torch.tensor(v)) ** 2).sum()
    (g,) = torch.autograd.grad(out, t, create_graph=True)
    (want,) = torch.autograd.grad((g * torch.tensor(w)).sum(), t)
    np.testing.assert_allclose(grad(first)(x), want.numpy(), rtol=1e-9, atol=1e-9)


def test_float32_gradients_are_float32_and_close():
    x, y, v, g = points(40, 5, 1), points(60, 5, 2), points(60, 3, 3), points(40, 3, 4)
    x_log, y_log = points(40, 1, 5)[:, 0], points(60, 1, 6)[:, 0]
    wide = vjp(kernel_matvec, x, y, v, x_log, y_log)[1](g)
    x, y, v, g = (a.astype(np.float32) for a in (x, y, v, g))
    for ours, want in zip(vjp(kernel_matvec, x, y, v, x_log, y_log)[1](g), wide, strict=True):
        assert ours.dtype == (np.float32 if ours.ndim == 2 else np.float64)
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-5 * np.abs(want).max())


# ---- bad input, memory ----


@pytest.mark.parametrize(
    "attrs, message",
    [
        (dict(bandwidth=0.0), "bandwidth must be positive and finite, got 0.0"),
        (dict(bandwidth=(1.0, -2.0)), "bandwidth must be positive"),
        (dict(bandwidth=float("inf")), "bandwidth must be positive"),
        (dict(bandwidth=()), "a number or 1 to 16"),
        (dict(bandwidth=(1.0,) * 17), "a number or 1 to 16 of them, got 17"),
        (dict(kernel="polynomial", degree=0), "degree must be at least 1, got 0"),
        (dict(kernel="rational_quadratic", alpha=0.0), "alpha must be positive"),
        (dict(kernel="exp_dot", gamma=float("inf")), "gamma and coef0 must be finite"),
        (dict(kernel="gaussian"), "kernel must be one of rbf, laplace"),
        (dict(exclude_diagonal=True), "pairs row i of x with row i of y, got 3 and 4 rows"),
    ],
)
def test_bad_attributes_are_named(attrs, message):
    with pytest.raises(ValueError, match=f"kernel_matvec: .*{message}"):
        kernel_matvec(points(3, 2), points(4, 2), points(4, 1), **attrs)


@pytest.mark.parametrize("attrs", [a for a in KERNELS if a not in LOGS and a.get("kernel") != "laplace"], ids=name)
def test_logarithms_need_an_exponential(attrs):
    x, log = points(3, 2), np.zeros(3)
    with pytest.raises(ValueError, match="x_log and y_log go into the exponent"):
        kernel_matvec(x, x, x, log, **attrs)
    with pytest.raises(ValueError, match="x_log and y_log go into the exponent"):
        kernel_matvec_dx(x, x, x, x, None, log, **attrs)


def test_no_rows_and_no_columns():
    assert kernel_matvec(np.empty((0, 2)), points(4, 2), points(4, 3)).shape == (0, 3)
    assert (kernel_matvec(points(4, 2), np.empty((0, 2)), np.empty((0, 3))) == np.zeros((4, 3))).all()
    assert kernel_matvec(points(4, 2), points(5, 2), np.empty((5, 0))).shape == (4, 0)
    assert (kernel_matvec_dx(points(4, 2), np.empty((0, 2)), points(4, 1), np.empty((0, 1))) == 0).all()


def test_no_matrix_is_formed():
    """3000 x 3000 float32 would be 36 MB."""
    x, v = points(3000, 2, 0, np.float32), points(3000, 1, 1, np.float32)
    kernel_matvec(x, x, v)
    tracemalloc.start()
    try:
        kernel_matvec(x, x, v)
        kernel_matvec_dx(x, x, v, v)
        kernel_matvec_dx_bwd(x, x, x, v, v, need=(0, 1, 2, 3))
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()
