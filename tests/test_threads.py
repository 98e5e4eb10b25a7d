"""The thread pool under fire: fork, many Python threads, nesting, limits; and that results never depend on it.

Seen to fail: with the fork handler taken out of csrc/threads.cpp.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import generant
from generant import ops
from generant.ops import _dispatch
from generant.random import split


def normal(*shape, dtype="float32", stream=0):
    return ops.normal(np.array([3, stream], np.uint64), shape=shape, dtype=dtype)


@cache
def inputs(dtype="float32"):
    """Arrays large enough to be split among threads, with odd sizes."""
    return SimpleNamespace(
        x=normal(1031, 261, dtype=dtype),
        w=normal(261, 137, dtype=dtype),
        g=normal(1031, 137, dtype=dtype),
        b=normal(137, dtype=dtype),
        v=normal(261, dtype=dtype),
        wide=normal(3, 2049, dtype=dtype),
        tall=normal(2049, 515, dtype=dtype),
        index=(np.arange(3001, dtype=np.int64) * 7919) % 1031,
        rows=normal(3001, 261, dtype=dtype),
        points=normal(701, 17, dtype=dtype),
        others=normal(503, 17, dtype=dtype, stream=1),
        flat=normal(300_007, dtype=dtype),
        image=normal(64, 3, 33, 31, dtype=dtype),
        alpha=np.linspace(0.1, 1, 64, dtype=dtype),
        key=np.array([7, 11], np.uint64),
        keys=split(7, 64),
        step=np.zeros(1, np.int64),
        rate=np.array([0.9]),
        coef=np.array([0.3, 0.6, 0.4, 0.9, 0.2, 0.1, -0.2, 0.05, 0.7, 0.4, 3.0, 0.1, 0.8]),
        dtype=dtype,
    )


def step(i, **attrs):
    return ops.sampler_step.all(i.image, i.image, i.image, i.image, None, None, None, i.keys, i.coef, **attrs)


def in_place(op, *arrays, **attrs):
    """What an op that changes its arguments leaves in copies of them, and what it returns."""
    copies = [None if a is None else a.copy() for a in arrays]
    returned = op(*copies, **attrs)
    return (*copies, *(() if returned is None else returned if isinstance(returned, tuple) else (returned,)))


CASES = {
    "matmul": lambda i: ops.matmul(i.x, i.w),
    "matmul_dx": lambda i: ops.matmul_dx(i.g, i.w),
    "matmul_dw": lambda i: ops.matmul_dw(i.x, i.g),
    "matmul deep": lambda i: ops.matmul(i.wide, i.tall),
    "linear_act": lambda i: ops.linear_act.all(i.x, i.w, i.b, activation="gelu"),
    "silu": lambda i: ops.silu(i.x),
    "exp": lambda i: ops.exp(i.flat),
    "add": lambda i: ops.add(i.x, i.v),
    "sum": lambda i: ops.sum(i.flat),
    "sum 0": lambda i: ops.sum(i.x, axis=0),
    "sum 1": lambda i: ops.sum(i.x, axis=1),
    "mean": lambda i: ops.mean(i.image, axis=(0, 2)),
    "max": lambda i: ops.max(i.x, axis=0),
    "layer_norm": lambda i: ops.layer_norm.all(i.x, i.v, i.v),
    "gather": lambda i: ops.gather(i.x, i.index),
    "scatter_add": lambda i: ops.scatter_add(i.rows, i.index, m=1031),
    "uniform": lambda i: ops.uniform(i.key, shape=(123_457,), dtype=i.dtype),
    "normal": lambda i: ops.normal(i.key, shape=(123_457,), dtype=i.dtype),
    "q_sample": lambda i: ops.q_sample(i.image, i.alpha, i.alpha, i.key),
    "add_noise": lambda i: ops.add_noise(i.image, i.image, i.alpha, i.alpha),
    "denoising_loss": lambda i: ops.denoising_loss(i.image, i.image, i.alpha, i.alpha, i.alpha, i.key),
    "sampler_step": lambda i: step(i, clip=1.0),
    "sampler_step, threshold": lambda i: step(i, threshold=0.9, rescale=0.3),
    "normals": lambda i: ops.normals(i.keys, np.arange(3, dtype=np.uint64), np.ones(3), shape=(12_345,), dtype=i.dtype),
    "adam_": lambda i: in_place(ops.adam_, i.flat, -i.flat, i.flat**2, i.flat, i.step, i.rate, weight_decay=0.1),
    "ema_": lambda i: in_place(ops.ema_, i.flat, i.flat * 2, i.rate),
    "clip_norm_": lambda i: in_place(ops.clip_norm_, i.flat, limit=1.0),
    "kernel_sum": lambda i: ops.kernel_sum(i.points, i.others, bandwidth=2.0),
    "kernel_sum self": lambda i: ops.kernel_sum(i.points, kernel="polynomial"),
    "knn": lambda i: ops.knn(i.points, i.others, k=5),
    "knn self": lambda i: ops.knn(i.points, k=3),
}


def digest(result):
    """The bits of an array or a tuple of arrays."""
    if isinstance(result, tuple):
        return b"".join(digest(r) for r in result if r is not None)
    return np.asarray(result).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", list(CASES))
def test_the_same_bits_for_any_number_of_threads(native, threads, name, dtype):
    threads(1)
    wanted = digest(CASES[name](inputs(dtype)))
    for n in (2, 3, 8):
        threads(n)
        assert digest(CASES[name](inputs(dtype))) == wanted, f"{name} differs with {n} threads"


def test_eight_python_threads_at_once_get_identical_results(threads):
    threads(2)
    names = ["matmul", "linear_act", "sum", "normal", "knn", "add", "scatter_add"]
    wanted = {name: digest(CASES[name](inputs())) for name in names}
    start, wrong = threading.Barrier(8), []

    def use(turn):
        start.wait(timeout=60)
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            if digest(CASES[name](inputs())) != wanted[name]:
                wrong.append(name)

    workers = [threading.Thread(target=use, args=(turn,), daemon=True) for turn in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
        assert not worker.is_alive(), "a thread is stuck"
    assert not wrong


def test_an_op_called_while_the_pool_is_busy_runs_in_its_caller(native, threads):
    threads(2)
    a, b = normal(700, 700), normal(700, 700, stream=1)
    wanted, small = ops.matmul(a, b), ops.silu(a)
    stop, results = threading.Event(), []

    def keep_busy():
        while not stop.is_set():
            results.append(ops.matmul(a, b))
            del results[:-1]

    worker = threading.Thread(target=keep_busy, daemon=True)
    worker.start()
    try:
        for _ in range(50):
            np.testing.assert_array_equal(ops.silu(a), small)
            np.testing.assert_array_equal(ops.matmul(a, b), wanted)
    finally:
        stop.set()
        worker.join(timeout=60)
    assert not worker.is_alive()
    np.testing.assert_array_equal(results[-1], wanted)


def test_nested_use_from_a_callback_inside_a_traced_function():
    x = normal(40, 30)
    inner = generant.grad(lambda v: ops.sum(ops.square(v)))

    def loss(v):
        direction = inner(x)  # a whole gradient, computed while another trace is open
        return ops.sum(ops.mul(v, direction))

    np.testing.assert_allclose(generant.grad(loss)(x), 2 * x, rtol=1e-6)


def wait_for(pid, seconds):
    """Exit code of a child, or None if it did not end in time (it is killed then)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["idle", "busy"])
