"""Reading the files of raw datasets: annotation lines, JSON, names and frames. None of them is trusted."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.files import MAX_IMAGE_BYTES, read_limited
from input_pipeline.images import decode_frame
from input_pipeline.pictures import MAX_PIXELS
from input_pipeline.types import Skipped

#: File systems allow 255 bytes, including the suffix.
MAX_NAME_BYTES = 240

# Limits far above those of published datasets: the largest text file, LBDT's rows of Refer-YouTube-VOS, has about
# 350,000 lines and 30 MB, the largest JSON 5 MB. Parsed, a hostile JSON takes 20 times its size.
MAX_TEXT_BYTES = 256 * 2**20
MAX_LINES = 2_000_000
MAX_LINE_BYTES = 2**20
MAX_JSON_BYTES = 64 * 2**20
MAX_SKIPPED = 1_000_000

#: Reasons of `Skipped` that several readers give.
BAD_VIDEO_NAME = "the video's name is not a plain file name"
EARLIER_FRAME_SIZE = "the earlier frame and the frame differ in size"
MASK_SIZE = "the mask and the frame differ in size"
NOT_IN_FRAME = "the instance is not in the frame"
NO_TRAINING_DATA = "split train left out: no video of it has a sentence, its frames and its masks"


class SkippedItems(list[Skipped]):
    """What was left out of annotation files."""

    def append(self, item: Skipped) -> None:
        """Appends an item. Raises UserError if there are more than any dataset can explain."""
        if len(self) >= MAX_SKIPPED:
            raise UserError(f"{item.where}: {item.reason}, after {MAX_SKIPPED:,} others. Unpack the file again.")
        super().append(item)


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
      UserError: the file can't be read, its encoding is wrong, or it or one of its lines is far too long.
    """
    try:
        content = _read_file(path, MAX_TEXT_BYTES).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}). Unpack it again.") from error
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    encoding = "utf-8"
    try:
        content.decode(encoding)  # all of it, before the first line is used
    except UnicodeDecodeError as error:
        if not latin_1:
            bad_line = content.count(b"\n", 0, error.start) + 1
            raise UserError(
                f"{path}:{bad_line}: not UTF-8 text ({error.reason}). Unpack the file again, or save it as UTF-8."
            ) from error
        encoding = "latin-1"
    for line_number, line in enumerate(io.BytesIO(content), start=1):
        where = f"{path}:{line_number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{where}: the line has more than {MAX_LINE_BYTES:,} bytes. Unpack the file again.")
        if line_number > MAX_LINES:
            raise UserError(f"{where}: the file has more than {MAX_LINES:,} lines. Unpack it again.")
        text = line.removesuffix(b"\n").decode(encoding)
        if text.strip():
            yield where, text


def read_json(path: Path) -> Any:
    """Parses a JSON file in UTF-8, with or without a byte order mark.

    Raises:
      OSError: the file can't be read.
      ValueError: it is not a regular file, too large, not UTF-8, not JSON, or names a key of an object twice, of which
        Python would drop the first without a word.
      RecursionError: it is nested too deeply.
    """
    return json.loads(_read_file(path, MAX_JSON_BYTES).decode("utf-8-sig"), object_pairs_hook=unique_keys)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of a JSON file. Raises ValueError if a key occurs twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name, later in zip(sorted(names), sorted(names)[1:], strict=False) if name == later)
        raise ValueError(f"{shorten(repeated)} occurs twice in one object")
    return content


def _read_file(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError for a folder, and see `read_limited`."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return read_limited(path, max_bytes)


def shorten(value: object) -> str:
    """A value out of a file, for a message: printable, and at most about 300 characters."""
    if isinstance(value, str):
        return repr(value[:300])
    return repr(value)[:300] if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def is_plain_name(name: str) -> bool:
    """Whether a name from an annotation file is a valid file name that can't lead out of its folder."""
    inside = name not in ("", ".", "..") and PurePath(name).name == name and "\\" not in name
    return inside and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def find_text_error(text: str) -> str:
    """What is wrong with a sentence; "" if nothing is."""
    if "\0" in text or re.search("[\ud800-\udfff]", text):
        return "the expression is not text"
    return "" if text.strip() else "empty sentence"


def parse_object_id(text: str, largest: int = 255) -> int | None:
    """The id of an object in palette masks, from 1; None if no object can have it."""
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,2}", text) and int(text) <= largest else None


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
        content = read_limited(path, MAX_IMAGE_BYTES)
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:  # reads the header alone
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("larger than any frame")
        return decode_frame(content), content
    except FileNotFoundError as error:
        raise UserError(f"{name} missing") from error
    except Exception as error:  # whatever Pillow raises for a damaged file, struct.error among others
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
