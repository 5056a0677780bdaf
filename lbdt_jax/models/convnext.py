"""ConvNeXt as a stream: Liu et al., "A ConvNet for the 2020s", CVPR 2022; numerically torchvision's."""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

from lbdt_jax.models.layers import Conv, Dense, LayerNorm
from lbdt_jax.models.types import Array

#: Name -> (number of blocks in res2..res5, channels of res2 as published).
CONVNEXTS = {
    "convnext_tiny": ((3, 3, 9, 3), 96),
    "convnext_small": ((3, 3, 27, 3), 96),
    "convnext_base": ((3, 3, 27, 3), 128),
}

_init = nn.initializers.truncated_normal(0.02)
#: Epsilon of every LayerNorm.
EPSILON = 1e-6


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7 convolution, LayerNorm, and two linear layers with a GELU between them, added to the input.

    Published training also drops whole blocks at random (stochastic depth); this code does not.

    Attributes:
      width: channels of input and output.
    """

    width: int
    dtype: str = "float32"

    def setup(self) -> None:
        self.depthwise = Conv(
            self.width,
            (7, 7),
            padding=3,
            feature_group_count=self.width,
            kernel_init=_init,
            dtype=self.dtype,
        )
        self.norm = LayerNorm(EPSILON, self.dtype)
        self.expand = Dense(4 * self.width, kernel_init=_init, dtype=self.dtype)
        self.project = Dense(self.width, kernel_init=_init, dtype=self.dtype)
        self.layer_scale = self.param("layer_scale", nn.initializers.constant(1e-6), (self.width,))

    def __call__(self, x: Array) -> Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        branch = self.norm(self.depthwise(x))
        branch = self.project(jax.nn.gelu(self.expand(branch), approximate=False))
        return x + branch * self.layer_scale.astype(branch.dtype)


class ConvNeXtStage(nn.Module):
    """One of res2..res5: LayerNorm and a 2x2 convolution at stride 2, except in res2, then blocks.

    Attributes:
      length: number of blocks.
      width: channels of the output.
      downsampled: False for res2.
      rematerialise: see LBDT.
    """

    length: int
    width: int
    downsampled: bool
    rematerialise: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        if self.downsampled:
            self.downsample_norm = LayerNorm(EPSILON, self.dtype)
            self.downsample = Conv(self.width, (2, 2), strides=2, padding="VALID", kernel_init=_init, dtype=self.dtype)
        block = nn.remat(ConvNeXtBlock) if self.rematerialise else ConvNeXtBlock
        self.blocks = [block(self.width, self.dtype) for _ in range(self.length)]

    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) -> (B, H / 2, W / 2, width), or in res2 (B, H, W, width); nothing depends on `train`."""
        if self.downsampled:
            x = self.downsample(self.downsample_norm(x))
        for block in self.blocks:
            x = block(x)
        return x


class ConvNeXt(nn.Module):
    """One stream of the network: a ConvNeXt without its last normalization and classifier.

    Attributes:
      kind: a key of CONVNEXTS.
      width: 64 for the published channels; all of them are proportional to it.
      rematerialise: see LBDT.
    """

    kind: str
    width: int = 64
    rematerialise: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        lengths, _ = CONVNEXTS[self.kind]
        widths = output_channels(self.kind, self.width)
        stage = functools.partial(ConvNeXtStage, rematerialise=self.rematerialise, dtype=self.dtype)
        self.stem = Conv(widths[0], (4, 4), strides=4, padding="VALID", kernel_init=_init, dtype=self.dtype)
        self.stem_norm = LayerNorm(EPSILON, self.dtype)
        self.res2 = stage(lengths[0], widths[0], downsampled=False)
        self.res3 = stage(lengths[1], widths[1], downsampled=True)
        self.res4 = stage(lengths[2], widths[2], downsampled=True)
        self.res5 = stage(lengths[3], widths[3], downsampled=True)

    def stem_to_res4(self, x: Array, train: bool) -> tuple[Array, Array, Array]:
        """(B, H, W, 3) -> res2, res3, res4 at strides 4, 8, 16."""
        res2 = self.res2(self.stem_norm(self.stem(x)), train)
        res3 = self.res3(res2, train)
        return res2, res3, self.res4(res3, train)


def output_channels(kind: str, width: int) -> tuple[int, int, int, int]:
    """Channels of res2..res5 of a ConvNeXt; `width` as in ConvNeXt."""
    _, published = CONVNEXTS[kind]
    base = max(1, published * width // 64)
    return base, 2 * base, 4 * base, 8 * base
