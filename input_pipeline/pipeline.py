"""Records -> batches: split into groups of sentences, shuffle, batch, take this process's part, decode, resize.

Images stay encoded until they are used, so the shuffle buffer holds JPEGs, and resuming skips batches without decoding
them. All randomness derives from the seed and the epoch, so that training can resume from its step alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.batch import Batch
from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame, decode_labels, decode_mask, resize_frame, resize_target
from input_pipeline.record_dataset import as_numpy, record_files, record_parser, split_counts
from input_pipeline.records import NO_INSTANCE
from input_pipeline.report import load_report
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.types import Sentence

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class EvaluationExample:
    """A frame pair with its S sentences, at the model's input size H, W and at the original size h, w.

    Attributes:
      video: name of the video in the dataset.
      frame_index: counted as in the dataset.
      original_frame: (h, w, 3) uint8 RGB.
      original_earlier_frame: (h, w, 3) uint8 RGB.
      frame: (H, W, 3) uint8 RGB, input of the model.
      earlier_frame: (H, W, 3) uint8 RGB, input of the model.
      sentences: S sentences.
      words: (S, N, D) float32 or (S, N) int32, see `input_pipeline.batch`.
      word_mask: (S, N) bool, True for tokens.
      targets: for each sentence its mask resized as in training, (H, W) uint8; the "paper" protocol uses it. None where
        the ground truth is not published.
      masks: for each sentence its original mask, (h, w) bool, or None.
      labels: (h, w) uint8 or None, see `FramePair`.
    """

    video: str
    frame_index: int
    original_frame: np.ndarray
    original_earlier_frame: np.ndarray
    frame: np.ndarray
    earlier_frame: np.ndarray
    sentences: tuple[Sentence, ...]
    words: np.ndarray
    word_mask: np.ndarray
    targets: tuple[np.ndarray | None, ...]
    masks: tuple[np.ndarray | None, ...]
    labels: np.ndarray | None


# -- training


def samples_per_epoch(config: ConfigDict, split: str) -> int:
    """Returns the number of samples, (frame pair, sentence), of a split.

    Raises:
      UserError: there are no records, or no such split.
    """
    return split_counts(config, split)["sentences"]


def steps_per_epoch(config: ConfigDict) -> int:
    """Returns the number of complete batches of the split "train".

    Raises:
      UserError: there are no records, or fewer samples than one batch.
    """
    sentences_per_frame = config.sentences_per_frame
    lengths = split_counts(config, "train")["sentences_per_frame_pair"]
    groups = sum(frame_pairs * -(-int(length) // sentences_per_frame) for length, frame_pairs in lengths.items())
    steps = groups * sentences_per_frame // config.batch_size
    if not steps:
        raise UserError(
            f"{groups * sentences_per_frame} training samples don't fill a batch of {config.batch_size}: lower "
            "config.batch_size."
        )
    return steps


def training_batches(
    config: ConfigDict,
    sentence_encoder: SentenceEncoder,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields batches of the split "train", epoch after epoch, without end.

    A step has the same samples in the same order whatever the number of processes. The incomplete batch at the end of
    an epoch is dropped.

    Args:
      config: uses the fields data_dir, dataset, image_size, max_words, batch_size, sentences_per_frame,
        shuffle_buffer, decoded_cache and seed.
      sentence_encoder: converts sentences to `words` and `word_mask`.
      first_step: number of batches to skip. What follows is bit-identical to an uninterrupted run.
      process_index: which part of each batch to yield.
      process_count: number of parts; divides config.batch_size.

    Yields:
      All fields of `input_pipeline.batch`, with B = config.batch_size // process_count and
      K = config.sentences_per_frame.

    Raises:
      UserError: there are no records, fewer samples than one batch, or a broken file of records.
    """
    steps, sentences_per_frame = steps_per_epoch(config), config.sentences_per_frame
    if config.batch_size % (process_count * sentences_per_frame):
        raise UserError(
            f"config.batch_size {config.batch_size} can't be divided among {process_count} processes, with "
            f"{sentences_per_frame} sentences for each frame."
        )
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
        dataset = dataset.flat_map(partial(_sentence_groups, sentences_per_frame, seed))
        dataset = dataset.shuffle(config.shuffle_buffer, seed, reshuffle_each_iteration=False)
        dataset = dataset.take(steps * groups_per_batch)
        return dataset.skip(tf.where(epoch == first_epoch, groups_to_skip, np.int64(0)))

    dataset = tf.data.Dataset.counter(first_epoch).flat_map(epoch_of_groups)
    # Each process takes a contiguous part of each batch, so that every device gets the samples that it would get if
    # there were only one process.
    dataset = dataset.batch(groups_per_batch // process_count).shard(process_count, process_index).prefetch(2)
    yield from _map_in_threads(_batch_decoder(config, sentence_encoder), as_numpy(dataset, config, "train"))


def _sentence_groups(sentences_per_frame: int, seed: tf.Tensor, record: dict[str, Any]) -> tf.data.Dataset:
    """Splits a record into groups: its frame pair with `sentences_per_frame` of its sentences and their masks.

    The sentences are in random order. If their number is not a multiple of `sentences_per_frame`, the last group is
    filled up with sentences of the first.
    """
    instances, sentences = record["instances"], record["sentences"]
    count = tf.size(sentences["text"])
    record_seed = tf.strings.to_hash_bucket_fast(record["video"], 2**31) + record["frame_index"]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), (seed, record_seed))
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


