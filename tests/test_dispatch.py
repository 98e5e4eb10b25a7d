"""What comes in and goes out: foreign arrays, torch tensors by DLPack, backends, strict mode, and bad input by name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import generant
from generant import ops
from generant.ops import _dispatch

pytestmark = pytest.mark.once

_spec = importlib.util.spec_from_file_location("op_cases", Path(__file__).with_name("test_ops.py"))
assert _spec is not None and _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def python(program, **environment):
    """Run a program in a new interpreter, GENERANT_* unset: exit code, output, errors."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GENERANT_")}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", program]
    done = subprocess.run(command, env={**env, **environment}, capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), done.stderr


# ---- torch ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def one_case_of_every_op():
    """The largest size with the first attributes that it goes with."""
    every = [case.values for case in cases.CASES]
    last = {row.name: (row, dims, attrs) for row, dims, attrs, optional in every if optional and attrs is row.cases[0]}
    return [pytest.param(*case, id=name) for name, case in last.items()]


@pytest.mark.parametrize(("row", "dims", "attrs"), one_case_of_every_op())
def test_every_op_takes_torch_tensors_and_returns_them(torch, row, dims, attrs):
    attrs = cases.call_attrs(row, attrs, dims, "float32")
    arrays = cases.make_arrays(row, dims, "float32", attrs)
    mine, theirs = cases.copies(arrays), [None if a is None else torch.from_numpy(np.array(a)) for a in arrays]
    with np.errstate(all="ignore"):
        wanted, got = row.all(*mine, **attrs), row.all(*theirs, **attrs)
    assert len(wanted) == len(got)
    for w, g in zip(wanted, got, strict=True):
        if w is None:
            assert g is None
        else:
            assert isinstance(g, torch.Tensor)
            np.testing.assert_array_equal(g.numpy(), w)
    for i in row.effects:  # the tensor itself was changed, not a copy
        np.testing.assert_array_equal(theirs[i].numpy(), mine[i])


def test_tensors_enter_and_leave_without_a_copy(torch):
    x = torch.ones(100, 100)
    assert np.shares_memory(_dispatch.from_torch("op", "x", x), x.numpy())
    a = ops.square(ones(100, 100))
    assert np.shares_memory(_dispatch.to_torch(a).numpy(), a)


def test_tensors_and_arrays_mix_and_numbers_take_their_dtype(torch):
    x = torch.full((3, 4), 2.0)
    assert isinstance(ops.matmul(x, ones(4, 5)), torch.Tensor)
    assert ops.add(x, 1.5).dtype == torch.float32
    assert ops.add(x.double(), 1).dtype == torch.float64
    np.testing.assert_array_equal(ops.matmul(x.T, torch.ones(3, 2)).numpy(), 6)  # strided: copied once
    parameter = torch.nn.Parameter(x)
    assert not ops.square(parameter).requires_grad
    np.testing.assert_array_equal(ops.square(parameter).numpy(), 4)


def test_the_result_outlives_its_array(torch):
    y = ops.square(torch.full((200, 300), 3.0))
    generant.trim()
    for _ in range(3):
        ops.square(torch.zeros(200, 300))
    np.testing.assert_array_equal(y.numpy(), 9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch: torch.ones(4, 4, dtype=torch.int32), "x must be float32 or float64, got int32"),
        (lambda torch: torch.ones(4, 4, dtype=torch.float16), "x must be float32 or float64, got float16"),
        (lambda torch: torch.ones(4, 4, dtype=torch.bfloat16), "x is a torch tensor of torch.bfloat16"),
        (lambda torch: torch.ones(4, 4, dtype=torch.complex64), "x must be float32 or float64, got complex64"),
        (lambda torch: torch.ones(4, 4).to_sparse(), "x is a torch tensor with layout torch.sparse_coo"),
        (lambda torch: torch.ones(4, 4, device="meta"), "x is a torch tensor on meta, wanted cpu"),
    ],
    ids=["int32", "float16", "bfloat16", "complex", "sparse", "device"],
)
def test_tensors_that_cannot_enter_are_named(torch, make, message):
    with pytest.raises(TypeError, match=f"matmul: {message}"):
        ops.matmul(make(torch), torch.ones(4, 4))


