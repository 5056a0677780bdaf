"""The training losses: section 3.5 of the paper, as the released code computes them; and the focal loss, an option."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.types import Array


def binary_cross_entropy(logits: Array, target: Array, positive_weight: float = 1.5) -> Array:
    """Binary cross-entropy, averaged over pixels and samples.

    Args:
      logits: (B, H, W).
      target: (B, H, W), 1 for object pixels and 0 elsewhere.
      positive_weight: weight of object pixels.
    """
    # nn.log_sigmoid is numerically stable.
    return jnp.mean(-positive_weight * target * nn.log_sigmoid(logits) - (1 - target) * nn.log_sigmoid(-logits))


def focal(logits: Array, target: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    """Focal loss, averaged over pixels and samples: -alpha_t (1 - p_t)^gamma log p_t (Lin et al., arXiv 1708.02002).

    p_t is the probability of what is true: the sigmoid p in object pixels, 1 - p elsewhere; alpha_t is alpha in object
    pixels, 1 - alpha elsewhere.

    Args:
      logits: (B, H, W).
      target: (B, H, W), 1 for object pixels and 0 elsewhere.
      alpha: weight of object pixels, in [0, 1].
      gamma: 0 for a cross-entropy; the larger, the less weigh pixels that are right already.
    """
    signed = logits * (2 * target - 1)  # p_t is its sigmoid
    weight = alpha * target + (1 - alpha) * (1 - target)
    # Through the logarithm of 1 - p_t: for gamma below 1, the power has no finite gradient at 0.
    return jnp.mean(-weight * jnp.exp(gamma * nn.log_sigmoid(-signed)) * nn.log_sigmoid(signed))


def dice(logits: Array, target: Array) -> Array:
    """Dice loss, averaged over samples: 1 - (2 sum(p y) + 1) / (sum p + sum y + 1).

    p is the sigmoid, clipped to [1e-4, 1 - 1e-4]: pixels beyond that have no gradient.

    Args:
      logits: (B, H, W).
      target: (B, H, W), 1 for object pixels and 0 elsewhere.
    """
    probability = jnp.clip(nn.sigmoid(logits), 1e-4, 1 - 1e-4)
    intersection = jnp.sum(probability * target, axis=(1, 2))
    total = jnp.sum(probability, axis=(1, 2)) + jnp.sum(target, axis=(1, 2))
    return jnp.mean(1 - (2 * intersection + 1) / (total + 1))
