"""Reading the files of raw datasets: annotation lines, names and frames. None of them is trusted."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame

#: File systems allow 255 bytes, including the suffix.
MAX_NAME_BYTES = 240

#: Reasons of `Skipped` that several readers give.
BAD_VIDEO_NAME = "the video's name is not a plain file name"
EARLIER_FRAME_SIZE = "the earlier frame and the frame differ in size"
MASK_SIZE = "the mask and the frame differ in size"
NOT_IN_FRAME = "the instance is not in the frame"


def check_complete(raw: Path, parts: Iterable[str], how_to_get: str) -> None:
    """Raises UserError, with the instructions `how_to_get`, if files or folders are missing under `raw`."""
    missing = [part for part in parts if not (raw / part).exists()]
    if missing:
        raise UserError(f"{raw} lacks {', '.join(missing)}.\n{how_to_get}")


def numbered_lines(path: Path, latin_1: bool = False) -> Iterator[tuple[str, str]]:
    """Yields ("file:line", text) for every line that is not blank.

    Args:
      path: a UTF-8 text file, with the line endings of any system.
      latin_1: whether to decode the file as Latin-1 if it is not UTF-8.

    Raises:
      UserError: the file can't be read, or its encoding is wrong.
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
            bad_line = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{path}:{bad_line}: not UTF-8 text ({error.reason}). Unpack the file again.") from error
        text = content.decode("latin-1")
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}:{line_number}", line


def is_plain_name(name: str) -> bool:
    """Whether a name from an annotation file is a valid file name that can't lead out of its folder."""
    inside = name not in ("", ".", "..") and PurePath(name).name == name and "\\" not in name
    return inside and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def read_frame(path: Path, name: str) -> tuple[np.ndarray, bytes]:
    """Reads an image file.

    Args:
      path: a JPEG or PNG file.
      name: what the image is called in error messages, such as "frame".

    Returns:
      The image, (H, W, 3) uint8 RGB, and the content of its file.

    Raises:
      UserError: the file is missing or can't be read.
    """
    try:
        content = path.read_bytes()
        return decode_frame(content), content
    except FileNotFoundError as error:
        raise UserError(f"{name} missing") from error
    except OSError as error:
        raise UserError(f"the {name} can't be read") from error


def read_frames(
    path: Path, earlier_path: Path, read: Callable[[Path, str], tuple[np.ndarray, bytes]] = read_frame
) -> tuple[np.ndarray, np.ndarray, tuple[bytes, bytes]]:
    """Reads a frame and its earlier frame.

    Args:
      path: file of the frame.
      earlier_path: file of the earlier frame.
      read: `read_frame`, or a cache of it.

    Returns:
      The frame and the earlier frame, (H, W, 3) uint8 RGB each, and the contents of their files.

    Raises:
      UserError: either is missing or can't be read, or they differ in size.
    """
    frame, file = read(path, "frame")
    earlier_frame, earlier_file = read(earlier_path, "earlier frame")
    if earlier_frame.shape != frame.shape:
        raise UserError(EARLIER_FRAME_SIZE)
    return frame, earlier_frame, (file, earlier_file)
