"""What is measured, and how.

Arithmetic is counted by the compiler's cost analysis of the program before optimisation: the same number on every
device, that of the mathematics. (After optimisation, on GPUs, it misses what goes to cuBLAS: jax issue 22249.) The
LSTM's recurrence, a loop, is counted once instead of for each word: below one part in a thousand.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.batch import MODEL_FIELDS, Batch, random_batch
from input_pipeline.errors import UserError
from input_pipeline.workers import cores
from lbdt_jax.cpu import onednn
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import DATA_AXIS, make_mesh, replicate, shard_batch
from lbdt_jax.step import initial_state, initial_variables, is_frozen, make_model, make_train_step

#: How long each row is timed after warming up, and the least number of timings, of at least 0.1 s each.
SECONDS, FEWEST = 3.0, 5
DTYPES = ("float32", "bfloat16")
#: Variables of the environment that change how fast the same program is; kept with the result.
ENVIRONMENT = (onednn.ASKED, "GLIBC_TUNABLES", "XLA_FLAGS")
WORD_VECTOR_SIZE = 300  # as published; its part in the computation is below one in a thousand

Row = dict[str, Any]
Job = tuple[Row, Callable[[], Row]]


def benchmark(
    config: ConfigDict, batch_sizes: Sequence[int], sentences: Sequence[int], minutes: float
) -> Iterator[Row]:
    """Measures everything on noise; yields what is known so far: the result before the first row and after every one.

    Args:
      config: the network, its dtype and the size of its input.
      batch_sizes: samples at once, over all devices.
      sentences: numbers of sentences per frame.
      minutes: nothing is begun that would end later, if it takes as long as the longest of its kind so far.

    Yields:
      {"date", "jax", "device", "environment", "config", "ceiling", "rows", "peak_bytes"}: "ceiling" has the TFLOP/s of
      a big matrix product on all devices together, by dtype; "peak_bytes" is of all rows together. Each row has
      "program", "batch_size", "sentences_per_frame" and either "not_measured", the reason, or what `measure` or
      `measure_program` returns, "share_of_ceiling" of the ceiling of config.model.dtype, and for several sentences
      "cost_of_one".

    Raises:
      UserError: the configuration describes no network, or a batch can't be divided among the devices.
    """
    began = time.monotonic()
    mesh = make_mesh()
    together = config.sentences_per_frame
    for size in (*batch_sizes, config.batch_size):
        if size % (mesh.size * together):
            raise UserError(
                f"A batch of {size} can't be divided among {mesh.size} devices, with {together} sentences per frame."
            )
    if config.model.dtype not in DTYPES:
        raise UserError(f"config.model.dtype is {config.model.dtype}; choose one of {', '.join(DTYPES)}.")
    if config.text_encoder != "glove_lstm":
        from lbdt_jax.text_features import open_text_encoder  # only then something is read before anything is measured

        config, _, _ = open_text_encoder(config, [])
    make_model(config)
    result: Row = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "device": describe_device(mesh),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "config": json.loads(config.to_json()),
        "ceiling": {dtype: matrix_ceiling(mesh, dtype) for dtype in DTYPES},
        "rows": [],
    }
    yield result
    longest: dict[str, float] = {}
    for row, job in jobs(config, mesh, batch_sizes, sentences):
        started = time.monotonic()
        if started - began + longest.get(row["program"], 0) > 60 * minutes:
            row["not_measured"] = f"no time left: --minutes={minutes:g}"
        else:
            row |= attempt(job)
            longest[row["program"]] = max(longest.get(row["program"], 0), time.monotonic() - started)
        if "tflops_per_second" in row:
            row["share_of_ceiling"] = row["tflops_per_second"] / result["ceiling"][config.model.dtype]
        result["rows"].append(row)
        if row["sentences_per_frame"] > 1:
            relate_to_one_sentence(row, result["rows"])
        result["peak_bytes"] = peak_bytes(mesh)
        yield result


def jobs(config: ConfigDict, mesh: Mesh, batch_sizes: Sequence[int], sentences: Sequence[int]) -> Iterator[Job]:
    """Every row, and the function that measures it; what matters most comes first."""
    variables = jax.device_get(initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    everywhere, parts = PartitionSpec(), PartitionSpec(DATA_AXIS)
    forward_on_devices = over_devices(make_model(config).apply, mesh, (everywhere, *[parts] * len(MODEL_FIELDS)))
    shapes = [(size, 1) for size in batch_sizes]
    shapes += [(batch_sizes[0] * number, number) for number in sentences if number > 1]

    transformer = make_model(config).transformer

    def noise(size: int, together: int, training: bool = False) -> dict[str, jax.Array]:
        words = {"word_vector_size": WORD_VECTOR_SIZE}
        if transformer and training and is_frozen(config):
            words = {"word_vector_size": transformer.width}  # its features, which training reads
        elif transformer:
            words = {"vocabulary_size": transformer.vocabulary}
        batch = random_batch(size, config.image_size, config.max_words, sentences_per_frame=together, **words)
        return shard_batch(batch, mesh)

    def training_step(size: int) -> Row:
        batch = noise(size, config.sentences_per_frame, training=True)
        step, row = compile_training(config, mesh, variables, batch)
        return measure_program(lambda: step(batch), row, size)

    def forward(size: int, together: int) -> Row:
        batch = noise(size, together)
        arguments = (replicate(variables, mesh), *(batch[name] for name in MODEL_FIELDS))
        program, row = compile_program(forward_on_devices, arguments, mesh)
        return measure_program(lambda: program(*arguments), row, size)

    for size in batch_sizes:
        yield describe_row("training step", size, config.sentences_per_frame), functools.partial(training_step, size)
    for size, together in shapes:
        yield describe_row("forward", size, together), functools.partial(forward, size, together)
    yield from pipeline_jobs(config, mesh)


def pipeline_jobs(config: ConfigDict, mesh: Mesh) -> Iterator[Job]:
    """The input pipeline alone, and training fed by it; where that can't be, the reason."""

    def batches() -> tuple[Iterator[Batch], dict[str, Any]]:
        # Imported here, since all else runs without TensorFlow.
        from input_pipeline.pipeline import training_batches
        from input_pipeline.report import load_report
        from lbdt_jax.text_features import open_text_encoder, precomputed_features, with_transformer

        tokens = load_report(config.data_dir, config.dataset)["tokens"]
        _, reader, transformer = open_text_encoder(config, tokens)
        variables = initial_variables(make_model(config), config, reader.size)
        if transformer:
            variables = with_transformer(variables, transformer)
        if is_frozen(config):
            reader = precomputed_features(config, variables, reader)
        return training_batches(config, reader), variables

    def input_pipeline() -> Row:
        source, _ = batches()
        row = measure(lambda: next(source), config.batch_size)
        return row | {"samples_per_second_and_core": row["samples_per_second"] / cores()}

    def end_to_end() -> Row:
        source, variables = batches()

        def next_batch() -> dict[str, jax.Array]:
            batch = next(source)
            return shard_batch({name: batch[name] for name in (*MODEL_FIELDS, "target")}, mesh)

        step, row = compile_training(config, mesh, variables, next_batch())
        return measure_program(lambda: step(next_batch()), row, config.batch_size)

    for name, job in (("input pipeline", input_pipeline), ("end to end", end_to_end)):
        yield describe_row(name, config.batch_size, config.sentences_per_frame), job


