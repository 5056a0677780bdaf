"""Self-describing checkpoints. The only file that imports orbax.

A folder WORKDIR/checkpoints/<step> holds the model's variables, the optimizer's state, the configuration and what
encodes sentences: the dataset's words with their vectors, or a transformer's tokenizer. Prediction needs nothing else.
With config.ema_decay it also holds the moving average of the variables. checkpoints/best.json names the step of the
best checkpoint.
orbax writes arrays and json, no pickles. Since it doesn't notice corrupted bytes, the files are compared with their
checksums before they are read. A folder has a bare step as its name only once all its files and their checksums are
written. What a checkpoint declares is compared with what is expected before memory is taken for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file
from input_pipeline.text.encoders import SentenceEncoder, TransformerTokenizer
from input_pipeline.text.word_vectors import MAX_SIZE, WordVectors, check_same_vectors
from lbdt_jax.checkpoint_checks import (
    CheckpointError,
    are_words,
    broken_message,
    by_name,
    check_declared,
    check_finite,
    expected_shapes,
    misfit_message,
    shapes,
    tokenizer_for,
)
from lbdt_jax.checkpoint_folder import (
    BEST_FILE,
    find_checkpoint,
    finished_steps,
    read_best,
    remove_unfinished,
    steps_to_keep,
)
from lbdt_jax.checkpoint_shared import is_shared, load_shared, load_shared_unused
from lbdt_jax.checksums import find_corruption, write_checksums
from lbdt_jax.cli import write_json
from lbdt_jax.config import with_defaults
from lbdt_jax.parallel import is_first_process, put_on_devices
from lbdt_jax.step import TrainState

#: Bytes that `save_weights` writes concurrently; a little more than the largest array.
WRITE_CONCURRENT_BYTES = 16 << 20
#: Limit for each json file. The largest holds a tokenizer, 20 MB for the quarter of a million words of XLM-RoBERTa.
MAX_JSON_BYTES = 64 * 2**20
#: Seconds to wait for each thread of a save that has failed.
ABANDONED_WRITES_TIMEOUT = 30


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What evaluation and prediction need.

    Attributes:
      variables: {"params", "batch_stats"}, float32, on the first device.
      weights: "ema" if they are the moving average, "trained" if they are as the optimizer left them.
      config: the configuration of the training run.
      sentence_encoder: the word vectors of the dataset's words, or the transformer's tokenizer.
      step: number of training steps taken.
      path: the folder of the checkpoint.
    """

    variables: dict[str, Any]
    config: ConfigDict
    sentence_encoder: SentenceEncoder
    step: int
    path: Path
    weights: str = "trained"


# -- Training: save, restore


