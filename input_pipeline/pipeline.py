"""TFRecords -> batches: read, flatten to samples, shuffle, take this process's part, decode, resize, batch, prefetch.

Pictures stay encoded until a sample is chosen: the shuffle buffer holds JPEGs, and resuming skips without decoding.
Everything random is folded from the seed and the epoch, so that training resumes with nothing but its step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from input_pipeline.batch import Batch
from input_pipeline.glove import WordVectors
from input_pipeline.images import decode_frame, decode_mask, resize_frame, resize_target
from input_pipeline.readers import DataError, Sentence
from input_pipeline.records import load_report, records_dir

tf.config.set_visible_devices([], "GPU")  # they belong to JAX


@dataclasses.dataclass(frozen=True)
class EvaluationExample:
    """A frame pair and all S sentences about it, at the model's size H, W and at the original size h, w.

    Attributes:
      video, frame_index: as the data set names and counts them.
      original_frame, original_earlier_frame: (h, w, 3) uint8 RGB.
      frame, earlier_frame: (H, W, 3) uint8 RGB, what the model reads.
      sentences: S of them.
      words: (S, N, D) float32 word vectors.
      word_mask: (S, N) bool, True for a token.
      targets: (S, H, W) uint8, masks prepared as for training; the "paper" protocol compares with them.
      masks: (S, h, w) bool, untouched.
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
    targets: np.ndarray
    masks: np.ndarray


def samples_per_epoch(config: ConfigDict, split: str) -> int:
    """Samples, (frame pair, sentence), of a split. Raises DataError if there are no records or no such split."""
    return _split_counts(config, split)["sentences"]


