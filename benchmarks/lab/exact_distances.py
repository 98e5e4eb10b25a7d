"""Who finds the right neighbours far from the origin, and what being right costs. Prints Markdown for neighbours.md.

    python benchmarks/lab/exact_distances.py            # accuracy
    python benchmarks/lab/exact_distances.py --cost     # and time, on one thread

Accuracy: 300 queries, 2,000 points, N(0, I) in 64 dimensions plus an offset, float32. Truth is float64 arithmetic on
the same rows. Three numbers: queries whose nearest point is not the nearest one; the largest error of the distance
reported for it; the largest distance reported between a row and its own copy. Packages not installed are left out.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from generant import ops

OFFSETS = (0, 10, 100, 1000)


def expanded(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|x|^2 + |y|^2 - 2 <x, y> in float32, as FAISS and most hand-written code have it."""
    square = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    index = square.argmin(1)
    return np.sqrt(np.maximum(square[np.arange(len(x)), index], 0)), index


def torch_cdist(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    distance, index = torch.cdist(torch.from_numpy(x), torch.from_numpy(y)).min(1)
    return distance.numpy(), index.numpy()


def scikit_learn(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.metrics import pairwise_distances_argmin_min

    index, distance = pairwise_distances_argmin_min(x, y)
    return distance, index


CONTENDERS = {
    "torch.cdist, then min": torch_cdist,
    "expanded form, NumPy float32 (FAISS)": expanded,
    "scikit-learn (converts to float64)": scikit_learn,
    "generant nearest": ops.nearest,
}


def accuracy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 64)), rng.standard_normal((2000, 64))
    rows: dict[str, list[str]] = {name: [] for name in CONTENDERS}
    for offset in OFFSETS:
        a, b = (x + offset).astype(np.float32), (y + offset).astype(np.float32)
        square = np.stack([((row - b.astype(float)) ** 2).sum(1) for row in a.astype(float)])
        for name, contender in CONTENDERS.items():
            try:
                distance, index = contender(a, b)
            except ImportError:
                rows.pop(name, None)
                continue
            wrong = np.count_nonzero(square[np.arange(300), index] > square.min(1))
            error, copy = np.abs(distance - np.sqrt(square.min(1))).max(), contender(a, a)[0].max()
            rows[name].append(f"{wrong}, {error:.0e}, {copy:.1g}")
    print("| wrong of 300, error, distance to a copy | " + " | ".join(f"offset {o}" for o in OFFSETS) + " |")
    print("|---|" + "---|" * len(OFFSETS))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def clusters(n: int, d: int) -> np.ndarray:
    """100 clusters, N(0, 100 I), each a thousandth as wide: float32 scores cannot tell the points of one apart."""
    rng = np.random.default_rng(1)
    return (10 * rng.standard_normal((100, d))[np.arange(n) % 100] + 0.01 * rng.standard_normal((n, d))).astype("f")


def milliseconds(work) -> float:
    work()
    times = []
    for _ in range(5):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return 1e3 * min(times)


def cost() -> None:
    """Balls of negative radius hold nothing, so counting them is the pass over the pairs, and nothing is refined."""
    n = 10_000
    print("\n| ms, 10,000 x 10,000, one thread | scores alone | nearest | knn, k = 5 |\n|---|---|---|---|")
    for d in (2, 16, 64, 128):
        normal = [np.random.default_rng(s).standard_normal((n, d)).astype("f") for s in (0, 1)]
        for name, (x, y) in {"N(0, I)": normal, "clusters": (clusters(n, d), clusters(n + 1, d)[1:])}.items():
            nothing = np.full(n, -1, "f")
            times = [
                milliseconds(lambda: ops.radius_count(x, y, nothing)),  # noqa: B023
                milliseconds(lambda: ops.nearest(x, y)),  # noqa: B023
                milliseconds(lambda: ops.knn(x, y, k=5)),  # noqa: B023
            ]
            print(f"| {name}, d = {d} | " + " | ".join(f"{t:.0f}" for t in times) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true", help="time it too, on one thread")
    asked = parser.parse_args()
    accuracy()
    if asked.cost:
        from generant import set_num_threads

        set_num_threads(1)
        cost()
