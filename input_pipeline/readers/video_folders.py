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
from input_pipeline.images import UNREADABLE
from input_pipeline.readers.raw_files import MASK_SIZE, NOT_IN_FRAME, read_frame, read_frames
from input_pipeline.types import FramePair, Sentence, Skipped

#: Decoded frames of a video to keep in memory: enough for the published intervals, however long the video is.
CACHED_FRAMES = 8
#: Offset of the bit depth in a PNG file, in bytes.
BIT_DEPTH_OFFSET = 24


def frame_indices(folder: Path, suffix: str) -> set[int]:
    """The indices of the files <%05d><suffix> in a folder; empty if the folder does not exist."""
    return {int(path.stem) for path in folder.glob(f"*{suffix}") if re.fullmatch(r"[0-9]{5}", path.stem)}


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
    labels = _read_all_labels(masks, indices, skipped)
    objects = {index: _object_ids(label) for index, label in labels.items()}
    sentences = _check_instances(sentences, objects, str(masks), keep_all, skipped)
    yield from skipped
    if not sentences:
        return

    cache = _FrameCache()
    for index in indices if keep_all else labels:
        path = frames / f"{index:05d}.jpg"
        earlier, rule = find_earlier(index)
        try:
            frame, earlier_frame, files = read_frames(path, frames / f"{earlier:05d}.jpg", cache.read)
        except UserError as error:
            yield Skipped(str(path), str(error))
            continue
        label = labels.get(index)
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
      path: a PNG file with a palette, or in 8-bit grayscale, which some tools make of it.

    Returns:
      (H, W) uint8, the object id of every pixel, 0 for background.

    Raises:
      UserError: the file is missing, can't be read, or is of another kind.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        Image.open(content, formats=("PNG",)).verify()  # the checksums, which Pillow ignores when it decodes
        with Image.open(content, formats=("PNG",)) as image:
            # At a lower bit depth, Pillow would scale gray values.
            grayscale = image.mode == "L" and content.getvalue()[BIT_DEPTH_OFFSET] == 8
            if image.mode != "P" and not grayscale:
                raise UserError("the mask is neither a palette image nor 8-bit grayscale: no object ids")
            return np.asarray(image)
    except FileNotFoundError as error:
        raise UserError("mask missing") from error
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError("the mask can't be read") from error


def _read_all_labels(masks: Path | None, indices: Collection[int], skipped: list[Skipped]) -> dict[int, np.ndarray]:
    """Frame index -> object ids, for every frame with a readable mask."""
    labels: dict[int, np.ndarray] = {}
    if masks is None:
        return labels
    if not masks.is_dir():
        skipped.append(Skipped(str(masks), "the video's folder of masks is missing"))
        return labels
    for index in indices:
        path = masks / f"{index:05d}.png"
        try:
            labels[index] = read_labels(path)
        except UserError as error:
            skipped.append(Skipped(str(path), str(error)))
    return labels


def _object_ids(labels: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.bincount(labels.ravel())).tolist())


def _instances(sentences: tuple[Sentence, ...]) -> set[int]:
    return {sentence.instance for sentence in sentences if sentence.instance is not None}


def _check_instances(
    sentences: tuple[Sentence, ...],
    objects: dict[int, set[int]],
    where: str,
    keep_all: bool,
    skipped: list[Skipped],
) -> tuple[Sentence, ...]:
    """Reports the sentences whose object is in no mask of the video, and drops them unless `keep_all`."""
    present: set[int] = set().union(*objects.values())
    note = "the instance is in no mask of the video" + (": kept with empty masks" if keep_all else "")
    for sentence in sentences if objects else ():
        if sentence.instance is not None and sentence.instance not in present:
            skipped.append(Skipped(f"{where}: instance {sentence.instance} ({sentence.text[:60]})", note))
    return sentences if keep_all else tuple(s for s in sentences if s.instance in present)


class _FrameCache:
    """Reads the frames of a video; keeps the latest ones, since a frame soon becomes an earlier frame."""

    def __init__(self) -> None:
        self.frames: dict[Path, tuple[np.ndarray, bytes]] = {}

    def read(self, path: Path, name: str) -> tuple[np.ndarray, bytes]:
        """See `read_frame`."""
        if path not in self.frames:
            if len(self.frames) == CACHED_FRAMES:
                del self.frames[next(iter(self.frames))]  # the oldest
            self.frames[path] = read_frame(path, name)
        return self.frames[path]