def relate_to_one_sentence(row: Row, rows: Sequence[Row]) -> None:
    """Adds "cost_of_one" to a forward pass: how many times as long as that for one sentence on as many frames."""
    one = describe_row("forward", row["batch_size"] // row["sentences_per_frame"], 1)
    for other in rows:
        if row["program"] == "forward" and "seconds" in row and one.items() <= other.items() and "seconds" in other:
            row["cost_of_one"] = row["seconds"]["median"] / other["seconds"]["median"]


def peak_bytes(mesh: Mesh) -> int | None:
    """The most memory that any device has had in use since the start; None where the platform doesn't tell."""
    statistics = [device.memory_stats() for device in mesh.local_devices]
    return max(known["peak_bytes_in_use"] for known in statistics) if all(statistics) else None


def describe_row(program: str, batch_size: int, sentences_per_frame: int) -> Row:
    """What tells a row from the others."""
    return {"program": program, "batch_size": batch_size, "sentences_per_frame": sentences_per_frame}


def compile_training(
    config: ConfigDict, mesh: Mesh, variables: dict[str, Any], batch: dict[str, jax.Array]
) -> tuple[Callable[[dict[str, jax.Array]], jax.Array], Row]:
    """The training step as a function of a batch on the devices, which keeps its state; and what compiling it told."""
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    state = replicate(initial_state(variables, optimizer, is_frozen(config)), mesh)
    program, row = compile_program(make_train_step(make_model(config), optimizer, config, mesh), (state, batch), mesh)

    def step(batch: dict[str, jax.Array]) -> jax.Array:
        nonlocal state
        state, metrics = program(state, batch)
        return metrics["loss"]

    return step, row


def over_devices(function: Callable[..., jax.Array], mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """The jitted function, each device with its part of the arguments and of the result, as in make_train_step."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(DATA_AXIS), check_vma=False)
    return jax.jit(mapped)


def compile_program(function: Any, arguments: tuple[Any, ...], mesh: Mesh) -> tuple[jax.stages.Compiled, Row]:
    """Compiles a jitted function ahead of time.

    Returns:
      The program, and {"compile_seconds", tracing included; "flop" of one call, on all devices together;
      "memory_bytes" that each device needs for arguments, results and what lies between them}.
    """
    started = time.monotonic()
    traced = function.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.monotonic() - started
    # As accelerators compute it: what the CPU adds up in slices, the analysis counts as one slice.
    lowered = traced.lower(lowering_platforms=("cuda",))
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return compiled, {
        "compile_seconds": seconds,
        "flop": lowered.cost_analysis()["flops"] * mesh.size,  # the analysis sees the part of one device
        "memory_bytes": needed - memory.alias_size_in_bytes,
    }


def measure_program(run: Callable[[], Any], row: Row, samples: int) -> Row:
    """Adds "tflops_per_second", of all devices together, to what `compile_program` and `measure` return."""
    row = row | measure(run, samples)
    return row | {"tflops_per_second": row["flop"] / row["seconds"]["median"] / 1e12}


def measure(run: Callable[[], Any], samples: int) -> Row:
    """Times calls that handle so many samples each, after a warm-up of two.

    Short calls are timed several together, and wait for each other on the device only, as in training.

    Returns:
      {"samples_per_second", "seconds": {"median", "lower_quartile", "upper_quartile", "timings", their number}}.
    """

    def time_calls(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        return (time.perf_counter() - started) / calls

    time_calls(1)
    calls = max(1, round(0.1 / time_calls(1)))
    end, timings = time.perf_counter() + SECONDS, []
    while len(timings) < FEWEST or time.perf_counter() < end:
        timings.append(time_calls(calls))
    lower, median, upper = (float(quartile) for quartile in np.quantile(timings, (0.25, 0.5, 0.75)))
    seconds = {"median": median, "lower_quartile": lower, "upper_quartile": upper, "timings": len(timings)}
    return {"samples_per_second": samples / median, "seconds": seconds}


def attempt(job: Callable[[], Row]) -> Row:
    """What the job returns, or {"not_measured": why}: too little memory, no TensorFlow, or no data."""
    try:
        return job()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"not_measured": "out of memory"}
    except (UserError, ImportError) as error:
        return {"not_measured": str(error)}


def matrix_ceiling(mesh: Mesh, dtype: str) -> float:
    """TFLOP/s of square matrix products of `dtype`, on all devices at once: of the fastest size, up to 50 ms each.

    float32 is multiplied as the model's is, by JAX's default: on NVIDIA GPUs in TensorFloat-32.
    """
    best, parts = 0.0, PartitionSpec(DATA_AXIS)
    product = over_devices(jnp.matmul, mesh, (parts, parts))
    for side in (1024, 2048, 4096, 8192):
        noise = np.random.default_rng(0).standard_normal((1, side, side), np.float32).astype(dtype)
        both = shard_batch({"matrix": np.repeat(noise, len(mesh.local_devices), axis=0)}, mesh)["matrix"]
        program, row = compile_program(product, (both, both), mesh)
        row = measure_program(functools.partial(program, both, both), row, 1)
        best = max(best, row["tflops_per_second"])
        if row["seconds"]["median"] > 0.05:
            break
    return best


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
