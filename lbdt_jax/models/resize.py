"""The enlargement that the decoder uses (known as `aligned_bilinear` in AdelaiDet and in the published code)."""

from __future__ import annotations

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
    """Enlarges (B, H, W, C) to (B, factor * H, factor * W, C); a factor of 1 is the identity.

    Equal to: replicate-pad one row and column at the bottom and right, resize with align_corners=True to
    factor * size + 1, replicate-pad factor // 2 at the top and left, cut. Written as two matrix products.
    """
    if factor == 1:
        return x
    rows = jnp.asarray(interpolation_matrix(x.shape[1], factor), x.dtype)
    columns = jnp.asarray(interpolation_matrix(x.shape[2], factor), x.dtype)
    return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x)
