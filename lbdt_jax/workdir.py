"""The folder of a training run: its lock, its configuration and TensorBoard's event file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clu.metric_writers import MetricWriter, MultiWriter, SummaryWriter
from ml_collections import ConfigDict

from input_pipeline.datasets import training_datasets
from input_pipeline.errors import UserError
from input_pipeline.record_index import INDEX_FILE
from input_pipeline.report import records_dir
from lbdt_jax.checkpoint import CheckpointError, training_config
from lbdt_jax.cli import lock, read_json_or_none, write_json
from lbdt_jax.config import load_config
from lbdt_jax.parallel import broadcast_from_first_process, is_first_process

#: Limit for records.json, which has a line for each dataset.
MAX_JSON_BYTES = 2**20

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
    "evaluat",
    "contact_sheet",
    "published",
    "validation",
    "best_measure",
)


def check_and_save_config(config: ConfigDict, path: Path) -> None:
    """Writes the configuration; if there is one already, first checks that it describes the same run.

    Without the file, for example where only the checkpoints were copied, the newest checkpoint tells it.

    Raises:
      CheckpointError: names the fields that differ.
    """
    new = json.loads(config.to_json())
    old = load_config(path) if path.exists() else training_config(path.parent / "checkpoints")
    if old is not None:
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


def check_and_save_records(config: ConfigDict, path: Path) -> None:
    """Writes the checksums of the training datasets' indexes; if there are some already, first checks that they agree.

    Raises:
      CheckpointError: names the records that have changed since the run began.
    """
    folders = {name: records_dir(config.data_dir, name) for name in training_datasets(config)}
    new = {
        name: hashlib.sha256((folder / INDEX_FILE).read_bytes()).hexdigest()
        for name, folder in folders.items()
        if (folder / INDEX_FILE).exists()  # version 0.1.0 made none
    }
    content = read_json_or_none(path, MAX_JSON_BYTES)
    old = content if isinstance(content, dict) else {}
    changed = [str(folders[name]) for name in new if old.get(name, new[name]) != new[name]]
    if changed:
        raise CheckpointError(
            f"{path.parent} holds a run that was trained on other records than those in {' and '.join(changed)}. "
            "Choose another --workdir, or delete it; --mode=evaluate evaluates it."
        )
    if is_first_process():
        write_json(new, path)


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


@contextlib.contextmanager
def open_workdir(config: ConfigDict, workdir: Path, unknown_words: list[str]) -> Iterator[MetricWriter]:
    """Locks WORKDIR, writes the files that describe the run, and opens TensorBoard's event file.

    Only the first process does; in the others, the writer does nothing. The lock ends with the process, even a killed
    one.

    Raises:
      UserError: another run trains into WORKDIR, its config.json can't be read, or the event file can't be written.
      CheckpointError: WORKDIR holds a run with another configuration or other data.
    """
    with contextlib.ExitStack() as stack:
        refusal = ""
        if is_first_process():
            workdir.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
                stack.callback(os.close, descriptor)
                lock(descriptor, workdir)
            except UserError as error:
                refusal = f"{error} Or choose another --workdir."
        if broadcast_from_first_process(bool(refusal)):  # no process waits for others that have left
            raise UserError(refusal or "Another run trains into the same workdir.")
        check_and_save_config(config, workdir / "config.json")
        check_and_save_records(config, workdir / "records.json")
        if not is_first_process():
            yield MultiWriter([])
            return
        write_json(unknown_words, workdir / "words_without_vector.json")
        with _event_file_errors(workdir), contextlib.closing(SummaryWriter(str(workdir))) as writer:
            yield writer


@contextlib.contextmanager
def _event_file_errors(workdir: Path) -> Iterator[None]:
    """Turns TensorFlow's errors about the event file, mostly a full disk, into a UserError."""
    from tensorflow import errors

    try:
        yield
    except errors.OpError as error:
        if isinstance(error.__context__, UserError):  # the same disk ended the run, and now can't take the last events
            raise error.__context__ from None
        if "tfevents" not in str(error):
            raise
        reason = str(error).splitlines()[0].rpartition("; ")[2]
        raise UserError(f"{workdir}: TensorBoard's event file can't be written: {reason}.") from error
