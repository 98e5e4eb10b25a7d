"""Arrays on the GPU: CuPy in, CuPy out, on CuPy's current stream; torch CUDA tensors by DLPack on torch's.

The only place that knows CuPy, which is never imported here before a device array or the caller asks for it. A kernel
of `_cuda` gets addresses; results and scratch come from CuPy's pool, whose memory is reused in stream order, so that
nothing waits for the GPU. Small arrays of fixed size that no kernel changes (keys, coefficients) may be given on the
host and are copied; everything else must be where the first device array is.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import _cudnn
from ._dispatch import float_type_of, is_torch, scalar
from ._spec import DTYPE_NUMBER

__all__ = [
    "address", "beside", "checked_device", "cuda_error", "cuda_module", "cupy", "fetch", "from_device", "full",
    "gpu_of", "is_array", "is_device", "kernels", "namespace", "numbers", "program", "put", "run", "stream_of",
    "to_device", "view", "zeros_like",
]  # fmt: skip

cupy_checked: list[bool] = []  # that there are CuPy, kernels and a GPU: asked once
cuda_error: list[str] = []  # why the compiled CUDA module could not be imported


@cache
def cuda_module() -> ModuleType | None:
    """The module `_cuda`, or None where this build has none (see `cuda_error`)."""
    try:
        return importlib.import_module("generant._cuda")
    except ImportError as error:
        cuda_error.append(str(error))
        return None


@cache
def kernels() -> dict[str, int]:
    """Kernel numbers by name ("matmul.f32")."""
    return _module("kernels").kernels()


def _module(where: str) -> Any:
    module = cuda_module()
    if module is None:
        raise RuntimeError(
            f"{where}: this build of generant has no CUDA kernels ({cuda_error[0]}); build it with GENERANT_CUDA=ON, "
            "or move the arrays to the host with cupy.asnumpy"
        )
    return module


def cupy(where: str) -> Any:
    """The module CuPy, with an error that says what is missing: the package, the kernels or a GPU."""
    _module(where)
    try:
        import cupy as module
    except ImportError as error:
        raise ImportError(f"{where}: CuPy is needed for arrays on a GPU: pip install 'generant[cuda13]'") from error
    _a_device(where)
    return module


BYTES = np.dtype(np.uint8)
MEMO = 64  # combinations of shapes and attributes remembered per op
OLDEST = (7, 5)  # compute capability that csrc/cuda is compiled for; newer ones run by PTX


@cache
def devices() -> dict[str, Any]:
    """What the driver says: devices (name, capability, memory), driver version, and the reason where there are none."""
    return _module("devices").devices()


def _a_device(where: str) -> None:
    answer = devices()
    if not answer["devices"]:
        raise RuntimeError(f"{where}: no GPU can be used: {answer['reason'] or 'the driver knows none'}")


@cache
def _new_enough(where: str, number: int) -> None:
    """Refuse a GPU that there is no code for."""
    found = devices()["devices"]
    if number < len(found) and found[number]["capability"] < OLDEST:
        name, capability = found[number]["name"], ".".join(map(str, found[number]["capability"]))
        raise RuntimeError(
            f"{where}: GPU {number} ({name}) has compute capability {capability}, and the kernels need "
            f"{'.'.join(map(str, OLDEST))} or newer; move the arrays to the host with cupy.asnumpy"
        )


def is_device(x: Any) -> bool:
    """Whether x lives on a GPU: a CuPy array, a torch CUDA tensor, or anything else with __cuda_array_interface__."""
    kind = type(x)
    if kind is np.ndarray or x is None or kind is float:
        return False
    if is_torch(x):
        return x.device.type == "cuda"
    return hasattr(kind, "__cuda_array_interface__")


@contextlib.contextmanager
def torch_stream(cp: Any, tensor: Any) -> Iterator[None]:
    """CuPy on the stream that torch is using, so that neither waits for the other."""
    torch: Any = sys.modules["torch"]
    current = torch.cuda.current_stream(tensor.device)
    if hasattr(cp.cuda.Stream, "from_external") and hasattr(current, "__cuda_stream__"):
        stream = cp.cuda.Stream.from_external(current)
    else:
        stream = cp.cuda.ExternalStream(current.cuda_stream)
    with cp.cuda.Device(tensor.device.index or 0), stream:
        yield


# ---- arrays ----


def as_dense(cp: Any, op: str, term: Any, x: Any, dtype: np.dtype | None, in_place: bool) -> Any:
    """x as a dense CuPy array: as it is where possible, a copy if strided, a number as an array without dimensions."""
    if x is None:
        return None
    if isinstance(x, (int, float, np.generic)) and not isinstance(x, bool) and not in_place:
        number = scalar(op, term.name, x, dtype)
        x = cp.full((), number[()], number.dtype)  # written there: nothing is copied
    if isinstance(x, np.ndarray):
        fixed = x.ndim == 0 or (term.dtype is not None and all(letter.isdigit() for letter in term.dims))
        if in_place or not fixed:
            raise TypeError(
                f"{op}: {term.name} is a NumPy array on the host, but other arrays are on a GPU; move it with "
                "cupy.asarray, or the others with .get()"
            )
        return cp.asarray(np.asarray(x, order="C"))  # ascontiguousarray gives what has no dimensions one
    if is_torch(x):
        if x.device.type != "cuda":
            raise TypeError(
                f"{op}: {term.name} is a torch tensor on {x.device}, but other arrays are on a GPU; move it by .cuda()"
            )
        x = cp.from_dlpack(x.detach().resolve_conj().resolve_neg())
    elif not isinstance(x, cp.ndarray):
        if not is_device(x):
            raise TypeError(f"{op}: {term.name} must be an array, got {type(x).__module__}.{type(x).__qualname__}")
        x = cp.asarray(x)  # waits for the stream that the interface names
    if x.dtype.kind not in "fiu" or x.dtype == np.float16:
        raise TypeError(f"{op}: {term.name} must be float32 or float64, got {x.dtype}; convert it with .astype first")
    if x.flags.c_contiguous:
        return x
    if in_place:
        raise ValueError(f"{op}: {term.name} is changed in place and must be contiguous")
    return cp.ascontiguousarray(x)


def _same_device(op: str, row: Any, arrays: Sequence[Any]) -> None:
    found = {a.data.device_id: term.name for a, term in zip(arrays, row.spec.inputs, strict=False) if a is not None}
    if len(found) > 1:
        places = " but ".join(f"{name} is on GPU {number}" for number, name in found.items())
        raise ValueError(f"{op}: {places}; move one of them")
    for number in found:
        _new_enough("generant", number)


class Shaped(NamedTuple):
    """Shape and dtype of an array whose values a check may not ask for."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)


