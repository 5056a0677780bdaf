"""Convolution, batch normalization and dropout as the published network has them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax import ops
from lbdt_jax.models.types import Array

Conv = functools.partial(nn.Conv, conv_general_dilated=ops.convolve)
Dense = functools.partial(nn.Dense, dot_general=ops.dot_general)

#: He initialization by fan-out, as in torchvision's ResNets.
convolution_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, with torch's running statistics.

    Unlike in flax's own, the running variance is the unbiased one; the normalization uses the biased one.

    Attributes:
      epsilon: added to the variance.
      momentum: weight of the old running statistics in the new ones.
      axis_name: mesh axis over which the statistics are averaged; None keeps them per device, as published.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Normalizes x (..., C) by the batch's statistics if `train`, else by the running ones; keeps its dtype."""
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_variance = self.variable("batch_stats", "variance", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)

        if not train:
            return normalize(x, running_mean.value, running_variance.value, scale, bias, self.epsilon)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, variance = batch_normalize(self.epsilon, axis_name, x, running_mean.value, scale, bias)
        if not self.is_initializing():
            count = x.size // x.shape[-1] * (jax.lax.axis_size(axis_name) if axis_name else 1)
            unbiased = variance * (count / max(count - 1, 1))
            for running, statistic in ((running_mean, mean), (running_variance, unbiased)):
                new = self.momentum * running.value + (1 - self.momentum) * statistic
                running.value = new.astype(running.value.dtype)
        return y


def normalize(x: Array, mean: Array, variance: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalizes x (..., C) in float32 or better by statistics (C,); keeps its dtype."""
    dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ((x - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def batch_normalize(
    epsilon: float, axis_name: str | None, x: Array, estimate: Array, scale: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """Normalizes x (..., C) by its own statistics, over all axes but the last and the devices of a mesh axis.

    `estimate` (C,) is of the mean, see `batch_statistics`; it has no gradient. The gradient of the others is
    written out (Ioffe and Szegedy, ICML 2015, section 3): it reads x and the incoming gradient twice, while automatic
    differentiation goes through variance and mean one after the other.

    Returns:
      The result, of x's dtype; the mean and the biased variance (C,), through which no gradient flows.
    """
    mean, variance = batch_statistics(axis_name, x, estimate)
    return normalize(x, mean, variance, scale, bias, epsilon), mean, variance


def batch_statistics(axis_name: str | None, x: Array, estimate: Array) -> tuple[Array, Array]:
    """Mean and biased variance (C,) of x (..., C), in float32 or better; over devices too if `axis_name` is given.

    `estimate` (C,) is of the mean, known before x is computed. It changes the rounding only.
    """
    mean, variance = ops.mean_and_variance(x, estimate)
    if axis_name is None:
        return mean, variance
    overall_mean = mean_over_devices(mean, axis_name)
    return overall_mean, mean_over_devices(variance + jnp.square(mean - overall_mean), axis_name)


def mean_over_devices(statistic: Array, axis_name: str | None) -> Array:
    """The mean over the devices of a mesh axis, if one is given."""
    return statistic if axis_name is None else jax.lax.pmean(statistic, axis_name)


def _batch_normalize_forward(
    epsilon: float, axis_name: str | None, x: Array, estimate: Array, scale: Array, bias: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, variance = batch_normalize(epsilon, axis_name, x, estimate, scale, bias)
    return (y, mean, variance), (x, mean, variance, scale)


def _batch_normalize_backward(
    epsilon: float, axis_name: str | None, residuals: tuple[Array, ...], grads: tuple[Array, Array, Array]
) -> tuple[Array, None, Array, Array]:
    x, mean, variance, scale = residuals
    dtype, axes, count = x.dtype, range(x.ndim - 1), x.size // x.shape[-1]
    compute_dtype = jnp.promote_types(dtype, jnp.float32)
    x, grad = x.astype(compute_dtype), grads[0].astype(compute_dtype)
    inverse_std = jax.lax.rsqrt(variance + epsilon)
    bias_grad = jnp.sum(grad, axes)
    scale_grad = jnp.sum(grad * (x - mean), axes) * inverse_std
    mean_bias_grad = mean_over_devices(bias_grad, axis_name) / count
    mean_scale_grad = mean_over_devices(scale_grad, axis_name) / count
    x_grad = (scale * inverse_std) * (grad - mean_bias_grad - (x - mean) * (inverse_std * mean_scale_grad))
    return x_grad.astype(dtype), None, scale_grad, bias_grad


batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)


class LayerNorm(nn.Module):
    """Layer normalization (Ba et al., 2016): flax's, computed as the platform does it best.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result.
    """

    epsilon: float
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (..., C) -> the same shape."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return ops.layer_normalize(x, scale, bias, self.epsilon, self.dtype)


class Dropout(nn.Module):
    """Dropout, which needs the random stream "dropout" in training.

    Attributes:
      rate: share of zeros, rounded to a multiple of 1 / 2**16; the rest is scaled to keep the expected value.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """x of any shape, unchanged if `deterministic`."""
        rate = round(self.rate * 2**16) / 2**16
        if deterministic or not rate:
            return x
        keep = ops.dropout_mask(self.make_rng("dropout"), rate, x.shape)
        return jnp.where(keep, x * (1 / (1 - rate)), jnp.zeros_like(x))


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalization and, by default, ReLU.

    The padding is kernel_size // 2 on every side, as in torch: SAME would pad (0, 1) at stride 2, which shifts the
    image by half a pixel.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel, odd.
      stride: in both directions.
      activation: whether a ReLU follows.
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
        self.conv = Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.kernel_size // 2,
            use_bias=False,
            kernel_init=convolution_init,
            dtype=self.dtype,
        )
        self.norm = BatchNorm(axis_name=self.norm_axis_name)

    def __call__(self, x: Array, train: bool, residual: Array | None = None) -> Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features); `residual` of that shape is added before the ReLU."""
        x = self.norm(self.conv(x), train)
        if residual is not None:
            x = x + residual
        return nn.relu(x) if self.activation else x


def rematerialized(module: type[nn.Module], train_index: int) -> type[nn.Module]:
    """The module, recomputed in the backward pass from its inputs: a third more arithmetic, much less memory.

    Args:
      module: a module class.
      train_index: position of `train`, which is static, among the arguments of `__call__`, `self` being 0.
    """
    return nn.remat(module, static_argnums=(train_index,))
