"""Sentence -> features of its words and of the whole.

As published, a one-layer LSTM over GloVe vectors (section 3.1); or a pretrained transformer.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.duplex_transfer import linear_init
from lbdt_jax.models.transformer import Transformer, TransformerConfig
from lbdt_jax.models.types import Array


def lstm_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Torch's default for an LSTM: uniform within 1 / sqrt(width); the last axis holds the four gates."""
    bound = (shape[-1] // 4) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class TextEncoder(nn.Module):
    """Unidirectional LSTM over all positions, padding included, from a zero start.

    The gates stand in torch's order: input, forget, cell, output. Both of torch's bias vectors are kept: merged
    into one, AdamW would move their sum half as far.

    Attributes:
      width: channels of the word features and of the sentence.
    """

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, words: Array) -> tuple[Array, Array]:
        """(B, N, D) word vectors -> word features (B, N, width) and their sum over all N, the sentence (B, width)."""
        gates = 4 * self.width
        input_kernel = self.param("input_kernel", lstm_init, (words.shape[-1], gates))
        hidden_kernel = self.param("hidden_kernel", lstm_init, (self.width, gates))
        input_bias = self.param("input_bias", lstm_init, (gates,))
        hidden_bias = self.param("hidden_bias", lstm_init, (gates,))
        words, input_kernel, hidden_kernel, bias = (
            x.astype(self.dtype) for x in (words, input_kernel, hidden_kernel, input_bias + hidden_bias)
        )

        def read_word(carry: tuple[Array, Array], from_word: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = carry
            i, f, g, o = jnp.split(from_word + hidden @ hidden_kernel, 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        from_words = jnp.swapaxes(words @ input_kernel + bias, 0, 1)
        start = jnp.zeros((words.shape[0], self.width), self.dtype)
        _, features = jax.lax.scan(read_word, (start, start), from_words)
        features = jnp.swapaxes(features, 0, 1)
        return features, features.sum(axis=1)


class TransformerEncoder(nn.Module):
    """A transformer, and one projection from its width to that of the network.

    Attributes:
      width: channels of the word features and of the sentence.
      sizes: of the transformer.
      dropout: inside the transformer, where it is trained.
    """

    width: int
    sizes: TransformerConfig
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        self.transformer = Transformer(self.sizes, self.dropout, self.dtype)
        self.project = nn.Dense(self.width, kernel_init=linear_init, dtype=self.dtype)

    def __call__(self, words: Array, word_mask: Array, train: bool = False) -> tuple[Array, Array]:
        """Word features (B, N, width), zero at padding, and their sum over all N, the sentence (B, width).

        Args:
          words: (B, N) int32 ids of tokens; or (B, N, D) floats, the last hidden states that the transformer, which is
            not run then, has for them.
          word_mask: (B, N) bool, True for a token.
          train: whether dropout is in use.
        """
        if jnp.issubdtype(words.dtype, jnp.integer):
            words = self.transformer(words, word_mask, train)
        features = jnp.where(word_mask[..., None], self.project(words), 0)
        return features, features.sum(axis=1)
