"""Self-describing checkpoints. The only file that imports orbax.

A folder WORKDIR/checkpoints/<step> holds the model's variables, the optimizer's state, the configuration and what
encodes sentences: the dataset's words with their vectors, or a transformer's tokenizer. Prediction needs nothing else.
orbax writes arrays and json, no pickles, and never lists an unfinished checkpoint. Since it doesn't notice corrupted
bytes, the files are compared with their checksums before they are read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from configs import base
from input_pipeline.errors import UserError
from input_pipeline.text.encoders import SentenceEncoder, TransformerTokenizer
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checksums import find_corruption, write_checksums
from lbdt_jax.parallel import is_first_process, put_on_devices
from lbdt_jax.step import TrainState

#: Bytes that `save_weights` writes concurrently; a little more than the largest array.
WRITE_CONCURRENT_BYTES = 16 << 20


class CheckpointError(UserError):
    """A checkpoint is missing, broken or incompatible. The message names the folder and says what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What evaluation and prediction need.

    Attributes:
      variables: {"params", "batch_stats"}, float32, on the first device.
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


# -- Training: save, restore


class CheckpointWriter:
    """Writes checkpoints in the background during training and keeps the newest ones; a context manager.

    All processes of a run make the same calls; the first one writes.

    Args:
      folder: WORKDIR/checkpoints; created if missing.
      keep: how many checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=policy, cleanup_tmp_directories=True
        )
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
            with contextlib.suppress(Exception):  # the error of a failed save, a second time
                self._checkpointer.close()

    def save(self, state: TrainState, config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
        """Starts to save a state under its step; does nothing if that step is the newest checkpoint already.

        Raises:
          CheckpointError: the previous save, or the start of this one, has failed.
        """
        step = int(state.step)
        latest = self._checkpointer.latest
        if latest is not None and latest.step == step:
            return
        self._wait()
        context = ocp.Context()
        # The default writes every array in one piece per device: too slow for hundreds of small arrays.
        context.array.saving.use_replica_parallel = False
        folder = self._folder(step)
        with context, _as_checkpoint_error(folder):
            response = self._checkpointer.save_checkpointables_async(
                step,
                {
                    "variables": state.variables,
                    "optimizer_state": state.optimizer_state,
                    **put_on_devices(_text_arrays(sentence_encoder), state.step.sharding),
                },
                custom_metadata=_metadata(config, sentence_encoder),
                force=True,
            )

        def finish() -> None:
            with _as_checkpoint_error(folder):
                response.result()
                if is_first_process():
                    write_checksums(folder)

        self._pending = self._executor.submit(finish)

    def raise_if_failed(self) -> None:
        """Raises the CheckpointError of a save that has failed; doesn't wait for a save in progress."""
        if self._pending is not None and self._pending.done():
            self._wait()

    def restore(self, state: TrainState) -> TrainState:
        """The newest saved state, sharded like `state`; `state` itself if there is none.

        Raises:
          CheckpointError: the checkpoint is broken, belongs to another model, or has weights only.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return state
        folder = self._folder(latest.step)
        _verify_checksums(folder)
        if (folder / "variables").is_dir() and not (folder / "optimizer_state").is_dir():
            raise CheckpointError(
                f"{folder} holds weights but no optimizer state, so training can't resume from it. Train in another "
                f"--workdir, starting from these weights with --config.initial_weights={folder}."
            )
        template = {"variables": state.variables, "optimizer_state": state.optimizer_state}
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
        restored = _load(folder, abstract)
        return TrainState(
            put_on_devices(np.asarray(latest.step, np.int32), state.step.sharding),
            restored["variables"]["params"],
            restored["variables"]["batch_stats"],
            restored["optimizer_state"],
        )

    def _folder(self, step: int) -> Path:
        return Path(self._checkpointer.directory) / str(step)

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
    """Silences the tracebacks that orbax leaves behind when a save fails; its CheckpointError remains.

    orbax gives up at the first failed write. The event loop of the pending writes is then gone, and each of them would
    print a traceback.
    """
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            previous_hook(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


# -- Weights without an optimizer's state: conversion


def save_weights(
    workdir: Path,
    variables: dict[str, Any],
    config: ConfigDict,
    sentence_encoder: SentenceEncoder,
    unused: dict[str, np.ndarray],
    step: int = 0,
) -> None:
    """Saves weights as WORKDIR/checkpoints/STEP, together with `unused` arrays that only `load_unused` returns."""
    context = ocp.Context()
    context.array.saving.use_compression = False  # it saves a tenth of the space and takes memory
    context.memory.deepcopy_host_arrays = False  # nothing changes during the write
    context.memory.write_concurrent_bytes = WRITE_CONCURRENT_BYTES
    arrays = {"variables": variables, **_text_arrays(sentence_encoder), **({"unused": unused} if unused else {})}
    folder = (workdir / "checkpoints" / str(step)).absolute()
    with context:
        ocp.save_checkpointables(folder, arrays, custom_metadata=_metadata(config, sentence_encoder))
    write_checksums(folder)


def load_unused(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of the published state dict that a converted checkpoint keeps beside our variables, by torch's names.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
    """
    folder = find_checkpoint(Path(path))
    _verify_checksums(folder, ignore="optimizer_state")
    if not (folder / "unused").is_dir():
        return {}
    return _load(folder, {"unused": ocp.checkpointables_metadata(folder).metadata["unused"]})["unused"]


