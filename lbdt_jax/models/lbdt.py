"""The whole network on one page: figure 2 of the paper.

The forward pass is `segment(encode(frame pair), sentence)`. `encode` does not depend on the sentence: its features
serve any number of sentences about the same frame pair.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.decoder import BilateralChannelActivation, Decoder, Head
from lbdt_jax.models.duplex_transfer import DuplexTransfer
from lbdt_jax.models.image_encoder import make_encoder, output_channels
from lbdt_jax.models.text_encoder import LSTMTextEncoder, TransformerTextEncoder
from lbdt_jax.models.transformer import TransformerConfig
from lbdt_jax.models.types import Array, FramePairFeatures

#: ImageNet's statistics, of RGB in [0, 1].
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class LBDT(nn.Module):
    """Language-Bridged Duplex Transfer for referring video object segmentation (Ding et al., CVPR 2022).

    Attributes:
      transformer: of the text encoder; None for the published LSTM.
      norm_axis_name: mesh axis over which batch statistics are averaged; None for statistics per device.
      The others: see `config.model` in configs/base.py.
    """

    encoder: str = "resnet"
    resnet_depth: int = 50
    stream_width: int = 64
    transfer_layers: int = 4
    transfer_width: int = 512
    attention_heads: int = 8
    dropout: float = 0.1
    decoder_width: int = 128
    channel_gates: bool = True
    frame_difference: bool = True
    transformer: TransformerConfig | None = None
    rematerialise: bool = False
    dtype: str = "float32"
    norm_axis_name: str | None = None

    def setup(self) -> None:
        shared: dict[str, Any] = {"norm_axis_name": self.norm_axis_name, "dtype": self.dtype}
        encoder = (self.encoder, self.resnet_depth, self.stream_width)
        self.spatial_stream = make_encoder(*encoder, self.rematerialise, **shared)
        self.temporal_stream = make_encoder(*encoder, self.rematerialise, **shared)
        self.text_encoder: LSTMTextEncoder | TransformerTextEncoder = (
            TransformerTextEncoder(self.transfer_width, self.transformer, self.dropout, self.dtype)
            if self.transformer
            else LSTMTextEncoder(self.transfer_width, self.dtype)
        )
        if self.transfer_layers:
            transfer = (self.transfer_layers, self.transfer_width, self.attention_heads, self.dropout)
            *_, res4, res5 = output_channels(*encoder)
            self.duplex_transfer4 = DuplexTransfer(*transfer, res4, self.rematerialise, **shared)
            self.duplex_transfer5 = DuplexTransfer(*transfer, res5, self.rematerialise, **shared)
        self.spatial_decoder = Decoder(self.decoder_width, **shared)
        self.temporal_decoder = Decoder(self.decoder_width, **shared)
        self.bilateral_channel_activation = BilateralChannelActivation(self.decoder_width, self.channel_gates, **shared)
        self.head = Head(self.decoder_width, **shared)

    def __call__(
        self, frame: Array, earlier_frame: Array, words: Array, word_mask: Array, train: bool = False
    ) -> Array:
        """The forward pass over a batch of input_pipeline/batch.py -> logits (B, H, W), at least float32."""
        features = self.encode(frame, earlier_frame, train)
        sentences_per_frame = words.shape[0] // frame.shape[0]
        if sentences_per_frame > 1:
            features = jax.tree.map(lambda x: jnp.repeat(x, sentences_per_frame, axis=0), features)
        return self.segment(features, words, word_mask, train=train)

    def encode(self, frame: Array, earlier_frame: Array, train: bool = False) -> FramePairFeatures:
        """Features of B frame pairs.

        Args:
          frame, earlier_frame: (B, H, W, 3) uint8 RGB, H and W multiples of 32.
          train: whether batch statistics are active.
        """
        frame, earlier_frame = normalize_frames(frame, self.dtype), normalize_frames(earlier_frame, self.dtype)
        motion = jnp.abs(frame - earlier_frame) if self.frame_difference else earlier_frame
        return self.encode_normalized(frame, motion, train)

    def encode_normalized(self, frame: Array, motion: Array, train: bool = False) -> FramePairFeatures:
        """`encode` for what the two streams read.

        Args:
          frame: (B, H, W, 3) floats, normalized, for the spatial stream.
          motion: (B, H, W, 3) floats, their absolute difference from the earlier frames, for the temporal stream.
          train: whether batch statistics are active.
        """
        spatial_res2, spatial_res3, spatial_res4 = self.spatial_stream.stem_to_res4(frame, train)
        temporal_res2, temporal_res3, temporal_res4 = self.temporal_stream.stem_to_res4(motion, train)
        spatial_reduced, temporal_reduced = None, None
        if self.transfer_layers:
            spatial_reduced, temporal_reduced = self.duplex_transfer4.reduce(spatial_res4, temporal_res4, train)
        return FramePairFeatures(
            spatial_res4=spatial_res4,
            temporal_res4=temporal_res4,
            spatial_reduced=spatial_reduced,
            temporal_reduced=temporal_reduced,
            spatial_high_resolution=self.spatial_decoder.high_resolution_features(spatial_res2, spatial_res3, train),
            temporal_high_resolution=self.temporal_decoder.high_resolution_features(
                temporal_res2, temporal_res3, train
            ),
        )

    def segment(
        self,
        features: FramePairFeatures,
        words: Array,
        word_mask: Array,
        image_mask: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Segments the object that each sentence refers to.

        Args:
          features: of B frame pairs, one for each sentence (`FramePairFeatures.for_sentences` repeats them).
          words: (B, N, D) word vectors, or (B, N) int32 token ids of a transformer; see input_pipeline/batch.py.
          word_mask: (B, N) bool, True for a token, at least one in each sentence.
          image_mask: (B, H/32 * W/32) bool, True where words may attend to the frame; None for everywhere.
          train: whether dropout and batch statistics are active.

        Returns:
          (B, H, W) logits, at least float32; positive means object.
        """
        word_features, sentence = self.text_encoder(words, word_mask, train)
        spatial, temporal = features.spatial_res4, features.temporal_res4
        if self.transfer_layers:
            # As published, the mask at stride 32 is repeated end to end, not upsampled, to have the size at stride 16.
            res4_mask = None if image_mask is None else jnp.tile(image_mask, (1, 4))
            assert features.spatial_reduced is not None and features.temporal_reduced is not None
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


def normalize_frames(frames: Array, dtype: str = "float32") -> Array:
    """uint8 RGB (..., 3) -> floats, normalized by ImageNet's mean and standard deviation."""
    compute_dtype = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(IMAGE_MEAN, compute_dtype), jnp.asarray(IMAGE_STD, compute_dtype)
    return ((frames.astype(compute_dtype) / 255 - mean) / std).astype(dtype)