class CheckpointWriter:
    """Writes checkpoints in the background during training; a context manager.

    The newest ones are kept, see `steps_to_keep`, and the best one that `mark_validated` has named, in this run or
    before. All processes of a run make the same calls; the first one writes.

    Args:
      folder: WORKDIR/checkpoints; created if missing.
      keep: how many checkpoints to keep beside the best one.

    Raises:
      CheckpointError: checkpoints/best.json is broken.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder.absolute(), keep
        self._best, self._validated = read_best(self._folder), frozenset[int]()
        if is_first_process():
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self._folder)
        self._newest = max(finished_steps(self._folder), default=None)
        self._executor = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        # Waits for the save in progress, so that none is lost.
        try:
            self._wait()
        finally:
            self._executor.shutdown()

    def save(self, state: TrainState, config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
        """Starts to save a state under its step; does nothing if that step is the newest checkpoint already.

        Raises:
          CheckpointError: the previous save, or the start of this one, has failed.
        """
        step = int(state.step)
        if step == self._newest:
            return
        self._wait()
        context = ocp.Context()
        # The default writes every array in one piece per device: too slow for hundreds of small arrays.
        context.array.saving.use_replica_parallel = False
        folder, unfinished = self._folder / str(step), self._folder / f"{step}.unfinished"
        with context, _as_checkpoint_error(folder):
            response = ocp.save_checkpointables_async(
                unfinished,
                {
                    "variables": state.variables,
                    "optimizer_state": state.optimizer_state,
                    **({"ema": state.ema} if state.ema else {}),
                    **put_on_devices(_text_arrays(sentence_encoder), state.step.sharding),
                },
                custom_metadata=_metadata(config, sentence_encoder),
            )
        self._newest = step

        def finish() -> None:
            with _as_checkpoint_error(folder):
                response.result()
                if is_first_process():
                    write_checksums(unfinished)
                    unfinished.rename(folder)
                    self._delete_others()
                # The other processes will look for this folder, too.
                asyncio.run(ocp.multihost.sync_global_processes("lbdt_jax_checkpoint", operation_id=str(step)))

        self._pending = self._executor.submit(finish)

    def raise_if_failed(self) -> None:
        """Raises the CheckpointError of a save that has failed; doesn't wait for a save in progress."""
        if self._pending is not None and self._pending.done():
            self._wait()

    @property
    def steps(self) -> list[int]:
        """The steps of the finished checkpoints. Waits for the save in progress."""
        self._wait()
        return finished_steps(self._folder)

    def mark_validated(self, steps: Collection[int], best: dict[str, Any] | None) -> None:
        """Says which checkpoints have a score, and which is the best; deletes those that are no longer to be kept.

        Args:
          steps: the steps of the checkpoints with a score.
          best: for best.json: {"step", "measure", "score"}; None for no best checkpoint.
        """
        self._wait()
        self._validated, self._best = frozenset(steps), best["step"] if best else None
        if is_first_process():
            if best:
                write_json(best, self._folder / BEST_FILE)
            else:
                (self._folder / BEST_FILE).unlink(missing_ok=True)
            self._delete_others()

    def restore(self, state: TrainState, sentence_encoder: SentenceEncoder | None = None) -> TrainState:
        """The newest saved state, sharded like `state`; `state` itself if there is none.

        Args:
          state: a state with the right shapes, dtypes and shardings.
          sentence_encoder: of this run. Its word vectors have to be those of the checkpoint.

        Raises:
          CheckpointError: the checkpoint is broken, belongs to another model, has other word vectors or weights only.
        """
        if self._newest is None:
            return state
        folder = self._folder / str(self._newest)
        _verify_checksums(folder)
        if (folder / "variables").is_dir() and not (folder / "optimizer_state").is_dir():
            raise CheckpointError(
                f"{folder} holds weights but no optimizer state, so training can't resume from it. Train in another "
                f"--workdir, starting from these weights with --config.initial_weights={folder}."
            )
        metadata, stored = _read_metadata(folder)
        if isinstance(sentence_encoder, WordVectors):
            try:
                check_same_vectors(_load_word_vectors(folder, metadata, stored), sentence_encoder)
            except UserError as error:
                raise CheckpointError(f"{folder}: {error}") from error
        template = {"variables": state.variables, "optimizer_state": state.optimizer_state}
        if state.ema:
            template["ema"] = state.ema
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
        restored = _load(folder, stored, abstract)
        return TrainState(
            put_on_devices(np.asarray(self._newest, np.int32), state.step.sharding),
            restored["variables"]["params"],
            restored["variables"]["batch_stats"],
            restored["optimizer_state"],
            restored.get("ema", {}),
        )

    def _delete_others(self) -> None:
        """Deletes what is not to be kept. If that is interrupted, what is left no longer counts as a checkpoint."""
        steps = finished_steps(self._folder)
        for step in sorted({*steps} - steps_to_keep(steps, self._keep, self._validated) - {self._best}):
            deleted = (self._folder / str(step)).rename(self._folder / f"{step}.deleted")
            shutil.rmtree(deleted, ignore_errors=True)  # what is left is deleted when the run resumes

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


@contextlib.contextmanager
def _as_checkpoint_error(folder: Path) -> Iterator[None]:
    """Turns every error of a save into a CheckpointError."""
    try:
        yield
    except Exception as error:  # orbax passes on whatever its storage layers raise
        raise CheckpointError(
            f"The checkpoint {folder} could not be written: {_root_cause(error)}\n"
            "Earlier checkpoints are intact. Once there is space, the same command resumes from the newest of them."
        ) from error


def hide_abandoned_writes() -> None:
    """Silences the tracebacks that orbax leaves behind when a save or a load fails; its CheckpointError remains.

    orbax gives up at the first failure. The event loop of what is pending is then gone, and each of these reads or
    writes would print a traceback.
    """
    _hide_abandoned_tasks()
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


