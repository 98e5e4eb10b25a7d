"""Schedules: which noise at which time. Betas and their products, continuous processes, noise levels, time steps.

One idea: everything here is computed once, in float64, and cannot be written to. Samplers take the levels, networks the
times. What is not here: the update rules (samplers) and the training distribution of levels (objectives).
"""

from .betas import BETA_SCHEDULES, alphas_cumprod, betas, zero_terminal_snr
from .discrete import DiscreteSchedule
from .levels import (
    AYS_LEVELS,
    ays_sigmas,
    beta_sigmas,
    exponential_sigmas,
    karras_sigmas,
    lu_sigmas,
    polyexponential_sigmas,
)
from .plots import plot_levels
from .processes import VE, VP, Cosine, Process, SubVP
from .times import dynamic_mu, flow_times, shift_of_mu, shifted, timesteps

__all__ = [
    "AYS_LEVELS",
    "BETA_SCHEDULES",
    "VE",
    "VP",
    "Cosine",
    "DiscreteSchedule",
    "Process",
    "SubVP",
    "alphas_cumprod",
    "ays_sigmas",
    "beta_sigmas",
    "betas",
    "dynamic_mu",
    "exponential_sigmas",
    "flow_times",
    "karras_sigmas",
    "lu_sigmas",
    "plot_levels",
    "polyexponential_sigmas",
    "shift_of_mu",
    "shifted",
    "timesteps",
    "zero_terminal_snr",
]
