"""The CUDA runtime as far as memory needs it, by its CuPy names. All calls have happened when they return."""

from __future__ import annotations

import ctypes
from typing import Any

from . import memory

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
streamDefault, streamNonBlocking = 0, 1
streamLegacy, streamPerThread = 1, 2
is_hip = False

_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    2: "cudaErrorMemoryAllocation: out of memory",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
}
_TOTAL = 80 << 30


class CUDARuntimeError(RuntimeError):
    """An error of the runtime, by its status."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(_ERRORS.get(status, f"cudaErrorUnknown: unknown error {status}"))


def getDeviceCount() -> int:
    return 1


def getDevice() -> int:
    return 0


def setDevice(device: int) -> None:
    if device != 0:
        raise CUDARuntimeError(101)


def getDeviceProperties(device: int) -> dict[str, Any]:
    setDevice(device)
    return {
        "name": b"host",
        "totalGlobalMem": _TOTAL,
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 4,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
        "l2CacheSize": 50 << 20,
    }


def driverGetVersion() -> int:
    return 13000


def runtimeGetVersion() -> int:
    return 13000


def memGetInfo() -> tuple[int, int]:
    """Free and all bytes of the device."""
    return _TOTAL - memory._default_pool.total_bytes(), _TOTAL


def deviceSynchronize() -> None:
    pass


def streamSynchronize(stream: int) -> None:
    pass


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    if kind not in range(5):
        raise CUDARuntimeError(21)
    if kind == memcpyDefault:
        to, of = memory._on_device(dst), memory._on_device(src)
        kind = (memcpyDeviceToDevice if of else memcpyHostToDevice) if to else (2 * of)
    if kind == memcpyHostToDevice:
        memory.host_transfers["to_device"] += 1
    elif kind == memcpyDeviceToHost:
        memory.host_transfers["to_host"] += 1
    ctypes.memmove(dst, src, size)


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    memcpy(dst, src, size, kind)


def memset(ptr: int, value: int, size: int) -> None:
    ctypes.memset(ptr, value, size)


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    memset(ptr, value, size)
