"""Scores of generated samples from features: metric(real, fake), in O(n + m) memory.

Arrays of shape (n, d) go in (anything NumPy can read), Python floats come out. No network is bundled: bring features.
"""

from .evaluate import Evaluation, evaluate
from .fld import fld
from .frechet import GaussianStatistics, calculate_frechet_distance, frechet_distance
from .memorisation import (
    authenticity,
    ct_score,
    memorisation_ratio,
    memorised_fraction,
    mifid,
    nearest_distance,
    nearest_train_ratio,
)
from .mmd import cmmd, energy_distance, kid, median_distance, mmd2
from .neighbours import compute_prdc, prdc, precision_recall, rarity, realism
from .spectral import vendi_score
from .transport import mind, sinkhorn_divergence, sliced_wasserstein
from .two_sample import mmd_test

__all__ = [
    "Evaluation", "GaussianStatistics", "authenticity", "calculate_frechet_distance", "cmmd", "compute_prdc",
    "ct_score", "energy_distance", "evaluate", "fld", "frechet_distance", "kid", "median_distance",
    "memorisation_ratio", "memorised_fraction", "mifid", "mind", "mmd2", "mmd_test", "nearest_distance",
    "nearest_train_ratio", "prdc", "precision_recall", "rarity", "realism", "sinkhorn_divergence",
    "sliced_wasserstein", "vendi_score",
]  # fmt: skip
