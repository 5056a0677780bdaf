"""TFRecords -> batches: read, flatten to samples, shuffle, take this process's part, decode, resize, batch, prefetch.

Pictures stay encoded until a sample is chosen: the shuffle buffer holds JPEGs, and resuming skips without decoding.
Everything random is folded from the seed and the epoch, so that training resumes with nothing but its step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.batch import Batch
from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame, decode_labels, decode_mask, resize_frame, resize_target
from input_pipeline.records import NO_INSTANCE
from input_pipeline.report import load_report, records_dir
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.types import Sentence

Result = TypeVar("Result")

tf.config.set_visible_devices([], "GPU")  # they belong to JAX


@dataclasses.dataclass(frozen=True)
class EvaluationExample:
    """A frame pair and all S sentences about it, at the model's size H, W and at the original size h, w.

    Attributes:
      video, frame_index: as the data set names and counts them.
      original_frame, original_earlier_frame: (h, w, 3) uint8 RGB.
      frame, earlier_frame: (H, W, 3) uint8 RGB, what the model reads.
      sentences: S of them.
      words: (S, N, D) float32 or (S, N) int32, see `input_pipeline.batch`.
      word_mask: (S, N) bool, True for a token.
      targets: of every sentence (H, W) uint8, its mask prepared as for training; the "paper" protocol compares with it.
      masks: of every sentence (h, w) bool, untouched. Both are None where the truth is not published.
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


def samples_per_epoch(config: ConfigDict, split: str) -> int:
    """Samples, (frame pair, sentence), of a split. Raises UserError if there are no records or no such split."""
    return _split_counts(config, split)["sentences"]


