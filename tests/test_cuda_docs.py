"""The README's programs for a GPU run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import cuda_device
import pytest

cupy = cuda_device.device()

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_there_are_programs():
    assert PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(program):
    names: dict = {}
    exec(program, names)
    assert names["losses"] == sorted(names["losses"]) and names["slope"].shape == (5,)
