"""The folder of a prediction: its settings, and the masks of every frame as they are predicted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.coco_masks import check_rle
from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, open_regular_file, read_limited
from lbdt_jax.cli import lock, remove_unfinished, unfinished_files, write_json

_MAX_SETTINGS = 2**24  # bytes of settings.json; a command line has at most 2 MB
_NEW_SETTINGS = ("checkpoint_sha256",)  # runs of earlier versions lack them, and are resumed without a comparison
_MAX_LINE = 2**26  # bytes of a line of masks.jsonl; the most intricate mask of 4096 x 2304 pixels has 10 MB
_DIGEST = 65  # bytes of a line of masks.sha256


@dataclasses.dataclass(frozen=True, eq=False)
class FramePrediction:
    """The masks of S sentences in one frame, run-length encoded.

    Attributes:
      index: of the frame in the video, from 0.
      time: of the frame, in seconds.
      scores: S floats in [0, 1], see `Segmentation`.
      encoded_masks: S masks in COCO's format, {"size": [h, w], "counts": str}.
    """

    index: int
    time: float
    scores: tuple[float, ...]
    encoded_masks: tuple[dict[str, Any], ...]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the masks."""
        height, width = self.encoded_masks[0]["size"]
        return height, width

    def decode_masks(self) -> np.ndarray:
        """(S, h, w) bool."""
        return np.stack([coco_mask.decode(encoded).astype(bool) for encoded in self.encoded_masks])


