"""Samplers: which steps and loops are measured, and their goals. See cases.py."""

from __future__ import annotations

from case import Case, family
from work_diffusion import AddNoise, DenoisingLoss, SamplingLoop, SchedulerStep

IMAGES, SMALL = (64, 3, 64, 64), (1, 3, 32, 32)
SMALL_SECONDS = 6e-6
DPM = "DPMSolverMultistepScheduler"

# name in the table, class, arrays of one step, noise, config, goal against diffusers
STEPS = [
    ("Euler", "EulerDiscreteScheduler", 3, False, "{}", 4),
    ("DDIM", "DDIMScheduler", 3, False, '{"clip_sample": false}', 6),
    ("DPM++ 2M", DPM, 5, False, "{}", 6),
    ("DDPM", "DDPMScheduler", 3, True, "{}", 10),
    ("DPM++ 2M SDE", DPM, 5, True, '{"algorithm_type": "sde-dpmsolver++"}', 10),
    ("UniPC-2", "UniPCMultistepScheduler", 6, False, '{"lower_order_final": false}', 12),
]
SMALL_STEPS = [
    *(step[:5] for step in STEPS),
    ("UniPC-3", "UniPCMultistepScheduler", 7, False, '{"solver_order": 3, "lower_order_final": false}'),
    ("Euler a", "EulerAncestralDiscreteScheduler", 3, True, "{}"),
    ("Heun", "HeunDiscreteScheduler", 4, False, "{}"),
    ("DPM2", "KDPM2DiscreteScheduler", 4, False, "{}"),
    ("DPM2 a", "KDPM2AncestralDiscreteScheduler", 4, True, "{}"),
    ("DPM++ 3M", DPM, 6, False, '{"solver_order": 3}'),
    ("DPM++ 2S", "DPMSolverSinglestepScheduler", 5, False, '{"lower_order_final": false}'),
    ("DEIS", "DEISMultistepScheduler", 5, False, "{}"),
    ("LMS", "LMSDiscreteScheduler", 7, False, "{}"),
    ("PNDM", "PNDMScheduler", 7, False, '{"skip_prk_steps": true}'),
    ("iPNDM", "IPNDMScheduler", 7, False, "{}"),
    ("LCM", "LCMScheduler", 3, True, "{}"),
    ("TCD", "TCDScheduler", 3, True, "{}"),
    ("EDM Euler", "EDMEulerScheduler", 3, False, "{}"),
    ("flow Euler", "FlowMatchEulerDiscreteScheduler", 3, False, "{}"),
]
LOOPS = [
    ("euler", False), ("heun", False), ("dpm2", False), ("lms", False), ("dpmpp_2m", False), ("euler_ancestral", True),
    ("dpmpp_2s_ancestral", True), ("dpmpp_sde", True), ("dpmpp_2m_sde", True), ("dpmpp_3m_sde", True),
]  # fmt: skip

DIFFUSION = [
    *family(
        "Scheduler steps, 64x3x64x64",
        *(
            Case(
                f"{title} scheduler 64x3x64x64", SchedulerStep(name, IMAGES, arrays, noisy, config), {"diffusers": goal}
            )
            for title, name, arrays, noisy, config, goal in STEPS
        ),
        Case("add_noise 64x3x64x64", AddNoise(IMAGES), {"diffusers": 8}),
        Case("noisy input, loss, gradient 64x3x64x64", DenoisingLoss(IMAGES), {"torch": 5}),
    ),
    *family(
        "Scheduler steps, 1x3x32x32",
        *(
            Case(f"{title} scheduler 1x3x32x32", SchedulerStep(name, SMALL, arrays, noisy, config), {}, SMALL_SECONDS)
            for title, name, arrays, noisy, config in SMALL_STEPS
        ),
    ),
    *family(
        "Sampling loops of 20 steps, 64x3x64x64",
        *(
            Case(f"{name} loop 64x3x64x64", SamplingLoop(name, IMAGES, noisy), {"k-diffusion": 4})
            for name, noisy in LOOPS
        ),
    ),
]
