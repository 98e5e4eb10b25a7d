"""cupy.cuda over host memory: memory, streams, events, the runtime, one device."""

from __future__ import annotations

from . import device, memory, runtime, stream
from .device import Device, get_device_id
from .memory import BaseMemory, Memory, MemoryPointer, MemoryPool, UnownedMemory, alloc
from .stream import Event, ExternalStream, Stream, get_current_stream, get_elapsed_time

__all__ = [
    "BaseMemory",
    "Device",
    "Event",
    "ExternalStream",
    "Memory",
    "MemoryPointer",
    "MemoryPool",
    "Stream",
    "UnownedMemory",
    "alloc",
    "device",
    "get_current_stream",
    "get_device_id",
    "get_elapsed_time",
    "is_available",
    "memory",
    "runtime",
    "stream",
]


def is_available() -> bool:
    return True
