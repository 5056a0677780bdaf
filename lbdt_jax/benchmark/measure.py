"""What is measured: every row of the table, on random inputs, and the input pipeline on records."""

from __future__ import annotations

import datetime
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.batch import MODEL_FIELDS, Batch, random_batch
from input_pipeline.errors import UserError
from input_pipeline.text.encoders import TransformerTokenizer
from input_pipeline.workers import cores
from lbdt_jax.benchmark.timing import (
    Row,
    add_speed,
    compile_program,
    describe_device,
    matrix_ceiling,
    measure_pipeline,
    measure_program,
    peak_bytes,
    shard,
)
from lbdt_jax.cpu import onednn
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import DATA_AXIS, make_mesh, replicate, shard_batch
from lbdt_jax.step import initial_state, initial_variables, is_frozen, make_model, make_train_step

DTYPES = ("float32", "bfloat16")
#: Environment variables that change the speed of a program; recorded in the result.
ENVIRONMENT = (onednn.ENVIRONMENT_VARIABLE, "GLIBC_TUNABLES", "XLA_FLAGS")
WORD_VECTOR_SIZE = 300  # as published; it accounts for less than a thousandth of the computation

Job = tuple[Row, Callable[[], Row]]


def benchmark(
    config: ConfigDict, batch_sizes: Sequence[int], sentences: Sequence[int], minutes: float
) -> Iterator[Row]:
    """Measures everything on random inputs; yields the result before the first row and after every row.

    Args:
      config: the model, its dtype and the size of its input.
      batch_sizes: samples per batch, over all devices.
      sentences: numbers of sentences per frame.
      minutes: time budget. A row is skipped if it would exceed the budget by taking as long as the slowest row of the
        same program so far.

    Yields:
      {"date", "jax", "device", "environment", "config", "ceiling", "rows", "peak_bytes"}: "ceiling" has the TFLOP/s of
      a large matrix product on all devices together, by dtype; "peak_bytes" is over all rows. Each row has "program",
      "batch_size", "sentences_per_frame" and either "not_measured", the reason, or what `measure_program` or
      `measure_pipeline` returns, "share_of_ceiling" of the ceiling of config.model.dtype, and for several sentences
      "cost_of_one".

    Raises:
      UserError: the configuration is invalid, or a batch can't be divided among the devices.
    """
    mesh = make_mesh()
    config = check_config(config, mesh, (*batch_sizes, config.batch_size))
    result = describe_run(config, mesh, {dtype: matrix_ceiling(mesh, dtype) for dtype in DTYPES})
    yield result
    for _ in run_jobs(result, jobs(config, mesh, batch_sizes, sentences), minutes):
        result["peak_bytes"] = peak_bytes(mesh)
        yield result


def run_jobs(result: Row, jobs: Iterator[Job], minutes: float) -> Iterator[Row]:
    """Adds the rows of the jobs to a result, as `benchmark` describes; yields it after every row."""
    start = time.monotonic()
    longest: dict[str, float] = {}
    for row, job in jobs:
        job_start = time.monotonic()
        if job_start - start + longest.get(row["program"], 0) > 60 * minutes:
            row["not_measured"] = f"no time left: --minutes={minutes:g}"
        else:
            row |= attempt(job)
            longest[row["program"]] = max(longest.get(row["program"], 0), time.monotonic() - job_start)
        if "tflops_per_second" in row:
            row["share_of_ceiling"] = row["tflops_per_second"] / result["ceiling"][result["config"]["model"]["dtype"]]
        result["rows"].append(row)
        if row["sentences_per_frame"] > 1:
            add_cost_of_one(row, result["rows"])
        yield result


def check_config(config: ConfigDict, mesh: Mesh, batch_sizes: Sequence[int]) -> ConfigDict:
    """Returns the configuration, with a transformer's sizes filled in; raises UserError if it can't be measured."""
    for size in batch_sizes:
        if size % (mesh.size * config.sentences_per_frame):
            raise UserError(
                f"A batch of {size} can't be divided among {mesh.size} devices, with {config.sentences_per_frame} "
                "sentences per frame."
            )
    if config.model.dtype not in DTYPES:
        raise UserError(f"config.model.dtype is {config.model.dtype}; choose one of {', '.join(DTYPES)}.")
    if config.text_encoder != "glove_lstm":
        # Reads the transformer's files, which "glove_lstm" doesn't need.
        from lbdt_jax.text_features import open_text_encoder

        config, _, _ = open_text_encoder(config, [])
    make_model(config)
    return config


