"""The stand-in for CuPy that the CUDA backend is tested with where there is no GPU: it must have CuPy's rules.

It is loaded under a name of its own, so that nothing here makes `import cupy` find it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import operator
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.once

NAME = "host_cupy"
ROOT = Path(__file__).parent / "host_cuda" / "cupy"


@pytest.fixture(scope="module")
def cp() -> Iterator[Any]:
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [n for n in sys.modules if n.split(".")[0] == NAME and n not in before]:
        del sys.modules[name]


@pytest.fixture
def host() -> np.ndarray:
    return np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def a(cp: Any, host: np.ndarray) -> Any:
    return cp.asarray(host)


@pytest.fixture
def pool(cp: Any) -> Iterator[Any]:
    gc.collect()
    pool = cp.get_default_memory_pool()
    pool.free_all_blocks()
    yield pool
    pool.set_limit()


def test_conversion_is_explicit(a: Any, cp: Any, host: np.ndarray) -> None:
    for convert in (np.asarray, np.array, lambda x: x.__array__(), lambda x: np.testing.assert_allclose(x, host)):
        with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed\. Please use `\.get"):
            convert(a)
    got = a.get()
    assert type(got) is np.ndarray and np.array_equal(got, host) and cp.asnumpy(host) is host
    got[0] = 99
    assert a[0, 1].item() == 1 and a.tolist() == host.tolist()
    assert float(a[0, 2]) == 2.0 and int(a[1, 0]) == 4 and bool(a[0, 1]) and not a[0, 0]
    with pytest.raises(ValueError, match="can only convert an array of size 1"):
        a.item()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(a)
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)
    assert np.array_equal(pickle.loads(pickle.dumps(a)).get(), host) and repr(a) == repr(host)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lt", "ge", "eq", "ne"])
def test_operators(name: str, a: Any, cp: Any, host: np.ndarray) -> None:
    f = getattr(operator, name)
    for x in (a + 1, 2, 2.0, np.float32(2), np.float64(2)):
        y = x.get() if isinstance(x, cp.ndarray) else x
        for ours, theirs in ((f(a + 1, x), f(host + 1, y)), (f(x, a + 1), f(y, host + 1))):
            assert type(ours) is cp.ndarray and ours.dtype == theirs.dtype and np.array_equal(ours.get(), theirs)
    for mixed in (lambda: f(a, host), lambda: f(host, a)):
        with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
            mixed()


def test_operators_refuse_what_is_no_number(a: Any, cp: Any, host: np.ndarray) -> None:
    for bad in ([1, 2, 3, 4], "s", None):
        with pytest.raises(TypeError):
            a + bad
    with pytest.raises(TypeError, match="Unsupported type"):
        a @ host
    with pytest.raises(TypeError, match="Unsupported type"):
        a += host
    assert not (a == None).any() and (a != None).all()  # noqa: E711
    before = a
    a *= 2
    a -= a[0]
    assert a is before and np.array_equal(a.get(), 2 * host - 2 * host[0])
    assert np.allclose((a @ a.T).get(), a.get() @ a.get().T) and np.array_equal((-a).get(), -a.get())


def test_numpy_functions_stay_on_the_device(a: Any, cp: Any, host: np.ndarray) -> None:
    before = dict(cp.host_transfers)
    results = [np.exp(a), np.concatenate([a, a]), np.sum(a), np.linalg.norm(a), np.where(a > 3, a, 0), cp.log1p(a)]
    assert all(type(r) is cp.ndarray for r in results) and cp.host_transfers == before
    assert results[1].shape == (6, 4) and results[2].shape == ()
    for mixed in (lambda: np.concatenate([a, host]), lambda: np.add(host, a), lambda: cp.exp(host)):
        with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
            mixed()
    out = cp.empty_like(a)
    assert cp.exp(a, out=out) is out and np.add(a, 1, out=out) is out and out[0, 0].item() == 1
    with pytest.raises(AttributeError, match="module 'cupy' has no attribute"):
        cp.no_such_function(a)
    with pytest.raises(TypeError, match="unexpected keyword argument 'where'"):
        cp.sum(a, where=True)
    assert cp.get_array_module(host, a) is cp and cp.get_array_module(host, 1) is np


def test_reductions_and_elements_are_arrays(a: Any, cp: Any, host: np.ndarray) -> None:
    for name in ("sum", "mean", "max", "min", "argmax", "argmin", "all", "any"):
        ours, theirs = getattr(a, name)(), getattr(host, name)()
        assert type(ours) is cp.ndarray and ours.shape == () and ours.dtype == theirs.dtype and ours.item() == theirs
    element = a[0][1]
    assert type(element) is cp.ndarray and element.shape == () and element.base is a
    element[...] = 7
    assert a[0, 1].item() == 7 and [row.shape for row in a] == [(4,)] * 3 and len(a) == 3
    for f in (len, iter):
        with pytest.raises(TypeError):
            f(element)
    assert type(cp.array_equal(a, a)) is cp.ndarray


def test_views(a: Any, cp: Any) -> None:
    views = (a.T, a[1:], a.reshape(-1), a.ravel(), a[::2, 1:], a.view("u1"), a[None], cp.split(a, 3)[1], a.T[1].T)
    for view in (*views, np.transpose(a), cp.broadcast_to(a, (2, 3, 4))):
        assert view.base is a and not view.flags.owndata and cp.shares_memory(view, a) and view.data.mem is a.data.mem
    assert a[1:].data.ptr == a.data.ptr + 16 and a[1, 2].data.ptr == a.data.ptr + 24
    for copy in (a.copy(), a.T.reshape(-1), a[a > 3], a.astype(np.float32), a[[0, 1]], +a):
        assert copy.base is None and copy.flags["OWNDATA"] and not cp.may_share_memory(copy, a)
    assert a.T.flags.f_contiguous and not a.T.flags["C_CONTIGUOUS"] and a.T.strides == (4, 16)
    assert a.squeeze() is a and a[0].T.base is a and a.astype("f4", copy=False) is a and a.real is a
    b = a.view()
    b.shape = 4, 3
    assert b.shape == (4, 3) and a.shape == (3, 4)
    with pytest.raises(ValueError, match=r"cannot reshape array of size 12 into shape \(5,\)"):
        b.shape = (5,)
    for name in ("dtype", "strides", "anything"):
        with pytest.raises(AttributeError):
            setattr(a, name, None)


def test_assignment_takes_no_array_of_the_host(a: Any, cp: Any, host: np.ndarray) -> None:
    a[0], a[1, 1:] = 5, cp.arange(3)
    a[2] = np.float64(1)
    assert a.tolist() == [[5.0] * 4, [4.0, 0.0, 1.0, 2.0], [1.0] * 4]
    for fill in (lambda: a.__setitem__(0, host[0]), lambda: a.__setitem__(..., host), lambda: a.fill(host)):
        with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
            fill()
    with pytest.raises(ValueError, match="cannot be used for copyto"):
        cp.copyto(a, host)
    a.set(host)
    assert np.array_equal(a.get(), host)
    with pytest.raises(TypeError, match="float64 array cannot be set to float32 array"):
        a.set(host.astype(float))


def test_creation(a: Any, cp: Any, host: np.ndarray) -> None:
    assert cp.asarray(a) is a and cp.ascontiguousarray(a) is a and cp.asarray(a, np.float32) is a
    assert cp.array(a) is not a and cp.asarray(a, np.float64).dtype == np.float64
    host[0, 0] = 99
    assert a[0, 0].item() == 0  # a copy
    assert cp.array([a, a]).shape == (2, 3, 4) and cp.asarray(host.T).flags.f_contiguous
    assert cp.ascontiguousarray(a.T).flags.c_contiguous and cp.empty_like(a.T).strides == a.T.strides
    assert cp.isnan(cp.empty(5)).all() and cp.empty(2, np.uint32).tolist() == [0x5A5A5A5A] * 2
    assert cp.zeros_like(host).tolist() == [[0.0] * 4] * 3 and cp.full((2,), 3).tolist() == [3, 3]
    assert cp.linspace(0, 1, 3).tolist() == [0, 0.5, 1] and cp.ones(2, cp.uint8).dtype == cp.uint8
    with pytest.raises(ValueError, match="Unsupported dtype object"):
        cp.asarray(np.array([None]))


def test_interchange(a: Any, cp: Any, host: np.ndarray) -> None:
    interface = a.__cuda_array_interface__
    assert interface["data"] == (a.data.ptr, False) and interface["shape"] == a.shape and interface["version"] == 3
    assert interface["strides"] is None and interface["typestr"] == "<f4" and interface["stream"] == 1
    assert a.T.__cuda_array_interface__["strides"] == (4, 16)
    foreign = type("Foreign", (), {"__cuda_array_interface__": interface})()
    for same in (cp.asarray(foreign), cp.from_dlpack(a), cp.ndarray((3, 4), "f4", a.data)):
        assert same is not a and same.data.ptr == a.data.ptr and same.base is None
    assert np.array_equal(np.from_dlpack(a), host)
    with pytest.raises(TypeError, match="CPU arrays cannot be directly imported to CuPy"):
        cp.from_dlpack(host)
    empty = cp.zeros((0, 3))
    assert empty.data.ptr == 0 and empty.__cuda_array_interface__["data"] == (0, False) and empty.get().shape == (0, 3)


def test_writes_out_of_bounds_are_found(cp: Any) -> None:
    arrays = [cp.zeros(n, np.float32) for n in (1, 3, 1000)]
    assert all(x.data.ptr % 512 == 0 for x in arrays)
    cp.host_check()
    ctypes.memset(arrays[1].data.ptr + arrays[1].nbytes, 0, 1)
    with pytest.raises(AssertionError, match=r"array of shape \(3,\) and dtype float32: the guard after it"):
        cp.host_check()
    ctypes.memset(arrays[2].data.ptr - 4, 0, 4)
    del arrays[1:]
    with pytest.raises(AssertionError, match=r"\(1000,\) and dtype float32: the guard before it .* \(freed since\)"):
        cp.host_check()
    cp.host_check()


def test_transfers_are_counted(a: Any, cp: Any, host: np.ndarray) -> None:
    def count(f: Any) -> tuple[int, int]:
        before = dict(cp.host_transfers)
        f()
        after = cp.host_transfers
        return after["to_host"] - before["to_host"], after["to_device"] - before["to_device"]

    for f in (a.get, lambda: cp.asnumpy(a), lambda: float(a[0, 0]), lambda: bool(a[0, 0]), a[0, 0].item, a.tolist):
        assert count(f) == (1, 0)
    for f in (lambda: cp.asarray(host), lambda: cp.array([1, 2]), lambda: a.set(host), lambda: a[np.array([0, 1])]):
        assert count(f) == (0, 1)
    assert count(lambda: [x.sum() for x in cp.exp(a) * 2]) == (0, 0)


def test_memory_limit(cp: Any, pool: Any) -> None:
    used = pool.used_bytes()
    x = cp.empty(1000, np.uint8)
    assert pool.used_bytes() == used + 1024
    pool.set_limit(size=pool.total_bytes() + 2048)
    y = cp.empty(2048, np.uint8)
    words = f"Out of memory allocating 512 bytes \\(allocated so far: {used + 3072:,} bytes, limit set to: .* bytes\\)"
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match=words):
        cp.empty(1, np.uint8)
    assert issubclass(cp.cuda.memory.OutOfMemoryError, MemoryError)
    del y
    assert pool.free_bytes() == 2048 and cp.empty(1, np.uint8).size + x.size == 1001
    pool.free_all_blocks()
    assert pool.total_bytes() == pool.used_bytes()


def test_streams_device_and_runtime(a: Any, cp: Any, host: np.ndarray) -> None:
    cuda = cp.cuda
    stream, other = cuda.Stream(non_blocking=True), cuda.Stream()
    assert len({stream.ptr, other.ptr, cuda.Stream.null.ptr}) == 3 and cuda.get_current_stream() == cuda.Stream.null
    with stream:
        with other:
            assert cuda.get_current_stream() is other
        assert cuda.get_current_stream() is stream and a.__cuda_array_interface__["stream"] == stream.ptr
    assert cuda.get_current_stream().ptr == 0 and cuda.Stream.from_external(stream).ptr == stream.ptr
    start, end = stream.record(), stream.record(cuda.Event())
    assert cuda.get_elapsed_time(start, end) >= 0
    with cuda.Device() as device:
        assert device == a.device and a.data.device_id == device.id == 0 and device.compute_capability == "90"
    with pytest.raises(cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidDevice: invalid device ordinal"):
        cuda.Device(1).use()
    runtime, b = cuda.runtime, cp.empty_like(a)
    runtime.memcpyAsync(b.data.ptr, a.data.ptr, a.nbytes, runtime.memcpyDeviceToDevice, stream.ptr)
    assert np.array_equal(b.get(), host) and runtime.getDeviceCount() == 1 and cuda.is_available()
    before = dict(cp.host_transfers)
    runtime.memcpy(host.ctypes.data, a.data.ptr, a.nbytes, runtime.memcpyDefault)
    assert cp.host_transfers["to_host"] == before["to_host"] + 1


def public(module: Any) -> set[str]:
    """The names of a module's own functions and classes."""
    own = {n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
    return {n for n in own | set(getattr(module, "__all__", ())) if not n.startswith(("_", "host_"))}


def test_everything_here_exists_in_cupy(cp: Any) -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed, so its names cannot be compared")
    if hasattr(real, "host_check"):
        pytest.skip("cupy is the stand-in here, so its names cannot be compared")
    names = sys.modules[f"{NAME}._names"]
    pairs = [(cp, real), (cp.cuda, real.cuda), (cp.ndarray, real.ndarray), (cp.ufunc, real.ufunc)]
    pairs += [(getattr(cp.cuda, m), getattr(real.cuda, m)) for m in ("memory", "runtime", "stream", "device")]
    for kind in ("Device", "Event", "MemoryPointer", "MemoryPool", "Stream", "Memory"):
        pairs.append((getattr(cp.cuda, kind), getattr(real.cuda, kind)))
    missing = [
        f"{ours.__name__}.{n}"
        for ours, theirs in pairs
        for n in (public(ours) if not isinstance(ours, type) else {n for n in dir(ours) if not n.startswith("_")})
        if not hasattr(theirs, n)
    ]
    missing += [n for n in names.FUNCTIONS if not hasattr(real, n)]
    missing += [f"linalg.{n}" for n in names.LINALG if not hasattr(real.linalg, n)]
    dunder = [n for n in vars(cp.ndarray) if n.startswith("__") and n not in ("__weakref__", "__annotations__")]
    missing += [f"ndarray.{n}" for n in dunder if not hasattr(real.ndarray, n)]
    assert not missing