@functools.cache  # once is enough
def _hide_abandoned_tasks() -> None:
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            previous_hook(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").addFilter(
        lambda record: re.search("tensorstore|OCDBT|orbax", record.getMessage()) is None
    )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without orbax's warnings and tracebacks about what is broken: a CheckpointError says it."""
    _hide_abandoned_tasks()
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)


# -- Weights without an optimizer's state: conversion


def save_weights(
    workdir: Path,
    variables: dict[str, Any],
    config: ConfigDict,
    sentence_encoder: SentenceEncoder,
    unused: dict[str, np.ndarray],
    step: int = 0,
    weights: str = "trained",
) -> None:
    """Saves weights as WORKDIR/checkpoints/STEP, together with `unused` arrays that only `load_unused` returns.

    `weights` says which ones they are, see `Checkpoint.weights`.

    Raises:
      OSError: the files can't be written.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False  # it saves a tenth of the space and takes memory
    context.memory.deepcopy_host_arrays = False  # nothing changes during the write
    context.memory.write_concurrent_bytes = WRITE_CONCURRENT_BYTES
    arrays = {"variables": variables, **_text_arrays(sentence_encoder), **({"unused": unused} if unused else {})}
    folder = (workdir / "checkpoints" / str(step)).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)  # if orbax can't make it, the process never ends
    threads = set(threading.enumerate())
    try:
        with context:
            ocp.save_checkpointables(folder, arrays, custom_metadata=_metadata(config, sentence_encoder, weights))
    except Exception as error:  # orbax passes on whatever its storage layers raise
        # Its threads go on writing, and would make the folder again once the caller has deleted it.
        for thread in set(threading.enumerate()) - threads:
            threading.Thread.join(thread, ABANDONED_WRITES_TIMEOUT)  # orbax's own join raises the thread's error
        raise OSError(_root_cause(error)) from error
    write_checksums(folder)


def training_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the training that the newest checkpoint in a folder belongs to; None if there is none.

    Raises:
      UserError: the checkpoint's metadata is broken, or its configuration wrong.
    """
    newest = folder.absolute() / str(max(finished_steps(folder), default=0))
    if not (newest / "optimizer_state").is_dir():  # no checkpoint, or one of weights alone: training can't resume
        return None
    metadata, _ = _read_metadata(newest)
    return with_defaults(metadata.get("config"), str(newest))


