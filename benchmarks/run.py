"""Times generant and its rivals: python benchmarks/run.py [names] [--threads 2] [--rounds 5] [--out results/NAME.json]

Every contender has a process of its own with the same inputs and thread count. It first proves that its result
agrees with a float64 reference, then measures the memory of one call, then sleeps in a pipe until it is asked for a
round. Rounds go around the contenders, and the next one starts when every thread of the last is asleep: a thread pool
that still spins would be billed to its rival. Names select cases by parts of their name; with --out, cases
already in the file and not run now are kept. --tables FILE writes the tables of results/*.json into FILE.

Deliberately absent: any assertion on a time. What is slower than a rival or misses its goal is shown so.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import date
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import machine
import numpy as np
from cases import CASES, Case
from rivals import contenders
from tables import families, means, report, write_docs, write_tables

THREADS = ("GENERANT_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
WARM = 4  # calls of what is set up anew: with the first ones a step is recorded and the plan compared

# ---------------------------------------------------------------- in the worker's process


def arrays(result: Any) -> Any:
    """A contender's result as NumPy arrays; nested lists and tuples stay."""
    if isinstance(result, (list, tuple)):
        return [arrays(r) for r in result]
    if not hasattr(result, "detach"):
        return result
    result = result.detach()
    return (result.float() if "bfloat16" in str(result.dtype) else result).numpy()


def trim() -> None:
    """Give free memory back to the system, so that a call's use of it shows."""
    gc.collect()
    if "generant" in sys.modules:
        sys.modules["generant"].trim()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def resident(key: str) -> int | None:
    """Bytes of this process in memory now (VmRSS) or at most (VmHWM); None where Linux cannot tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
    except (OSError, StopIteration):
        return None


def extra_memory(call: Any, before: int | None = None) -> tuple[int | None, float]:
    """(Peak bytes of a call above `before` or what was there before it, its result included; seconds). None where Linux
    cannot tell.

    The call before it has warmed up: what it keeps for good is not counted, what a pool has given back is.
    """
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        return None, loop(call, 1)
    before = resident("VmRSS") if before is None else before
    seconds = loop(call, 1)
    most = resident("VmHWM")
    return None if before is None or most is None else max(0, most - before), seconds


def kept_memory(setup: Any) -> tuple[Any, int | None, float]:
    """(The call that setup() returns, bytes, seconds): what it keeps, and the peak of a call above that.

    Something like it has run before, so that no library is loaded meanwhile. The first calls plan and compare: the peak
    is that of a later one.
    """
    trim()
    before = resident("VmRSS")
    call = setup()
    loop(call, WARM)
    return call, *extra_memory(call, before)


def loop(call: Any, n: int) -> float:
    start = time.perf_counter()
    for _ in repeat(None, n):
        call()
    return time.perf_counter() - start


def prepare(case: Case, name: str, batch: float, limit: float, started: Any) -> tuple[Any, dict]:
    """The call to time, and what is known before: error, memory, calls per round. No call if none is to be timed.

    started() is called when everything is imported, and returns when it is this contender's turn to compute.
    """
    setup = next(c.setup for c in contenders(case) if c.name == name)
    work = case.work.small() if case.work.judged_small else case.work
    inputs = work.inputs()
    try:
        call = setup(inputs, work)
        started()
        for _ in range(work.checked_calls):
            result = call()
    except ModuleNotFoundError as e:
        return None, {"failed" if name == "generant" else "missing": str(e)}
    result = arrays(result)
    error, note = work.error(result, inputs), work.note(result, inputs)
    del result
    if not error <= work.tolerance:
        return None, {"failed": f"error {error:.2g} above {work.tolerance:.2g}"}
    info = {"error": error, "note": note, "memory": None, "calls": 1}
    if compiled := getattr(inputs, "compiled", None):
        info["compiled"] = compiled
    if not case.timed:
        return None, info
    if work.timed_inside:
        return call, {**info, "error": None}
    if work is not case.work:
        inputs = case.work.inputs()
        call = setup(inputs, case.work)
    if not case.once:
        n = 1
        if work.keeps and not compiled:  # compiling leaves too much behind to tell what the network needs
            del call
            call, info["memory"], t = kept_memory(lambda: setup(inputs, case.work))
        else:
            info["memory"], t = extra_memory(call)
            info["memory"] = None if work.keeps else info["memory"]
        while t < batch / 1.2 and n < 1e8:
            n = max(n + 1, int(n * min(10.0, batch / max(t, 1e-9))))
            t = loop(call, n)
        info["calls"] = n
        if t >= limit:
            info["first"] = t
    return call, info


def serve(case: Case, name: str, batch: float, limit: float) -> None:
    """Prepare, then run a round for every line on stdin. Answers are JSON lines on what was stdout."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer

    @cache
    def started() -> None:
        print(json.dumps("started"), file=answers)
        sys.stdin.readline()

    try:
        call, info = prepare(case, name, batch, limit, started)
    except Exception as e:
        call, info = None, {"failed": f"{type(e).__name__}: {e}"}
    started()
    if name == "generant" and "failed" not in info:
        import generant

        shown = generant.show_config()
        info["config"] = {k: str(shown[k]) for k in ("generant", "backend", "ISA")}
    print(json.dumps(info), file=answers)
    for _ in sys.stdin if call is not None else ():
        memory = None
        if case.work.timed_inside:
            seconds = call()
        elif case.once:
            memory, seconds = extra_memory(call)
        else:
            if info["calls"] > 1:
                call()  # wakes the threads
            seconds = loop(call, info["calls"]) / info["calls"]
        print(json.dumps([seconds, memory]), file=answers)


