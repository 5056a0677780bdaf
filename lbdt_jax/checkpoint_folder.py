"""The folder WORKDIR/checkpoints: which checkpoints it holds, which of them are kept, which is the newest or the best.

A checkpoint is a folder whose name is its step. best.json, {"step", "measure", "score"}, names the best one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from input_pipeline.files import read_limited
from lbdt_jax.checkpoint_checks import CheckpointError
from lbdt_jax.checkpoint_shared import describe_foreign, is_shared

#: WORKDIR/BEST stands for the best checkpoint. The file in the folder checkpoints that names its step has 100 bytes.
BEST, BEST_FILE, MAX_BEST_BYTES = "best", "best.json", 4096


def finished_steps(folder: Path) -> list[int]:
    """The steps of the finished checkpoints in a folder: only their folders have bare steps as names."""
    if not folder.is_dir():
        return []
    return [int(entry.name) for entry in folder.iterdir() if is_step(entry.name) and entry.is_dir()]


def is_step(name: str) -> bool:
    """Whether a name is that of a finished checkpoint's folder: a number without leading zeros."""
    return re.fullmatch(r"0|[1-9]\d{0,8}", name, re.ASCII) is not None  # below 2**31


def checkpoint_name(path: Path, workdir: Path) -> str:
    """A checkpoint's name in the results of WORKDIR: "checkpoints/STEP" for one of its own, else the whole path."""
    path, workdir = path.resolve(), workdir.resolve()
    return str(path.relative_to(workdir) if path.is_relative_to(workdir) else path)


def remove_unfinished(folder: Path) -> None:
    """Deletes what is left of saves and deletions that were interrupted, also those of earlier versions."""
    for entry in folder.iterdir():
        if re.fullmatch(r"\d+\.(unfinished|deleted|orbax-checkpoint-tmp).*", entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def steps_to_keep(steps: Collection[int], keep: int, validated: Collection[int]) -> set[int]:
    """The steps of the newest checkpoint and of keep - 1 others: the newest with a score, then the newest without."""
    newest = max(steps, default=None)
    return {*sorted(steps, key=lambda step: (step == newest, step in validated, step))[-keep:]}


def read_best(folder: Path) -> int | None:
    """The step in the best.json of a folder of checkpoints; None without it. Raises CheckpointError if it's broken."""
    path = folder / BEST_FILE
    if not path.exists():
        return None
    try:
        best = json.loads(read_limited(path, MAX_BEST_BYTES))
        step = best.get("step") if isinstance(best, dict) else None
        if not isinstance(step, int) or not is_step(str(step)):
            raise ValueError("it names no step")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is broken: {error}. Delete it, and choose a checkpoint by its number; a training that validates "
            "writes it anew."
        ) from error
    return step


def find_checkpoint(path: Path) -> Path:
    """The folder of the checkpoint at `path` (see `load_checkpoint`). Raises CheckpointError if there is none."""
    path = resolve_best(path)
    if is_shared(path):
        return path.absolute()
    if is_step(path.name) and path.is_dir() and not (path / "checkpoints").is_dir():
        return path.absolute()
    for folder in (path / "checkpoints", path):
        steps = finished_steps(folder)
        if steps:
            return (folder / str(max(steps))).absolute()
    raise CheckpointError(f"No checkpoint in {path}. {describe_foreign(path)}")


def resolve_best(path: Path) -> Path:
    """The folder of the best checkpoint for WORKDIR/best and WORKDIR/checkpoints/best; any other path as it is.

    Raises:
      CheckpointError: there is no best checkpoint.
    """
    if path.name != BEST or path.exists():
        return path
    path = path.parent
    for folder in (path / "checkpoints", path):
        step = read_best(folder)
        if step is None:
            continue
        if step not in finished_steps(folder):
            raise CheckpointError(f"{folder / BEST_FILE} names the checkpoint {step}, which is not there.")
        return (folder / str(step)).absolute()
    raise CheckpointError(
        f"No best checkpoint in {path}: there is no checkpoints/{BEST_FILE}. A training with "
        "config.validation_every_epochs or config.validation_every_steps marks one."
    )


def has_checkpoint(workdir: Path) -> bool:
    """Whether WORKDIR holds a checkpoint from which training resumes."""
    try:
        find_checkpoint(workdir / "checkpoints")
    except CheckpointError:
        return False
    return True
