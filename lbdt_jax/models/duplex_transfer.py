"""Language-Bridged Duplex Transfer: the two streams exchange what they know, through the words (section 3.2).

Both directions use the same weights, so they run as one batch: arrays here have a leading axis of 2, the spatial
stream first, then the temporal one.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.cpu.convolution import dot_general
from lbdt_jax.models.layers import ConvNorm, Dropout, recomputed
from lbdt_jax.models.positions import pixel_positions, word_positions
from lbdt_jax.models.types import Array

linear_init = nn.initializers.xavier_uniform()


class Projection(nn.Module):
    """A linear layer from `width` to `width` channels, cut into heads.

    Attributes:
      width: channels in and out, a multiple of `heads`.
      joined: whether it takes the heads together (True), or makes them.
    """

    width: int
    heads: int
    joined: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        self.kernel = self.param("kernel", linear_init, (self.width, self.width))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))

    def __call__(self, x: Array) -> Array:
        """(..., C) -> (..., heads, C / heads), or back."""
        if self.joined:
            return x.reshape(*x.shape[:-2], self.width) @ self.kernel.astype(self.dtype) + self.bias.astype(self.dtype)
        x = x.astype(self.dtype) @ self.kernel.astype(self.dtype) + self.bias.astype(self.dtype)
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

    def parts(self) -> tuple[Array, Array]:
        """The kernel and the bias, cut into heads.

        Returns:
          kernel: (C, heads, C / heads), or (heads, C / heads, C) where `joined`.
          bias: (heads, C / heads), or (C,) where `joined`.
        """
        heads = (self.heads, self.width // self.heads)
        kernel, bias = self.kernel.astype(self.dtype), self.bias.astype(self.dtype)
        if self.joined:
            return kernel.reshape(*heads, self.width), bias
        return kernel.reshape(self.width, *heads), bias.reshape(heads)


def per_head_matmul(x: Array, kernel: Array) -> Array:
    """The products of every head: x (..., K, heads, c) and kernel (heads, c, C) -> (..., heads, K, C)."""

    def one_by_one(x: Array, kernel: Array) -> Array:
        return jnp.stack([x[..., head, :] @ kernel[head] for head in range(len(kernel))], axis=-3)

    def at_once(x: Array, kernel: Array) -> Array:
        return jnp.einsum("...khc,hcd->...hkd", x, kernel)

    # At once, XLA:CPU takes most of the time to move the heads behind the pictures.
    return jax.lax.platform_dependent(x, kernel, cpu=one_by_one, default=at_once)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with biases everywhere, as torch's MultiheadAttention.

    A sentence has few words and a picture many cells, so no cell is projected where the words can be instead: the
    products are the same in another order, (cell Wk) q = cell (Wk q). At 320x320 that is half the arithmetic.

    Attributes:
      width: channels in and out, a multiple of `heads`.
      dropout: rate on the attention weights.
    """

    width: int
    heads: int
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        project = functools.partial(Projection, self.width, self.heads, dtype=self.dtype)
        self.query, self.key, self.value, self.out = project(), project(), project(), project(joined=True)
        self.drop = Dropout(self.dropout)

    def __call__(self, query: Array, key: Array, value: Array, key_mask: Array | None, train: bool) -> Array:
        """query (..., Q, C), key and value (..., K, C), key_mask (..., K) bool or None -> (..., Q, C).

        Leading axes broadcast. Masked keys get no weight at all; every query needs a key that is not masked.
        """
        attention_weights = functools.partial(self.attention_weights, key_mask=key_mask, train=train)
        scale = (self.width // self.heads) ** -0.5
        queries, keys = query.shape[-2], key.shape[-2]
        if queries == keys or self.heads * min(queries, keys) >= self.width:  # nothing to gain
            scores = jnp.einsum("...qhc,...khc->...hqk", scale * self.query(query), self.key(key))
            return self.out(jnp.einsum("...hqk,...khc->...qhc", attention_weights(scores), self.value(value)))
        if queries < keys:
            asked = scale * self.query(query)
            (key_kernel, key_bias), (value_kernel, value_bias) = self.key.parts(), self.value.parts()
            scores = jnp.einsum("...qhd,...kd->...hqk", jnp.einsum("...qhc,dhc->...qhd", asked, key_kernel), key)
            weights = attention_weights(scores + jnp.einsum("...qhc,hc->...hq", asked, key_bias)[..., None])
            gathered = jnp.einsum("...hqk,...kd->...qhd", weights, value)
            attended = jnp.einsum("...qhd,dhc->...qhc", gathered, value_kernel)
            return self.out(attended + jnp.einsum("...hqk,hc->...qhc", weights, value_bias))
        offered = scale * self.key(key)
        (query_kernel, query_bias), (out_kernel, out_bias) = self.query.parts(), self.out.parts()
        asked_for = per_head_matmul(offered, query_kernel.transpose(1, 2, 0))
        scores = jnp.einsum("...qd,...hkd->...hqk", query, asked_for)
        weights = attention_weights(scores + jnp.einsum("...khc,hc->...hk", offered, query_bias)[..., None, :])
        told = per_head_matmul(self.value(value), out_kernel)
        return jnp.einsum("...hqk,...hkd->...qd", weights, told) + out_bias

    def attention_weights(self, scores: Array, key_mask: Array | None, train: bool) -> Array:
        """Scores (..., heads, Q, K) -> weights, which sum to 1 over the keys but for dropout."""
        dtype = scores.dtype
        scores = scores.astype(jnp.promote_types(dtype, jnp.float32))
        if key_mask is not None:
            scores = jnp.where(key_mask[..., None, None, :], scores, -jnp.inf)
        weights = nn.softmax(scores)
        self.sow("attention", "weights", weights.mean(axis=-3))
        return self.drop(weights, deterministic=not train).astype(dtype)


class LanguageBridge(nn.Module):
    """One layer: words gather what matters in the source stream and hand it to the target stream."""

    width: int
    heads: int
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        attention = functools.partial(MultiHeadAttention, self.width, self.heads, self.dropout, self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False, dtype=self.dtype)
        dense = functools.partial(
            nn.Dense, self.width, kernel_init=linear_init, dtype=self.dtype, dot_general=dot_general
        )
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
        """source, target (2, B, T, C), words (2 or 1, B, N, C) -> the new target (2, B, T, C).

        word_mask (B, N) bool; pixel_mask (B, T) bool or None; positions (N, C) and (T, C).
        """
        drop = functools.partial(self.drop, deterministic=not train)

        placed = words + word_position
        words = self.words_norm(words + drop(self.words_to_words(placed, placed, words, word_mask, train)))

        placed = source + pixel_position
        # The words carry no position here; the published code adds none to this query.
        seen = self.words_from_source(words, placed, placed, pixel_mask, train)
        words = self.source_norm(words + drop(seen))

        told = self.target_from_words(target + pixel_position, words, words, word_mask, train)
        target = self.target_norm(target + drop(told))

        thought = self.feed_forward2(drop(nn.relu(self.feed_forward1(target))))
        return self.feed_forward_norm(target + drop(thought))


class DuplexTransfer(nn.Module):
    """LBDT after one ResNet stage: narrow both streams, bridge them `layers` times, widen, add.

    Attributes:
      layers: number of bridges, each with its own weights (1 in LBDT-1, 4 in LBDT-4).
      width: channels inside.
      channels: channels of the ResNet stage.
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
        bridge = recomputed(LanguageBridge, train=8) if self.rematerialise else LanguageBridge
        self.bridges = [bridge(self.width, self.heads, self.dropout, self.dtype) for _ in range(self.layers)]
        self.spatial_expand, self.temporal_expand = conv(self.channels), conv(self.channels)

    def reduce(self, spatial: Array, temporal: Array, train: bool) -> tuple[Array, Array]:
        """Narrows both streams (B, H, W, channels) to (B, H, W, width). Needs no sentence."""
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
        """Both streams (B, H, W, channels), enriched by what each learnt of the other.

        Args:
          spatial, temporal: (B, H, W, channels) outputs of the ResNet stage.
          spatial_reduced, temporal_reduced: (B, H, W, width) from `reduce`.
          words: (B, N, width) word features.
          word_mask: (B, N) bool, True for a token.
          pixel_mask: (B, H * W) bool, True where the words may look; None for everywhere.
          train: whether dropout and batch statistics are in use.
        """
        batch, height, width, _ = spatial_reduced.shape
        word_position = jnp.asarray(word_positions(words.shape[1], self.width), self.dtype)
        pixel_position = jnp.asarray(pixel_positions(height, width, self.width), self.dtype)
        streams = jnp.stack([spatial_reduced, temporal_reduced]).reshape(2, batch, height * width, self.width)
        # Until they look at the source, the words are the same for both directions. Only in training they need an
        # axis of 2 from the start, so that each direction draws its own dropout.
        words = jnp.broadcast_to(words, ((2 if train else 1), *words.shape))
        for bridge in self.bridges:
            # Neither direction sees the other's result of the same layer: the source is the old, swapped pair.
            streams = bridge(streams[::-1], streams, words, word_mask, pixel_mask, word_position, pixel_position, train)
        spatial_told, temporal_told = streams.reshape(2, batch, height, width, self.width)
        return (
            nn.relu(spatial + self.spatial_expand(spatial_told, train)),
            nn.relu(temporal + self.temporal_expand(temporal_told, train)),
        )
