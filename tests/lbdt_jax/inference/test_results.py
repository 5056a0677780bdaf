"""Prediction folders are created, resumed and loaded (lbdt_jax/inference/results.py)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.errors import UserError
from lbdt_jax.cli import atomic_write, lock
from lbdt_jax.inference.results import PredictionStore

SETTINGS = {"text": ("the dog", "a cat"), "every": 1, "end": None}


def append_frames(store: PredictionStore, indices: range) -> list[np.ndarray]:
    """Stores random masks of two sentences, and returns them."""
    frames = [np.random.default_rng(index).random((2, 6, 8)) > 0.5 for index in indices]
    for index, masks in zip(indices, frames, strict=True):
        store.append(index, index / 24, masks, np.array([0.25, index / 8]))
    return frames


def test_stored_frames_are_loaded(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path / "new" / "folder", sentences=2)
    store.create(SETTINGS)
    assert list(store.load()) == []
    frames = append_frames(store, range(3))
    loaded = list(store.load())
    assert [(prediction.index, prediction.scores) for prediction in loaded] == [(i, (0.25, i / 8)) for i in range(3)]
    assert [prediction.time for prediction in loaded] == pytest.approx([0, 1 / 24, 2 / 24], abs=1e-6)
    for prediction, masks in zip(loaded, frames, strict=True):
        np.testing.assert_array_equal(prediction.decode_masks(), masks)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="Nothing is overwritten"):
            PredictionStore(folder, 2).create(SETTINGS)
    (tmp_path / "empty").mkdir()
    PredictionStore(tmp_path / "empty", 2).create(SETTINGS)


@pytest.mark.parametrize("removed", [0, 1, 20, 150])
def test_incomplete_frame_is_removed(tmp_path: Path, removed: int) -> None:
    store = PredictionStore(tmp_path, sentences=2)
    store.create(SETTINGS)
    append_frames(store, range(3))
    complete = (tmp_path / "masks.jsonl").read_bytes()
    (tmp_path / "masks.jsonl").write_bytes(complete[: len(complete) - removed])
    assert not store.resume(SETTINGS)
    remaining = 2 if removed else 3
    assert [prediction.index for prediction in store.load()] == list(range(remaining))
    append_frames(store, range(remaining, 3))
    assert (tmp_path / "masks.jsonl").read_bytes() == complete


def test_only_a_run_with_the_same_settings_is_resumed(tmp_path: Path) -> None:
    store = PredictionStore(tmp_path, sentences=2)
    with pytest.raises(UserError, match="no run to resume"):
        store.resume(SETTINGS)
    store.create(SETTINGS)
    assert store.resume(SETTINGS) is False  # killed before its first frame
    with pytest.raises(UserError, match="every: 1 there, 2 requested"):
        store.resume(SETTINGS | {"every": 2})
    store.finish()
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS | {
        "text": ["the dog", "a cat"],
        "finished": True,
    }
    assert store.resume(SETTINGS) is True


@pytest.mark.parametrize("line", [b"no json\n", b"{}\n", b"[1]\n"])
def test_damaged_lines_are_named(tmp_path: Path, line: bytes) -> None:
    store = PredictionStore(tmp_path, sentences=2)
    store.create(SETTINGS)
    append_frames(store, range(1))
    with (tmp_path / "masks.jsonl").open("ab") as file:
        file.write(2 * line)
    with pytest.raises(UserError, match="masks.jsonl is damaged in line 3 or after it"):
        list(store.load())


# -- resuming after someone else had the folder


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "run"
    store = PredictionStore(folder, sentences=2)
    store.create(SETTINGS)
    append_frames(store, range(3))
    store.close()
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def edit_lines(edit: Callable[[list[str]], list[str]]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "masks.jsonl"
        file.write_text("".join(edit(file.read_text().splitlines(keepends=True))))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write("settings.json", "[]"), "settings.json is not that of a run, or is damaged"),
        (write("settings.json", "null"), "settings.json is not that of a run, or is damaged"),
        (write("settings.json", '{"finished": "no"}'), "should be true or false"),
        (write("settings.json", '{"text": ['), "settings.json is not that of a run, or is damaged"),
        (write("settings.json", "[" * 100_000), "settings.json is not that of a run, or is damaged"),
        (write("settings.json", "9" * 10_000), "settings.json is not that of a run, or is damaged"),
        (write("settings.json", json.dumps({"finished": False, "text": ["x"] * 10**5})), "has other settings"),
        (lambda folder: os.truncate(folder / "settings.json", 2**33), "The limit is"),
        (in_place_of("settings.json", os.mkfifo), "is a named pipe"),
        (in_place_of("masks.jsonl", os.mkfifo), "is a named pipe"),
        (in_place_of("masks.sha256", lambda _: None), "masks.sha256, with the checksums of the masks, is missing"),
        (edit_lines(lambda lines: [*lines[:2], lines[4], *lines[3:]]), "was changed in line 3"),
        (edit_lines(lambda lines: [lines[0].replace("0.25", "0.26"), *lines[1:]]), "was changed in line 1"),
        (edit_lines(lambda lines: lines[2:]), "was changed in line 1"),
        (edit_lines(lambda lines: [*lines[:3], lines[3].replace("\n", "\r\n"), *lines[4:]]), "was changed in line 3"),
        (edit_lines(lambda lines: ["null\n"] * 6), "was changed in line 1"),
    ],
)
def test_changes_are_noticed(killed_run: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = shutil.copytree(killed_run, tmp_path / "run")
    damage(folder)
    before = state(folder)
    with pytest.raises(UserError, match=message) as error_info:
        PredictionStore(folder, 2).resume(SETTINGS)
    assert len(str(error_info.value)) < 2000
    assert state(folder) == before


@pytest.mark.parametrize(
    ("damage", "remaining"),
    [
        (edit_lines(lambda lines: [*lines, "anything\n", "else\n"]), 3),
        (edit_lines(lambda lines: lines[:3]), 1),
        (lambda folder: os.truncate(folder / "masks.jsonl", 2**33), 3),
        (lambda folder: os.truncate(folder / "masks.sha256", 100), 1),
        (lambda folder: os.truncate(folder / "masks.jsonl", 0), 0),
    ],
)
def test_what_is_not_whole_is_predicted_again(
    killed_run: Path, tmp_path: Path, damage: Callable[[Path], object], remaining: int
) -> None:
    folder = shutil.copytree(killed_run, tmp_path / "run")
    damage(folder)
    store = PredictionStore(folder, 2)
    assert store.resume(SETTINGS) is False
    append_frames(store, range(remaining, 3))
    for name in ("masks.jsonl", "masks.sha256"):
        assert (folder / name).read_bytes() == (killed_run / name).read_bytes()


def test_a_complete_run_is_checked(killed_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed_run, tmp_path / "run")
    store = PredictionStore(folder, 2)
    store.resume(SETTINGS)
    store.finish()
    assert store.resume(SETTINGS) is True
    (folder / "masks.jsonl").write_text("")
    with pytest.raises(UserError, match="was cut"):
        store.resume(SETTINGS)
    (folder / "masks.sha256").unlink()  # a complete run of an earlier version
    assert store.resume(SETTINGS) is True


@pytest.mark.parametrize("begin", [PredictionStore.create, PredictionStore.resume])
def test_a_run_that_was_killed_at_once_is_begun_anew(tmp_path: Path, begin: Callable[..., object]) -> None:
    with contextlib.suppress(KeyboardInterrupt), atomic_write(tmp_path / "settings.json") as unfinished:
        raise KeyboardInterrupt  # to learn its name, which a killed process leaves behind
    for path in (tmp_path / "masks.jsonl", unfinished, tmp_path / ".settings.json.12"):  # the last of earlier versions
        path.write_text("" if path.name == "masks.jsonl" else '{"text"')
    assert not begin(PredictionStore(tmp_path, 2), SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.jsonl", "settings.json"]


@pytest.mark.parametrize("name", [".settings.json.mine", "masks.sha256", "notes"])
def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "masks.jsonl").touch()
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="Nothing is overwritten"):
        PredictionStore(tmp_path, 2).create(SETTINGS)
    with pytest.raises(UserError, match="no run to resume"):
        PredictionStore(tmp_path, 2).resume(SETTINGS)


def test_one_run_at_a_time(killed_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed_run, tmp_path / "run")
    first = PredictionStore(folder, 2)
    first.resume(SETTINGS)
    with pytest.raises(UserError, match="Another process is writing to"):
        PredictionStore(folder, 2).resume(SETTINGS)
    first.close()
    assert PredictionStore(folder, 2).resume(SETTINGS) is False

    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "masks.jsonl").touch()
    with (tmp_path / "new" / "masks.jsonl").open("ab") as file:  # before the other run has written its settings
        lock(file, tmp_path)
        with pytest.raises(UserError, match="Another process is writing to"):
            PredictionStore(tmp_path / "new", 2).create(SETTINGS)


def test_own_temporary_files_are_removed(killed_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(killed_run, tmp_path / "run")
    for name in ("masks/1/.000003.png.9", "explain/.000003-1.png.9", ".contact_sheet.png.9", "masks/1/.mine.9"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    PredictionStore(folder, 2).resume(SETTINGS)
    assert [path.name for path in folder.rglob(".*")] == [".mine.9"]


@pytest.mark.parametrize(
    "change",
    [
        {"frame": -1},
        {"frame": True},
        {"time": float("nan")},
        {"time": 10**400},
        {"sentence": 2},
        {"confidence": float("nan")},
        {"confidence": 1.5},
        {"segmentation": None},
        {"segmentation": {"size": [2**20, 2**20], "counts": "0`1"}},
        {"segmentation": {"size": [6, -8], "counts": "`1"}},
        {"segmentation": {"size": "68", "counts": "`1"}},
        *({"segmentation": {"size": [6, 8], "counts": counts}} for counts in ("", "0", "1000", "o" * 50, "~~", "é", 5)),
    ],
)
def test_masks_are_checked_before_they_are_decoded(tmp_path: Path, change: dict) -> None:
    store = PredictionStore(tmp_path, sentences=1)
    line = {"frame": 0, "time": 0.0, "sentence": 1, "confidence": 0.5, "segmentation": {"size": [6, 8], "counts": "`1"}}
    (tmp_path / "masks.jsonl").write_text(json.dumps(line) + "\n")
    assert not next(store.load()).decode_masks().any()
    (tmp_path / "masks.jsonl").write_text(json.dumps(line | change) + "\n")
    with pytest.raises(UserError, match="masks.jsonl is damaged in line 1"):
        next(store.load())
