"""Several datasets in one training: shares, passes, processes, resuming, and errors about the configuration."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from fake_datasets import write_a2d, write_jhmdb
from fake_refcoco import write_refcoco
from ml_collections import ConfigDict

from configs.base import get_config
from input_pipeline.datasets import all_datasets, evaluated_splits, validated_splits
from input_pipeline.encoded_batches import TrainingDataset, joint_batches
from input_pipeline.epochs import describe_epoch, steps_per_epoch
from input_pipeline.errors import UserError
from input_pipeline.pipeline import augmented_groups, training_batches, vocabulary
from input_pipeline.prepare import prepare, prepare_for
from input_pipeline.record_index import index_entry, load_index
from input_pipeline.report import load_report, records_dir
from input_pipeline.sample_order import epoch_positions, sample_order
from input_pipeline.text.word_vectors import load_word_vectors


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ((3, 1), 40, [30, 10]),
        ((2.5, 1), 64, [46, 18]),
        ((1, 2, 4), 700, [100, 200, 400]),
        ((0.1, 0.2, 0.7), 1001, [100, 200, 701]),
        ((1e-3, 1), 500, [0, 500]),
        ((1,), 7, [7]),
    ],
)
def test_shares_are_exact_and_even(shares: tuple[float, ...], count: int, expected: list[int]) -> None:
    positions = epoch_positions(shares, count)
    assert list(map(len, positions)) == expected
    np.testing.assert_array_equal(np.sort(np.concatenate(positions)), np.arange(count))
    so_far = np.arange(1, count + 1)
    for share, own in zip(shares, positions, strict=True):  # at any time less than one sample too many or too few
        assert np.abs(np.searchsorted(own, so_far, "left") - share / sum(shares) * so_far).max() < 1.5


@pytest.mark.parametrize(("slots", "buffer", "window"), [(1, 40, 40), (2, 40, 20), (8, 400, 50), (8, 4, 1)])
def test_the_sentences_of_a_record_are_spread_over_the_shuffle_buffer(slots: int, buffer: int, window: int) -> None:
    """Each of 400 records has 4 sentences, and each group 1; `window` is the buffer in groups of a slot."""
    order = sample_order(np.full(400, 4), 1, np.arange(1600) % slots, buffer, (0,))
    samples = list(zip(order.records.tolist(), order.sentences[:, 0].tolist(), strict=True))
    assert sorted(samples) == list(itertools.product(range(400), range(4)))
    spreads = []
    for slot in range(slots):
        records = order.records[slot::slots]  # those of other slots are not among them
        spreads += [np.ptp(np.flatnonzero(records == record)) for record in np.unique(records)]
    assert len(spreads) == 400
    if window == 1:
        assert set(spreads) == {3}  # one after the other
    else:
        # The range of four random numbers from 0 to 1 is 3/5 on average.
        assert np.mean(spreads) == pytest.approx(0.6 * window, rel=0.15) and max(spreads) < 2 * window + 3


SIZES, SHARES = {"large": 400, "small": 60}, (3.0, 1.5)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """Two splits of 400 and of 60 records of 1 to 8 sentences: the folder and the file of each."""
    rng = np.random.default_rng(0)
    folders = {}
    for name, size in SIZES.items():
        folder = tmp_path_factory.mktemp(name)
        file = str(folder / "0.tfrecord")
        records = [rng.bytes(length) for length in rng.integers(500, 1500, size)]
        with tf.io.TFRecordWriter(file) as writer:
            for data in records:
                writer.write(data)
        entries = [index_entry(data, int(rng.integers(1, 9))) for data in records]
        (folder / "index.json").write_text(json.dumps({"train": [entries]}))
        folders[name] = folder, [file]
    return folders


class Reading:
    """Batches of the two splits, read without decoding: what each step uses, and the bytes that were read."""

    def __init__(self, indexed: dict[str, tuple[Path, list[str]]], sentences_per_frame: int) -> None:
        self.indices = {name: load_index(folder, "train", files) for name, (folder, files) in indexed.items()}
        self.counts = {name: index.sentence_counts for name, index in self.indices.items() if index}
        self.groups = {name: int((-(-c // sentences_per_frame)).sum()) for name, c in self.counts.items()}
        self.config = get_config()
        self.config.update(batch_size=16, sentences_per_frame=sentences_per_frame, shuffle_buffer=160)
        self.slots = 16 // sentences_per_frame
        self.steps = int(self.groups["large"] * sum(SHARES) / SHARES[0]) // self.slots
        self.read: Counter[str] = Counter()

    def batches(self, first: int, last: int, process: int = 0, processes: int = 1) -> list[list[Any]]:
        """The steps from `first` to `last`: for each slot (dataset, pass, record, its sentences)."""
        self.read.clear()
        datasets = []
        for own, (name, index) in zip(
            epoch_positions(SHARES, self.steps * self.slots), self.indices.items(), strict=True
        ):
            source = CountedSource(index, name, self.read)
            datasets.append(TrainingDataset(self.counts[name], source, own, self.groups[name], name))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("input_pipeline.encoded_batches.parse_record", lambda data: data)
            patch.setattr("input_pipeline.encoded_batches._collect_groups", describe)
            batches = joint_batches(self.config, datasets, self.steps, first, process, processes)
            return [batch() for batch in itertools.islice(batches, last - first)]


class CountedSource:
    def __init__(self, index: Any, name: str, read: Counter[str]) -> None:
        self._index, self._name, self._read = index, name, read

    def read(self, record: int) -> Any:
        self._read[self._name] += len(self._index.read(record))
        return record

    def close(self) -> None:
        self._index.close()


def describe(groups: list[Any]) -> list[Any]:
    return [(record.prefix, record.epoch, record.fields(), tuple(sentences)) for record, sentences in groups]


@pytest.mark.parametrize("sentences_per_frame", [1, 2])
def test_every_pass_has_every_sample_whatever_the_epochs(
    indexed: dict[str, tuple[Path, list[str]]], sentences_per_frame: int
) -> None:
    reading = Reading(indexed, sentences_per_frame)
    used = list(itertools.chain(*reading.batches(0, 2 * reading.steps)))
    for (name, counts), share in zip(reading.counts.items(), SHARES, strict=True):
        own = [use[1:] for use in used if use[0] == f"{name}/".encode()]
        assert len(own) == pytest.approx(len(used) * share / sum(SHARES), abs=2)
        passes = [list(group) for _, group in itertools.groupby(own, lambda use: use[0])]
        assert [epoch for ((epoch, *_), *_) in passes] == list(range(len(passes)))
        for uses in passes[:-1]:  # `small` is passed through several times in an epoch
            samples = {(record, sentence) for _, record, sentences in uses for sentence in sentences}
            assert len(uses) == reading.groups[name] and len(samples) == counts.sum()
        assert passes[0] != [(0, *use[1:]) for use in passes[-1]][: len(passes[0])]
    assert used[: reading.slots * reading.steps] != used[reading.slots * reading.steps :]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batches_and_read_their_own_records(
    indexed: dict[str, tuple[Path, list[str]]], processes: int
) -> None:
    reading = Reading(indexed, 1)
    first = reading.steps // 3
    expected = reading.batches(first, reading.steps + 7)
    total = dict(reading.read)
    parts, sums = [], Counter[str]()
    for process in range(processes):
        parts.append(reading.batches(first, reading.steps + 7, process, processes))
        sums.update(reading.read)
        assert reading.read["large"] == pytest.approx(total["large"] / processes, rel=0.12)
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == expected
    for name, size in sums.items():  # beside records at the border of two slots, each is read by one process only
        assert size <= total[name] * 1.05 + 1500 * processes
    # Resuming at any step gives what an uninterrupted run gives.
    later = reading.steps + 3
    assert reading.batches(later, reading.steps + 7) == expected[later - first :]


# -- with records


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of small copies of A2D-Sentences (6 training samples) and RefCOCO (3)."""
    data = tmp_path_factory.mktemp("joint")
    write_a2d(data / "raw" / "a2d_sentences")
    write_refcoco(data / "raw" / "refcoco")
    prepare("a2d_sentences", "", data)
    prepare("refcoco", "", data)
    return data


