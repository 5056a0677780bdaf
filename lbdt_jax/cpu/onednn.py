"""oneDNN's convolutions and matrix products, which jaxlib ships for x86 but XLA:CPU does not call by itself.

Enabled by LBDT_JAX_ONEDNN=1 in the environment, and off by default: XLA's custom calls to oneDNN are neither documented
nor stable, and compiled programs with one can't be stored in the compilation cache. Their settings are
OneDnnMatMulConfig and OneDnnConvolutionConfig of XLA's xla/service/cpu/onednn_config.proto.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib
from jax import Array

ENVIRONMENT_VARIABLE = "LBDT_JAX_ONEDNN"
#: Releases of jaxlib that passed tests/lbdt_jax/cpu/test_onednn.py. In others a setting may mean something else, and
#: oneDNN ends the process if it refuses one.
TESTED_VERSIONS = ("0.10.2", "0.12.0.1")
#: What a processor needs for bfloat16; without it, oneDNN ends the process.
BFLOAT16_FLAGS = {"avx512bw", "avx512dq", "avx512f", "avx512vl"}

#: A convolution's strides along height and width, and its zero padding ((top, bottom), (left, right)).
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]


def enabled() -> bool:
    """Whether the environment enables oneDNN."""
    return os.environ.get(ENVIRONMENT_VARIABLE, "0") != "0"


def supports(*arrays: Array) -> bool:
    """Whether oneDNN is enabled, available, and supports arrays of these dtypes. Only for programs that run on a CPU.

    Warns, once for each dtype, if it is enabled but not available.
    """
    dtypes = {str(array.dtype) for array in arrays}
    return enabled() and dtypes <= {"float32", "bfloat16"} and all(map(available, dtypes))


@functools.cache
def available(dtype: str) -> bool:
    """Whether oneDNN can be called with this jaxlib and, for arrays of `dtype`, on this processor. Warns if not."""
    system, machine = platform.system(), platform.machine()
    if jaxlib.__version__ not in TESTED_VERSIONS or (system, machine) != ("Linux", "x86_64"):
        reason = (
            f"it was tested with jaxlib {' and '.join(TESTED_VERSIONS)} on Linux and x86_64, and this is jaxlib "
            f"{jaxlib.__version__} on {system} and {machine}"
        )
    elif dtype == "bfloat16" and (missing := BFLOAT16_FLAGS - processor_flags()):
        reason = f"in bfloat16 it needs AVX-512, and this processor lacks {', '.join(sorted(missing))}"
    else:
        return True
    warnings.warn(
        f"{ENVIRONMENT_VARIABLE} is set but oneDNN is not used: {reason}. The results are the same.", stacklevel=2
    )
    return False


def processor_flags() -> set[str]:
    """The processor's features as named in Linux's /proc/cpuinfo; empty if that can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False, dtype: Any = None) -> Array:
    """The product of x (n, k), or (k, n) if `transpose_x`, and y (k, m), or (m, k) if `transpose_y`.

    Both float32 or both bfloat16; sums are float32.

    Returns:
      (n, m) of `dtype`, by default x's.
    """
    shape = (x.shape[int(transpose_x)], y.shape[1 - int(transpose_y)])
    config = {"transpose_a": transpose_x, "transpose_b": transpose_y}
    result = jax.ShapeDtypeStruct(shape, dtype or x.dtype)
    return _call("__onednn$matmul", {"onednn_matmul_config": config}, result, x, y)


def convolution(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """`jax.lax.conv_general_dilated` of x (B, H, W, C) and kernel (h, w, C, D) -> (B, H', W', D).

    Both float32 or both bfloat16, as is the result; sums are float32.
    """
    layout = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    config = {
        "dims": 4,
        "feature_groups": 1,
        "input": layout,
        "kernel": {"filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}},
        "output": layout,
        "window": {
            "pad_left": [before for before, _ in padding],
            "pad_right": [after for _, after in padding],
            "strides": strides,
            "window_dilations": [1, 1],
        },
    }
    result = jax.ShapeDtypeStruct((x.shape[0], *output_size(x, kernel, strides, padding), kernel.shape[-1]), x.dtype)
    return _call("__onednn$convolution", {"onednn_conv_config": config}, result, x, kernel)


def output_size(x: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[int, int]:
    """Height and width of the result of convolving x (B, H, W, C) with kernel (h, w, C, D)."""
    height, width = (
        (length + sum(pads) - size) // stride + 1
        for length, pads, size, stride in zip(x.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    )
    return height, width


def _call(target: str, config: dict[str, Any], result: jax.ShapeDtypeStruct, x: Array, y: Array) -> Array:
    # Version 2 passes the settings as text, which XLA reads as json.
    call = jax.ffi.ffi_call(target, result, custom_call_api_version=2, legacy_backend_config=json.dumps(config))
    return call(x, y)
