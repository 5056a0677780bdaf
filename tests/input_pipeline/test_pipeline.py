"""Batches: their contract, order, resuming, division among processes, and errors for broken records."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fake_datasets import HEIGHT, WIDTH, box, write_a2d
from ml_collections import ConfigDict
from paths import ROOT

from configs.base import get_config
from input_pipeline.batch import random_batch
from input_pipeline.encoded_batches import encoded_batches
from input_pipeline.errors import UserError
from input_pipeline.images import resize_target
from input_pipeline.pipeline import evaluation_examples, samples_per_epoch, training_batches
from input_pipeline.prepare import prepare
from input_pipeline.record_index import index_entry, load_index
from input_pipeline.report import load_report, records_dir
from input_pipeline.text.word_vectors import WordVectors, load_word_vectors
from input_pipeline.types import Sentence


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a small A2D-Sentences."""
    folder = tmp_path_factory.mktemp("pipeline")
    prepare("a2d_sentences", write_a2d(folder / "raw"), folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def data_dir_without_index(data_dir: Path) -> Path:
    """The same records as an earlier version made them."""
    folder = data_dir.with_name("without_index")
    shutil.copytree(data_dir, folder)
    (records_dir(folder, "a2d_sentences") / "index.json").unlink()
    return folder


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


@pytest.mark.parametrize(("first_step", "index"), [(1, True), (3, True), (7, True), (7, False)])
def test_resuming_gives_the_same_batches(
    config, word_vectors, data_dir_without_index, first_step: int, index: bool
) -> None:
    config.data_dir = config.data_dir if index else str(data_dir_without_index)
    uninterrupted = take(9, config, word_vectors)
    resumed = take(9 - first_step, config, word_vectors, first_step=first_step)
    for expected, batch in zip(uninterrupted[first_step:], resumed, strict=True):
        for field in expected:
            np.testing.assert_array_equal(batch[field], expected[field], err_msg=field)


@pytest.mark.parametrize("index", [True, False])
def test_two_processes_share_the_batches_of_one(config, word_vectors, data_dir_without_index, index: bool) -> None:
    config.data_dir = config.data_dir if index else str(data_dir_without_index)
    batches = take(4, config, word_vectors)
    parts = [take(4, config, word_vectors, process_index=index, process_count=2) for index in range(2)]
    for batch, *parts_of_batch in zip(batches, *parts, strict=True):
        assert all(len(part["name"]) == 1 for part in parts_of_batch)
        for field in batch:
            joined = np.concatenate([part[field] for part in parts_of_batch])
            np.testing.assert_array_equal(joined, batch[field], err_msg=field)


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("sentences_per_frame", [1, 2])
def test_each_process_reads_its_own_records(tmp_path, process_count: int, sentences_per_frame: int) -> None:
    """600 records of 1 to 8 sentences in three files; the bytes that each process reads in an epoch, counted."""
    rng = np.random.default_rng(0)
    files, summaries = [], []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.tfrecord"))
        with tf.io.TFRecordWriter(files[-1]) as writer:
            records = [rng.bytes(length) for length in rng.integers(500, 1500, 200)]
            summaries.append([index_entry(data, int(rng.integers(1, 9))) for data in records])
            for data in records:
                writer.write(data)
    (tmp_path / "index.json").write_text(json.dumps({"train": summaries}))
    index = load_index(tmp_path, "train", files)
    assert index is not None
    config = get_config()
    config.update(batch_size=16, sentences_per_frame=sentences_per_frame, shuffle_buffer=160)
    groups = -(-index.sentence_counts // sentences_per_frame)
    slots = 16 // sentences_per_frame
    steps = groups.sum() // slots

    def epoch(process_index: int, process_count: int) -> tuple[list[list], int]:
        """The sentences of every step, each as (data of its record, number), and the number of bytes read."""
        read: list[int] = []
        source = load_index(tmp_path, "train", files)
        with pytest.MonkeyPatch.context() as patch:
            pread = os.pread
            patch.setattr(os, "pread", lambda *arguments: read.append(arguments[1]) or pread(*arguments))
            patch.setattr("input_pipeline.encoded_batches.parse_record", lambda data: data)
            patch.setattr(
                "input_pipeline.encoded_batches._collect_groups",
                lambda groups: [(record.fields(), sentence) for record, group in groups for sentence in group],
            )
            batches = encoded_batches(config, index.sentence_counts, source, steps, 0, process_index, process_count)
            return [batch() for batch in itertools.islice(batches, steps)], sum(read)

    samples, _ = epoch(0, 1)
    parts = [epoch(process, process_count) for process in range(process_count)]
    for step, batch in enumerate(samples):
        assert list(itertools.chain(*(batches[step] for batches, _ in parts))) == batch
    flat = list(itertools.chain(*samples))
    assert len(set(flat)) >= len(flat) - np.sum(groups * sentences_per_frame - index.sentence_counts)
    assert len(flat) == steps * 16
    # A share of the bytes, and a record at either end.
    total = int(index.entries[:, 0].sum())
    for _, read in parts:
        assert read == pytest.approx(total / process_count, rel=0.05, abs=4000)
    assert sum(read for _, read in parts) <= total + 1500 * process_count * slots


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


def test_evaluation_does_not_need_the_index(config, word_vectors, data_dir_without_index) -> None:
    examples = list(evaluation_examples(config, "train", word_vectors, 1, 2))
    config.data_dir = str(data_dir_without_index)
    others = list(evaluation_examples(config, "train", word_vectors, 1, 2))
    assert len(examples) == len(others) == 2
    for example, other in zip(examples, others, strict=True):
        for field in dataclasses.fields(example):
            np.testing.assert_array_equal(getattr(example, field.name), getattr(other, field.name), err_msg=field.name)


def test_resized_images_give_the_same_batches(config, word_vectors, data_dir, tmp_path, capsys) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    config.data_dir, config.sentences_per_frame = str(tmp_path / "data"), 2
    expected = take(9, config, word_vectors)
    records = records_dir(config.data_dir, "a2d_sentences")
    report = prepare("a2d_sentences", "", config.data_dir, image_size=(32, 64))
    files = list((records / "resized_32x64").iterdir())
    size = sum(file.stat().st_size for file in files)
    assert report["resized"] == {"32x64": {"frame_pairs": 4, "bytes": size}}
    assert load_report(config.data_dir, "a2d_sentences") == report
    assert "resized to 32x64 for training: 4 frame pairs" in capsys.readouterr().out
    (file,) = (file for file in files if "tfrecord" in file.name)

    for first_step in (0, 4):
        batches = take(9 - first_step, config, word_vectors, first_step=first_step)
        for batch, other in zip(batches, expected[first_step:], strict=True):
            for field in batch:
                np.testing.assert_array_equal(batch[field], other[field], err_msg=field)
                assert batch[field].dtype == other[field].dtype
    content = bytearray(file.read_bytes())
    content[2000] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is missing or broken. Delete {file.parent} and"):
        take(9, config, word_vectors)

    capsys.readouterr()
    config.image_size = (64, 32)
    assert take(1, config, word_vectors)[0]["frame"].shape == (1, 64, 32, 3)
    assert "images resized to 32x64, not to config.image_size 64x32" in capsys.readouterr().out


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
    with pytest.raises(UserError, match="no split 'night'; it has train, test. To use .*evaluation_split=test, or"):
        samples_per_epoch(config, "night")
    config.batch_size = 7
    with pytest.raises(UserError, match="6 training samples don't fill a batch of 7: lower .* to 6 or less, a mul"):
        next(training_batches(config, word_vectors))
    config.update(batch_size=30, sentences_per_frame=4)
    with pytest.raises(UserError, match="the number of devices x config.sentences_per_frame, 4. On one .*=16 works"):
        next(training_batches(config, word_vectors))
    config.batch_size = 16
    next(training_batches(config, word_vectors))
    config.sentences_per_frame = 1
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "index.json can't be read .* Delete"),
        ("{}", "index.json can't be read .'train'.* Delete"),
        ('{"train": [[[-1, 0, 1]]]}', "index.json can't be read .it describes other files.* Delete"),
        ('{"train": [[["x", 0, 1]]]}', "index.json can't be read .* Delete"),
        ('{"train": [[[90, 0, 1]]]}', "index.json and report.json disagree about train. Delete"),
    ],
)
def test_a_damaged_index_is_named(config, word_vectors, data_dir, tmp_path, content: str, message: str) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    config.data_dir = str(tmp_path / "data")
    (records_dir(config.data_dir, "a2d_sentences") / "index.json").write_text(content)
    with pytest.raises(UserError, match=message):
        take(1, config, word_vectors)


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
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
