"""What training minimises (section 3.5 of the paper, in the form of the released code)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.types import Array


def binary_cross_entropy(logits: Array, target: Array, positive_weight: float = 1.5) -> Array:
    """Mean over pixels and samples; object pixels count `positive_weight` times. (B, H, W) both -> scalar."""
    # log sigmoid in the form that neither overflows nor loses digits.
    return jnp.mean(-positive_weight * target * nn.log_sigmoid(logits) - (1 - target) * nn.log_sigmoid(-logits))


def dice(logits: Array, target: Array) -> Array:
    """Mean over samples of 1 - (2 sum(p y) + 1) / (sum p + sum y + 1). (B, H, W) both -> scalar.

    p is the sigmoid clipped to [1e-4, 1 - 1e-4]: pixels that are sure beyond it have no gradient.
    """
    probability = jnp.clip(nn.sigmoid(logits), 1e-4, 1 - 1e-4)
    overlap = jnp.sum(probability * target, axis=(1, 2))
    total = jnp.sum(probability, axis=(1, 2)) + jnp.sum(target, axis=(1, 2))
    return jnp.mean(1 - (2 * overlap + 1) / (total + 1))
