"""Faster implementations of what XLA:CPU is slow at, for `lbdt_jax/ops.py`. Measurements: docs/performance.md."""

from lbdt_jax.cpu.convolution import convolve, convolve_gradients, depthwise_convolve
from lbdt_jax.cpu.layers import dropout_mask, max_pool, mean_and_variance
from lbdt_jax.cpu.matrix_product import matmul, per_head_matmul

__all__ = [
    "convolve",
    "convolve_gradients",
    "depthwise_convolve",
    "dropout_mask",
    "matmul",
    "max_pool",
    "mean_and_variance",
    "per_head_matmul",
]
