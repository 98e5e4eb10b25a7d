"""What ptxas said of every kernel (nvcc -Xptxas=-v): no spills, and a budget of registers: cuda_registers.py LOG

A kernel that keeps tiles of products in registers may have 255, and so may those of float64; the others 128: above that
too few warps fit beside each other to hide the latency of memory.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ORDINARY, TILES = 128, 255
TILE_KERNELS = re.compile(r"gemm|attention|pair|tile|knn|nearest|matvec|logsumexp|softmax_matmul|radius", re.IGNORECASE)


def main(path: str) -> int:
    text = Path(path).read_text()
    found = re.findall(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?\n.*?\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\nptxas info\s+: Used (\d+) registers",
        text,
    )
    if not found:
        print(f"{path}: no kernels in the log")
        return 1
    names = subprocess.run(
        ["c++filt"], input="\n".join(f[0] for f in found), capture_output=True, text=True, check=True
    )
    bad = 0
    table = []
    for (_, arch, frame, stores, loads, registers), name in zip(found, names.stdout.splitlines(), strict=True):
        name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
        limit = TILES if TILE_KERNELS.search(name) or "double" in name else ORDINARY
        if int(stores) or int(loads) or int(registers) > limit:
            bad += 1
            print(f"{arch}: {registers} registers (limit {limit}), spills {stores} + {loads} bytes: {name[:150]}")
        table.append((int(registers), int(frame), name))
    table.sort(reverse=True)
    print(f"{len(table)} kernels; registers: at most {table[0][0]}, half of them at most {table[len(table) // 2][0]}")
    for registers, frame, name in table[:5]:
        print(f"  {registers} registers, {frame} bytes of stack: {name[:120]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