# ---------------------------------------------------------------- in the runner's process


class Worker:
    """A contender of a case in its own process."""

    def __init__(self, case: Case, contender: Any, threads: int, batch: float, limit: float, quick: bool) -> None:
        self.limit = limit
        env = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "GENERANT_STRICT": "1", **contender.env}
        command = [sys.executable, __file__, "--worker", case.name, contender.name]
        command += ["--batch", str(batch), "--limit", str(limit)] + ["--quick"] * quick
        self.process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.seconds: list[float] = []
        self.spent = 0.0  # seconds in rounds
        self.kind = contender.kind
        self.info: dict[str, Any] = {}

    def prepare(self) -> None:
        """To be called when all have started: they may import side by side, but not compute."""
        self.go()
        self.info = {**self.answer(), "kind": self.kind}
        if "first" in self.info:
            self.spent = self.info.pop("first")
            self.seconds.append(self.spent)

    def go(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what has ended is noticed by answer()
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.wait_until_asleep()
        return json.loads(line) if line else {"failed": f"process ended with code {self.process.wait()}"}

    def wait_until_asleep(self) -> None:
        """Return when none of the process's threads runs, at the latest after two seconds."""
        deadline, quiet = time.monotonic() + 2, 0
        while quiet < 3 and time.monotonic() < deadline:
            try:
                stats = [p.read_text() for p in Path(f"/proc/{self.process.pid}/task").glob("*/stat")]
                running = any(s.rpartition(")")[2].split()[0] == "R" for s in stats)
            except OSError:  # a thread ended meanwhile
                running = True
            quiet = 0 if running else quiet + 1
            time.sleep(0.005)

    def round(self) -> None:
        if "calls" not in self.info or (len(self.seconds) >= 2 and self.spent >= self.limit):
            return
        start = time.monotonic()
        self.go()
        answer = self.answer()
        if isinstance(answer, dict):
            del self.info["calls"]
            self.info.update(answer)
        else:
            self.spent += time.monotonic() - start
            seconds, memory = answer
            self.seconds.append(seconds)
            if memory is not None:
                self.info["memory"] = memory

    def close(self) -> dict:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        return {**self.info, "seconds": self.seconds}


def measure(case: Case, threads: int, rounds: int, batch: float, limit: float, quick: bool) -> dict:
    """All contenders of a case."""
    workers: dict[str, Worker] = {}
    lacking = case.work.lacks()
    try:
        for c in () if lacking else contenders(case):
            workers[c.name] = Worker(case, c, threads, batch, limit, quick)
        for w in workers.values():
            w.answer()
        for w in workers.values():
            w.prepare()
        for _ in range((1 if case.once else rounds) if case.timed else 0):
            for w in workers.values():
                w.round()
    finally:
        found = {name: w.close() for name, w in workers.items()}
    if lacking:
        found = {"generant": {"kind": "ours", "missing": lacking, "seconds": []}}
    entry: dict[str, Any] = {"family": case.family, "date": date.today().isoformat(), "load": os.getloadavg()[0]}
    entry["goals"], entry["mean"], entry["timed"], entry["lean"] = case.goals, case.mean, case.timed, case.lean
    entry["limits"] = {k: getattr(case, k) for k in ("seconds", "memory", "pair", "error", "peak")}
    work = case.work
    entry["unit"], entry["pairs"], flop, moved = work.unit, work.pairs(), work.flop(), int(work.bytes())
    if flop and (peak := machine.fma_peak(threads)):
        entry.update(peak="FMA", peak_seconds=flop / peak, peak_rate=peak)
    elif moved > 1_000_000:
        peak = machine.copy_peak(moved, threads)
        entry.update(peak="copy", peak_seconds=moved / peak, peak_rate=peak)
    return {**entry, "contenders": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of names of cases or families; all if absent")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=6.0, help="seconds of rounds per contender of a case")
    parser.add_argument("--batch", type=float, default=0.05, help="seconds a round lasts at least")
    parser.add_argument("--quick", action="store_true", help="one round at small sizes: does every case run?")
    parser.add_argument("--large", action="store_true", help="the cases that take minutes, instead of the others")
    parser.add_argument("--out", type=Path, help="JSON file to write or to update")
    parser.add_argument("--tables", type=Path, help="write the tables of results/*.json into this file")
    parser.add_argument("--docs", type=Path, help="write the table of results/lab into this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    cases = [replace(c, work=c.work.small()) for c in CASES] if args.quick else CASES
    if args.worker:
        return serve(next(c for c in cases if c.name == args.worker[0]), args.worker[1], args.batch, args.limit)
    if args.tables:
        return write_tables(args.tables)
    if args.docs:
        return write_docs(args.docs)
    rounds, batch = (1, 0.002) if args.quick else (args.rounds, args.batch)
    results: dict[str, Any] = {"cases": {}}
    if args.out and args.out.exists():
        results = json.loads(args.out.read_text())
    results.update(machine=machine.describe(), settings={"threads": args.threads, "rounds": rounds, "batch": batch})
    offered = [c for c in cases if c.once == args.large]
    chosen = [c for c in offered if not args.names or any(n in c.name or n in c.family for n in args.names)]
    if not chosen:
        raise SystemExit(f"no case matches {args.names}; there are: {', '.join(c.name for c in offered)}")
    if os.getloadavg()[0] > 0.5:
        print(f"the machine is busy (load average {os.getloadavg()[0]:.1f}): rough timings", file=sys.stderr)
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GENERANT_BENCHMARK_FOLDER"] = folder  # for what a case's workers share
            entry = measure(case, args.threads, rounds, batch, args.limit, args.quick)
        results["config"] = entry["contenders"]["generant"].pop("config", results.get("config", {}))
        results["cases"][case.name] = entry
        print(report(case.name, entry), flush=True)
        if args.out:
            ordered = {c.name: results["cases"][c.name] for c in CASES if c.name in results["cases"]}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({**results, "cases": ordered}, indent=1) + "\n")
    for title, entries in families({"cases": {c.name: results["cases"][c.name] for c in chosen}}).items():
        if len(entries) == sum(c.family == title for c in CASES):
            for texts in means(entries).values():
                print(f"{title}, geometric mean of {len(entries)}: {'  '.join(map(' '.join, texts))}")
    failed = [
        f"{case.name}: {name}"
        for case in chosen
        for name, found in results["cases"][case.name]["contenders"].items()
        if "failed" in found
    ]
    if failed:
        raise SystemExit(f"{len(failed)} contenders failed: " + "; ".join(failed))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
