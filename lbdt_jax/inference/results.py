"""What a prediction leaves in its folder, and how it is found again: the settings, and a line for every answer."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pycocotools import mask as run_length

from input_pipeline.errors import UserError
from lbdt_jax.cli import write_json
from lbdt_jax.inference.segmenter import Segmentation, Segmenter, TimedFramePair
from lbdt_jax.inference.video import Clip

Timed = TypeVar("Timed")


@dataclasses.dataclass(frozen=True)
class PredictionSettings:
    """What is asked; a run can only be resumed with the same."""

    checkpoint: str
    video: str
    text: tuple[str, ...]
    every: int = 1
    start: float = 0.0
    end: float | None = None
    rate: float = 30.0


@dataclasses.dataclass
class Stopwatch:
    """Seconds spent in each part of the work."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, part: str, since: float) -> None:
        """Counts the time since a value of time.monotonic()."""
        self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - since

    def each(self, part: str, items: Iterable[Timed]) -> Iterator[Timed]:
        """The items, the time that it takes to make them counted."""
        iterator = iter(items)
        while True:
            since, counted = time.monotonic(), sum(self.seconds.values())
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                # Less what other parts have counted meanwhile.
                self.add(part, since + sum(self.seconds.values()) - counted)
            yield item


def begin(settings: PredictionSettings, unknown: list[str], clip: Clip, output: Path, resume: bool) -> bool:
    """Makes the folder, or checks that a run with the same settings, words and video left it.

    Returns:
      Whether that run came to its end.

    Raises:
      UserError: the folder holds something else, or with `resume` no such run.
    """
    path = output / "settings.json"
    size = clip.frames if clip.path.is_dir() else clip.path.stat().st_size
    new = json.loads(json.dumps({**dataclasses.asdict(settings), "unknown_words": unknown, "video_size": size}))
    if resume:
        try:
            old = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--resume: no run to go on with in {output} ({error}).") from error
        different = [
            f"{name}: {old.get(name)} there, {value} asked for" for name, value in new.items() if old.get(name) != value
        ]
        if different:
            raise UserError(f"--resume: {output} was asked something else.\n  " + "\n  ".join(different))
        if old.get("finished"):
            return True
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(
            f"{output} is not empty. Nothing is overwritten: choose another --output, or go on with --resume."
        )
    for number in range(1, len(settings.text) + 1):
        (output / "masks" / str(number)).mkdir(parents=True, exist_ok=True)
    write_json({**new, "finished": False}, path)
    return False


def finish(output: Path) -> None:
    """Notes that nothing is left to do."""
    path = output / "settings.json"
    write_json({**json.loads(path.read_text()), "finished": True}, path)


def answered(
    segmenter: Segmenter, frame_pairs: Iterator[TimedFramePair], text: tuple[str, ...], path: Path, watch: Stopwatch
) -> Iterator[Segmentation]:
    """Every frame_pair's answer: those that the file holds are read, and the others found and added to it."""
    good = 0  # bytes
    for offset, lines in stored(path, len(text)):
        frame_pair = next(frame_pairs, None)
        if frame_pair is None or any(
            (line["frame"], line["segmentation"]["size"]) != (frame_pair.index, [*frame_pair.original_frame.shape[:2]])
            for line in lines
        ):
            raise UserError(f"{path} is not about the frames of this video. Choose another --output.")
        masks = np.stack([run_length.decode(line["segmentation"]).astype(bool) for line in lines])
        yield Segmentation(frame_pair, masks, np.array([line["confidence"] for line in lines], np.float32))
        good = offset
    with path.open("ab") as file:
        file.truncate(good)  # a line that was cut short
        for answer in watch.each("model", segmenter.segment_frame_pairs(frame_pairs, text)):
            lines = [to_line(answer, number) for number in range(len(text))]
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            file.flush()
            yield answer


def stored(path: Path, sentences: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(offset after them, the lines of one frame) of every frame that is there whole."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while True:
            lines = [file.readline() for _ in range(sentences)]
            if not all(line.endswith(b"\n") for line in lines):
                return
            try:
                answers = [json.loads(line) for line in lines]
                _ = [(answer["frame"], answer["confidence"], answer["segmentation"]["size"]) for answer in answers]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is broken near byte {file.tell()}: {error}. Begin again.") from error
            yield file.tell(), answers


def to_line(answer: Segmentation, number: int) -> dict[str, Any]:
    """What masks.jsonl holds of a sentence at a frame_pair."""
    encoded = run_length.encode(np.asfortranarray(answer.masks[number], np.uint8))
    return {
        "frame": answer.frame_pair.index,
        "time": round(answer.frame_pair.time, 6),
        "sentence": number + 1,
        "confidence": round(float(answer.scores[number]), 6),
        "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
    }
