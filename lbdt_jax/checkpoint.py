"""Checkpoints that describe themselves. The only file that knows orbax.

A folder WORKDIR/checkpoints/<step> holds the model's variables, the optimizer's state, the word vectors of every
known word and, as json, the words and the configuration; of a transformer its tokenizer in the place of words and
vectors. Prediction needs nothing else. orbax writes arrays and json, no pickles; a checkpoint that was not finished is
never listed. SHA256SUMS, in the format of the program sha256sum, is checked before anything is read: orbax alone would
not notice a flipped byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
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
from lbdt_jax.parallel import put
from lbdt_jax.step import TrainState

#: Bytes of bare weights that are in the hands of the disk at once; a little more than the largest array.
WRITTEN_AT_ONCE = 16 << 20

CHECKSUMS = "SHA256SUMS"


class CheckpointError(UserError):
    """A checkpoint that is missing, broken or does not fit. The message names the folder and says what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What evaluation and prediction need.

    Attributes:
      variables: {"params", "batch_stats"}, float32, on the first device.
      config: the configuration that it was trained with.
      sentence_encoder: the word vectors of every word of the data set, or the transformer's tokenizer.
      step: training steps taken.
      path: the folder it came from.
    """

    variables: dict[str, Any]
    config: ConfigDict
    sentence_encoder: SentenceEncoder
    step: int
    path: Path


class CheckpointWriter:
    """Writes checkpoints while training goes on, and keeps the newest few; a context manager.

    All processes of a run make the same calls; the first of them writes.

    Args:
      folder: WORKDIR/checkpoints; made if it is not there.
      keep: how many are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=policy, cleanup_tmp_directories=True
        )
        self._background = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        # Waits for the save in progress, so that leaving never loses one.
        try:
            self._wait()
        finally:
            self._background.shutdown()
            with contextlib.suppress(Exception):  # what a save has raised, once more
                self._checkpointer.close()

    def save(self, state: TrainState, config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
        """Saves a state under its step, in the background; does nothing if that step is there already.

        Raises:
          CheckpointError: the save before, or the beginning of this one, has failed.
        """
        step = int(state.step)
        latest = self._checkpointer.latest
        if latest is not None and latest.step == step:
            return
        self._wait()
        context = ocp.Context()
        # Else every array is cut into a piece per device, which for hundreds of small ones takes longer than writing.
        context.array.saving.use_replica_parallel = False
        folder = Path(self._checkpointer.directory) / str(step)
        with context, _explained(folder):
            saving = self._checkpointer.save_checkpointables_async(
                step,
                {
                    "variables": state.variables,
                    "optimizer_state": state.optimizer_state,
                    **put(_stored(sentence_encoder), state.step.sharding),
                },
                custom_metadata=_described(config, sentence_encoder),
                force=True,
            )

        def finish() -> None:
            with _explained(folder):
                saving.result()
                if jax.process_index() == 0:
                    _write_checksums(folder)

        self._last = self._background.submit(finish)

    def raise_what_failed(self) -> None:
        """Raises the CheckpointError of a save that has failed in the background, without waiting for one under way."""
        if self._last is not None and self._last.done():
            self._wait()

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def restore(self, state: TrainState) -> TrainState:
        """The newest state, on the devices of `state`; `state` itself if there is none.

        Raises:
          CheckpointError: the checkpoint is broken or of another model, or was converted and can't be gone on from.
        """
        latest = self._checkpointer.latest
        if latest is None:
            return state
        wanted = {"variables": state.variables, "optimizer_state": state.optimizer_state}
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
        folder = Path(self._checkpointer.directory) / str(latest.step)
        _check(folder)
        if (folder / "variables").is_dir() and not (folder / "optimizer_state").is_dir():
            raise CheckpointError(
                f"{folder} holds weights only, no optimizer's state to go on from. Train in another --workdir, from "
                f"these weights with --config.initial_weights={folder}."
            )
        restored = _load(folder, abstract)
        return TrainState(
            put(np.asarray(latest.step, np.int32), state.step.sharding),
            restored["variables"]["params"],
            restored["variables"]["batch_stats"],
            restored["optimizer_state"],
        )


def save_weights(
    workdir: Path,
    variables: dict[str, Any],
    config: ConfigDict,
    sentence_encoder: SentenceEncoder,
    unused: dict[str, np.ndarray],
    step: int = 0,
) -> None:
    """Saves weights alone as WORKDIR/checkpoints/STEP, with `unused`, which comes back from `load_unused` only."""
    context = ocp.Context()
    # Nothing changes while it is written, so neither copies nor much of it at once are needed.
    context.array.saving.use_compression = False  # weights shrink by a tenth, and it takes memory
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = WRITTEN_AT_ONCE
    saved = {"variables": variables, **_stored(sentence_encoder)}
    folder = (workdir / "checkpoints" / str(step)).absolute()
    with context:
        ocp.save_checkpointables(
            folder,
            {**saved, "unused": unused} if unused else saved,
            custom_metadata=_described(config, sentence_encoder),
        )
    _write_checksums(folder)


def load_unused(path: str | Path) -> dict[str, np.ndarray]:
    """What a converted checkpoint keeps of the published state dict beside our variables: torch's name -> array.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
    """
    folder = find_checkpoint(Path(path))
    _check(folder, without="optimizer_state")
    if not (folder / "unused").is_dir():
        return {}
    return _load(folder, {"unused": ocp.checkpointables_metadata(folder).metadata["unused"]})["unused"]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Loads what evaluation and prediction need, onto the first device.

    Args:
      path: a checkpoint's folder, or WORKDIR/checkpoints or WORKDIR for the newest one in it.

    Raises:
      CheckpointError: there is none, or it is broken.
    """
    folder = find_checkpoint(Path(path))
    _check(folder, without="optimizer_state")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    try:
        metadata = ocp.checkpointables_metadata(folder)
        described = metadata.custom_metadata
        config = ConfigDict(with_defaults(described["config"]))
        words, tokenizer = tuple(described["words"]), described.get("tokenizer")
        abstract = {
            name: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), metadata.metadata[name]
            )
            for name in ("variables", *(() if tokenizer else ("word_vectors",)))
        }
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder} was not written by lbdt_jax, or its description is broken: {error}") from error
    restored = _load(folder, abstract)
    reader: SentenceEncoder
    if tokenizer:
        try:
            reader = TransformerTokenizer(tokenizer, config.model.transformer.padding_id)
        except (UserError, AttributeError) as error:
            raise CheckpointError(f"{folder}: {error}") from error
    else:
        reader = WordVectors(words, np.asarray(restored["word_vectors"]["vectors"])[: len(words)])
    return Checkpoint(restored["variables"], config, reader, int(folder.name), folder)


def with_defaults(described: dict[str, Any]) -> dict[str, Any]:
    """A configuration that was written as json; fields that came later have their usual values."""
    usual = json.loads(base.get_config().to_json())
    return {**usual, **described, "model": {**usual["model"], **described.get("model", {})}}


def find_checkpoint(path: Path) -> Path:
    """The folder of the checkpoint that `path` means. Raises CheckpointError if there is none."""
    if path.name.isdecimal() and path.is_dir() and not (path / "checkpoints").is_dir():
        return path.absolute()
    for folder in (path / "checkpoints", path):
        if folder.is_dir():
            # A finished checkpoint's folder is named by its step alone.
            steps = [entry for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir()]
            if steps:
                return max(steps, key=lambda entry: int(entry.name)).absolute()
    raise CheckpointError(f"No checkpoint in {path}. Train first, or point to a folder that holds one.")


def has_checkpoint(workdir: Path) -> bool:
    """Whether training goes on from a checkpoint in WORKDIR."""
    try:
        find_checkpoint(workdir / "checkpoints")
    except CheckpointError:
        return False
    return True


def _stored(sentence_encoder: SentenceEncoder) -> dict[str, dict[str, jax.Array]]:
    """The arrays that belong to it, as a part of a checkpoint."""
    if not isinstance(sentence_encoder, WordVectors):
        return {}
    # orbax can't write an array without elements: where there are no words, a row that reading cuts off.
    vectors = sentence_encoder.vectors if sentence_encoder.words else np.zeros((1, sentence_encoder.size), np.float32)
    return {"word_vectors": {"vectors": jnp.asarray(vectors)}}


def _described(config: ConfigDict, sentence_encoder: SentenceEncoder) -> dict[str, Any]:
    described = {"config": json.loads(config.to_json()), "words": []}
    if isinstance(sentence_encoder, TransformerTokenizer):
        return {**described, "tokenizer": sentence_encoder.text}
    return {**described, "words": list(sentence_encoder.words)}


def _load(folder: Path, abstract: dict[str, Any]) -> dict[str, Any]:
    try:
        stored = shapes(dict(ocp.checkpointables_metadata(folder).metadata))
        wanted = shapes(abstract)
        for name, shape in wanted.items():
            if stored.get(name) != shape:
                raise ValueError(f"{name}: {shape} is wanted, {stored.get(name, 'nothing')} is there")
        return ocp.load_checkpointables(folder, abstract)
    except Exception as error:  # orbax passes on whatever its storage layers raise
        raise CheckpointError(_broken(folder, _first_line(error))) from error


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns whatever stops a save into a CheckpointError."""
    try:
        yield
    except Exception as error:  # orbax passes on whatever its storage layers raise
        raise CheckpointError(
            f"The checkpoint {folder} could not be written: {_first_line(error)}\n"
            "Earlier ones are whole. When there is room again, the same command goes on from the newest of them."
        ) from error


def hide_abandoned_writes() -> None:
    """Has a save that fails print nothing but its CheckpointError.

    orbax gives up at the first write that fails. Those under way would each print a traceback, since their event loop
    is gone.
    """
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            others(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _broken(folder: Path, reason: str) -> str:
    return (
        f"The checkpoint {folder} is broken or of another model. Use an earlier one, or delete that folder to go on "
        f"from the one before.\n{reason}"
    )


def shapes(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its name, "params/head/project/bias"."""
    # Names alone: orbax describes optax's named tuples as dictionaries.
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def _write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS into a finished checkpoint."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    unfinished = folder / f"{CHECKSUMS}.unfinished"
    unfinished.write_text("".join(f"{_checksum(folder / name)}  {name}\n" for name in names))
    unfinished.replace(folder / CHECKSUMS)


def _check(folder: Path, without: str | None = None) -> None:
    """Compares the files with their checksums, those of the part `without` left out.

    A run that was killed may have left no checksums for its newest checkpoint, which is whole nevertheless.

    Raises:
      CheckpointError: a file is missing or was changed.
    """
    if not (folder / CHECKSUMS).is_file():
        return
    for line in (folder / CHECKSUMS).read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if name.split("/")[0] == without:
            continue
        if not (folder / name).is_file():
            raise CheckpointError(_broken(folder, f"{name} is missing."))
        if _checksum(folder / name) != expected:
            raise CheckpointError(_broken(folder, f"{name} was changed since it was written."))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
