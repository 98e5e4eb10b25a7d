"""Numba twins of the native kernels: the same family files, the same op names."""

import importlib
import pkgutil

from ._kernel import KERNELS

for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")

__all__ = ["KERNELS"]
