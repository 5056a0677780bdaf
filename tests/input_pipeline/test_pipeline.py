"""Batches: their contract, order, resuming, division among processes, and errors for broken records."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH, box, write_a2d
from ml_collections import ConfigDict
from paths import ROOT

from configs.base import get_config
from input_pipeline.batch import random_batch
from input_pipeline.errors import UserError
from input_pipeline.images import resize_target
from input_pipeline.pipeline import evaluation_examples, samples_per_epoch, training_batches
from input_pipeline.prepare import prepare
from input_pipeline.report import load_report, records_dir
from input_pipeline.text.word_vectors import WordVectors, load_word_vectors
from input_pipeline.types import Sentence


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a small A2D-Sentences."""
    folder = tmp_path_factory.mktemp("pipeline")
    prepare("a2d_sentences", write_a2d(folder / "raw"), folder / "data")
    return folder / "data"


@pytest.fixture
def config(data_dir: Path) -> ConfigDict:
    config = get_config()
    config.data_dir = str(data_dir)
    config.image_size = (32, 64)
    config.batch_size = 2
    return config


@pytest.fixture
def word_vectors(data_dir: Path) -> WordVectors:
    return load_word_vectors("random:8", load_report(data_dir, "a2d_sentences")["tokens"])


def names(batches: list[dict]) -> list[str]:
    return [name for batch in batches for name in batch["name"]]


def take(count: int, *args, **kwargs) -> list[dict]:
    """The first training batches."""
    return list(itertools.islice(training_batches(*args, **kwargs), count))


def test_batches_satisfy_the_contract(config: ConfigDict, word_vectors: WordVectors) -> None:
    (batch,) = take(1, config, word_vectors)
    expected = random_batch(2, (32, 64), 25, 8)
    assert batch.keys() == expected.keys() | {"name"}
    for field, value in expected.items():
        assert batch[field].shape == value.shape and batch[field].dtype == value.dtype, field
    assert batch["name"].dtype == object
    for row, name in enumerate(batch["name"]):
        sentence = name.split(": ", 1)[1]
        words, word_mask = word_vectors.encode(sentence, 25)
        np.testing.assert_array_equal(batch["words"][row], words)
        np.testing.assert_array_equal(batch["word_mask"][row], word_mask)


def test_frame_earlier_frame_and_target_belong_together(config: ConfigDict, word_vectors: WordVectors) -> None:
    masks = {"walker/1/0": box(4, 4), "walker/7/0": box(4, 10), "walker/7/1": box(30, 12), "walker/12/1": box(30, 20)}
    checked = set()
    for batch in take(3, config, word_vectors):
        for row, name in enumerate(batch["name"]):
            key = name.split(":")[0]
            if key in masks:
                np.testing.assert_array_equal(batch["target"][row], resize_target(masks[key], (32, 64)))
                checked.add(key)
            index = int(key.split("/")[1])
            earlier = max(index - 6, 1)
            assert batch["frame"][row, 16:].mean() == pytest.approx(20 + 12 * (index - 1), abs=3)
            assert batch["earlier_frame"][row, 16:].mean() == pytest.approx(20 + 12 * (earlier - 1), abs=3)
    assert checked == set(masks)