# ---- running an op ----


def run(row: Any, every: bool, xs: Sequence[Any], attrs: dict[str, Any]) -> tuple:
    """Every output of an op on device arrays; None for those not wanted. attrs: plain Python values."""
    cp = sys.modules.get("cupy") if cupy_checked else None
    if cp is None:
        cp = cupy(row.name)
        cupy_checked.append(True)
    tensor = next((x for x in xs if is_torch(x)), None)
    if tensor is not None and tensor.device.type != "cuda":
        tensor = next((x for x in xs if is_torch(x) and x.device.type == "cuda"), None)
    if tensor is None:
        first = next((x for x in xs if type(x) is cp.ndarray), None)
        if first is None or first.data.device_id == cp.cuda.get_device_id():
            return _run(cp, row, every, xs, attrs)
        with cp.cuda.Device(first.data.device_id):
            return _run(cp, row, every, xs, attrs)
    torch: Any = sys.modules["torch"]
    with torch_stream(cp, tensor):
        outs = _run(cp, row, every, xs, attrs)
        return tuple(None if y is None else torch.from_dlpack(y) for y in outs)


def by_library(row: Any, arrays: Sequence[Any], attrs: dict[str, Any]) -> bool:
    """Whether another library's kernel is asked first. Of arrays only the first one's dtype is looked at."""
    module: Any = cuda_module()
    return (
        row.name in _cudnn.OPS
        and not module.simulated
        and _cudnn.serves(row.name, {**row.defaults, **attrs}, arrays[0].dtype)
    )


class Prepared(NamedTuple):
    """A checked call of a kernel: what is left to do are the addresses."""

    kernel: int
    outputs: tuple  # (shape, dtype, dtype number), or None where it is not wanted
    values: tuple  # attributes as numbers
    inputs: tuple  # (dtype number, shape), or None
    scratch: int  # bytes


def _run(cp: Any, row: Any, every: bool, xs: Sequence[Any], attrs: dict[str, Any]) -> tuple:
    key = _key(cp, row, every, xs, attrs)
    found = None if key is None else row.prepared_on_device.get(key)
    if found is not None:
        return _launch(cp, row.name, found, xs)
    number = float_type_of(xs)
    arrays = tuple(
        as_dense(cp, row.name, term, x, term.dtype or number, i in row.effects)
        for i, (x, term) in enumerate(zip(xs, row.spec.inputs, strict=False))
    )
    _same_device(row.name, row, arrays)
    plan = row._remembered_plan(arrays, attrs, every)
    if row.check is not None:  # of what came from the host the values are known without waiting
        known = [x if isinstance(x, np.ndarray) else checkable(a) for x, a in zip(xs, arrays, strict=False)]
        row._check_values(*known, **attrs)
    if not row.has_kernel:
        return _definition(cp, row, plan, arrays)
    if by_library(row, arrays, attrs):
        made = _cudnn.run(cp, row.name, arrays, plan.attrs, plan.outputs[0][1])
        if made is not None:
            return (made,)
    arrays += (None,) * (row.n_arrays - len(arrays))
    prepared = _prepared(row, plan, arrays)
    if key is not None:
        if len(row.prepared_on_device) >= MEMO:
            row.prepared_on_device.clear()
        row.prepared_on_device[key] = prepared
    return _launch(cp, row.name, prepared, arrays)


