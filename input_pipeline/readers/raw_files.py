"""Reading the files of raw data sets: annotation lines, names and frames, none of which is trusted."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame

#: File systems allow 255, with the suffix.
MAX_NAME_BYTES = 240


def numbered_lines(path: Path, latin_1: bool = False) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every line that is not blank.

    Args:
      path: a file of UTF-8 text, with the line ends of any system.
      latin_1: what is not UTF-8 is Latin-1, which every file is.

    Raises:
      UserError: the file can't be read, or is not UTF-8 and may not be Latin-1.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}). Unpack it again.") from error
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if not latin_1:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{path}:{line}: not UTF-8 text ({error.reason}). Unpack the file again.") from error
        text = content.decode("latin-1")
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", line


def is_plain_name(name: str) -> bool:
    """Whether a name from an annotation file stays inside its folder when it becomes a path that can be."""
    inside = name not in ("", ".", "..") and PurePath(name).name == name and "\\" not in name
    return inside and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def read_frame(path: Path, what: str) -> tuple[np.ndarray, bytes]:
    """A picture, (H, W, 3) uint8 RGB, and its file. Raises UserError that says what is wrong with `what`."""
    try:
        content = path.read_bytes()
        return decode_frame(content), content
    except FileNotFoundError as error:
        raise UserError(f"{what} missing") from error
    except OSError as error:
        raise UserError(f"the {what} can't be read") from error


def read_frames(path: Path, earlier: Path) -> tuple[np.ndarray, np.ndarray, tuple[bytes, bytes]]:
    """A frame and its earlier frame, (H, W, 3) uint8 RGB each, and their files.

    Raises:
      UserError: what is wrong with either, or their sizes differ.
    """
    frame, file = read_frame(path, "frame")
    earlier_frame, earlier_file = read_frame(earlier, "earlier frame")
    if earlier_frame.shape != frame.shape:
        raise UserError("the earlier frame has another size than the frame")
    return frame, earlier_frame, (file, earlier_file)