def test_each_epoch_has_every_sample_once_in_another_order(config, word_vectors) -> None:
    assert samples_per_epoch(config, "train") == 6
    batches = take(12, config, word_vectors)
    epochs = [names(batches[start : start + 3]) for start in range(0, 12, 3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 6 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 2
    config.seed += 1
    assert names(take(3, config, word_vectors)) != epochs[0]


def test_the_incomplete_batch_of_an_epoch_is_dropped(config, word_vectors) -> None:
    config.batch_size = 4
    batches = take(3, config, word_vectors)
    assert all(len(set(batch["name"])) == 4 for batch in batches)


@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_resuming_gives_the_same_batches(config, word_vectors, first_step: int) -> None:
    uninterrupted = take(9, config, word_vectors)
    resumed = take(9 - first_step, config, word_vectors, first_step=first_step)
    for expected, batch in zip(uninterrupted[first_step:], resumed, strict=True):
        for field in expected:
            np.testing.assert_array_equal(batch[field], expected[field], err_msg=field)


def test_two_processes_share_the_batches_of_one(config, word_vectors) -> None:
    batches = take(4, config, word_vectors)
    parts = [take(4, config, word_vectors, process_index=index, process_count=2) for index in range(2)]
    for batch, first, second in zip(batches, *parts, strict=True):
        assert len(first["name"]) == len(second["name"]) == 1
        for field in batch:
            np.testing.assert_array_equal(np.concatenate([first[field], second[field]]), batch[field], err_msg=field)


def test_every_frame_pair_is_evaluated_once(config, word_vectors) -> None:
    examples = list(evaluation_examples(config, "train", word_vectors))
    keys = [(example.video, example.frame_index) for example in examples]
    assert sorted(keys) == [("runner", 16), ("walker", 1), ("walker", 7), ("walker", 12)]
    parts = [
        [(e.video, e.frame_index) for e in evaluation_examples(config, "train", word_vectors, index, 3)]
        for index in range(3)
    ]
    assert list(itertools.chain(*parts)) == keys
    assert [len(part) for part in parts] == [2, 1, 1]


def test_fields_of_an_evaluation_example(config, word_vectors) -> None:
    (example,) = evaluation_examples(config, "test", word_vectors)
    assert (example.video, example.frame_index) == ("Cat_-1", 8)
    assert example.sentences == (Sentence("cat is jumping.", 2),)
    assert example.original_frame.shape == example.original_earlier_frame.shape == (HEIGHT, WIDTH, 3)
    assert example.frame.shape == example.earlier_frame.shape == (32, 64, 3)
    assert example.original_frame.mean() > example.original_earlier_frame.mean() + 50
    np.testing.assert_array_equal(example.masks, box(5, 30)[None])
    np.testing.assert_array_equal(example.targets, resize_target(box(5, 30), (32, 64))[None])
    words, word_mask = word_vectors.encode("cat is jumping.", 25)
    np.testing.assert_array_equal(example.words, words[None])
    np.testing.assert_array_equal(example.word_mask, word_mask[None])


def test_error_without_records_names_the_command(config, word_vectors, tmp_path) -> None:
    config.data_dir = str(tmp_path)
    with pytest.raises(UserError, match="input_pipeline.prepare --dataset=a2d_sentences"):
        next(training_batches(config, word_vectors))
    with pytest.raises(UserError, match="input_pipeline.prepare --dataset=a2d_sentences"):
        next(evaluation_examples(config, "test", word_vectors))


def test_errors_for_an_unknown_split_and_wrong_batch_sizes(config, word_vectors) -> None:
    with pytest.raises(UserError, match="no split 'night'; it has train, test"):
        samples_per_epoch(config, "night")
    config.batch_size = 7
    with pytest.raises(UserError, match="6 training samples don't fill a batch of 7"):
        next(training_batches(config, word_vectors))
    config.batch_size = 3
    with pytest.raises(UserError, match="3 can't be divided among 2"):
        next(training_batches(config, word_vectors, process_count=2))


@pytest.mark.parametrize("damage", ["truncated", "cut between records", "flipped", "missing"])
def test_a_broken_file_of_records_is_named(config, word_vectors, data_dir, tmp_path, damage: str) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    config.data_dir = str(tmp_path / "data")
    (file,) = records_dir(config.data_dir, "a2d_sentences").glob("*train.tfrecord*")
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "cut between records":
        file.write_bytes(content[: 16 + int.from_bytes(content[:8], "little")])
    elif damage == "flipped":
        content[500] ^= 255
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(UserError, match=f"{file} is missing or broken. Delete .* and make the records again"):
        take(4, config, word_vectors)
    with pytest.raises(UserError, match=f"{file} is missing or broken. Delete .* and make the records again"):
        list(evaluation_examples(config, "train", word_vectors))


def test_a_process_that_stops_reading_exits(data_dir: Path) -> None:
    program = (
        "from configs.base import get_config\n"
        "from input_pipeline.text.word_vectors import load_word_vectors\n"
        "from input_pipeline.pipeline import training_batches\n"
        "config = get_config()\n"
        f"config.data_dir, config.batch_size = {str(data_dir)!r}, 2\n"
        "batches = training_batches(config, load_word_vectors('random:8', ['the']))\n"
        "next(batches)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