def test_torch_is_not_imported():
    code, out, err = python(
        "import sys, numpy as np, generant\n"
        "from generant import ops, grad\n"
        "grad(lambda x: ops.sum(ops.square(x)))(np.ones(3))\n"
        "print([m for m in ('torch', 'cupy', 'numba', 'scipy', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert (code, out) == (0, "[]"), err


# ---- backends and strict mode ---------------------------------------------------------------------------------------

USE = "import numpy as np, generant; generant.ops.square(np.ones(3)); print(generant.show_config()['backend'])"
NO_NATIVE = "import sys; sys.modules['generant._native'] = None; "
NO_NUMBA = "sys.modules['numba'] = None; "


@pytest.mark.parametrize("backend", ["native", "numba", "definition"])
def test_the_environment_chooses_the_backend(backend):
    if backend == "native" and _dispatch.native_module() is None:
        pytest.skip("the compiled module is not installed")
    if backend == "numba":
        pytest.importorskip("numba")
    code, out, err = python(USE, GENERANT_BACKEND=backend, GENERANT_STRICT="1")
    assert (code, out) == (0, backend), err


def test_an_unknown_backend_is_refused():
    code, _, err = python(USE, GENERANT_BACKEND="cuda12")
    assert code and "GENERANT_BACKEND is 'cuda12', wanted one of native, numba, definition" in err


def test_an_unknown_instruction_set_is_refused():
    if _dispatch.native_module() is None:
        pytest.skip("the compiled module is not installed")
    code, _, err = python(USE, GENERANT_ISA="sse9")
    assert code and "GENERANT_ISA is 'sse9', wanted one of base, avx2, avx512, avx512bf16" in err


def test_without_the_compiled_module_numba_serves_and_strict_mode_says_no():
    pytest.importorskip("numba")
    code, out, err = python(NO_NATIVE + USE)
    assert (code, out) == (0, "numba"), err
    code, _, err = python(NO_NATIVE + USE, GENERANT_STRICT="1")
    assert code and "GENERANT_STRICT=1 and the compiled module cannot be imported" in err
    code, _, err = python(NO_NATIVE + USE, GENERANT_BACKEND="native")
    assert code and "GENERANT_BACKEND=native, but the compiled module cannot be imported" in err


def test_without_both_the_definitions_serve():
    code, out, err = python(NO_NATIVE + NO_NUMBA + USE)
    assert (code, out) == (0, "definition"), err
    code, _, err = python(NO_NATIVE + NO_NUMBA + USE, GENERANT_BACKEND="numba")
    assert code and "numba is not installed: pip install 'generant[numba]'" in err


DROP_KERNEL = """
import numpy as np, generant
from generant.ops import _dispatch
real = _dispatch.native_module()
class Without:
    def __getattr__(self, name): return getattr(real, name)
    def kernels(self): return {k: v for k, v in real.kernels().items() if not k.startswith('square.')}
_dispatch.native_module = lambda: Without()
"""


def test_an_op_without_a_kernel_warns_and_strict_mode_raises(native):
    code, _, err = python(DROP_KERNEL + "generant.ops.square(np.ones(3))")
    assert code and "RuntimeWarning: square: the native backend has no kernel for it" in err
    code, _, err = python(DROP_KERNEL + "generant.ops.square(np.ones(3))", GENERANT_STRICT="1")
    assert code and "RuntimeError: square: the native backend has no kernel for it" in err
    code, _, err = python(DROP_KERNEL + "generant.ops.relu(np.ones(3))", GENERANT_STRICT="1")
    assert code == 0, err


def test_show_config_says_what_runs():
    config = generant.show_config()
    assert config["generant"] == generant.__version__
    assert config["backend"] == _dispatch.backend()
    assert all(word in repr(config) for word in ("native kernels", "ISA", "threads", "CUDA", "numba"))
    code, out, err = python(NO_NATIVE + "import generant; print(generant.show_config())")
    assert code == 0 and "not available" in out, err


# ---- arrays that are not plain --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a[::-1][::-1],
        lambda a: np.ma.masked_array(a),
        lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
        lambda a: (a.setflags(write=False), a)[1],
    ],
    ids=["Fortran", "byte order", "strided", "reversed twice", "subclass", "unaligned", "read-only"],
)
def test_any_layout_of_memory_gives_the_same_result(rng, change):
    x, w = rng.standard_normal((7, 5)), rng.standard_normal((5, 3))
    wanted = ops.matmul(x, w)
    got = ops.matmul(change(x.copy()), change(w.copy()))
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, wanted)


