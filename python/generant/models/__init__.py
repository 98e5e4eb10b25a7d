"""Models that learn a distribution from rows: fit, sample, save, load."""

from .diffusion import Diffusion
from .estimator import DivergedError, Estimator, NotFittedError
from .gan import GAN
from .gmmn import GMMN

__all__ = ["GAN", "GMMN", "Diffusion", "DivergedError", "Estimator", "NotFittedError"]
