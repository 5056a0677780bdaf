"""The spatial and the temporal stream: ResNets as torchvision's v1.5 (stride in the 3x3 convolution).

He et al., "Deep residual learning for image recognition", CVPR 2016; section 3.1 of the LBDT paper.
"""

from __future__ import annotations

import functools

from flax import linen as nn

from lbdt_jax import ops
from lbdt_jax.models.layers import ConvNorm, rematerialized
from lbdt_jax.models.types import Array

#: depth -> (number of blocks in res2..res5, whether they are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class ResidualBlock(nn.Module):
    """One residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 where `bottleneck`.

    Attributes:
      width: channels of the 3x3 convolution; the output has 4 times as many where `bottleneck`.
      stride: of the (first) 3x3 convolution and of the shortcut.
      projected: whether the shortcut is a 1x1 convolution, not the identity.
    """

    width: int
    stride: int
    bottleneck: bool
    projected: bool
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        conv = functools.partial(ConvNorm, norm_axis_name=self.norm_axis_name, dtype=self.dtype)
        if self.bottleneck:
            self.conv1 = conv(self.width, 1)
            self.conv2 = conv(self.width, 3, self.stride)
            self.conv3 = conv(4 * self.width, 1)
        else:
            self.conv1 = conv(self.width, 3, self.stride)
            self.conv2 = conv(self.width, 3)
        if self.projected:
            self.shortcut = conv((4 if self.bottleneck else 1) * self.width, 1, self.stride, activation=False)

    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, output channels)."""
        shortcut = self.shortcut(x, train) if self.projected else x
        branch = self.conv1(x, train)
        if self.bottleneck:
            return self.conv3(self.conv2(branch, train), train, residual=shortcut)
        return self.conv2(branch, train, residual=shortcut)


class Stage(nn.Module):
    """One of res2..res5: blocks, the first of which changes resolution and channels.

    Attributes:
      length: number of blocks.
      width: channels of the 3x3 convolutions, see ResidualBlock.
      stride: of the first block.
      bottleneck: the kind of block, see ResidualBlock.
      rematerialise: see LBDT.
    """

    length: int
    width: int
    stride: int
    bottleneck: bool
    rematerialise: bool = False
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        block = rematerialized(ResidualBlock, train_index=2) if self.rematerialise else ResidualBlock
        self.blocks = [
            block(
                self.width,
                self.stride if index == 0 else 1,
                self.bottleneck,
                # res2 of the shallow ResNets is the only stage that changes neither resolution nor channels.
                projected=index == 0 and (self.stride > 1 or self.bottleneck),
                norm_axis_name=self.norm_axis_name,
                dtype=self.dtype,
            )
            for index in range(self.length)
        ]

    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, output channels)."""
        for block in self.blocks:
            x = block(x, train)
        return x


class ResNet(nn.Module):
    """One stream of the network: a ResNet without its classifier.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: channels of the stem (64 as published); res5 has 8 times as many, 32 times with bottlenecks.
      rematerialise: see LBDT.
    """

    depth: int
    width: int = 64
    rematerialise: bool = False
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        lengths, bottleneck = DEPTHS[self.depth]
        stage = functools.partial(
            Stage,
            bottleneck=bottleneck,
            rematerialise=self.rematerialise,
            norm_axis_name=self.norm_axis_name,
            dtype=self.dtype,
        )
        self.stem = ConvNorm(self.width, 7, 2, norm_axis_name=self.norm_axis_name, dtype=self.dtype)
        self.res2 = stage(lengths[0], self.width, 1)
        self.res3 = stage(lengths[1], 2 * self.width, 2)
        self.res4 = stage(lengths[2], 4 * self.width, 2)
        self.res5 = stage(lengths[3], 8 * self.width, 2)

    def stem_to_res4(self, x: Array, train: bool) -> tuple[Array, Array, Array]:
        """(B, H, W, 3) -> res2, res3, res4 at strides 4, 8, 16."""
        x = ops.max_pool(self.stem(x, train))
        self.sow("intermediates", "pooled", x)
        res2 = self.res2(x, train)
        res3 = self.res3(res2, train)
        return res2, res3, self.res4(res3, train)


def output_channels(depth: int, width: int) -> tuple[int, int, int, int]:
    """Channels of res2..res5 of a ResNet of that depth and stem width."""
    base = (4 if DEPTHS[depth][1] else 1) * width
    return base, 2 * base, 4 * base, 8 * base
