"""Readers of raw data sets: plain Python, one module each, all with the same doors.

A reader is a frozen (hence picklable) dataclass with the fields `raw` (the unpacked folder) and `interval`
(frames between a frame and its earlier frame; its default is the published one) and these methods:

    splits() -> tuple[str, ...]              e.g. ("train", "test")
    videos(split) -> list[str]               the split's videos, sorted; checks the tree first, raises DataError
    read(video) -> Iterator[FramePair | Skipped]   every annotated frame of one video
    skipped() -> tuple[Skipped, ...]         what was left out before any video was read: lines of annotation files
    inventory() -> dict[str, tuple[int, int | None]]     thing -> (number found, number in the full data set if known)

so that `records.py` can read videos in parallel. Nothing under `raw` is ever written, moved or renamed.
A new data set is one such class and its line in `prepare.READERS`.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np

from input_pipeline.images import decode_frame


class DataError(ValueError):
    """Something that the user must mend: data, or a configuration that doesn't fit them.

    The message names the file, and the line where there is one, and says what to do; commands print it alone and exit
    with status 2.
    """


#: File systems allow 255, with the suffix.
MOST_BYTES_OF_A_NAME = 240


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence and the object it refers to.

    Attributes:
      text: as annotated, surrounding blanks removed.
      instance: id of the object among the frame pair's masks; None where the truth is not published.
      group: a label under which scores are reported separately (Moving Shapes: the tier; Ref-DAVIS17: the annotator);
        "" for none.
      expression: the data set's own name of the sentence within its video, where it has one, a plain file name: a
        sentence that is asked about many frames of a video has the same in all of them.
    """

    text: str
    instance: int | None
    group: str = ""
    expression: str = ""


@dataclasses.dataclass(frozen=True)
class FramePair:
    """An annotated frame, an earlier frame of the same video, and everything that is asked about it.

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


def numbered_lines(path: Path, latin_1: bool = False) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every line that is not blank.

    Args:
      path: a file of UTF-8 text, with the line ends of any system.
      latin_1: what is not UTF-8 is Latin-1, which every file is.

    Raises:
      DataError: the file can't be read, or is not UTF-8 and may not be Latin-1.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}). Unpack it again.") from error
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if not latin_1:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{path}:{line}: not UTF-8 text ({error.reason}). Unpack the file again.") from error
        text = content.decode("latin-1")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def is_plain_name(name: str) -> bool:
    """Whether a name from an annotation file stays inside its folder when it becomes a path that can be."""
    inside = name not in ("", ".", "..") and PurePath(name).name == name and "\\" not in name
    return inside and name.isprintable() and len(name.encode()) <= MOST_BYTES_OF_A_NAME


def read_frame(path: Path, what: str) -> tuple[np.ndarray, bytes]:
    """A picture, (H, W, 3) uint8 RGB, and its file. Raises DataError that says what is wrong with `what`."""
    try:
        content = path.read_bytes()
        return decode_frame(content), content
    except FileNotFoundError as error:
        raise DataError(f"{what} missing") from error
    except OSError as error:
        raise DataError(f"the {what} can't be read") from error


def read_frames(path: Path, earlier: Path) -> tuple[np.ndarray, np.ndarray, tuple[bytes, bytes]]:
    """A frame and its earlier frame, (H, W, 3) uint8 RGB each, and their files.

    Raises:
      DataError: what is wrong with either, or their sizes differ.
    """
    frame, file = read_frame(path, "frame")
    earlier_frame, earlier_file = read_frame(earlier, "earlier frame")
    if earlier_frame.shape != frame.shape:
        raise DataError("the earlier frame has another size than the frame")
    return frame, earlier_frame, (file, earlier_file)
