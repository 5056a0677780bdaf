"""Training. `train` is the whole procedure, `take_steps` its loop; the functions below are their parts, in order."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.batch import MODEL_FIELDS, Batch
from input_pipeline.epochs import describe_epoch, steps_per_epoch
from input_pipeline.errors import UserError
from input_pipeline.pipeline import training_batches, vocabulary
from input_pipeline.prepare import check_raw_data, prepare_for
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.text.word_vectors import check_word_vectors
from lbdt_jax.checkpoint import CheckpointError, CheckpointWriter
from lbdt_jax.checkpoint_folder import has_checkpoint
from lbdt_jax.config import INT32_MAX, check_config
from lbdt_jax.convert.initial import find_initial_weights, load_initial_weights
from lbdt_jax.convert.transformer import find_folder
from lbdt_jax.evaluate import check_evaluation_data, with_precomputed_features
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.optimizer import learning_rate_schedule, make_optimizer, training_steps
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
    TrainState,
    initial_state,
    initial_variables,
    is_frozen,
    make_model,
    make_train_step,
    split_params,
)
from lbdt_jax.text_features import open_text_encoder, with_transformer
from lbdt_jax.training_log import Background, MetricLog, StepResult, log_predictions
from lbdt_jax.validation import Validation, check_validation_data
from lbdt_jax.validation import period as validation_period
from lbdt_jax.workdir import MetricWriter, open_workdir


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains a model, from the newest checkpoint in WORKDIR or else from the start.

    Writes config.json, records.json (checksums of the data), words_without_vector.json (the dataset's unknown words,
    most frequent first), checkpoints/, TensorBoard event files, pictures/ (contact sheets of predictions) and the files
    of `lbdt_jax.validation` to WORKDIR. A new run first saves its initial state as step 0. A state is saved before it
    is validated; if the command ends in between, that validation comes first when it resumes. All processes of a run
    call this; they share WORKDIR, and the first one writes.

    Raises:
      UserError: a field of the configuration is wrong; data, text encoder, word vectors or config.initial_weights are
        missing or don't fit; or another run trains into WORKDIR.
      CheckpointError: WORKDIR holds a run with another configuration or other data, or a checkpoint can't be read or
        written.
      NotFinite: training diverged; earlier checkpoints are kept.
      Stopped: SIGTERM arrived; the current step was finished and saved.
      KeyboardInterrupt: Ctrl-C was pressed; the current step was finished and not saved.
    """
    run, state = set_up(config, workdir)
    config = run.config
    with (
        open_workdir(config, workdir, run.unknown_words) as writer,
        CheckpointWriter(workdir / "checkpoints", config.keep_checkpoints) as checkpoints,
        Background() as drawing,
    ):
        state = resume(checkpoints, state, run.sentence_encoder, workdir)
        checkpoints.save(state, config, run.sentence_encoder)
        text_input = with_precomputed_features(config, to_local(state.variables), run.sentence_encoder)
        predictor = make_predictor(config, run.model, state)
        validation = Validation(
            config,
            workdir,
            (run.epoch_steps, run.total_steps),
            predictor,
            text_input,
            checkpoints,
            writer,
            drawing,
            first_step=int(state.step),
        )
        if validation.is_missing(int(state.step)):  # the command was stopped in it
            validation.run(state)
        if int(state.step) < run.total_steps:
            take_steps(run, state, Services(workdir, writer, checkpoints, drawing, text_input, predictor, validation))
        validation.print_cost()


class Services(NamedTuple):
    """What the loop uses beside the training step: where it reads from and writes to."""

    workdir: Path
    writer: MetricWriter
    checkpoints: CheckpointWriter
    drawing: Background
    text_input: SentenceEncoder
    predictor: BatchedPredictor
    validation: Validation


