"""Reader of MeViS, versions 1 and 2: videos with a mask in every frame, expressions about one, several or no objects.

    {train,valid_u,valid}/JPEGImages/<video>/<%05d>.jpg         frames, from 00000
    {train,valid_u,valid}/meta_expressions_v2.json              or meta_expressions.json, of either version
        {"videos": {video: {"expressions": {name: {"exp": text, "obj_id": [...], "anno_id": [...]}}, "frames": [...]}}}
    {train,valid_u}/mask_dict.json                              {anno_id: [for each frame null or a mask in COCO's RLE]}

The target of an expression is the union of its objects. Version 2 has expressions without a target: both lists are
empty. The masks of "valid" are not published: only the benchmark's server can score it. mask_dict.json, of 400 MB, is
never in memory as a whole; see `json_index`.

Source: Ding et al., ICCV 2023 (arXiv 2308.08544), https://github.com/henghuiding/MeViS.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.readers.json_index import JsonIndex, index_json
from input_pipeline.readers.mevis_expressions import Fault, Video, parse_video
from input_pipeline.readers.mevis_masks import VideoMasks
from input_pipeline.readers.raw_files import (
    BAD_VIDEO_NAME,
    NO_TRAINING_DATA,
    SkippedItems,
    check_complete,
    is_plain_name,
    read_frames,
    shorten,
)
from input_pipeline.readers.refer_youtube_vos import find_earlier
from input_pipeline.readers.video_folders import FrameCache
from input_pipeline.report import format_skipped
from input_pipeline.types import NO_TARGET, SEVERAL_OBJECTS, FramePair, Sentence, Skipped

FRAMES = "JPEGImages"
EXPRESSIONS = ("meta_expressions_v2.json", "meta_expressions.json")
MASKS = "mask_dict.json"

HOW_TO_GET = f"""\
MeViS comes as one archive for each split, train, valid_u and valid, each with {FRAMES}/ and meta_expressions.json (or
{EXPRESSIONS[0]} of version 2), train and valid_u also with {MASKS}:
  https://github.com/henghuiding/MeViS
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=mevis --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class Split:
    """What is in memory of a split: where everything else lies.

    Attributes:
      folder: with the frames.
      expressions: of the file of expressions, the entry of each video that is read.
      masks: of mask_dict.json, the entry of each object; None if the masks are not published.
      counts: what the report counts.
    """

    folder: Path
    expressions: JsonIndex
    masks: JsonIndex | None
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The splits that can be read, by name, and what was left out."""

    splits: dict[str, Split]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class MeViS:
    """MeViS as unpacked; the methods are those of `input_pipeline.types.Reader`.

    Attributes:
      raw: folder that contains `train`, `valid_u` or `valid`, or the folder around it.
      interval: frames from the earlier frame to the annotated frame; of our own choice.
      no_target_sentences: whether "train" has expressions without a target, with empty masks. The other splits have
        them.
    """

    raw: Path
    interval: int = 5
    no_target_sentences: bool = False

    #: Counts of version 1: (videos, sentences) of each split. Version 2 has 27,502, 907 and 2,523 sentences.
    FULL_COUNTS: ClassVar[dict[str, tuple[int, int]]] = {
        "train": (1662, 23051),
        "valid_u": (50, 793),
        "valid": (140, 2236),
    }

    def splits(self) -> tuple[str, ...]:
        """Those that can be read. Raises UserError if there is none or one is incomplete."""
        return tuple(self.annotations.splits)

    def videos(self, split: str) -> list[str]:
        return sorted(self.annotations.splits[split].expressions.entries)

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        counts: dict[str, tuple[int, int | None]] = {}
        for name, split in self.annotations.splits.items():
            full_videos, full_sentences = self.FULL_COUNTS[name]
            videos = split.expressions.entries
            folders = sum((split.folder / FRAMES / video).is_dir() for video in videos)
            counts[f"{name} videos"] = len(videos), full_videos
            counts[f"{name} folders of {FRAMES}"] = folders, full_videos
            version_1 = split.expressions.path.name == EXPRESSIONS[1] and not split.counts["sentences without a target"]
            for item, count in split.counts.items():
                full_count = full_sentences if item == "sentences" and version_1 else None
                counts[f"{name} {item}"] = count, full_count
            if split.masks is not None:
                counts[f"{name} objects in {MASKS}"] = len(split.masks.entries), None
        return counts

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The JSON files, read once. Raises UserError if something is missing or a file has another content."""
        root = find_root(self.raw)
        skipped = SkippedItems()
        splits: dict[str, Split] = {}
        for name in self.FULL_COUNTS:
            folder = root / name
            if not (folder / FRAMES).exists():
                skipped.append(Skipped(str(folder / FRAMES), f"split {name} left out: its frames are not there"))
                continue
            split = self._read_split(name, folder, skipped)
            has_frames = any((folder / FRAMES / video).is_dir() for video in split.expressions.entries)
            if name == "train" and not has_frames:
                skipped.append(Skipped(str(folder), NO_TRAINING_DATA))
            elif not split.expressions.entries:
                reason = f"split {name} left out: no video has a valid sentence"
                skipped.append(Skipped(str(split.expressions.path), reason))
            else:
                others = [other.expressions.entries for other in splits.values()]
                for video in [v for v in split.expressions.entries if any(v in other for other in others)]:
                    skipped.append(Skipped(f"{split.expressions.path}: video {video}", "video in two splits"))
                    del split.expressions.entries[video]
                splits[name] = split
        if not splits:
            raise UserError(f"{self.raw} has no split that can be read.\n{format_skipped(skipped[:5])}\n{HOW_TO_GET}")
        return Annotations(splits, tuple(skipped))

    def _read_split(self, name: str, folder: Path, skipped: list[Skipped]) -> Split:
        """Reads every video's entry, and keeps those with a valid sentence."""
        files = [folder / file for file in EXPRESSIONS if (folder / file).exists()]
        check_complete(folder, () if files else EXPRESSIONS[1:], HOW_TO_GET)
        if len(files) > 1:
            skipped.append(Skipped(str(files[1]), f"not read, since {EXPRESSIONS[0]} lies beside it"))
        expressions = _index(files[0], "videos")
        masks = None
        if name != "valid":
            check_complete(folder, (MASKS,), HOW_TO_GET)
            masks = _index(folder / MASKS)
        elif (folder / MASKS).exists():
            masks = _index(folder / MASKS)
        counts = dict.fromkeys(("sentences", "sentences without a target", "sentences about several objects"), 0)
        counts["unknown keys of expressions"] = 0
        split = Split(folder, expressions, masks, counts)
        for video in list(expressions.entries):
            where = f"{files[0]}: video {shorten(video)}"
            parsed = None
            if not is_plain_name(video):
                skipped.append(Skipped(where, BAD_VIDEO_NAME))
            else:
                parsed = self._parse(name, split, video, skipped)
                if not parsed.sentences or not parsed.frames:
                    skipped.append(Skipped(where, "video without a readable sentence or frame"))
                    parsed = None
            if parsed is None:
                del expressions.entries[video]
                continue
            counts["sentences"] += len(parsed.sentences)
            counts["sentences without a target"] += sum(s.group == NO_TARGET for s in parsed.sentences)
            several = sum(s.group == SEVERAL_OBJECTS for s in parsed.sentences)
            counts["sentences about several objects"] += several
            counts["unknown keys of expressions"] += parsed.unknown_keys
        return split

    def _parse(self, name: str, split: Split, video: str, skipped: list[Skipped]) -> Video:
        """Parses the entry of a video; empty if it can't be."""
        where = f"{split.expressions.path}: video {video}"
        try:
            entry = split.expressions.read(video)
        except (OSError, ValueError, RecursionError) as error:
            skipped.append(Skipped(f"{where}: {error}", "the video's entry can't be read"))
            return Video()
        known = None if split.masks is None else split.masks.entries
        faults: list[Fault] = []
        parsed = parse_video(entry, known, name, name == "train" and not self.no_target_sentences, faults)
        skipped.extend(Skipped(f"{where}{place}", reason) for place, reason in faults)
        return parsed

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields every frame of a video with its sentences, and what had to be left out.

        In "train", a frame has no sentences about targets of which nothing is in it. In the other splits it has, with
        empty masks, since scores are means over all frames; without ground truth, its sentences have no instance.
        """
        name, split = next((n, s) for n, s in self.annotations.splits.items() if video in s.expressions.entries)
        parsed = self._parse(name, split, video, [])
        folder = split.folder / FRAMES / video
        if not folder.is_dir():
            yield Skipped(str(folder), "the video's folder of frames is missing")
            return
        masks = VideoMasks(split.masks, parsed)
        available, cache = dict.fromkeys(parsed.frames), FrameCache()
        for position, index in enumerate(parsed.frames):
            path = folder / f"{index:05d}.jpg"
            earlier, rule = find_earlier(index, self.interval, available)
            try:
                frame, earlier_frame, files = read_frames(path, folder / f"{earlier:05d}.jpg", cache.read)
            except UserError as error:
                yield Skipped(str(path), str(error))
                continue
            targets = masks.targets(position, frame.shape[:2])
            sentences = tuple(_sentences_of_frame(parsed.sentences, targets, name == "train"))
            if sentences:
                used = {sentence.instance for sentence in sentences}
                planes = {i: mask for i, mask in targets.items() if i in used and mask is not None}
                yield FramePair(video, index, frame, earlier_frame, rule, planes, sentences, files=files)
        yield from masks.skipped(f"{'' if split.masks is None else split.masks.path}: video {video}", name == "train")


def find_root(raw: Path) -> Path:
    """The folder with the splits: `raw`, or the only folder in it that has one, as the archives are packed."""
    splits = tuple(MeViS.FULL_COUNTS)
    if not raw.is_dir() or any((raw / split).is_dir() for split in splits):
        return raw
    inner = [path for path in sorted(raw.iterdir()) if any((path / split).is_dir() for split in splits)]
    return inner[0] if len(inner) == 1 else raw


def _index(path: Path, *parents: str) -> JsonIndex:
    """`index_json`. Raises UserError that names the file."""
    try:
        return index_json(path, *parents)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error}). Unpack the file again.") from error


def _sentences_of_frame(
    sentences: tuple[Sentence, ...], targets: Mapping[int, np.ndarray | None], training: bool
) -> Iterator[Sentence]:
    """The sentences of a frame: in training those whose target is visible or which have none, else all of them."""
    for sentence in sentences:
        mask = None if sentence.instance is None else targets[sentence.instance]
        if not training:
            yield dataclasses.replace(sentence, instance=None) if mask is None else sentence
        elif mask is not None and (sentence.group == NO_TARGET or mask.any()):
            yield sentence
