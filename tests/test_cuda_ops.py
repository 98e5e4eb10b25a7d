"""Generated from the op table: every op x size x attributes x dtype on device arrays against the definition.

The bounds are those of test_ops.py. On the host (see cuda_device.py) every case also runs with the order of threads and
blocks reversed and must have the same bits, which finds missing barriers, and the memory beside every array is
checked.
"""

from __future__ import annotations

import os

import cuda_device
import numpy as np
import pytest
import test_ops as cases

from generant.ops import _device

cupy = cuda_device.device()

FAMILIES = os.environ.get("GENERANT_TEST_FAMILIES", "")  # while working: "activation,reduce"
SMALL = os.environ.get("GENERANT_TEST_SMALL", "")  # under a slow tool: float32 and the first two cases of every op
CHOSEN = [
    case for case in cases.CASES_BY_DTYPE
    if not FAMILIES or case.values[0].__module__.split(".")[-1] in FAMILIES.split(",")
]  # fmt: skip
if SMALL:
    CHOSEN = [
        case for i, case in enumerate(CHOSEN)
        if case.values[-1] == "float32" and sum(c.values[0] is case.values[0] for c in CHOSEN[:i]) < 4
    ]  # fmt: skip


def on_device(x):
    return cupy.asarray(x) if isinstance(x, (np.ndarray, np.generic)) else x


def device_outputs(row, xs, attrs):
    """Outputs and arrays changed in place, on the host; every array of the call was on the device."""
    arrays = [on_device(x) for x in xs]
    made = row.all(*arrays, **attrs)
    cuda_device.guards_hold(cupy)
    found = [None if y is None else y for y in (*made, *(arrays[i] for i in row.effects if arrays[i] is not None))]
    for y in found:
        assert y is None or isinstance(y, cupy.ndarray), type(y)
    for i, (a, x) in enumerate(zip(arrays, xs, strict=True)):
        if a is not None and i not in row.effects:
            np.testing.assert_array_equal(a.get(), x)
    return [None if y is None else y.get() for y in found]


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in cases.ROWS if row.has_kernel])
def test_every_op_has_a_cuda_kernel(row):
    if FAMILIES and row.__module__.split(".")[-1] not in FAMILIES.split(","):
        pytest.skip("another family")
    names = [row.name, *(f"{row.name}_{value}" for value in row.variants.values())]
    for name in names:
        for dtype in ("f32",) if row.dtypes == ("float32",) else ("f32", "f64"):
            if name == row.name or dtype == "f32":
                assert f"{name}.{dtype}" in _device.kernels()


@pytest.mark.parametrize("row, dims, attrs, optional, dtype", CHOSEN)
def test_kernel_agrees_with_definition(row, dims, attrs, optional, dtype, monkeypatch):
    monkeypatch.setattr(cases, "outputs", outputs_anywhere(cases.outputs))
    cases.test_kernel_agrees_with_definition(row, dims, attrs, optional, dtype)


def outputs_anywhere(plain):
    """test_ops.outputs, with the op itself run on the device and its definition on the host."""

    def outputs(call, row, arrays, attrs):
        if call != row.all:
            return plain(call, row, arrays, attrs)
        found = device_outputs(row, arrays, attrs)
        if cuda_device.HOST:
            module = _device.cuda_module()
            module.set_reverse(True)
            try:
                again = device_outputs(row, arrays, attrs)
            finally:
                module.set_reverse(False)
            for a, b in zip(found, again, strict=True):
                assert a is None or a.tobytes() == b.tobytes(), "other bits with threads in reverse order"
        return found

    return outputs