class PredictionStore:
    """Keeps a prediction in a folder, so that a run that was killed can be resumed.

    settings.json holds the settings, and "finished"; masks.jsonl one line for each frame and sentence; masks.sha256 one
    checksum for each frame, of its lines. Frames are appended one by one, and all sentences of a frame together.

    From `create` or `resume` to `close`, the folder is locked against other processes.

    Args:
      folder: the folder.
      sentences: how many sentences are segmented in each frame.
    """

    def __init__(self, folder: Path, sentences: int) -> None:
        self.folder, self._sentences = folder, sentences
        self._settings_file, self._masks_file = folder / "settings.json", folder / "masks.jsonl"
        self._digests_file = folder / "masks.sha256"
        self._settings: Mapping[str, Any] = {}
        self._unlock: weakref.finalize | None = None

    def close(self) -> None:
        """Unlocks the folder."""
        if self._unlock:
            self._unlock()
            self._unlock = None

    def check_empty(self) -> None:
        """Raises UserError if the folder holds more than what a run that was killed at once leaves there."""
        if not os.path.lexists(self.folder):
            return
        if not self.folder.is_dir():  # a file, or a link that leads nowhere
            raise UserError(f"{self.folder} is not a folder. Nothing is overwritten: choose another --output.")
        if any(self.folder.iterdir()) and not self._was_killed_at_once():
            raise UserError(
                f"{self.folder} is not empty. Nothing is overwritten: choose another --output, or resume it (--resume)."
            )

    def create(self, settings: Mapping[str, Any]) -> None:
        """Starts a new prediction.

        Raises:
          UserError: the folder is not empty, or another process is writing to it.
        """
        self.check_empty()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        self.check_empty()  # another run may have been faster
        self._save_settings({**settings, "finished": False})

    def resume(self, settings: Mapping[str, Any]) -> bool:
        """Continues a prediction with the same settings. An incomplete last frame is removed.

        A run that was killed before it had written its settings is started again.

        Returns:
          Whether the prediction was finished.

        Raises:
          UserError: the folder holds no prediction, or one with other settings, or one that was changed; or another
            process is writing to it.
        """
        if self._was_killed_at_once():
            self.create(settings)
            return False
        self._check_settings(settings)
        self._lock()
        self._settings = self._check_settings(settings)  # again: another run may just have finished
        if not self._settings["finished"]:
            frames, size = self._check_masks()
            os.truncate(self._masks_file, size)
            if self._digests_file.exists():
                os.truncate(self._digests_file, frames * _DIGEST)
            return False
        if self._digests_file.exists():  # earlier versions did not write it
            frames, size = self._check_masks()
            if (frames * _DIGEST, size) != (self._digests_file.stat().st_size, self._masks_file.stat().st_size):
                raise UserError(f"--resume: {self._masks_file} was cut. Choose another --output.")
        return True

    def finish(self) -> None:
        """Marks the prediction as complete in settings.json."""
        self._save_settings({**self._settings, "finished": True})

    def append(self, index: int, time: float, masks: np.ndarray, scores: np.ndarray) -> None:
        """Adds a frame to masks.jsonl.

        Args:
          index: of the frame in the video, from 0.
          time: of the frame, in seconds.
          masks: (S, h, w) bool.
          scores: (S,).
        """
        lines = []
        for number, (mask, score) in enumerate(zip(masks, scores, strict=True), start=1):
            encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            line = {
                "frame": index,
                "time": round(time, 6),
                "sentence": number,
                "confidence": round(float(score), 6),
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
            }
            lines.append(json.dumps(line).encode("ascii") + b"\n")
        with self._masks_file.open("ab") as file:
            file.write(b"".join(lines))
        with self._digests_file.open("ab") as file:
            file.write(_digest(lines))

    def load(self) -> Iterator[FramePrediction]:
        """Yields the stored frames. Raises UserError if the file is damaged."""
        if not self._masks_file.exists():
            return
        with open_regular_file(self._masks_file) as file:
            first_line = 1
            while lines := self._read_frame(file, first_line):
                try:
                    yield _parse(lines, self._sentences)
                except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
                    raise UserError(
                        f"{self._masks_file} is damaged in line {first_line} or after it ({error!r:.200}). Choose "
                        "another --output."
                    ) from error
                first_line += len(lines)

    # -- Beginning

    def _was_killed_at_once(self) -> bool:
        """Whether the folder holds nothing but what a run leaves that was killed before it had written its settings."""
        if not self.folder.is_dir() or os.path.lexists(self._settings_file):
            return False
        leftovers, masks = unfinished_files(self.folder, r"settings\.json"), self._masks_file
        if masks.is_file() and not masks.is_symlink() and not masks.stat().st_size:
            leftovers.append(masks)
        return bool(leftovers) and len(leftovers) == len([*self.folder.iterdir()])

    def _lock(self) -> None:
        """Locks the folder, unless that is done, and removes what the killed process could not."""
        if self._unlock:
            return
        if self._masks_file.exists():
            check_regular_file(self._masks_file)
        descriptor = os.open(self._masks_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._unlock = weakref.finalize(self, os.close, descriptor)
        try:
            lock(descriptor, self.folder)
        except UserError:
            self.close()
            raise
        remove_unfinished(self.folder, r"settings\.json|contact_sheet\.png")
        for number in range(1, self._sentences + 1):
            remove_unfinished(self.folder / "masks" / str(number), r"\d{6,}\.png")
        remove_unfinished(self.folder / "explain", r"\d{6,}-\d+\.png")

    # -- Settings

    def _save_settings(self, settings: Mapping[str, Any]) -> None:
        write_json(settings, self._settings_file)
        self._settings = settings

    def _check_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the content of settings.json. Raises UserError if it has other settings, or is no such file."""
        try:
            content = read_limited(self._settings_file, _MAX_SETTINGS)
        except OSError as error:
            raise UserError(f"--resume: there is no run to resume in {self.folder} ({error}).") from error
        try:
            stored = json.loads(content)
            if not isinstance(stored, dict):
                raise ValueError(f"expected an object, found {json.dumps(stored):.80}")
            if not isinstance(stored.get("finished"), bool):
                raise ValueError('"finished" should be true or false')
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"--resume: {self._settings_file} is not that of a run, or is damaged ({error}). Choose another "
                "--output."
            ) from error
        differences = [
            f"{name}: {str(stored.get(name)):.500} there, {value} requested"
            for name, value in json.loads(json.dumps(settings)).items()
            if stored.get(name) != value and (name in stored or name not in _NEW_SETTINGS)
        ]
        if differences:
            raise UserError(f"--resume: the run in {self.folder} has other settings.\n  " + "\n  ".join(differences))
        return stored

    # -- Masks

    def _read_frame(self, file: IO[bytes], first_line: int) -> list[bytes]:
        """The next lines, one for each sentence; fewer at the end of the file. Raises UserError if one is too long."""
        lines: list[bytes] = []
        while len(lines) < self._sentences and (line := file.readline(_MAX_LINE + 1)):
            if len(line) > _MAX_LINE:
                raise UserError(
                    f"{self._masks_file}, line {first_line + len(lines)}: more than {_MAX_LINE >> 20} MB, which no "
                    "mask has. Choose another --output."
                )
            lines.append(line)
        return lines

    def _check_masks(self) -> tuple[int, int]:
        """Compares masks.jsonl with its checksums, up to the last frame that is whole; a kill may have cut the next.

        Returns:
          The number of these frames, and their bytes in masks.jsonl.

        Raises:
          UserError: the lines of a frame are not those that were written.
        """
        frames = size = 0
        if not self._masks_file.stat().st_size:
            return frames, size
        try:
            digests = open_regular_file(self._digests_file)
        except FileNotFoundError as error:
            raise UserError(
                f"--resume: {self._digests_file}, with the checksums of the masks, is missing: deleted, or not written "
                "by this version. Choose another --output."
            ) from error
        with digests, open_regular_file(self._masks_file) as masks:
            while len(digest := digests.read(_DIGEST)) == _DIGEST:
                first_line = frames * self._sentences + 1
                lines = self._read_frame(masks, first_line)
                if len(lines) < self._sentences or not lines[-1].endswith(b"\n"):
                    break
                if _digest(lines) != digest:
                    raise UserError(
                        f"--resume: {self._masks_file} was changed in line {first_line} or after it: it has another "
                        "checksum. Choose another --output."
                    )
                frames, size = frames + 1, size + sum(map(len, lines))
        return frames, size


def _digest(lines: list[bytes]) -> bytes:
    """The line of masks.sha256 for the lines of a frame."""
    return hashlib.sha256(b"".join(lines)).hexdigest().encode("ascii") + b"\n"


def _parse(lines: list[bytes], sentences: int) -> FramePrediction:
    """A frame from its lines, one for each sentence. Raises ValueError, KeyError or TypeError if they are not."""
    if len(lines) != sentences:
        raise ValueError(f"{len(lines)} of {sentences} lines of a frame")
    values = [json.loads(line) for line in lines]
    first = values[0]
    for number, value in enumerate(values, start=1):
        if (value["frame"], value["time"], value["sentence"]) != (first["frame"], first["time"], number):
            raise ValueError(f"expected sentence {number} of a frame")
        if not 0 <= value["confidence"] <= 1:
            raise ValueError("a confidence outside of [0, 1]")
        if value["segmentation"]["size"] != first["segmentation"]["size"]:
            raise ValueError("masks of different sizes")
        _check_mask(**value["segmentation"])
    if type(first["frame"]) is not int or first["frame"] < 0 or not math.isfinite(first["time"]):
        raise ValueError("no number of a frame, or no time")
    return FramePrediction(
        index=first["frame"],
        time=first["time"],
        scores=tuple(value["confidence"] for value in values),
        encoded_masks=tuple(value["segmentation"] for value in values),
    )


def _check_mask(size: Any, counts: Any) -> None:
    """Checks a mask in COCO's compressed format. Raises ValueError or TypeError if it is not one."""
    if not isinstance(counts, str):
        raise TypeError("a mask without counts")
    check_rle(size, counts)
