"""How the functions that are timed are registered, and what more than one file of rivals needs.

The first entry of a library is the way its documentation writes it, on which the goals are set; entries marked `best`
are the fastest setting known to us (buffers kept, in place, fused, chunked to fit the cache, tuned malloc) and are
shown beside it. A setup function gets the inputs and the sizes and returns the function that is timed; where it or the
first calls raise ModuleNotFoundError, the rival is missing, not failed.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

# glibc gives freed megabytes back to the system and pays for fresh pages at the next call; this makes it keep them
TUNED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


class Contender(NamedTuple):
    name: str
    setup: Callable[[Any, Any], Callable[[], Any]]  # (inputs, family) -> call
    kind: str  # ours, documented or best
    env: dict[str, str]
    when: Callable[[Any], bool] = lambda work: True  # the sizes it takes part in


RIVALS: dict[type, list[Contender]] = {}


def rival(
    family: type,
    name: str,
    *,
    best: bool = False,
    tuned: bool = False,
    env: dict[str, str] | None = None,
    when: Callable[[Any], bool] = lambda work: True,
):
    """Register a setup function; tuned=True registers it again under a tuned malloc; env: variables of its process."""

    def register(setup):
        entries = RIVALS.setdefault(family, [])
        entries.append(Contender(name, setup, "best" if best else "documented", env or {}, when))
        if tuned:
            entries.append(Contender(f"{name}, tuned malloc", setup, "best", TUNED_MALLOC, when))
        return setup

    return register


def contenders(case: Any) -> list[Contender]:
    """Ours first, then the rivals."""
    ours = Contender("generant", lambda a, work: work.ours(a), "ours", {})
    return [ours, *(c for c in RIVALS.get(type(case.work), ()) if c.when(case.work))]


def with_torch(a: Any = None, *names: str) -> tuple:
    """torch with the thread count of this run, and the named inputs as tensors."""
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    return (torch, *(torch.from_numpy(getattr(a, name)) for name in names))


def keops_folder() -> None:
    """KeOps compiles C++ for every formula: into a folder that is removed at the end. Before its first import."""
    if "KEOPS_CACHE_FOLDER" not in os.environ:
        folder = tempfile.mkdtemp(prefix="keops-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["KEOPS_CACHE_FOLDER"] = folder


def with_keops() -> Callable:
    """KeOps' symbolic matrices on NumPy arrays."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise ModuleNotFoundError("KeOps needs a C++ compiler")
    keops_folder()
    from pykeops.numpy import LazyTensor

    return LazyTensor


def fastest(calls: Iterable[Callable[[], Any]]) -> Callable[[], Any]:
    """A call that is, from the first time on, the one of them that is done first; each is warmed once."""

    def seconds(call: Callable[[], Any]) -> float:
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    @cache
    def chosen() -> Callable[[], Any]:
        return min(calls, key=seconds)

    return lambda: chosen()()
