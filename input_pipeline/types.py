"""What a reader of a raw data set returns, and what it must offer.

A new data set is one class with the methods of `Reader` and one line in `prepare.READERS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence and the object it refers to.

    Attributes:
      text: as annotated, surrounding blanks removed.
      instance: id of the object among the frame pair's masks; None where the truth is not published.
      group: a label under which scores are reported separately (Moving Shapes: the tier; Ref-DAVIS17: the annotator);
        "" for none.
      expression: the data set's own name of the sentence within its video, where it has one, a plain file name: a
        sentence that is about many frames of a video has the same in all of them.
    """

    text: str
    instance: int | None
    group: str = ""
    expression: str = ""


@dataclasses.dataclass(frozen=True)
class FramePair:
    """An annotated frame, an earlier frame of the same video, and everything that is said about it.

    Attributes:
      video: the data set's name of the video.
      frame_index: as the data set counts (A2D-Sentences: from 1).
      frame: (H, W, 3) uint8 RGB.
      earlier_frame: (H, W, 3) uint8 RGB.
      earlier_rule: which rule found the earlier frame, for the report ("interval", "index - 6", "first frame").
      masks: instance id -> (H, W) bool.
      sentences: at least one; their instances are among the masks, or None.
      labels: (H, W) uint8, the object of every pixel, 0 for none and 255 for void, where a benchmark scores on objects
        that are numbered otherwise than those that the sentences name (Ref-DAVIS17).
      files: the JPEG or PNG files of frame and earlier frame, which are stored as they are; None where both come from a
        clip.
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
    """One thing that was left out, and why.

    Attributes:
      where: file and line, or video, frame and instance.
      reason: the same words for the same cause, so that reasons can be counted.
    """

    where: str
    reason: str


class Reader(Protocol):
    """Reads one raw data set. Plain Python; nothing under `raw` is ever written, moved or renamed.

    Readers are frozen dataclasses, hence picklable, so that `records.py` can read videos in parallel.

    Attributes:
      raw: folder of the unpacked data set.
      interval: frames from the earlier frame to the frame; its default is the published one.
    """

    @property
    def raw(self) -> Path: ...

    @property
    def interval(self) -> int: ...

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, such as ("train", "test")."""
        ...

    def videos(self, split: str) -> list[str]:
        """The videos of a split, sorted. Checks the folder first; raises UserError if it is not complete."""
        ...

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Every annotated frame of a video, and what had to be left out."""
        ...

    def skipped(self) -> tuple[Skipped, ...]:
        """Lines of annotation files that were left out before any video was read."""
        ...

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """Item -> (number found, number in the full data set or None if unknown)."""
        ...
