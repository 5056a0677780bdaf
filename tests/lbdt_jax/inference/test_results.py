"""Prediction folders are created, resumed and loaded (lbdt_jax/inference/results.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.errors import UserError
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
