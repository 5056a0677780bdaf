"""Reader of your own clips: a folder with videos, masks of some of their frames, and one text file of sentences.

    sentences.txt                 a line for each sentence: video, object, sentence; each may be quoted
    videos/<video>.mp4            a clip (.mp4, .mov or .m4v), whose first frame is frame 0
    videos/<video>/<name>.jpg     or a folder of JPEG, PNG or other pictures, in the order of the numbers in their names
    masks/<video>/<frame>.png     a palette or 8-bit gray image for each labelled frame; a pixel's value is its object
    masks/<video>.json            or {frame: {object: {"size": [h, w], "counts": ...}}}, COCO's run-length encoding
    held_out.txt                  optional; lines: video, or video, frame

A mask names its frame by the number in a clip, from 0 ("12" and "00012" are the same), or by the name of the frame's
file without suffix. In black-and-white masks (0 and 255, or one bit a pixel), white is object 1. An object "1+2" is the
union of both.

The labelled frames that are not held out are split "train", the others are split "val": those of a video that
held_out.txt lists, from the frame on that it names as a mask would. Without that file, it is the last quarter of each
video.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from input_pipeline.errors import UserError, first_few
from input_pipeline.readers.own_videos import OwnVideo, composed, find_videos
from input_pipeline.readers.raw_files import (
    MASK_SIZE,
    NOT_IN_FRAME,
    SkippedItems,
    check_complete,
    find_text_error,
    numbered_lines,
    parse_object_id,
    shorten,
)
from input_pipeline.report import format_skipped
from input_pipeline.types import FramePair, Sentence, Skipped

SENTENCES, HELD_OUT = "sentences.txt", "held_out.txt"
VIDEOS, MASKS = "videos", "masks"
BAD_LINE = "the line does not have the form video, object, sentence"
BAD_HELD_OUT = "the line does not have the form video, or video, frame"
REPEATED_LINE = "video, object and sentence are those of an earlier line, which alone counts"
NO_SUCH_OBJECT = "the object is in no mask of the video that can be read: its sentences are left out"

HOW_TO_GET = f"""\
The folder of your own clips has
  {SENTENCES}               lines such as "dog, 1, the brown dog on the left": video, object, sentence
  {VIDEOS}/dog.mp4              or a folder {VIDEOS}/dog/ of pictures
  {MASKS}/dog/00012.png         masks of the labelled frames, or {MASKS}/dog.json
