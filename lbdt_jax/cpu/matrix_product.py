"""Matrix products in a form that XLA:CPU, or oneDNN where it is enabled, computes fast."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lbdt_jax.cpu import onednn


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, kernel: Array, precision: Any = None) -> Array:
    """x (..., C) times kernel (C, D) -> (..., D). oneDNN ignores `precision`: its sums are float32."""
    if onednn.supports(x, kernel):
        return onednn.matmul(_flatten(x), kernel).reshape(*x.shape[:-1], -1)
    return jnp.matmul(x, kernel, precision=precision)


def matmul_gradients(x: Array, kernel: Array, grad: Array, precision: Any = None) -> tuple[Array, Array]:
    """The gradients of x (..., C) and kernel (C, D), given `grad` (..., D), that of the product."""
    if onednn.supports(x, kernel, grad):
        x_grad = onednn.matmul(_flatten(grad), kernel, transpose_y=True).reshape(x.shape)
        return x_grad, onednn.matmul(_flatten(x), _flatten(grad), transpose_x=True)
    x_grad = jnp.einsum("...d,cd->...c", grad, kernel, precision=precision)
    # Flat, because XLA:CPU is slow at sums over several axes.
    return x_grad, jnp.einsum("nc,nd->cd", _flatten(x), _flatten(grad), precision=precision)


def _forward(x: Array, kernel: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x, kernel, precision), (x, kernel)


def _backward(precision: Any, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    return matmul_gradients(*residuals, grad, precision)


matmul.defvjp(_forward, _backward)


def per_head_matmul(x: Array, kernel: Array) -> Array:
    """x (..., N, heads, c), kernel (heads, c, C) -> (..., heads, N, C).

    One product for each head: in a batched one, XLA:CPU spends most of the time on transposing x.
    """
    return jnp.stack([x[..., head, :] @ kernel[head] for head in range(len(kernel))], axis=-3)


def _flatten(x: Array) -> Array:
    """(..., C) -> (N, C)."""
    return x.reshape(-1, x.shape[-1])
