"""Layers as plain objects whose array attributes are their parameters. Knows ops, and nothing of backends."""

from . import init
from .attention import Attention
from .conv import Conv2d, ConvTranspose2d, Downsample, Upsample
from .dcgan import DCGANDiscriminator, DCGANGenerator
from .dit import DiT
from .embedding import Embedding, FourierFeatures, SinusoidalFeatures
from .gan import MlpDiscriminator, MlpGenerator, minibatch_stddev
from .learner import Learner
from .linear import Linear
from .mlp import MLP, MlpDenoiser, ResidualBlock
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
    to_device,
    to_host,
    value_and_grad,
)
from .norm import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from .residual import AttentionBlock, ResBlock
from .resnet_gan import ResNetDiscriminator, ResNetGenerator
from .spectral import SpectralNorm
from .summary import Summary, summary
from .unet import UNet2D

__all__ = [
    "MLP",
    "Attention",
    "AttentionBlock",
    "BatchNorm",
    "Buffer",
    "Conv2d",
    "ConvTranspose2d",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiT",
    "Downsample",
    "Embedding",
    "FourierFeatures",
    "GroupNorm",
    "LayerNorm",
    "Learner",
    "Linear",
    "MlpDenoiser",
    "MlpDiscriminator",
    "MlpGenerator",
    "Module",
    "Packed",
    "RMSNorm",
    "ResBlock",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "ResidualBlock",
    "SinusoidalFeatures",
    "SpectralNorm",
    "Summary",
    "UNet2D",
    "Upsample",
    "init",
    "load_state",
    "look_alike",
    "minibatch_stddev",
    "named_buffers",
    "named_parameters",
    "pack",
    "state",
    "summary",
    "to_device",
    "to_host",
    "value_and_grad",
]
