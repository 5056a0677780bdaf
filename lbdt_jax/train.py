"""Training: one loop, in chapters."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.batch import MODEL_FIELDS
from input_pipeline.errors import UserError
from input_pipeline.pipeline import evaluation_examples, steps_per_epoch, training_batches
from input_pipeline.prepare import prepare
from input_pipeline.report import load_report
from lbdt_jax.checkpoint import CheckpointError, CheckpointWriter, has_checkpoint, with_defaults
from lbdt_jax.cli import write_json
from lbdt_jax.convert.initial import load_initial_weights
from lbdt_jax.evaluate import pictures
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.optimizer import learning_rate_schedule, make_optimizer
from lbdt_jax.parallel import (
    Stopped,
    StopRequest,
    broadcast_from_first_process,
    is_first_process,
    local,
    make_mesh,
    replicate,
    run_sequentially,
    split,
)
from lbdt_jax.step import (
    NotFinite,
    initial_state,
    initial_variables,
    is_frozen,
    make_model,
    make_train_step,
    split_params,
)
from lbdt_jax.text_features import open_text_encoder, precomputed_features, with_transformer
from lbdt_jax.visualization.contact_sheet import contact_sheet
from lbdt_jax.visualization.sheet import save_image


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains as the configuration says, from the newest checkpoint in WORKDIR or from the start.

    Writes WORKDIR/config.json, words_without_vector.json (the data set's words that are not known, commonest first),
    checkpoints/, TensorBoard's event files and pictures/ of what the model finds in the first frames of the
    evaluation's split. A new run saves its start as step 0: there is a checkpoint to go back to from the first step
    on, and a folder that can't be written to is noticed before anything is computed.

    All processes call it together; WORKDIR is a folder that they share, and the first of them writes.

    Raises:
      UserError: data, text encoder, word vectors or config.initial_weights are missing, or don't fit.
      CheckpointError: WORKDIR holds a run of another configuration.
      NotFinite: training diverged; the checkpoints from before are kept.
      Stopped: SIGTERM arrived; the step under way was finished and saved.
    """
    # -- the data
    run_sequentially(lambda: prepare(config.dataset, config.raw, config.data_dir, config.frame_interval))
    steps = steps_per_epoch(config)
    vocabulary = load_report(config.data_dir, config.dataset)["tokens"]
    config, sentence_encoder, transformer = open_text_encoder(config, vocabulary)
    share, missing = sentence_encoder.coverage(vocabulary)
    print(f"{len(vocabulary)} words, {share:.1%} are known; not: {' '.join(map(repr, missing[:10])) or 'none'}")

    # -- the model, on every device
    mesh = make_mesh()
    if config.batch_size % (mesh.size * config.sentences_per_frame):
        raise UserError(
            f"config.batch_size {config.batch_size} can't be divided among {mesh.size} devices, with "
            f"{config.sentences_per_frame} sentences for each frame."
        )
    total_steps = round(config.epochs * steps)
    model, optimizer = make_model(config), make_optimizer(config, steps)
    learning_rate = learning_rate_schedule(config, steps)
    variables = initial_variables(model, config, sentence_encoder.size)
    if transformer and not has_checkpoint(workdir):
        variables = with_transformer(variables, transformer)
    if config.initial_weights and not has_checkpoint(workdir):
        variables = load_initial_weights(variables, config.initial_weights)
    state = replicate(initial_state(variables, optimizer, is_frozen(config)), mesh)
    parameters, fixed = (
        sum(array.size for array in jax.tree.leaves(part)) for part in split_params(state.params, is_frozen(config))
    )
    print(
        f"{parameters / 1e6:.2f} million parameters{f' and {fixed / 1e6:.2f} million frozen ones' if fixed else ''}; "
        f"{total_steps} steps of {config.batch_size} samples, "
        f"{config.batch_size // mesh.size} on each of {mesh.size} {jax.devices()[0].platform} device(s)"
    )

    # -- resume where the last run stopped; a configuration that was refused above leaves nothing in the way
    keep_config(config, workdir / "config.json")
    writer = metric_writers.MultiWriter([])  # writes nothing
    if is_first_process():
        write_json(missing, workdir / "words_without_vector.json")
        writer = metric_writers.SummaryWriter(str(workdir))
    with CheckpointWriter(workdir / "checkpoints", config.keep_checkpoints) as checkpoints:
        state = checkpoints.restore(state)
        first_step = int(state.step)
        if broadcast_from_first_process(first_step) != first_step:
            raise CheckpointError(f"{workdir} is not the same in all processes; choose a --workdir that they share.")
        checkpoints.save(state, config, sentence_encoder)
        saved = time.monotonic()
        if first_step:
            print(f"Going on from step {first_step}.")
        if first_step >= total_steps:
            return
        reader = sentence_encoder
        if is_frozen(config):
            # One process computes them, and the others find them.
            reader = run_sequentially(lambda: precomputed_features(config, local(state.variables), sentence_encoder))
        batches = training_batches(config, reader, first_step, jax.process_index(), jax.process_count())

        # -- compile, and say so, since it takes a while
        first = next(batches)
        started = time.monotonic()
        print("Compiling the training step ...", end=" ", flush=True)
        on_devices = split(device_fields(first), mesh)
        train_step = make_train_step(model, optimizer, config, mesh).lower(state, on_devices).compile()
        print(f"{time.monotonic() - started:.0f} s")

        # As the evaluation after it asks, so that both share one compiled program.
        predictor = BatchedPredictor(
            model, local(state.variables), config.evaluation_frames, config.evaluation_sentences
        )

        # -- the loop
        recent: list[tuple[int, dict[str, jax.Array], np.ndarray]] = []
        logged = time.monotonic()
        steps = range(first_step + 1, total_steps + 1)
        bar = tqdm(total=total_steps, initial=first_step, desc="train", unit="step", smoothing=0.05)
        with bar as progress, StopRequest() as stop:
            for step, batch in zip(steps, itertools.chain([first], batches), strict=False):
                state, metrics = train_step(state, split(device_fields(batch), mesh))
                recent.append((step, metrics, batch["name"]))
                progress.update()
                stopping = stop.reached(step)
                save = stopping or step % config.checkpoint_every_steps == 0 or step == total_steps

                if step % config.log_every_steps == 0 or step == total_steps:
                    means = mean_metrics(recent)
                    seconds, logged = time.monotonic() - logged, time.monotonic()
                    means["learning_rate"] = float(learning_rate(step - 1))
                    means["samples_per_second"] = len(recent) * config.batch_size / seconds
                    writer.write_scalars(step, means)
                    progress.set_postfix_str(
                        f"loss {means['loss']:.3f}, IoU {means['iou']:.3f}, {means['samples_per_second']:.0f} samples/s"
                    )
                    recent.clear()
                    checkpoints.raise_what_failed()
                    if config.checkpoint_every_minutes:
                        minutes = (time.monotonic() - saved) / 60
                        save |= bool(broadcast_from_first_process(minutes >= config.checkpoint_every_minutes))

                if step % config.picture_every_steps == 0 and is_first_process():
                    predictor.use(local(state.variables))
                    examples = evaluation_examples(config, config.evaluation_split, reader)
                    shown = pictures(predictor, itertools.islice(examples, config.contact_sheet_samples))
                    sheet = contact_sheet(shown, f"{config.dataset} {config.evaluation_split}, step {step}")
                    save_image(sheet, workdir / "pictures" / f"step_{step:06d}.png")
                    writer.write_images(step, {"predictions": np.asarray(sheet)[None]})

                if save:
                    # What is saved was looked at: no checkpoint holds a number that is not finite.
                    mean_metrics(recent)
                    checkpoints.save(state, config, sentence_encoder)
                    saved = time.monotonic()
                if stopping and step < total_steps:
                    raise Stopped(f"Stopped by SIGTERM after step {step}, which is saved. The same command goes on.")
    writer.close()


