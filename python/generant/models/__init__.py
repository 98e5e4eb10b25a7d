"""Models that learn a distribution from rows: fit, sample, save, load."""

from .diffusion import Diffusion
from .estimator import DivergedError, Estimator, NotFittedError

__all__ = ["Diffusion", "DivergedError", "Estimator", "NotFittedError"]
