"""Layers as plain objects whose array attributes are their parameters. Knows ops, and nothing of backends."""

from . import init
from .embedding import Embedding, FourierFeatures
from .learner import Learner
from .linear import Linear
from .mlp import MlpDenoiser, ResidualBlock
from .module import (
    Buffer,
    Module,
    Packed,
    load_state,
    look_alike,
    named_buffers,
    named_parameters,
    pack,
    state,
    value_and_grad,
)
from .norm import LayerNorm

__all__ = [
    "Buffer",
    "Embedding",
    "FourierFeatures",
    "LayerNorm",
    "Learner",
    "Linear",
    "MlpDenoiser",
    "Module",
    "Packed",
    "ResidualBlock",
    "init",
    "load_state",
    "look_alike",
    "named_buffers",
    "named_parameters",
    "pack",
    "state",
    "value_and_grad",
]
