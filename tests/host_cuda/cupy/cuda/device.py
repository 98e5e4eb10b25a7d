"""The one device there is, number 0, which says that it is a Hopper and finishes everything at once."""

from __future__ import annotations

from typing import Any

from . import runtime


class Device:
    """Device 0, also as a context; any other cannot be used."""

    def __init__(self, device: Any = None):
        self.id = 0 if device is None else int(device)

    compute_capability = "90"

    @property
    def attributes(self) -> dict[str, int]:
        properties = runtime.getDeviceProperties(self.id)
        return {
            "ComputeCapabilityMajor": 9,
            "ComputeCapabilityMinor": 0,
            "MaxSharedMemoryPerBlockOptin": properties["sharedMemPerBlockOptin"],
            "MultiProcessorCount": properties["multiProcessorCount"],
            "WarpSize": properties["warpSize"],
        }

    @property
    def mem_info(self) -> tuple[int, int]:
        return runtime.memGetInfo()

    def use(self) -> None:
        runtime.setDevice(self.id)

    def synchronize(self) -> None:
        runtime.deviceSynchronize()

    def __enter__(self) -> Device:
        self.use()
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"


def get_device_id() -> int:
    return runtime.getDevice()
