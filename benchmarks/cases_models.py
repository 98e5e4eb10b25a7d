"""Whole models: architectures, batches and goals. See cases.py."""

from __future__ import annotations

from case import Case, family
from work_models import MlpTraining, VaeTraining

MODELS = [
    *family(
        "Whole models: training steps",
        Case("training step, MLP of 3 layers of 128, batch 256", MlpTraining(), {"torch": 2.5}, lean=True),
        Case("training step, MLP VAE on digits, batch 256", VaeTraining(), {"torch": 3}, lean=True),
    ),
]
