"""Convolutions through cuDNN's graph API, with a stand-in for the library that takes sizes and strides at their word.

It reads and writes memory by the strides it was given, as cuDNN does, so that a wrong layout gives wrong numbers. Seen
to fail: with the filter not turned, with top and left of the padding exchanged.
"""

from __future__ import annotations

from types import SimpleNamespace

import cuda_device
import numpy as np
import pytest

from generant import ops
from generant.ops import _cudnn, _device

cupy = cuda_device.device()
pytestmark = pytest.mark.skipif(
    not cuda_device.HOST, reason="the stand-in reads device memory, which the simulation has on the host"
)


class Tensor:
    def __init__(self, dim=None, stride=None):
        self.dim, self.stride = dim, stride

    def set_output(self, on):
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def set_data_type(self, dtype):
        return self

    def of(self, buffer):
        """The memory of a device array, seen through this tensor's sizes and strides."""
        import ctypes

        flat = np.ctypeslib.as_array(ctypes.cast(buffer.data.ptr, ctypes.POINTER(ctypes.c_float)), (buffer.size,))
        assert sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True)) < buffer.size
        return np.lib.stride_tricks.as_strided(flat, self.dim, [4 * s for s in self.stride])


class Graph:
    """cudnn.pygraph: one convolution, computed by the op's definition."""

    runs = 0

    def __init__(self, **options):
        self.excluded = []

    def tensor(self, name, dim, stride, data_type):
        return Tensor(dim, stride)

    def _node(self, op, first, second, about):
        self.op, self.about, self.made = op, about, Tensor()
        self.first, self.second = first, second
        return self.made

    def conv_fprop(self, image, weight, **about):
        return self._node("conv2d", image, weight, about)

    def conv_dgrad(self, loss, filter, **about):
        return self._node("conv2d_dx", loss, filter, about)

    def conv_wgrad(self, image, loss, **about):
        return self._node("conv2d_dw", image, loss, about)

    def deselect_numeric_notes(self, notes):
        self.excluded += notes

    def check_support(self):
        assert "TENSOR_CORE" in self.excluded and "NONDETERMINISTIC" in self.excluded
        if self.first.dim[1] == 7:
            raise RuntimeError("no engine for 7 channels")

    validate = build_operation_graph = build_plans = lambda self: None

    def create_execution_plans(self, heuristics):
        pass

    def get_workspace_size(self):
        return 128

    def execute(self, buffers, workspace, handle):
        Graph.runs += 1
        (top, left), (bottom, right) = self.about["pre_padding"], self.about["post_padding"]
        attrs = dict(
            stride=tuple(self.about["stride"]),
            dilation=tuple(self.about["dilation"]),
            padding=(top, bottom, left, right),
        )
        a, b = (t.of(buffers[t]) for t in (self.first, self.second))
        y = self.made.of(buffers[self.made])
        images, filters = (0, 2, 3, 1), (2, 3, 1, 0)
        if self.op == "conv2d":
            y[...] = ops.conv2d.definition(
                a.transpose(images), b.transpose(filters), groups=a.shape[1] // b.shape[1], **attrs
            ).transpose(0, 3, 1, 2)
        elif self.op == "conv2d_dx":
            groups = y.shape[1] // b.shape[1]
            y[...] = ops.conv2d_dx.definition(
                a.transpose(images), b.transpose(filters), groups=groups, size=y.shape[2:], **attrs
            ).transpose(0, 3, 1, 2)
        else:
            groups = a.shape[1] // y.shape[1]
            y[...] = ops.conv2d_dw.definition(
                a.transpose(images), b.transpose(images), groups=groups, kernel=y.shape[2:], **attrs
            ).transpose(3, 2, 0, 1)


NOTES = SimpleNamespace(
    TENSOR_CORE="TENSOR_CORE", DOWN_CONVERT_INPUTS="DOWN_CONVERT_INPUTS", NONDETERMINISTIC="NONDETERMINISTIC"
)
LIBRARY = SimpleNamespace(
    pygraph=Graph,
    create_handle=object,
    set_stream=lambda handle, stream: None,
    data_type=SimpleNamespace(FLOAT="FLOAT"),
    heur_mode=SimpleNamespace(A="A", FALLBACK="FALLBACK"),
    numerical_note=NOTES,
)


@pytest.fixture
def cudnn(monkeypatch):
    monkeypatch.setattr(_cudnn, "library", lambda: LIBRARY)
    monkeypatch.setattr(_device.cuda_module(), "simulated", False)
    _cudnn._graph.cache_clear()
    _cudnn._handle.cache_clear()
    _cudnn.refused.clear()
    Graph.runs = 0
    yield
    _cudnn._graph.cache_clear()
    _cudnn._handle.cache_clear()


@pytest.mark.parametrize(
    "attrs",
    [
        dict(),
        dict(padding=1),
        dict(stride=(2, 1), padding=(1, 0, 2, 1)),
        dict(dilation=2, padding=(2, 1)),
        dict(groups=2, padding=1),
    ],
    ids=str,
)
def test_all_three_have_the_numbers_of_the_definition(cudnn, rng, attrs):
    groups = attrs.get("groups", 1)
    x = rng.standard_normal((2, 7, 6, 4)).astype(np.float32)
    w = rng.standard_normal((3, 2, 4 // groups, 6)).astype(np.float32)
    y = ops.conv2d(x, w, **attrs)
    g = rng.standard_normal(y.shape).astype(np.float32)
    dx, dw = ops.conv2d_dx(g, w, size=(7, 6), **attrs), ops.conv2d_dw(x, g, kernel=(3, 2), **attrs)
    xd, wd, gd = map(cupy.asarray, (x, w, g))
    for ours, wanted in (
        (ops.conv2d(xd, wd, **attrs), y),
        (ops.conv2d_dx(gd, wd, size=(7, 6), **attrs), dx),
        (ops.conv2d_dw(xd, gd, kernel=(3, 2), **attrs), dw),
    ):
        np.testing.assert_allclose(ours.get(), wanted, rtol=1e-5, atol=1e-5)
    assert Graph.runs == 3
    np.testing.assert_array_equal(wd.get(), w)


def test_what_it_refuses_goes_to_our_own_kernel_and_is_not_asked_again(cudnn, rng):
    x, w = rng.standard_normal((1, 5, 5, 7)).astype(np.float32), rng.standard_normal((3, 3, 7, 4)).astype(np.float32)
    with pytest.warns(RuntimeWarning, match="conv2d: cuDNN does not serve .*no engine for 7 channels"):
        first = ops.conv2d(cupy.asarray(x), cupy.asarray(w))
    second = ops.conv2d(cupy.asarray(x), cupy.asarray(w))
    np.testing.assert_allclose(first.get(), ops.conv2d(x, w), rtol=1e-4, atol=1e-4)
    assert first.get().tobytes() == second.get().tobytes() and Graph.runs == 0


def test_other_precisions_and_algorithms_are_ours(cudnn):
    for attrs, dtype, wanted in (
        ({}, np.float32, True),
        ({}, np.float64, False),
        ({"algorithm": "gemm"}, np.float32, False),
        ({"precision": "bf16"}, np.float32, False),
    ):
        assert _cudnn.serves("conv2d", {**ops.conv2d.defaults, **attrs}, np.dtype(dtype)) is wanted
    assert not _cudnn.serves("matmul", {}, np.dtype(np.float32))
