"""Shape specs: one line per op gives the check, the output shapes, the error messages and the test shapes.

    "x: ... d, w: d o, index?: n int64 -> ... o, n k int64"

An argument is a name and its dimensions: letters (equal letters are equal sizes), digits (that size), `...` (any number
of dimensions, the same for all that have it), `scalar` (none). A trailing dtype word fixes the dtype; without it the
array has the op's float type T. `?` marks an argument that may be None. Outputs need no name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "int64", "uint64", "uint8", "uint32")}
DTYPE_NUMBER = {dtype: i for i, dtype in enumerate(DTYPES.values())}  # the Dtype enum of csrc/kernel.h
FLOATS = ("float32", "float64", "longdouble")


@dataclass(frozen=True)
class Term:
    """One array of a spec."""

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype | None  # None: the op's float type T
    optional: bool = False

    @property
    def text(self) -> str:
        return " ".join(self.dims) or "scalar"


def _term(text: str, name: str = "", optional: bool = False) -> Term:
    words = [word for word in text.split() if word != "scalar"]
    dtype = DTYPES[words.pop()] if words and words[-1] in DTYPES else None
    return Term(name, tuple(words), dtype, optional)


class Spec:
    """A parsed spec. loose: `...` may differ between arguments (the op works out its own output shapes)."""

    def __init__(self, op: str, text: str, loose: bool = False) -> None:
        left, _, right = text.partition("->")
        self.op, self.text, self.loose = op, text, loose
        self.inputs: list[Term] = []
        for part in filter(str.strip, left.split(",")):
            name, _, dims = part.partition(":")
            name = name.strip()
            if not re.fullmatch(r"\w+\??", name):
                raise ValueError(f"{op}: bad argument {name!r} in spec {text!r}")
            self.inputs.append(_term(dims, name.rstrip("?"), name.endswith("?")))
        self.outputs = [_term(part) for part in right.split(",")] if right.strip() else []

    def float_type(self, arrays: Sequence[Any]) -> np.dtype | None:
        """T: the dtype shared by all arrays without a dtype of their own, or None if there are none."""
        found: np.dtype | None = None
        first = ""
        for term, a in zip(self.inputs, arrays, strict=False):
            if a is None or term.dtype is not None:
                continue
            if a.dtype.name not in FLOATS and a.dtype != np.longdouble:
                raise TypeError(
                    f"{self.op}: {term.name} must be float32 or float64, got {a.dtype}; convert it with .astype first"
                )
            if found is None:
                found, first = a.dtype, term.name
            elif a.dtype != found:
                raise TypeError(
                    f"{self.op}: {term.name} is {a.dtype} but {first} is {found}; convert one of them with .astype"
                )
        return found

    def check(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """The size of every letter (`...` is a tuple of sizes), or an error that names op, argument, got and wanted."""
        dims: dict[str, Any] = {}
        for term, a in zip(self.inputs, arrays, strict=True):
            if a is None:
                if not term.optional:
                    raise TypeError(f"{self.op}: {term.name} must be an array ({term.text}), got None")
                continue
            if term.dtype is not None and a.dtype != term.dtype:
                raise TypeError(
                    f"{self.op}: {term.name} must be {term.dtype}, got {a.dtype}; convert it with .astype first"
                )
            self._match(term, a, dims, arrays)
        return dims

    def _match(self, term: Term, a: Any, dims: dict[str, Any], arrays: Sequence[Any]) -> None:
        shape, letters = a.shape, term.dims
        if "..." in letters:
            at = letters.index("...")
            n_rest = len(shape) - (len(letters) - 1)
            if n_rest < 0:
                raise ValueError(
                    f"{self.op}: {term.name} must have at least {len(letters) - 1} dimensions ({term.text}), "
                    f"got shape {shape}"
                )
            pairs = list(zip(letters[:at], shape[:at], strict=True))
            if not self.loose:
                pairs.append(("...", shape[at : at + n_rest]))
            pairs += zip(letters[at + 1 :], shape[at + n_rest :], strict=True)
        elif len(shape) != len(letters):
            raise ValueError(
                f"{self.op}: {term.name} must have {len(letters)} dimensions ({term.text}), got shape {shape}"
            )
        else:
            pairs = list(zip(letters, shape, strict=True))
        for letter, n in pairs:
            wanted = int(letter) if letter.isdigit() else dims.setdefault(letter, n)
            if wanted != n and letter.isdigit():
                raise ValueError(f"{self.op}: {term.name} must have shape ({' '.join(letters)}), got {tuple(shape)}")
            if wanted != n:
                raise ValueError(
                    f"{self.op}: {letter} is {wanted} but {term.name} has {letter} = {n} ({self._shapes(arrays)})"
                )

    def _shapes(self, arrays: Sequence[Any]) -> str:
        return ", ".join(
            f"{t.name}: {t.text} = {a.shape}" for t, a in zip(self.inputs, arrays, strict=True) if a is not None
        )

    def output_shapes(self, dims: dict[str, Any]) -> list[tuple[int, ...]]:
        """Output shapes, given a size for every letter."""
        shapes = []
        for term in self.outputs:
            shape: list[int] = []
            for letter in term.dims:
                size: Any = int(letter) if letter.isdigit() else dims[letter]
                shape += size if letter == "..." else [size]
            shapes.append(tuple(shape))
        return shapes
