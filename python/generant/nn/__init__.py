"""Layers as plain objects whose array attributes are their parameters. Knows ops, and nothing of backends."""

from . import init
from .dcgan import DCGANDiscriminator, DCGANGenerator
from .embedding import Embedding, FourierFeatures
from .learner import Learner
from .gan import MlpDiscriminator, MlpGenerator, minibatch_stddev
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
from .resnet_gan import ResNetDiscriminator, ResNetGenerator
from .spectral import SpectralNorm

__all__ = [
    "Buffer",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Embedding",
    "FourierFeatures",
    "LayerNorm",
    "Learner",
    "Linear",
    "MlpDenoiser",
    "MlpDiscriminator",
    "MlpGenerator",
    "Module",
    "Packed",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "ResidualBlock",
    "SpectralNorm",
    "init",
    "load_state",
    "look_alike",
    "named_buffers",
    "minibatch_stddev",
    "named_parameters",
    "pack",
    "state",
    "value_and_grad",
]
