"""The page's temporary folder: what visitors upload and what is made for them, limited, and deleted after a while.

ROOT/sent/                        Gradio's cache: what visitors are shown
ROOT/sent/uploads/TOKEN/NAME      a visitor's clip; TOKEN is random
ROOT/results/RANDOM/              a `Result`; it has a result.zip as soon as it is complete
ROOT/temporary/                   all other temporary files
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from input_pipeline.errors import UserError
from lbdt_jax.demo.checks import Limits

RETENTION_SECONDS = 3600  # how long uploads and results are kept
MAX_UPLOADS = 200
MAX_FILES_OF_LIMIT = 40  # all files together are at most this many times as large as the largest upload
_SAFE_SECONDS = 60  # what is younger is not deleted to make room
_NAME_BYTES = 160


class _Entry(NamedTuple):
    """What is kept and deleted together: an upload, a result, or a file that was shown."""

    modified: float
    bytes: int
    path: Path


class Storage:
    """Keeps the files of all visitors. May be used by several threads.

    Args:
      root: a folder of the page's own.
      limits: the largest upload, from which the other limits follow.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        self.root = root.resolve()
        self.sent, self.results, self.temporary = self.root / "sent", self.root / "results", self.root / "temporary"
        self.uploads = self.sent / "uploads"
        for folder in (self.uploads, self.results, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self._max_upload = limits.bytes
        self._lock = threading.Lock()
        self._permanent: set[Path] = set()

    def keep_all(self) -> None:
        """Keeps what there is now until the end: parts of the page."""
        self._permanent = {entry.path for entry in self._entries()}

    def add_upload(self, content: BinaryIO, name: str) -> Path:
        """Stores a clip under a random token.

        Args:
          content: the clip.
          name: what the visitor calls it; only for display.

        Raises:
          UserError: there is no room left.
        """
        self.check_room()
        folder = self.uploads / secrets.token_hex(16)
        folder.mkdir()
        try:
            with (folder / safe_name(name)).open("xb") as file:
                shutil.copyfileobj(content, file)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Path(file.name)

    def check_room(self) -> None:
        """Deletes what is old; raises UserError if there is still no room for one more upload."""
        with self._lock:
            if not self._delete_old(self._max_upload, 1):
                raise UserError("The page has no room for more clips. Please try again in a few minutes.")

    def tidy(self) -> None:
        """Deletes what has expired, and the oldest files if there are too many."""
        with self._lock:
            self._delete_old(0, 0)

    def find(self, path: str) -> Path | None:
        """The clip, or the file that a visitor is shown, at a path that a visitor sent; None for anything else."""
        try:
            found = Path(path)
            parts = found.relative_to(self.sent).parts
            regular = stat.S_ISREG(found.lstat().st_mode)
        except (ValueError, OSError):  # elsewhere, no path at all, too long, missing
            return None
        parts = parts[1:] if parts[:1] == ("uploads",) else parts
        token = len(parts) == 2 and len(parts[0]) >= 16 and set(parts[0]) <= set("0123456789abcdef")
        return found if regular and token and ".." not in parts else None

    def _delete_old(self, new_bytes: int, new_uploads: int) -> bool:
        """Deletes what has expired, and what is oldest until there is room; returns whether there is."""
        now, entries = time.time(), sorted(self._entries())
        total = sum(entry.bytes for entry in entries) + new_bytes
        uploads = sum(entry.path.parent == self.uploads for entry in entries) + new_uploads
        max_bytes = MAX_FILES_OF_LIMIT * self._max_upload
        for entry in entries:
            age, is_upload = now - entry.modified, entry.path.parent == self.uploads
            full = total > max_bytes or (uploads > MAX_UPLOADS and is_upload)
            if entry.path in self._permanent or not (age > RETENTION_SECONDS or (full and age > _SAFE_SECONDS)):
                continue
            if entry.path.is_dir():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                entry.path.unlink(missing_ok=True)
            total, uploads = total - entry.bytes, uploads - is_upload
        return total <= max_bytes and uploads <= MAX_UPLOADS

    def _entries(self) -> Iterator[_Entry]:
        """Everything but results that are not complete, which their maker deletes if it fails."""
        paths = [path for path in self.sent.iterdir() if path != self.uploads]
        paths += self.uploads.iterdir()
        paths += (path for path in self.results.iterdir() if (path / "result.zip").exists())
        for path in paths:
            try:
                yield _Entry(path.lstat().st_mtime, size_of(path), path)
            except FileNotFoundError:  # deleted meanwhile
                continue


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; those deleted meanwhile don't count."""
    if path.is_dir():
        return sum(size_of(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def safe_name(name: str) -> str:
    """Makes a file name, of one level, from whatever a visitor calls a clip; "clip" if nothing is left of it."""
    name = name.replace("\\", "/").rpartition("/")[2]
    stem, suffix = os.path.splitext("".join(c for c in name if c.isalnum() or c in " ._-()").strip(" ."))
    # File systems limit a name to 255 bytes.
    return stem.encode()[:_NAME_BYTES].decode(errors="ignore") + suffix.encode()[:16].decode(errors="ignore") or "clip"
