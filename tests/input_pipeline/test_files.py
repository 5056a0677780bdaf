"""Only regular files are read, and no more of them than expected (input_pipeline/files.py)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, open_regular_file, read_limited


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


READERS = [check_regular_file, open_regular_file, lambda path: read_limited(path, 10)]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "a.jpg is a folder"),
        (os.mkfifo, "a.jpg is a named pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "a.jpg is a device"),
        (link_to_pipe, "a.jpg is a named pipe"),
    ],
)
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], object], message: str, read: Callable) -> None:
    make(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("read", READERS)
def test_missing_files_are_oserrors(tmp_path: Path, read: Callable) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a.jpg")


def test_sizes_are_limited(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"0123456789")
    (tmp_path / "link").symlink_to(file)
    assert check_regular_file(str(file)) == 10 and read_limited(tmp_path / "link", 10) == b"0123456789"
    with pytest.raises(UserError, match="The limit is"):
        read_limited(file, 9)
    with pytest.raises(UserError, match="The limit is"):
        check_regular_file(file, 9)
    os.truncate(file, 2**40)  # takes no space on the disk
    with pytest.raises(UserError, match="1,048,576.0 MB or more. The limit is 1.0 MB"):
        read_limited(file, 2**20)