def load_unused(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of the published state dict that a converted checkpoint keeps beside our variables, by torch's names.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
    """
    folder = find_checkpoint(Path(path))
    if is_shared(folder):
        return load_shared_unused(folder)
    _verify_checksums(folder, ignore="optimizer_state")
    if not (folder / "unused").is_dir():
        return {}
    _, stored = _read_metadata(folder)
    unused = {"unused": stored.get("unused", {})}
    check_declared(folder, unused, ("float32", "float64", "int64"))
    return _load(folder, stored, unused)["unused"]


# -- Evaluation and prediction: load


def load_checkpoint(path: str | Path, weights: str = "") -> Checkpoint:
    """Loads what evaluation and prediction need onto the first device.

    Args:
      path: a checkpoint's folder; WORKDIR or WORKDIR/checkpoints for the newest checkpoint; WORKDIR/best for the best;
        or a folder to share. See `lbdt_jax.hub.locate_checkpoint` for repositories of the Hugging Face Hub.
      weights: "trained", or "ema" for their moving average. "" for what the checkpoint's config.evaluated_weights says,
        by default the average if there is one.

    Raises:
      CheckpointError: there is no checkpoint, it is broken, or it has no moving average.
    """
    folder = find_checkpoint(Path(path))
    if is_shared(folder):
        return _load_shared(folder, weights)
    _verify_checksums(folder, ignore="optimizer_state")
    metadata, stored = _read_metadata(folder)
    variables = {name: stored[name] for name in ("variables", "ema") if stored.get(name)}
    if not by_name(variables.get("variables", {})):
        raise CheckpointError(broken_message(folder, "It holds no weights, or the json that describes them is broken."))
    check_declared(folder, variables)
    try:
        config = ConfigDict(with_defaults(metadata.get("config"), str(folder)))
        sentence_encoder: SentenceEncoder
        if metadata.get("tokenizer"):
            sentence_encoder = tokenizer_for(config, metadata["tokenizer"])
        else:
            sentence_encoder = _load_word_vectors(folder, metadata, stored, config.word_vectors)
        expected = expected_shapes(config, sentence_encoder.size)
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{folder}: {str(error).removeprefix(f'{folder}: ')}") from error
    for part in variables.values():
        for name, shape in shapes(part).items():
            if expected.get(name) != shape:
                raise CheckpointError(misfit_message(folder, name, shape, expected.get(name)))
    held = ("trained", "ema") if "ema" in variables else (metadata.get("weights", "trained"),)
    if any(name not in ("trained", "ema") for name in held):
        raise CheckpointError(broken_message(folder, "Its json doesn't say which weights it holds."))
    weights = _choose_weights(folder, weights, config, held)
    if weights == "trained":
        variables.pop("ema", None)
    loaded = _load(folder, stored, _on_first_device(variables))
    check_finite(folder, loaded)
    # The average has no frozen transformer.
    chosen = unflatten_dict(flatten_dict(loaded["variables"]) | flatten_dict(loaded.get("ema", {})))
    return Checkpoint(chosen, config, sentence_encoder, int(folder.name), folder, weights)


def _load_shared(folder: Path, requested: str) -> Checkpoint:
    """`load_checkpoint` of a folder to share."""
    shared = load_shared(folder)
    _choose_weights(folder, requested, shared.config, (shared.weights,))
    variables = jax.device_put(shared.variables, jax.local_devices()[0])
    return Checkpoint(variables, shared.config, shared.sentence_encoder, shared.step, folder, shared.weights)


def _choose_weights(folder: Path, requested: str, config: ConfigDict, held: tuple[str, ...]) -> str:
    """ "trained" or "ema", see `load_checkpoint`; `held` are those that the folder holds, one or both.

    Raises:
      CheckpointError: it doesn't hold those that are requested.
    """
    if len(held) > 1:
        return requested or config.evaluated_weights or "ema"
    if requested in ("", *held):
        return held[0]
    if held == ("ema",):
        reason = "holds the moving average of the weights alone"
    elif config.ema_decay:
        reason = "holds the weights as trained alone"
    else:
        reason = "holds no moving average of the weights: it was trained without config.ema_decay"
    raise CheckpointError(f"{folder} {reason}. Leave config.evaluated_weights empty.")


# -- The content of a checkpoint


def _text_arrays(sentence_encoder: SentenceEncoder) -> dict[str, dict[str, jax.Array]]:
    """The word vectors to save, if there are any."""
    if not isinstance(sentence_encoder, WordVectors):
        return {}
    # orbax can't write an empty array: without words, save one row, which `load_checkpoint` cuts off.
    vectors = sentence_encoder.vectors if sentence_encoder.words else np.zeros((1, sentence_encoder.size), np.float32)
    return {"word_vectors": {"vectors": jnp.asarray(vectors)}}


def _metadata(config: ConfigDict, sentence_encoder: SentenceEncoder, weights: str = "trained") -> dict[str, Any]:
    """The json of a checkpoint: {"config", "words", "weights"}, and "tokenizer" of a transformer.

    "weights" are those under "variables"; beside them, a training's checkpoint may hold their moving average.
    """
    metadata: dict[str, Any] = {"config": json.loads(config.to_json()), "words": [], "weights": weights}
    if isinstance(sentence_encoder, TransformerTokenizer):
        metadata["tokenizer"] = sentence_encoder.text
    elif isinstance(sentence_encoder, WordVectors):
        metadata["words"] = list(sentence_encoder.words)
    return metadata


def _read_metadata(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our own json, and the shapes and dtypes of the stored arrays as orbax's objects, nested like the arrays.

    Raises:
      CheckpointError: the folder is not a checkpoint of lbdt_jax, or its json is broken or too large.
    """
    try:
        for pattern in ("_CHECKPOINT_METADATA", "*/_METADATA", "*/_sharding", "*/array_metadatas/*"):
            for path in folder.glob(pattern):
                check_regular_file(path, MAX_JSON_BYTES)
        with _quiet_orbax():
            stored = ocp.checkpointables_metadata(folder)
        metadata, arrays = stored.custom_metadata, dict(stored.metadata)
        if not isinstance(metadata, dict):
            raise ValueError("it has no configuration")
        return metadata, arrays
    except Exception as error:  # orbax passes on whatever its storage layers raise
        reason = str(error) if isinstance(error, ValueError) else _root_cause(error)
        raise CheckpointError(f"{folder} was not written by lbdt_jax, or its metadata is broken: {reason}") from error


def _load_word_vectors(folder: Path, metadata: dict[str, Any], stored: dict[str, Any], source: str = "") -> WordVectors:
    """Loads the words and vectors of a checkpoint; `source` says where they are from. Raises CheckpointError."""
    words = metadata.get("words")
    if not are_words(words):
        raise CheckpointError(broken_message(folder, "Its list of words is broken."))
    arrays = {"word_vectors": stored.get("word_vectors", {})}
    check_declared(folder, arrays)
    found = shapes(arrays["word_vectors"])
    # Without words, a row is stored that stands for none.
    if found.keys() != {"vectors"} or len(found["vectors"]) != 2 or found["vectors"][0] != max(1, len(words)):
        reason = f"word_vectors: expected vectors of {len(words)} words, found {found or 'nothing'}"
        raise CheckpointError(broken_message(folder, reason))
    if not 1 <= found["vectors"][1] <= MAX_SIZE:
        raise CheckpointError(broken_message(folder, f"word_vectors: vectors of size {found['vectors'][1]}"))
    loaded = _load(folder, stored, _on_first_device(arrays))
    check_finite(folder, loaded)
    return WordVectors(tuple(words), np.asarray(loaded["word_vectors"]["vectors"])[: len(words)], source)


def _on_first_device(arrays: dict[str, Any]) -> dict[str, Any]:
    """The same shapes and dtypes, for arrays on this process's first device; float64 only where JAX has it."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    dtype = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype(x.dtype), sharding=sharding), arrays)


def _load(folder: Path, stored: dict[str, Any], abstract: dict[str, Any]) -> dict[str, Any]:
    """Loads the arrays that `abstract` describes, `stored` is what `_read_metadata` has returned about all of them.

    Raises:
      CheckpointError: their shapes or dtypes differ, or reading fails.
    """
    try:
        declared = by_name(stored)
        for name, expected in by_name(abstract).items():
            found = declared.get(name)
            # float64, which training with 64 bits writes, becomes float32 without them.
            dtypes = () if found is None else (found.dtype, jax.dtypes.canonicalize_dtype(found.dtype))
            if found is None or found.shape != expected.shape or expected.dtype not in dtypes:
                description = "nothing" if found is None else f"{found.dtype} {found.shape}"
                raise ValueError(f"{name}: expected {expected.dtype}, shape {expected.shape}, found {description}")
            chunks = getattr(getattr(found, "storage_metadata", None), "chunk_shape", None) or ()
            if any(chunk > max(1, size) for chunk, size in zip(chunks, found.shape, strict=True)):
                raise ValueError(f"{name}: shape {found.shape} is stored in chunks of shape {tuple(chunks)}")
        with _quiet_orbax():
            return ocp.load_checkpointables(folder, abstract)
    except Exception as error:  # orbax passes on whatever its storage layers raise
        raise CheckpointError(broken_message(folder, _root_cause(error))) from error


def _verify_checksums(folder: Path, ignore: str | None = None) -> None:
    """Raises CheckpointError if a file outside the subfolder `ignore` is missing, was changed or is not listed."""
    corruption = find_corruption(folder, ignore)
    if corruption:
        raise CheckpointError(broken_message(folder, corruption))


def _root_cause(error: BaseException) -> str:
    """Type and first line of the exception that caused an error, without tensorstore's own details."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = str(error).splitlines()[0] if str(error) else ""
    system_error = re.search(r"\[os_error_code='(\d+)'", first_line)
    if system_error:
        return f"OSError: {os.strerror(int(system_error[1]))}"
    return f"{type(error).__name__}: {first_line.partition(' [tensorstore_spec=')[0][:500]}"
