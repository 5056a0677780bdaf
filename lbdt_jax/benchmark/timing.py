"""How programs are timed, and how their operations and memory are counted.

Floating-point operations are counted by the compiler's cost analysis of the program before optimization, so the count
is the same on every device. (After optimization the analysis misses cuBLAS calls on GPUs: jax issue 22249.) The LSTM's
loop over words is counted as one word, and the stem's kernel as 8x8: errors below three parts in a thousand.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxlib import _jax

from input_pipeline.errors import UserError
from input_pipeline.workers import cores
from lbdt_jax.parallel import DATA_AXIS, shard_batch

#: How long each row is timed after warming up, in seconds, and the least number of timings, of at least 0.1 s each.
SECONDS, MIN_TIMINGS = 3.0, 5
#: How long an input pipeline is timed after its read-ahead has been used up, and the least length of a block of calls.
PIPELINE_SECONDS, BLOCK_SECONDS = 10.0, 1.0

Row = dict[str, Any]


def shard(function: Callable[..., Any], mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """The jitted function with arguments and result divided among the devices, as in make_train_step."""
    sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(DATA_AXIS), check_vma=False)
    return jax.jit(sharded)


def compile_program(function: Any, arguments: tuple[Any, ...], mesh: Mesh) -> tuple[jax.stages.Compiled, Row]:
    """Compiles a jitted function ahead of time.

    Returns:
      The program, and {"compile_seconds", tracing included; "flop" of one call, on all devices together;
      "memory_bytes" that each device needs for arguments, results and temporaries}.
    """
    start = time.monotonic()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.monotonic() - start
    # Counted in the accelerators' form: the CPU sums some products in a loop, which counts as one iteration.
    flop = count_flop(traced.lower(lowering_platforms=("cuda",)))
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return compiled, {
        "compile_seconds": seconds,
        "flop": flop * mesh.size,  # the analysis is of one device
        "memory_bytes": needed - memory.alias_size_in_bytes,
    }


def count_flop(lowered: jax.stages.Lowered) -> float:
    """The floating-point operations of one call of a lowered program, on one device.

    Raises:
      UserError: JAX may not use the CPU, whose compiler does the counting.
    """
    # What lowered.cost_analysis() returns, except that it returns None on GPUs and TPUs.
    try:
        client = jax.devices("cpu")[0].client
    except RuntimeError as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS={platforms} leaves out the CPU, which counts operations: add it, as in cuda,cpu."
        ) from error
    computation: Any = lowered.compiler_ir("hlo")
    return float(_jax.hlo_module_cost_analysis(client, computation.as_hlo_module())["flops"])


def measure_program(run: Callable[[], Any], row: Row, samples: int) -> Row:
    """`measure` for a program, whose row `compile_program` returned: see `add_speed`."""
    return add_speed(row, measure(run, samples), samples)


def add_speed(row: Row, measured: Row, samples: int) -> Row:
    """Adds what was measured to a row of `compile_program`, and "tflops_per_second" of all devices together."""
    return row | measured | {"tflops_per_second": row["flop"] * measured["samples_per_second"] / samples / 1e12}


def measure(run: Callable[[], Any], samples: int) -> Row:
    """Times calls of `run`, which process `samples` samples each, after two warm-up calls.

    Short calls are timed in groups that are only synchronized at the end, as in training.

    Returns:
      {"samples_per_second", "seconds": {"median", "lower_quartile", "upper_quartile", "timings"}}, where
      "timings" is the number of timings.
    """

    def time_calls(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / calls

    time_calls(1)
    calls = max(1, round(0.1 / time_calls(1)))
    end = time.perf_counter() + SECONDS
    timings: list[float] = []
    while len(timings) < MIN_TIMINGS or time.perf_counter() < end:
        timings.append(time_calls(calls))
    seconds = _quartiles(timings)
    return {"samples_per_second": samples / seconds["median"], "seconds": seconds}


def measure_pipeline(run: Callable[[], Any], samples: int) -> Row:
    """Times calls of `run`, each of which takes a batch of `samples` samples from an input pipeline.

    A pipeline reads ahead, and its batches arrive in bunches: single calls say nothing about its speed. So the calls of
    one block use up what was read ahead, and those of the next PIPELINE_SECONDS are counted.

    Returns:
      What `measure` returns, but "samples_per_second" is of all calls together, and each timing is the mean of a block.
    """
    result = run()

    def time_block() -> tuple[int, float]:
        nonlocal result
        calls, start = 0, time.perf_counter()
        while not calls or time.perf_counter() - start < BLOCK_SECONDS:
            # One call ahead of the devices, as in training; without limit, the calls of a block would pile up.
            previous, result = result, run()
            jax.block_until_ready(previous)
            calls += 1
        return calls, time.perf_counter() - start

    time_block()
    blocks = [time_block()]
    while sum(seconds for _, seconds in blocks) < PIPELINE_SECONDS:
        blocks.append(time_block())
    calls, seconds = (sum(column) for column in zip(*blocks, strict=True))
    return {"samples_per_second": calls * samples / seconds, "seconds": _quartiles([s / c for c, s in blocks])}


def _quartiles(timings: list[float]) -> Row:
    lower, median, upper = (float(quartile) for quartile in np.quantile(timings, (0.25, 0.5, 0.75)))
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper, "timings": len(timings)}


def matrix_ceiling(mesh: Mesh, dtype: str) -> float:
    """TFLOP/s of square matrix products in `dtype` on all devices together: the best of several sizes.

    Sizes double until a product takes more than 50 ms. float32 has JAX's default precision, as in the model: on NVIDIA
    GPUs it is TensorFloat-32.
    """
    best, sharded = 0.0, PartitionSpec(DATA_AXIS)
    matmul = shard(jnp.matmul, mesh, (sharded, sharded))
    for size in (1024, 2048, 4096, 8192):
        matrix = np.random.default_rng(0).standard_normal((1, size, size), np.float32).astype(dtype)
        matrices = shard_batch({"matrix": np.repeat(matrix, len(mesh.local_devices), axis=0)}, mesh)["matrix"]
        program, row = compile_program(matmul, (matrices, matrices), mesh)
        row = measure_program(functools.partial(program, matrices, matrices), row, 1)
        best = max(best, row["tflops_per_second"])
        if row["seconds"]["median"] > 0.05:
            break
    return best


def peak_bytes(mesh: Mesh) -> int | None:
    """The most memory that a device has had in use since the start; None if the platform doesn't report it."""
    statistics = [device.memory_stats() for device in mesh.local_devices]
    return max(device["peak_bytes_in_use"] for device in statistics) if all(statistics) else None


def describe_device(mesh: Mesh) -> Row:
    """{"kind", "platform", "count"} of the mesh's devices, and the host's "processor" and "cores"."""
    device = mesh.devices.flat[0]
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "count": mesh.size,
        "processor": platform.processor() or platform.machine(),
        "cores": cores(),
    }
