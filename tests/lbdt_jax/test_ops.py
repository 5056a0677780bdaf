"""Each operation's CPU form equals its plain form, and other platforms get the plain form (lbdt_jax/ops.py)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lbdt_jax import cpu, ops
from lbdt_jax.cpu.convolution import DIMENSION_NUMBERS


def plain_max_pool(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_max_pool_and_its_gradient_at_ties(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 3, (2, 6, 8, 5)), dtype)  # few different values: most windows have ties
    grad = jnp.asarray(rng.integers(1, 9, (2, 3, 4, 5)), dtype)
    for form in (cpu.max_pool, jax.jit(ops.max_pool)):
        jax.tree.map(
            np.testing.assert_array_equal,
            *((y, vjp(grad)) for y, vjp in (jax.vjp(form, x), jax.vjp(plain_max_pool, x))),
        )


def test_stem_on_accelerators_and_its_gradients(float64: None) -> None:
    rng = np.random.default_rng(0)
    x, kernel, grad = (jnp.asarray(rng.standard_normal(s)) for s in ((2, 12, 16, 3), (7, 7, 3, 5), (2, 6, 8, 5)))

    def strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=DIMENSION_NUMBERS)

    y, vjp = jax.vjp(strided, x, kernel)
    transformed, transformed_vjp = jax.vjp(
        lambda x, kernel: ops.plain_convolve(x, kernel, (2, 2), ((3, 3), (3, 3)), None), x, kernel
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
        (transformed, transformed_vjp(grad)),
        (y, vjp(grad)),
    )
    # Odd sizes have no blocks of 2x2 pixels.
    odd = ops.plain_convolve(x[:, 1:], kernel, (2, 2), ((3, 3), (3, 3)), None)
    np.testing.assert_allclose(odd, strided(x[:, 1:], kernel), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", [((3, 3), (3, 3)), ((0, 0), (7, 1))])
def test_depthwise_convolution_and_its_gradients(padding: Any, float64: None) -> None:
    rng = np.random.default_rng(0)
    x, kernel = jnp.asarray(rng.standard_normal((2, 9, 8, 5))), jnp.asarray(rng.standard_normal((7, 7, 1, 5)))
    options: dict[str, Any] = {"feature_group_count": 5}

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=DIMENSION_NUMBERS, **options)

    y, vjp = jax.vjp(plain, x, kernel)
    ours, our_vjp = jax.vjp(lambda x, kernel: ops.convolve(x, kernel, (1, 1), padding, **options), x, kernel)
    grad = jnp.asarray(rng.standard_normal(y.shape))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), (ours, our_vjp(grad)), (y, vjp(grad))
    )


def test_per_head_matmul() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 3, 5, 4, 6), np.float32), rng.standard_normal((4, 6, 7), np.float32)
    expected = np.einsum("abnhc,hcd->abhnd", x, kernel)
    np.testing.assert_allclose(jax.jit(ops.per_head_matmul)(x, kernel), expected, rtol=1e-5, atol=1e-5)


# In one pass, float32 loses what the squared distance from the estimate takes: 900 and 1, for a variance of 1.
@pytest.mark.parametrize(("estimate", "tolerance"), [(0.0, 1e-2), (31.0, 1e-5)])
def test_mean_and_variance_far_from_zero(estimate: float, tolerance: float) -> None:
    x = np.random.default_rng(0).normal(30, 1, (4, 16, 16, 3)).astype(np.float32)
    expected_mean, expected_variance = x.astype(float).mean((0, 1, 2)), x.astype(float).var((0, 1, 2))
    for form in (ops.mean_and_variance, ops.plain_mean_and_variance):
        mean, variance = form(jnp.asarray(x), jnp.full(3, estimate))
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-6)
        np.testing.assert_allclose(variance, expected_variance, rtol=tolerance)
    constant = ops.plain_mean_and_variance(jnp.full((4, 16, 16, 3), 30.1), jnp.zeros(3))[1]
    assert (constant >= 0).all()


# In one pass, as on GPUs and TPUs, the variance would be wrong by a percent.
def test_layer_normalization_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(300, 1, (4, 5, 64)).astype(np.float32)
    scale, bias = np.linspace(0.5, 2, 64, dtype=np.float32), np.linspace(-1, 1, 64, dtype=np.float32)
    exact = x.astype(float)
    expected = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True) * scale + bias
    result = jax.jit(lambda x: ops.layer_normalize(x, scale, bias, 1e-12, "float32"))(x)
    np.testing.assert_allclose(result, expected, atol=5e-4)


@pytest.mark.parametrize("rate", [0.25, 6554 / 2**16])
def test_dropout_mask_keeps_the_right_share(rate: float) -> None:
    key, shape = jax.random.key(0, impl="rbg"), (333, 301)  # odd: 16-bit numbers are drawn in pairs
    for keep in (ops.dropout_mask(key, rate, shape), ops.plain_dropout_mask(key, rate, shape)):
        assert keep.shape == shape and keep.dtype == bool
        assert abs(float(keep.mean()) - (1 - rate)) < 0.005


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return ops.convolve(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSION_NUMBERS)


OPERATIONS: list[tuple[Callable[..., jax.Array], tuple[tuple[int, ...], ...], str]] = [
    (convolve, ((2, 4, 4, 3), (1, 1, 3, 5)), "stablehlo.convolution"),
    (ops.max_pool, ((2, 4, 4, 3),), "stablehlo.reduce_window"),
    (ops.mean_and_variance, ((2, 4, 4, 3), (3,)), "stablehlo.maximum"),
    (ops.per_head_matmul, ((2, 5, 4, 3), (4, 3, 7)), r"stablehlo.dot_general.*batching_dims"),
]


@pytest.mark.parametrize(("operation", "shapes", "plain"), OPERATIONS)
def test_other_platforms_get_the_plain_form(
    operation: Callable[..., jax.Array], shapes: tuple[tuple[int, ...], ...], plain: str
) -> None:
    traced = jax.jit(operation).trace(*(jnp.ones(shape) for shape in shapes))
    for platform in ("cpu", "cuda", "tpu"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert bool(re.search(plain, program)) == (platform != "cpu")
