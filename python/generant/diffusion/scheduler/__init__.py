"""diffusers' schedulers without torch: `Scheduler.from_config`. Importing the package enters every class."""

from . import (
    consistency,
    ddim,
    ddpm,
    deis,
    dpm_multistep,
    dpm_sde,
    dpm_singlestep,
    edm_dpm,
    edm_euler,
    euler,
    few_step,
    flow_match,
    heun,
    ipndm,
    lms,
    pndm,
    unipc,
)
from .registry import FAMILIES
from .scheduler import Scheduler, SchedulerOutput

__all__ = [
    "FAMILIES", "Scheduler", "SchedulerOutput", "consistency", "ddim", "ddpm", "deis", "dpm_multistep", "dpm_sde",
    "dpm_singlestep", "edm_dpm", "edm_euler", "euler", "few_step", "flow_match", "heun", "ipndm", "lms", "pndm",
    "unipc",
]  # fmt: skip
