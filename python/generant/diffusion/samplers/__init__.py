"""Samplers: functions from falling noise levels sigma / alpha to a `Plan`, by name in SAMPLERS.

They are written for x = data + sigma noise, where dx/dsigma = (x - D(x; sigma)) / sigma; `plan.rescaled` moves a plan
to another form. The deterministic ones run at full order to the last level above 0; a last step to 0 returns D itself.
Not in SAMPLERS, because they take something else: `ddim_inverse` makes noise of data, the flow_ samplers take times of
straight lines, `dormand_prince` chooses its own steps. Not here: the loop that runs a plan.
"""

from __future__ import annotations

from collections.abc import Callable

from ..plan import Plan
from .adaptive import dormand_prince
from .ancestral import ddim, ddpm, dpm2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from .exponential import dpmpp_2m, dpmpp_3m, unipc
from .few_step import consistency, lcm, tcd
from .flow import flow_euler, flow_heun, flow_rk4
from .multistep import deis, ipndm, lms, plms, pndm
from .sde import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, edm_churn
from .single import ddim_inverse, dpm2, dpmpp_2s, euler, heun, rk4

__all__ = [
    "DETERMINISTIC",
    "SAMPLERS",
    "STOCHASTIC",
    "consistency",
    "ddim",
    "ddim_inverse",
    "ddpm",
    "deis",
    "dormand_prince",
    "dpm2",
    "dpm2_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm_churn",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "flow_rk4",
    "heun",
    "ipndm",
    "lcm",
    "lms",
    "plms",
    "pndm",
    "rk4",
    "tcd",
    "unipc",
]  # fmt: skip

DETERMINISTIC = (euler, heun, dpm2, dpmpp_2s, rk4, dpmpp_2m, dpmpp_3m, unipc, lms, deis, ipndm, plms, pndm)
STOCHASTIC = (
    ddpm, ddim, euler_ancestral, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m_sde, dpmpp_3m_sde, edm_churn,
    consistency, lcm, tcd,
)  # fmt: skip
SAMPLERS: dict[str, Callable[..., Plan]] = {sampler.__name__: sampler for sampler in DETERMINISTIC + STOCHASTIC}
