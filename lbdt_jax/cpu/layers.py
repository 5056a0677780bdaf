"""Max-pooling, batch statistics and dropout masks that XLA:CPU computes fast."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array


def max_pool(x: Array) -> Array:
    """The maximum of 3x3 windows at stride 2, padded by one: (B, H, W, C) -> (B, H / 2, W / 2, C), H and W even.

    Pools along one axis after the other; XLA:CPU's own gradient of a pooling in two dimensions takes three times as
    long. Of equal values, the first in reading order gets the gradient.
    """
    return _max_pool_along(_max_pool_along(x, axis=2), axis=1)


def _max_pool_along(x: Array, axis: int) -> Array:
    """The maximum of three neighbors along an axis of even length, at stride 2, padded by one."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 0)
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)
    first, second, third = (
        jax.lax.slice_in_dim(padded, start, start + x.shape[axis] - 1, 2, axis) for start in range(3)
    )
    maximum = jnp.where(second > first, second, first)
    return jnp.where(third > maximum, third, maximum)


def mean_and_variance(x: Array, estimate: Array) -> tuple[Array, Array]:
    """Mean and biased variance (C,) of x (..., C), in float32 or better, in two passes; `estimate` is not needed."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = range(x.ndim - 1)
    mean = jnp.mean(x, axes)
    return mean, jnp.mean(jnp.square(x - mean), axes)


def dropout_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """True (keep) with probability 1 - `rate`, a multiple of 1 / 2**16.

    Each element takes only 16 random bits, because the generator is slow.
    """
    count = math.prod(shape)
    pairs = jax.random.bits(key, ((count + 1) // 2,), "uint32")
    bits = jax.lax.bitcast_convert_type(pairs, "uint16").reshape(-1)[:count].reshape(shape)
    return bits >= round(rate * 2**16)