def test_arrays_may_be_named():
    x, w = ones(2, 3), ones(3, 4)
    np.testing.assert_array_equal(ops.matmul(x, w=w), ops.matmul(x, w))
    np.testing.assert_array_equal(ops.matmul(w=w, x=x), ops.matmul(x, w))


def test_attributes_may_be_numpy_scalars_and_lists():
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.testing.assert_array_equal(ops.affine(x, scale=np.float64(2), shift=np.int64(1)), 2 * x + 1)
    np.testing.assert_array_equal(ops.sum(x, axis=[0, 1]), 15)
    np.testing.assert_array_equal(ops.sum(x, axis=np.int64(1)), [3, 12])
    key = np.zeros(2, np.uint64)
    for dtype in ("float64", np.float64, np.dtype("f8")):
        assert ops.normal(key, shape=[2, 3], dtype=dtype).dtype == np.float64


def test_empty_arrays_give_empty_results_where_that_makes_sense():
    assert ops.matmul(ones(0, 3), ones(3, 2)).shape == (0, 2)
    np.testing.assert_array_equal(ops.matmul(ones(4, 0), ones(0, 2)), np.zeros((4, 2)))
    assert ops.silu(ones(3, 0)).shape == (3, 0)
    assert ops.sum(ones(0)) == 0
    assert ops.sum(ones(0, 3), axis=0).tolist() == [0, 0, 0]
    assert ops.gather(ones(5, 2), np.zeros(0, np.int64)).shape == (0, 2)
    assert ops.normal(np.zeros(2, np.uint64), shape=(0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="max: "):
        ops.max(ones(0))
    with pytest.raises(ValueError, match="knn: "):
        ops.knn(ones(3, 2), ones(0, 2), k=1)


# ---- bad input: the op, the argument, what was got, what was wanted -------------------------------------------------

INDEX = np.zeros(3, np.int64)
KEY = np.zeros(2, np.uint64)
X, W, B = ones(4, 3), ones(3, 2), ones(2)
D = r"matmul: d is 3 but w has d = 4 \(x: \.\.\. d = \(4, 3\), w: d o = \(4, 2\)\)"
ACTIVATION = r"linear_act: activation must be one of relu, .*, got 'swish'"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.matmul(X, ones(4, 2)), ValueError, D),
        (lambda: ops.matmul(X, ones(3)), ValueError, r"matmul: w must have 2 dimensions \(d o\), got shape \(3,\)"),
        (lambda: ops.matmul(np.ones(()), np.ones((1, 1))), ValueError, r"matmul: x must have at least 1 dimensions"),
        (lambda: ops.linear(X, W, ones(3)), ValueError, r"linear: o is 2 but b has o = 3"),
        (lambda: ops.matmul(X, np.ones((3, 2))), TypeError, r"matmul: w is float64 but x is float32; convert"),
        (lambda: ops.matmul(X.astype(np.int32), W), TypeError, r"matmul: x must be float.* or float.*, got int32"),
        (lambda: ops.matmul(X.astype(np.float16), W), TypeError, r"matmul: x must be .*, got float16"),
        (lambda: ops.matmul(X.astype(bool), W), TypeError, r"matmul: x must be .*, got bool"),
        (lambda: ops.matmul(X.astype(complex), W), TypeError, r"matmul: x must be .*, got complex128"),
        (lambda: ops.matmul(X.astype(object), W), TypeError, r"matmul: x must be .*, got object"),
        (lambda: ops.matmul(np.array([["a"]]), W), TypeError, r"matmul: x must be .*, got <U1"),
        (lambda: ops.matmul([[1.0]], W), TypeError, r"matmul: x must be an array, got list; call"),
        (lambda: ops.matmul(None, W), TypeError, r"matmul: x must be an array \(\.\.\. d\), got None"),
        (lambda: ops.matmul(ones(3, 3)), TypeError, r"matmul: missing a required argument: 'w'"),
        (lambda: ops.matmul(ones(3, 3), ones(3, 3), ones(3, 3)), TypeError, r"matmul: "),
        (lambda: ops.matmul(ones(1, 1, 1, 1, 1, 1, 3), W), ValueError, r"matmul: .* more than 6 dimensions"),
        (lambda: ops.silu(ones(3), beta=1.0), TypeError, r"silu: got an unexpected keyword argument 'beta'"),
        (lambda: ops.linear_act(X, W, B, activation="swish"), ValueError, ACTIVATION),
        (lambda: ops.leaky_relu(ones(3), slope="a"), TypeError, r"leaky_relu: slope must be a number, got 'a'"),
        (lambda: ops.leaky_relu(ones(3), slope=ones(3)), TypeError, r"leaky_relu: slope must be a number"),
        (lambda: ops.sum(ones(3), axis=1), ValueError, r"sum: axis"),
        (lambda: ops.sum(ones(3), keepdims=1), TypeError, r"sum: keepdims must be True or False, got 1"),
        (lambda: ops.add(ones(3), ones(4)), ValueError, r"add: .*3.*4"),
        (lambda: ops.expand(ones(3), shape=(4,)), ValueError, r"expand: "),
        (lambda: ops.gather(ones(5, 2), ones(3)), TypeError, r"gather: index must be int64, got float32"),
        (lambda: ops.gather(ones(5, 2), INDEX.astype(np.int32)), TypeError, r"gather: index must be int64, got int32"),
        (lambda: ops.gather(ones(5, 2), INDEX + 5), ValueError, r"gather: index"),
        (lambda: ops.gather(ones(5, 2), INDEX - 1), ValueError, r"gather: index"),
        (lambda: ops.scatter_add(ones(3, 2), INDEX + 4, m=4), ValueError, r"scatter_add: index"),
        (lambda: ops.scatter_add(ones(3, 2), INDEX, m=2.0), TypeError, r"scatter_add: m must be an integer, got 2.0"),
        (lambda: ops.scatter_add(ones(3, 2), INDEX, m=-1), ValueError, r"scatter_add: "),
        (lambda: ops.normal(KEY, shape=(-1, 2)), ValueError, r"normal: a size is negative .* \(-1, 2\)"),
        (lambda: ops.normal(KEY, shape=(2,), dtype="int32"), TypeError, r"normal: dtype must be .*, got 'int32'"),
        (lambda: ops.normal(KEY[:1], shape=(2,)), ValueError, r"normal: key must have shape \(2\), got \(1,\)"),
        (lambda: ops.normal(INDEX[:2], shape=(2,)), TypeError, r"normal: key must be uint64, got int64"),
        (lambda: ops.knn(ones(4, 2), k=4), ValueError, r"knn: k "),
        (lambda: ops.knn(ones(4, 2), k=0), ValueError, r"knn: k "),
        (lambda: ops.knn(ones(4, 2), k=True), TypeError, r"knn: k must be an integer, got True"),
        (lambda: ops.knn(ones(4, 2), ones(4, 3), k=1), ValueError, r"knn: d is 2 but y has d = 3"),
        (lambda: ops.ema_(ones(4)[::2], ones(2), np.ones(1)), ValueError, r"ema_: e is changed in place and"),
        (lambda: ops.ema_(ones(4).astype(">f4"), ones(4), np.ones(1)), ValueError, r"ema_: e is changed in place"),
        (lambda: ops.ema_(2.0, ones(4), np.ones(1)), TypeError, r"ema_: e must be an array, got float"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):  # and again, now that the op has chosen its implementation
        call()


def test_an_index_out_of_range_is_refused_in_every_layout(torch_or_none):
    table, bad = ones(5, 2), np.array([0, 9, 1], np.int64)
    for t, i in ((table, bad), (np.asfortranarray(table), bad), (table, np.repeat(bad, 2)[::2])):
        with pytest.raises(ValueError, match="gather: index"):
            ops.gather(t, i)
    if torch_or_none is not None:
        with pytest.raises(ValueError, match="gather: index"):
            ops.gather(torch_or_none.from_numpy(table), torch_or_none.from_numpy(bad))


@pytest.fixture
def torch_or_none():
    return sys.modules.get("torch")


def test_read_only_arrays_are_not_changed_in_place():
    e = ones(4)
    e.setflags(write=False)
    with pytest.raises(ValueError, match="ema_: e is changed in place and must be contiguous, aligned and writeable"):
        ops.ema_(e, 2 * ones(4), np.array([0.5]))
    np.testing.assert_array_equal(e, 1)
