"""Scores of generated samples from features: metric(real, fake), in O(n + m) memory.

Arrays of shape (n, d) go in (anything NumPy can read), Python floats come out. No network is bundled: bring features.
"""

from .mmd import kid, median_distance, mmd2
from .neighbours import authenticity, memorised_fraction, nearest_distance, prdc

__all__ = ["authenticity", "kid", "median_distance", "memorised_fraction", "mmd2", "nearest_distance", "prdc"]
