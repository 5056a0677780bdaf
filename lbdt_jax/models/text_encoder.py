"""Text encoders: a sentence -> word features and a sentence feature.

As published, a one-layer LSTM over GloVe vectors (section 3.1); or a pretrained transformer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.attention import linear_init
from lbdt_jax.models.layers import Dense
from lbdt_jax.models.transformer import Transformer, TransformerConfig
from lbdt_jax.models.types import Array


def lstm_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Torch's default for an LSTM: uniform in +-1 / sqrt(width); the last axis holds the four gates."""
    bound = (shape[-1] // 4) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class LSTMTextEncoder(nn.Module):
    """Unidirectional LSTM over all positions, padding included, with a zero initial state.

    The gates are in torch's order: input, forget, cell, output. Both of torch's bias vectors are kept: if they were one
    parameter, AdamW would change their sum half as fast.

    Attributes:
      width: channels of the word features and of the sentence feature.
    """

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, words: Array, word_mask: Array | None = None, train: bool = False) -> tuple[Array, Array]:
        """Word features (B, N, width), and their sum over N, the sentence (B, width).

        Args:
          words: (B, N, D) word vectors.
          word_mask: not used: as published, padding is read like words.
          train: not used: there is no dropout.
        """
        gates = 4 * self.width
        input_kernel = self.param("input_kernel", lstm_init, (words.shape[-1], gates))
        hidden_kernel = self.param("hidden_kernel", lstm_init, (self.width, gates))
        input_bias = self.param("input_bias", lstm_init, (gates,))
        hidden_bias = self.param("hidden_bias", lstm_init, (gates,))
        words, input_kernel, hidden_kernel, bias = (
            x.astype(self.dtype) for x in (words, input_kernel, hidden_kernel, input_bias + hidden_bias)
        )

        def step(carry: tuple[Array, Array], word_gates: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = carry
            i, f, g, o = jnp.split(word_gates + hidden @ hidden_kernel, 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        word_gates = jnp.swapaxes(words @ input_kernel + bias, 0, 1)
        zeros = jnp.zeros((words.shape[0], self.width), self.dtype)
        _, features = jax.lax.scan(step, (zeros, zeros), word_gates)
        features = jnp.swapaxes(features, 0, 1)
        return features, features.sum(axis=1)


class TransformerTextEncoder(nn.Module):
    """A transformer, and a projection from its width to that of the network.

    Attributes:
      width: channels of the word features and of the sentence feature.
      config: of the transformer.
      dropout: inside the transformer, in training.
    """

    width: int
    config: TransformerConfig
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        self.transformer = Transformer(self.config, self.dropout, self.dtype)
        self.project = Dense(self.width, kernel_init=linear_init, dtype=self.dtype)

    def __call__(self, words: Array, word_mask: Array, train: bool = False) -> tuple[Array, Array]:
        """Word features (B, N, width), zero at padding, and their sum over N, the sentence (B, width).

        Args:
          words: (B, N) int32 token ids; or (B, N, D) floats, the transformer's precomputed last hidden states.
          word_mask: (B, N) bool, True for a token.
          train: whether dropout is active.
        """
        if jnp.issubdtype(words.dtype, jnp.integer):
            words = self.transformer(words, word_mask, train)
        features = jnp.where(word_mask[..., None], self.project(words), 0)
        return features, features.sum(axis=1)
