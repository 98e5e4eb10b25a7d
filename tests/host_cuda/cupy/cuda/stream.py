"""Streams and events: who is current, per thread, and when something was recorded. Nothing runs later than called."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, ClassVar

_pointers = itertools.count(0x10000, 0x100)
_local = threading.local()


class Event:
    """A moment of a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        self._time: float | None = None

    done = True

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        pass


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two recorded events."""
    if start_event._time is None or end_event._time is None:
        from .runtime import CUDARuntimeError

        raise CUDARuntimeError(1)
    return 1000 * (end_event._time - start_event._time)


class _BaseStream:
    done = True

    def __init__(self, ptr: int):
        self.ptr = ptr
        self.device_id = 0 if ptr else -1

    def use(self) -> Any:
        _local.current = self
        return self

    def __enter__(self) -> Any:
        self.__dict__.setdefault("_outer", []).append(get_current_stream())
        return self.use()

    def __exit__(self, *_: Any) -> None:
        _local.current = self.__dict__["_outer"].pop()

    def synchronize(self) -> None:
        pass

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        pass

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ptr} (device {self.device_id})>"


class Stream(_BaseStream):
    """A stream of its own; Stream.null and Stream.ptds are the default ones."""

    null: ClassVar[Stream]
    ptds: ClassVar[Stream]

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None):
        super().__init__(0 if null else 2 if ptds else next(_pointers))
        self.is_non_blocking = non_blocking
        self.priority = priority or 0

    @classmethod
    def from_external(cls, obj: Any) -> Stream:
        """The stream that obj.__cuda_stream__() names; obj is kept alive."""
        if not hasattr(obj, "__cuda_stream__"):
            raise TypeError(f"{type(obj)} does not implement __cuda_stream__")
        _, ptr = obj.__cuda_stream__()
        stream = cls(null=True)
        stream.ptr, stream.device_id, stream._foreign = int(ptr), 0, obj
        return stream


class ExternalStream(_BaseStream):
    """A stream that something else made, by its address."""

    def __init__(self, ptr: int, device_id: int = -1):
        super().__init__(ptr)
        self.device_id = device_id


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


def get_current_stream(device_id: int = -1) -> Any:
    return getattr(_local, "current", Stream.null)
