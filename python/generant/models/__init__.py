"""Models that learn a distribution from rows: fit, sample, save, load."""

from .classifier import GenerativeClassifier
from .diffusion import Diffusion
from .estimator import DivergedError, Estimator, NotFittedError
from .files import load
from .gan import GAN
from .gmmn import GMMN
from .interpolation import interpolate
from .vae import VAE
from .vqvae import FSQ, VQVAE

__all__ = [
    "FSQ",
    "GAN",
    "GMMN",
    "VAE",
    "VQVAE",
    "Diffusion",
    "DivergedError",
    "Estimator",
    "GenerativeClassifier",
    "NotFittedError",
    "interpolate",
    "load",
]