@pytest.fixture
def config(data_dir: Path) -> ConfigDict:
    config = get_config()
    config.update(data_dir=str(data_dir), image_size=(32, 64), batch_size=4)
    config.training_datasets = (("a2d_sentences", 1.0), ("refcoco", 1.0))
    return config


def take(config: ConfigDict, count: int, first_step: int = 0, **processes: int) -> list[dict]:
    word_vectors = load_word_vectors("random:8", vocabulary(config))
    return list(itertools.islice(training_batches(config, word_vectors, first_step, **processes), count))


def assert_same(batches: list[dict], expected: list[dict]) -> None:
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for field in batch:
            np.testing.assert_array_equal(batch[field], other[field], err_msg=field)


def test_batches_of_two_datasets(config: ConfigDict, data_dir: Path, tmp_path: Path) -> None:
    assert steps_per_epoch(config) == 3  # of 4 samples, for 6 of A2D-Sentences
    assert describe_epoch(config) == [
        "a2d_sentences: 50.0% of the samples; an epoch passes 1 times through it",
        "refcoco: 50.0% of the samples; an epoch passes 2 times through it",
    ]
    config.update(augment_flip=0.5, augment_brightness=0.3)
    expected = take(config, 7)
    names = [[name.split("/")[0] for name in batch["name"]] for batch in expected]
    assert all(Counter(step) == {"a2d_sentences": 2, "refcoco": 2} for step in names)
    stills = [name for batch in expected[:3] for name in batch["name"] if name.startswith("refcoco/")]
    assert Counter(stills) == dict.fromkeys(set(stills), 2) and len(set(stills)) == 3
    # Two passes within an epoch are augmented anew.
    images = {name: {frame.tobytes() for frame, n in frames(expected[:3]) if n == name} for name in stills}
    assert all(len(of_name) == 2 for of_name in images.values())
    assert_same(take(config, 4, first_step=3), expected[3:])
    parts = [take(config, 7, process_index=index, process_count=2) for index in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, expected)
    assert [group.names for group, *_ in itertools.islice(augmented_groups(config), 4)] == [
        (name,) for name in expected[0]["name"]
    ]
    # Frames of one of them kept at the model's size change nothing.
    shutil.copytree(data_dir, tmp_path / "data")
    config.data_dir = str(tmp_path / "data")
    prepare("refcoco", "", config.data_dir, image_size=(32, 64))
    assert_same(take(config, 7), expected)


