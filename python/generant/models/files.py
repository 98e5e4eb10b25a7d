"""Any saved model: `load` reads of which class it is. What a class writes and reads is its own affair."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import io

__all__ = ["load"]


def load(path: str | os.PathLike) -> Any:
    """The model in this folder, of whatever class `save` was called on.

    Raises FileNotFoundError, and io.FormatError if the files are not those of a model of generant.models.
    """
    from .. import models

    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"load: {path} is not a folder" if path.exists() else f"load: {path} does not exist")
    if not (path / io.CONFIG).exists():
        raise FileNotFoundError(f"load: {path} holds no model: it has no {io.CONFIG}")
    config = io.load_json(path / io.CONFIG)
    name = config.get("model") if isinstance(config, dict) else None
    kind: Any = getattr(models, name, None) if isinstance(name, str) and name in models.__all__ else None
    if not hasattr(kind, "load"):
        raise io.FormatError(f"{path / io.CONFIG} does not describe a model of generant, but {name!r}")
    return kind.load(path)
