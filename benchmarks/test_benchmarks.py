"""Every contender agrees with the reference at small sizes: pytest benchmarks

And the cases of run.py for pytest-benchmark: pytest benchmarks --benchmark-only [-k matmul], for comparing two
versions on one machine (--benchmark-autosave, --benchmark-compare). All contenders share this one process, so a rival's
spinning threads can disturb its neighbour; published ratios come from run.py.
"""

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES
from rivals import contenders
from run import arrays, loop

PAIRS = [(case, c) for case in CASES for c in contenders(case) if not c.env]


def params(pairs):
    return pytest.mark.parametrize(
        ("case", "contender"), [pytest.param(case, c, id=f"{case.name}-{c.name}") for case, c in pairs]
    )


def prepared(contender, work):
    """The call, and what is off about its result."""
    if lacking := work.lacks():
        pytest.skip(lacking)
    inputs = work.inputs()
    try:
        call = contender.setup(inputs, work)
    except ModuleNotFoundError as e:
        pytest.skip(str(e))
    for _ in range(work.checked_calls):
        result = call()
    return call, work.error(arrays(result), inputs)


if find_spec("pytest_benchmark") is None:

    @pytest.fixture
    def benchmark():
        pytest.skip("needs pytest-benchmark")


@pytest.fixture(autouse=True)
def _rivals_may_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _small(pairs):
    """One of the cases that are the same work at a small size."""
    return list({(c.work.small(), c.error, r.name): (c, r) for c, r in pairs if not c.work.timed_inside}.values())


def test_names_are_unique_and_goals_name_contenders():
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        assert set(case.goals) <= {c.name for c in contenders(case)}, case.name


@params(_small(PAIRS))
def test_agreement(case, contender):
    work = case.work.small()
    _, error = prepared(contender, work)
    assert error <= work.tolerance
    if contender.kind == "ours" and case.error is not None:
        assert error <= case.error


@params([(case, c) for case, c in PAIRS if case.timed and not case.once])
def test_speed(request, benchmark, case, contender):
    if not request.config.getoption("--benchmark-only"):
        pytest.skip("--benchmark-only runs it")
    benchmark.group = case.name
    call, error = prepared(contender, case.work)
    assert error <= case.work.tolerance
    if loop(call, 1) > 1:
        benchmark.pedantic(call, rounds=3)
    else:
        benchmark(call)
