"""Whole models: architectures, batches and goals. See cases.py."""

from __future__ import annotations

from typing import Any

from case import Case, family
from work_models import DenoiserTraining, Denoising, GanTraining, MlpTraining, Sampling, VaeTraining

UNET8: dict[str, Any] = {"n": 128, "size": 8, "c": 1, "channels": (32, 64)}  # 0.70 M parameters
UNET28: dict[str, Any] = {"n": 64, "size": 28, "c": 1, "channels": (32, 64, 64)}  # 1.11 M
CIFAR: dict[str, Any] = {  # 35.7 M: Ho et al. (2020), without dropout
    "n": 4, "size": 32, "c": 3, "channels": (128, 256, 256, 256), "blocks": 2, "attention": (1,),
    "features": "sinusoidal",
}  # fmt: skip


def faster(times: float) -> dict[str, Any]:
    """So many times as fast as torch in either memory order, in no more memory."""
    return {"goals": {"torch": times, "torch channels_last": times}, "lean": True}


MODELS = [
    *family(
        "Whole models: training steps",
        Case("training step, MLP of 3 layers of 128, batch 256", MlpTraining(), {"torch": 2.5}, lean=True),
        Case("training step, MLP VAE on digits, batch 256", VaeTraining(), {"torch": 3}, lean=True),
        Case("training steps, DCGAN 28x28x1 with R1, batch 64", GanTraining(), **faster(3)),
        Case("training step, UNet 8x8x1, batch 128", DenoiserTraining(**UNET8), **faster(3)),
        Case("training step, UNet 28x28x1, batch 64", DenoiserTraining(**UNET28), **faster(2.5)),
        Case(
            "training step, DDPM of CIFAR-10 32x32x3, batch 4",
            DenoiserTraining(**CIFAR, steps=3, lr=2e-4),
            **faster(2),
        ),
    ),
    *family(
        "Whole models: forward and sampling",
        Case("5 Euler steps, UNet 8x8x1, batch 128", Sampling(**UNET8), **faster(3.5)),
        Case("5 Euler steps, UNet 28x28x1, batch 64", Sampling(**UNET28), **faster(3)),
        Case("forward, DDPM of CIFAR-10 32x32x3, batch 4", Denoising(**CIFAR), **faster(2.2)),
    ),
]
