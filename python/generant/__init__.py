"""generant: generative models (GANs, VAEs, diffusion) on compiled kernels, without PyTorch or beside it.

    from generant import ops, grad              the op table and differentiation
    from generant.models import Diffusion       fit / sample / save
    generant.show_config()                      version, backend, instruction set, threads

Nothing below is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "autograd", "cli", "data", "diffusion", "io", "metrics", "models", "nn", "ops", "optim", "pairwise", "random",
    "recording",
)
_NAMES = {
    "vjp": "autograd", "grad": "autograd", "value_and_grad": "autograd", "record": "recording",
    "show_config": "_config", "set_num_threads": "_config", "get_num_threads": "_config", "trim": "_config",
}

__all__ = ["__version__", *_MODULES, *_NAMES]

if TYPE_CHECKING:
    from . import autograd, cli, data, diffusion, io, metrics, models, nn, ops, optim, pairwise, random, recording
    from ._config import get_num_threads, set_num_threads, show_config, trim
    from .autograd import grad, value_and_grad, vjp
    from .recording import record


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module("." + name, __name__)
    if name in _NAMES:
        value = getattr(importlib.import_module("." + _NAMES[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'generant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
