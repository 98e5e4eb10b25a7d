"""Sums and searches over all pairs of two point sets, without the n x m matrix. See generant.ops.pairwise."""

from .ops.pairwise import kernel_sum, knn, radius_count

__all__ = ["kernel_sum", "knn", "radius_count"]
