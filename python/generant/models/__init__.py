"""Models that learn a distribution from rows: fit, sample, save, load."""

from .diffusion import Diffusion
from .estimator import DivergedError, Estimator, NotFittedError
from .vae import VAE
from .vqvae import FSQ, VQVAE

__all__ = ["FSQ", "VAE", "VQVAE", "Diffusion", "DivergedError", "Estimator", "NotFittedError"]
