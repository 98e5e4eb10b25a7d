"""Moving without computing, Numba: NumPy's own copies, into arrays that are there."""

from __future__ import annotations

import numpy as np

from ._kernel import kernel


@kernel
def assign_(dst, src):
    np.copyto(dst, src)
