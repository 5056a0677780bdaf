"""The decoder's upsampling, called `aligned_bilinear` in AdelaiDet and in the published code."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lbdt_jax.models.types import Array


def interpolation_matrix(length: int, factor: int) -> np.ndarray:
    """(factor * length, length) float64 weights of `aligned_bilinear` along one axis.

    Output i reads the input at max(0, i - factor // 2) / factor, linearly; the last sample is repeated.
    """
    position = np.maximum(0, np.arange(factor * length) - factor // 2) / factor
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, length - 1)
    fraction = position - below
    matrix = np.zeros((factor * length, length))
    rows = np.arange(factor * length)
    np.add.at(matrix, (rows, below), 1 - fraction)
    np.add.at(matrix, (rows, above), fraction)
    return matrix


def aligned_bilinear(x: Array, factor: int) -> Array:
    """Upsamples (B, H, W, C) to (B, factor * H, factor * W, C); a factor of 1 is the identity.

    Equal to replicate-padding one row and column at the bottom and right, resizing with align_corners=True to
    factor * size + 1, replicate-padding factor // 2 at the top and left, and cropping. Written as two matrix products.
    """
    if factor == 1:
        return x
    rows = jnp.asarray(interpolation_matrix(x.shape[1], factor), x.dtype)
    columns = jnp.asarray(interpolation_matrix(x.shape[2], factor), x.dtype)
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x)


def upsample_and_sum(maps: Sequence[tuple[Array, int]]) -> Array:
    """The sum of `aligned_bilinear(x, factor)` over feature maps of many channels.

    Each map is upsampled along W; then one matrix product upsamples all of them along H and adds them. No axis is
    transposed: where that is slow, `aligned_bilinear` takes twice as long for many channels, and its gradient five
    times.

    Args:
      maps: pairs of x (B, H, W, C) and factor, with the same B, C, factor * H and factor * W.

    Returns:
      (B, factor * H, factor * W, C).
    """
    wide_maps, row_matrices = [], []
    for x, factor in maps:
        batch, height, width, channels = x.shape
        columns = jnp.asarray(interpolation_matrix(width, factor), x.dtype)
        wide = jnp.matmul(jnp.broadcast_to(columns, (batch, height, *columns.shape)), x)
        wide_maps.append(wide.reshape(batch, height, -1))
        row_matrices.append(interpolation_matrix(height, factor))
    rows = jnp.asarray(np.concatenate(row_matrices, axis=1), x.dtype)
    upsampled = jnp.matmul(jnp.broadcast_to(rows, (batch, *rows.shape)), jnp.concatenate(wide_maps, axis=1))
    return upsampled.reshape(batch, len(rows), -1, channels)
