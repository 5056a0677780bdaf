"""Flags of commands, and files that are written completely or not at all (lbdt_jax/cli.py)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from input_pipeline.errors import UserError
from lbdt_jax.cli import atomic_write, expand_flags, in_range, lock, path_flag, remove_unfinished


@pytest.mark.parametrize("text", ["1e308", "1e999", "nan", "-inf", "-1", "0.05", "100001"])
def test_numbers_out_of_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        in_range(float, 0.1, 1e5)(text)
    with pytest.raises(argparse.ArgumentTypeError):
        in_range(int, 0, 10**9)("1" * 400)  # no float


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert path_flag("~/x") == Path("/home/me/x") and path_flag("a/~") == Path("a/~")
    for text in ("", "a\0b"):
        with pytest.raises(argparse.ArgumentTypeError):
            path_flag(text)
    arguments = ["main", "--config=~/a.py", "--workdir", "~/run", "--config.raw=~", "--compare=~/a,~/b", "--x=b~/c"]
    assert expand_flags(arguments) == [
        "main",
        "--config=/home/me/a.py",
        "--workdir",
        "/home/me/run",
        "--config.raw=/home/me",
        "--compare=/home/me/a,/home/me/b",
        "--x=b~/c",
    ]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for name in ("old", "new"):
        with atomic_write(target) as folder:
            folder.mkdir()
            (folder / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"] and [*tmp_path.iterdir()] == [target]
    # Through a link, what it leads to stays.
    (tmp_path / "link").symlink_to(target)
    with atomic_write(tmp_path / "link") as folder:
        folder.mkdir()
    assert [path.name for path in target.iterdir()] == ["new"] and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_folder_that_can_not_be_replaced_stays(
    tmp_path: Path, failing_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, calls, replace = tmp_path / "a", [], os.replace
    target.mkdir()
    (target / "mine").touch()

    def fail(*paths: Path) -> None:
        calls.append(paths)
        if len(calls) == failing_call:
            raise OSError("stopped")
        replace(*paths)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="stopped"), atomic_write(target) as folder:
        folder.mkdir()
    assert [path.name for path in target.iterdir()] == ["mine"] and [*tmp_path.iterdir()] == [target]


def test_processes_of_the_same_number_do_not_meet(tmp_path: Path) -> None:
    """In containers, the process of a job often has the number 1 on every machine, and after every start."""
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        for folder in (first, second):
            folder.mkdir()
        (first / "mine").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"] and [*tmp_path.iterdir()] == [tmp_path / "a"]


def test_only_own_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in (".a.png.12", ".a.png.0a1f", ".a.png.bak", ".notes.12", "a.png.12", "a.png"):
        (tmp_path / name).touch()
    (tmp_path / ".b.png.12").mkdir()
    remove_unfinished(tmp_path, r"\w\.png")
    assert {path.name for path in tmp_path.iterdir()} == {".a.png.bak", ".notes.12", "a.png.12", "a.png", ".b.png.12"}


def test_a_locked_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a").open("ab") as first, (tmp_path / "a").open("ab") as second:
        lock(first, tmp_path)
        with pytest.raises(UserError, match="Another process is writing to"):
            lock(second, tmp_path)
    with (tmp_path / "a").open("ab") as third:
        lock(third.fileno(), tmp_path)
