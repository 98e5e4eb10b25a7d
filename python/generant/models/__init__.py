"""Models that learn a distribution from rows: fit, sample, save, load."""

from .diffusion import Diffusion
from .estimator import DivergedError, Estimator, NotFittedError
from .vae import VAE

__all__ = ["VAE", "Diffusion", "DivergedError", "Estimator", "NotFittedError"]
