"""Convolutions as jax.lax's, in other words where XLA:CPU is slow at them. Figures: two cores, BENCHMARKS.md."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from lbdt_jax.cpu import onednn
from lbdt_jax.models.types import Array, Padding, Strides

#: Up to this many cells of output, a convolution is computed as one matrix product.
FEW_CELLS = 4
#: From so many numbers in the result for a picture on, the CPU computes the gradients of kernels in slices ...
MANY_NUMBERS = 2**14
#: ... of about so many cells, or as many as have so many numbers around them, which then stay in its cache.
SLICE_CELLS, SLICE_NUMBERS = 640, 3 * 2**18

#: Layouts of pictures, kernels and results.
LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, strides: tuple[int, int], padding: Any, **others: Any) -> Array:
    """`jax.lax.conv_general_dilated`, to be handed to flax's Conv.

    Where the kernel is one cell, or the output a few (res5 of small pictures), it is written as a matrix product, which
    XLA:CPU computes up to twice and ten times as fast. The gradient of the kernel is twice as fast on the CPU as XLA's,
    and up to ten times where the kernel is one cell. Where oneDNN is asked for, the CPU uses that; see onednn.py.

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
    if height == width == 1 and not any(map(sum, padding)):  # the same as one that keeps the size, of fewer cells
        x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
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
    return convolve_numbers(tuple(strides), tuple(map(tuple, padding)), precision, x, kernel)


def convolve_and_finish(
    x: Array, kernel: Array, stride: int, padding: int, bias: Array, others: Array | None, relu: bool
) -> Array:
    """`convolve` with the same stride and padding in both directions, and what follows it, in one call of oneDNN.

    To be used in inference, and where `onednn.serves`; it has no gradient.

    Args:
      x: (B, H, W, C).
      kernel: (h, w, C, D).
      stride: of the convolution.
      padding: zeros around x.
      bias: (D,) float32, added to the result.
      others: (B, H', W', D) or None, added then.
      relu: whether ReLU follows.

    Returns:
      (B, H', W', D) of x's dtype.
    """
    if kernel.shape[:2] == (1, 1):
        x, stride = x[:, ::stride, ::stride], 1
    strides, around = (stride, stride), ((padding, padding),) * 2

    def on_cpu(x: Array, kernel: Array, bias: Array, *others: Array) -> Array:
        finish = onednn.Finish(bias, others[0] if others else None, relu)
        return by_onednn(strides, around, x, kernel, finish)

    def elsewhere(x: Array, kernel: Array, bias: Array, *others: Array) -> Array:
        y = by_xla(strides, around, None, x, kernel) + bias.astype(x.dtype)
        y = y + others[0] if others else y
        return jax.nn.relu(y) if relu else y

    known = x, kernel, bias, *([] if others is None else [others])
    return jax.lax.platform_dependent(*known, cpu=on_cpu, default=elsewhere)


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **others: Any) -> Array:
    """`jax.lax.dot_general` of x (..., C) and a kernel (C, D) -> (..., D), to be handed to flax's Dense."""
    if not onednn.serves(x, kernel):
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision, **others)
    product = convolve_numbers(
        (1, 1), ((0, 0), (0, 0)), precision, x.reshape(1, 1, -1, len(kernel)), kernel[None, None]
    )
    return product.reshape(*x.shape[:-1], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def convolve_numbers(strides: Strides, padding: Padding, precision: Any, x: Array, kernel: Array) -> Array:
    """`convolve` where nothing is dilated or grouped, with its own gradients."""
    if not onednn.serves(x, kernel):
        return by_xla(strides, padding, precision, x, kernel)
    of_cpu = functools.partial(by_onednn, strides, padding)
    return jax.lax.platform_dependent(
        x, kernel, cpu=of_cpu, default=functools.partial(by_xla, strides, padding, precision)
    )


def by_xla(strides: Strides, padding: Padding, precision: Any, x: Array, kernel: Array) -> Array:
    """Convolves x (B, H, W, C) with a kernel (h, w, C, D) -> (B, H', W', D)."""
    if is_product(strides, padding, kernel):
        return jnp.matmul(x, kernel[0, 0], precision=precision)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT, precision=precision)


