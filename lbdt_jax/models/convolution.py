"""Convolutions as jax.lax's, in other words where XLA:CPU is slow at them. Figures: two cores, BENCHMARKS.md."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lbdt_jax.models.types import Array

#: Up to this many cells of output, a convolution is computed as one matrix product.
FEW_CELLS = 4
#: From this many channels on, in and out, the CPU computes the gradients of kernels in slices ...
MANY_CHANNELS = 64
#: ... of about so many cells, whose surroundings then stay in its cache.
SLICE_CELLS = 640

#: Layouts of pictures, kernels and results.
LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **others: Any) -> Array:
    """`jax.lax.conv_general_dilated`, to be handed to flax's Conv.

    Where the kernel is one cell, or the output a few (res5 of small pictures), it is written as a matrix product, which
    XLA:CPU computes up to twice and ten times as fast; the gradient of a kernel of one cell up to ten times. Other
    convolutions that keep the size have a gradient of their kernel that is twice as fast on the CPU.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      strides: in both directions.
      padding: ((above, below), (left, right)) cells, or a name of jax.lax's.
      others: passed on; all is left to jax.lax if something is dilated or grouped.

    Returns:
      (B, H', W', D).
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    if any(
        others.get(name) not in (None, 1, (1, 1)) for name in ("lhs_dilation", "rhs_dilation", "feature_group_count")
    ):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **others)
    precision = others.get("precision")
    height, width, channels, features = kernel.shape
    if height == width == 1 and not any(map(sum, padding)):
        return jnp.matmul(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision=precision)
    rows, columns = (
        range(0, length + sum(around) - side + 1, stride)
        for length, around, side, stride in zip(x.shape[1:3], padding, (height, width), strides, strict=True)
    )
    if len(rows) * len(columns) <= FEW_CELLS:
        batch = x.shape[0]  # may be symbolic, in a program for any batch size, and then has no len()
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        seen = [padded[:, i : i + height, j : j + width].reshape(batch, -1) for i in rows for j in columns]
        products = jnp.matmul(jnp.stack(seen, 1), kernel.reshape(-1, features), precision=precision)
        return products.reshape(batch, len(rows), len(columns), -1)
    keeps_size = strides == (1, 1) and height == width and {*map(tuple, padding)} == {(height // 2, height // 2)}
    if keeps_size and height % 2 and min(channels, features) >= MANY_CHANNELS:
        return convolve_same(precision, x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **others)


def keep_size(precision: Any, x: Array, kernel: Array) -> Array:
    """Convolves x (B, H, W, C), k // 2 zeros around it, with a kernel (k, k, C, D), k odd -> (B, H, W, D)."""
    around = kernel.shape[0] // 2
    padding = ((around, around), (around, around))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT, precision=precision)


#: `keep_size` with the faster gradient.
convolve_same = jax.custom_vjp(keep_size, nondiff_argnums=(0,))


def _forward(precision: Any, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return keep_size(precision, x, kernel), (x, kernel)


def _backward(precision: Any, known: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = known
    (x_gradient,) = jax.linear_transpose(lambda x: keep_size(precision, x, kernel), x)(gradient)

    def at_once(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: keep_size(precision, x, kernel), kernel)(gradient)[0]

    in_slices = functools.partial(kernel_gradient, kernel.shape[0], precision)
    return x_gradient, jax.lax.platform_dependent(x, gradient, cpu=in_slices, default=at_once)


convolve_same.defvjp(_forward, _backward)


def kernel_gradient(side: int, precision: Any, x: Array, gradient: Array) -> Array:
    """The gradient of the kernel of `keep_size`, as a sum of matrix products over slices of the pictures.

    XLA:CPU would write down what surrounds every cell of all pictures first, side * side times the pictures.

    Args:
      side: k, of the kernel.
      precision: of the products.
      x: (B, H, W, C).
      gradient: of the result, (B, H, W, D).

    Returns:
      (k, k, C, D).
    """
    batch, height, width, channels = x.shape
    rows = largest_divisor(height, SLICE_CELLS // width)
    pictures = largest_divisor(batch, SLICE_CELLS // (height * width))
    slices = height // rows
    around = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))

    def add_slice(total: Array, index: Array) -> tuple[Array, None]:
        first, top = index // slices * pictures, index % slices * rows
        seen = jax.lax.dynamic_slice(
            padded, (first, top, 0, 0), (pictures, rows + side - 1, width + side - 1, channels)
        )
        told = jax.lax.dynamic_slice(gradient, (first, top, 0, 0), (pictures, rows, width, gradient.shape[-1]))
        around_cells = jnp.concatenate(
            [seen[:, i : i + rows, j : j + width] for i in range(side) for j in range(side)], axis=-1
        )
        both = (cells.reshape(-1, cells.shape[-1]) for cells in (around_cells, told))
        return total + jnp.einsum("nc,nd->cd", *both, precision=precision), None

    start = jnp.zeros((side * side * channels, gradient.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(add_slice, start, jnp.arange(batch // pictures * slices))
    return total.reshape(side, side, channels, -1)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`, at least 1."""
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(1, limit))
