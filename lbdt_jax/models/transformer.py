"""The encoder of BERT and RoBERTa: token ids -> features of every token.

Devlin et al., "BERT", NAACL 2019, https://arxiv.org/abs/1810.04805; Liu et al., "RoBERTa",
https://arxiv.org/abs/1907.11692, whose first position is another one. Numerically equal to the library `transformers`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.attention import MultiHeadAttention
from lbdt_jax.models.layers import Dense, Dropout, LayerNorm
from lbdt_jax.models.types import Array

#: Activation functions by their name in config.json.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}

normal_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Architecture of an encoder: config.model.transformer.

    Attributes:
      vocabulary: number of tokens.
      width: hidden channels.
      layers: number of layers.
      heads: of the attention, a divisor of `width`.
      feed_forward_width: channels inside the feed-forward networks.
      positions: number of position embeddings.
      first_position: index of the first token's position embedding: 0 in BERT, padding_id + 1 in RoBERTa.
      token_types: number of token type embeddings, of which only the first is used.
      padding_id: id of the padding token.
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
    def max_length(self) -> int:
        """The largest number of tokens of a sentence."""
        return self.positions - self.first_position


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalized.

    Attributes:
      config: of the transformer.
      dropout: rate in training.
    """

    config: TransformerConfig
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        config = self.config
        norm = functools.partial(LayerNorm, epsilon=config.norm_epsilon, dtype=self.dtype)
        dense = functools.partial(Dense, kernel_init=normal_init, dtype=self.dtype)
        self.attention = MultiHeadAttention(config.width, config.heads, self.dropout, self.dtype)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.feed_forward1, self.feed_forward2 = dense(config.feed_forward_width), dense(config.width)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: Array, mask: Array, train: bool) -> Array:
        """x (B, N, width), mask (B, N) bool -> (B, N, width)."""
        drop = functools.partial(self.drop, deterministic=not train)
        x = self.attention_norm(x + drop(self.attention(x, x, x, mask, train)))
        hidden = ACTIVATIONS[self.config.activation](self.feed_forward1(x))
        return self.feed_forward_norm(x + drop(self.feed_forward2(hidden)))


class Transformer(nn.Module):
    """The encoder without its pooler.

    Attributes:
      config: its architecture.
      dropout: rate in training, on embeddings, attention weights and residual branches.
      dtype: of the computation; softmax and normalization are in float32 at least.
    """

    config: TransformerConfig
    dropout: float = 0.0
    dtype: str = "float32"

    def setup(self) -> None:
        config = self.config
        embed = functools.partial(nn.Embed, features=config.width, embedding_init=normal_init, dtype=self.dtype)
        # The names are those of the parameters in checkpoints.
        self.word_embeddings = embed(config.vocabulary, name="words")
        self.position_embeddings = embed(config.positions, name="places")
        self.token_type_embeddings = embed(config.token_types, name="types")
        self.norm = LayerNorm(epsilon=config.norm_epsilon, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.layers = [TransformerLayer(config, self.dropout, self.dtype) for _ in range(config.layers)]

    def __call__(self, ids: Array, mask: Array, train: bool = False) -> Array:
        """The last hidden states.

        Args:
          ids: (B, N) int32 token ids, N at most `config.max_length`.
          mask: (B, N) bool, True for a token, at least one in each sentence; padding is at the end.
          train: whether dropout is active.

        Returns:
          (B, N, width), meaningless at padding.
        """
        positions = self.config.first_position + jnp.arange(ids.shape[1])
        token_types = jnp.zeros(1, jnp.int32)
        x = self.word_embeddings(ids) + self.token_type_embeddings(token_types) + self.position_embeddings(positions)
        x = self.drop(self.norm(x), deterministic=not train)
        for layer in self.layers:
            x = layer(x, mask, train)
        return x
