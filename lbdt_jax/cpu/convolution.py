"""Convolutions and their gradients in a form that XLA:CPU, or oneDNN where it is enabled, computes fast."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lbdt_jax.cpu import onednn
from lbdt_jax.cpu.matrix_product import matmul, matmul_gradients
from lbdt_jax.cpu.onednn import Padding, Strides, output_size

#: The layouts of images, kernels and results.
DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")
#: Up to this many output pixels, a convolution is computed as one matrix product with all patches.
MAX_UNROLLED_PIXELS = 4
#: From this many elements per image of the output on, the gradient of the kernel is summed over slices ...
MIN_SLICED_ELEMENTS = 2**14
#: ... of about this many pixels, or more if their patches have fewer than this many elements, which fit the cache.
SLICE_PIXELS, SLICE_ELEMENTS = 640, 3 * 2**18


def convolve(x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any = None) -> Array:
    """`jax.lax.conv_general_dilated` without dilation or groups.

    Pointwise convolutions, and those with a handful of output pixels (res5 of small images), are written as matrix
    products, at which XLA:CPU is up to two and ten times as fast.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      strides: along H and W.
      padding: ((top, bottom), (left, right)).
      precision: as for jax.lax; oneDNN ignores it.

    Returns:
      (B, H', W', D).
    """
    if _is_small(x, kernel, strides, padding):
        return _convolve_unrolled(x, kernel, strides, padding, precision)
    if _is_pointwise(kernel, padding):
        return matmul(_subsample(x, strides), kernel[0, 0], precision)
    if onednn.supports(x, kernel):
        return onednn.convolution(x, kernel, strides, padding)
    return _convolve_by_xla(x, kernel, strides, padding, precision)


def convolve_gradients(
    x: Array, kernel: Array, grad: Array, strides: Strides, padding: Padding, precision: Any = None
) -> tuple[Array, Array]:
    """The gradients of x and kernel, given `grad` (B, H', W', D), that of the result of `convolve`.

    XLA:CPU's own gradient of the kernel takes twice as long, and up to ten times for pointwise convolutions.
    """
    arguments = x, kernel, grad, strides, padding, precision
    if _is_small(x, kernel, strides, padding):
        return _x_gradient(_convolve_unrolled, *arguments), _kernel_gradient(_convolve_unrolled, *arguments)
    if _is_pointwise(kernel, padding):
        subsampled_grad, kernel_grad = matmul_gradients(_subsample(x, strides), kernel[0, 0], grad, precision)
        (x_grad,) = jax.linear_transpose(lambda x: _subsample(x, strides), x)(subsampled_grad)
        return x_grad, kernel_grad[None, None]
    full_padding = transposed_padding(kernel, padding)
    if onednn.supports(x, kernel, grad) and strides == (1, 1) and min(map(min, full_padding)) >= 0:
        x_grad = onednn.convolution(grad, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), strides, full_padding)
    else:
        x_grad = _x_gradient(_convolve_by_xla, *arguments)
    if grad[0].size < MIN_SLICED_ELEMENTS:
        return x_grad, _kernel_gradient(_convolve_by_xla, *arguments)
    return x_grad, sliced_kernel_gradient(*arguments)


def _is_small(x: Array, kernel: Array, strides: Strides, padding: Padding) -> bool:
    return math.prod(output_size(x, kernel, strides, padding)) <= MAX_UNROLLED_PIXELS


def _is_pointwise(kernel: Array, padding: Padding) -> bool:
    return kernel.shape[:2] == (1, 1) and not any(map(sum, padding))


def _subsample(x: Array, strides: Strides) -> Array:
    """The pixels that a pointwise convolution reads."""
    return x if strides == (1, 1) else x[:, :: strides[0], :: strides[1]]


def _convolve_by_xla(x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS, precision=precision
    )


def _convolve_unrolled(x: Array, kernel: Array, strides: Strides, padding: Padding, precision: Any) -> Array:
    """A convolution as one matrix product of the patches of all output pixels and the kernel."""
    (height, width), (rows, columns) = kernel.shape[:2], output_size(x, kernel, strides, padding)
    batch = x.shape[0]  # symbolic in a program for any batch size
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    patches = [
        padded[:, i : i + height, j : j + width].reshape(batch, -1)
        for i in range(0, rows * strides[0], strides[0])
        for j in range(0, columns * strides[1], strides[1])
    ]
    result = jnp.matmul(jnp.stack(patches, 1), kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return result.reshape(batch, rows, columns, -1)


def _x_gradient(convolution: Callable[..., Array], x: Array, kernel: Array, grad: Array, *settings: Any) -> Array:
    return jax.linear_transpose(lambda x: convolution(x, kernel, *settings), x)(grad)[0]


def _kernel_gradient(convolution: Callable[..., Array], x: Array, kernel: Array, grad: Array, *settings: Any) -> Array:
    return jax.linear_transpose(lambda kernel: convolution(x, kernel, *settings), kernel)(grad)[0]


def transposed_padding(kernel: Array, padding: Padding) -> Padding:
    """The padding of the convolution that, at stride 1, turns the output's gradient into the input's.

    Negative where the input is padded by more than the kernel reaches.
    """
    rows, columns = (
        (size - 1 - before, size - 1 - after) for size, (before, after) in zip(kernel.shape[:2], padding, strict=True)
    )
    return rows, columns


def sliced_kernel_gradient(
    x: Array, kernel: Array, grad: Array, strides: Strides, padding: Padding, precision: Any
) -> Array:
    """The gradient of a convolution's kernel, as a sum of matrix products over slices of the batch.

    XLA:CPU would write out the patches of all images first, h * w times their memory.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      grad: of the result, (B, H', W', D).
      strides: of the convolution.
      padding: of the convolution.
      precision: of the products.

    Returns:
      (h, w, C, D), of x's dtype; the sum over slices is float32 or better.
    """
    height, width, channels, features = kernel.shape
    swapped_padding = transposed_padding(kernel, padding)
    if channels > features and strides == (1, 1) and min(map(min, swapped_padding)) >= 0:
        # Patches are taken from x or grad, whichever has fewer channels; patches of grad give the flipped kernel.
        flipped = correlate((height, width), strides, swapped_padding, precision, x, grad)
        return jnp.flip(flipped, (0, 1)).swapaxes(2, 3)
    return correlate((height, width), strides, padding, precision, grad, x)


def correlate(
    kernel_size: tuple[int, int], strides: Strides, padding: Padding, precision: Any, pixels: Array, images: Array
) -> Array:
    """The sum over all pixels of the outer product of a pixel with the patch of an image around it.

    Args:
      kernel_size: h, w of a patch.
      strides: from the patch of one pixel to that of the next.
      padding: of the images.
      precision: of the products.
      pixels: (B, H', W', D).
      images: (B, H, W, C).

    Returns:
      (h, w, C, D), of the same dtype; the sum over slices is float32 or better.
    """
    (batch, height, width, features), channels = pixels.shape, images.shape[-1]
    patch_size, dtype = kernel_size[0] * kernel_size[1] * channels, pixels.dtype
    slice_pixels = max(SLICE_PIXELS, SLICE_ELEMENTS // patch_size)
    slice_rows = largest_divisor(height, slice_pixels // width)
    slice_batch = largest_divisor(batch, slice_pixels // (height * width))
    slices_per_image = height // slice_rows
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    if dtype == jnp.bfloat16:  # moved as integers: XLA:CPU would convert to float32 and back
        padded = jax.lax.bitcast_convert_type(padded, jnp.uint16)
    # The part of a slice that one position of the kernel covers.
    window = (slice_batch, (slice_rows - 1) * strides[0] + 1, (width - 1) * strides[1] + 1, channels)
    sum_dtype, use_onednn = jnp.promote_types(dtype, jnp.float32), onednn.supports(pixels, images)

    def product(pixels: Array, patches: Array) -> Array:
        if use_onednn:
            return onednn.matmul(patches, pixels, transpose_x=True, dtype=sum_dtype)
        # Transposed in an operation of its own: XLA:CPU's fast products don't take a transposed operand.
        transposed = jax.lax.optimization_barrier(pixels.T)
        return jnp.matmul(transposed, patches, precision=precision, preferred_element_type=sum_dtype)

    def add_slice(carry: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        total, patches = carry
        first, top = index // slices_per_image * slice_batch, index % slices_per_image * slice_rows
        # Written into the buffer of the previous slice: XLA:CPU would copy twice to concatenate.
        for offset, (i, j) in enumerate(itertools.product(range(kernel_size[0]), range(kernel_size[1]))):
            shifted = jax.lax.dynamic_slice(padded, (first, top * strides[0] + i, j, 0), window)
            patches = jax.lax.dynamic_update_slice(
                patches, shifted[:, :: strides[0], :: strides[1]], (0, 0, 0, offset * channels)
            )
        rows = jax.lax.dynamic_slice(pixels, (first, top, 0, 0), (slice_batch, slice_rows, width, features))
        values = jax.lax.bitcast_convert_type(patches, dtype)
        return (total + product(rows.reshape(-1, features), values.reshape(-1, patch_size)), patches), None

    shape = (patch_size, features) if use_onednn else (features, patch_size)
    start = jnp.zeros(shape, sum_dtype), jnp.zeros((slice_batch, slice_rows, width, patch_size), padded.dtype)
    (total, _), _ = jax.lax.scan(add_slice, start, jnp.arange(batch // slice_batch * slices_per_image))
    return (total if use_onednn else total.T).reshape(*kernel_size, channels, features).astype(dtype)


def largest_divisor(size: int, limit: int) -> int:
    """The largest divisor of `size` up to `limit`, at least 1."""
    return max(divisor for divisor in range(1, size + 1) if size % divisor == 0 and divisor <= max(1, limit))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_convolve(x: Array, kernel: Array, padding: Padding) -> Array:
    """A convolution at stride 1 of each channel by itself, as a sum of shifted products.

    XLA:CPU compiles it to one loop, which takes a tenth of the time of its grouped convolution.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, 1, C).
      padding: ((top, bottom), (left, right)).

    Returns:
      (B, H', W', C).
    """
    (height, width, *_), (rows, columns) = kernel.shape, output_size(x, kernel, (1, 1), padding)
    padded = _pad(x, padding)
    offsets = itertools.product(range(height), range(width))
    products = (padded[:, i : i + rows, j : j + columns] * kernel[i, j, 0] for i, j in offsets)
    return functools.reduce(jnp.add, products)


def _pad(x: Array, padding: Padding) -> Array:
    """Pads with zeros along H and W; crops where the padding is negative."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(*sides, 0) for sides in ((0, 0), *padding, (0, 0))])


def _depthwise_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return depthwise_convolve(x, kernel, padding), (x, kernel)


def _depthwise_backward(padding: Padding, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    height, width, *_ = kernel.shape
    padded = _pad(x, padding)

    def element_gradient(index: Array) -> Array:
        """The gradient of one element of the kernel, for all channels."""
        start = (0, index // width, index % width, 0)
        return jnp.sum(jax.lax.dynamic_slice(padded, start, grad.shape) * grad, axis=(0, 1, 2))

    # A loop: unrolled, it takes longer to compile and no less to run.
    kernel_grad = jax.lax.map(element_gradient, jnp.arange(height * width)).reshape(kernel.shape)
    return depthwise_convolve(grad, jnp.flip(kernel, (0, 1)), transposed_padding(kernel, padding)), kernel_grad


depthwise_convolve.defvjp(_depthwise_forward, _depthwise_backward)
