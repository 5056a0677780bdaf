"""Language-Bridged Duplex Transfer: the words carry features from each stream to the other (section 3.2).

Both directions share their weights, so they run as one batch: arrays have a leading axis of 2 for the target stream,
spatial first, then temporal.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.attention import MultiHeadAttention, linear_init
from lbdt_jax.models.layers import ConvNorm, Dense, Dropout, LayerNorm, rematerialized
from lbdt_jax.models.positions import pixel_positions, word_positions
from lbdt_jax.models.types import Array


class LanguageBridge(nn.Module):
    """One layer: words gather features from the source stream, and the target stream gathers them from the words.

    Attributes:
      width: channels of pixels and words.
      heads: of the attention, a divisor of `width`.
      dropout: rate on the attention weights, the branches and the hidden units of the feed-forward network.
    """

    width: int
    heads: int
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        attention = functools.partial(MultiHeadAttention, self.width, self.heads, self.dropout, self.dtype)
        norm = functools.partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        dense = functools.partial(Dense, self.width, kernel_init=linear_init, dtype=self.dtype)
        self.words_to_words, self.words_norm = attention(), norm()
        self.words_from_source, self.source_norm = attention(), norm()
        self.target_from_words, self.target_norm = attention(), norm()
        self.feed_forward1, self.feed_forward2, self.feed_forward_norm = dense(), dense(), norm()
        self.drop = Dropout(self.dropout)

    def __call__(
        self,
        source: Array,
        target: Array,
        words: Array,
        word_mask: Array,
        pixel_mask: Array | None,
        word_position: Array,
        pixel_position: Array,
        train: bool,
    ) -> Array:
        """The new target stream.

        Args:
          source, target: (2, B, T, C) pixels of both streams.
          words: (2 or 1, B, N, C).
          word_mask: (B, N) bool, True for a token.
          pixel_mask: (B, T) bool, True where words may attend; None for everywhere.
          word_position, pixel_position: (N, C) and (T, C) position encodings.
          train: whether dropout is active.

        Returns:
          (2, B, T, C).
        """
        drop = functools.partial(self.drop, deterministic=not train)

        query = key = words + word_position
        words = self.words_norm(words + drop(self.words_to_words(query, key, words, word_mask, train)))

        key = value = source + pixel_position
        # As published, this query has no position encoding.
        gathered = self.words_from_source(words, key, value, pixel_mask, train)
        words = self.source_norm(words + drop(gathered))

        gathered = self.target_from_words(target + pixel_position, words, words, word_mask, train)
        target = self.target_norm(target + drop(gathered))

        hidden = drop(nn.relu(self.feed_forward1(target)))
        return self.feed_forward_norm(target + drop(self.feed_forward2(hidden)))


class DuplexTransfer(nn.Module):
    """LBDT after one ResNet stage: reduce both streams' channels, apply `layers` bridges, expand, add.

    Attributes:
      layers: number of bridges, each with weights of its own (1 in LBDT-1, 4 in LBDT-4).
      width: channels inside.
      heads: of the attention, a divisor of `width`.
      dropout: rate inside the bridges.
      channels: of the ResNet stage.
      rematerialise: see LBDT.
    """

    layers: int
    width: int
    heads: int
    dropout: float
    channels: int
    rematerialise: bool = False
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        conv = functools.partial(
            ConvNorm, kernel_size=1, activation=False, norm_axis_name=self.norm_axis_name, dtype=self.dtype
        )
        self.spatial_reduce, self.temporal_reduce = conv(self.width), conv(self.width)
        bridge = rematerialized(LanguageBridge, train_index=8) if self.rematerialise else LanguageBridge
        self.bridges = [bridge(self.width, self.heads, self.dropout, self.dtype) for _ in range(self.layers)]
        self.spatial_expand, self.temporal_expand = conv(self.channels), conv(self.channels)

    def reduce(self, spatial: Array, temporal: Array, train: bool) -> tuple[Array, Array]:
        """Reduces both streams (B, H, W, channels) to (B, H, W, width). Does not depend on the sentence."""
        return self.spatial_reduce(spatial, train), self.temporal_reduce(temporal, train)

    def __call__(
        self,
        spatial: Array,
        temporal: Array,
        spatial_reduced: Array,
        temporal_reduced: Array,
        words: Array,
        word_mask: Array,
        pixel_mask: Array | None,
        train: bool,
    ) -> tuple[Array, Array]:
        """Both streams (B, H, W, channels), each enriched by the other.

        Args:
          spatial, temporal: (B, H, W, channels) outputs of the ResNet stage.
          spatial_reduced, temporal_reduced: (B, H, W, width) from `reduce`.
          words: (B, N, width) word features.
          word_mask: (B, N) bool, True for a token.
          pixel_mask: (B, H * W) bool, True where words may attend; None for everywhere.
          train: whether dropout and batch statistics are active.
        """
        batch, height, width, _ = spatial_reduced.shape
        word_position = jnp.asarray(word_positions(words.shape[1], self.width), self.dtype)
        pixel_position = jnp.asarray(pixel_positions(height, width, self.width), self.dtype)
        streams = jnp.stack([spatial_reduced, temporal_reduced]).reshape(2, batch, height * width, self.width)
        # Until they attend to the source, the words are the same in both directions. In training each direction draws
        # its own dropout, so the axis of 2 is needed from the start.
        words = jnp.broadcast_to(words, ((2 if train else 1), *words.shape))
        for bridge in self.bridges:
            # Neither direction reads the other's output of the same layer: the source is the old pair, swapped.
            streams = bridge(streams[::-1], streams, words, word_mask, pixel_mask, word_position, pixel_position, train)
        spatial_bridged, temporal_bridged = streams.reshape(2, batch, height, width, self.width)
        return (
            nn.relu(spatial + self.spatial_expand(spatial_bridged, train)),
            nn.relu(temporal + self.temporal_expand(temporal_bridged, train)),
        )
