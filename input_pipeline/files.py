"""Opens the user's files: regular ones only, of limited size. Also records which ones were opened."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from input_pipeline.errors import UserError

#: Limit for an image file. A frame of 8192 x 4320 pixels has 212 MB as an uncompressed 16-bit RGB file.
MAX_IMAGE_BYTES = 256 * 2**20

#: Size in bytes and time of the last change in ns of a file or folder; None if it can't be reached.
Fingerprint = list[int] | None

_recorded: ContextVar[dict[str, Fingerprint] | None] = ContextVar("_recorded", default=None)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check_regular_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> int:
    """Checks that a path leads to a regular file, without opening it: opening a pipe waits, and a device never ends.

    Args:
      path: of the file. Links are followed.
      max_bytes: the largest size; None means any.

    Returns:
      The size of the file in bytes.

    Raises:
      UserError: it is a folder, a pipe, a device or a socket, or is larger than `max_bytes`.
      OSError: there is no such file, or it can't be reached.
    """
    _record(path)
    return _check(os.fspath(path), os.stat(path), max_bytes)


def open_regular_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> BinaryIO:
    """Opens a file for reading, with the checks of `check_regular_file` on the very file that is opened."""
    _record(path)
    # Not even a pipe that takes the file's place just now is waited for.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check(os.fspath(path), os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_limited(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
      path: of the file. Links are followed.
      max_bytes: the largest size.

    Raises:
      UserError: it is not a regular file, or is larger than `max_bytes`; no more than that is read.
      OSError: there is no such file, or it can't be read.
    """
    with open_regular_file(path, max_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)  # not `max_bytes`, for which Python would take memory at once
        if len(content) > size:  # it has grown, or its size is unknown as in /proc
            content += file.read(max_bytes + 1 - len(content))
    if len(content) > max_bytes:
        raise UserError(_too_large(Path(path), len(content), max_bytes))
    return content


def list_folder(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match a pattern as "*.jpg", sorted; none if there is no such folder."""
    _record(folder)
    return sorted(folder.glob(pattern))


@contextlib.contextmanager
def record_files() -> Iterator[dict[str, Fingerprint]]:
    """Records the files that the functions of this module look for in the `with` block, and the folders they list.

    Yields path -> its fingerprint when it was first looked for; complete at the end of the block.
    """
    files: dict[str, Fingerprint] = {}
    token = _recorded.set(files)
    try:
        yield files
    finally:
        _recorded.reset(token)


def fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """What changes when a file is written, or when one is added to a folder, removed or renamed. Links are followed."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _record(path: str | os.PathLike[str]) -> None:
    files = _recorded.get()
    if files is not None and os.fspath(path) not in files:
        files[os.fspath(path)] = fingerprint(path)


def _check(path: str, status: os.stat_result, max_bytes: int | None) -> int:
    """Returns the size of a regular file. Raises UserError if it is something else, or too large."""
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "no regular file")
        raise UserError(f"{path} is {kind}. Only regular files are read: copy its content into one.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(_too_large(path, status.st_size, max_bytes))
    return status.st_size


def _too_large(path: str | Path, size: int, max_bytes: int) -> str:
    return f"{path} has {size / 2**20:,.1f} MB or more. The limit is {max_bytes / 2**20:,.1f} MB. Is it the right file?"


def expand_home(path: str) -> str:
    """Replaces a leading ~ or ~user as a shell does; shells leave it as it is in --flag=~/folder."""
    return os.path.expanduser(path)
