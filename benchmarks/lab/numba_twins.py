"""How fast the Numba twins of the pairwise ops are: one thread, float64 inside, float32 points. Prints Markdown.

    GENERANT_BACKEND=numba python benchmarks/lab/numba_twins.py
"""

from __future__ import annotations

import time

import numpy as np

from generant import ops

N = 4000
CALLS = {
    "kernel_sum, rbf": lambda x, y: ops.kernel_sum(x, y),
    "kernel_row_sums, rbf": lambda x, y: ops.kernel_row_sums(x, y),
    "kernel_matvec, rbf": lambda x, y: ops.kernel_matvec(x, y, y[:, :1].copy()),
    "kernel_matvec_dx, rbf": lambda x, y: ops.kernel_matvec_dx(x, y, x[:, :1].copy(), y[:, :1].copy()),
    "logsumexp": lambda x, y: ops.logsumexp(x, y),
    "softmax_matmul, v = y": lambda x, y: ops.softmax_matmul(x, y, y),
    "knn, k = 5": lambda x, y: ops.knn(x, y, k=5),
    "nearest": lambda x, y: ops.nearest(x, y),
    "radius_count": lambda x, y: ops.radius_count(x, y, np.ones(N, np.float32)),
}


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"| ns per pair, {N} x {N} | d = 2 | d = 64 |\n|---|---|---|")
    for name, call in CALLS.items():
        cells = []
        for d in (2, 64):
            x, y = rng.standard_normal((2, N, d), dtype=np.float32)
            call(x, y)  # compiles
            times = []
            for _ in range(3):
                begun = time.perf_counter()
                call(x, y)
                times.append(time.perf_counter() - begun)
            cells.append(f"{sorted(times)[1] / N**2 * 1e9:.2f}")
        print(f"| {name} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