# -- Evaluation and prediction: load


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Loads what evaluation and prediction need onto the first device.

    Args:
      path: a checkpoint's folder; or WORKDIR or WORKDIR/checkpoints for its newest checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
    """
    folder = find_checkpoint(Path(path))
    _verify_checksums(folder, ignore="optimizer_state")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        stored = ocp.checkpointables_metadata(folder)
        metadata = stored.custom_metadata
        config = ConfigDict(with_defaults(metadata["config"]))
        words, tokenizer = tuple(metadata["words"]), metadata.get("tokenizer")
        abstract = {
            name: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), stored.metadata[name]
            )
            for name in ("variables", *(() if tokenizer else ("word_vectors",)))
        }
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder} was not written by lbdt_jax, or its metadata is broken: {error}") from error
    arrays = _load(folder, abstract)
    sentence_encoder: SentenceEncoder
    if tokenizer:
        try:
            sentence_encoder = TransformerTokenizer(tokenizer, config.model.transformer.padding_id)
        except (UserError, AttributeError) as error:
            raise CheckpointError(f"{folder}: {error}") from error
    else:
        sentence_encoder = WordVectors(words, np.asarray(arrays["word_vectors"]["vectors"])[: len(words)])
    return Checkpoint(arrays["variables"], config, sentence_encoder, int(folder.name), folder)


def find_checkpoint(path: Path) -> Path:
    """The folder of the checkpoint at `path` (see `load_checkpoint`). Raises CheckpointError if there is none."""
    if path.name.isdecimal() and path.is_dir() and not (path / "checkpoints").is_dir():
        return path.absolute()
    for folder in (path / "checkpoints", path):
        if folder.is_dir():
            # Only the folder of a finished checkpoint has a bare step as its name.
            steps = [entry for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir()]
            if steps:
                return max(steps, key=lambda entry: int(entry.name)).absolute()
    raise CheckpointError(f"No checkpoint in {path}. Train first, or pass a folder that holds one.")


def has_checkpoint(workdir: Path) -> bool:
    """Whether WORKDIR holds a checkpoint from which training resumes."""
    try:
        find_checkpoint(workdir / "checkpoints")
    except CheckpointError:
        return False
    return True


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration read from json, with the defaults of fields that were added since it was written."""
    defaults = json.loads(base.get_config().to_json())
    return {**defaults, **config, "model": {**defaults["model"], **config.get("model", {})}}


def shapes(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every array, by its name such as "params/head/project/bias"."""
    # By name, since orbax describes optax's named tuples as dictionaries.
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


# -- The content of a checkpoint


def _text_arrays(sentence_encoder: SentenceEncoder) -> dict[str, dict[str, jax.Array]]:
    """The word vectors to save, if there are any."""
    if not isinstance(sentence_encoder, WordVectors):
        return {}
    # orbax can't write an empty array: without words, save one row, which `load_checkpoint` cuts off.
    vectors = sentence_encoder.vectors if sentence_encoder.words else np.zeros((1, sentence_encoder.size), np.float32)
    return {"word_vectors": {"vectors": jnp.asarray(vectors)}}


def _metadata(config: ConfigDict, sentence_encoder: SentenceEncoder) -> dict[str, Any]:
    """The json of a checkpoint: {"config", "words"}, and "tokenizer" of a transformer."""
    metadata: dict[str, Any] = {"config": json.loads(config.to_json()), "words": []}
    if isinstance(sentence_encoder, TransformerTokenizer):
        metadata["tokenizer"] = sentence_encoder.text
    elif isinstance(sentence_encoder, WordVectors):
        metadata["words"] = list(sentence_encoder.words)
    return metadata


def _load(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """Loads the arrays that `abstract` describes. Raises CheckpointError if their shapes differ, or reading fails."""
    try:
        stored = shapes(dict(ocp.checkpointables_metadata(folder).metadata))
        for name, shape in shapes(abstract).items():
            if stored.get(name) != shape:
                raise ValueError(f"{name}: expected shape {shape}, found {stored.get(name, 'nothing')}")
        return ocp.load_checkpointables(folder, abstract)
    except Exception as error:  # orbax passes on whatever its storage layers raise
        raise CheckpointError(_broken_message(folder, _root_cause(error))) from error


def _verify_checksums(folder: Path, ignore: str | None = None) -> None:
    """Raises CheckpointError if a file outside the subfolder `ignore` is missing or was changed."""
    # If a run was killed just after a save, its newest checkpoint may be complete and have no checksums yet.
    corruption = find_corruption(folder, ignore)
    if corruption:
        raise CheckpointError(_broken_message(folder, corruption))


def _broken_message(folder: Path, reason: str) -> str:
    return (
        f"The checkpoint {folder} is broken or of another model. Use an earlier one, or delete that folder to resume "
        f"from the one before.\n{reason}"
    )


def _root_cause(error: BaseException) -> str:
    """Type and first line of the exception that caused an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