def take_steps(run: Run, state: TrainState, services: Services) -> None:
    """The loop: takes all steps after `state`, and logs, draws, saves and validates on the way. Raises as `train`."""
    config, first_step, total_steps, saved = run.config, int(state.step), run.total_steps, time.monotonic()
    workdir, writer, checkpoints, drawing, text_input, predictor, validation = services
    batches = training_batches(config, text_input, first_step, jax.process_index(), jax.process_count())
    train_step, batches = compile_train_step(
        make_train_step(run.model, run.optimizer, config, run.mesh), state, batches, run.mesh
    )
    bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", smoothing=0.05)
    with bar as progress, StopRequest() as stop_request, ThreadPoolExecutor(1) as copying:
        metric_log = MetricLog(writer, progress, config, run.learning_rate)
        sample_names, copied = start_copy(copying, batches, run.mesh)
        for step in range(first_step + 1, total_steps + 1):
            state, metrics = train_step(state, copied.result())
            # The devices work on this step from here on. What follows waits for them only to save or to validate.
            result = StepResult(step, metrics, sample_names)
            progress.update()
            stop, last, validate = stop_request.should_stop(step), step == total_steps, validation.is_due(step)
            save = stop or last or validate or step % config.checkpoint_every_steps == 0
            if not last:
                sample_names, copied = start_copy(copying, batches, run.mesh)
            metric_log.add(result)
            if last or step % config.log_every_steps == 0:
                metric_log.end_interval()
                checkpoints.raise_if_failed()
                save |= is_checkpoint_due(config, saved)
            if config.contact_sheet_samples and step % config.picture_every_steps == 0:
                metric_log.check()  # what is not finite can't be drawn
                if is_first_process():
                    log_predictions(writer, config, workdir, step, predictor, state, text_input, drawing)
            if save:
                metric_log.check()  # no checkpoint holds a state that is not finite
                checkpoints.save(state, config, run.sentence_encoder)
                saved = time.monotonic()
            if stop and not last:
                raise Stopped(f"Stopped by SIGTERM after step {step}, which is saved. The same command resumes.")
            if validate:
                metric_log.exclude(validation.run(state, lambda: stop_request.received))
        metric_log.write()


# -- Before the loop


class Run(NamedTuple):
    """What stays as it is during a training.

    Attributes:
      config: with the sizes of the transformer, if there is one.
      epoch_steps: the number of steps in an epoch.
      total_steps: the number of steps in the whole training.
      mesh: all devices.
      model: the network.
      optimizer: what `make_optimizer` returns.
      learning_rate: as a function of the step, which counts from 0.
      sentence_encoder: word vectors or tokenizer.
      unknown_words: of the dataset, most frequent first.
    """

    config: ConfigDict
    epoch_steps: int
    total_steps: int
    mesh: Mesh
    model: LBDT
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    sentence_encoder: SentenceEncoder
    unknown_words: list[str]


def set_up(config: ConfigDict, workdir: Path) -> tuple[Run, TrainState]:
    """Checks configuration, data and devices, and prepares the records. Returns the initial state, too."""
    check_config(config)
    mesh = make_mesh()
    check_options(config, mesh)
    initial_weights = find_files(config, workdir)
    run_sequentially(lambda: prepare_for(config))
    epoch_steps = steps_per_epoch(config)
    print("".join(f"{line}\n" for line in describe_epoch(config)), end="")
    steps = count_steps(config, epoch_steps)
    config, sentence_encoder, transformer, unknown_words = open_sentence_encoder(config)
    check_evaluation_data(config, sentence_encoder)
    if validation_period(config, epoch_steps):
        check_validation_data(config, sentence_encoder)
    model, optimizer = make_model(config), make_optimizer(config, epoch_steps)
    learning_rate = learning_rate_schedule(config, epoch_steps)
    variables = starting_variables(config, workdir, model, sentence_encoder, transformer, initial_weights)
    state = initial_state(variables, optimizer, is_frozen(config), ema=bool(config.ema_decay))
    state = replicate(state, mesh)
    print_summary(config, mesh, state, steps)
    run = Run(config, epoch_steps, steps, mesh, model, optimizer, learning_rate, sentence_encoder, unknown_words)
    return run, state


def find_files(config: ConfigDict, workdir: Path) -> Path | None:
    """Looks for the files that a training reads, before the records are made, which may take hours.

    Returns:
      Where the initial weights of a new run are; None if it starts from random ones, or resumes.

    Raises:
      UserError: raw data, word vectors, text encoder or initial weights are missing. The message names all that are.
    """
    initial_weights, errors = None, list[str]()

    @contextlib.contextmanager
    def noting_errors() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            errors.append(str(error))

    with noting_errors():
        check_raw_data(config)
    with noting_errors():
        if config.text_encoder == "glove_lstm":
            check_word_vectors(config.word_vectors)
        else:
            find_folder(config.text_encoder)
    with noting_errors():
        if config.initial_weights and not has_checkpoint(workdir):
            initial_weights = find_initial_weights(config.initial_weights, config.model)
    if errors:
        raise UserError("\n".join(errors))
    return initial_weights


