"""Optimisers on one flat parameter buffer: Adam, Lion, SGD, moving averages, clipping, learning-rate schedules.

A model's parameters are one contiguous 1-d array (nn.Module keeps them so), and so are its gradients. An optimiser owns
the arrays a step changes; they are listed in `state`, which is what a recorded step declares and a checkpoint saves.
The learning rate and the decay are arrays too, so that changing them never needs a new recording. Schedules are plain
functions of the step number: `opt.lr[0] = cosine(step, ...)`.
"""

from .adam import Adam, AdamW, clip
from .ema import EMA
from .lion import Lion
from .power_ema import PowerEma, Snapshot, power_of, reconstruct
from .schedules import constant, cosine, linear
from .sgd import SGD
from .state import Stateful

__all__ = [
    "EMA", "SGD", "Adam", "AdamW", "Lion", "PowerEma", "Snapshot", "Stateful",
    "clip", "constant", "cosine", "linear", "power_of", "reconstruct",
]  # fmt: skip
