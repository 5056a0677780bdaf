"""Training. `train` is the whole procedure with its loop; the functions below it are its chapters, in order."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clu import metric_writers
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.batch import MODEL_FIELDS, Batch
from input_pipeline.errors import UserError
from input_pipeline.pipeline import evaluation_examples, steps_per_epoch, training_batches
from input_pipeline.prepare import prepare
from input_pipeline.report import load_report
from input_pipeline.text.encoders import SentenceEncoder
from lbdt_jax.checkpoint import CheckpointError, CheckpointWriter, has_checkpoint, with_defaults
from lbdt_jax.cli import write_json
from lbdt_jax.convert.initial import load_initial_weights
from lbdt_jax.evaluate import contact_sheet_rows, with_precomputed_features
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.optimizer import learning_rate_schedule, make_optimizer
from lbdt_jax.parallel import (
    Stopped,
    StopRequest,
    broadcast_from_first_process,
    is_first_process,
    make_mesh,
    replicate,
    run_sequentially,
    shard_batch,
    to_local,
)
from lbdt_jax.step import (
    Metrics,
    NotFinite,
    TrainState,
    initial_state,
    initial_variables,
    is_frozen,
    make_model,
    make_train_step,
    split_params,
)
from lbdt_jax.text_features import open_text_encoder, with_transformer
from lbdt_jax.visualization.contact_sheet import contact_sheet
from lbdt_jax.visualization.sheet import save_image


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains a model, from the newest checkpoint in WORKDIR or else from the start.

    Writes config.json, words_without_vector.json (the dataset's unknown words, most frequent first), checkpoints/,
    TensorBoard event files and pictures/ (contact sheets of predictions) to WORKDIR. A new run first saves its initial
    state as step 0. All processes of a run call this; they share WORKDIR, and the first one writes.

    Raises:
      UserError: data, text encoder, word vectors or config.initial_weights are missing or don't fit.
      CheckpointError: WORKDIR holds a run with another configuration, or a checkpoint can't be read or written.
      NotFinite: training diverged; earlier checkpoints are kept.
      Stopped: SIGTERM arrived; the current step was finished and saved.
    """
    run_sequentially(lambda: prepare(config.dataset, config.raw, config.data_dir, config.frame_interval))
    epoch_steps = steps_per_epoch(config)
    total_steps = round(config.epochs * epoch_steps)
    config, sentence_encoder, transformer, unknown_words = open_sentence_encoder(config)

    mesh = make_mesh()
    check_batch_size(config, mesh)
    model, optimizer = make_model(config), make_optimizer(config, epoch_steps)
    learning_rate = learning_rate_schedule(config, epoch_steps)
    variables = starting_variables(config, workdir, model, sentence_encoder.size, transformer)
    state = replicate(initial_state(variables, optimizer, is_frozen(config)), mesh)
    print_summary(config, mesh, state, total_steps)

    check_and_save_config(config, workdir / "config.json")
    writer = open_metric_writer(workdir, unknown_words)
    with CheckpointWriter(workdir / "checkpoints", config.keep_checkpoints) as checkpoints:
        state = resume(checkpoints, state, workdir)
        checkpoints.save(state, config, sentence_encoder)
        saved = time.monotonic()
        first_step = int(state.step)
        if first_step >= total_steps:
            return

        text_input = with_precomputed_features(config, to_local(state.variables), sentence_encoder)
        batches = training_batches(config, text_input, first_step, jax.process_index(), jax.process_count())
        train_step, batches = compile_train_step(make_train_step(model, optimizer, config, mesh), state, batches, mesh)
        predictor = make_predictor(config, model, state)

        recent: list[StepResult] = []
        logged = time.monotonic()
        bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", smoothing=0.05)
        with bar as progress, StopRequest() as stop_request:
            for step, batch in zip(range(first_step + 1, total_steps + 1), batches, strict=False):
                state, metrics = train_step(state, shard_batch(device_fields(batch), mesh))
                recent.append(StepResult(step, metrics, batch["name"]))
                progress.update()
                stop, last = stop_request.should_stop(step), step == total_steps
                save = stop or last or step % config.checkpoint_every_steps == 0

                if last or step % config.log_every_steps == 0:
                    means = mean_metrics(recent)
                    seconds, logged = time.monotonic() - logged, time.monotonic()
                    means["learning_rate"] = float(learning_rate(step - 1))
                    means["samples_per_second"] = len(recent) * config.batch_size / seconds
                    log_metrics(writer, progress, step, means)
                    recent.clear()
                    checkpoints.raise_if_failed()
                    save |= is_checkpoint_due(config, saved)
                if step % config.picture_every_steps == 0 and is_first_process():
                    log_predictions(writer, config, workdir, step, predictor, state, text_input)
                if save:
                    mean_metrics(recent)  # raises NotFinite: no checkpoint holds such a state
                    checkpoints.save(state, config, sentence_encoder)
                    saved = time.monotonic()
                if stop and not last:
                    raise Stopped(f"Stopped by SIGTERM after step {step}, which is saved. The same command resumes.")
    writer.close()