def count_steps(config: ConfigDict, epoch_steps: int) -> int:
    """The number of steps of the whole training.

    Raises:
      UserError: there is none, or more than can be counted, or no step after the warm-up of a cosine schedule.
    """
    steps = training_steps(config, epoch_steps)
    if not 1 <= steps <= INT32_MAX:
        raise UserError(
            f"config.epochs is {config.epochs}, which makes {steps} steps of {epoch_steps} per epoch; it must make "
            f"1 to {INT32_MAX}."
        )
    if config.learning_rate_schedule == "cosine" and config.warmup_steps >= steps:
        raise UserError(
            f"config.warmup_steps is {config.warmup_steps}; with config.learning_rate_schedule 'cosine' it must be "
            f"below the {steps} steps of the whole training."
        )
    return steps


def check_options(config: ConfigDict, mesh: Mesh) -> None:
    """Raises UserError if options contradict each other or the number of devices, before the records are made."""
    if config.evaluated_weights == "ema" and not config.ema_decay:
        raise UserError("config.evaluated_weights is 'ema', and config.ema_decay is 0.0: there would be no average.")
    if jax.dtypes.canonicalize_dtype(config.model.dtype) != config.model.dtype:
        raise UserError("config.model.dtype is 'float64', in which JAX computes only if JAX_ENABLE_X64=1 is set.")
    if config.batch_size % (mesh.size * config.sentences_per_frame):
        raise UserError(
            f"config.batch_size {config.batch_size} can't be divided among {mesh.size} devices with "
            f"{config.sentences_per_frame} sentences per frame pair."
        )


def open_sentence_encoder(config: ConfigDict) -> tuple[ConfigDict, SentenceEncoder, dict[str, Any] | None, list[str]]:
    """Opens the text encoder for the dataset and prints how many of the dataset's words it knows.

    Returns:
      What `open_text_encoder` returns, and the unknown words, most frequent first.
    """
    words = vocabulary(config)
    config, sentence_encoder, transformer = open_text_encoder(config, words)
    share, unknown = sentence_encoder.coverage(words)
    examples = " ".join(map(repr, unknown[:10])) or "none"
    print(f"{len(words)} words, {share:.1%} of them known; unknown: {examples}")
    return config, sentence_encoder, transformer, unknown


def starting_variables(
    config: ConfigDict,
    workdir: Path,
    model: LBDT,
    sentence_encoder: SentenceEncoder,
    transformer: dict[str, Any] | None,
    initial_weights: Path | None,
) -> dict[str, Any]:
    """Random variables; in a new run with the weights of the pretrained transformer and the initial weights.

    They are float32; float64 with config.model.dtype "float64", so that nothing of a step is rounded to float32.
    """
    variables = initial_variables(model, config, sentence_encoder.size)
    is_new = not has_checkpoint(workdir)  # else it will replace them all
    if is_new and transformer:
        variables = with_transformer(variables, transformer)
    if initial_weights:
        variables = load_initial_weights(variables, initial_weights, config, sentence_encoder)
    dtype = jnp.promote_types(config.model.dtype, jnp.float32)
    return jax.tree.map(lambda array: jnp.asarray(array, dtype), variables)


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


def resume(
    checkpoints: CheckpointWriter, state: TrainState, sentence_encoder: SentenceEncoder, workdir: Path
) -> TrainState:
    """The state of the newest checkpoint, or `state` if there is none. Raises CheckpointError if processes disagree."""
    state = checkpoints.restore(state, sentence_encoder)
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
    """The predictor for pictures and validation. Its sizes are those of the evaluation, which then finds its programs
    in the compilation cache."""
    return BatchedPredictor(model, to_local(state.variables), config.evaluation_frames, config.evaluation_sentences)


# -- In the loop


def start_copy(
    copying: ThreadPoolExecutor, batches: Iterator[Batch], mesh: Mesh
) -> tuple[np.ndarray, Future[dict[str, jax.Array]]]:
    """Starts to copy the next batch to the devices. Returns the names of its samples, and the arrays to come."""
    batch = next(batches)
    return batch["name"], copying.submit(shard_batch, device_fields(batch), mesh)


def device_fields(batch: Batch) -> Batch:
    """The fields of a batch that go to the devices: all but the names."""
    return {name: batch[name] for name in (*MODEL_FIELDS, "target")}


def is_checkpoint_due(config: ConfigDict, saved: float) -> bool:
    """Whether config.checkpoint_every_minutes have passed since time.monotonic() was `saved`; same in all processes."""
    if not config.checkpoint_every_minutes:
        return False
    minutes = (time.monotonic() - saved) / 60
    return bool(broadcast_from_first_process(minutes >= config.checkpoint_every_minutes))
