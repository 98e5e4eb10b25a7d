"""Reading and writing scheduler_config.json.

One idea: what a file says is kept, whether a class reads it or not, so that a config survives being passed from class
to class. Keys that start with an underscore are notes of the writer, except _class_name, and _use_default_values, which
names the keys that were never chosen. Not here: what the keys mean (the families).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ... import io
from .registry import FAMILIES, Family

__all__ = ["FILE", "completed", "family_named", "read", "write"]

FILE = "scheduler_config.json"
LEGACY_CLASSES = {"GaussianDDPMScheduler": "DDPMScheduler"}
LEGACY_KEYS = {"timesteps": "num_train_timesteps"}


def read(source: Any) -> dict[str, Any]:
    """A config as a dict: from a dict, a file, or a folder that holds scheduler_config.json.

    io.FormatError or ValueError where the file is missing or no JSON object.
    """
    if isinstance(source, Mapping):
        return dict(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"Scheduler.from_config: wanted a dict or a path, got {type(source).__name__}")
    path = Path(source)
    path = path / FILE if path.is_dir() else path
    config = io.load_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"Scheduler.from_config: {path} holds a {type(config).__name__}, wanted an object with keys")
    return config


def family_named(name: Any) -> Family:
    """The family of a class name, old names included; ValueError that lists the known ones."""
    family = FAMILIES.get(LEGACY_CLASSES.get(name, name))
    if family is None:
        raise ValueError(
            f"Scheduler.from_config: _class_name is {name!r}, wanted one of {', '.join(sorted(FAMILIES))}"
        )
    return family


def completed(family: Family, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """(config with every key of the family, what it has no use for, keys not chosen), checked.

    Unknown keys are warned about. Keys of other known classes are kept without a warning: a config is often passed from
    class to class, where the keys that were not chosen take the defaults of the new one.
    """
    given = dict(given)
    unchosen = set(given.get("_use_default_values") or ())
    if given.get("_class_name") in LEGACY_CLASSES:
        for old, new in LEGACY_KEYS.items():
            if old in given:
                given.setdefault(new, given.pop(old))
    config, hidden, unknown = dict(family.defaults), {}, []
    known = {key for other in FAMILIES.values() for key in other.defaults}
    for key, value in given.items():
        if key.startswith("_") or key in unchosen:
            continue
        if key not in family.defaults:
            hidden[key] = value
            unknown += [] if key in known else [key]
        else:
            config[key] = value
    if unknown:
        warnings.warn(
            f"{family.name}: unknown config keys are kept and have no effect: {', '.join(sorted(unknown))}",
            stacklevel=4,
        )
    steps = config.get("num_train_timesteps", 1)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"{family.name}: num_train_timesteps must be an integer of at least 1, got {steps!r}")
    if family.check is not None:
        config |= family.check(config) or {}
    return config, hidden, sorted(key for key in family.defaults if key not in given or key in unchosen)


def write(folder: str | os.PathLike, config: Mapping[str, Any]) -> Path:
    """Write a config as scheduler_config.json into a folder, which is made; whole or not at all."""
    path = Path(folder) / FILE
    plain = {key: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for key, v in config.items()}
    plain.pop("_use_default_values", None)  # what is written is chosen
    io.write(path, (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode())  # -Infinity is a value here
    return path
