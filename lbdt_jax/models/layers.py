"""Convolution and batch normalisation as the published network has them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from lbdt_jax.cpu import onednn
from lbdt_jax.cpu.convolution import convolve, convolve_and_finish
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

        if not train:
            return standardise(x, running_mean.value, running_variance.value, scale, bias, self.epsilon)
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, variance = standardise_batch(self.epsilon, axis_name, x, scale, bias)
        if not self.is_initializing():
            count = x.size // x.shape[-1] * (jax.lax.axis_size(axis_name) if axis_name else 1)
            unbiased = variance * (count / max(count - 1, 1))
            for running, statistic in ((running_mean, mean), (running_variance, unbiased)):
                new = self.momentum * running.value + (1 - self.momentum) * statistic
                running.value = new.astype(running.value.dtype)
        return y


def standardise(x: Array, mean: Array, variance: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """Normalises x (..., C) in float32 or better by statistics (C,); keeps its dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return ((wide - mean) * (jax.lax.rsqrt(variance + epsilon) * scale) + bias).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def standardise_batch(
    epsilon: float, axis_name: str | None, x: Array, scale: Array, bias: Array
) -> tuple[Array, Array, Array]:
    """Normalises x (..., C) by its own statistics, over all axes but the last and the devices of a mesh axis.

    Its gradient is written out (Ioffe and Szegedy, ICML 2015, section 3): it reads x and the gradient twice, while the
    derived one goes through mean and variance one after the other.

    Returns:
      The result, of x's dtype; the mean and the biased variance (C,), which no gradient passes.
    """
    mean, variance = batch_statistics(axis_name, x)
    return standardise(x, mean, variance, scale, bias, epsilon), mean, variance


def batch_statistics(axis_name: str | None, x: Array) -> tuple[Array, Array]:
    """Mean and biased variance (C,) of x (..., C), in float32 or better, over devices too if `axis_name` is given."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = mean_over_devices(jnp.mean(x, range(x.ndim - 1)), axis_name)
    return mean, mean_over_devices(jnp.mean(jnp.square(x - mean), range(x.ndim - 1)), axis_name)


def mean_over_devices(statistic: Array, axis_name: str | None) -> Array:
    """The mean over the devices of a mesh axis, if one is given."""
    return statistic if axis_name is None else jax.lax.pmean(statistic, axis_name)


def _standardise_forward(
    epsilon: float, axis_name: str | None, x: Array, scale: Array, bias: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, variance = standardise_batch(epsilon, axis_name, x, scale, bias)
    return (y, mean, variance), (x, mean, variance, scale)


def _standardise_backward(
    epsilon: float, axis_name: str | None, known: tuple[Array, ...], gradients: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x, mean, variance, scale = known
    dtype, axes, count = x.dtype, range(x.ndim - 1), x.size // x.shape[-1]
    wide = jnp.promote_types(dtype, jnp.float32)
    x, gradient = x.astype(wide), gradients[0].astype(wide)
    inverse = jax.lax.rsqrt(variance + epsilon)
    bias_gradient = jnp.sum(gradient, axes)
    scale_gradient = jnp.sum(gradient * (x - mean), axes) * inverse
    shift = mean_over_devices(bias_gradient, axis_name) / count
    slope = mean_over_devices(scale_gradient, axis_name) / count
    x_gradient = (scale * inverse) * (gradient - shift - (x - mean) * (inverse * slope))
    return x_gradient.astype(dtype), scale_gradient, bias_gradient


standardise_batch.defvjp(_standardise_forward, _standardise_backward)


class Dropout(nn.Module):
    """Dropout as flax's, by 16 random bits for each number in the place of 32: the generator is slow on CPUs.

    Attributes:
      rate: share of zeros, to within 1 / 2 ** 16; the rest is scaled so that the mean stays.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, deterministic: bool) -> Array:
        """Any shape; needs the random stream "dropout" unless `deterministic` or the rate is 0."""
        dropped = round(self.rate * 2**16)
        if deterministic or not dropped:
            return x
        pairs = jax.random.bits(self.make_rng("dropout"), ((x.size + 1) // 2,), "uint32")
        bits = jax.lax.bitcast_convert_type(pairs, "uint16").reshape(-1)[: x.size].reshape(x.shape)
        return jnp.where(bits >= dropped, x * (2**16 / (2**16 - dropped)), jnp.zeros_like(x))


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

    def __call__(self, x: Array, train: bool, others: Array | None = None) -> Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, features); `others`, of that shape, are added before the ReLU."""
        x = x.astype(self.dtype)
        if not train and not self.is_initializing() and onednn.serves(x):
            # What normalisation does in inference goes into the kernel and a bias.
            norm, running = self.norm.variables["params"], self.norm.variables["batch_stats"]
            scale = norm["scale"] * jax.lax.rsqrt(running["variance"] + self.norm.epsilon)
            kernel = (self.conv.variables["params"]["kernel"] * scale).astype(self.dtype)
            bias, padding = norm["bias"] - running["mean"] * scale, self.kernel_size // 2
            return convolve_and_finish(x, kernel, self.stride, padding, bias, others, self.activation)
        x = self.norm(self.conv(x), train)
        if others is not None:
            x = x + others
        return nn.relu(x) if self.activation else x


def recomputed(module: type[nn.Module], train: int) -> type[nn.Module]:
    """The module, of which only inputs are kept for the backward pass; `train` is the place of that argument, from 1.

    What lies between is computed a second time: about a third more arithmetic for much less memory.
    """
    return nn.remat(module, static_argnums=(train,))