def steps_per_epoch(config: ConfigDict) -> int:
    """Batches of the split "train" in an epoch; the last one, incomplete, does not count.

    Raises:
      UserError: no records, or less than one batch of samples.
    """
    together = config.sentences_per_frame
    lengths = _split_counts(config, "train")["sentences_per_frame_pair"]
    elements = sum(frame_pairs * -(-int(length) // together) for length, frame_pairs in lengths.items())
    steps = elements * together // config.batch_size
    if not steps:
        raise UserError(
            f"{elements * together} training samples don't fill a batch of {config.batch_size}: lower "
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
    """Batches of the split "train", epoch after epoch without end; the caller stops.

    A step holds the same samples in the same order whatever the number of processes. The incomplete batch at the end of
    an epoch is dropped.

    Args:
      config: its fields data_dir, dataset, image_size, max_words, batch_size,
        sentences_per_frame, shuffle_buffer, decoded_cache and seed are read.
      sentence_encoder: turns sentences into `words` and `word_mask`.
      first_step: how many batches were used before; what follows is equal, to the bit, to an uninterrupted run.
      process_index: which part of every batch to make.
      process_count: how many parts there are; divides config.batch_size.

    Yields:
      Every field of `input_pipeline.batch`, with B = config.batch_size // process_count and
      K = config.sentences_per_frame.

    Raises:
      UserError: no records, less than one batch of samples, or a broken file of records.
    """
    steps, together = steps_per_epoch(config), config.sentences_per_frame
    if config.batch_size % (process_count * together):
        raise UserError(
            f"config.batch_size {config.batch_size} can't be divided among {process_count} processes, with {together} "
            "sentences for each frame."
        )
    elements = config.batch_size // together  # of one batch, over all processes
    files = _files(config, "train")
    frame_pairs = _split_counts(config, "train")["frame_pairs"]
    first_epoch, steps_used = divmod(first_step, steps)
    used = np.int64(steps_used * elements)

    def epoch_of_samples(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.random.stateless_uniform((), (config.seed, epoch), minval=None, maxval=None, dtype=tf.int64)
        dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files), seed)
        dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=16)
        dataset = dataset.map(_parser(config)).apply(tf.data.experimental.assert_cardinality(frame_pairs))
        dataset = dataset.flat_map(partial(_samples_of_record, together, seed))
        dataset = dataset.shuffle(config.shuffle_buffer, seed, reshuffle_each_iteration=False)
        dataset = dataset.take(steps * elements)
        return dataset.skip(tf.where(epoch == first_epoch, used, np.int64(0)))

    dataset = tf.data.Dataset.counter(first_epoch).flat_map(epoch_of_samples)
    # Every process makes a run of each batch, so that device for device it is the batch of a single process.
    dataset = dataset.batch(elements // process_count).shard(process_count, process_index).prefetch(2)
    yield from _in_threads(_batch_decoder(config, sentence_encoder), _elements(dataset, config, "train"))


def evaluation_examples(
    config: ConfigDict,
    split: str,
    sentence_encoder: SentenceEncoder,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[EvaluationExample]:
    """Every frame pair of a split exactly once over all processes, in a fixed order: the first process has the first.

    Args and errors as in `training_batches`; the processes' parts differ in length by one at most.
    """
    frame_pairs = _split_counts(config, split)["frame_pairs"]
    dataset = tf.data.TFRecordDataset(_files(config, split))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(frame_pairs))
    begin, end = (-(-frame_pairs * index // process_count) for index in (process_index, process_index + 1))
    dataset = dataset.skip(begin).take(end - begin).map(_parser(config)).prefetch(2)
    yield from _in_threads(partial(_decode_record, config, sentence_encoder), _elements(dataset, config, split))


def distinct_sentences(config: ConfigDict) -> list[str]:
    """Every sentence of all splits once, in the order of the records. Raises UserError if a file of them is broken."""
    sentences: dict[str, None] = {}
    for split in load_report(config.data_dir, config.dataset)["splits"]:
        frame_pairs = _split_counts(config, split)["frame_pairs"]
        dataset = tf.data.TFRecordDataset(_files(config, split)).map(_parser(config)).prefetch(2)
        records = _elements(dataset, config, split)
        for record in tqdm(records, f"sentences of {config.dataset} {split}", frame_pairs, unit="frame pair"):
            sentences.update(dict.fromkeys(text.decode() for text in record["sentences"]["text"].tolist()))
    return list(sentences)


def _split_counts(config: ConfigDict, split: str) -> dict:
    report = load_report(config.data_dir, config.dataset)
    splits = report["splits"]
    if split not in splits:
        advice = " It is for evaluation only: --mode=evaluate --config.checkpoint=DIR." if split == "train" else ""
        if config.dataset == "moving_shapes":  # drawn by an earlier version
            folder = records_dir(config.data_dir, config.dataset)
            advice = f" To have it drawn anew, delete {folder} and the raw data, {report['raw']}."
        raise UserError(f"{config.dataset} has no split {split!r}; it has {', '.join(splits)}.{advice}")
    return splits[split]


def _files(config: ConfigDict, split: str) -> list[str]:
    """The TFRecord files of a split, sorted."""
    _split_counts(config, split)  # its messages
    builder = tfds.builder_from_directory(records_dir(config.data_dir, config.dataset))
    return [str(path) for path in builder.info.splits[split].filepaths]


def _parser(config: ConfigDict):
    """Serialized record -> `records.features`, pictures still encoded."""
    features = tfds.builder_from_directory(records_dir(config.data_dir, config.dataset)).info.features
    encoded = tfds.decode.SkipDecoding()
    return partial(features.deserialize_example, decoders={"frame": encoded, "earlier_frame": encoded})


def _samples_of_record(together: int, seed: tf.Tensor, record: dict) -> tf.data.Dataset:
    """The frame pair, still encoded, with `together` of its sentences and their masks, until all sentences are asked.

    Where their number is no multiple, the last group is filled up with sentences of the first.
    """
    instances, sentences = record["instances"], record["sentences"]
    count = tf.size(sentences["text"])
    own_seed = tf.strings.to_hash_bucket_fast(record["video"], 2**31) + record["frame_index"]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), (seed, own_seed))
    groups = -(-count // together)
    order = tf.reshape(tf.gather(order, tf.range(groups * together) % count), (groups, together))

    def sample(chosen: tf.Tensor) -> dict:
        text, instance = tf.gather(sentences["text"], chosen), tf.gather(sentences["instance"], chosen)
        place = tf.argmax(tf.cast(instances["id"] == instance[:, None], tf.int32), axis=1)
        where = tf.strings.join([record["video"], "/", tf.strings.as_string(record["frame_index"]), "/"])
        return {
            "frame": record["frame"],
            "earlier_frame": record["earlier_frame"],
            "mask": tf.gather(instances["mask"], place),
            "text": text,
            "name": tf.strings.join([where, tf.strings.as_string(instance), ": ", text]),
        }

    return tf.data.Dataset.from_tensor_slices(order).map(sample)


def _batch_decoder(config: ConfigDict, sentence_encoder: SentenceEncoder) -> Callable[[dict[str, np.ndarray]], Batch]:
    """The function from a batch of encoded samples to a batch; it remembers config.decoded_cache pictures."""
    size = tuple(config.image_size)

    @functools.lru_cache(config.decoded_cache)
    def frame(jpeg: bytes) -> np.ndarray:
        return resize_frame(decode_frame(jpeg), size)

    @functools.lru_cache(config.decoded_cache)
    def target(png: bytes) -> np.ndarray:
        return resize_target(decode_mask(png), size)

    def decode(encoded: dict[str, np.ndarray]) -> Batch:
        sentences = [sentence_encoder.encode(text.decode(), config.max_words) for text in encoded["text"].flat]
        words, word_mask = zip(*sentences, strict=True)
        return {
            "frame": np.stack([frame(jpeg) for jpeg in encoded["frame"]]),
            "earlier_frame": np.stack([frame(jpeg) for jpeg in encoded["earlier_frame"]]),
            "words": np.stack(words),
            "word_mask": np.stack(word_mask),
            "target": np.stack([target(png) for png in encoded["mask"].flat]),
            "name": np.array([name.decode() for name in encoded["name"].flat], object),
        }

    return decode


def _decode_record(config: ConfigDict, sentence_encoder: SentenceEncoder, record: dict) -> EvaluationExample:
    """A record with encoded pictures -> an example to evaluate."""
    size = tuple(config.image_size)
    frame, earlier_frame = decode_frame(record["frame"]), decode_frame(record["earlier_frame"])
    instances = zip(record["instances"]["id"].tolist(), record["instances"]["mask"], strict=True)
    masks = {number: decode_mask(mask) for number, mask in instances}
    columns = [record["sentences"][name].tolist() for name in ("text", "instance", "group", "expression")]
    sentences = tuple(
        Sentence(text.decode(), None if instance == NO_INSTANCE else instance, group.decode(), expression.decode())
        for text, instance, group, expression in zip(*columns, strict=True)
    )
    words, word_mask = zip(
        *(sentence_encoder.encode(sentence.text, config.max_words) for sentence in sentences), strict=True
    )
    targets = {number: resize_target(mask, size) for number, mask in masks.items()}
    return EvaluationExample(
        video=record["video"].decode(),
        frame_index=int(record["frame_index"]),
        original_frame=frame,
        original_earlier_frame=earlier_frame,
        frame=resize_frame(frame, size),
        earlier_frame=resize_frame(earlier_frame, size),
        sentences=sentences,
        words=np.stack(words),
        word_mask=np.stack(word_mask),
        targets=tuple(targets.get(sentence.instance) for sentence in sentences),
        masks=tuple(masks.get(sentence.instance) for sentence in sentences),
        labels=decode_labels(record["labels"]) if record["labels"] else None,
    )


def _in_threads(function: Callable[[dict], Result], elements: Iterator[dict]) -> Iterator[Result]:
    """The function of every element, in order, a few elements ahead of the consumer.

    Python's threads and not tf.data's: Pillow lets them run side by side, and TensorFlow may hang at exit when one of
    its own threads is inside Python.
    """
    with ThreadPoolExecutor() as threads:
        waiting = deque(threads.submit(function, element) for element in itertools.islice(elements, 8))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(threads.submit(function, element) for element in itertools.islice(elements, 1))
            yield result


def _elements(dataset: tf.data.Dataset, config: ConfigDict, split: str) -> Iterator[dict]:
    """The elements as numpy values; a UserError that names the file where TensorFlow stumbles over broken records."""
    iterator = dataset.as_numpy_iterator()
    while True:
        try:
            element = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            _check_files(config, split, error)
            raise
        yield element


def _check_files(config: ConfigDict, split: str, error: Exception) -> None:
    """Raises UserError for the first file that does not hold the records it should: TensorFlow's error names none."""
    folder = records_dir(config.data_dir, config.dataset)
    lengths = tfds.builder_from_directory(folder).info.splits[split].shard_lengths
    for file, length in zip(_files(config, split), lengths, strict=True):
        try:
            whole = sum(1 for _ in tf.data.TFRecordDataset(file)) == length
        except tf.errors.OpError:
            whole = False
        if not whole:
            raise UserError(f"{file} is missing or broken. Delete {folder} and prepare the data again.") from error
