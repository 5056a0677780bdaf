"""Frames and targets kept at the model's input size: the training split a second time, ready for the network.

They lie in RECORDS/resized_HxW, as records whose images are not encoded: frames are the bytes of an (H, W, 3) uint8
array, masks the packed bits of the resized target. They are computed from the records by the functions that training
would apply to these, so the batches are the same to the bit. Evaluation needs the original sizes and reads the records.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.augmentation import is_scaled
from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame, decode_mask, resize_frame, resize_target
from input_pipeline.record_index import INDEX_FILE, RecordIndex, index_entry, load_index
from input_pipeline.record_writer import complete_summaries, locked_output_dir, summary_file, write_json
from input_pipeline.report import load_report, records_dir
from input_pipeline.workers import map_in_threads

Size = tuple[int, int]


class ImageDecoder(NamedTuple):
    """From the bytes of a record to a frame, (H, W, 3) uint8, and a target, (H, W) uint8, at the model's size.

    If `augmentation.is_scaled`, at the original size, and the target is bool.
    """

    frame: Callable[[bytes], np.ndarray]
    target: Callable[[bytes], np.ndarray]


# -- reading


def original_images(config: ConfigDict) -> ImageDecoder:
    """Decodes the images of records and resizes them; keeps config.decoded_cache frames, and masks."""
    size = tuple(config.image_size)
    cached = functools.lru_cache(config.decoded_cache)
    if is_scaled(config):  # they are resized after cropping
        return ImageDecoder(cached(decode_frame), cached(decode_mask))
    return ImageDecoder(
        cached(lambda image: resize_frame(decode_frame(image), size)),
        cached(lambda png: resize_target(decode_mask(png), size)),
    )


def training_images(config: ConfigDict, index: RecordIndex) -> tuple[RecordIndex, ImageDecoder]:
    """What to read for training: the resized images if there are any of config.image_size, else the records.

    Args:
      config: uses the fields image_size, augment_scale and decoded_cache.
      index: of the records of the split "train".

    Raises:
      UserError: the resized images don't belong to these records.
    """
    size, records = tuple(config.image_size), index.folder
    folder = resized_dir(records, size)
    if not folder.is_dir():
        others = ", ".join(sorted(path.name.removeprefix("resized_") for path in records.glob("resized_*[0-9]")))
        if others:
            print(
                f"{records} keeps images resized to {others}, not to config.image_size {format_size(size)}: training "
                "decodes and resizes the original ones."
            )
        return index, original_images(config)
    if is_scaled(config):
        print(f"config.augment_scale crops the original images: training decodes these and does not read {folder}.")
        return index, original_images(config)
    resized = load_index(folder, "train", [str(folder / Path(file).name) for file in index.files])
    if resized is None or not np.array_equal(resized.sentence_counts, index.sentence_counts):
        raise UserError(f"{folder} does not belong to the records in {records}. Delete it; `prepare` makes it again.")
    height, width = size
    return resized, ImageDecoder(
        lambda frame: np.frombuffer(frame, np.uint8).reshape(height, width, 3),
        lambda bits: np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width).reshape(size),
    )


def resized_dir(records: Path, size: Size) -> Path:
    """Returns the folder of the images resized to `size`, whether or not it exists."""
    return records / f"resized_{format_size(size)}"


def format_size(size: Size) -> str:
    """Returns "HEIGHTxWIDTH"."""
    return f"{size[0]}x{size[1]}"


def parse_size(text: str) -> Size:
    """The inverse of `format_size`. Raises UserError unless both are multiples of 32, as the model requires."""
    numbers = text.split("x")
    if len(numbers) == 2 and all(number.isascii() and number.isdecimal() for number in numbers):
        height, width = map(int, numbers)
        if all(0 < length <= 4096 and length % 32 == 0 for length in (height, width)):
            return height, width
    raise UserError(
        f"--image_size={text}: give HEIGHTxWIDTH in pixels as in config.image_size, multiples of 32 up to 4096, for "
        "example 320x320."
    )


# -- writing


def write_resized(dataset: str, data_dir: str | Path, size: Size) -> None:
    """Makes the resized images of the split "train" unless they exist, and enters them in the report.

    An interrupted run resumes after its last complete file.

    Raises:
      UserError: there is no split "train", the records have no index, another process is writing the same files, or
        the disk is full.
    """
    records = records_dir(data_dir, dataset)
    folder = resized_dir(records, size)
    if folder.is_dir():
        print(f"{folder} exists.")
        return
    counts = load_report(data_dir, dataset)["splits"].get("train")
    if counts is None:
        raise UserError(f"{dataset} has no split 'train': only training reads resized images.")
    pattern = f"{dataset}-train.tfrecord-*-of-*"
    index = load_index(records, "train", sorted(map(str, records.glob(pattern))))
    if index is None:
        raise UserError(
            f"The records in {records} were made by an earlier version. To add resized images, delete that folder and "
            "run the same command again."
        )
    height, width = size
    needed = height * width * (6 * counts["frame_pairs"] + counts["instances"] / 8)
    print(f"Images of the split train resized to {format_size(size)} take {needed / 1e9:.3g} GB in {folder}.")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    digest = hashlib.sha256((records / INDEX_FILE).read_bytes()).hexdigest()
    with locked_output_dir(unfinished, {"records": digest}):
        present = sum(path.stat().st_size for path in unfinished.iterdir())
        free = shutil.disk_usage(unfinished).free
        if needed - present > free:
            raise UserError(f"{unfinished}: {(needed - present) / 1e9:.3g} GB are missing, {free / 1e9:.3g} GB free.")
        _write_files(index, unfinished, size)
        for file in unfinished.glob("*.counts.json"):
            file.unlink()
        (unfinished / "plan.json").unlink()
        size_in_bytes = sum(path.stat().st_size for path in unfinished.iterdir())
        report = json.loads((records / "report.json").read_text("utf-8"))
        kept = {"frame_pairs": counts["frame_pairs"], "bytes": size_in_bytes}
        report.setdefault("resized", {})[format_size(size)] = kept
        write_json(report, records / "report.json", indent=1)
        os.replace(unfinished, folder)


def _write_files(index: RecordIndex, folder: Path, size: Size) -> None:
    """Writes the files that don't exist yet, one for each file of records, and their index."""
    files = [folder / Path(file).name for file in index.files]
    complete = len(complete_summaries(files))
    remaining = np.flatnonzero(index.file_of >= complete)
    total = len(index.file_of)
    with tqdm(total=total, initial=total - len(remaining), desc="resized frame pairs", unit="") as progress:
        examples = map_in_threads(partial(_resize_record, index, size), iter(remaining.tolist()))
        for number in range(complete, len(files)):
            count = int((index.file_of == number).sum())
            entries = _write_file(files[number], itertools.islice(examples, count), progress)
            write_json(entries, summary_file(files[number]))
    write_json({"train": complete_summaries(files)}, folder / INDEX_FILE)


