"""Videos as two folders, <%05d>.jpg frames and <%05d>.png masks, as Refer-YouTube-VOS and DAVIS have them.

A mask is a palette picture: the value of a pixel is the id of the object that it belongs to, 0 for none.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import UNREADABLE
from input_pipeline.readers.raw_files import read_frame
from input_pipeline.types import FramePair, Sentence, Skipped

#: Decoded frames of a video that are kept at a time: enough for the published intervals, whatever the video's length.
FRAMES_KEPT = 8
#: Where a PNG file tells the bits of a channel, in bytes.
BIT_DEPTH = 24


def frame_numbers(folder: Path, suffix: str) -> set[int]:
    """The numbers of the files <%05d><suffix> in a folder; empty where it does not exist."""
    return {int(path.stem) for path in folder.glob(f"*{suffix}") if re.fullmatch(r"[0-9]{5}", path.stem)}


def read_video(
    video: str,
    frames: Path,
    masks: Path | None,
    numbers: Iterable[int],
    earlier: Callable[[int], tuple[int, str]],
    sentences: tuple[Sentence, ...],
    keep_all: bool,
) -> Iterator[FramePair | Skipped]:
    """The frame pairs of a video, in the order of `numbers`, and what had to be left out.

    Args:
      video: the data set's name of the video.
      frames: its folder of frames.
      masks: its folder of masks; None where they are not published.
      numbers: the annotated frames.
      earlier: frame -> earlier frame and the rule that found it.
      sentences: all about the video.
      keep_all: True asks every sentence about every frame, as published scores and servers demand: with an empty mask
        where its object is not in the frame, and with instance None where the frame has no mask that can be read.
        False leaves a sentence out of both.
    """
    if not frames.is_dir():
        yield Skipped(str(frames), "the video's folder of frames is missing")
        return
    if masks is not None and not masks.is_dir():
        yield Skipped(str(masks), "the video's folder of masks is missing")
        masks = None
    labels: dict[int, np.ndarray | None] = dict.fromkeys(numbers) if keep_all else {}
    for number in numbers if masks is not None else ():
        path = masks / f"{number:05d}.png"
        try:
            labels[number] = read_labels(path)
        except UserError as error:
            yield Skipped(str(path), str(error))
    ids = {
        n: set(np.flatnonzero(np.bincount(label.ravel())).tolist()) for n, label in labels.items() if label is not None
    }
    seen = set().union(*ids.values())
    for sentence in sentences:
        if ids and sentence.instance is not None and sentence.instance not in seen:
            where = f"{masks}: instance {sentence.instance} ({sentence.text[:60]})"
            kept = ": kept with empty masks" if keep_all else ""
            yield Skipped(where, f"the instance is in no mask of the video{kept}")
    if not keep_all:
        sentences = tuple(sentence for sentence in sentences if sentence.instance in seen)
    if not sentences:
        return

    pictures: dict[int, tuple[np.ndarray, bytes]] = {}  # a frame is soon an earlier frame

    def picture(number: int, what: str) -> tuple[np.ndarray, bytes]:
        if number not in pictures:
            if len(pictures) == FRAMES_KEPT:
                del pictures[next(iter(pictures))]  # read first
            pictures[number] = read_frame(frames / f"{number:05d}.jpg", what)
        return pictures[number]

    for number, label in labels.items():
        path = frames / f"{number:05d}.jpg"
        earlier_number, rule = earlier(number)
        try:
            frame, file = picture(number, "frame")
            earlier_frame, earlier_file = picture(earlier_number, "earlier frame")
            if earlier_frame.shape != frame.shape:
                raise UserError("the earlier frame has another size than the frame")
        except UserError as error:
            yield Skipped(str(path), str(error))
            continue
        if label is not None and label.shape != frame.shape[:2]:
            yield Skipped(str(path), "the mask has another size than the frame")
            label = None
        if label is None:
            asked = tuple(dataclasses.replace(sentence, instance=None) for sentence in sentences) if keep_all else ()
        else:
            asked = tuple(s for s in sentences if keep_all or s.instance in ids[number])
            for instance in sorted({s.instance for s in sentences} - {s.instance for s in asked}):
                yield Skipped(f"{masks / path.stem}.png: instance {instance}", "the instance is not in the frame")
        if asked:
            present = sorted({sentence.instance for sentence in asked} - {None})
            planes = {instance: label == instance for instance in present}
            files = file, earlier_file
            yield FramePair(video, number, frame, earlier_frame, rule, planes, asked, files=files)


def read_labels(path: Path) -> np.ndarray:
    """The object of every pixel.

    Args:
      path: a PNG file with a palette, or with one grey channel of 8 bits, which some tools make of it.

    Returns:
      (H, W) uint8, 0 for no object.

    Raises:
      UserError: what is wrong with it.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        Image.open(content, formats=("PNG",)).verify()  # the checksums, which Pillow does not look at when it decodes
        with Image.open(content, formats=("PNG",)) as picture:
            grey = picture.mode == "L" and content.getvalue()[BIT_DEPTH] == 8  # with fewer, Pillow scales the values
            if picture.mode != "P" and not grey:
                raise UserError("the mask has neither a palette nor 8 bits of grey: no object ids")
            return np.asarray(picture)
    except FileNotFoundError as error:
        raise UserError("mask missing") from error
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError("the mask can't be read") from error
