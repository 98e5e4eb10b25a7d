"""Diffusion: schedules (which noise levels), samplers (which update), objectives (what to fit), and what builds on
them: guidance and editing, likelihoods, distillation, an analytic lab, diffusers' schedulers without torch."""

from .distillation import consistency_distillation_loss, consistency_training_loss, reflow_pairs
from .editing import inpaint, interpolate, sdedit, slerp
from .guidance import Guidance, classifier_free, classifier_guidance
from .likelihood import bits_per_dim, dequantise, log_likelihood
from .mersenne import TorchCpuNoise
from .objectives import Edm, Objective, ot_pairing
from .plan import Plan, Stage, rescaled
from .predictions import denoiser_of
from .samplers import SAMPLERS
from .sampling import Stepper, initial_noise, sample
from .scheduler import Scheduler
from .schedules import karras_sigmas
from .variational import variational_bound

__all__ = [
    "SAMPLERS", "Edm", "Guidance", "Objective", "Plan", "Scheduler", "Stage", "Stepper", "TorchCpuNoise",
    "bits_per_dim", "classifier_free", "classifier_guidance", "consistency_distillation_loss",
    "consistency_training_loss", "denoiser_of", "dequantise", "initial_noise", "inpaint", "interpolate",
    "karras_sigmas", "log_likelihood", "ot_pairing", "reflow_pairs", "rescaled", "sample", "sdedit", "slerp",
    "variational_bound",
]  # fmt: skip
