"""The whole network on one page: figure 2 of the paper.

It has two doors. `encode` looks at a frame pair, once; `answer` answers a sentence about it, as often as one asks.
The plain forward pass is `answer(encode(...), ...)`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.decoder import BilateralChannelActivation, Decoder, Head
from lbdt_jax.models.duplex_transfer import DuplexTransfer
from lbdt_jax.models.resnet import ResNet, output_channels
from lbdt_jax.models.text_encoder import TextEncoder, TransformerEncoder
from lbdt_jax.models.transformer import TransformerConfig
from lbdt_jax.models.types import Array, FramePairFeatures

#: ImageNet's statistics, of RGB in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class LBDT(nn.Module):
    """Language-Bridged Duplex Transfer for referring video object segmentation (Ding et al., CVPR 2022).

    The attributes are the fields of `config.model`, see configs/base.py, `transformer` None for the published text
    encoder; `norm_axis_name` is the mesh axis over which batch statistics are averaged, None for statistics per device.
    """

    resnet_depth: int = 50
    stream_width: int = 64
    transfer_layers: int = 4
    transfer_width: int = 512
    attention_heads: int = 8
    dropout: float = 0.1
    decoder_width: int = 128
    channel_gates: bool = True
    transformer: TransformerConfig | None = None
    rematerialise: bool = False
    dtype: str = "float32"
    norm_axis_name: str | None = None

    def setup(self) -> None:
        shared: dict[str, Any] = {"norm_axis_name": self.norm_axis_name, "dtype": self.dtype}
        self.spatial_stream = ResNet(self.resnet_depth, self.stream_width, self.rematerialise, **shared)
        self.temporal_stream = ResNet(self.resnet_depth, self.stream_width, self.rematerialise, **shared)
        if self.transformer:
            self.text_encoder = TransformerEncoder(self.transfer_width, self.transformer, self.dropout, self.dtype)
        else:
            self.text_encoder = TextEncoder(self.transfer_width, self.dtype)
        if self.transfer_layers:
            transfer = (self.transfer_layers, self.transfer_width, self.attention_heads, self.dropout)
            *_, res4, res5 = output_channels(self.resnet_depth, self.stream_width)
            self.duplex_transfer4 = DuplexTransfer(*transfer, res4, self.rematerialise, **shared)
            self.duplex_transfer5 = DuplexTransfer(*transfer, res5, self.rematerialise, **shared)
        self.spatial_decoder = Decoder(self.decoder_width, **shared)
        self.temporal_decoder = Decoder(self.decoder_width, **shared)
        self.bilateral_channel_activation = BilateralChannelActivation(self.decoder_width, self.channel_gates, **shared)
        self.head = Head(self.decoder_width, **shared)

    def __call__(
        self, frame: Array, earlier_frame: Array, words: Array, word_mask: Array, train: bool = False
    ) -> Array:
        """The plain forward pass over a batch, see input_pipeline/batch.py: -> logits (B, H, W), float32."""
        features = self.encode(frame, earlier_frame, train)
        sentences_per_frame = words.shape[0] // frame.shape[0]
        if sentences_per_frame > 1:
            features = jax.tree.map(lambda x: jnp.repeat(x, sentences_per_frame, axis=0), features)
        return self.segment(features, words, word_mask, train=train)

    def encode(self, frame: Array, earlier_frame: Array, train: bool = False) -> FramePairFeatures:
        """Looks at frame pairs, (B, H, W, 3) uint8 each, H and W multiples of 32."""
        frame, earlier_frame = normalise(frame, self.dtype), normalise(earlier_frame, self.dtype)
        return self.encode_normalised(frame, jnp.abs(frame - earlier_frame), train)

    def encode_normalised(self, frame: Array, motion: Array, train: bool = False) -> FramePairFeatures:
        """Looks at normalised frames and frame differences, (B, H, W, 3) floats each."""
        spatial_res2, spatial_res3, spatial_res4 = self.spatial_stream.stem_to_res4(frame, train)
        temporal_res2, temporal_res3, temporal_res4 = self.temporal_stream.stem_to_res4(motion, train)
        reduced = (None, None)
        if self.transfer_layers:
            reduced = self.duplex_transfer4.reduce(spatial_res4, temporal_res4, train)
        return FramePairFeatures(
            spatial_res4,
            temporal_res4,
            *reduced,
            self.spatial_decoder.high_resolution_features(spatial_res2, spatial_res3, train),
            self.temporal_decoder.high_resolution_features(temporal_res2, temporal_res3, train),
        )

    def segment(
        self,
        features: FramePairFeatures,
        words: Array,
        word_mask: Array,
        image_mask: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Finds what each sentence refers to in its frame.

        Args:
          features: of B frame pairs, one for each sentence (`FramePairFeatures.for_sentences` repeats them).
          words: (B, N, D) word vectors, or (B, N) int32 ids of a transformer's tokens; see input_pipeline/batch.py.
          word_mask: (B, N) bool, True for a token, at least one each.
          image_mask: (B, H/32 * W/32) bool, True where words may look at the picture; None for everywhere.
          train: whether dropout and batch statistics are in use.

        Returns:
          (B, H, W) float32 logits; positive means object.
        """
        if self.transformer:
            word_features, sentence = self.text_encoder(words, word_mask, train)
        else:
            word_features, sentence = self.text_encoder(words)
        spatial, temporal = features.spatial_res4, features.temporal_res4
        if self.transfer_layers:
            # Published: the mask of the 32-stride grid is repeated end to end, not enlarged, for the 16-stride one.
            res4_mask = None if image_mask is None else jnp.tile(image_mask, (1, 4))
            spatial, temporal = self.duplex_transfer4(
                spatial,
                temporal,
                features.spatial_reduced,
                features.temporal_reduced,
                word_features,
                word_mask,
                res4_mask,
                train,
            )
        spatial_res4, temporal_res4 = spatial, temporal
        spatial, temporal = self.spatial_stream.res5(spatial, train), self.temporal_stream.res5(temporal, train)
        if self.transfer_layers:
            reduced = self.duplex_transfer5.reduce(spatial, temporal, train)
            spatial, temporal = self.duplex_transfer5(
                spatial, temporal, *reduced, word_features, word_mask, image_mask, train
            )
        spatial = self.spatial_decoder(features.spatial_high_resolution, spatial_res4, spatial, train)
        temporal = self.temporal_decoder(features.temporal_high_resolution, temporal_res4, temporal, train)
        return self.head(self.bilateral_channel_activation(spatial, temporal, sentence, train), train)


def normalise(frame: Array, dtype: str = "float32") -> Array:
    """uint8 RGB (..., 3) -> floats, ImageNet's mean subtracted and divided by its standard deviation."""
    compute = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(IMAGE_MEAN, compute), jnp.asarray(IMAGE_STD, compute)
    return ((frame.astype(compute) / 255 - mean) / std).astype(dtype)
