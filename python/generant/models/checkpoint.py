"""A training run in one file, written whole or not at all: what `fit(..., resume=path)` goes on from, bit by bit.

The file is safetensors: every array of the learners, the losses of the epoch under way, and the rest as JSON in an
array of bytes. It says which data and parameters it belongs to and is refused for others.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np

from .. import io
from ..ops import _device

__all__ = ["fingerprint", "flatten", "load", "restore", "save"]

META = "meta.json"


def flatten(state: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts of arrays as one, keys joined by slashes."""
    if not isinstance(state, dict):
        return {path: state}
    found: dict[str, Any] = {}
    for name, part in state.items():
        found |= flatten(part, f"{path}/{name}" if path else str(name))
    return found


def fingerprint(*arrays: Any) -> str:
    """A digest of shapes, dtypes and contents; None counts too."""
    digest = hashlib.sha256()
    for a in arrays:
        digest.update(f"{None if a is None else (a.shape, a.dtype.str)}".encode())
        if a is not None:
            digest.update(np.ascontiguousarray(a).view(np.uint8).data if a.size else b"")
    return digest.hexdigest()


def save(path: str | os.PathLike, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write one file, atomically. Arrays on a GPU are copied to the host first."""
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    io.save_arrays(path, {**{name: _device.from_device(a) for name, a in arrays.items()}, META: text}, "checkpoint")


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, meta) of a checkpoint. io.FormatError if the file is none."""
    arrays = io.load_arrays(path)
    if META not in arrays:
        raise io.FormatError(f"{path} is not a checkpoint of generant")
    return arrays, json.loads(arrays.pop(META).tobytes().decode())


def restore(path: str | os.PathLike, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Copy saved arrays into those of the same names, wherever these are. io.FormatError if they are not the same
    set."""
    for name, array in own.items():
        if name not in saved or saved[name].shape != array.shape or saved[name].dtype != array.dtype:
            raise io.FormatError(f"{path} is a checkpoint of another model: {name} is missing or of another size")
    for name, array in own.items():
        _device.put(array, saved[name])
