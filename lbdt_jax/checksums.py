"""Checksums of the files in a folder, kept in its file SHA256SUMS in the format of the program sha256sum."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import cast

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, open_regular_file, read_limited

FILE_NAME = "SHA256SUMS"
#: Of SHA256SUMS. A checkpoint has a few hundred files, each with a line of about 120 bytes.
MAX_BYTES = 4 * 2**20

#: Writes SHA256SUMS as `write_checksums` does.
COMMAND = f"find . -type f ! -name '{FILE_NAME}*' -exec sha256sum {{}} + > {FILE_NAME}"

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS, atomically, with the checksums of all files in a folder and its subfolders."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != FILE_NAME]
    unfinished = folder / f"{FILE_NAME}.unfinished"
    unfinished.write_text("".join(f"{_checksum(folder / name)}  {name}\n" for name in names))
    unfinished.replace(folder / FILE_NAME)


def find_corruption(folder: Path, ignore: str | None = None) -> str | None:
    """Compares the files of a folder with its SHA256SUMS. Files outside the folder are never read.

    Args:
      folder: the folder.
      ignore: a subfolder whose files are not compared.

    Returns:
      A sentence about the first problem: SHA256SUMS is missing, or is not such a list; or a file is missing, was
      changed, is not a regular one, or is read and not listed. None if there is no problem.

    Raises:
      OSError: a file can't be read.
    """
    if not (folder / FILE_NAME).exists():
        return (
            f"{FILE_NAME}, the list of checksums, is missing: nothing shows that the other files are intact. Where you "
            f"are sure of them, this writes it, in that folder: {COMMAND}"
        )
    listed = set()
    try:
        lines = read_limited(folder / FILE_NAME, MAX_BYTES).decode(errors="replace").splitlines()
        for number, line in enumerate(lines, start=1):
            match = _LINE.fullmatch(line)
            if match is None:
                return f"{FILE_NAME}, line {number}, is not a checksum with the name of a file."
            expected, name = match[1], PurePosixPath(match[2])
            parts = name.parts
            if name.is_absolute() or ".." in parts or not parts or "\\" in match[2]:
                return f"{FILE_NAME}, line {number}, names a file outside the folder."
            listed.add(name.as_posix())
            if parts[0] == ignore:
                continue
            if not (folder / name).exists():
                return f"{name} is missing."
            if _checksum(folder / name) != expected:
                return f"{name} was changed since it was written."
        for path in _must_be_listed(folder, ignore):
            check_regular_file(path)
            if path.relative_to(folder).as_posix() not in listed:
                return f"{path.relative_to(folder)} is not listed in {FILE_NAME}."
    except UserError as error:  # not a regular file, or a list that is too large
        return str(error)
    return None


def _must_be_listed(folder: Path, ignore: str | None) -> Iterator[Path]:
    """Everything that is read: in the folder what has a name like "_METADATA", and all but hidden files below it."""
    visited = {folder.resolve()}  # links may lead in circles
    for parent, folders, names in os.walk(folder, followlinks=True):
        new = {name: Path(parent, name).resolve() for name in sorted(folders)}
        folders[:] = [name for name in new if new[name] not in visited and (Path(parent) != folder or name != ignore)]
        visited.update(new.values())
        for path in (Path(parent, name) for name in sorted(names)):
            if path.name.startswith("_") if path.parent == folder else not path.name.startswith("."):
                yield path


def _checksum(path: Path) -> str:
    with open_regular_file(path) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
