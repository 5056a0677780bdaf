"""oneDNN's convolutions and matrix products, which jaxlib carries on x86 but XLA:CPU does not call by itself.

They are called where LBDT_JAX_ONEDNN=1 stands in the environment, and not by default: XLA's custom calls to them are
neither documented nor stable, and compiled programs that hold one can't be kept in the compilation cache. Their
settings are OneDnnMatMulConfig and OneDnnConvolutionConfig of XLA's xla/service/cpu/onednn_config.proto. What they are
worth: BENCHMARKS.md.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib

from lbdt_jax.models.types import Array, Padding, Strides

#: The environment variable.
ASKED = "LBDT_JAX_ONEDNN"
#: The releases of jaxlib with which tests/test_onednn.py was seen to pass. In another one a setting may mean something
#: else, and one that oneDNN refuses ends the process.
VERIFIED = ("0.10.2", "0.12.0.1")
#: What a processor must have for oneDNN's bfloat16; without it, oneDNN ends the process.
FOR_BFLOAT16 = {"avx512bw", "avx512dq", "avx512f", "avx512vl"}


def serves(*arrays: Array) -> bool:
    """Whether oneDNN is asked for, can be had, and takes arrays of these dtypes; to be used where the platform is CPU.

    Warns, once for each dtype, if it is asked for and can't be had.
    """
    dtypes = {str(array.dtype) for array in arrays}
    return asked_for() and dtypes <= {"float32", "bfloat16"} and all(map(available, dtypes))


def asked_for() -> bool:
    """Whether the environment asks for oneDNN."""
    return os.environ.get(ASKED, "0") != "0"


@functools.cache
def available(dtype: str) -> bool:
    """Whether this jaxlib is one whose oneDNN we know how to call, and this processor one on which it takes `dtype`.

    Warns if not.
    """
    system, machine = platform.system(), platform.machine()
    if jaxlib.__version__ not in VERIFIED or (system, machine) != ("Linux", "x86_64"):
        reason = (
            f"that was tested with jaxlib {' and '.join(VERIFIED)} on Linux and x86_64, and this is jaxlib "
            f"{jaxlib.__version__} on {system} and {machine}"
        )
    elif dtype == "bfloat16" and (missing := FOR_BFLOAT16 - processor_flags()):
        reason = f"in bfloat16 it needs AVX-512, and this processor lacks {', '.join(sorted(missing))}"
    else:
        return True
    warnings.warn(f"{ASKED} is set but oneDNN is not called: {reason}. The results are the same.", stacklevel=2)
    return False


def processor_flags() -> set[str]:
    """What this processor can do, in the words of Linux's /proc/cpuinfo; nothing where that can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


class Finish(NamedTuple):
    """What is done to every sum before it is written; without it, a pass over the result each.

    Attributes:
      bias: (D,) float32, added for each of the D channels.
      others: of the shape and dtype of the result, added after it; None for nothing.
      relu: whether what is below zero becomes zero then.
    """

    bias: Array
    others: Array | None
    relu: bool


def matrix_product(
    x: Array,
    y: Array,
    transpose_x: bool = False,
    transpose_y: bool = False,
    dtype: Any = None,
    finish: Finish | None = None,
) -> Array:
    """The product of x (n, k), or (k, n) if `transpose_x`, and y (k, m), or (m, k) if `transpose_y`, and its `finish`.

    Both float32 or both bfloat16, the sums float32.

    Returns:
      (n, m) of `dtype`, or else of x's.
    """
    shape = (x.shape[int(transpose_x)], y.shape[1 - int(transpose_y)])
    setting = {"transpose_a": transpose_x, "transpose_b": transpose_y}
    if finish:
        finish = finish._replace(bias=finish.bias[None])
    return _call("__onednn$matmul", "onednn_matmul_config", setting, shape, dtype or x.dtype, x, y, finish)


def convolution(x: Array, kernel: Array, strides: Strides, padding: Padding, finish: Finish | None = None) -> Array:
    """What `jax.lax.conv_general_dilated` makes of x (B, H, W, C) and a kernel (h, w, C, D), and its `finish`.

    (B, H', W', D). Both float32 or both bfloat16, which the result is as well; the sums float32.
    """
    size = (
        (length + sum(around) - side) // stride + 1
        for length, around, side, stride in zip(x.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    )
    picture = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    setting = {
        "dims": 4,
        "feature_groups": 1,
        "input": picture,
        "kernel": {"filter": {"input_feature_dim": 2, "output_feature_dim": 3, "spatial_dims": [0, 1]}},
        "output": picture,
        "window": {
            "pad_left": [before for before, _ in padding],
            "pad_right": [after for _, after in padding],
            "strides": strides,
            "window_dilations": [1, 1],
        },
    }
    shape = (x.shape[0], *size, kernel.shape[-1])
    return _call("__onednn$convolution", "onednn_conv_config", setting, shape, x.dtype, x, kernel, finish)


def _call(
    target: str, name: str, setting: dict[str, Any], shape: tuple[int, ...], dtype: Any, x: Array, y: Array,
    finish: Finish | None,
) -> Array:  # fmt: skip
    operands = [x, y]
    if finish:
        operations = {"BIAS": finish.bias, "BINARY_ADD": finish.others}
        needed = {operation: array for operation, array in operations.items() if array is not None}
        setting = setting | {"fusions": {"ops": [*needed, *["RELU"] * finish.relu]}}
        operands += needed.values()
    result = jax.ShapeDtypeStruct(shape, dtype)
    # Version 2: a setting as text, which XLA reads as json.
    call = jax.ffi.ffi_call(
        target, result, custom_call_api_version=2, legacy_backend_config=json.dumps({name: setting})
    )
    return call(*operands)
