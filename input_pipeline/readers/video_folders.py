"""Videos as folders of <%05d>.jpg frames and <%05d>.png masks, the layout of Refer-YouTube-VOS and DAVIS.

A mask file is a palette image: the value of a pixel is the id of its object, 0 for background.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.files import MAX_IMAGE_BYTES, list_folder, read_limited
from input_pipeline.pictures import MAX_PIXELS
from input_pipeline.readers.raw_files import MASK_SIZE, NOT_IN_FRAME, read_frame, read_frames
from input_pipeline.types import FramePair, Sentence, Skipped

#: Decoded frames of a video to keep in memory: enough for the published intervals, however long the video is.
CACHED_FRAMES = 8
#: Limit for the masks of a video that are kept in memory; the others are read twice. Those of a DAVIS video at 480p
#: have at most 43 MB.
MAX_LABEL_BYTES = 256 * 2**20
#: Offset of the bit depth in a PNG file, in bytes.
BIT_DEPTH_OFFSET = 24


def frame_indices(folder: Path, suffix: str) -> set[int]:
    """The indices of the files <%05d><suffix> in a folder; empty if the folder does not exist."""
    return {int(path.stem) for path in list_folder(folder, f"*{suffix}") if re.fullmatch(r"[0-9]{5}", path.stem)}


def read_video(
    video: str,
    frames: Path,
    masks: Path | None,
    indices: Collection[int],
    find_earlier: Callable[[int], tuple[int, str]],
    sentences: tuple[Sentence, ...],
    keep_all: bool,
) -> Iterator[FramePair | Skipped]:
    """Yields the frame pairs of a video, in the order of `indices`, and what had to be left out.

    Args:
      video: the video's name in the dataset.
      frames: folder of its frames.
      masks: folder of its masks; None if they are not published.
      indices: the annotated frames.
      find_earlier: frame index -> index of the earlier frame, and the rule that selected it.
      sentences: all sentences of the video.
      keep_all: True keeps every sentence in every frame, as published scores and servers require: with an empty mask
        if its object is not in the frame, and with instance None if the frame has no readable mask. False drops the
        sentence in both cases.
    """
    if not frames.is_dir():
        yield Skipped(str(frames), "the video's folder of frames is missing")
        return
    skipped: list[Skipped] = []
    objects, labels = _read_all_labels(masks, indices, skipped)
    sentences = _check_instances(sentences, objects, masks, keep_all, skipped)
    yield from skipped
    if not sentences:
        return

    cache = FrameCache()
    for index in indices if keep_all else objects:
        path = frames / f"{index:05d}.jpg"
        earlier, rule = find_earlier(index)
        try:
            frame, earlier_frame, files = read_frames(path, frames / f"{earlier:05d}.jpg", cache.read)
        except UserError as error:
            yield Skipped(str(path), str(error))
            continue
        label = labels.get(index)
        if label is None and masks is not None and index in objects:
            label = read_labels(masks / f"{index:05d}.png")
        if label is not None and label.shape != frame.shape[:2]:
            yield Skipped(str(path), MASK_SIZE)
            label = None
        if label is None:
            if keep_all:
                unlabeled = tuple(dataclasses.replace(sentence, instance=None) for sentence in sentences)
                yield FramePair(video, index, frame, earlier_frame, rule, {}, unlabeled, files=files)
            continue
        kept = sentences if keep_all else tuple(s for s in sentences if s.instance in objects[index])
        for instance in sorted(_instances(sentences) - _instances(kept)):
            yield Skipped(f"{masks}/{index:05d}.png: instance {instance}", NOT_IN_FRAME)
        if kept:
            planes = {instance: label == instance for instance in sorted(_instances(kept))}
            yield FramePair(video, index, frame, earlier_frame, rule, planes, kept, files=files)


def read_labels(path: Path) -> np.ndarray:
    """Reads the object ids of a mask file.

    Args:
      path: a PNG file with a palette, or in 8-bit grayscale, which some tools make of it; or black and white with one
        bit a pixel, where white is object 1.

    Returns:
      (H, W) uint8, the object id of every pixel, 0 for background.

    Raises:
      UserError: the file is missing, can't be read, or is of another kind.
    """
    try:
        content = read_limited(path, MAX_IMAGE_BYTES)
    except FileNotFoundError as error:
        raise UserError("mask missing") from error
    except (OSError, UserError) as error:
        raise UserError("the mask can't be read") from error
    try:
        Image.open(io.BytesIO(content), formats=("PNG",)).verify()  # checksums, which Pillow otherwise ignores
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("larger than any frame")
            # At a lower bit depth, Pillow would scale gray values.
            grayscale = image.mode == "L" and content[BIT_DEPTH_OFFSET] == 8
            labels = np.asarray(image) if image.mode == "P" or grayscale else None
            if image.mode == "1":
                labels = (np.asarray(image.convert("L")) > 0).view(np.uint8)
    except Exception as error:  # whatever Pillow raises for a damaged file, struct.error among others
        raise UserError("the mask can't be read") from error
    if labels is None:
        raise UserError("the mask is neither a palette image nor 8-bit grayscale: no object ids")
    return labels


def _read_all_labels(
    masks: Path | None, indices: Collection[int], skipped: list[Skipped]
) -> tuple[dict[int, set[int]], dict[int, np.ndarray]]:
    """Reads all masks of a video.

    Returns:
      Frame index -> the ids in its mask, for every frame with a readable mask; frame index -> the mask itself, for as
      many frames as fit into memory.
    """
    objects: dict[int, set[int]] = {}
    labels: dict[int, np.ndarray] = {}
    num_bytes = 0
    if masks is None:
        return objects, labels
    if not masks.is_dir():
        skipped.append(Skipped(str(masks), "the video's folder of masks is missing"))
        return objects, labels
    for index in indices:
        path = masks / f"{index:05d}.png"
        try:
            label = read_labels(path)
        except UserError as error:
            skipped.append(Skipped(str(path), str(error)))
            continue
        objects[index] = object_ids(label)
        num_bytes += label.nbytes
        if num_bytes <= MAX_LABEL_BYTES:
            labels[index] = label
    return objects, labels


def object_ids(labels: np.ndarray) -> set[int]:
    """The values in (H, W) uint8 labels, 0 included."""
    blocks = np.array_split(labels, max(1, labels.size >> 20))  # bincount takes 8 bytes for each pixel
    return {instance for block in blocks for instance in np.flatnonzero(np.bincount(block.ravel())).tolist()}


def _instances(sentences: tuple[Sentence, ...]) -> set[int]:
    return {sentence.instance for sentence in sentences if sentence.instance is not None}


def _check_instances(
    sentences: tuple[Sentence, ...],
    objects: dict[int, set[int]],
    masks: Path | None,
    keep_all: bool,
    skipped: list[Skipped],
) -> tuple[Sentence, ...]:
    """Reports the sentences whose object is in no mask of the video, and drops them unless `keep_all`."""
    present: set[int] = set().union(*objects.values())
    note = "the instance is in no mask of the video" + (": kept with empty masks" if keep_all else "")
    if not objects:
        note = "no mask of the video can be read: the instance is left out"
    # Without the folder of masks, or where sentences are kept without ground truth, there is one note for all.
    listed = objects or (not keep_all and masks is not None and masks.is_dir())
    for sentence in sentences if listed else ():
        if sentence.instance is not None and sentence.instance not in present:
            skipped.append(Skipped(f"{masks}: instance {sentence.instance} ({sentence.text[:60]})", note))
    return sentences if keep_all else tuple(s for s in sentences if s.instance in present)


class FrameCache:
    """Reads the frames of a video; keeps the latest ones, since a frame soon becomes an earlier frame."""

    def __init__(self, read_file: Callable[[Path, str], tuple[np.ndarray, bytes]] = read_frame) -> None:
        self.read_file = read_file
        self.frames: dict[Path, tuple[np.ndarray, bytes]] = {}

    def read(self, path: Path, name: str) -> tuple[np.ndarray, bytes]:
        """See `read_frame`."""
        if path not in self.frames:
            if len(self.frames) == CACHED_FRAMES:
                del self.frames[next(iter(self.frames))]  # the oldest
            self.frames[path] = self.read_file(path, name)
        return self.frames[path]
