"""Layers of networks: sizes and goals (see cases.py)."""

from __future__ import annotations

from case import Case, family
from work_attention import Attention, AttentionBf16, AttentionGradients
from work_conv import (
    AvgPool,
    Conv,
    ConvGradients,
    ConvTranspose,
    FirstLayer,
    MaxPool,
    Resize,
    UpsampleConv,
)
from work_norm import (
    BatchNorm,
    GroupNormSilu,
    GroupNormSiluGradients,
    LayerNorm,
    ResBlock,
    ResBlockGradients,
    RmsNorm,
    Softmax,
)

WORKERS, SCRATCH = 2, 9e6  # bytes of scratch per worker, for any batch
IMAGES = [(16, 128, 32), (16, 256, 16), (16, 256, 8), (64, 64, 14), (1, 64, 64), (1, 320, 64), (64, 32, 28)]
TOKENS = [(1, 8, 4096, 64, 1.4, 1.3), (16, 4, 256, 64, 1.6, 1.4), (64, 4, 64, 32, 3, 2.5)]
FLOAT = 4


def image(n: int, c: int, size: int) -> str:
    return f"{n}x{size}x{size}x{c}"


def convolved(n: int, c: int, o: int, size: int) -> dict:
    """At most this much memory: the result, the transformed filter (36 numbers for 9), and a constant."""
    return {"memory": FLOAT * (n * size**2 * o + 36 * c * o) + WORKERS * SCRATCH}


NETWORK = [
    *family(
        "Convolution 3x3, images n x h x w x channels",
        *(
            Case(f"conv {image(n, c, s)}", Conv(n, c, c, s), {"torch": 1.3}, error=1.2e-6, **convolved(n, c, c, s))
            for n, c, s in IMAGES
        ),
        mean={"torch": 2.2},
    ),
    *family(
        "Convolution 3x3 and its gradients in images and weights",
        *(
            Case(f"conv and gradients {image(n, c, s)}", ConvGradients(n, c, c, s), {"torch": 1.2}, error=1.2e-6)
            for n, c, s in IMAGES
        ),
        mean={"torch": 1.9},
    ),
    *family(
        "Other convolutions and resampling",
        Case("conv 1x1 16x16x16x256", Conv(16, 256, 256, 16, kernel=1, padding=0), {"torch": 1.1}),
        Case("conv 3x3/2 64x28x28x32 to 64", Conv(64, 32, 64, 28, stride=2), {"torch": 1.0}),
        Case("conv 4x4/2 transposed 64x14x14x128 to 64", ConvTranspose(64, 128, 64, 14), {"torch": 1.3}),
        Case("upsample, conv 3x3 16x16x16x128", UpsampleConv(16, 128, 128, 16), {"torch": 2}),
        Case("conv 3x3 depthwise 16x28x28x128", Conv(16, 128, 128, 28, groups=128), {"torch": 1.5}),
        Case("conv 3x3 in 4 groups 16x32x32x128", Conv(16, 128, 128, 32, groups=4), {"torch": 1.0}),
        Case("conv 3x3 128x28x28x1 to 32 and gradient in the weights", FirstLayer(128, 1, 32, 28), {"torch": 1.5}),
        Case("conv 3x3 64x32x32x128, four times the batch", Conv(64, 128, 128, 32), **convolved(64, 128, 128, 32)),
        Case("max_pool 2x2 16x32x32x128", MaxPool(16, 128, 32)),
        Case("avg_pool 2x2 16x32x32x128", AvgPool(16, 128, 32)),
        Case("resize bilinear 16x16x16x128 to 32x32", Resize(16, 128, 16)),
    ),
    *family(
        "Normalisation and the ResNet block",
        Case("group_norm+silu 16x32x32x128", GroupNormSilu(16, 128, 32), {"torch": 3}, peak=0.7),
        Case("group_norm+silu and gradients 16x32x32x128", GroupNormSiluGradients(16, 128, 32), {"torch": 2.5}),
        Case("ResNet block 16x32x32x128", ResBlock(16, 128, 32), {"torch": 3}),
        Case("ResNet block and gradients 16x32x32x128", ResBlockGradients(16, 128, 32), {"torch": 2.2}),
        Case("layer_norm 4096x512", LayerNorm(4096, 512)),
        Case("rms_norm 4096x512", RmsNorm(4096, 512)),
        Case("batch_norm 16384x128", BatchNorm(16384, 128)),
        Case("softmax 4096x1024", Softmax(4096, 1024)),
    ),
    *family(
        "Attention, samples x heads x tokens x channels",
        *(
            Case(
                f"attention {n}x{h}x{t}x{d}",
                Attention(n, h, t, d),
                {"torch": forward},
                peak=0.8 if t == 4096 else None,
            )
            for n, h, t, d, forward, _ in TOKENS
        ),
        *(
            Case(f"attention and gradients {n}x{h}x{t}x{d}", AttentionGradients(n, h, t, d), {"torch": both})
            for n, h, t, d, _, both in TOKENS
        ),
        Case("attention in bfloat16 1x8x4096x64", AttentionBf16(1, 8, 4096, 64), {"generant float32": 1.3}),
    ),
]
