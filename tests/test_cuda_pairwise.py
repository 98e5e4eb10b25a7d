"""What test_cuda_ops.py does not reach of the pairwise kernels: the edges of tiles, near pairs, special values, sets so
large that they are taken in chunks, Sinkhorn until it converges, and the public functions on device arrays."""


import cuda_device
import numpy as np
import pytest

from generant import ops, pairwise
from generant.ops import _device

cupy = cuda_device.device()


def points(n, d, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def on_device(a):
    return a if a is None else cupy.asarray(a)


def found(op, *arrays, **attrs):
    """All outputs of an op on the device, and those of the CPU in float64."""
    wide = [a if a is None else a.astype(np.float64) for a in arrays]
    made, wanted = op.all(*map(on_device, arrays), **attrs), op.all(*wide, **attrs)
    cuda_device.guards_hold(cupy)
    made = [a.get() for a in made if a is not None]
    if cuda_device.HOST:  # the order of threads changes nothing
        _device.cuda_module().set_reverse(True)
        try:
            again = [a.get() for a in op.all(*map(on_device, arrays), **attrs) if a is not None]
        finally:
            _device.cuda_module().set_reverse(False)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(made, again, strict=True))
    return made, [np.asarray(a) for a in wanted if a is not None]


def agrees(op, *arrays, tolerance=2e-5, **attrs):
    """tolerance: of the largest value."""
    for a, b in zip(*found(op, *arrays, **attrs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(initial=0), 1e-30))


# ---- edges of tiles and of parts ----


@pytest.mark.parametrize("n, m, d", [(127, 65, 3), (129, 64, 24), (128, 191, 25), (17, 130, 41), (257, 1, 33)])
def test_edges_of_tiles(n, m, d):
    x, y = points(n, d, 1), points(m, d, 2) + np.float32(0.5)
    agrees(ops.kernel_sum, x, y, None, points(m, 1, 3)[:, 0] ** 2, bandwidth=(d**0.5,), center=0.3)
    agrees(ops.kernel_row_sums, x, y, kernel="laplace", bandwidth=(d**0.5,), tolerance=1e-6)
    agrees(ops.kernel_row_sums, x, None, kernel="polynomial", center=1.0, tolerance=1e-6)
    agrees(ops.logsumexp, x, y, points(m, 1, 4)[:, 0].astype(np.float64), scale=0.3, tolerance=1e-6)
    for e in (1, 4, 5, 9, 65):
        agrees(ops.softmax_matmul, x, y, points(m, e, 5), None, scale=0.2)
        agrees(ops.kernel_matvec, x, y, points(m, e, 5), None, None, kernel="laplace", bandwidth=(d**0.5,))
    for kernel in ("rbf", "laplacian", "polynomial"):
        agrees(
            ops.kernel_matvec_dx, x, y, points(n, 3, 6), points(m, 3, 7), None, None, kernel=kernel, bandwidth=(d**0.5,)
        )


@pytest.mark.parametrize("op", [ops.kernel_sum, ops.kernel_row_sums])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("n, d", [(300, 2), (193, 30)])
def test_a_set_with_itself_visits_every_pair_once(op, exclude, n, d):
    x = points(n, d, 1)
    agrees(op, x, exclude_diagonal=exclude, bandwidth=(d**0.5,), tolerance=1e-6)
    agrees(op, x, exclude_diagonal=exclude, kernel="polynomial", degree=2, coef0=0.5, tolerance=1e-6)


def test_more_rows_and_columns_than_a_chunk_holds():
    """Seen to fail: with `vectors` not moved along with the columns of a chunk."""
    x, y, v = points(8200, 1, 1, np.float64), points(1100, 1, 2, np.float64), points(1100, 9, 3, np.float64)
    made = ops.kernel_matvec(*map(cupy.asarray, (x, y, v))).get()
    kernel = np.exp(-0.5 * (x - y.T) ** 2)
    np.testing.assert_allclose(made, kernel @ v, rtol=0, atol=1e-12 * len(y))


def test_no_rows_and_no_columns():
    x, none = cupy.asarray(points(5, 3, 1)), cupy.zeros((0, 3), np.float32)
    assert ops.kernel_sum(x, none).get() == 0 and ops.kernel_sum(none).get() == 0
    assert [a.get().tolist() for a in ops.kernel_row_sums(x, none)] == [[0] * 5, [], 0]
    assert ops.kernel_row_sums(none)[2].get() == 0
    assert (ops.logsumexp(x, none).get() == -np.inf).all() and ops.logsumexp(none, x).shape == (0,)
    for e in (2, 20):
        assert not ops.kernel_matvec(x, none, cupy.zeros((0, e), np.float32)).get().any()
        assert np.isnan(ops.softmax_matmul(x, none, cupy.zeros((0, e), np.float32)).get()).all()
        assert ops.kernel_matvec(none, x, cupy.zeros((5, e), np.float32)).shape == (0, e)
    for d in (3, 30):
        x, none = cupy.asarray(points(5, d, 1)), cupy.zeros((0, d), np.float32)
        one = cupy.ones((5, 1), np.float32)
        assert not ops.kernel_matvec_dx(x, none, one, one[:0]).get().any()
        assert ops.kernel_matvec_dx(none, x, one[:0], one).shape == (0, d)