def _key(cp: Any, row: Any, every: bool, xs: Sequence[Any], attrs: dict[str, Any]) -> tuple | None:
    """What a checked call may be remembered under; None for calls that are looked at every time."""
    if row.check is not None or not row.has_kernel:
        return None
    parts: list[Any] = [every]
    where = -1
    for x in xs:
        if x is None:
            parts.append(None)
        elif type(x) is cp.ndarray and x.flags.c_contiguous:
            device = x.data.device_id
            if where not in (-1, device):
                return None
            where = device
            parts.append((x.dtype.char, x.shape))
        else:
            return None
    parts += [where, *[(name, type(value), value) for name, value in attrs.items()]]
    return tuple(parts)


def _prepared(row: Any, plan: Any, arrays: Sequence[Any]) -> Prepared:
    kernel, values = kernel_number(row, plan), tuple(row._encode(plan.attrs))
    outputs = tuple(None if o is None else (o[1], o[0], DTYPE_NUMBER[o[0]]) for o in plan.outputs)
    inputs = tuple(None if a is None else (DTYPE_NUMBER[a.dtype], a.shape) for a in arrays)
    # any address will do: a kernel only asks which arrays are there
    ins = tuple(None if i is None else (64, *i) for i in inputs)
    outs = tuple(None if o is None else (64, o[2], o[0]) for o in outputs)
    module: Any = cuda_module()
    return Prepared(kernel, outputs, values, inputs, module.scratch(kernel, ins, outs, values))


def _launch(cp: Any, op: str, p: Prepared, arrays: Sequence[Any]) -> tuple:
    """Run a kernel on CuPy's current stream; its outputs."""
    outs: tuple[Any, ...] = tuple([None if o is None else empty(cp, op, o[0], o[1]) for o in p.outputs])
    scratch = empty(cp, f"{op} (scratch)", (p.scratch,), BYTES) if p.scratch else None
    ins: list[Any] = [i and (a.data.ptr, *i) for a, i in zip(arrays, p.inputs, strict=False)]
    ins += [None] * (len(p.inputs) - len(ins))
    made = [None if o is None else (y.data.ptr, o[2], o[0]) for y, o in zip(outs, p.outputs, strict=True)]
    module: Any = cuda_module()
    module.launch(
        p.kernel,
        tuple(ins),
        tuple(made),
        p.values,
        cp.cuda.get_current_stream().ptr,
        0 if scratch is None else scratch.data.ptr,
    )
    return outs


def checkable(a: Any) -> Any:
    """What an op's check of values may look at: indices and coefficients; floats and keys stay where they are."""
    if a is None:
        return None
    return a.get() if a.dtype.kind == "i" or (a.dtype == np.float64 and a.size <= 16) else Shaped(a.shape, a.dtype)


def kernel_number(row: Any, plan: Any) -> int:
    """The CUDA kernel of a checked call."""
    name = row.row_name(plan)
    found = kernels().get(name)
    if found is None:
        raise RuntimeError(f"{row.name}: there is no CUDA kernel {name}; move the arrays to the host with cupy.asnumpy")
    return found


