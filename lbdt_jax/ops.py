"""Operations of the network with a faster implementation for CPUs.

Each has a plain implementation, which every platform can run, and one for CPUs, in `lbdt_jax/cpu` unless it is flax's
own. The platform that a program is compiled for selects one of them, so exported programs run everywhere. The two
differ in rounding only, and those of `dropout_mask` in the random bits.
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
from lbdt_jax.cpu.convolution import DIMENSION_NUMBERS
from lbdt_jax.cpu.onednn import Padding, Strides


def convolve(x: Array, kernel: Array, strides: Strides, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` in the layout NHWC, for flax's `Conv(conv_general_dilated=...)`.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      strides: along H and W.
      padding: ((top, bottom), (left, right)), or a name that jax.lax has for one, such as "SAME".
      **options: of `jax.lax.conv_general_dilated`; dilated and grouped convolutions are always plain, but for
        depthwise ones at stride 1.

    Returns:
      (B, H', W', D).
    """
    changed = {
        name
        for name in ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count")
        if options.get(name) not in (None, 1, (1, 1))
    }
    depthwise = options.get("feature_group_count") == x.shape[-1] == kernel.shape[-1] and tuple(strides) == (1, 1)
    if changed and not (depthwise and changed == {"feature_group_count"}):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    if changed:
        return jax.lax.platform_dependent(
            x,
            kernel,
            cpu=functools.partial(cpu.depthwise_convolve, padding=((top, bottom), (left, right))),
            default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **options),
        )
    return _convolve(x, kernel, (strides[0], strides[1]), ((top, bottom), (left, right)), options.get("precision"))


# Its gradient selects the implementation by itself: differentiating through the selection takes longer to trace.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve(x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any) -> Array:
    settings = {"strides": strides, "padding": padding, "precision": precision}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(cpu.convolve, **settings),
        default=functools.partial(plain_convolve, **settings),
    )


def _forward(
    x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, padding, precision), (x, kernel)


def _backward(
    strides: Strides, padding: Padding, precision: Any, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    settings = {"strides": strides, "padding": padding, "precision": precision}

    def plain_gradients(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        (x_grad,) = jax.linear_transpose(lambda x: plain_convolve(x, kernel, **settings), x)(grad)
        (kernel_grad,) = jax.linear_transpose(lambda kernel: plain_convolve(x, kernel, **settings), kernel)(grad)
        return x_grad, kernel_grad

    on_cpu = functools.partial(cpu.convolve_gradients, **settings)
    return jax.lax.platform_dependent(*residuals, grad, cpu=on_cpu, default=plain_gradients)


_convolve.defvjp(_forward, _backward)


def plain_convolve(x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any) -> Array:
    """`convolve` on GPUs and TPUs."""
    stem = kernel.shape[:2] == (7, 7) and kernel.shape[2] <= 4 and strides == (2, 2) and padding == ((3, 3), (3, 3))
    if stem and x.shape[1] % 2 == x.shape[2] % 2 == 0:
        x, kernel, strides, padding = *_space_to_depth(x, kernel), (1, 1), ((2, 1), (2, 1))
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS, precision=precision
    )


def _space_to_depth(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Turns a 7x7 convolution at stride 2 of few channels into a 4x4 one at stride 1 of four times as many.

    Matrix units are made for many channels. Each 2x2 block of pixels becomes one pixel; the kernel gets a row and a
    column of zeros to be divisible in the same way.

    Args:
      x: (B, H, W, C), H and W even.
      kernel: (7, 7, C, D).

    Returns:
      (B, H / 2, W / 2, 4 C) and (4, 4, 4 C, D); the padding is 2 before and 1 after.
    """
    channels = x.shape[-1]
    # TPUs take strided slices three times as fast as the same by reshape and transpose.
    x = jnp.concatenate([x[:, row::2, column::2] for row in range(2) for column in range(2)], axis=-1)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return x, kernel.reshape(4, 4, 4 * channels, -1)


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **options: Any) -> Array:
    """`jax.lax.dot_general` of x (..., C) and kernel (C, D) -> (..., D), for flax's `Dense(dot_general=...)`."""

    def plain(x: Array, kernel: Array) -> Array:
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision, **options)

    if not onednn.supports(x, kernel):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=cpu.matmul, default=plain)


def max_pool(x: Array) -> Array:
    """The maximum of 3x3 windows at stride 2, padded by one: (B, H, W, C) -> (B, H / 2, W / 2, C), H and W even.

    Of equal values, the first in reading order gets the gradient, as in torch. NaN may get lost on CPUs.
    """
    plain = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return jax.lax.platform_dependent(x, cpu=cpu.max_pool, default=plain)


def mean_and_variance(x: Array, estimate: Array) -> tuple[Array, Array]:
    """Mean and biased variance (C,) of x (..., C), in float32 or better.

    `estimate` (C,) is of the mean, and may be anything; the closer it is, the less the variance is rounded on
    accelerators.
    """
    return jax.lax.platform_dependent(x, estimate, cpu=cpu.mean_and_variance, default=plain_mean_and_variance)


def plain_mean_and_variance(x: Array, estimate: Array) -> tuple[Array, Array]:
    """`mean_and_variance` on GPUs and TPUs: in one pass over x, which can be fused into the convolution before it."""
    centered = x.astype(jnp.promote_types(x.dtype, jnp.float32)) - estimate
    axes = range(x.ndim - 1)
    mean = jnp.mean(centered, axes)
    return mean + estimate, jnp.maximum(jnp.mean(jnp.square(centered), axes) - jnp.square(mean), 0)


def layer_normalize(x: Array, scale: Array, bias: Array, epsilon: float, dtype: str) -> Array:
    """Flax's LayerNorm of x (..., C) with parameters (C,): in two passes on CPUs, in one on GPUs and TPUs.

    In one pass, the further the mean is from zero in standard deviations, the more the variance is rounded.
    """

    def normalize(one_pass: bool, x: Array, scale: Array, bias: Array) -> Any:
        norm = nn.LayerNorm(epsilon=epsilon, use_fast_variance=one_pass, dtype=dtype, parent=None)
        return norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    two_passes, one_pass = functools.partial(normalize, False), functools.partial(normalize, True)
    return jax.lax.platform_dependent(x, scale, bias, cpu=two_passes, default=one_pass)


def dropout_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """Booleans of a shape, True (keep) with probability 1 - `rate`; `rate` is a multiple of 1 / 2**16."""
    settings: dict[str, Any] = {"rate": rate, "shape": shape}
    return jax.lax.platform_dependent(
        key,
        cpu=functools.partial(cpu.dropout_mask, **settings),
        default=functools.partial(plain_dropout_mask, **settings),
    )


def plain_dropout_mask(key: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """`dropout_mask` on GPUs and TPUs: 16 bits take half the time and memory of jax.random.bernoulli's 32."""
    return jax.random.bits(key, shape, "uint16") >= round(rate * 2**16)


def per_head_matmul(x: Array, kernel: Array) -> Array:
    """Multiplies each head by its own matrix: x (..., N, heads, c), kernel (heads, c, C) -> (..., heads, N, C)."""
    plain = functools.partial(jnp.einsum, "...nhc,hcd->...hnd")
    return jax.lax.platform_dependent(x, kernel, cpu=cpu.per_head_matmul, default=plain)
