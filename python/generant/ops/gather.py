"""Rows of a table by index, and its adjoint: adding rows into a table.

The embedding lookup and its gradient, for indices of any shape. scatter_add adds the rows of one destination in the
order of the indices, whatever the number of threads. Indices are checked before a kernel runs: a kernel never sees one
that is out of range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._table import op, rule

__all__ = ["gather", "scatter_add"]

SIZES = [
    dict(m=1, d=1, _=(1,)),
    dict(m=5, d=7, _=(13,)),
    dict(m=11, d=37, _=(3, 2)),
    dict(m=4, d=5, _=()),
    dict(m=3, d=4, _=(0,)),
    dict(m=64, d=33, _=(1031,)),
]


def _check(name, index, m):
    bad = (index < 0) | (index >= m)
    if bad.any():
        at = tuple(map(int, np.unravel_index(int(np.argmax(bad)), index.shape)))
        place = f"index[{', '.join(map(str, at))}]" if at else "index"
        raise ValueError(f"{name}: {place} is {int(index[at])}, wanted 0 <= index < {m} (m, the rows of the table)")


def _check_gather(table, index):
    _check("gather", index, table.shape[0])


def _check_scatter_add(g, index, *, m):
    _check("scatter_add", index, m)


@op("table: m d, index: ... int64 -> ... d", sizes=SIZES, domain={"index": "m"}, check=_check_gather, keep="x")
def gather(table: Any, index: Any) -> Any:
    """table[index]: row index[i] of the table, for every i.

    table (m, d); index (...) int64 in 0 ... m - 1. Returns (..., d). Raises ValueError if an index is out of range.
    """
    return table[index]


@op("g: ... d, index: ... int64 -> m d", sizes=SIZES, domain={"index": "m"}, check=_check_scatter_add, keep="x")
def scatter_add(g: Any, index: Any, *, m: int) -> Any:
    """Zeros (m, d) with g[i] added to row index[i], for every i in order: the adjoint of gather.

    g (..., d); index (...) int64 in 0 ... m - 1. Returns (m, d). Raises ValueError if an index is out of range.
    """
    y = np.zeros((m, g.shape[-1]), g.dtype)
    np.add.at(y, index, g)
    return y


rule(gather, lambda gys, ys, needs, table, index: [scatter_add(gys[0], index, m=table.shape[0]), None])
rule(scatter_add, lambda gys, ys, needs, g, index, *, m: [gather(gys[0], index), None])