def by_onednn(
    strides: Strides, padding: Padding, x: Array, kernel: Array, finish: onednn.Finish | None = None
) -> Array:
    """The same by oneDNN, and its `finish`."""
    if not is_product(strides, padding, kernel):
        return onednn.convolution(x, kernel, strides, padding, finish)
    if finish and finish.others is not None:
        finish = finish._replace(others=finish.others.reshape(-1, finish.others.shape[-1]))
    product = onednn.matrix_product(x.reshape(-1, x.shape[-1]), kernel[0, 0], finish=finish)
    return product.reshape(*x.shape[:-1], -1)


def is_product(strides: Strides, padding: Padding, kernel: Array) -> bool:
    """Whether the convolution is a matrix product of every cell."""
    return kernel.shape[:2] == strides == (1, 1) and not any(map(sum, padding))


def _forward(
    strides: Strides, padding: Padding, precision: Any, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return convolve_numbers(strides, padding, precision, x, kernel), (x, kernel)


def _backward(
    strides: Strides, padding: Padding, precision: Any, known: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    by_default = functools.partial(gradients_by_xla, strides, padding, precision)
    if not onednn.serves(*known, gradient):
        return by_default(*known, gradient)
    of_cpu = functools.partial(gradients_by_onednn, strides, padding)
    return jax.lax.platform_dependent(*known, gradient, cpu=of_cpu, default=by_default)


def gradients_by_xla(
    strides: Strides, padding: Padding, precision: Any, x: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array]:
    """The gradients of x (B, H, W, C) and of a kernel (h, w, C, D), given that of the result (B, H', W', D)."""
    known = strides, padding, precision, x, kernel, gradient
    return x_gradient_by_xla(*known), kernel_gradient_by_xla(*known)


def x_gradient_by_xla(
    strides: Strides, padding: Padding, precision: Any, x: Array, kernel: Array, gradient: Array
) -> Array:
    """The first of them."""
    return jax.linear_transpose(lambda x: by_xla(strides, padding, precision, x, kernel), x)(gradient)[0]


def kernel_gradient_by_xla(
    strides: Strides, padding: Padding, precision: Any, x: Array, kernel: Array, gradient: Array
) -> Array:
    """The second, on the CPU in slices if the result is large."""

    def at_once(x: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda kernel: by_xla(strides, padding, precision, x, kernel), kernel)(gradient)[0]

    if is_product(strides, padding, kernel):
        both = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        return jnp.einsum("nc,nd->cd", *both, precision=precision)[None, None]
    if gradient[0].size < MANY_NUMBERS:
        return at_once(x, gradient)
    in_slices = functools.partial(kernel_gradient, kernel.shape[:2], strides, padding, precision)
    return jax.lax.platform_dependent(x, gradient, cpu=in_slices, default=at_once)


def gradients_by_onednn(
    strides: Strides, padding: Padding, x: Array, kernel: Array, gradient: Array
) -> tuple[Array, Array]:
    """The same by oneDNN, but for what it can't do as a convolution or a matrix product."""
    if is_product(strides, padding, kernel):
        cells, told = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        x_gradient = onednn.matrix_product(told, kernel[0, 0], transpose_y=True).reshape(x.shape)
        return x_gradient, onednn.matrix_product(cells, told, transpose_x=True)[None, None]
    # At stride 1 the gradient of x is a convolution with the kernel turned round, padded as far as it reaches.
    around = tuple(
        (side - 1 - before, side - 1 - after) for side, (before, after) in zip(kernel.shape[:2], padding, strict=True)
    )
    if strides == (1, 1) and min(map(min, around)) >= 0:
        x_gradient = by_onednn(strides, around, gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    else:
        x_gradient = x_gradient_by_xla(strides, padding, None, x, kernel, gradient)
    return x_gradient, kernel_gradient_by_xla(strides, padding, None, x, kernel, gradient)


convolve_numbers.defvjp(_forward, _backward)


def kernel_gradient(
    sides: tuple[int, int], strides: Strides, padding: Padding, precision: Any, x: Array, gradient: Array
) -> Array:
    """The gradient of a convolution's kernel, as a sum of matrix products over slices of the pictures.

    XLA:CPU would write down what surrounds every cell of all pictures first, h * w times the pictures.

    Args:
      sides: h, w of the kernel.
      strides: of the convolution.
      padding: of the convolution.
      precision: of the products.
      x: (B, H, W, C).
      gradient: of the result, (B, H', W', D).

    Returns:
      (h, w, C, D), of x's dtype; the sum over slices is float32 or better.
    """
    reach = tuple((side - 1 - before, side - 1 - after) for side, (before, after) in zip(sides, padding, strict=True))
    if x.shape[-1] > gradient.shape[-1] and strides == (1, 1) and min(map(min, reach)) >= 0:
        # What surrounds a cell is written down of the one that has fewer channels; seen from x, it lies the other way.
        return jnp.flip(correlation(sides, strides, reach, precision, x, gradient), (0, 1)).swapaxes(2, 3)
    return correlation(sides, strides, padding, precision, gradient, x)


def correlation(
    sides: tuple[int, int], strides: Strides, padding: Padding, precision: Any, cells: Array, surrounding: Array
) -> Array:
    """The correlation of two maps: sums over all cells of what is in one by what the other has at each place around it.

    Args:
      sides: h, w of the places around a cell.
      strides: from the surroundings of one cell to those of the next.
      padding: around `surrounding`.
      precision: of the products.
      cells: (B, H', W', D).
      surrounding: (B, H, W, C).

    Returns:
      (h, w, C, D), of the same dtype; the sum over slices is float32 or better.
    """
    (batch, height, width, features), channels = cells.shape, surrounding.shape[-1]
    around, dtype = sides[0] * sides[1] * channels, cells.dtype
    together = max(SLICE_CELLS, SLICE_NUMBERS // around)
    rows = largest_divisor(height, together // width)
    pictures = largest_divisor(batch, together // (height * width))
    slices = height // rows
    padded = jnp.pad(surrounding, ((0, 0), *padding, (0, 0)))
    if dtype == jnp.bfloat16:  # moved as whole numbers: XLA:CPU would make float32 of them and back
        padded = jax.lax.bitcast_convert_type(padded, jnp.uint16)
    # From the first to the last cell that one place meets in a slice.
    met = (pictures, (rows - 1) * strides[0] + 1, (width - 1) * strides[1] + 1, channels)
    wide, by_onednn = jnp.promote_types(dtype, jnp.float32), onednn.serves(cells, surrounding)

    def product(told: Array, surroundings: Array) -> Array:
        if by_onednn:
            return onednn.matrix_product(surroundings, told, transpose_x=True, dtype=wide)
        # Turned round on its own: XLA:CPU's fast products don't take it lying.
        turned = jax.lax.optimization_barrier(told.T)
        return jnp.matmul(turned, surroundings, precision=precision, preferred_element_type=wide)

    def add_slice(sums: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        total, surroundings = sums
        first, top = index // slices * pictures, index % slices * rows
        # Written into the array of the slice before: XLA:CPU would copy each part twice to concatenate them.
        for place, (i, j) in enumerate(itertools.product(range(sides[0]), range(sides[1]))):
            part = jax.lax.dynamic_slice(padded, (first, top * strides[0] + i, j, 0), met)
            surroundings = jax.lax.dynamic_update_slice(
                surroundings, part[:, :: strides[0], :: strides[1]], (0, 0, 0, place * channels)
            )
        told = jax.lax.dynamic_slice(cells, (first, top, 0, 0), (pictures, rows, width, features))
        seen = jax.lax.bitcast_convert_type(surroundings, dtype)
        return (total + product(told.reshape(-1, features), seen.reshape(-1, around)), surroundings), None

    shape = (around, features) if by_onednn else (features, around)
    start = jnp.zeros(shape, wide), jnp.zeros((pictures, rows, width, around), padded.dtype)
    (total, _), _ = jax.lax.scan(add_slice, start, jnp.arange(batch // pictures * slices))
    return (total if by_onednn else total.T).reshape(*sides, channels, features).astype(dtype)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`, at least 1."""
    return max(divisor for divisor in range(1, number + 1) if number % divisor == 0 and divisor <= max(1, limit))