def empty(cp: Any, op: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A new array from CuPy's pool."""
    try:
        return cp.empty(shape, dtype)
    except cp.cuda.memory.OutOfMemoryError as error:
        raise MemoryError(f"{op}: no memory on the GPU for a result of shape {shape}, {dtype}: {error}") from None


def program() -> Any:
    """An empty `Program` of the CUDA module: kernels in order, which can be captured as a graph."""
    return _module("record").Program()


def _definition(cp: Any, row: Any, plan: Any, arrays: Sequence[Any]) -> tuple:
    """An op without a kernel: its definition, which is made of ops and of functions that CuPy has too."""
    made = row.definition(*arrays, **plan.attrs)
    made = () if made is None else made if isinstance(made, tuple) else (made,)
    return tuple(
        None if o is None else cp.asarray(y).astype(o[0], copy=False) for y, o in zip(made, plan.outputs, strict=True)
    )


# ---- arrays wherever they are ----


def is_array(x: Any) -> bool:
    """Whether x is a NumPy array or a device array."""
    return isinstance(x, np.ndarray) or is_device(x)


def address(x: Any) -> int:
    """Where the first element of a NumPy or CuPy array is."""
    return x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr


def _innermost(x: Any) -> Any:
    """The plain array that a traced one stands for."""
    while x is not None and not is_array(x) and hasattr(x, "value"):
        x = x.value
    return x


def full(like: Any, shape: tuple[int, ...], value: Any, dtype: Any) -> Any:
    """An array of one value, where `like` lives."""
    there = is_device(_innermost(like))
    return cupy("full").full(shape, value, dtype) if there else np.full(shape, value, dtype)


def to_device(x: Any) -> Any:
    """A CuPy array with the numbers of x."""
    return cupy("to_device").asarray(x)


def dense(x: Any) -> Any:
    """A device array, of CuPy or anybody else, as a contiguous CuPy array."""
    cp = cupy("dense")
    return cp.asarray(cp.from_dlpack(x.detach()) if is_torch(x) else x, order="C")


def view(x: Any) -> Any:
    """A torch CUDA tensor, or each of a tuple or list, as a CuPy array over the same memory; the rest as it is."""
    if isinstance(x, (tuple, list)) and any(map(is_torch, x)):
        return type(x)(map(view, x))
    if not (is_torch(x) and x.device.type == "cuda"):
        return x
    return cupy("view").from_dlpack(x.detach().resolve_conj().resolve_neg())


def from_device(x: Any) -> Any:
    """x on the host: device arrays as NumPy arrays, everything else as it is."""
    if not is_device(x):
        return x
    return x.detach().cpu().numpy() if is_torch(x) else (x if hasattr(x, "get") else to_device(x)).get()


def fetch(arrays: Sequence[Any]) -> list[Any]:
    """Arrays on the host; device arrays that are parts of one buffer of bytes by one copy."""
    base: Any = getattr(arrays[0], "base", None) if len(arrays) > 1 else None
    if not is_device(base) or base.ndim != 1 or base.dtype != BYTES or any(a.base is not base for a in arrays):
        return [from_device(a) for a in arrays]
    host, first = base.get(), base.data.ptr
    return [np.ndarray(a.shape, a.dtype, host, a.data.ptr - first) for a in arrays]


def checked_device(where: str, device: Any, default: str = "cpu") -> str:
    """"cpu" or "cuda", of a `device` argument: default if it is None; an error if it is another, or there is no GPU."""
    device = default if device is None else device
    if not isinstance(device, str) or device not in ("cpu", "cuda"):
        raise ValueError(f"{where}: device must be 'cpu', 'cuda' or None, got {device!r}")
    if device == "cuda":
        cupy(where)
    return device


def namespace(x: Any) -> Any:
    """The module whose functions take x: CuPy for a device array, else NumPy."""
    return cupy("namespace") if is_device(_innermost(x)) else np


@contextlib.contextmanager
def stream_of(*xs: Any) -> Iterator[None]:
    """CuPy on the stream of the first torch CUDA tensor among xs; nothing changes if there is none."""
    tensor = next((x for x in xs if is_torch(x) and x.device.type == "cuda"), None)
    if tensor is None:
        yield
        return
    with torch_stream(cupy("stream_of"), tensor):
        yield


def gpu_of(x: Any) -> Any:
    """A context in which CuPy's current GPU is the one of x; nothing changes if x is not a CuPy array."""
    known = is_device(x) and not is_torch(x)
    return cupy("gpu_of").cuda.Device(x.data.device_id) if known else contextlib.nullcontext()


def numbers(*scalars: Any) -> tuple[float, ...]:
    """Numbers, wherever they are, as Python floats: at most one copy from the GPU."""
    like = next((x for x in scalars if is_device(x)), None)
    if like is None:
        return tuple([float(x) for x in scalars])
    cp = cupy("numbers")
    return tuple(cp.stack([cp.asarray(x, cp.float64).reshape(()) for x in scalars]).get().tolist())


def beside(like: Any, x: Any) -> Any:
    """x where `like` lives: on the GPU, or on the host; None, numbers and traced arrays as they are."""
    like = _innermost(like)
    if is_device(like):
        return to_device(x) if isinstance(x, np.ndarray) else x
    return from_device(x) if isinstance(like, np.ndarray) else x


def put(array: Any, values: Any) -> None:
    """array[...] = values, wherever either is."""
    array[...] = to_device(values) if is_device(array) else from_device(values)


def zeros_like(x: Any, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Any:
    """Zeros where x lives, of its shape and dtype where no others are given."""
    return full(x, tuple(x.shape) if shape is None else shape, 0, x.dtype if dtype is None else dtype)
