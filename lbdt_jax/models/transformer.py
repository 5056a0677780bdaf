"""BERT's and RoBERTa's encoder: token ids -> features of every token.

Devlin et al., "BERT", NAACL 2019, https://arxiv.org/abs/1810.04805; Liu et al., "RoBERTa",
https://arxiv.org/abs/1907.11692, which differs in where positions begin. Numerically that of PyTorch's `transformers`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.duplex_transfer import MultiHeadAttention
from lbdt_jax.models.layers import Dropout
from lbdt_jax.models.types import Array

#: Name in config.json -> function.
ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}

embedding_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Everything that tells one such encoder from another, apart from its weights: config.model.transformer.

    Attributes:
      vocabulary: number of tokens.
      width: channels.
      layers: number of them.
      heads: of the attention, a divisor of `width`.
      feed_forward_width: channels between the two dense layers at the end of each layer.
      positions: rows of the table of positions.
      first_position: row of the first token: 0 in BERT, padding_id + 1 in RoBERTa.
      token_types: rows of the table of token types, of which the first alone is used.
      padding_id: token that fills up short sentences.
      norm_epsilon: of every LayerNorm.
      activation: a key of ACTIVATIONS.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    feed_forward_width: int
    positions: int
    first_position: int
    token_types: int
    padding_id: int
    norm_epsilon: float
    activation: str

    @property
    def longest(self) -> int:
        """The most tokens of a sentence."""
        return self.positions - self.first_position


class TransformerLayer(nn.Module):
    """Attention among the tokens and a feed-forward network, each added to its input and then normalised."""

    sizes: TransformerConfig
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        sizes = self.sizes
        norm = functools.partial(nn.LayerNorm, epsilon=sizes.norm_epsilon, use_fast_variance=False, dtype=self.dtype)
        self.attention = MultiHeadAttention(sizes.width, sizes.heads, self.dropout, self.dtype)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.feed_forward1 = nn.Dense(sizes.feed_forward_width, kernel_init=embedding_init, dtype=self.dtype)
        self.feed_forward2 = nn.Dense(sizes.width, kernel_init=embedding_init, dtype=self.dtype)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """x (B, N, width), mask (B, N) bool -> (B, N, width)."""
        drop = functools.partial(self.drop, deterministic=not train)
        x = self.attention_norm(x + drop(self.attention(x, x, x, mask, train)))
        thought = ACTIVATIONS[self.sizes.activation](self.feed_forward1(x))
        return self.feed_forward_norm(x + drop(self.feed_forward2(thought)))


class Transformer(nn.Module):
    """The encoder, without the pooler behind it.

    Attributes:
      dropout: rate on embeddings, attention weights and what layers add, in training.
      dtype: of the computation; softmax and normalisation are in float32 at least.
    """

    sizes: TransformerConfig
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        sizes = self.sizes
        table = functools.partial(nn.Embed, features=sizes.width, embedding_init=embedding_init, dtype=self.dtype)
        self.words, self.places, self.types = table(sizes.vocabulary), table(sizes.positions), table(sizes.token_types)
        self.norm = nn.LayerNorm(epsilon=sizes.norm_epsilon, use_fast_variance=False, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.layers = [TransformerLayer(sizes, self.dropout, self.dtype) for _ in range(sizes.layers)]

    def __call__(self, ids: Array, mask: Array, train: bool = False) -> Array:
        """The last hidden states.

        Args:
          ids: (B, N) int32 tokens, N at most `sizes.longest`.
          mask: (B, N) bool, True for a token, at least one each; the tokens come first.
          train: whether dropout is in use.

        Returns:
          (B, N, width); behind the last token it means nothing.
        """
        positions = self.sizes.first_position + jnp.arange(ids.shape[1])
        x = self.words(ids) + self.types(jnp.zeros(1, jnp.int32)) + self.places(positions)
        x = self.drop(self.norm(x), deterministic=not train)
        for layer in self.layers:
            x = layer(x, mask, train)
        return x
