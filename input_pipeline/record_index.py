"""Random access to records: where each one lies in its TFRecord file, its checksum and its number of sentences.

`index.json` lies next to the records. With it, a process reads the records that it needs and no others.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.errors import UserError

INDEX_FILE = "index.json"

#: In a TFRecord file, a record's data follow its length (8 bytes) and the checksum of that (4); 4 bytes end it.
BEFORE_DATA, AROUND_DATA = 12, 16


class IndexEntry(NamedTuple):
    """What the index holds about a record: the size of its data in bytes, their CRC-32, the number of sentences."""

    length: int
    checksum: int
    sentences: int


def index_entry(data: bytes, sentences: int) -> IndexEntry:
    """Returns the entry of a record."""
    return IndexEntry(len(data), zlib.crc32(data), sentences)


@dataclasses.dataclass(frozen=True, eq=False)
class RecordIndex:
    """The n records of a split, in the order of its files.

    Attributes:
      folder: with the files, for messages.
      files: TFRecord files.
      file_of: (n,) index in `files`.
      offsets: (n,) where the data of a record begin in its file.
      entries: (n, 3) int64, see `IndexEntry`.
    """

    folder: Path
    files: tuple[str, ...]
    file_of: np.ndarray
    offsets: np.ndarray
    entries: np.ndarray
    _opened: dict[int, int] = dataclasses.field(default_factory=dict, init=False)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, init=False)

    @property
    def sentence_counts(self) -> np.ndarray:
        """(n,) number of sentences of each record."""
        return self.entries[:, 2]

    def read(self, record: int) -> bytes:
        """Returns the data of a record; can be called by several threads.

        Raises:
          UserError: the file is missing or broken.
        """
        file, (length, checksum, _) = int(self.file_of[record]), self.entries[record].tolist()
        try:
            data = os.pread(self._descriptor(file), length, int(self.offsets[record]))
        except OSError as error:
            raise self._broken(file) from error
        if len(data) != length or zlib.crc32(data) != checksum:
            raise self._broken(file)
        return data

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            while self._opened:
                os.close(self._opened.popitem()[1])

    def _descriptor(self, file: int) -> int:
        with self._lock:
            if file not in self._opened:
                size = int((self.entries[self.file_of == file, 0] + AROUND_DATA).sum())
                if os.stat(self.files[file]).st_size != size:
                    raise self._broken(file)
                self._opened[file] = os.open(self.files[file], os.O_RDONLY | os.O_CLOEXEC)
            return self._opened[file]

    def _broken(self, file: int) -> UserError:
        return UserError(f"{self.files[file]} is missing or broken. Delete {self.folder} and make the records again.")


def load_index(folder: Path, split: str, files: list[str]) -> RecordIndex | None:
    """Loads the index of a split; None if the records in `folder` were made by a version that wrote none.

    Raises:
      UserError: the index can't be read, or has another number of files.
    """
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    try:
        shards = [
            np.array(shard, np.int64).reshape(-1, len(IndexEntry._fields))
            for shard in json.loads(path.read_text("utf-8"))[split]
        ]
        if len(shards) != len(files) or any((shard < 0).any() for shard in shards):
            raise ValueError("it describes other files")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path} can't be read ({error}). Delete {folder} and make the records again.") from error
    sizes = [shard[:, 0] + AROUND_DATA for shard in shards]
    return RecordIndex(
        folder=folder,
        files=tuple(files),
        file_of=np.repeat(np.arange(len(shards)), [len(shard) for shard in shards]),
        offsets=np.concatenate([np.cumsum(size) - size + BEFORE_DATA for size in sizes]),
        entries=np.concatenate(shards),
    )
