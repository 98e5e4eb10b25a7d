"""The way from Python to a kernel: launch, the Runner's memo, the caching pool, and what a call may cost.

Costs are counted in calls, never timed: a test that times is a test that fails on a busy machine.
Seen to fail: with the memo never hit, with attributes of other types taken for equal, with a pool that keeps what it
hands out.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter

import numpy as np
import pytest

from generant import ops, trim, value_and_grad
from generant.autograd import TABLE
from generant.ops import _dispatch
from generant.ops._table import Row

ROWS = [row for row in TABLE.values() if isinstance(row, Row)]
F32, F64 = 0, 1  # Dtype of csrc/kernel.h


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


# ---- every op has its kernels, every kernel its op ------------------------------------------------------------------


def variants(row):
    """The kernels that serve one value of an attribute."""
    return {row.kernel_name({**row.defaults, name: value}) for name, value in row.variants.items()}


def test_every_native_kernel_belongs_to_an_op_and_every_op_has_both(native):
    found = set(native.kernels()) - {"noop"}
    short = {"float32": "f32", "float64": "f64"}
    wanted = {f"{row.name}.{short[dtype]}" for row in ROWS if row.has_kernel for dtype in row.dtypes}
    wanted |= {f"{name}.f32" for row in ROWS for name in variants(row)}
    assert found - wanted == set(), "kernels without an op (or of an op declared native=False)"
    assert wanted - found == set(), "ops without a kernel"


def test_every_op_has_a_numba_twin_and_every_twin_an_op():
    pytest.importorskip("numba")
    found, wanted = set(_dispatch.numba_kernels()), {row.name for row in ROWS if row.has_kernel}
    wanted |= {name for row in ROWS for name in variants(row)}
    found -= {f"{name}{suffix}" for name in wanted for suffix in ("_bwd", "_bwd2")} - wanted  # made for every row
    assert found - wanted == set(), "twins without an op (or of an op declared native=False)"
    assert wanted - found == set(), "ops without a twin"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_backend_in_use_serves_every_op(row, monkeypatch):
    monkeypatch.setenv("GENERANT_STRICT", "1")
    assert row.implementation() == (_dispatch.backend() if row.has_kernel else "definition")


def test_every_op_has_a_definition_and_a_docstring():
    for row in ROWS:
        assert callable(row.definition)
        assert row.__doc__ and row.__doc__.strip(), row.name


# ---- launch ---------------------------------------------------------------------------------------------------------


def test_launch_runs_a_kernel_on_arrays_that_are_ready(native):
    x, y = np.full((3, 5), 2, np.float32), np.empty((3, 5), np.float32)
    assert native.launch(native.kernels()["square.f32"], (x,), (y,), ()) is None
    np.testing.assert_array_equal(y, 4)
    assert native.launch(native.kernels()["noop"], (), (), ()) is None


def test_launch_refuses_what_is_not_a_call(native):
    noop, x = native.kernels()["noop"], ones(4, 4)
    with pytest.raises(TypeError, match="launch: wanted"):
        native.launch(noop, (), ())
    with pytest.raises(TypeError, match="launch: wanted"):
        native.launch(noop, [x], (), ())
    with pytest.raises(TypeError, match="integer"):
        native.launch("noop", (), (), ())
    for number in (-1, len(native.kernels())):
        with pytest.raises(ValueError, match=f"no kernel has number {number}"):
            native.launch(number, (), (), ())
    with pytest.raises(ValueError, match="at most 16 arrays"):
        native.launch(noop, (x,) * 17, (), ())
    with pytest.raises(ValueError, match="at most 32 attributes"):
        native.launch(noop, (), (), (0.0,) * 33)
    with pytest.raises(TypeError, match="real number"):
        native.launch(noop, (), (), ("a",))


@pytest.mark.parametrize(
    "bad",
    [ones(4, 4)[:, ::2], ones(4, 4).T, ones(4).astype(">f4"), ones(4).astype(np.int32), ones(*(1,) * 7), [1.0], 1.0],
    ids=["strided", "transposed", "byte order", "int32", "7-d", "list", "number"],
)
def test_launch_refuses_arrays_that_are_not_ready(native, bad):
    if isinstance(bad, np.ndarray) and bad.shape == (4, 4):
        bad = ones(4, 3).T  # a transposed square of ones would be told apart by its flags only
    with pytest.raises(TypeError, match="launch: input 0 is not a dense NumPy array"):
        native.launch(native.kernels()["noop"], (bad,), (), ())
    with pytest.raises(TypeError, match="launch: output 1 is not a dense NumPy array"):
        native.launch(native.kernels()["noop"], (), (None, bad), ())


# ---- the Runner -----------------------------------------------------------------------------------------------------


class Counting:
    """A Runner of `affine.f32` that counts how often it asks Python."""

    def __init__(self, native):
        self.prepared, self.slow_calls = 0, 0
        kernel = native.kernels()["affine.f32"]

        def prepare(xs, attrs):
            self.prepared += 1
            return kernel, ((F32, xs[0].shape),), (attrs.get("scale", 1.0), attrs.get("shift", 0.0))

        def slow(*xs, **attrs):
            self.slow_calls += 1
            return "slow"

        self.run = native.Runner(prepare, slow, None, False, 1, 1, 0)


def test_a_repeated_call_is_prepared_once(native):
    counting = Counting(native)
    for i in range(20):
        x = np.full((3, 4), i, np.float32)
        np.testing.assert_array_equal(counting.run(x, scale=2.0, shift=1.0), 2 * x + 1)
    assert (counting.prepared, counting.slow_calls) == (1, 0)


def test_the_memo_tells_shapes_dtypes_and_attributes_apart(native):
    counting = Counting(native)
    x = ones(2, 6)
    calls = [(x, {}), (x.reshape(3, 4), {}), (x.reshape(12), {})]
    calls += [(x, dict(scale=2.0)), (x, dict(scale=3.0)), (x, dict(scale=2))]
    calls += [(x, dict(shift=2.0)), (x, dict(scale=1.0)), (x, dict(scale=True)), (x, dict(scale=2.0, shift=2.0))]
    for _ in range(3):
        for a, attrs in calls:
            y = counting.run(a, **attrs)
            assert y.shape == a.shape
            np.testing.assert_array_equal(y, attrs.get("scale", 1) * a + attrs.get("shift", 0))
    assert counting.prepared == len(calls)


def test_more_combinations_than_the_memo_holds(native):
    counting = Counting(native)
    for _ in range(2):
        for n in range(1, 200):
            assert counting.run(ones(n), shift=float(n)).tolist() == [n + 1.0] * n


@pytest.mark.parametrize(
    ("args", "attrs"),
    [
        ((ones(4, 4)[:, ::2],), {}),
        ((ones(4).astype(np.int32),), {}),
        ((2.0,), {}),
        ((np.ma.masked_array(ones(3)),), {}),
        ((ones(4),), {"scale": np.float64(2)}),
        ((ones(4),), {"scale": [2.0]}),
        ((ones(4),), {"scale": np.ones(3)}),
    ],
    ids=["strided", "int32", "number", "subclass", "NumPy scalar", "list", "array attribute"],
)
def test_what_is_not_plain_takes_the_slow_way(native, args, attrs):
    counting = Counting(native)
    assert counting.run(*args, **attrs) == "slow"
    assert (counting.prepared, counting.slow_calls) == (0, 1)


def test_a_mutable_attribute_is_not_remembered():
    x, axis = np.arange(6, dtype=np.float64).reshape(2, 3), [0]
    np.testing.assert_array_equal(ops.sum(x, axis=axis), [3, 5, 7])
    axis[0] = 1
    np.testing.assert_array_equal(ops.sum(x, axis=axis), [3, 12])


def test_errors_in_prepare_come_through_and_are_not_remembered(native):
    failures = []

    def prepare(xs, attrs):
        failures.append(1)
        raise KeyError("no such thing")

    run = native.Runner(prepare, None, None, False, 1, 1, 0)
    for _ in range(2):
        with pytest.raises(KeyError, match="no such thing"):
            run(ones(3))
    assert len(failures) == 2
    with pytest.raises((RuntimeError, IndexError)):
        native.Runner(lambda xs, attrs: (10**6, (), ()), None, None, False, 0, 1, 0)(ones(3))
    with pytest.raises((RuntimeError, TypeError)):
        native.Runner(lambda xs, attrs: "nonsense", None, None, False, 0, 1, 0)(ones(3))


def test_an_op_is_planned_once_per_combination(native, monkeypatch):
    planned = Counter()
    plan = Row.plan

    def counted(self, *args, **kwargs):
        planned[self.name] += 1
        return plan(self, *args, **kwargs)

    ops.matmul(ones(2, 2), ones(2, 2))  # the implementation is chosen now
    monkeypatch.setattr(Row, "plan", counted)
    x, w = ones(7, 11), ones(11, 3)
    for _ in range(10):
        ops.matmul(x, w)
    assert planned["matmul"] == 1
    ops.matmul(x.astype(np.float64), w.astype(np.float64))
    assert planned["matmul"] == 2


def test_unwanted_outputs_are_not_allocated(native):
    x, gain = ones(50, 40), ones(40)
    y, mean, rstd = ops.layer_norm.all(x, gain, gain)
    assert mean.shape == rstd.shape == (50,)
    assert isinstance(ops.layer_norm(x, gain, gain), np.ndarray)
    dx, dgain, dbias = ops.layer_norm_bwd.all(y, x, gain, gain, mean, rstd, need=(1,))
    assert dx is None and dbias is None and dgain.shape == (40,)


def test_nothing_is_leaked_by_calls(native):
    x, w, b = ones(30, 20), ones(20, 10), ones(10)
    before = [sys.getrefcount(a) for a in (x, w, b)]
    for _ in range(100):
        ops.linear_act(x, w, b)
        with pytest.raises(ValueError, match="linear_act: d is 20"):
            ops.linear_act(x, x, b)
    gc.collect()
    assert [sys.getrefcount(a) for a in (x, w, b)] == before


# ---- what a call may cost -------------------------------------------------------------------------------------------


def calls_of(function):
    """How many Python and C functions run inside function()."""
    counted = Counter()
    sys.setprofile(lambda frame, event, arg: counted.update([event]))
    try:
        function()
    finally:
        sys.setprofile(None)
    return counted["call"] - 1, counted["c_call"] - 1  # not function itself, nor the setprofile that ends it


def test_a_small_eager_op_costs_one_python_call(native):
    x, w = ones(8, 8), ones(8, 8)
    for op, args, attrs in ((ops.matmul, (x, w), {}), (ops.add, (x, w), {}), (ops.affine, (x,), {"scale": 2.0})):
        op(*args, **attrs)
        python, c = calls_of(lambda op=op, args=args, attrs=attrs: op(*args, **attrs))
        assert python <= 1, f"{op.name}: {python} Python calls"  # Op.__call__, and from there straight into C
        assert c <= 1, f"{op.name}: {c} calls of C functions"


CALLS_PER_LAYER, CALLS_BESIDE = 60, 250  # measured: 50 and 193, on Python 3.11


def test_the_cost_of_a_gradient_grows_by_a_fixed_number_of_calls_per_layer(native):
    x, w, b = ones(4, 8), ones(8, 8), ones(8)

    def chain(layers):
        def loss(params):
            y = x
            for i in range(layers):
                y = ops.tanh(ops.linear(y, params[2 * i], params[2 * i + 1]))
            return ops.sum(y)

        both, params = value_and_grad(loss), [w, b] * layers
        both(params)
        return sum(calls_of(lambda: both(params)))

    ten, twenty = chain(10), chain(20)
    per_layer = (twenty - ten) / 10
    assert per_layer <= CALLS_PER_LAYER, f"a linear and a tanh, forward and backward, make {per_layer} calls"
    assert ten - 10 * per_layer <= CALLS_BESIDE, "what value_and_grad and the sum cost by themselves"


# ---- the caching pool -----------------------------------------------------------------------------------------------


def address(array):
    return array.__array_interface__["data"][0]


def test_a_freed_output_is_used_again(native):
    x = ones(300, 400)
    first = ops.square(x)
    where = address(first)
    del first
    again = ops.square(x)
    assert address(again) == where
    assert address(ops.square(x)) != where, "a block in use was handed out twice"
    view = again[10:20]
    del again
    assert address(ops.square(x)) != where, "a view keeps its block alive"
    del view
    assert address(ops.square(x)) == where


def test_trim_gives_the_memory_back(native):
    del_me = ops.square(ones(500, 500))
    del del_me
    assert native.cached_bytes() >= 10**6
    trim()
    assert native.cached_bytes() == 0


def test_large_outputs_are_aligned(native):
    for n in (1, 300, 1000, 70_000):
        for x in (ones(n), ones(n, dtype=np.float64)):
            assert address(ops.square(x)) % (64 if x.nbytes > 1024 else 8) == 0


def test_empty_makes_arrays_of_every_dtype(native):
    for number, name in enumerate(["float32", "float64", "int64", "uint64", "uint8", "uint32"]):
        for shape in ((), (0, 3), (5,), (40, 50)):
            a = native.empty(shape, number)
            assert (a.shape, a.dtype.name) == (shape, name)
            a[...] = 1
    with pytest.raises(ValueError, match="dtype"):
        native.empty((1,), 6)
    with pytest.raises(ValueError, match="negative"):
        native.empty((-1,), 0)
    with pytest.raises(ValueError, match="6 dimensions"):
        native.empty((1,) * 7, 0)
    with pytest.raises(MemoryError):
        native.empty((1 << 50,), 0)


def test_an_output_that_cannot_be_allocated_is_a_memory_error(native):
    with pytest.raises(MemoryError):
        ops.expand(ones(1), shape=(1 << 25, 1 << 25))
    with pytest.raises((MemoryError, ValueError)):
        ops.expand(ones(1), shape=(1 << 40, 1 << 40))


def test_an_op_without_a_kernel_is_checked_once_per_combination(monkeypatch) -> None:
    """Repeated calls find their plan; another shape, attribute or attribute type is checked anew."""
    op, seen = ops.slice_axis, []
    plan = type(op).plan
    monkeypatch.setattr(type(op), "plan", lambda self, *a, **k: (seen.append(self.name), plan(self, *a, **k))[1])
    monkeypatch.setattr(op, "_plans", {})
    x = np.arange(12.0).reshape(3, 4)
    for _ in range(3):
        np.testing.assert_array_equal(ops.slice_axis(x, start=1, stop=3), x[:, 1:3])
    assert len(seen) == 1
    ops.slice_axis(x, start=0, stop=3)
    ops.slice_axis(x.T.copy(), start=1, stop=3)
    assert len(seen) == 3
    ops.slice_axis(x, start=True, stop=3)
    assert len(seen) == 4
