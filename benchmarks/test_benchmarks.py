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
from tables import means, table

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
        for _ in range(work.checked_calls):
            result = call()
    except ModuleNotFoundError as e:
        pytest.skip(str(e))
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


def _entry(ratio, **contender):
    """A case as run.py writes it: ours takes a second, torch `ratio` seconds."""
    ours = {"kind": "ours", "seconds": [1.0], "memory": None, "error": 0.0, "note": "", **contender}
    limits = dict.fromkeys(("seconds", "memory", "pair", "error", "peak"))
    torch = {"kind": "documented", "seconds": [ratio]}
    found = {"generant": ours} if "missing" in contender else {"generant": ours, "torch": torch}
    return {"goals": {}, "limits": limits, "unit": "", "timed": True, "mean": {"torch": 2.0}, "contenders": found}


def test_geometric_mean_has_its_row_and_goal():
    assert "geometric mean of 2 |  | torch 2.00x (goal 2x, met)" in table("", {"a": _entry(1.0), "b": _entry(4.0)})
    assert "torch **1.73x (goal 2x, MISSED)**" in table("", {"a": _entry(1.0), "b": _entry(3.0)})
    failed = _entry(4.0, failed="no", seconds=[])
    assert means({"a": _entry(4.0), "b": failed}) == {"documented": [("torch", "in 1 only (goal 2x, MISSED)")]}


def test_memory_against_a_rival_and_seconds_of_compiling_are_told():
    entry = _entry(4.0, memory=2e6)
    entry.update(lean=True, goals={"torch": 3.0})
    entry["contenders"]["torch"].update(memory=1e6, compiled=12.0)
    wanted = "4.00x (goal 3x, met; 2.00 of its memory, goal <= 1, MISSED; compiled in 12 s)"
    assert f"torch **{wanted}**" in table("", {"a": entry})


def test_what_a_machine_lacks_is_told_and_not_a_failure():
    text = table("", {"a": _entry(4.0, missing="no bf16", seconds=[]), "b": _entry(4.0)})
    assert "| a | not measured: no bf16 |" in text and "FAILED" not in text


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
