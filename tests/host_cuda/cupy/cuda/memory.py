"""Device memory that is host memory: each allocation stands alone, aligned and between guards that show overruns.

One idea: a buffer of one's own, 512-byte aligned, with 64 pattern bytes on either side, so that a kernel that writes
past an array damages nothing but the pattern, and `host_check` names the array. The pool only counts: it never
fragments, which real ones do. host_check, host_transfers and what starts with an underscore are not CuPy's.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

ALIGNMENT = 512
GUARD = 64
PATTERN = np.frombuffer(bytes(0xA0 + i % 16 for i in range(GUARD)), np.uint8)

host_transfers = {"to_host": 0, "to_device": 0}
_live: weakref.WeakSet[Memory] = weakref.WeakSet()
_broken: list[str] = []


class OutOfMemoryError(MemoryError):
    """An allocation that did not fit, with CuPy's wording."""

    def __init__(self, size: int, total: int, limit: int = 0):
        limited = f", limit set to: {limit:,} bytes" if limit else ""
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes{limited}).")


class BaseMemory:
    """A stretch of device memory: ptr, size in bytes, device_id."""

    ptr = 0
    size = 0
    device_id = 0

    @property
    def device(self) -> Any:
        from .device import Device

        return Device(self.device_id)

    def __int__(self) -> int:
        return self.ptr


class Memory(BaseMemory):
    """An allocation of size bytes between two guards; not initialised. For 0 there is nothing, guards included."""

    def __init__(self, size: int, pool: MemoryPool | None = None):
        self.size = size
        self._label = f"{size} bytes"
        self._pool = pool
        if not size:
            return
        self._raw = np.empty(size + ALIGNMENT + 2 * GUARD, np.uint8)
        self._start = GUARD + -(self._raw.ctypes.data + GUARD) % ALIGNMENT
        self.ptr = self._raw.ctypes.data + self._start
        for guard in self._guards():
            guard[:] = PATTERN
        _live.add(self)

    def _guards(self) -> tuple[np.ndarray, np.ndarray]:
        end = self._start + self.size
        return self._raw[self._start - GUARD : self._start], self._raw[end : end + GUARD]

    def _damage(self) -> str:
        """What was overwritten, in words; empty if nothing was."""
        where = [w for w, guard in zip(("before", "after"), self._guards(), strict=True) if (guard != PATTERN).any()]
        return f"{self._label}: the guard {' and '.join(where)} it was overwritten" if where else ""

    def __del__(self) -> None:
        if self.ptr:
            if self._pool is not None:
                self._pool._used -= _rounded(self.size)
            if damage := self._damage():
                _broken.append(f"{damage} (freed since)")


class UnownedMemory(BaseMemory):
    """Memory that something else owns; owner is kept alive."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1):
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, max(device_id, 0)


class MemoryPointer:
    """An address inside a memory: mem, ptr, device_id."""

    def __init__(self, mem: BaseMemory, offset: int):
        self.mem = mem
        self.ptr = mem.ptr + offset if mem.ptr else 0
        self.device_id = mem.device_id

    @property
    def device(self) -> Any:
        return self.mem.device

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __repr__(self) -> str:
        return f"<MemoryPointer {self.ptr:#x} device={self.device_id} mem={self.mem!r}>"


class MemoryPool:
    """Counts bytes as CuPy's pool does: what is freed stays in total_bytes until free_all_blocks."""

    def __init__(self, allocator: Any = None):
        self._used = self._total = self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        rounded = _rounded(size)
        used = self._used + rounded
        if used > self._total:
            if self._limit and used > self._limit:
                raise OutOfMemoryError(rounded, self._total, self._limit)
            self._total = used
        memory = Memory(size, self)
        self._used = used
        return MemoryPointer(memory, 0)

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._total - self._used

    def total_bytes(self) -> int:
        return self._total

    def n_free_blocks(self) -> int:
        return int(self._total > self._used)

    def free_all_blocks(self, stream: Any = None) -> None:
        self._total = self._used

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if size is not None and fraction is not None:
            raise ValueError("size and fraction cannot be specified at one time")
        if fraction is not None:
            from .runtime import memGetInfo

            if not 0 <= fraction <= 1:
                raise ValueError(f"memory limit fraction out of range: {fraction}")
            size = int(fraction * memGetInfo()[1])
        if size is not None and size < 0:
            raise ValueError(f"memory limit size out of range: {size}")
        self._limit = size or 0


_default_pool = MemoryPool()


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def alloc(size: int) -> MemoryPointer:
    """size bytes from the default pool, not initialised."""
    return _default_pool.malloc(size)


def _view(pointer: MemoryPointer, shape: tuple[int, ...], dtype: np.dtype, strides: Any, order: str) -> np.ndarray:
    """The host's array over device memory; it keeps an allocation's bytes, but no unowned memory, alive."""
    order, memory = ("F" if order == "F" else "C"), pointer.mem
    if not pointer.ptr:
        return np.empty(shape, dtype, order=order)
    offset = pointer.ptr - memory.ptr
    if isinstance(memory, Memory):
        buffer = memory._raw[memory._start : memory._start + memory.size]
    else:
        buffer = np.frombuffer((ctypes.c_char * memory.size).from_address(memory.ptr), np.uint8)
    return np.ndarray(shape, dtype, buffer, offset, strides, order)


def _on_device(ptr: int) -> bool:
    return any(memory.ptr <= ptr < memory.ptr + memory.size for memory in list(_live))


def host_check() -> None:
    """AssertionError if a kernel wrote outside an array, live or freed since the last call; says which array."""
    damages = _broken + [damage for memory in list(_live) if (damage := memory._damage())]
    _broken.clear()
    if damages:
        raise AssertionError("written out of bounds: " + "; ".join(damages))
