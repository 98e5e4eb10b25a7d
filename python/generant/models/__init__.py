"""Models that learn a distribution from rows: fit, sample, save, load."""

from .diffusion import Diffusion
from .estimator import DivergedError, Estimator, NotFittedError
from .gan import GAN

__all__ = ["GAN", "Diffusion", "DivergedError", "Estimator", "NotFittedError"]
