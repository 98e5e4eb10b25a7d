"""What every test may use: a generator, the compiled module, and a thread count that is put back afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_report_header() -> list[str]:
    import generant

    config = generant.show_config()
    return [f"generant: backend {config['backend']}, ISA {config['ISA']}, threads {config['threads']}"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def native() -> Any:
    """The compiled module, where it is the backend under test."""
    from generant.ops import _dispatch

    if _dispatch.backend() != "native":
        pytest.skip(f"about the native backend; {_dispatch.backend()} is in use")
    return _dispatch.native_module()


@pytest.fixture
def threads() -> Iterator[Any]:
    """generant.set_num_threads, undone at the end of the test."""
    import generant

    before = generant.get_num_threads()
    yield generant.set_num_threads
    generant.set_num_threads(before)
