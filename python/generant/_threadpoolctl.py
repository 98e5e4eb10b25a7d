"""Makes the kernels' thread pool visible to threadpoolctl: `with threadpool_limits(1): ...` holds for generant too.

threadpoolctl takes several milliseconds to import, so it is not imported here. If the user has imported it, the pool
is registered at once; otherwise a finder waits in sys.meta_path and registers it when threadpoolctl is imported.
threadpoolctl sees only what is loaded: a limit holds if an op ran (or `get_num_threads` was called) before it was set.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any


def announce() -> None:
    """Register the compiled module's thread pool, now or as soon as threadpoolctl is imported."""
    loaded = sys.modules.get("threadpoolctl")
    if loaded is not None and hasattr(loaded, "register"):
        register(loaded)
    elif loaded is None and _watcher not in sys.meta_path:
        sys.meta_path.insert(0, _watcher)


def register(threadpoolctl: ModuleType) -> None:
    """Add a controller for the two functions that csrc/threads.cpp exports."""

    class GenerantController(threadpoolctl.LibController):  # type: ignore[name-defined]
        user_api = internal_api = "generant"
        filename_prefixes = ("_native",)
        check_symbols = ("generant_get_num_threads", "generant_set_num_threads")

        def get_num_threads(self) -> int:
            return self.dynlib.generant_get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.generant_set_num_threads(num_threads)

        def get_version(self) -> str:
            from . import __version__

            return __version__

    threadpoolctl.register(GenerantController)


class _Watcher:
    """A finder that finds nothing itself: it lets the import of threadpoolctl run and registers afterwards."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "threadpoolctl":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)  # type: ignore[assignment]
        return spec


class _ThenRegister:
    """The real loader, followed by the registration."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if hasattr(module, "register"):
            register(module)


_watcher = _Watcher()
