"""Videos as two folders, <%05d>.jpg frames and <%05d>.png masks, as Refer-YouTube-VOS and DAVIS have them.

A mask is a palette picture: the value of a pixel is the id of the object that it belongs to, 0 for none.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.readers import DataError, FramePair, Sentence, Skipped, read_frame


def frame_numbers(folder: Path, suffix: str) -> set[int]:
    """The numbers of the files <%05d><suffix> in a folder; empty where it does not exist."""
    return {int(path.stem) for path in folder.glob(f"*{suffix}") if re.fullmatch(r"[0-9]{5}", path.stem)}


def read_video(
    video: str,
    frames: Path,
    masks: Path,
    numbers: Iterable[int],
    earlier: Callable[[int], tuple[int, str]],
    sentences: tuple[Sentence, ...],
    keep_absent: bool,
) -> Iterator[FramePair | Skipped]:
    """The frame pairs of a video, in the order of `numbers`, and what had to be left out.

    Args:
      video: the data set's name of the video.
      frames: its folder of frames.
      masks: its folder of masks.
      numbers: the annotated frames.
      earlier: frame -> earlier frame and the rule that found it.
      sentences: all about the video.
      keep_absent: where the object of a sentence is not in a frame, False leaves the sentence out there, and True keeps
        it with an empty mask, as published scores demand. An object that is in no frame is always left out.
    """
    for folder, what in ((frames, "frames"), (masks, "masks")):
        if not folder.is_dir():
            yield Skipped(str(folder), f"the video's folder of {what} is missing")
            return
    labels: dict[int, np.ndarray] = {}
    for number in numbers:
        path = masks / f"{number:05d}.png"
        try:
            labels[number] = read_labels(path)
        except DataError as error:
            yield Skipped(str(path), str(error))
    ids = {number: set(np.flatnonzero(np.bincount(label.ravel())).tolist()) for number, label in labels.items()}
    seen = set().union(*ids.values())
    for sentence in sentences:
        if labels and sentence.instance not in seen:
            where = f"{masks}: instance {sentence.instance} ({sentence.text[:60]})"
            yield Skipped(where, "the instance is in no mask of the video")
    sentences = tuple(sentence for sentence in sentences if sentence.instance in seen)
    if not sentences:
        return

    pictures: dict[int, np.ndarray] = {}  # a frame is soon an earlier frame

    def picture(number: int, what: str) -> np.ndarray:
        if number not in pictures:
            pictures[number] = read_frame(frames / f"{number:05d}.jpg", what)
        return pictures[number]

    for number, label in labels.items():
        path = frames / f"{number:05d}.jpg"
        earlier_number, rule = earlier(number)
        try:
            frame, earlier_frame = picture(number, "frame"), picture(earlier_number, "earlier frame")
            if label.shape != frame.shape[:2]:
                raise DataError("the mask has another size than the frame")
            if earlier_frame.shape != frame.shape:
                raise DataError("the earlier frame has another size than the frame")
        except DataError as error:
            yield Skipped(str(path), str(error))
            continue
        asked = {sentence.instance for sentence in sentences}
        if not keep_absent:
            for instance in sorted(asked - ids[number]):
                yield Skipped(f"{masks / path.stem}.png: instance {instance}", "the instance is not in the frame")
            asked &= ids[number]
        if asked:
            present = tuple(sentence for sentence in sentences if sentence.instance in asked)
            planes = {instance: label == instance for instance in sorted(asked)}
            yield FramePair(video, number, frame, earlier_frame, rule, planes, present)


def read_labels(path: Path) -> np.ndarray:
    """The object of every pixel.

    Args:
      path: a PNG file with a palette, or with one grey channel of 8 bits, which some tools make of it.

    Returns:
      (H, W) uint8, 0 for no object.

    Raises:
      DataError: what is wrong with it.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        Image.open(content, formats=("PNG",)).verify()  # the checksums, which Pillow does not look at when it decodes
        with Image.open(content, formats=("PNG",)) as picture:
            if picture.mode not in ("P", "L"):
                raise DataError("the mask has colours instead of object ids")
            return np.asarray(picture)
    except FileNotFoundError as error:
        raise DataError("mask missing") from error
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("the mask can't be read") from error
