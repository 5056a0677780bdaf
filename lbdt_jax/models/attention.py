"""Multi-head attention, for the duplex transfer and for transformers.

Vaswani et al., "Attention is all you need", 2017; numerically torch's MultiheadAttention.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax import ops
from lbdt_jax.models.layers import Dropout
from lbdt_jax.models.types import Array

linear_init = nn.initializers.xavier_uniform()


class Projection(nn.Module):
    """A linear layer from `width` to `width` channels that splits its output into heads, or merges its input.

    Attributes:
      width: channels in and out, a multiple of `heads`.
      merge_heads: False for (..., C) -> (..., heads, C / heads), True for the reverse.
    """

    width: int
    heads: int
    merge_heads: bool = False
    dtype: str = "float32"

    def setup(self) -> None:
        self.kernel = self.param("kernel", linear_init, (self.width, self.width))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))

    def __call__(self, x: Array) -> Array:
        """(..., C) -> (..., heads, C / heads), or the reverse."""
        if self.merge_heads:
            x = x.reshape(*x.shape[:-2], self.width)
        x = x.astype(self.dtype) @ self.kernel.astype(self.dtype) + self.bias.astype(self.dtype)
        return x if self.merge_heads else x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)

    def kernel_and_bias(self) -> tuple[Array, Array]:
        """The parameters, split into heads.

        Returns:
          kernel: (C, heads, C / heads), or (heads, C / heads, C) if `merge_heads`.
          bias: (heads, C / heads), or (C,) if `merge_heads`.
        """
        per_head = (self.heads, self.width // self.heads)
        kernel, bias = self.kernel.astype(self.dtype), self.bias.astype(self.dtype)
        if self.merge_heads:
            return kernel.reshape(*per_head, self.width), bias
        return kernel.reshape(self.width, *per_head), bias.reshape(per_head)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with biases in all four projections.

    A sentence has few words and a feature map many pixels. Since matrix products are associative, the projections of
    the pixels can be moved to the words, which halves the arithmetic at 320x320.

    In the einsums, q stands for queries, k for keys, h for heads, c for the channels of a head, d for all channels.

    Attributes:
      width: channels in and out, a multiple of `heads`.
      dropout: rate on the attention weights.
    """

    width: int
    heads: int
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        projection = functools.partial(Projection, self.width, self.heads, dtype=self.dtype)
        self.query, self.key, self.value = projection(), projection(), projection()
        self.out = projection(merge_heads=True)
        self.drop = Dropout(self.dropout)

    def __call__(self, query: Array, key: Array, value: Array, key_mask: Array | None, train: bool) -> Array:
        """query (..., Q, C), key and value (..., K, C), key_mask (..., K) bool or None -> (..., Q, C).

        Leading axes broadcast. Masked keys get no weight at all; every query needs a key that is not masked.
        """
        queries, keys = query.shape[-2], key.shape[-2]
        if queries == keys or self.heads * min(queries, keys) >= self.width:  # the other orders would save nothing
            attend = self.attend
        else:
            attend = self.attend_with_few_queries if queries < keys else self.attend_with_few_keys
        return attend(query, key, value, key_mask, train)

    def attend(self, query: Array, key: Array, value: Array, key_mask: Array | None, train: bool) -> Array:
        """softmax((query Wq + bq) (key Wk + bk)^T / sqrt(c)) (value Wv + bv) Wo + bo, as it is usually computed."""
        scores = jnp.einsum("...qhc,...khc->...hqk", self.scale * self.query(query), self.key(key))
        weights = self.attention_weights(scores, key_mask, train)
        return self.out(jnp.einsum("...hqk,...khc->...qhc", weights, self.value(value)))

    def attend_with_few_queries(
        self, query: Array, key: Array, value: Array, key_mask: Array | None, train: bool
    ) -> Array:
        """The same without projecting keys and values: their kernels are applied on the queries' side.

        With q = (query Wq + bq) / sqrt(c):
          scores = q (key Wk + bk)^T = (q Wk^T) key^T + q bk^T
          attended = weights (value Wv + bv) = (weights value) Wv + weights bv
        """
        key_kernel, key_bias = self.key.kernel_and_bias()
        value_kernel, value_bias = self.value.kernel_and_bias()
        q = self.scale * self.query(query)
        scores = jnp.einsum("...qhd,...kd->...hqk", jnp.einsum("...qhc,dhc->...qhd", q, key_kernel), key)
        scores = scores + jnp.einsum("...qhc,hc->...hq", q, key_bias)[..., None]
        weights = self.attention_weights(scores, key_mask, train)
        averaged = jnp.einsum("...hqk,...kd->...qhd", weights, value)
        attended = jnp.einsum("...qhd,dhc->...qhc", averaged, value_kernel)
        return self.out(attended + jnp.einsum("...hqk,hc->...qhc", weights, value_bias))

    def attend_with_few_keys(
        self, query: Array, key: Array, value: Array, key_mask: Array | None, train: bool
    ) -> Array:
        """The same without projecting queries and output: their kernels are applied on the keys' side.

        With k = (key Wk + bk) / sqrt(c) and v = value Wv + bv:
          scores = (query Wq + bq) k^T = query (k Wq^T)^T + bq k^T
          output = (weights v) Wo + bo = weights (v Wo) + bo
        """
        query_kernel, query_bias = self.query.kernel_and_bias()
        out_kernel, out_bias = self.out.kernel_and_bias()
        k = self.scale * self.key(key)
        keys = ops.per_head_matmul(k, query_kernel.transpose(1, 2, 0))
        scores = jnp.einsum("...qd,...hkd->...hqk", query, keys)
        scores = scores + jnp.einsum("...khc,hc->...hk", k, query_bias)[..., None, :]
        weights = self.attention_weights(scores, key_mask, train)
        values = ops.per_head_matmul(self.value(value), out_kernel)
        return jnp.einsum("...hqk,...hkd->...qd", weights, values) + out_bias

    @property
    def scale(self) -> float:
        """1 / sqrt(channels of a head)."""
        return (self.width // self.heads) ** -0.5

    def attention_weights(self, scores: Array, key_mask: Array | None, train: bool) -> Array:
        """Scores (..., heads, Q, K) -> weights that sum to 1 over the keys, before dropout."""
        dtype = scores.dtype
        scores = scores.astype(jnp.promote_types(dtype, jnp.float32))
        if key_mask is not None:
            scores = jnp.where(key_mask[..., None, None, :], scores, -jnp.inf)
        weights = nn.softmax(scores)
        self.sow("attention", "weights", weights.mean(axis=-3))
        return self.drop(weights, deterministic=not train).astype(dtype)