# -- Before the loop


def open_sentence_encoder(config: ConfigDict) -> tuple[ConfigDict, SentenceEncoder, dict[str, Any] | None, list[str]]:
    """Opens the text encoder for the dataset and prints how many of the dataset's words it knows.

    Returns:
      What `open_text_encoder` returns, and the unknown words, most frequent first.
    """
    vocabulary = load_report(config.data_dir, config.dataset)["tokens"]
    config, sentence_encoder, transformer = open_text_encoder(config, vocabulary)
    share, unknown = sentence_encoder.coverage(vocabulary)
    examples = " ".join(map(repr, unknown[:10])) or "none"
    print(f"{len(vocabulary)} words, {share:.1%} of them known; unknown: {examples}")
    return config, sentence_encoder, transformer, unknown


def check_batch_size(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError if the batch can't be divided among the devices."""
    if config.batch_size % (mesh.size * config.sentences_per_frame):
        raise UserError(
            f"config.batch_size {config.batch_size} can't be divided among {mesh.size} devices with "
            f"{config.sentences_per_frame} sentences per frame pair."
        )


def starting_variables(
    config: ConfigDict, workdir: Path, model: LBDT, word_vector_size: int, transformer: dict[str, Any] | None
) -> dict[str, Any]:
    """Random variables; in a new run with the weights of the pretrained transformer and of config.initial_weights."""
    variables = initial_variables(model, config, word_vector_size)
    if has_checkpoint(workdir):  # it will replace them all
        return variables
    if transformer:
        variables = with_transformer(variables, transformer)
    if config.initial_weights:
        variables = load_initial_weights(variables, config.initial_weights)
    return variables


def print_summary(config: ConfigDict, mesh: Mesh, state: TrainState, total_steps: int) -> None:
    """Prints the number of parameters, steps, samples and devices."""
    trainable, frozen = (
        sum(array.size for array in jax.tree.leaves(params)) / 1e6
        for params in split_params(state.params, is_frozen(config))
    )
    print(
        f"{trainable:.2f} million parameters{f' and {frozen:.2f} million frozen ones' if frozen else ''}; "
        f"{total_steps} steps of {config.batch_size} samples, "
        f"{config.batch_size // mesh.size} on each of {mesh.size} {jax.devices()[0].platform} device(s)"
    )


def check_and_save_config(config: ConfigDict, path: Path) -> None:
    """Writes the configuration; if there is one already, first checks that it describes the same run.

    Raises:
      CheckpointError: names the fields that differ.
    """
    new = json.loads(config.to_json())
    if path.exists():
        old = with_defaults(json.loads(path.read_text()))
        differences = [
            f"{name}: {old_value} there, {new_value} requested"
            for name, old_value, new_value in config_differences(old, new)
            if not name.startswith(CHANGEABLE_FIELDS)
        ]
        if differences:
            raise CheckpointError(
                f"{path.parent} holds a run with another configuration; choose another --workdir, or delete it.\n  "
                + "\n  ".join(differences)
            )
    if is_first_process():
        write_json(new, path)


#: Prefixes of the fields that don't affect what is learned. They may change when a run is resumed.
CHANGEABLE_FIELDS = (
    "data_dir",
    "raw",
    "frame_rate",
    "cpu_devices",
    "word_vectors",
    "log_every",
    "picture_every",
    "checkpoint",
    "keep_checkpoints",
    "evaluation",
    "contact_sheet",
    "published",
)


def config_differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of every field that differs; nested fields as "model.dropout"."""
    differences = []
    for name in sorted(old.keys() | new.keys()):
        old_value, new_value = old.get(name), new.get(name)
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            differences += config_differences(old_value, new_value, f"{prefix}{name}.")
        elif old_value != new_value:
            differences.append((prefix + name, old_value, new_value))
    return differences


def open_metric_writer(workdir: Path, unknown_words: list[str]) -> metric_writers.MetricWriter:
    """Writes words_without_vector.json and opens TensorBoard's event file; only in the first process."""
    if not is_first_process():
        return metric_writers.MultiWriter([])
    write_json(unknown_words, workdir / "words_without_vector.json")
    return metric_writers.SummaryWriter(str(workdir))


def resume(checkpoints: CheckpointWriter, state: TrainState, workdir: Path) -> TrainState:
    """The state of the newest checkpoint, or `state` if there is none. Raises CheckpointError if processes disagree."""
    state = checkpoints.restore(state)
    step = int(state.step)
    if broadcast_from_first_process(step) != step:
        raise CheckpointError(f"{workdir} is not the same in all processes; choose a --workdir that they share.")
    if step:
        print(f"Resuming from step {step}.")
    return state


def compile_train_step(
    train_step: Any, state: TrainState, batches: Iterator[Batch], mesh: Mesh
) -> tuple[jax.stages.Compiled, Iterator[Batch]]:
    """Compiles the jitted step for the sizes of the first batch; prints how long it took.

    Returns:
      The compiled step, and all batches, the first one included.
    """
    first = next(batches)
    start = time.monotonic()
    print("Compiling the training step ...", end=" ", flush=True)
    compiled = train_step.lower(state, shard_batch(device_fields(first), mesh)).compile()
    print(f"{time.monotonic() - start:.0f} s")
    return compiled, itertools.chain([first], batches)


def make_predictor(config: ConfigDict, model: LBDT, state: TrainState) -> BatchedPredictor:
    """The predictor for contact sheets. Its sizes are those of the evaluation, which then reuses its programs."""
    return BatchedPredictor(model, to_local(state.variables), config.evaluation_frames, config.evaluation_sentences)


# -- In the loop


class StepResult(NamedTuple):
    """The metrics of a step, still on the devices, and the names of the samples in its batch."""

    step: int
    metrics: Metrics
    sample_names: np.ndarray


def device_fields(batch: Batch) -> Batch:
    """The fields of a batch that go to the devices: all but the names."""
    return {name: batch[name] for name in (*MODEL_FIELDS, "target")}


def mean_metrics(results: list[StepResult]) -> dict[str, float]:
    """The mean of every metric over some steps; empty without steps.

    Raises:
      NotFinite: a loss or gradient is infinite or NaN.
    """
    fetched = jax.device_get([result.metrics for result in results])
    for result, metrics in zip(results, fetched, strict=True):
        if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
            raise NotFinite(
                f"Step {result.step}: the loss is {metrics['loss']}, the gradient norm {metrics['gradient_norm']}. "
                f"The batch: {'; '.join(result.sample_names)}. "
                "Earlier checkpoints are kept; a lower config.learning_rate may help."
            )
    return {name: float(np.mean([metrics[name] for metrics in fetched])) for name in (fetched or [{}])[0]}


def log_metrics(writer: metric_writers.MetricWriter, progress: tqdm, step: int, means: dict[str, float]) -> None:
    """Writes mean metrics to TensorBoard and shows the main ones on the progress bar."""
    writer.write_scalars(step, means)
    progress.set_postfix_str(
        f"loss {means['loss']:.3f}, IoU {means['iou']:.3f}, {means['samples_per_second']:.0f} samples/s"
    )


def is_checkpoint_due(config: ConfigDict, saved: float) -> bool:
    """Whether config.checkpoint_every_minutes have passed since time.monotonic() was `saved`; same in all processes."""
    if not config.checkpoint_every_minutes:
        return False
    minutes = (time.monotonic() - saved) / 60
    return bool(broadcast_from_first_process(minutes >= config.checkpoint_every_minutes))


def log_predictions(
    writer: metric_writers.MetricWriter,
    config: ConfigDict,
    workdir: Path,
    step: int,
    predictor: BatchedPredictor,
    state: TrainState,
    text_input: SentenceEncoder,
) -> None:
    """Draws predictions for the first frames of the evaluation split, to pictures/ and TensorBoard."""
    predictor.use(to_local(state.variables))
    examples = evaluation_examples(config, config.evaluation_split, text_input)
    rows = contact_sheet_rows(predictor, itertools.islice(examples, config.contact_sheet_samples))
    sheet = contact_sheet(rows, f"{config.dataset} {config.evaluation_split}, step {step}")
    save_image(sheet, workdir / "pictures" / f"step_{step:06d}.png")
    writer.write_images(step, {"predictions": np.asarray(sheet)[None]})