def device_fields(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a batch goes to the devices: all but the names."""
    return {name: batch[name] for name in (*MODEL_FIELDS, "target")}


def mean_metrics(recent: list[tuple[int, dict[str, jax.Array], np.ndarray]]) -> dict[str, float]:
    """The mean of every metric over the steps since the last report; empty if there are none.

    Raises:
      NotFinite: some loss among them is infinite or not a number.
    """
    fetched = jax.device_get([metrics for _, metrics, _ in recent])
    for (step, _, names), metrics in zip(recent, fetched, strict=True):
        if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
            raise NotFinite(
                f"Step {step}: the loss is {metrics['loss']}, the gradient's norm {metrics['gradient_norm']}. "
                f"Its batch: {'; '.join(names)}. "
                "The checkpoints from before are kept; a lower config.learning_rate may help."
            )
    return {name: float(np.mean([metrics[name] for metrics in fetched])) for name in (fetched or [{}])[0]}


def keep_config(config: ConfigDict, path: Path) -> None:
    """Writes the configuration, or checks that the run that is there had the same one.

    Raises:
      CheckpointError: names the fields that differ.
    """
    new = json.loads(config.to_json())
    if path.exists():
        old = with_defaults(json.loads(path.read_text()))
        different = [
            f"{name}: {old_value} there, {new_value} asked for"
            for name, old_value, new_value in flat_difference(old, new)
            if not name.startswith(FREE_TO_CHANGE)
        ]
        if different:
            raise CheckpointError(
                f"{path.parent} holds a run of another configuration; choose another --workdir, or delete it.\n  "
                + "\n  ".join(different)
            )
    if is_first_process():
        write_json(new, path)


#: Fields that don't change what is learnt, so that a run may go on with other values.
FREE_TO_CHANGE = (
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


def flat_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of every field that differs, fields inside others as "model.dropout"."""
    different = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            different += flat_difference(before, after, f"{prefix}{name}.")
        elif before != after:
            different.append((prefix + name, before, after))
    return different
