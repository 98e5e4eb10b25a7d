"""Headers that CPU and GPU share, checked by a C++ program (cuda_headers.cpp) over the simulator: no GPU is needed.

Seen to fail: with nine rounds; without the counter's upper word; with a * b + c for fma; with ties of TF32 toward zero
and of bfloat16 away from it; with two fragments of an mma exchanged; with one product less in 3xTF32; with a wrong
lane in warp_reduce; with -inf taken from -inf in softmax; with a square root that is not corrected.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"


def test_shared_headers(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler here")
    if not CSRC.is_dir():
        pytest.skip("no C++ sources here")
    program = tmp_path / "cuda_headers"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CSRC}"]
    sources = [TESTS / "cuda_headers.cpp", CSRC / "cuda" / "simulator.cpp"]
    command = [*compiler.split(), *flags, *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
