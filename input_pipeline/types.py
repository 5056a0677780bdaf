"""The interface of the dataset readers: what a reader provides, and the frame pairs that it yields.

To add a dataset, write a class with the methods of `Reader` and add it to `prepare.READERS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

#: Groups of sentences in datasets where a sentence may refer to several objects, or to none. Its target is one mask:
#: the union of the objects, or an empty mask.
NO_TARGET, ONE_OBJECT, SEVERAL_OBJECTS = "no target", "one object", "several objects"


def target_group(objects: int) -> str:
    """The group of a sentence that refers to this many objects."""
    return {0: NO_TARGET, 1: ONE_OBJECT}.get(objects, SEVERAL_OBJECTS)


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence and the object it refers to.

    Attributes:
      text: as annotated, without surrounding whitespace.
      instance: id of the object in the frame pair's masks; None if its ground truth is not published. Where sentences
        refer to several objects or to none, id of the target: 0 for no target, from 1 for each set of objects.
      group: a label under which scores are reported separately (Moving Shapes: the tier; Ref-DAVIS17: the annotator;
        `target_group`); "" for none.
      expression: the dataset's id of the sentence within its video, a valid file name; the same in all frames that
        the sentence describes. "" if the dataset has none.
    """

    text: str
    instance: int | None
    group: str = ""
    expression: str = ""


@dataclasses.dataclass(frozen=True)
class FramePair:
    """An annotated frame, an earlier frame of the same video, and the frame's masks and sentences.

    Attributes:
      video: the video's name in the dataset.
      frame_index: counted as in the dataset (A2D-Sentences: from 1).
      frame: (H, W, 3) uint8 RGB.
      earlier_frame: (H, W, 3) uint8 RGB.
      earlier_rule: the rule that selected the earlier frame, for the report ("interval", "index - 6", "first frame").
      masks: instance id -> (H, W) bool. Empty for an object that is not in the frame, and for no target.
      sentences: at least one; each instance is a key of `masks`, or None.
      labels: (H, W) uint8, the object id of every pixel, 0 for background and 255 for void, if a benchmark is scored
        on other object ids than those of the sentences (Ref-DAVIS17); else None.
      files: the contents of the JPEG or PNG files of frame and earlier frame, stored unchanged; None if both were
        decoded from a video clip.
    """

    video: str
    frame_index: int
    frame: np.ndarray
    earlier_frame: np.ndarray
    earlier_rule: str
    masks: dict[int, np.ndarray]
    sentences: tuple[Sentence, ...]
    labels: np.ndarray | None = None
    files: tuple[bytes, bytes] | None = None


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Something that was left out of the records, and why.

    Attributes:
      where: file and line, or video, frame and instance.
      reason: always worded alike for the same cause, so that reasons can be counted.
    """

    where: str
    reason: str


class Reader(Protocol):
    """Reads one raw dataset. Plain Python; a reader never writes, moves or renames anything under `raw`.

    Readers are frozen dataclasses and can be pickled, so that `record_writer.py` can read videos in parallel.

    Attributes:
      raw: folder of the unpacked dataset.
      interval: frames from the earlier frame to the frame; defaults to the published value.
    """

    @property
    def raw(self) -> Path: ...

    @property
    def interval(self) -> int: ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, such as ("train", "test")."""
        ...

    def videos(self, split: str) -> list[str]:
        """The videos of a split, sorted.

        Raises:
          UserError: the dataset's folder is incomplete.
        """
        ...

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields every annotated frame of a video, and what had to be left out.

        Files are opened, or checked before another library opens them, by the functions of `input_pipeline.files`:
        from these `record_writer.py` knows what to read again if a file has changed when it resumes.
        """
        ...

    def skipped(self) -> tuple[Skipped, ...]:
        """Lines of annotation files that were left out before any video was read."""
        ...

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """Item -> (count found, count in the full dataset or None if unknown)."""
        ...
