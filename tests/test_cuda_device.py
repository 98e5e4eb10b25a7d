"""Device arrays and ops: what is refused and how it says so, memory that runs out, arrays of other libraries.

Seen to fail: with the check for host arrays taken out of as_dense, with MemoryError left to CuPy, with the check of the
compute capability taken out, with NumPy scalars cast to whatever is wanted, with np.ascontiguousarray on arrays without
dimensions, with kernels launched on the current GPU wherever the arrays are.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cuda_device
import numpy as np
import pytest

import generant
from generant import ops, recording
from generant.ops import _device

cupy = cuda_device.device()
simulated = pytest.mark.skipif(not cuda_device.HOST, reason="needs the simulation, which lets the driver say anything")


@pytest.fixture
def x():
    return cupy.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))


def test_results_live_where_inputs_live(x):
    y = ops.add(x, x)
    assert isinstance(y, cupy.ndarray) and y.get().tolist() == [[0, 2, 4], [6, 8, 10]]
    assert ops.add(x, 1.5).get().tolist() == [[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]]
    assert ops.add(x.T, cupy.ascontiguousarray(x.T)).get().tolist() == (2 * x.get().T).tolist()  # strided: copied


def test_small_arrays_of_fixed_size_may_come_from_the_host(x):
    key = np.array([1, 2], np.uint64)
    alpha = cupy.asarray(np.ones(2, np.float32))
    noisy = ops.q_sample(x, alpha, alpha, key)
    assert noisy.get().tobytes() == ops.q_sample(x.get(), alpha.get(), alpha.get(), key).tobytes()


def test_numbers_beside_device_arrays_are_those_of_the_host(x):
    there, here = cupy.asarray(np.float32(2)), np.array(2, np.float32)
    for number in (3, 0.5, np.float64(0.5), np.float32(0.5), np.array(0.5, np.float32)):
        for a, b, on_host in ((there, number, here), (number, there, here)):
            found = ops.sub(a, b)
            wanted = ops.sub(on_host if a is there else number, on_host if b is there else number)
            assert found.shape == () and found.dtype == wanted.dtype and found.get() == wanted
    for number in (1, 1.0, np.int64(1), np.array(1)):
        assert ops.gather(x, number).get().tolist() == [3, 4, 5]


@simulated
def test_a_number_is_not_copied_to_the_device(x):
    """Seen to fail: with numbers that become arrays of the host first."""
    before = dict(cupy.host_transfers)
    for number in (2, 0.5, np.float64(0.5), np.float32(0.5)):
        ops.mul(x, number)
    assert dict(cupy.host_transfers) == before


@simulated
@pytest.mark.parametrize("recorded", [False, True])
def test_kernels_run_on_the_gpu_of_the_arrays(x, monkeypatch, recorded):
    used = []

    class Device:
        def __init__(self, number):
            self.id = number

        def __enter__(self):
            used.append(self.id)

        def __exit__(self, *_):
            used.append("out")

    call = recording.record(lambda state, a: ops.add(a, state), x, check=0) if recorded else lambda a: ops.add(a, x)
    monkeypatch.setattr(x.data.mem, "device_id", 1)
    monkeypatch.setattr(cupy.cuda, "Device", Device)
    for _ in range(3):
        used.clear()
        assert call(x).get().tolist() == (2 * x.get()).tolist()
        assert used[0] == 1 and used[-1] == "out"
    monkeypatch.setattr(cupy.cuda, "get_device_id", lambda: 1)
    used.clear()
    ops.add(x, x)
    assert not used


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: ops.add(x, x.get()),
            TypeError,
            "add: b is a NumPy array on the host, but other arrays are on a GPU",
        ),
        (lambda x: ops.matmul(x.get(), x.T), TypeError, "matmul: x is a NumPy array on the host"),
        (lambda x: ops.add(x, [1, 2, 3]), TypeError, "add: b must be an array, got builtins.list"),
        (lambda x: ops.add(x, x.astype(np.float64)), TypeError, "add: b is float64 but a is float32"),
        (lambda x: ops.matmul(x, x), ValueError, "matmul: d is 3 but w has d = 2"),
        (lambda x: ops.add(x.astype(np.float16), x), TypeError, "add: a must be float32 or float64, got float16"),
        (lambda x: ops.assign_(x.T, x.T), ValueError, "assign_: dst is changed in place and must be contiguous"),
        (lambda x: ops.assign_(x.get(), x), TypeError, "assign_: dst is a NumPy array on the host"),
        (
            lambda x: ops.gather(x, cupy.asarray(np.array([0, 2]))),
            ValueError,
            r"gather: index\[1\] is 2, wanted 0 <= index < 2",
        ),
        (lambda x: ops.gather(x, 0.5), ValueError, "gather: index must be a number of dtype int64, got 0.5"),
        (lambda x: ops.gather(x, np.float32(0.5)), TypeError, "gather: index must be int64, got float32"),
        (lambda x: ops.gather(x, 1 << 70), ValueError, "gather: index must be a number of dtype int64, got"),
        (lambda x: ops.add(x, np.complex64(1j)), TypeError, "add: b must be float32 or float64, got complex64"),
        (lambda x: ops.add(x, np.bool_(True)), TypeError, "add: b must be float32 or float64, got bool"),
    ],
)
def test_bad_input_is_refused_by_name(x, call, error, message):
    before = x.get()
    with pytest.raises(error, match=message):
        call(x)
    np.testing.assert_array_equal(x.get(), before)


def test_memory_that_runs_out_says_how_much_was_wanted_and_leaves_the_inputs(x):
    pool = cupy.get_default_memory_pool()
    before = x.get()
    pool.set_limit(size=pool.used_bytes() + (8 << 20))
    try:
        with pytest.raises(
            MemoryError, match=r"expand: no memory on the GPU for a result of shape \(3000, 3000\), float32"
        ):
            ops.expand(cupy.zeros((1, 1), np.float32), shape=(3000, 3000))
    finally:
        pool.set_limit(size=0)
    np.testing.assert_array_equal(ops.add(x, x).get(), 2 * before)


class Foreign:
    """An array of another library: memory, and the stream on which it was written."""

    def __init__(self, owner, stream):
        self.owner, self.stream, self.dtype = owner, stream, owner.dtype

    @property
    def __cuda_array_interface__(self):
        return {**self.owner.__cuda_array_interface__, "stream": self.stream}


def test_arrays_of_other_libraries_come_in_by_the_array_interface(x):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        y = x * 2
    assert ops.add(Foreign(y, stream.ptr or 1), x).get().tolist() == (3 * x.get()).tolist()


def forget():
    _device.devices.cache_clear()
    _device._new_enough.cache_clear()
    _device.cupy_checked.clear()
    ops.add.prepared_on_device.clear()


@simulated
def test_what_is_missing_is_named(x, monkeypatch):
    module = _device.cuda_module()
    forget()
    try:
        none = {"devices": [], "driver": 0, "reason": "no NVIDIA driver was found"}
        monkeypatch.setattr(module, "devices", lambda: none)
        with pytest.raises(RuntimeError, match="add: no GPU can be used: no NVIDIA driver was found"):
            ops.add(x, x)
        assert "no GPU: no NVIDIA driver was found" in generant.show_config()["CUDA"]
        forget()
        old = {"name": "GeForce GTX 1080", "capability": (6, 1), "memory": 8 << 30, "multiprocessors": 20}
        monkeypatch.setattr(module, "devices", lambda: {"devices": [old], "driver": 12040, "reason": ""})
        with pytest.raises(
            RuntimeError, match=r"GPU 0 \(GeForce GTX 1080\) has compute capability 6.1, and the kernels need 7.5"
        ):
            ops.add(x, x)
        assert "GeForce GTX 1080 (sm_61, 8 GB)" in generant.show_config()["CUDA"]
    finally:
        monkeypatch.undo()
        forget()
    forget()
    monkeypatch.setattr(_device, "cuda_module", lambda: None)
    monkeypatch.setattr(_device, "cuda_error", ["No module named 'generant._cuda'"])
    with pytest.raises(RuntimeError, match=r"add: this build of generant has no CUDA kernels .*GENERANT_CUDA=ON"):
        ops.add(x, x)


class Tensor:
    """As much of a torch CUDA tensor as an op looks at."""

    def __init__(self, array, kind="cuda"):
        self.array, self.dtype, self.shape = array, f"torch.{array.dtype}", array.shape
        self.device = SimpleNamespace(type=kind, index=0, __str__=lambda: kind)

    def detach(self):
        return self

    resolve_conj = resolve_neg = detach

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


@simulated
def test_an_op_on_torch_tensors_runs_on_torchs_stream_and_returns_tensors(x, monkeypatch):
    stream = cupy.cuda.Stream(non_blocking=True)
    current = SimpleNamespace(cuda_stream=stream.ptr, __cuda_stream__=lambda: (0, stream.ptr))
    torch = SimpleNamespace(
        Tensor=Tensor, from_dlpack=Tensor, cuda=SimpleNamespace(current_stream=lambda device: current)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(cupy, "from_dlpack", lambda tensor: tensor.array)
    monkeypatch.setattr(cupy.cuda, "ExternalStream", lambda ptr: stream, raising=False)
    monkeypatch.setattr(cupy.cuda.Stream, "from_external", lambda given: stream)
    module, seen = _device.cuda_module(), []
    launch = module.launch

    def watched(*args):
        seen.append(args[4])
        return launch(*args)

    monkeypatch.setattr(module, "launch", watched)
    y = ops.add(Tensor(x), Tensor(x))
    assert isinstance(y, Tensor) and y.array.get().tolist() == (2 * x.get()).tolist()
    assert isinstance(ops.add(Tensor(x), 1.0), Tensor)
    assert seen == [stream.ptr] * 2 and stream.ptr != cupy.cuda.get_current_stream().ptr
    with pytest.raises(TypeError, match=r"add: b is a torch tensor on .*; move it by \.cuda"):
        ops.add(Tensor(x), Tensor(x, "cpu"))


def test_torch_tensors_on_a_gpu_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        a = torch.randn(1000, 1000, device="cuda")
        b = ops.add(a @ a, a)
        assert isinstance(b, torch.Tensor) and b.is_cuda
        torch.testing.assert_close(b, a @ a + a)
    with pytest.raises(TypeError, match="add: b is a torch tensor on cpu, but other arrays are on a GPU"):
        ops.add(a, a.cpu())
