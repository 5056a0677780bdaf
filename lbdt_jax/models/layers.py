"""Convolution and batch normalisation as the published network has them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.models.convolution import convolve
from lbdt_jax.models.types import Array

# He initialisation by fan-out, as torchvision's ResNets; we use it for every convolution.
convolution_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


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


def recomputed(module: type[nn.Module], train: int) -> type[nn.Module]:
    """The module, of which only inputs are kept for the backward pass; `train` is the place of that argument, from 1.

    What lies between is computed a second time: about a third more arithmetic for much less memory.
    """
    return nn.remat(module, static_argnums=(train,))
