"""Diffusion in three ideas: schedules (which noise levels), samplers (which update), objectives (what to fit)."""

from .objectives import Edm
from .samplers import SAMPLERS, Step, dpmpp_2m, euler, heun, sample
from .schedules import karras_sigmas

__all__ = ["SAMPLERS", "Edm", "Step", "dpmpp_2m", "euler", "heun", "karras_sigmas", "sample"]
