"""What an optimiser owns: arrays by name, changed in place only, beside one flat buffer of parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..ops import _device

__all__ = ["Stateful", "arrays", "bounded", "flat"]


def flat(owner: str, params: Any) -> Any:
    """params, refused unless it is a flat array, on the host or a GPU, that can be changed in place."""
    if not _device.is_array(params):
        raise TypeError(f"{owner}: params must be a flat array, got {type(params).__name__}")
    whole = params.flags.carray if isinstance(params, np.ndarray) else params.flags.c_contiguous
    if params.ndim != 1 or params.dtype not in (np.float32, np.float64) or not whole:
        raise ValueError(
            f"{owner}: params must be 1-d, contiguous, writeable and float32 or float64, "
            f"got shape {params.shape}, {params.dtype}"
        )
    return params


def bounded(owner: str, **values: float) -> None:
    """Refuse a beta or a momentum outside [0, 1), and anything else outside [0, inf)."""
    for name, value in values.items():
        top = 1.0 if name in ("beta1", "beta2", "momentum") else math.inf
        if not 0 <= value < top:
            raise ValueError(f"{owner}: {name} must lie in [0, {top:g}), got {value}")


def arrays(owner: Any, at: dict[str, Any] | None) -> dict[str, Any]:
    """What a step of owner works on: `at`, or if None its own state and parameters."""
    return {"params": owner.params, **owner.state} if at is None else at


class Stateful:
    """Arrays by name, all of them changed in place only."""

    state: dict[str, np.ndarray]

    def load(self, state: dict[str, Any]) -> None:
        """Copy saved arrays into this object's own. KeyError or ValueError if they are not the ones of `state`."""
        if set(state) != set(self.state):
            raise KeyError(f"{type(self).__name__}: state has {sorted(state)}, wanted {sorted(self.state)}")
        new = {name: np.asarray(_device.from_device(value)) for name, value in state.items()}
        for name, value in self.state.items():
            if new[name].shape != value.shape or new[name].dtype != value.dtype:
                raise ValueError(
                    f"{type(self).__name__}: {name} has shape {new[name].shape} and dtype {new[name].dtype}, "
                    f"wanted {value.shape} and {value.dtype}"
                )
        for name, value in self.state.items():
            _device.put(value, new[name])
