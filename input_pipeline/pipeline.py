"""Records -> batches: shuffle groups of sentences, read this process's part of each batch, decode, resize, augment.

The order of all samples is known before any record is read (`sample_order`): a process reads its own records, and
resuming reads nothing of what it skips. All randomness derives from the seed and the epoch, so that training can resume
from its step alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.augmentation import Augmentation, SampleGroup, augment, is_augmented
from input_pipeline.batch import Batch
from input_pipeline.datasets import all_datasets, dataset_config, training_datasets
from input_pipeline.encoded_batches import (
    EncodedBatch,
    TrainingDataset,
    encoded_batches,
    encoded_batches_without_index,
    joint_batches,
)
from input_pipeline.epochs import groups_per_pass, positions_of_datasets, steps_per_epoch
from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame, decode_labels, decode_mask, resize_frame, resize_target
from input_pipeline.record_dataset import open_index, parse_record, read_records, split_counts
from input_pipeline.records import NO_INSTANCE
from input_pipeline.report import load_report, records_dir
from input_pipeline.resized import ImageDecoder, original_images, training_images
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.text.mirroring import mirror_sentence, with_mirrored_tokens
from input_pipeline.types import Sentence
from input_pipeline.workers import map_in_threads


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


def training_batches(
    config: ConfigDict,
    sentence_encoder: SentenceEncoder,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields batches of the split "train", epoch after epoch, without end.

    A step has the same samples in the same order whatever the number of processes. The incomplete batch at the end of
    an epoch is dropped. With several datasets nothing is dropped: each is passed through again and again.

    Args:
      config: uses the fields data_dir, dataset, training_datasets, image_size, max_words, batch_size,
        sentences_per_frame, sentences_per_epoch, shuffle_buffer, decoded_cache, augment_* and seed.
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
    images, batches = _open_batches(config, first_step, process_index, process_count)
    yield from map_in_threads(partial(_decode_batch, config, sentence_encoder, images), batches)


def augmented_groups(config: ConfigDict) -> Iterator[tuple[SampleGroup, SampleGroup, Augmentation]]:
    """Yields the samples of the first epochs as they are and augmented, and what was done, in the order of training.

    Args and errors as in `training_batches`. What is yielded as it is has the original size if `is_scaled`.
    """
    images, batches = _open_batches(config, 0, 0, 1)
    for read in batches:
        encoded = read()
        for epoch, group in zip(encoded.epochs, _decode_groups(config, images, encoded), strict=True):
            yield group, *augment(config, epoch, group)


def _open_batches(
    config: ConfigDict, first_step: int, process_index: int, process_count: int
) -> tuple[list[ImageDecoder], Iterator[Callable[[], EncodedBatch]]]:
    """How to decode the images of each dataset, and functions that read the batches from `first_step` on.

    Args and errors as in `training_batches`.
    """
    steps, sentences_per_frame = steps_per_epoch(config), config.sentences_per_frame
    if config.batch_size % (process_count * sentences_per_frame):
        raise UserError(
            f"config.batch_size {config.batch_size} can't be divided among {process_count} processes, with "
            f"{sentences_per_frame} sentences for each frame."
        )
    own = (process_index, process_count)
    if len(training_datasets(config)) > 1:
        return _open_joint_batches(config, steps, first_step, *own)
    index = open_index(config, "train")
    if index is None:  # made by an earlier version: in its order, for which every process reads everything
        return [original_images(config)], encoded_batches_without_index(config, steps, first_step, *own)
    source, images = training_images(config, index)
    return [images], encoded_batches(config, index.sentence_counts, source, steps, first_step, *own)


def _open_joint_batches(
    config: ConfigDict, steps: int, first_step: int, process_index: int, process_count: int
) -> tuple[list[ImageDecoder], Iterator[Callable[[], EncodedBatch]]]:
    """`_open_batches` of several datasets."""
    datasets: list[TrainingDataset] = []
    images: list[ImageDecoder] = []
    for name, positions in zip(training_datasets(config), positions_of_datasets(config, steps), strict=True):
        own_config = dataset_config(config, name)
        index = open_index(own_config, "train")
        if index is None:
            raise UserError(
                f"The records of {name} were made by an earlier version, which can't be mixed with others. Delete "
                f"{records_dir(config.data_dir, name)} and make them again."
            )
        source, decoder = training_images(own_config, index)
        images.append(decoder)
        groups = groups_per_pass(own_config)
        datasets.append(TrainingDataset(index.sentence_counts, source, positions, groups, name))
    return images, joint_batches(config, datasets, steps, first_step, process_index, process_count)


def _decode_batch(
    config: ConfigDict,
    sentence_encoder: SentenceEncoder,
    images: Sequence[ImageDecoder],
    read: Callable[[], EncodedBatch],
) -> Batch:
    """Reads, decodes and augments a batch."""
    encoded = read()
    groups = _decode_groups(config, images, encoded)
    if is_augmented(config):
        groups = [augment(config, epoch, group)[0] for epoch, group in zip(encoded.epochs, groups, strict=True)]
    sentences = (sentence for group in groups for sentence in group.sentences)
    words, word_mask = _encode_sentences(sentence_encoder, sentences, config.max_words)
    return {
        "frame": np.stack([group.frame for group in groups]),
        "earlier_frame": np.stack([group.earlier_frame for group in groups]),
        "words": words,
        "word_mask": word_mask,
        "target": np.stack([target for group in groups for target in group.targets]),
        "name": np.array([name for group in groups for name in group.names], object),
    }


def _decode_groups(config: ConfigDict, images: Sequence[ImageDecoder], encoded: EncodedBatch) -> list[SampleGroup]:
    """Decodes the frame pairs of a batch, each with its samples."""
    sentences, names = ([text.decode() for text in texts] for texts in (encoded.texts, encoded.names))
    groups, count = [], config.sentences_per_frame
    for number, dataset in enumerate(encoded.datasets):
        own, decoder = slice(number * count, (number + 1) * count), images[dataset]
        frames = decoder.frame(encoded.frames[number]), decoder.frame(encoded.earlier_frames[number])
        targets = tuple(map(decoder.target, encoded.masks[own]))
        groups.append(SampleGroup(*frames, targets, tuple(sentences[own]), tuple(names[own])))
    return groups


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
    begin, end = (-(-frame_pairs * index // process_count) for index in (process_index, process_index + 1))
    yield from map_in_threads(
        partial(_decode_record, config, sentence_encoder), read_records(config, split, begin, end)
    )


def _decode_record(config: ConfigDict, sentence_encoder: SentenceEncoder, data: bytes) -> EvaluationExample:
    """Decodes the images of a record, resizes them and encodes the sentences."""
    record, size = parse_record(data), tuple(config.image_size)
    frame, earlier_frame = decode_frame(record["frame"]), decode_frame(record["earlier_frame"])
    instances = zip(record["instances"]["id"], record["instances"]["mask"], strict=True)
    masks = {instance: decode_mask(png) for instance, png in instances}
    targets = {instance: resize_target(mask, size) for instance, mask in masks.items()}
    sentences = _decode_sentences(record["sentences"])
    words, word_mask = _encode_sentences(sentence_encoder, (sentence.text for sentence in sentences), config.max_words)
    return EvaluationExample(
        video=record["video"].decode(),
        frame_index=record["frame_index"],
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


def _decode_sentences(fields: dict[str, list]) -> tuple[Sentence, ...]:
    """Converts the field "sentences" of a record to objects."""
    columns = [fields[name] for name in ("text", "instance", "group", "expression")]
    return tuple(
        Sentence(text.decode(), None if instance == NO_INSTANCE else instance, group.decode(), expression.decode())
        for text, instance, group, expression in zip(*columns, strict=True)
    )


def distinct_sentences(config: ConfigDict) -> list[str]:
    """Returns the distinct sentences of all splits in the order of the records, with those that training mirrors.

    Raises:
      UserError: there are no records, or a file of records is broken.
    """
    sentences: dict[str, None] = {}
    for split in load_report(config.data_dir, config.dataset)["splits"]:
        frame_pairs = split_counts(config, split)["frame_pairs"]
        records = read_records(config, split, 0, frame_pairs)
        for data in tqdm(records, f"sentences of {config.dataset} {split}", frame_pairs, unit="frame pair"):
            texts = [text.decode() for text in parse_record(data)["sentences"]["text"]]
            sentences.update(dict.fromkeys(texts))
            if config.augment_flip and split == "train":
                mirrored = map(mirror_sentence, texts)
                sentences.update(dict.fromkeys(sentence for sentence in mirrored if sentence is not None))
    return list(sentences)


def vocabulary(config: ConfigDict) -> list[str]:
    """Returns the tokens of all sentences of `all_datasets`, sorted, with those that training mirrors.

    Raises:
      UserError: there are no records.
    """
    first, *others = (load_report(config.data_dir, name)["tokens"] for name in all_datasets(config))
    tokens = sorted({*first, *itertools.chain(*others)}) if others else first
    return with_mirrored_tokens(tokens) if config.augment_flip else tokens


# -- shared by both


def _encode_sentences(
    sentence_encoder: SentenceEncoder, sentences: Iterable[str], max_words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `words` and `word_mask` of several sentences, see `input_pipeline.batch`."""
    words, word_mask = zip(*(sentence_encoder.encode(sentence, max_words) for sentence in sentences), strict=True)
    return np.stack(words), np.stack(word_mask)
