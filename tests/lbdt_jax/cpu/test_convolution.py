"""The CPU's form of convolutions equals jax.lax's, gradients included (lbdt_jax/cpu/convolution.py)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lbdt_jax.cpu.convolution import DIMENSION_NUMBERS
from lbdt_jax.ops import convolve


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "channels", "features", "operation"),
    [
        pytest.param((2, 2), 3, 1, 3, 4, "dot_general", id="few pixels"),
        pytest.param((4, 4), 3, 2, 3, 4, "dot_general", id="few pixels, strided"),
        pytest.param((1, 3), 1, 1, 3, 4, "dot_general", id="few pixels, pointwise"),
        pytest.param((3, 2), 7, 2, 3, 4, "dot_general", id="few pixels, kernel larger than the image"),
        pytest.param((6, 8), 1, 1, 3, 4, "dot_general", id="pointwise"),
        pytest.param((6, 7), 1, 2, 3, 4, "dot_general", id="pointwise, strided"),
        pytest.param((12, 80), 3, 1, 64, 65, "while", id="gradient in slices of an image"),
        pytest.param((12, 80), 3, 1, 65, 18, "while", id="gradient in slices, fewer channels in the result"),
        pytest.param((40, 11), 3, 1, 65, 64, "while", id="gradient in slices of one image"),
        pytest.param((16, 16), 5, 1, 80, 64, "while", id="gradient in one slice"),
        pytest.param((1, 900), 3, 1, 64, 64, "while", id="rows longer than a slice"),
        pytest.param((40, 80), 3, 2, 64, 65, "while", id="gradient in slices, strided"),
        pytest.param((40, 80), 3, 2, 65, 64, "while", id="gradient in slices, strided, fewer channels in the result"),
        pytest.param((52, 55), 5, 3, 64, 64, "while", id="gradient in slices, strided unevenly"),
        pytest.param((96, 128), 7, 2, 3, 64, "while", id="gradient in slices, stem"),
    ],
)
def test_equals_convolution(
    size: tuple[int, int], kernel_size: int, stride: int, channels: int, features: int, operation: str, float64: None
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, *size, channels))
    kernel = rng.standard_normal((kernel_size, kernel_size, channels, features)) / channels
    padding = ((kernel_size // 2, kernel_size // 2),) * 2

    def gradients(convolution: Any) -> Any:
        def value(x: Any, kernel: Any) -> Any:
            y = convolution(x, kernel, (stride, stride), padding, dimension_numbers=DIMENSION_NUMBERS)
            return jnp.sum(jnp.square(y))

        return jax.jit(jax.value_and_grad(value, (0, 1)))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11),
        gradients(convolve)(x, kernel),
        gradients(jax.lax.conv_general_dilated)(x, kernel),
    )
    program = gradients(convolve).lower(x, kernel).as_text()
    assert f"stablehlo.{operation}" in program
    assert operation == "while" or "stablehlo.convolution" not in program


def test_dilated_and_grouped_convolutions_are_left_to_jax() -> None:
    x, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((1, 1, 2, 6))
    grouped = convolve(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSION_NUMBERS, feature_group_count=2)
    assert grouped.shape == (1, 6, 6, 6) and (grouped == 2).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_slices_are_for_the_cpu_only(platform: str) -> None:
    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return convolve(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSION_NUMBERS).sum()

    arguments = jnp.ones((3, 3, 64, 64)), jnp.ones((2, 16, 16, 64))
    program = jax.jit(jax.grad(loss)).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in program) == (platform == "cpu")