def training_batches(
    config: ConfigDict,
    word_vectors: WordVectors,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Batches of the split "train", epoch after epoch without end; the caller stops.

    A step holds the same samples whatever the number of processes. The incomplete batch at the end of an epoch is
    dropped.

    Args:
      config: its fields data_dir, dataset, image_size, max_words, batch_size, shuffle_buffer and seed are read.
      word_vectors: turn sentences into `words` and `word_mask`.
      first_step: how many batches were used before; what follows is equal, to the bit, to an uninterrupted run.
      process_index: which part of every batch to make.
      process_count: how many parts there are; divides config.batch_size.

    Yields:
      Every field of `input_pipeline.batch`, with B = config.batch_size // process_count.

    Raises:
      DataError: no records, less than one batch of samples, or a broken file of records.
    """
    samples = samples_per_epoch(config, "train")
    steps = samples // config.batch_size
    if not steps:
        raise DataError(
            f"{samples} training samples don't fill a batch of {config.batch_size}: lower config.batch_size."
        )
    if config.batch_size % process_count:
        raise DataError(f"config.batch_size {config.batch_size} can't be divided among {process_count} processes.")
    files = _files(config, "train")
    first_epoch, steps_used = divmod(first_step, steps)
    used = np.int64(steps_used * config.batch_size)

    def epoch_of_samples(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.random.stateless_uniform((), (config.seed, epoch), minval=None, maxval=None, dtype=tf.int64)
        dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files), seed)
        dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=4)
        dataset = dataset.map(_parser(config)).flat_map(_samples_of_record)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(samples))
        dataset = dataset.shuffle(config.shuffle_buffer, seed, reshuffle_each_iteration=False)
        dataset = dataset.take(steps * config.batch_size)
        dataset = dataset.skip(tf.where(epoch == first_epoch, used, np.int64(0)))
        return dataset.shard(process_count, process_index)

    dataset = tf.data.Dataset.counter(first_epoch).flat_map(epoch_of_samples)
    dataset = dataset.map(_decoder(config, word_vectors), tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(config.batch_size // process_count, drop_remainder=True).prefetch(4)
    with _broken_files_named(files, config, "train"):
        yield from dataset.as_numpy_iterator()


def evaluation_examples(
    config: ConfigDict,
    split: str,
    word_vectors: WordVectors,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[EvaluationExample]:
    """Every frame pair of a split exactly once over all processes, in a fixed order.

    Args and errors as in `training_batches`; the processes' parts differ in length by one at most.
    """
    files = _files(config, split)
    dataset = tf.data.TFRecordDataset(files).apply(
        tf.data.experimental.assert_cardinality(_split_counts(config, split)["frame_pairs"])
    )
    records = dataset.shard(process_count, process_index).map(_parser(config)).as_numpy_iterator()
    waiting = deque()
    with _broken_files_named(files, config, split), ThreadPoolExecutor() as threads:
        while True:
            for record in itertools.islice(records, 16 - len(waiting)):
                waiting.append(threads.submit(_example, config, word_vectors, record))
            if not waiting:
                return
            yield waiting.popleft().result()


def _split_counts(config: ConfigDict, split: str) -> dict:
    splits = load_report(config.data_dir, config.dataset)["splits"]
    if split not in splits:
        raise DataError(f"{config.dataset} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def _files(config: ConfigDict, split: str) -> list[str]:
    """The TFRecord files of a split, sorted."""
    _split_counts(config, split)  # its messages
    builder = tfds.builder_from_directory(records_dir(config.data_dir, config.dataset))
    return [str(path) for path in builder.info.splits[split].filepaths]


def _parser(config: ConfigDict):
    """Serialized record -> the features of `records.FramePairs`, pictures still encoded."""
    features = tfds.builder_from_directory(records_dir(config.data_dir, config.dataset)).info.features
    encoded = tfds.decode.SkipDecoding()
    return partial(features.deserialize_example, decoders={"frame": encoded, "earlier_frame": encoded})


def _samples_of_record(record: dict) -> tf.data.Dataset:
    """One sample per sentence: the frame pair, still encoded, the sentence and its instance's mask."""
    instances = record["instances"]

    def sample(sentence: dict) -> dict:
        instance = tf.argmax(tf.cast(instances["id"] == sentence["instance"], tf.int32))
        return {
            "frame": record["frame"],
            "earlier_frame": record["earlier_frame"],
            "mask": instances["mask"][instance],
            "text": sentence["text"],
            "name": tf.strings.join(
                [
                    record["video"],
                    "/",
                    tf.strings.as_string(record["frame_index"]),
                    "/",
                    tf.strings.as_string(sentence["instance"]),
                    ": ",
                    sentence["text"],
                ]
            ),
        }

    return tf.data.Dataset.from_tensor_slices(record["sentences"]).map(sample)


def _decoder(config: ConfigDict, word_vectors: WordVectors):
    """Sample with encoded pictures -> the fields of a batch, without the batch axis."""
    height, width = size = tuple(config.image_size)
    shapes = {
        "frame": ((height, width, 3), tf.uint8),
        "earlier_frame": ((height, width, 3), tf.uint8),
        "words": ((config.max_words, word_vectors.vectors.shape[1]), tf.float32),
        "word_mask": ((config.max_words,), tf.bool),
        "target": ((height, width), tf.uint8),
    }

    def decode(frame: bytes, earlier_frame: bytes, mask: bytes, text: bytes) -> tuple[np.ndarray, ...]:
        return (
            resize_frame(decode_frame(frame), size),
            resize_frame(decode_frame(earlier_frame), size),
            *word_vectors.embed(text.decode(), config.max_words),
            resize_target(decode_mask(mask), size),
        )

    def sample(encoded: dict) -> dict:
        inputs = [encoded[field] for field in ("frame", "earlier_frame", "mask", "text")]
        outputs = tf.numpy_function(decode, inputs, [dtype for _, dtype in shapes.values()], stateful=False)
        fields = {
            name: tf.ensure_shape(value, shape)
            for (name, (shape, _)), value in zip(shapes.items(), outputs, strict=True)
        }
        return fields | {"name": encoded["name"]}

    return sample


def _example(config: ConfigDict, word_vectors: WordVectors, record: dict) -> EvaluationExample:
    """A record of numpy values -> an example to evaluate."""
    size = tuple(config.image_size)
    frame, earlier_frame = decode_frame(record["frame"]), decode_frame(record["earlier_frame"])
    instances = zip(record["instances"]["id"].tolist(), record["instances"]["mask"], strict=True)
    masks = {number: decode_mask(mask) for number, mask in instances}
    columns = record["sentences"]
    sentences = tuple(
        Sentence(text.decode(), instance, group.decode())
        for text, instance, group in zip(columns["text"], columns["instance"].tolist(), columns["group"], strict=True)
    )
    words, word_mask = zip(
        *(word_vectors.embed(sentence.text, config.max_words) for sentence in sentences), strict=True
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
        targets=np.stack([targets[sentence.instance] for sentence in sentences]),
        masks=np.stack([masks[sentence.instance] for sentence in sentences]),
    )


@contextlib.contextmanager
def _broken_files_named(files: list[str], config: ConfigDict, split: str) -> Iterator[None]:
    """Turns TensorFlow's complaint about broken records, which names no file, into a DataError that does."""
    try:
        yield
    except tf.errors.OpError as error:
        folder = records_dir(config.data_dir, config.dataset)
        builder = tfds.builder_from_directory(folder)
        lengths = builder.info.splits[split].shard_lengths
        for file, length in zip(files, lengths, strict=True):
            try:
                found = sum(1 for _ in tf.data.TFRecordDataset(file))
            except tf.errors.OpError:
                found = 0
            if found != length:
                raise DataError(
                    f"{file} is missing or broken: {length} whole records are expected. Delete {folder} and prepare "
                    "the data again."
                ) from error
        raise
