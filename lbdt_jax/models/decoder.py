"""From both streams to the mask: decoders, Bilateral Channel Activation, head (section 3.3)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.layers import Conv, ConvNorm, Dense
from lbdt_jax.models.resize import aligned_bilinear, upsample_and_sum
from lbdt_jax.models.types import Array


class Decoder(nn.Module):
    """The sum of one stream's four ResNet stages, each convolved and upsampled to stride 4.

    Attributes:
      width: channels of the sum.
    """

    width: int
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        conv = functools.partial(ConvNorm, self.width, 3, norm_axis_name=self.norm_axis_name, dtype=self.dtype)
        self.res2_branch, self.res3_branch, self.res4_branch, self.res5_branch = conv(), conv(), conv(), conv()

    def high_resolution_features(self, res2: Array, res3: Array, train: bool) -> Array:
        """res2 (B, H/4, W/4, C) and res3 (B, H/8, W/8, 2C), which don't depend on the sentence -> their sum
        (B, H/4, W/4, width)."""
        return self.res2_branch(res2, train) + upsample_and_sum([(self.res3_branch(res3, train), 2)])

    def __call__(self, high_resolution_features: Array, res4: Array, res5: Array, train: bool) -> Array:
        """`high_resolution_features`, res4 (B, H/16, W/16, 4C) and res5 (B, H/32, W/32, 8C) -> the sum over all four
        stages (B, H/4, W/4, width)."""
        low_resolution = [(self.res4_branch(res4, train), 4), (self.res5_branch(res5, train), 8)]
        return high_resolution_features + upsample_and_sum(low_resolution)


class BilateralChannelActivation(nn.Module):
    """BCA: two gates scale each stream's channels, one from the sentence and one from both streams; then they fuse.

    Attributes:
      width: channels of each stream and of the result.
      gated: False fuses the streams without gates, for the ablation of table 3.
    """

    width: int
    gated: bool = True
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        dense = functools.partial(Dense, self.width, dtype=self.dtype)
        if self.gated:
            self.spatial_language, self.temporal_language = dense(), dense()
            self.joint, self.spatial_enhance, self.temporal_enhance = dense(), dense(), dense()
        self.fuse = ConvNorm(self.width, 3, norm_axis_name=self.norm_axis_name, dtype=self.dtype)

    def __call__(self, spatial: Array, temporal: Array, sentence: Array, train: bool) -> Array:
        """spatial, temporal (B, H/4, W/4, width), sentence (B, C) -> (B, H/4, W/4, width)."""
        if self.gated:
            spatial_mean, temporal_mean = spatial.mean(axis=(1, 2)), temporal.mean(axis=(1, 2))
            joint = nn.relu(self.joint(jnp.concatenate([spatial_mean, temporal_mean], axis=-1)))
            spatial_language = nn.sigmoid(self.spatial_language(jnp.concatenate([spatial_mean, sentence], axis=-1)))
            spatial_enhance = nn.sigmoid(self.spatial_enhance(joint))
            temporal_language = nn.sigmoid(self.temporal_language(jnp.concatenate([temporal_mean, sentence], axis=-1)))
            temporal_enhance = nn.sigmoid(self.temporal_enhance(joint))
            spatial = spatial * (spatial_language * spatial_enhance)[:, None, None]
            temporal = temporal * (temporal_language * temporal_enhance)[:, None, None]
            gates = {"spatial": (spatial_language, spatial_enhance), "temporal": (temporal_language, temporal_enhance)}
            self.sow("attention", "gates", gates)
        return self.fuse(jnp.concatenate([spatial, temporal], axis=-1), train)


class Head(nn.Module):
    """Four convolutions and a projection to one logit per pixel.

    Attributes:
      width: channels of the input and of the convolutions.
    """

    width: int
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        self.tower = [ConvNorm(self.width, 3, norm_axis_name=self.norm_axis_name, dtype=self.dtype) for _ in range(4)]
        self.project = Conv(1, (1, 1), dtype=self.dtype)

    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H/4, W/4, width) -> logits (B, H, W), at least float32."""
        for conv in self.tower:
            x = conv(x, train)
        logits = self.project(x)
        # Upsampled in float32: bfloat16 would leave visible steps.
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return aligned_bilinear(logits, 4)[..., 0]
