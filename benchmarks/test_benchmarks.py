"""The cases of run.py for pytest-benchmark: pytest benchmarks --benchmark-only [-k matmul]

For comparing two versions on one machine (--benchmark-autosave, --benchmark-compare). All contenders share this one
process, so a rival's spinning threads can disturb its neighbour; published ratios come from run.py.
"""

import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES
from rivals import contenders
from run import arrays

PAIRS = [pytest.param(case, c, id=f"{case.name}-{c.name}") for case in CASES for c in contenders(case) if not c.env]


@pytest.mark.parametrize(("case", "contender"), PAIRS)
def test_speed(benchmark, case, contender):
    benchmark.group = case.name
    work = case.work
    inputs = work.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the rivals
        try:
            call = contender.setup(inputs, work)
        except ImportError as e:
            pytest.skip(str(e))
        for _ in range(work.checked_calls):
            result = call()
        assert work.error(arrays(result), inputs) <= work.tolerance
        benchmark(call)
