"""Samples between two samples, in whatever a model draws its samples from.

Where a model decodes latents they are those of two samples, on a straight line. A generator's noise and the noise that
a diffusion starts from are turned into each other on the sphere, as normal numbers have all but one length there
(Shoemake, 1985; Song, Meng and Ermon, 2021, D.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import diffusion, ops
from ..random import Stream, seed_from, split
from .diffusion import Diffusion
from .estimator import check_count
from .generative import SAMPLE
from .generator_model import GeneratorModel, latents
from .latent import LatentModel

__all__ = ["interpolate"]


def interpolate(model: Any, n: int = 8, y: Any = None, random_state: int | None = None) -> np.ndarray:
    """n samples (n, ...) from the model's first of this seed to its second, both included.

    y: the class of all of them; of a conditional model the first class if absent. TypeError for other models.
    """
    where, seed = "interpolate", seed_from(random_state)
    n = check_count(where, "n", n, 2)
    if not isinstance(model, (LatentModel, GeneratorModel, Diffusion)):
        raise TypeError(f"{where}: there is no line between samples of a {type(model).__name__}")
    model._fitted(where)
    if y is None and model.classes_ is not None:
        y = model.classes_[0]
    codes = model._codes(2, y, seed)
    if isinstance(model, LatentModel):
        a, b = model.sample(2, y, seed, device="cpu")
        return model.interpolate(a, b, n, y if model.labels_matter else None)
    keys, t = split(Stream(seed, SAMPLE).at(0), 2), np.linspace(0, 1, n)
    codes = None if codes is None else np.repeat(codes[:1], n)
    if isinstance(model, GeneratorModel):
        ends = ops.normals(keys, np.zeros(1, np.uint64), np.ones(1), shape=(model.latent_dim,))
        z = _between(ends, t)
        return model._present(model.networks_["generator"](latents(z, model.latent_signs), codes).reshape(n, -1))
    goal = model.objective_
    plan, shape = model._plan(goal), model._image or (model.scaling_.size,)
    x = _between(diffusion.initial_noise(plan, keys, shape), t)
    rows = diffusion.sample(
        goal.predictor(model._denoiser, codes), x, plan, prediction=goal.prediction,
        keys=np.repeat(keys[:1], n, axis=0), clip=model._bound if model.clip else None,
    )  # fmt: skip
    return model._present(rows.reshape(n, -1))


def _between(ends: np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(diffusion.slerp(ends[:1], ends[1:], float(w))) for w in t]).astype(ends.dtype)