# ---- near pairs ----


@pytest.mark.parametrize("offset", [0, 1000])
def test_near_pairs_are_measured_from_their_rows(offset):
    """Expanded squares of rows at an offset of 1000 are wrong by more than these distances are."""
    x = points(70, 40, 1) + np.float32(offset)
    y = np.concatenate([x[:50] + np.float32(0.01) * points(50, 40, 2), x[60:]]).astype(np.float32)
    agrees(ops.kernel_sum, x, y, kernel="energy", tolerance=1e-6)
    agrees(ops.kernel_matvec, x, y, points(60, 2, 3), kernel="laplace", bandwidth=(0.05,), tolerance=1e-5)
    agrees(ops.kernel_matvec_dx, x, y, points(70, 1, 4), points(60, 1, 5), bandwidth=(0.05,), tolerance=1e-5)
    agrees(ops.kernel_matvec_dx, x, y, points(70, 2, 4), points(60, 2, 5), bandwidth=(5.0,), tolerance=2e-5)
    agrees(ops.logsumexp, x, y, scale=300.0, cost="euclidean", tolerance=1e-6)
    assert ops.kernel_row_sums(cupy.asarray(x), kernel="energy", exclude_diagonal=False)[0].get().max() < 0
    assert ops.kernel_sum(cupy.asarray(x[:1]), cupy.asarray(x[:1]), kernel="energy").get() == 0


# ---- special values ----


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_special_values_are_those_of_the_cpu(value, d):
    x, y, v = points(20, d, 1), points(33, d, 2), points(33, 2, 3)
    x[3, 1] = value
    bias = points(33, 1, 4)[:, 0].astype(np.float64)
    bias[5] = -np.inf
    calls = [
        (ops.logsumexp, (x, y, bias), {}), (ops.logsumexp, (x, y), dict(cost="euclidean")),
        (ops.softmax_matmul, (x, y, v, bias), {}), (ops.kernel_matvec, (x, y, v), dict(kernel="matern52")),
        (ops.kernel_row_sums, (x, y), {}), (ops.kernel_row_sums, (x, y), dict(kernel="energy")),
        (ops.kernel_sum, (x, y), dict(kernel="laplacian")),
    ]  # fmt: skip
    with np.errstate(all="ignore"):
        for op, arrays, attrs in calls:
            made, wanted = op.all(*map(cupy.asarray, arrays), **attrs), op.all(*arrays, **attrs)
            for a, b in zip(made, wanted, strict=True):
                if a is not None:
                    np.testing.assert_allclose(a.get(), b, rtol=2e-5, atol=2e-5, err_msg=f"{op.name} {attrs}")


@pytest.mark.parametrize(
    "bias", [np.full(9, -np.inf), np.r_[np.inf, np.zeros(8)], np.r_[np.nan, np.zeros(8)], np.full(9, 1e300)]
)
def test_special_biases(bias):
    x, y, v = points(4, 2, 1), points(9, 2, 2), points(9, 3, 3)
    with np.errstate(all="ignore"):
        for a, b in zip(
            ops.softmax_matmul.all(*map(cupy.asarray, (x, y, v, bias))),
            ops.softmax_matmul.all(x, y, v, bias),
            strict=True,
        ):
            np.testing.assert_allclose(a.get(), b, rtol=1e-5, atol=1e-5)


def test_scores_far_beyond_what_an_exponent_holds():
    x, y = points(30, 3, 1) * 1000, points(200, 3, 2) * 1000
    agrees(ops.logsumexp, x, y, scale=50.0, tolerance=1e-6)
    x_log, y_log = np.full(30, 5000.0), np.full(200, -5000.0)
    agrees(ops.kernel_matvec, x, y, points(200, 1, 3), x_log, y_log, bandwidth=(800.0,), tolerance=1e-5)


# ---- transport ----


class Copies:
    """Sizes of all arrays that were copied to the host."""

    def __init__(self, monkeypatch):
        self.sizes = []
        plain = cupy.ndarray.get
        monkeypatch.setattr(
            cupy.ndarray, "get", lambda a, *args, **kw: (self.sizes.append(a.size), plain(a, *args, **kw))[1]
        )