See docs/data.md, "Your own clips", and run
  python -m input_pipeline.prepare --dataset=own --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The folder's contents.

    Attributes:
      videos: name -> video, those with a sentence and a labelled frame.
      sentences: name of a video -> its sentences; the instance is a key of `targets`.
      targets: name of a video -> target -> the objects whose union it is.
      frames: split -> name of a video -> its labelled frames, in order.
      skipped: what was left out.
    """

    videos: dict[str, OwnVideo]
    sentences: dict[str, tuple[Sentence, ...]]
    targets: dict[str, dict[int, tuple[int, ...]]]
    frames: dict[str, dict[str, tuple[int, ...]]]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class OwnClips:
    """Your own clips; the methods are those of `input_pipeline.types.Reader`. A "video" is "<video>/<split>".

    Attributes:
      raw: folder that contains `sentences.txt`, `videos` and `masks`.
      interval: frames from the earlier frame to the labelled frame.
    """

    raw: Path
    interval: int = 6

    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val")

    def splits(self) -> tuple[str, ...]:
        """Those with a labelled frame. Raises UserError, with every reason, if there is none."""
        return tuple(split for split in self.SPLITS if self.annotations.frames[split])

    def videos(self, split: str) -> list[str]:
        return sorted(f"{name}/{split}" for name in self.annotations.frames[split])

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        annotations = self.annotations
        counts = {
            "videos with a sentence and a mask": len(annotations.videos),
            "sentences": sum(map(len, annotations.sentences.values())),
        }
        for split in self.SPLITS:
            counts[f"labelled frames in {split}"] = sum(map(len, annotations.frames[split].values()))
        for rate, count in self.clips_by_frame_rate.items():
            counts[f"clips with {rate} frames per second"] = count
        return {item: (count, None) for item, count in counts.items()}

    @functools.cached_property
    def clips_by_frame_rate(self) -> dict[str, int]:
        """Frames per second to four digits, in which 29.97 and 29.970001 are one -> number of clips; read once."""
        rates = [video.read_frame_rate() for video in self.annotations.videos.values()]
        return dict(Counter(f"{rate:.4g}" for rate in sorted(rate for rate in rates if rate is not None)))

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The text files and the names of all others, read once. Raises UserError if nothing fits together."""
        check_complete(self.raw, (SENTENCES, VIDEOS, MASKS), HOW_TO_GET)
        skipped = SkippedItems()
        videos = find_videos(self.raw / VIDEOS, self.raw / MASKS, skipped)
        sentences, targets = _read_sentences(self.raw / SENTENCES, videos, skipped)
        for name in sorted(videos.keys() - sentences.keys()):
            skipped.append(Skipped(f"{self.raw / SENTENCES}: video {name}", "video without a sentence"))
        for name in [name for name in sentences if not videos[name].masks]:
            where = f"{self.raw / MASKS}: video {name}"
            skipped.append(Skipped(where, "video without a mask: its sentences are left out"))
            del sentences[name]
        videos = {name: videos[name] for name in sentences}
        frames = self._split_frames(videos, skipped)
        if not any(frames.values()):
            raise UserError(
                f"{self.raw}: no sentence has a video with a mask.\n{format_skipped(skipped)}\n{HOW_TO_GET}"
            )
        for split, advice in (
            ("train", f"{HELD_OUT} holds out all of them: list fewer videos, or later frames"),
            (
                "val",
                f"{HELD_OUT} holds out none: list a video, or remove the file"
                if (self.raw / HELD_OUT).exists()
                else f"label two frames of a video, or list one in {HELD_OUT}",
            ),
        ):
            if not frames[split]:
                skipped.append(Skipped(str(self.raw), f"split {split} has no labelled frame: {advice}"))
        return Annotations(videos, sentences, targets, frames, tuple(skipped))

    def _split_frames(
        self, videos: dict[str, OwnVideo], skipped: list[Skipped]
    ) -> dict[str, dict[str, tuple[int, ...]]]:
        """Split -> video -> its labelled frames."""
        path = self.raw / HELD_OUT
        first_held_out = _read_held_out(path, videos, skipped) if path.exists() else None
        frames: dict[str, dict[str, tuple[int, ...]]] = {split: {} for split in self.SPLITS}
        for name, video in videos.items():
            labelled = tuple(sorted(video.masks))
            if first_held_out is not None:
                first = first_held_out.get(name, labelled[-1] + 1)
                parts = tuple(f for f in labelled if f < first), tuple(f for f in labelled if f >= first)
            else:
                kept = max(1, len(labelled) - max(1, len(labelled) // 4))  # a single one is for training
                parts = labelled[:kept], labelled[kept:]
            for split, part in zip(self.SPLITS, parts, strict=True):
                if part:
                    frames[split][name] = part
        return frames

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields the labelled frames of a split of a video, and what had to be left out.

        Sentences about an object that is in no mask of the video, of either split, are left out. Of the others, a frame
        in "train" has none about objects that are not in it; in "val" it has, with empty masks.
        """
        name, split = video.rsplit("/", 1)
        annotations = self.annotations
        own_video, targets = annotations.videos[name], annotations.targets[name]
        named = sorted({i for ids in targets.values() for i in ids})
        found = own_video.find_objects(named)
        for target, ids in targets.items():
            if missing := [i for i in ids if i not in found]:
                of_union = f" of {'+'.join(map(str, ids))}" if len(ids) > 1 else ""
                others = f"; they have object {first_few(sorted(found))}" if found else ""
                lines = first_few([s.expression for s in annotations.sentences[name] if s.instance == target])
                where = f"{self.raw / MASKS}: video {name}, object {', '.join(map(str, missing))}{of_union}{others}"
                yield Skipped(f"{where} ({SENTENCES}:{lines})", NO_SUCH_OBJECT)
        targets = {target: ids for target, ids in targets.items() if found.issuperset(ids)}
        visible: set[int] = set()  # targets with a pixel in some frame
        for item in own_video.read_pairs(annotations.frames[split][name], self.interval):
            if isinstance(item, Skipped):
                yield item
                continue
            index, frame, earlier_frame, rule, files = item
            where = own_video.where_mask(index)
            try:
                objects = own_video.read_mask(index, named, frame.shape[:2])
            except UserError as error:
                yield Skipped(where, str(error))
                continue
            if any(mask.shape != frame.shape[:2] for mask in objects.values()):
                sizes = {mask.shape for mask in objects.values()} | {frame.shape[:2]}
                yield Skipped(f"{where}: {' and '.join(f'{h} x {w}' for h, w in sorted(sizes))} (h x w)", MASK_SIZE)
                continue
            empty = np.zeros(frame.shape[:2], bool)
            masks = {t: np.logical_or.reduce([objects.get(i, empty) for i in ids]) for t, ids in targets.items()}
            present = {target for target, mask in masks.items() if mask.any()}
            visible |= present
            with_mask = targets.keys() if split == "val" else present
            sentences = tuple(s for s in annotations.sentences[name] if s.instance in with_mask)
            for target in sorted(targets.keys() - present) if split == "train" else ():
                yield Skipped(f"{where}: object {'+'.join(map(str, targets[target]))}", NOT_IN_FRAME)
            if sentences:
                planes = {target: masks[target] for target in sorted({s.instance for s in sentences if s.instance})}
                yield FramePair(name, index, frame, earlier_frame, rule, planes, sentences, files=files)
        for target in sorted(targets.keys() - visible):
            where = f"{self.raw / MASKS}: video {name}, object {'+'.join(map(str, targets[target]))}"
            kept = ": its sentences are kept, with empty masks" if split == "val" else ""
            yield Skipped(where, f"the object is in no mask of the video's {split} frames{kept}")


def _read_sentences(
    path: Path, videos: dict[str, OwnVideo], skipped: list[Skipped]
) -> tuple[dict[str, tuple[Sentence, ...]], dict[str, dict[int, tuple[int, ...]]]]:
    """Video -> its sentences, named after their lines; video -> target -> objects."""
    sentences: dict[str, list[Sentence]] = {}
    targets: dict[str, dict[int, tuple[int, ...]]] = {}
    first_lines: dict[tuple[str, tuple[int, ...], str], str] = {}
    for where, line in numbered_lines(path):
        if line.lstrip().startswith("#"):
            continue
        fields = [_unquote(field.strip()) for field in line.split(",", maxsplit=2)]
        if len(fields) < 3:
            skipped.append(Skipped(f"{where}: {shorten(line)}", BAD_LINE))
            continue
        name = _video_name(fields[0], videos)
        ids = [parse_object_id(part.strip()) for part in fields[1].split("+")]
        if name is None:
            known = f"; {path.parent / VIDEOS} has {first_few(sorted(videos))}" if videos else ""
            skipped.append(Skipped(f"{where}: {shorten(fields[0])}{known}", "no such video"))
        elif None in ids:
            reason = "the object is not a number from 1 to 255, or several joined by +"
            skipped.append(Skipped(f"{where}: {shorten(fields[1])}", reason))
        elif error := find_text_error(fields[2]):
            skipped.append(Skipped(where, error))
        else:
            objects = tuple(sorted({i for i in ids if i is not None}))
            line_number = where.rpartition(":")[2]
            first = first_lines.setdefault((name, objects, fields[2]), line_number)
            if first != line_number:
                skipped.append(Skipped(f"{where}: as in line {first}", REPEATED_LINE))
                continue
            of_video = targets.setdefault(name, {})
            # One object keeps its id; unions are numbered from 256.
            target = objects[0] if len(objects) == 1 else next((t for t, o in of_video.items() if o == objects), None)
            target = target or max([255, *of_video]) + 1
            of_video[target] = objects
            sentences.setdefault(name, []).append(Sentence(fields[2], target, "", line_number))
    return {name: tuple(texts) for name, texts in sentences.items()}, targets


def _unquote(text: str) -> str:
    """A field without the quotes in which spreadsheets write it, above all if it contains a comma."""
    match = re.fullmatch(r'"((?:[^"]|"")*)"', text)
    return match[1].replace('""', '"').strip() if match else text


def _video_name(text: str, videos: dict[str, OwnVideo]) -> str | None:
    """The video that a line names, with or without the suffix of its clip; None if there is none."""
    text = composed(text)
    if text in videos:
        return text
    clips = ((name, video.path) for name, video in videos.items() if video.path.is_file())
    return next((name for name, path in clips if composed(path.name) == text), None)


def _read_held_out(path: Path, videos: dict[str, OwnVideo], skipped: list[Skipped]) -> dict[str, int]:
    """Video -> the first frame of "val"."""
    first: dict[str, int] = {}
    for where, line in numbered_lines(path):
        if line.lstrip().startswith("#"):
            continue
        fields = [field.strip() for field in line.split(",")]
        name = _video_name(fields[0], videos)
        if name is None:
            skipped.append(Skipped(f"{where}: {shorten(fields[0])}", "no such video with a sentence and a mask"))
        elif len(fields) > 2:
            skipped.append(Skipped(f"{where}: {shorten(line)}", BAD_HELD_OUT))
        elif (frame := videos[name].find_frame(fields[1]) if len(fields) == 2 else 0) is None:
            skipped.append(Skipped(f"{where}: {shorten(fields[1])}", "no frame of the video has this name or number"))
        elif name in first:
            skipped.append(Skipped(f"{where}: {name}", "video listed twice"))
        else:
            first[name] = frame
            if frame > max(videos[name].masks):
                skipped.append(Skipped(f"{where}: {shorten(line)}", "the line holds out no labelled frame"))
    return first
