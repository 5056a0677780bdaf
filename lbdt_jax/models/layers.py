"""Convolution and batch normalisation as the published network has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.types import Array

# He initialisation by fan-out, as torchvision's ResNets; we use it for every convolution.
convolution_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


#: Up to this many cells of output, a convolution is computed as one matrix product.
FEW_CELLS = 4


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **others: Any) -> Array:
    """`jax.lax.conv_general_dilated`, as a matrix product where the kernel is one cell or the output is a few.

    XLA:CPU takes up to twice as long for convolutions with one cell as for the products, up to ten times for the
    gradients of their kernels and for pictures of a few cells (res5 of small pictures).

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      strides: in both directions.
      padding: ((above, below), (left, right)) cells, or a name of jax.lax's.
      others: passed on; products are used only if nothing is dilated or grouped.

    Returns:
      (B, H', W', D).
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    rows, columns = (
        range(0, length + sum(around) - side + 1, stride)
        for length, around, side, stride in zip(x.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    )
    plain = all(
        others.get(name) in (None, 1, (1, 1)) for name in ("lhs_dilation", "rhs_dilation", "feature_group_count")
    )
    height, width, *_ = kernel.shape
    precision = others.get("precision")
    if plain and height == width == 1 and not any(sum(around) for around in padding):
        return jnp.matmul(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision=precision)
    if not plain or len(rows) * len(columns) > FEW_CELLS:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **others)
    batch = x.shape[0]  # may be symbolic, in a program for any batch size, and then has no len()
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    seen = [
        padded[:, row : row + height, column : column + width].reshape(batch, -1) for row in rows for column in columns
    ]
    products = jnp.matmul(jnp.stack(seen, 1), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return products.reshape(batch, len(rows), len(columns), -1)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with torch's bookkeeping.

    Unlike flax's own, the running variance is the *unbiased* one (the normalisation uses the biased one), and the
    variance is computed in two passes.

    Attributes:
      epsilon: added to the variance.
      momentum: share of the old running statistics that is kept.
      axis_name: mesh axis over which the statistics are averaged; None keeps them per device, as published.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalises x (..., C) by the batch's statistics if `train`, else by the running ones; keeps its dtype."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_variance = self.variable("batch_stats", "variance", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)

        dtype = x.dtype
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        if train:
            axes = tuple(range(x.ndim - 1))
            count = x.size // x.shape[-1]
            mean = self._over_devices(jnp.mean(x, axes))
            variance = self._over_devices(jnp.mean(jnp.square(x - mean), axes))
            if self.axis_name is not None and not self.is_initializing():
                count *= jax.lax.axis_size(self.axis_name)
            if not self.is_initializing():
                unbiased = variance * (count / max(count - 1, 1))
                running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                running_variance.value = self.momentum * running_variance.value + (1 - self.momentum) * unbiased
        else:
            mean, variance = running_mean.value, running_variance.value
        return ((x - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(dtype)

    def _over_devices(self, statistic: Array) -> Array:
        if self.axis_name is None or self.is_initializing():
            return statistic
        return jax.lax.pmean(statistic, self.axis_name)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and, unless told otherwise, ReLU.

    The padding is kernel_size // 2 on every side, as in torch: XLA's SAME pads (0, 1) at stride 2, which shifts
    the picture by half a pixel.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel, odd.
      stride: in both directions.
      activation: False leaves the ReLU out.
      norm_axis_name: see BatchNorm.axis_name.
      dtype: of the computation.
    """

    features: int
    kernel_size: int
    stride: int = 1
    activation: bool = True
    norm_axis_name: str | None = None
    dtype: str = "float32"

    def setup(self) -> None:
        self.conv = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=False,
            kernel_init=convolution_init,
            dtype=self.dtype,
            conv_general_dilated=convolve,
        )
        self.norm = BatchNorm(axis_name=self.norm_axis_name)

    def __call__(self, x: Array, train: bool) -> Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features)."""
        x = self.norm(self.conv(x), train)
        return nn.relu(x) if self.activation else x