@pytest.mark.parametrize(
    "attrs", [dict(reg=0.5), dict(reg=0.3, rho=2.0), dict(reg=0.5, cost="euclidean"), dict(reg=0.5, symmetric=True)]
)
def test_sinkhorn_converges_as_on_the_cpu(attrs, monkeypatch):
    x, y = points(40, 3, 1), points(53, 3, 2) + np.float32(0.5)
    y = x if attrs.get("symmetric") else y
    wanted = ops.sinkhorn(x, y, tol=1e-4, **attrs)
    a, b = cupy.asarray(x), cupy.asarray(y)
    copies = Copies(monkeypatch) if cuda_device.HOST else None
    made = ops.sinkhorn(a, a if y is x else b, tol=1e-4, **attrs)
    assert copies is None or max(copies.sizes) <= 8
    assert all(isinstance(one, cupy.ndarray) for one in made)
    for i in (0, 1, 2, 3):
        np.testing.assert_allclose(made[i].get(), wanted[i], rtol=1e-3, atol=2e-3)
    assert made[6].get() == 1 and abs(int(made[5].get()) - int(wanted[5])) <= 2


def test_sinkhorn_refuses_weights_that_are_on_the_device():
    x, good = cupy.asarray(points(30, 3, 1)), np.full(30, 1 / 30)
    for bad in (-good, np.full(30, np.nan), good * 0, good * 2):
        with pytest.raises(ValueError, match="sinkhorn"):
            ops.sinkhorn(x, x, cupy.asarray(good), cupy.asarray(bad), reg=1.0)


# ---- the public functions ----


def both(function, *arrays, **options):
    """The function on the device and on the CPU; results of the former as NumPy arrays."""
    made, wanted = function(*map(on_device, arrays), **options), function(*arrays, **options)
    made, wanted = (r if isinstance(r, tuple) else (r,) for r in (made, wanted))
    for a, b in zip(made, wanted, strict=True):
        assert isinstance(a, cupy.ndarray) and a.dtype == np.asarray(b).dtype and a.shape == np.shape(b)
        np.testing.assert_allclose(a.get(), b, rtol=2e-5, atol=2e-5)


def test_public_functions_stay_on_the_device():
    x, y, v, u = points(21, 4, 1), points(30, 4, 2), points(30, 2, 3), points(21, 1, 4)[:, 0] ** 2
    for kernel in ("rbf", "cosine", "polynomial"):
        both(pairwise.kernel_sum, x, y, kernel=kernel)
    both(lambda x, u: pairwise.kernel_sum(x, x_weights=u), x, u)
    both(pairwise.kernel_matvec, x, y, v, bandwidth=(1.0, 2.0))
    both(pairwise.kernel_matvec, x, y, v[:, 0], kernel="cosine")
    both(pairwise.kernel_row_sums, x, y)
    both(pairwise.logsumexp, x, y, v[:, 0], scale=0.3)
    both(pairwise.softmax_matmul, x, y, v, scale=0.3)
    both(pairwise.kde_logpdf, x, y, bandwidth=0.7)
    both(lambda x, y, h, w: pairwise.kde_logpdf(x, y, h, weights=w), x, y, np.abs(v[:, 0]) + 0.5, np.abs(v[:, 1]))
    both(pairwise.logsumexp, points(42, 4, 1).reshape(2, 21, 4), y)


def test_public_functions_take_other_dtypes_and_out():
    x = cupy.asarray(np.arange(12).reshape(4, 3))
    out = cupy.zeros((4,), np.float64)
    assert pairwise.logsumexp(x, x, out=out) is out
    np.testing.assert_allclose(out.get(), pairwise.logsumexp(x.get(), x.get()), atol=1e-14)
    with pytest.raises(TypeError, match="out must be an array on the GPU"):
        pairwise.logsumexp(x, x, out=np.zeros(4))
    with pytest.raises(TypeError, match="NumPy array on the host"):
        pairwise.logsumexp(x, x.get())
    with pytest.raises(ValueError, match="first: row 2"):
        pairwise.logsumexp(cupy.asarray(np.where(np.arange(4)[:, None] == 2, np.nan, 1.0) * np.ones((4, 3))), x)


def test_bandwidths_may_be_on_the_device_and_torch_on_the_host_is_refused():
    """Seen to fail: with bandwidths taken for numbers, with a tensor on the host sent round in circles."""
    x = points(8, 3, 1)
    both(lambda x, h: pairwise.kernel_sum(x, bandwidth=h), x, np.array([1.0, 2.0]))
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="kernel_sum: y must be on a GPU, where other arrays are, got Tensor"):
        pairwise.kernel_sum(cupy.asarray(x), torch.from_numpy(x))


@pytest.mark.parametrize("options", [dict(), dict(debias=True), dict(debias=True, unbalanced=2.0)])
def test_public_sinkhorn(options):
    x, y = points(25, 2, 1), points(31, 2, 2) + np.float32(1)
    w = np.random.default_rng(3).dirichlet(np.ones(25))
    made = pairwise.sinkhorn(cupy.asarray(x), cupy.asarray(y), cupy.asarray(w), reg=0.5, tol=1e-5, **options)
    wanted = pairwise.sinkhorn(x, y, w, reg=0.5, tol=1e-5, **options)
    for name in ("value", "value_linear", "potential_x", "potential_y"):
        a = getattr(made, name)
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_allclose(a.get(), getattr(wanted, name), rtol=1e-4, atol=1e-4)
    assert bool(made.converged)