def frames(batches: list[dict]) -> list[tuple[np.ndarray, str]]:
    return [(frame, name) for batch in batches for frame, name in zip(batch["frame"], batch["name"], strict=True)]


def test_one_dataset_listed_alone_is_the_dataset_alone(config: ConfigDict) -> None:
    config.training_datasets = (("a2d_sentences", 5.0),)
    listed = take(config, 5)
    config.training_datasets = ()
    assert_same(listed, take(config, 5))
    assert describe_epoch(config) == []


def test_the_vocabulary_is_that_of_all_datasets(config: ConfigDict, data_dir: Path) -> None:
    tokens = [set(load_report(data_dir, name)["tokens"]) for name in ("a2d_sentences", "refcoco")]
    assert tokens[1] - tokens[0] and vocabulary(config) == sorted(tokens[0] | tokens[1])
    config.update(training_datasets=(), evaluation_datasets=(("a2d_sentences", "test"), ("refcoco", "val")))
    assert vocabulary(config) == sorted(tokens[0] | tokens[1])
    config.evaluation_datasets = ()
    assert vocabulary(config) == load_report(data_dir, "a2d_sentences")["tokens"]


def test_what_is_evaluated_and_validated(config: ConfigDict) -> None:
    assert evaluated_splits(config) == [("a2d_sentences", "test"), ("refcoco", "test")] == validated_splits(config)
    config.validation_split = "val"
    assert validated_splits(config) == [("a2d_sentences", "val"), ("refcoco", "val")]
    config.evaluation_datasets = (("refcoco", "testA"), ("jhmdb_sentences", "test"))
    assert evaluated_splits(config) == [("refcoco", "testA"), ("jhmdb_sentences", "test")]
    assert all_datasets(config) == ["a2d_sentences", "refcoco", "jhmdb_sentences"]
    config.update(validation_datasets=(("mevis", "valid_u"),), validation_every_steps=10)
    assert validated_splits(config) == [("mevis", "valid_u")] and all_datasets(config)[-1] == "mevis"


