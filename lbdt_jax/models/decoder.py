"""From both streams to the mask: two decoders, Bilateral Channel Activation, head (section 3.3)."""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.cpu.convolution import convolve
from lbdt_jax.models.layers import ConvNorm
from lbdt_jax.models.resize import aligned_bilinear, upsample_and_sum
from lbdt_jax.models.types import Array


class Decoder(nn.Module):
    """Sums one stream's four stages at stride 4."""

    width: int
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        conv = functools.partial(ConvNorm, self.width, 3, norm_axis_name=self.norm_axis_name, dtype=self.dtype)
        self.res2_branch, self.res3_branch, self.res4_branch, self.res5_branch = conv(), conv(), conv(), conv()

    def high_resolution_features(self, res2: Array, res3: Array, train: bool) -> Array:
        """The sum over the stages that no sentence has touched, (B, H/4, W/4, width)."""
        return self.res2_branch(res2, train) + upsample_and_sum([(self.res3_branch(res3, train), 2)])

    def __call__(self, fine: Array, res4: Array, res5: Array, train: bool) -> Array:
        """The sum over all four stages, (B, H/4, W/4, width)."""
        return fine + upsample_and_sum([(self.res4_branch(res4, train), 4), (self.res5_branch(res5, train), 8)])


class BilateralChannelActivation(nn.Module):
    """BCA: each stream's channels pass two gates, one from the sentence and one from both streams together.

    Attributes:
      width: channels of each stream and of the result.
      gated: False leaves both gates out and only fuses, for the ablation of table 3.
    """

    width: int
    gated: bool = True
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        dense = functools.partial(nn.Dense, self.width, dtype=self.dtype)
        if self.gated:
            self.spatial_language, self.temporal_language = dense(), dense()
            self.joint, self.spatial_enhance, self.temporal_enhance = dense(), dense(), dense()
        self.fuse = ConvNorm(self.width, 3, norm_axis_name=self.norm_axis_name, dtype=self.dtype)

    def __call__(self, spatial: Array, temporal: Array, sentence: Array, train: bool) -> Array:
        """spatial, temporal (B, H/4, W/4, width), sentence (B, C) -> (B, H/4, W/4, width)."""
        if self.gated:
            s, t = spatial.mean(axis=(1, 2)), temporal.mean(axis=(1, 2))
            joint = nn.relu(self.joint(jnp.concatenate([s, t], axis=-1)))
            spatial_language = nn.sigmoid(self.spatial_language(jnp.concatenate([s, sentence], axis=-1)))
            spatial_enhance = nn.sigmoid(self.spatial_enhance(joint))
            temporal_language = nn.sigmoid(self.temporal_language(jnp.concatenate([t, sentence], axis=-1)))
            temporal_enhance = nn.sigmoid(self.temporal_enhance(joint))
            spatial = spatial * (spatial_language * spatial_enhance)[:, None, None]
            temporal = temporal * (temporal_language * temporal_enhance)[:, None, None]
            gates = {"spatial": (spatial_language, spatial_enhance), "temporal": (temporal_language, temporal_enhance)}
            self.sow("attention", "gates", gates)
        return self.fuse(jnp.concatenate([spatial, temporal], axis=-1), train)


class Head(nn.Module):
    """Four convolutions and a projection to one logit per pixel."""

    width: int
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        self.tower = [ConvNorm(self.width, 3, norm_axis_name=self.norm_axis_name, dtype=self.dtype) for _ in range(4)]
        self.project = nn.Conv(1, (1, 1), dtype=self.dtype, conv_general_dilated=convolve)

    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H/4, W/4, width) -> logits (B, H, W), at least float32."""
        for conv in self.tower:
            x = conv(x, train)
        quarter = self.project(x)
        # The last enlargement in full precision: logits in bfloat16 would have steps that one can see.
        quarter = quarter.astype(jnp.promote_types(quarter.dtype, jnp.float32))
        return aligned_bilinear(quarter, 4)[..., 0]
