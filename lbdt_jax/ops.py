"""Operations of the network that need another form on some platform to be fast.

Each has a plain form, which any platform can run, and one in `lbdt_jax/cpu`. The platform that a program is compiled
for selects the form, so exported programs work everywhere. The forms differ in rounding only, and `dropout` in its
random bits.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from lbdt_jax import cpu
from lbdt_jax.cpu import onednn


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` in the layout NHWC, for flax's `Conv(conv_general_dilated=...)`.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      strides: along H and W.
      padding: ((top, bottom), (left, right)), or a name that jax.lax knows, such as "SAME".
      **options: of `jax.lax.conv_general_dilated`.

    Returns:
      (B, H', W', D).
    """
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options)
    dilated_or_grouped = ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count")
    if any(options.get(name) not in (None, 1, (1, 1)) for name in dilated_or_grouped):
        return plain(x, kernel)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    on_cpu = functools.partial(
        cpu.convolve,
        strides=tuple(strides),
        padding=tuple(map(tuple, padding)),
        precision=options.get("precision"),
    )
    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> Array:
    """`jax.lax.dot_general` of x (..., C) and kernel (C, D) -> (..., D), for flax's `Dense(dot_general=...)`."""
    plain = functools.partial(jax.lax.dot_general, dimension_numbers=dimension_numbers, precision=precision, **options)
    if not onednn.supports(x, kernel):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=functools.partial(cpu.matmul, precision), default=plain)


def max_pool(x: Array) -> Array:
    """The maximum of 3x3 windows at stride 2, padded by one: (B, H, W, C) -> (B, H / 2, W / 2, C), H and W even.

    Of equal values, the first in reading order gets the gradient, as in torch.
    """
    plain = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return jax.lax.platform_dependent(x, cpu=cpu.max_pool, default=plain)


def dropout(key: Array, x: Array, rate: float) -> Array:
    """Sets a share of x, of any shape, to zero and scales the rest so that the expectation stays."""

    def plain(key: Array, x: Array) -> Array:
        keep = jax.random.bernoulli(key, 1 - rate, x.shape)
        return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))

    return jax.lax.platform_dependent(key, x, cpu=functools.partial(cpu.dropout, rate=rate), default=plain)


def per_head_matmul(x: Array, kernel: Array) -> Array:
    """Multiplies each head by its own matrix: x (..., N, heads, c), kernel (heads, c, C) -> (..., heads, N, C)."""
    plain = functools.partial(jnp.einsum, "...nhc,hcd->...hnd")
    return jax.lax.platform_dependent(x, kernel, cpu=cpu.per_head_matmul, default=plain)