def _batch_decoder(config: ConfigDict, sentence_encoder: SentenceEncoder) -> Callable[[dict[str, np.ndarray]], Batch]:
    """Returns the function from a batch of encoded groups to a batch. It caches config.decoded_cache resized images."""
    size = tuple(config.image_size)

    @functools.lru_cache(config.decoded_cache)
    def decode_and_resize_frame(image: bytes) -> np.ndarray:
        return resize_frame(decode_frame(image), size)

    @functools.lru_cache(config.decoded_cache)
    def decode_and_resize_mask(png: bytes) -> np.ndarray:
        return resize_target(decode_mask(png), size)

    def decode(encoded: dict[str, np.ndarray]) -> Batch:
        words, word_mask = _encode_sentences(
            sentence_encoder, (text.decode() for text in encoded["text"].flat), config.max_words
        )
        return {
            "frame": np.stack([decode_and_resize_frame(image) for image in encoded["frame"]]),
            "earlier_frame": np.stack([decode_and_resize_frame(image) for image in encoded["earlier_frame"]]),
            "words": words,
            "word_mask": word_mask,
            "target": np.stack([decode_and_resize_mask(png) for png in encoded["mask"].flat]),
            "name": np.array([name.decode() for name in encoded["name"].flat], object),
        }

    return decode


# -- evaluation


def evaluation_examples(
    config: ConfigDict,
    split: str,
    sentence_encoder: SentenceEncoder,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[EvaluationExample]:
    """Yields the frame pairs of a split in a fixed order, each exactly once over all processes.

    The processes take consecutive parts whose lengths differ by at most one. Args and errors as in `training_batches`.
    """
    frame_pairs = split_counts(config, split)["frame_pairs"]
    dataset = tf.data.TFRecordDataset(record_files(config, split))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(frame_pairs))
    begin, end = (-(-frame_pairs * index // process_count) for index in (process_index, process_index + 1))
    dataset = dataset.skip(begin).take(end - begin).map(record_parser(config)).prefetch(2)
    yield from _map_in_threads(partial(_decode_record, config, sentence_encoder), as_numpy(dataset, config, split))


def _decode_record(config: ConfigDict, sentence_encoder: SentenceEncoder, record: dict[str, Any]) -> EvaluationExample:
    """Decodes the images of a record, resizes them and encodes the sentences."""
    size = tuple(config.image_size)
    frame, earlier_frame = decode_frame(record["frame"]), decode_frame(record["earlier_frame"])
    instances = zip(record["instances"]["id"].tolist(), record["instances"]["mask"], strict=True)
    masks = {instance: decode_mask(png) for instance, png in instances}
    targets = {instance: resize_target(mask, size) for instance, mask in masks.items()}
    sentences = _decode_sentences(record["sentences"])
    words, word_mask = _encode_sentences(sentence_encoder, (sentence.text for sentence in sentences), config.max_words)
    return EvaluationExample(
        video=record["video"].decode(),
        frame_index=int(record["frame_index"]),
        original_frame=frame,
        original_earlier_frame=earlier_frame,
        frame=resize_frame(frame, size),
        earlier_frame=resize_frame(earlier_frame, size),
        sentences=sentences,
        words=words,
        word_mask=word_mask,
        targets=tuple(targets.get(sentence.instance) for sentence in sentences),
        masks=tuple(masks.get(sentence.instance) for sentence in sentences),
        labels=decode_labels(record["labels"]) if record["labels"] else None,
    )


def _decode_sentences(fields: dict[str, np.ndarray]) -> tuple[Sentence, ...]:
    """Converts the field "sentences" of a record to objects."""
    columns = [fields[name].tolist() for name in ("text", "instance", "group", "expression")]
    return tuple(
        Sentence(text.decode(), None if instance == NO_INSTANCE else instance, group.decode(), expression.decode())
        for text, instance, group, expression in zip(*columns, strict=True)
    )


def distinct_sentences(config: ConfigDict) -> list[str]:
    """Returns the distinct sentences of all splits in the order of the records.

    Raises:
      UserError: there are no records, or a file of records is broken.
    """
    sentences: dict[str, None] = {}
    for split in load_report(config.data_dir, config.dataset)["splits"]:
        frame_pairs = split_counts(config, split)["frame_pairs"]
        dataset = tf.data.TFRecordDataset(record_files(config, split)).map(record_parser(config)).prefetch(2)
        records = as_numpy(dataset, config, split)
        for record in tqdm(records, f"sentences of {config.dataset} {split}", frame_pairs, unit="frame pair"):
            sentences.update(dict.fromkeys(text.decode() for text in record["sentences"]["text"].tolist()))
    return list(sentences)


# -- shared by both


def _encode_sentences(
    sentence_encoder: SentenceEncoder, sentences: Iterable[str], max_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `words` and `word_mask` of several sentences, see `input_pipeline.batch`."""
    words, word_mask = zip(*(sentence_encoder.encode(sentence, max_words) for sentence in sentences), strict=True)
    return np.stack(words), np.stack(word_mask)


def _map_in_threads(function: Callable[[dict[str, Any]], Result], elements: Iterator[dict]) -> Iterator[Result]:
    """Applies a function to each element in parallel and yields the results in order, computed a few ahead.

    Uses Python threads rather than those of tf.data: Pillow releases the GIL, and TensorFlow may hang at exit while one
    of its own threads executes Python.
    """
    with ThreadPoolExecutor() as threads:
        futures = deque(threads.submit(function, element) for element in itertools.islice(elements, 8))
        while futures:
            result = futures.popleft().result()
            futures.extend(threads.submit(function, element) for element in itertools.islice(elements, 1))
            yield result
