"""Convolutions and dense layers by oneDNN equal jax.lax's, gradients included (lbdt_jax/cpu/onednn.py)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from flax import linen as nn

from lbdt_jax.cpu import onednn
from lbdt_jax.cpu.convolution import DIMENSION_NUMBERS
from lbdt_jax.ops import convolve, dot_general


@pytest.fixture
def onednn_enabled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(onednn.ENVIRONMENT_VARIABLE, "1")
    if not onednn.available("float32"):
        pytest.skip("oneDNN is not available here")
    # Programs with oneDNN's calls can't be stored in the compilation cache, and jax would warn of each.
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 600)
    with warnings.catch_warnings():  # some processors leave bfloat16 to XLA, which the tests allow
        warnings.filterwarnings("ignore", ".*in bfloat16 it needs AVX-512", UserWarning)
        yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def value_and_gradients(convolution: Callable[..., Any], stride: int, padding: Any) -> Callable[..., Any]:
    def value(x: Any, kernel: Any) -> Any:
        y = convolution(x, kernel, (stride, stride), padding, dimension_numbers=DIMENSION_NUMBERS)
        return jnp.sum(jnp.square(y.astype(jnp.promote_types(y.dtype, jnp.float32)))), y

    return jax.value_and_grad(value, (0, 1), has_aux=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "channels", "features"),
    [
        pytest.param(1, 1, ((0, 0), (0, 0)), 24, 40, id="matrix product"),
        pytest.param(1, 2, ((0, 0), (0, 0)), 64, 80, id="matrix product of every second pixel"),
        pytest.param(3, 1, ((1, 1), (1, 1)), 64, 80, id="3x3"),
        pytest.param(3, 2, ((1, 1), (1, 1)), 64, 64, id="3x3, strided"),
        pytest.param(7, 2, ((3, 3), (3, 3)), 3, 64, id="stem"),
        pytest.param(3, 1, ((0, 2), (1, 0)), 16, 16, id="uneven padding"),
        pytest.param(3, 1, ((3, 3), (3, 3)), 16, 16, id="more padding than the kernel reaches"),
    ],
)
def test_equals_convolution(
    kernel_size: int, stride: int, padding: Any, channels: int, features: int, dtype: str, tolerance: float,
    onednn_enabled: None,
) -> None:  # fmt: skip
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 14, 12, channels)), dtype)
    kernel = jnp.asarray(rng.standard_normal((kernel_size, kernel_size, channels, features)) / channels, dtype)
    compiled = jax.jit(value_and_gradients(convolve, stride, padding))
    (_, y), gradients = compiled(x, kernel)
    with jax.enable_x64(True):
        in_float64 = (np.asarray(array).astype(np.float64) for array in (x, kernel))
        (_, expected), expected_gradients = value_and_gradients(jax.lax.conv_general_dilated, stride, padding)(
            *in_float64
        )
    for array, reference in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert array.dtype == dtype
        atol = tolerance * np.abs(reference).max()
        np.testing.assert_allclose(np.asarray(array).astype(np.float64), reference, atol=atol, rtol=0)
    assert ("__onednn$" in compiled.lower(x, kernel).as_text()) == onednn.available(dtype)
    for_gpu = compiled.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert "__onednn$" not in for_gpu


def test_a_dense_layer_equals_flax(onednn_enabled: None) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 5, 24))
    plain, by_onednn = nn.Dense(40), nn.Dense(40, dot_general=dot_general)
    variables = plain.init(jax.random.key(1), x)

    def value(dense: nn.Dense) -> Callable[..., jax.Array]:
        return jax.jit(jax.grad(lambda x, variables: jnp.square(dense.apply(variables, x)).sum(), (0, 1)))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        value(by_onednn)(x, variables),
        value(plain)(x, variables),
    )
    assert value(by_onednn).lower(x, variables).as_text().count("__onednn$matmul") == 3


def test_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(onednn.ENVIRONMENT_VARIABLE, raising=False)
    x, kernel = jnp.ones((1, 8, 8, 64)), jnp.ones((3, 3, 64, 64))
    assert "__onednn$" not in jax.jit(value_and_gradients(convolve, 1, "SAME")).lower(x, kernel).as_text()


@pytest.fixture
def fresh_availability() -> Iterator[None]:
    """Availability is determined anew in the test and after it."""
    onednn.available.cache_clear()
    yield
    onednn.available.cache_clear()


def test_an_untested_jaxlib_warns_and_uses_xla(monkeypatch: pytest.MonkeyPatch, fresh_availability: None) -> None:
    monkeypatch.setenv(onednn.ENVIRONMENT_VARIABLE, "1")
    monkeypatch.setattr(jaxlib, "__version__", "9.9.9")
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    with pytest.warns(UserWarning, match="LBDT_JAX_ONEDNN is set .* this is jaxlib 9.9.9"):
        program = jax.jit(value_and_gradients(convolve, 1, "SAME")).lower(x, kernel)
    assert "__onednn$" not in program.as_text()


def test_bfloat16_without_avx512_warns_and_uses_xla(
    monkeypatch: pytest.MonkeyPatch, fresh_availability: None, onednn_enabled: None
) -> None:
    # oneDNN would end the process there, as seen on an AMD EPYC of 2021.
    monkeypatch.setattr(onednn, "processor_flags", lambda: {"avx2", "avx512f"})

    def program(dtype: str) -> str:
        x, kernel = jnp.ones((1, 8, 8, 4), dtype), jnp.ones((3, 3, 4, 4), dtype)
        return jax.jit(value_and_gradients(convolve, 1, "SAME")).lower(x, kernel).as_text()

    assert "__onednn$" in program("float32")
    with pytest.warns(UserWarning, match="lacks avx512bw, avx512dq, avx512vl"):
        assert "__onednn$" not in program("bfloat16")
    onednn.available.cache_clear()
    monkeypatch.setattr(onednn, "processor_flags", lambda: {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"})
    assert "__onednn$" in program("bfloat16")  # not compiled


def test_float64_is_left_to_xla(onednn_enabled: None, float64: None) -> None:
    x, kernel = jnp.ones((1, 8, 8, 4), "float64"), jnp.ones((3, 3, 4, 4), "float64")
    assert "__onednn$" not in jax.jit(value_and_gradients(convolve, 1, "SAME")).lower(x, kernel).as_text()