def _write_file(path: Path, examples: Any, progress: tqdm) -> list[Any]:
    """Writes one file. Returns the index entries of its records. Raises UserError if TensorFlow can't write it."""
    import tensorflow as tf  # slow to import

    entries = []
    try:
        with tf.io.TFRecordWriter(os.fspath(path)) as writer:
            for data, sentences in examples:
                writer.write(data)
                entries.append(index_entry(data, sentences))
                progress.update()
    except tf.errors.OpError as error:
        raise UserError(
            f"{path} can't be written: {error.message}. Free some space, then run the same command again: it resumes."
        ) from error
    return entries


def _resize_record(index: RecordIndex, size: Size, record: int) -> tuple[bytes, int]:
    """Reads a record and resizes its images. Returns it serialized, and its number of sentences."""
    import tensorflow as tf

    example = tf.train.Example.FromString(index.read(record))
    features = example.features.feature
    for name in ("frame", "earlier_frame"):
        (image,) = features[name].bytes_list.value
        features[name].bytes_list.value[:] = [resize_frame(decode_frame(image), size).tobytes()]
    masks = features["instances/mask"].bytes_list
    targets = [resize_target(decode_mask(png), size) for png in masks.value]
    masks.value[:] = [np.packbits(target).tobytes() for target in targets]
    features["labels"].bytes_list.value[:] = [b""]
    features["height"].int64_list.value[:], features["width"].int64_list.value[:] = ([length] for length in size)
    return example.SerializeToString(deterministic=True), int(index.sentence_counts[record])
