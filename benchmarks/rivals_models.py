"""Whole models in torch (see rivals.py): the twins of torch_models.py.

As documented: n c h w, Adam with fused=True, AveragedModel. Best: channels_last where there are images, the average by
foreach or everything on one flat buffer, a tuned malloc; and torch.compile in its steady state, with nothing compiled
before it at hand. What it cannot compile, such as second derivatives, makes it missing.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import work_models as kinds
from registry import rival, with_torch

FRESH = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # or a second run would not compile


def _training(a: Any, work: Any, **options: Any) -> Any:
    with_torch()
    from torch_models import TWINS

    return kinds.losses_of(work, a, TWINS[type(work)](a, work, **options).step)


def compiling(setup: Any) -> Any:
    """The setup with its first call timed, as a.compiled seconds; what fails in it is missing."""

    def timed(a: Any, work: Any) -> Any:
        call = setup(a, work)

        def first() -> Any:
            start = time.perf_counter()
            try:
                result = call()
            except Exception as e:
                raise ModuleNotFoundError(f"torch.compile: {type(e).__name__}: {e}"[:200]) from e
            a.compiled = time.perf_counter() - start
            return result

        return lambda: call() if hasattr(a, "compiled") else first()

    return timed


def _sampling(a: Any, work: Any, **options: Any) -> Any:
    with_torch()
    from torch_models import Sampling

    return Sampling(a, work, **options)


for kind in (kinds.MlpTraining, kinds.VaeTraining):
    rival(kind, "torch", tuned=True)(_training)
    rival(kind, "torch flat", best=True, tuned=True)(partial(_training, setting="flat"))
    rival(kind, "torch.compile", best=True, env=FRESH)(compiling(partial(_training, setting="flat", compiled=True)))

fast = {"channels_last": True, "setting": "foreach"}
for kind in (kinds.GanTraining, kinds.DenoiserTraining):
    rival(kind, "torch", tuned=True)(_training)
    rival(kind, "torch channels_last", best=True, tuned=True)(partial(_training, **fast))
    rival(kind, "torch.compile", best=True, env=FRESH)(compiling(partial(_training, compiled=True, **fast)))

for kind in (kinds.Denoising, kinds.Sampling):
    rival(kind, "torch", tuned=True)(_sampling)
    rival(kind, "torch channels_last", best=True, tuned=True)(partial(_sampling, channels_last=True))
    compiled = compiling(partial(_sampling, channels_last=True, compiled=True))
    rival(kind, "torch.compile", best=True, env=FRESH)(compiled)
