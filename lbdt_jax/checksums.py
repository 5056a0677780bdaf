"""Checksums of the files in a folder, kept in its file SHA256SUMS in the format of the program sha256sum."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import cast

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, open_regular_file, read_limited

FILE_NAME = "SHA256SUMS"
#: Limit for SHA256SUMS. A checkpoint has a few hundred files, each with a line of about 120 bytes.
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
    try:
        listed = read_checksums(folder)
        for name, expected in listed.items():
            if PurePosixPath(name).parts[0] != ignore and (problem := _compare(folder, name, expected)):
                return problem
        for path in _must_be_listed(folder, ignore):
            check_regular_file(path)
            if path.relative_to(folder).as_posix() not in listed:
                return f"{path.relative_to(folder)} is not listed in {FILE_NAME}."
    except UserError as error:  # not a regular file, or no list of checksums
        return str(error)
    return None


def find_changed(folder: Path, names: Collection[str]) -> str | None:
    """Compares some files of a folder with its SHA256SUMS; all other files, listed or not, may be anything.

    Returns:
      A sentence about the first problem, as `find_corruption`; None if there is none.

    Raises:
      OSError: a file can't be read.
    """
    try:
        listed = read_checksums(folder)
        for name in names:
            problem = _compare(folder, name, listed.get(name))
            if problem:
                return problem
    except UserError as error:
        return str(error)
    return None


def read_checksums(folder: Path) -> dict[str, str]:
    """The file's name -> checksum in SHA256SUMS; the names lead to nothing outside the folder, except by links.

    Raises:
      UserError: it is missing, or is not such a list.
      OSError: it can't be read.
    """
    if not (folder / FILE_NAME).exists():
        raise UserError(
            f"{FILE_NAME}, the list of checksums, is missing: nothing shows that the other files are intact. Where you "
            f"are sure of them, this writes it, in that folder: {COMMAND}"
        )
    checksums = {}
    lines = read_limited(folder / FILE_NAME, MAX_BYTES).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{FILE_NAME}, line {number}, is not a checksum with the name of a file.")
        name = PurePosixPath(match[2])
        if name.is_absolute() or ".." in name.parts or not name.parts or "\\" in match[2]:
            raise UserError(f"{FILE_NAME}, line {number}, names a file outside the folder.")
        checksums[name.as_posix()] = match[1]
    return checksums


def _compare(folder: Path, name: str, expected: str | None) -> str | None:
    """A sentence about a file that is missing, not listed or changed. Raises UserError if it is not a regular one."""
    if not (folder / name).exists():
        return f"{name} is missing."
    if expected is None:
        return f"{name} is not listed in {FILE_NAME}."
    return None if _checksum(folder / name) == expected else f"{name} was changed since it was written."


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
