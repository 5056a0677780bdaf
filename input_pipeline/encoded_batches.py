"""A process's part of each training batch, before anything is decoded: which records, which of their sentences."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.record_dataset import as_numpy, parse_record, record_files, record_parser, split_counts
from input_pipeline.record_index import RecordIndex
from input_pipeline.sample_order import sample_order


class EncodedBatch(NamedTuple):
    """A process's part of a batch, images and sentences still encoded, fields as in `input_pipeline.batch`.

    Beside these, for each frame pair the index of its dataset among those of the training, and how often the training
    has passed through that dataset before: the epoch, if it is the only one.
    """

    frames: list[bytes]
    earlier_frames: list[bytes]
    masks: list[bytes]
    texts: list[bytes]
    names: list[bytes]
    datasets: list[int]
    epochs: list[int]


class TrainingDataset(NamedTuple):
    """A dataset of a training.

    Attributes:
      sentence_counts: (n,) number of sentences of each record.
      source: its records.
      positions: those that it fills of an epoch's batches, see `sample_order.epoch_positions`.
      groups: number of groups of `sentences_per_frame` sentences in one pass through it.
      name: where there are several; it begins the names of samples, and its random numbers are its own.
    """

    sentence_counts: np.ndarray
    source: RecordIndex
    positions: np.ndarray
    groups: int
    name: str = ""


def encoded_batches(
    config: ConfigDict,
    sentence_counts: np.ndarray,
    source: RecordIndex,
    steps: int,
    first_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[Callable[[], EncodedBatch]]:
    """`joint_batches` of one dataset: an epoch is a pass through it, up to its last complete batch."""
    groups = steps * (config.batch_size // config.sentences_per_frame)
    dataset = TrainingDataset(sentence_counts, source, np.arange(groups), groups)
    yield from joint_batches(config, [dataset], steps, first_step, process_index, process_count)


def joint_batches(
    config: ConfigDict,
    datasets: Sequence[TrainingDataset],
    steps: int,
    first_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[Callable[[], EncodedBatch]]:
    """Yields functions that read a process's part of each batch, to be called in any order by any thread.

    Each dataset is passed through again and again, whatever the epochs: every pass has each of its samples, in a new
    order.

    Args:
      config: uses the fields batch_size, sentences_per_frame, sentences_per_epoch, shuffle_buffer and seed.
      datasets: they fill all positions of an epoch.
      steps: in an epoch.
      first_step: number of batches to skip.
      process_index: which part of each batch to read.
      process_count: number of parts.
    """
    slots = config.batch_size // config.sentences_per_frame
    own_slots = range(process_index * slots // process_count, (process_index + 1) * slots // process_count)
    dataset_of = np.empty(steps * slots, np.int32)
    for number, dataset in enumerate(datasets):
        dataset_of[dataset.positions] = number
    dataset_of = dataset_of.reshape(steps, slots)[:, own_slots.start : own_slots.stop]
    with contextlib.ExitStack() as stack:
        for dataset in datasets:
            stack.enter_context(contextlib.closing(dataset.source))
        groups = [
            _groups_of(config, dataset, number, steps, first_step, own_slots) for number, dataset in enumerate(datasets)
        ]
        for step in itertools.count(first_step):
            yield partial(_collect_groups, [next(groups[number]) for number in dataset_of[step % steps].tolist()])


def _groups_of(
    config: ConfigDict, dataset: TrainingDataset, number: int, steps: int, first_step: int, own_slots: range
) -> Iterator[tuple[_Record, list[int]]]:
    """Yields what a dataset puts into a process's slots: records, each with the indices of K of its sentences."""
    # A use counts the groups that the dataset has contributed since the training began, over all passes through it.
    slots, per_epoch = config.batch_size // config.sentences_per_frame, len(dataset.positions)
    epoch, step = divmod(first_step, steps)
    first_use = epoch * per_epoch + int(np.searchsorted(dataset.positions, step * slots))
    own_seed = [int.from_bytes(hashlib.sha256(dataset.name.encode()).digest()[:8], "little")] if dataset.name else []
    for pass_number in itertools.count(first_use // dataset.groups):
        uses = np.arange(pass_number * dataset.groups, (pass_number + 1) * dataset.groups)
        slot_of_use = dataset.positions[uses % per_epoch] % slots
        order = sample_order(
            dataset.sentence_counts,
            config.sentences_per_frame,
            slot_of_use,
            config.shuffle_buffer,
            (config.seed % 2**64, pass_number, *own_seed),
            config.sentences_per_epoch,
        )
        own = (uses >= first_use) & (slot_of_use >= own_slots.start) & (slot_of_use < own_slots.stop)
        records = order.records[own].tolist()
        # A record is read once and kept until all its groups have been used.
        remaining = Counter(records)
        kept: dict[int, _Record] = {}
        for record, sentences in zip(records, order.sentences[own].tolist(), strict=True):
            read = partial(dataset.source.read, record)
            group = kept.setdefault(record, _Record(read, number, pass_number, dataset.name)), sentences
            remaining[record] -= 1
            if not remaining[record]:
                del kept[record]
            yield group


class _Record:
    """A record that is read when it is first used, by whichever thread that is.

    Args:
      read: returns its data.
      dataset: see `EncodedBatch`.
      epoch: see `EncodedBatch`.
      dataset_name: see `TrainingDataset`.
    """

    def __init__(self, read: Callable[[], bytes], dataset: int, epoch: int, dataset_name: str) -> None:
        self.dataset, self.epoch = dataset, epoch
        self.prefix = f"{dataset_name}/".encode() if dataset_name else b""
        self._read = read
        self._lock = threading.Lock()
        self._fields: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """Returns `record_dataset.parse_record` of it."""
        with self._lock:
            if self._fields is None:
                self._fields = parse_record(self._read())
            return self._fields


def _collect_groups(groups: list[tuple[_Record, list[int]]]) -> EncodedBatch:
    """Reads the records of some groups: each a record with indices of its sentences."""
    batch = EncodedBatch([], [], [], [], [], [], [])
    for record, indices in groups:
        fields = record.fields()
        batch.frames.append(fields["frame"])
        batch.earlier_frames.append(fields["earlier_frame"])
        batch.datasets.append(record.dataset)
        batch.epochs.append(record.epoch)
        masks = dict(zip(fields["instances"]["id"], fields["instances"]["mask"], strict=True))
        for index in indices:
            text, instance = (fields["sentences"][name][index] for name in ("text", "instance"))
            name = b"%s%s/%d/%d: %s" % (record.prefix, fields["video"], fields["frame_index"], instance, text)
            if instance not in masks:
                raise UserError(f"{name.decode()}: there is no mask to train with.")
            batch.masks.append(masks[instance])
            batch.texts.append(text)
            batch.names.append(name)
    return batch


def encoded_batches_without_index(
    config: ConfigDict, steps: int, first_step: int, process_index: int, process_count: int
) -> Iterator[Callable[[], EncodedBatch]]:
    """The same for records without an index, in the order of the version that made them."""
    sentences_per_frame = config.sentences_per_frame
    groups_per_batch = config.batch_size // sentences_per_frame  # over all processes
    files = record_files(config, "train")
    frame_pairs = split_counts(config, "train")["frame_pairs"]
    first_epoch, first_step_in_epoch = divmod(first_step, steps)
    groups_to_skip = np.int64(first_step_in_epoch * groups_per_batch)

    def epoch_of_groups(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.random.stateless_uniform((), (config.seed, epoch), minval=None, maxval=None, dtype=tf.int64)
        dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files), seed)
        dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=16)
        dataset = dataset.map(record_parser(config)).apply(tf.data.experimental.assert_cardinality(frame_pairs))
        dataset = dataset.flat_map(partial(_sentence_groups, sentences_per_frame, config.sentences_per_epoch, seed))
        dataset = dataset.shuffle(config.shuffle_buffer, seed, reshuffle_each_iteration=False)
        dataset = dataset.take(steps * groups_per_batch)
        return dataset.skip(tf.where(epoch == first_epoch, groups_to_skip, np.int64(0)))

    dataset = tf.data.Dataset.counter(first_epoch).flat_map(epoch_of_groups)
    # Each process takes a contiguous part of each batch, so that every device gets the samples that it would get if
    # there were only one process.
    dataset = dataset.batch(groups_per_batch // process_count).shard(process_count, process_index).prefetch(2)
    for step, element in enumerate(as_numpy(dataset, config, "train"), first_step):
        fields = ("frame", "earlier_frame", "mask", "text", "name")
        batch = {f"{name}s": element[name].ravel().tolist() for name in fields}
        frame_pairs = len(batch["frames"])
        yield partial(EncodedBatch, **batch, datasets=[0] * frame_pairs, epochs=[step // steps] * frame_pairs)


def _sentence_groups(
    sentences_per_frame: int, sentences_per_epoch: int, seed: tf.Tensor, record: dict[str, Any]
) -> tf.data.Dataset:
    """Splits a record into groups: its frame pair with `sentences_per_frame` of its sentences and their masks.

    The sentences are in random order, of which only the first `sentences_per_epoch` are used if that is not 0. If their
    number is not a multiple of `sentences_per_frame`, the last group is filled up with sentences of the first.
    """
    instances, sentences = record["instances"], record["sentences"]
    count = tf.size(sentences["text"])
    record_seed = tf.strings.to_hash_bucket_fast(record["video"], 2**31) + record["frame_index"]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), (seed, record_seed))
    if sentences_per_epoch:
        count = tf.minimum(count, sentences_per_epoch)
    groups = -(-count // sentences_per_frame)
    order = tf.gather(order, tf.range(groups * sentences_per_frame) % count)
    frame_name = tf.strings.join([record["video"], "/", tf.strings.as_string(record["frame_index"]), "/"])

    def make_group(indices: tf.Tensor) -> dict[str, tf.Tensor]:
        text, instance = tf.gather(sentences["text"], indices), tf.gather(sentences["instance"], indices)
        mask_index = tf.argmax(tf.cast(instances["id"] == instance[:, None], tf.int32), axis=1)
        return {
            "frame": record["frame"],
            "earlier_frame": record["earlier_frame"],
            "mask": tf.gather(instances["mask"], mask_index),
            "text": text,
            "name": tf.strings.join([frame_name, tf.strings.as_string(instance), ": ", text]),
        }

    return tf.data.Dataset.from_tensor_slices(tf.reshape(order, (groups, sentences_per_frame))).map(make_group)
