"""Every reduction over all pairs of two point sets, in O(n m) time and O(n + m) memory.

Arrays in (NumPy, CuPy, torch tensors, anything NumPy can read), arrays of the same library out. Arrays on a GPU are
computed there; all arrays of a call must then be. float32 and float64 are computed as they are; float16, bool and
integers of at most 16 bits become float32, wider integers float64. Leading axes are batches. Rows that are not finite
are refused by index; traced arrays (generant.autograd) are not checked. n_threads limits the threads of one call, never
changes its result; out receives the result.

The ops underneath, generant.ops.kernel_sum and so on, take float arrays only, let NaN through, and are what
derivatives are taken of.
"""

from .kernels import kernel_matvec, kernel_row_sums, kernel_sum, median_distance
from .search import argmin, knn, min_argmin, radius_count
from .softmax import kde_logpdf, logsumexp, softmax_matmul
from .transport import Transport, sinkhorn

__all__ = [
    "Transport", "argmin", "kde_logpdf", "kernel_matvec", "kernel_row_sums", "kernel_sum", "knn", "logsumexp",
    "median_distance", "min_argmin", "radius_count", "sinkhorn", "softmax_matmul",
]  # fmt: skip