def describe_run(config: ConfigDict, mesh: Mesh, ceiling: dict[str, float]) -> Row:
    """A result without rows: date, device, software and configuration of the run, and the matrix products' TFLOP/s."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "device": describe_device(mesh),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "config": json.loads(config.to_json()),
        "ceiling": ceiling,
        "rows": [],
    }


def jobs(config: ConfigDict, mesh: Mesh, batch_sizes: Sequence[int], sentences: Sequence[int]) -> Iterator[Job]:
    """Every row with the function that measures it, the most important first."""
    variables = jax.device_get(initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    replicated, sharded = PartitionSpec(), PartitionSpec(DATA_AXIS)
    sharded_forward = shard(make_model(config).apply, mesh, (replicated, *[sharded] * len(MODEL_FIELDS)))

    def training_step(size: int) -> Row:
        batch = random_device_batch(config, mesh, size, config.sentences_per_frame, training=True)
        step, row = compile_training(config, mesh, variables, batch)
        return measure_program(lambda: step(batch), row, size)

    def forward(size: int, sentences_per_frame: int) -> Row:
        batch = random_device_batch(config, mesh, size, sentences_per_frame)
        arguments = (replicate(variables, mesh), *(batch[name] for name in MODEL_FIELDS))
        program, row = compile_program(sharded_forward, arguments, mesh)
        return measure_program(lambda: program(*arguments), row, size)

    for size in batch_sizes:
        yield describe_row("training step", size, config.sentences_per_frame), functools.partial(training_step, size)
    for size in batch_sizes:
        yield describe_row("forward", size, 1), functools.partial(forward, size, 1)
    for count in sentences:
        if count > 1:
            size = batch_sizes[0] * count
            yield describe_row("forward", size, count), functools.partial(forward, size, count)
    yield from pipeline_jobs(config, mesh)


def random_host_batch(config: ConfigDict, size: int, sentences_per_frame: int, training: bool = False) -> Batch:
    """A batch of random inputs, for training or for the forward pass."""
    transformer = make_model(config).transformer
    words = {"word_vector_size": WORD_VECTOR_SIZE}
    if transformer and training and is_frozen(config):
        words = {"word_vector_size": transformer.width}  # training reads the transformer's precomputed features
    elif transformer:
        words = {"vocabulary_size": transformer.vocabulary}
    return random_batch(size, config.image_size, config.max_words, sentences_per_frame=sentences_per_frame, **words)


def random_device_batch(
    config: ConfigDict, mesh: Mesh, size: int, sentences_per_frame: int, training: bool = False
) -> dict[str, jax.Array]:
    """`random_host_batch` on the devices."""
    return shard_batch(random_host_batch(config, size, sentences_per_frame, training), mesh)


def pipeline_jobs(config: ConfigDict, mesh: Mesh) -> Iterator[Job]:
    """The input pipeline alone, and training fed by it."""

    def input_pipeline() -> Row:
        batches, _ = open_batches(config)
        row = measure_pipeline(lambda: next(batches), config.batch_size)
        return row | {"samples_per_second_and_core": row["samples_per_second"] / cores()}

    def end_to_end() -> Row:
        batches, variables = open_batches(config)

        def next_batch() -> dict[str, jax.Array]:
            batch = next(batches)
            return shard_batch({name: batch[name] for name in (*MODEL_FIELDS, "target")}, mesh)

        step, row = compile_training(config, mesh, variables, next_batch())
        measured = measure_pipeline(lambda: step(next_batch()), config.batch_size)
        return add_speed(row, measured, config.batch_size)

    for name, job in (("input pipeline", input_pipeline), ("end to end", end_to_end)):
        yield describe_row(name, config.batch_size, config.sentences_per_frame), job


def open_batches(config: ConfigDict) -> tuple[Iterator[Batch], dict[str, Any]]:
    """The training batches of config.dataset and the model's initial variables.

    Raises:
      UserError: there are no records, or the text encoder can't be used.
      ImportError: TensorFlow is not installed.
    """
    # Imported here, since everything else runs without TensorFlow.
    from input_pipeline.pipeline import training_batches, vocabulary
    from lbdt_jax.text_features import open_text_encoder, precomputed_features, with_transformer

    _, sentence_encoder, transformer = open_text_encoder(config, vocabulary(config))
    variables = initial_variables(make_model(config), config, sentence_encoder.size)
    if transformer:
        variables = with_transformer(variables, transformer)
    if is_frozen(config) and isinstance(sentence_encoder, TransformerTokenizer):
        sentence_encoder = precomputed_features(config, variables, sentence_encoder)
    return training_batches(config, sentence_encoder), variables


def describe_row(program: str, batch_size: int, sentences_per_frame: int) -> Row:
    """The fields that identify a row."""
    return {"program": program, "batch_size": batch_size, "sentences_per_frame": sentences_per_frame}


def attempt(job: Callable[[], Row]) -> Row:
    """The result of the job, or {"not_measured": reason}: out of memory, no TensorFlow, or no records."""
    try:
        return job()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"not_measured": "out of memory"}
    except (UserError, ImportError) as error:
        return {"not_measured": str(error)}


def add_cost_of_one(row: Row, rows: Sequence[Row]) -> None:
    """Adds "cost_of_one" to a forward pass: its time divided by that for one sentence on the same number of frames."""
    one_sentence = describe_row("forward", row["batch_size"] // row["sentences_per_frame"], 1)
    for candidate in rows:
        same = row["program"] == "forward" and one_sentence.items() <= candidate.items()
        if same and "seconds" in row and "seconds" in candidate:
            row["cost_of_one"] = row["seconds"]["median"] / candidate["seconds"]["median"]


def compile_training(
    config: ConfigDict, mesh: Mesh, variables: dict[str, Any], batch: dict[str, jax.Array]
) -> tuple[Callable[[dict[str, jax.Array]], jax.Array], Row]:
    """Compiles the training step.

    Returns:
      A function of a batch on the devices that updates its own state and returns the loss, and the row of
      `compile_program`.
    """
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    state = replicate(initial_state(variables, optimizer, is_frozen(config)), mesh)
    program, row = compile_program(make_train_step(make_model(config), optimizer, config, mesh), (state, batch), mesh)

    def step(batch: dict[str, jax.Array]) -> jax.Array:
        nonlocal state
        state, metrics = program(state, batch)
        return metrics["loss"]

    return step, row
