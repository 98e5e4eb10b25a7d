"""Schedules against diffusers: float32 tables to the bit, levels and times to float32.

Seen to fail: with the middle of the line counted from the other end; a step not rounded to float32; the vectorised
exponential in the remainder too; products in float32; 0.009 in the cosine schedule; zero SNR not scaled to the first
value.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr  # noqa: E402
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler, betas_for_alpha_bar  # noqa: E402
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler  # noqa: E402
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler  # noqa: E402
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (  # noqa: E402
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_utils import AysSchedules  # noqa: E402

from generant.diffusion import schedules  # noqa: E402
from generant.diffusion.schedules import (  # noqa: E402
    BETA_SCHEDULES,
    DiscreteSchedule,
    alphas_cumprod,
    betas,
    dynamic_mu,
    flow_times,
    timesteps,
    zero_terminal_snr,
)

# torch without fused multiply-add rounds its float32 lines otherwise
fused = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="torch runs without fused multiply-add here"
)
RANGES = ((1e-4, 0.02), (0.00085, 0.012), (0.0015, 0.0195))
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def theirs(name: str, n: int, start: float, end: float):
    if name in ("exp", "cosine"):  # no scheduler has these names
        return betas_for_alpha_bar(n, alpha_transform_type=name)
    return DDPMScheduler(n, start, end, name).betas


@fused
@pytest.mark.parametrize("n", [10, 100, 1000])
@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_tables_are_bit_equal(name, n):
    for start, end in RANGES:
        peer = theirs(name, n, start, end)
        own = betas(name, n, beta_start=start, beta_end=end, precision="float32")
        np.testing.assert_array_equal(own, peer.numpy(), strict=True)
        np.testing.assert_array_equal(alphas_cumprod(own), torch.cumprod(1 - peer, 0).numpy(), strict=True)


def test_trained_betas_are_bit_equal():
    given = np.linspace(0.01, 0.3, 17) ** 2
    peer = DDPMScheduler(17, trained_betas=given)
    own = betas(trained=given, precision="float32")
    np.testing.assert_array_equal(own, peer.betas.numpy(), strict=True)
    np.testing.assert_array_equal(alphas_cumprod(own), peer.alphas_cumprod.numpy(), strict=True)


@pytest.mark.parametrize("name", BETA_SCHEDULES)
def test_zero_terminal_snr(name, monkeypatch):
    """Near the data's bits as it is, and bit-equal when torch's square root is correctly rounded."""
    for n in (10, 100, 1000):
        own = betas(name, n, precision="float32")
        rescaled = zero_terminal_snr(own)
        peer = rescale_zero_terminal_snr(torch.tensor(own))
        np.testing.assert_allclose(rescaled, peer.numpy(), rtol=0, atol=1e-4)
        products = torch.cumprod(1 - peer, 0).numpy()
        np.testing.assert_allclose(alphas_cumprod(rescaled), products, rtol=1e-4, atol=1e-7)
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda self: torch.from_numpy(np.sqrt(self.numpy())))
    for n in (10, 100, 1000):
        own = betas(name, n, precision="float32")
        peer = rescale_zero_terminal_snr(torch.tensor(own)).numpy()
        np.testing.assert_array_equal(zero_terminal_snr(own), peer, strict=True)


@fused
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_sigmas_differ_by_one_ulp_at_most(name):
    for start, end in RANGES:
        peer = EulerDiscreteScheduler(1000, start, end, name)
        sigmas = DiscreteSchedule(betas(name, beta_start=start, beta_end=end, precision="float32")).sigmas
        np.testing.assert_array_max_ulp(sigmas, peer.sigmas[:-1].numpy()[::-1], maxulp=1)


def test_time_of_a_level():
    peer = EulerDiscreteScheduler(**SD)
    table = DiscreteSchedule(betas("scaled_linear", beta_start=0.00085, beta_end=0.012, precision="float32"))
    levels = np.geomspace(0.02, 20, 57)  # both ends lie beyond the table
    times = peer._sigma_to_t(levels, np.log(table.sigmas.astype(np.float64)))
    np.testing.assert_allclose(table.time_of(levels), times, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_train", [10, 1000])
def test_timesteps(n_train):
    for n in {1, 2, 10, *range(3, n_train + 1, 1 if n_train == 10 else 29)}:  # 61 among them: a step too many, theirs
        for spacing in ("leading", "linspace", "trailing"):
            offset = int(spacing == "leading" and n < n_train)  # with n_train steps theirs are out of range
            peer = DDIMScheduler(n_train, timestep_spacing=spacing, steps_offset=offset)
            peer.set_timesteps(n)
            own = timesteps(n_train, n, spacing, offset=offset)
            if (spacing, n) == ("linspace", 1):  # theirs asks at t = 0 only
                assert peer.timesteps.tolist() == [0] and own.tolist() == [n_train - 1]
            else:
                np.testing.assert_array_equal(own, peer.timesteps.numpy()[:n])
    peer = DDIMScheduler(1000, timestep_spacing="trailing")
    peer.set_timesteps(61)
    assert len(peer.timesteps) == 62 and peer.timesteps[-1] == -1 and len(timesteps(1000, 61)) == 61


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("family", ["karras", "exponential", "beta", "lu"])
def test_families_of_levels(family):
    if family == "beta":
        pytest.importorskip("scipy")
    flag = "use_lu_lambdas" if family == "lu" else f"use_{family}_sigmas"
    peer = DPMSolverMultistepScheduler(**SD, **{flag: True}, timestep_spacing="trailing")
    table = DiscreteSchedule(betas("scaled_linear", beta_start=0.00085, beta_end=0.012))
    for n in (2, 9, 30):
        peer.set_timesteps(n)
        own = getattr(schedules, f"{family}_sigmas")(n, sigma_min=table.sigmas[0], sigma_max=table.sigmas[-1])
        # their lowest level comes of a float32 table, 1e-4 off; it weighs less above
        np.testing.assert_allclose(own, peer.sigmas.numpy(), rtol=2e-4)
        np.testing.assert_allclose(own[0], peer.sigmas[0], rtol=1e-6)


def test_ays_tables():
    for model, name in (("SD1", "StableDiffusion"), ("SDXL", "StableDiffusionXL"), ("SVD", "StableDiffusionVideo")):
        np.testing.assert_array_equal(schedules.ays_sigmas(model), AysSchedules[f"{name}Sigmas"])
    steps = AysSchedules["StableDiffusionTimesteps"]
    table = DiscreteSchedule(betas("scaled_linear", beta_start=0.00085, beta_end=0.012))
    np.testing.assert_allclose(table.time_of(schedules.ays_sigmas("SD1")[:-1]), steps, atol=1.5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_flow_times(kind):
    for n in (2, 7, 28):
        plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
        plain.set_timesteps(sigmas=np.linspace(1, 1 / n, n))
        np.testing.assert_allclose(flow_times(n, shift=3.0), plain.sigmas.numpy(), rtol=3e-7)
        mu = dynamic_mu(1024)
        peer = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        peer.set_timesteps(n, mu=mu)
        np.testing.assert_allclose(flow_times(n, mu=mu, kind=kind, last=1 / 1000), peer.sigmas.numpy(), rtol=1e-6)
        peer = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, shift_terminal=0.1)
        peer.set_timesteps(sigmas=np.linspace(1, 1 / n, n), mu=mu)
        own = flow_times(n, mu=mu, kind=kind, shift_terminal=0.1)
        np.testing.assert_allclose(own, peer.sigmas.numpy(), rtol=1e-6)