def test_records_of_all_datasets_are_prepared(config: ConfigDict, data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "raw", tmp_path / "raw")
    (tmp_path / "raw" / "a2d_sentences").rename(tmp_path / "elsewhere")
    config.update(data_dir=str(tmp_path), raw=str(tmp_path / "elsewhere"), frame_interval=4)
    config.training_datasets = (*config.training_datasets, ("refcocog", 1.0))
    with pytest.raises(UserError, match=r"(?s)raw/refcocog lacks refcocog/instances.json .*lichengunc"):
        prepare_for(config)
    assert not records_dir(tmp_path, "a2d_sentences").exists()  # what is missing is found first
    config.training_datasets = config.training_datasets[:2]
    prepare_for(config)
    assert load_report(tmp_path, "a2d_sentences")["interval"] == 4 and load_report(tmp_path, "refcoco")["interval"] == 1
    prepare("refcoco", "", shutil.copytree(tmp_path / "raw", tmp_path / "other" / "raw").parent, interval=2)
    config.data_dir = str(tmp_path / "other")
    prepare_for(config)  # records with another interval, made on purpose, are used as they are
    assert load_report(config.data_dir, "refcoco")["interval"] == 2


def test_sentences_without_a_target_are_trained_on_where_there_are_some(config: ConfigDict, tmp_path: Path) -> None:
    write_a2d(tmp_path / "raw" / "a2d_sentences")
    write_refcoco(tmp_path / "raw" / "grefcoco", "grefcoco", "grefs(unc).json")
    config.update(data_dir=str(tmp_path), no_target_sentences=True, batch_size=2)
    config.training_datasets = (("a2d_sentences", 1.0), ("grefcoco", 1.0))
    prepare_for(config)
    assert load_report(tmp_path, "grefcoco")["splits"]["train"]["groups"]["no target"] == 1
    names = [name for batch in take(config, 6) for name in batch["name"]]
    assert any(name.endswith("/0: a green horse") for name in names)
    config.no_target_sentences = False
    with pytest.raises(UserError, match="were made with training sentences that have no target, but config.no_target"):
        prepare_for(config)
    shutil.rmtree(tmp_path / "a2d_sentences")
    config.update(no_target_sentences=True, training_datasets=())
    with pytest.raises(UserError, match="a2d_sentences has no sentences without a target: set config.no_target_sent"):
        prepare_for(config)


def test_errors_of_several_datasets(config: ConfigDict, data_dir: Path, tmp_path: Path) -> None:
    config.training_datasets = (("a2d_sentences", 1.0), ("ref_coco", 1.0))
    with pytest.raises(UserError, match="Unknown dataset 'ref_coco'. Choose one of a2d_sentences, "):
        prepare_for(config)
    config.training_datasets = (("a2d_sentences", 1.0), ("refcoco", 1e-4))
    with pytest.raises(UserError, match="share of refcoco in config.training_datasets gives it none of the 4 places"):
        take(config, 1)
    config.training_datasets = (("a2d_sentences", 1e-6), ("refcoco", 1e6))
    with pytest.raises(UserError, match="a pass through it, would take 6,000,000,000,0.. samples. Raise its share"):
        steps_per_epoch(config)
    config.update(training_datasets=(("a2d_sentences", 3.0), ("refcoco", 1.0)), batch_size=64)
    with pytest.raises(UserError, match="6 training samples don't fill a batch of 64, where .* a share of 0.75: lower"):
        steps_per_epoch(config)

    shutil.copytree(data_dir, tmp_path / "data")
    config.update(data_dir=str(tmp_path / "data"), batch_size=4)
    os.remove(records_dir(config.data_dir, "refcoco") / "index.json")
    with pytest.raises(UserError, match="records of refcoco were made by an earlier version.* Delete .*refcoco"):
        take(config, 1)
    write_jhmdb(tmp_path / "data" / "raw" / "jhmdb_sentences")
    config.training_datasets = (("a2d_sentences", 1.0), ("jhmdb_sentences", 1.0))
    prepare_for(config)
    with pytest.raises(UserError, match="jhmdb_sentences has no split 'train'; it has test. It is for evaluation only"):
        take(config, 1)
