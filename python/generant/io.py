"""Files: safetensors for arrays, JSON for everything else, never pickle.

What is written appears whole or not at all: the bytes go to a temporary file beside the target, are forced to disk and
renamed over it. What is read is checked before it is believed: a file that is missing, cut off, foreign or not of the
same save gives one error that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "FormatError", "load_arrays", "load_json", "load_model", "plain", "save_arrays", "save_json", "save_model", "write",
]  # fmt: skip

ARRAYS, CONFIG = "model.safetensors", "config.json"
FORMAT, VERSION = "generant", 1


class FormatError(ValueError):
    """A file is not what it should be."""


def write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file so that a crash leaves either the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None


def save_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray], kind: str = "arrays") -> str:
    """Write named arrays as safetensors, marked with what kind of thing they are; returns the SHA-256 of the file."""
    from safetensors.numpy import save

    dense = {name: np.asarray(a, order="C") for name, a in arrays.items()}  # ascontiguousarray has no scalars
    data = save(dense, {FORMAT: kind})  # one entry: safetensors writes several in an order that changes from run to run
    write(path, data)
    return hashlib.sha256(data).hexdigest()


def _parse_arrays(path: Path, data: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FormatError(f"{path} is not a readable safetensors file ({len(data)} bytes): {error}") from None


def load_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name. FormatError if it is cut off or something else."""
    path = Path(path)
    return _parse_arrays(path, _read(path))


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as JSON. ValueError on NaN, which JSON does not have."""
    write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def load_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file. FormatError if it is not one."""
    path = Path(path)
    try:
        return json.loads(_read(path).decode())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{path} is not a JSON file: {error}") from None


def plain(where: str, name: str, value: Any) -> Any:
    """value as JSON holds it, NumPy's arrays and numbers as Python's; TypeError for what a file cannot hold."""
    value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
    try:
        json.dumps(value)
    except TypeError:
        raise TypeError(f"{where}: {name} = {value!r} cannot be written to a file; give it by name") from None
    return value


def save_model(folder: str | os.PathLike, kind: str, arrays: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Write a model as folder/model.safetensors and folder/config.json; the latter names the digest of the former."""
    folder = Path(folder)
    digest = save_arrays(folder / ARRAYS, arrays, kind)
    save_json(folder / CONFIG, {"format": FORMAT, "version": VERSION, "model": kind, "sha256": digest, **config})


def load_model(folder: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the config of a model of that kind. FormatError if the files are not such a model."""
    folder = Path(folder)
    config = load_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise FormatError(f"{folder / CONFIG} was not written by generant")
    if config.get("version") != VERSION:
        raise FormatError(f"{folder / CONFIG} has format version {config.get('version')}, this release reads {VERSION}")
    if config.get("model") != kind:
        raise FormatError(f"{folder} holds a {config.get('model')} model, wanted {kind}")
    data = _read(folder / ARRAYS)
    arrays = _parse_arrays(folder / ARRAYS, data)
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise FormatError(f"{folder / ARRAYS} is not the file {CONFIG} was saved with: it was changed or replaced")
    return arrays, config
