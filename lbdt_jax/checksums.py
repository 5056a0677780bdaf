"""Checksums of the files in a folder, kept in its file SHA256SUMS in the format of the program sha256sum."""

from __future__ import annotations

import hashlib
from pathlib import Path

FILE_NAME = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS, atomically, with the checksums of all files in a folder and its subfolders."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    unfinished = folder / f"{FILE_NAME}.unfinished"
    unfinished.write_text("".join(f"{_checksum(folder / name)}  {name}\n" for name in names))
    unfinished.replace(folder / FILE_NAME)


def find_corruption(folder: Path, ignore: str | None = None) -> str | None:
    """Compares the files of a folder with its SHA256SUMS.

    Args:
      folder: the folder.
      ignore: a subfolder whose files are not compared.

    Returns:
      A sentence about the first file that is missing or was changed; None if there is no such file, or no SHA256SUMS.
    """
    if not (folder / FILE_NAME).is_file():
        return None
    for line in (folder / FILE_NAME).read_text(errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        if name.split("/")[0] == ignore:
            continue
        if not (folder / name).is_file():
            return f"{name} is missing."
        if _checksum(folder / name) != expected:
            return f"{name} was changed since it was written."
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