def test_fork_after_use(threads, how):
    threads(2)
    a, b = normal(600, 600), normal(600, 600, stream=1)
    wanted = ops.matmul(a, b)  # the pool has workers now
    stop = threading.Event()

    def keep_busy():
        while not stop.is_set():
            ops.matmul(a, b)

    worker = threading.Thread(target=keep_busy, daemon=True)
    if how == "busy":
        worker.start()
        time.sleep(0.05)
    try:
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    same = all(np.array_equal(ops.matmul(a, b), wanted) for _ in range(3))
                    own_workers = _dispatch.backend() != "native" or len(os.listdir("/proc/self/task")) > 1
                    code = 0 if same and own_workers else 2
                finally:
                    os._exit(code)
            assert wait_for(pid, 60) == 0, "the child hung, crashed, got another result or ran on one thread"
    finally:
        stop.set()
        if how == "busy":
            worker.join(timeout=60)
    np.testing.assert_array_equal(ops.matmul(a, b), wanted)


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", None, True])
def test_set_num_threads_refuses_what_is_not_a_positive_integer(n):
    with pytest.raises(ValueError, match="set_num_threads: n must be an integer of at least 1"):
        generant.set_num_threads(n)


def test_set_num_threads_is_what_get_num_threads_says(native, threads):
    for n in (1, 3, 2):
        threads(n)
        assert generant.get_num_threads() == n


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"GENERANT_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"GENERANT_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 2),
    ],
)
def test_the_environment_sets_the_number_of_threads(native, variables, wanted):
    clean = {k: v for k, v in os.environ.items() if k not in ("GENERANT_NUM_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", "import generant; print(generant.get_num_threads())"]
    assert int(subprocess.check_output(command, env={**clean, **variables})) == wanted


@pytest.mark.parametrize("first", ["generant", "threadpoolctl"])
def test_threadpool_limits_holds_for_the_kernels(native, first):
    pytest.importorskip("threadpoolctl")
    program = f"""
import {first}
import numpy as np
import generant
x = np.ones((8, 8), np.float32)
generant.ops.matmul(x, x)
generant.set_num_threads(3)
import threadpoolctl
with threadpoolctl.threadpool_limits(1):
    inside = generant.get_num_threads()
assert (inside, generant.get_num_threads()) == (1, 3), (inside, generant.get_num_threads())
with threadpoolctl.threadpool_limits(1, user_api="blas"):
    assert generant.get_num_threads() == 3
ours = [i for i in threadpoolctl.threadpool_info() if i["internal_api"] == "generant"]
assert len(ours) == 1 and ours[0]["version"] == generant.__version__, ours
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_using_the_kernels_does_not_import_threadpoolctl():
    program = (
        "import sys, numpy as np, generant\n"
        "generant.ops.square(np.ones(3)); assert 'threadpoolctl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
