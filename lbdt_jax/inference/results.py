"""The folder of a prediction: its settings, and the masks of every frame as they are predicted."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.errors import UserError
from lbdt_jax.cli import write_json


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

    def decode_masks(self) -> np.ndarray:
        """(S, h, w) bool."""
        return np.stack([coco_mask.decode(encoded).astype(bool) for encoded in self.encoded_masks])


class PredictionStore:
    """Keeps a prediction in a folder, so that a run that was killed can be resumed.

    settings.json holds the settings, and "finished"; masks.jsonl one line for each frame and sentence. Frames are
    appended one by one, and all sentences of a frame together.

    Args:
      folder: the folder.
      sentences: how many sentences are segmented in each frame.
    """

    def __init__(self, folder: Path, sentences: int) -> None:
        self.folder, self._sentences = folder, sentences
        self._settings_file, self._masks_file = folder / "settings.json", folder / "masks.jsonl"

    def create(self, settings: Mapping[str, Any]) -> None:
        """Starts a new prediction. Raises UserError if the folder is not empty."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(
                f"{self.folder} is not empty. Nothing is overwritten: choose another --output, or resume it (--resume)."
            )
        write_json({**settings, "finished": False}, self._settings_file)

    def resume(self, settings: Mapping[str, Any]) -> bool:
        """Continues a prediction with the same settings. An incomplete last frame is removed.

        Returns:
          Whether the prediction was finished.

        Raises:
          UserError: the folder holds no prediction, or one with other settings.
        """
        try:
            stored = json.loads(self._settings_file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--resume: there is no run to resume in {self.folder} ({error}).") from error
        differences = [
            f"{name}: {stored.get(name)} there, {value} requested"
            for name, value in json.loads(json.dumps(settings)).items()
            if stored.get(name) != value
        ]
        if differences:
            raise UserError(f"--resume: the run in {self.folder} has other settings.\n  " + "\n  ".join(differences))
        if not stored.get("finished"):
            self._remove_incomplete_frame()
        return bool(stored.get("finished"))

    def finish(self) -> None:
        """Marks the prediction as complete in settings.json."""
        write_json({**json.loads(self._settings_file.read_text()), "finished": True}, self._settings_file)

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
            lines.append(json.dumps(line) + "\n")
        with self._masks_file.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def load(self) -> Iterator[FramePrediction]:
        """Yields the stored frames. Raises UserError if the file is damaged."""
        if not self._masks_file.exists():
            return
        with self._masks_file.open("rb") as file:
            first_line = 1
            while lines := list(itertools.islice(file, self._sentences)):
                try:
                    yield _parse(lines)
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{self._masks_file} is damaged in line {first_line} or after it ({error!r}). Choose another "
                        "--output."
                    ) from error
                first_line += len(lines)

    def _remove_incomplete_frame(self) -> None:
        """Truncates masks.jsonl after the last complete frame: a killed run may have left a part of the next one."""
        if not self._masks_file.exists():
            return
        with self._masks_file.open("rb+") as file:
            position = end_of_frame = 0
            for number, line in enumerate(file, start=1):
                position += len(line)
                if number % self._sentences == 0 and line.endswith(b"\n"):
                    end_of_frame = position
            file.truncate(end_of_frame)


def _parse(lines: list[bytes]) -> FramePrediction:
    """A frame from its lines, one for each sentence."""
    sentences = [json.loads(line) for line in lines]
    return FramePrediction(
        index=sentences[0]["frame"],
        time=sentences[0]["time"],
        scores=tuple(sentence["confidence"] for sentence in sentences),
        encoded_masks=tuple(
            {name: sentence["segmentation"][name] for name in ("size", "counts")} for sentence in sentences
        ),
    )
