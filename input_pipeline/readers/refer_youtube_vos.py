"""Reader of Refer-YouTube-VOS: videos with masks in every 5th frame, several expressions per object.

    train/JPEGImages/<video>/<%05d>.jpg               frames, from 00000
    train/Annotations/<video>/<%05d>.png              masks; the value of a pixel is its object's id
    valid/JPEGImages, valid/Annotations               the same; the masks of valid were published in 2026
    meta_expressions/{train,valid,test}/meta_expressions.json
        {"videos": {video: {"expressions": {name: {"exp": sentence, "obj_id": object}}, "frames": [name, ...]}}}
        or an older form, in which a video is
        {"objects": {object: {"frames": [name, ...], "expressions": [sentence, ...]}}}

The file of valid also lists the videos of test, which are left out. As first published, valid has neither masks nor
"obj_id". It can be read without them, since the benchmark's server only needs predictions.

Source: Seo et al., ECCV 2020 (https://github.com/skynbe/Refer-Youtube-VOS); frames and masks of YouTube-VOS.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Hashable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import (
    BAD_VIDEO_NAME,
    NO_TRAINING_DATA,
    SkippedItems,
    check_complete,
    find_text_error,
    is_plain_name,
    parse_object_id,
    read_json,
    shorten,
)
from input_pipeline.readers.video_folders import frame_indices, read_video
from input_pipeline.types import FramePair, Sentence, Skipped

FRAMES = "JPEGImages"
MASKS = "Annotations"
EXPRESSIONS = "meta_expressions/{split}/meta_expressions.json"

HOW_TO_GET = f"""\
Refer-YouTube-VOS belongs in one folder, with {FRAMES} and {MASKS} in train/ and valid/:
  train/, valid/, meta_expressions/    from https://youtube-vos.org/dataset/rvos/
  valid/{MASKS}/                   and the expressions of valid with their objects, from
                                       https://github.com/skynbe/Refer-Youtube-VOS, issue 7
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=refer_youtube_vos --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class Video:
    """A video's annotated frames, in order, and its sentences, in the order of the file."""

    frames: tuple[int, ...]
    sentences: tuple[Sentence, ...]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The JSON files: split -> name -> video, and what was left out."""

    videos: dict[str, dict[str, Video]]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class ReferYouTubeVOS:
    """Refer-YouTube-VOS as unpacked; the methods are those of `input_pipeline.types.Reader`.

    Attributes:
      raw: folder that contains `train`, `valid` and `meta_expressions`.
      interval: frames from the earlier frame to the annotated frame; 5 in the published runs. It should be a multiple
        of 5, since only every 5th frame has a file.
    """

    raw: Path
    interval: int = 5

    #: Counts of the full dataset: (videos, sentences) of each split.
    FULL_COUNTS: ClassVar[dict[str, tuple[int, int | None]]] = {"train": (3471, 12913), "valid": (202, None)}

    def splits(self) -> tuple[str, ...]:
        """Those of "train" and "valid" that can be read. Raises UserError if there is none or one is incomplete."""
        return tuple(self.annotations.videos)

    def videos(self, split: str) -> list[str]:
        return sorted(self.annotations.videos[split])

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        counts: dict[str, tuple[int, int | None]] = {}
        for split, (full_videos, full_sentences) in self.FULL_COUNTS.items():
            videos = self.annotations.videos.get(split, {})
            counts[f"{split} videos"] = len(videos), full_videos
            for kind in (FRAMES, MASKS):
                folders = sum((self.raw / split / kind / video).is_dir() for video in videos)
                counts[f"{split} folders of {kind}"] = folders, full_videos
            sentences = [sentence for video in videos.values() for sentence in video.sentences]
            counts[f"{split} sentences"] = len(sentences), full_sentences
            with_object = sum(sentence.instance is not None for sentence in sentences)
            counts[f"{split} sentences that name their object"] = with_object, full_sentences
        return counts

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The JSON files, read once. Raises UserError if something is missing or a file has another content."""
        skipped = SkippedItems()
        videos: dict[str, dict[str, Video]] = {}
        for split in self.FULL_COUNTS:
            if any((self.raw / split / kind).exists() for kind in (FRAMES, MASKS)):
                videos[split] = self._read_split(split, skipped)
            else:
                reason = f"split {split} left out: its folder has neither {FRAMES} nor {MASKS}"
                skipped.append(Skipped(str(self.raw / split), reason))
        for name in sorted(videos.get("train", {}).keys() & videos.get("valid", {}).keys()):
            where = f"{self.raw / EXPRESSIONS.format(split='valid')}: video {name}"
            skipped.append(Skipped(where, "video in two splits"))
            del videos["valid"][name]
        if videos.get("valid") == {}:  # the training data are of use without it
            path = self.raw / EXPRESSIONS.format(split="valid")
            skipped.append(Skipped(str(path), "split valid left out: it has no video with sentences and frames"))
            del videos["valid"]
        frames, masks = self.raw / "train" / FRAMES, self.raw / "train" / MASKS
        if "train" in videos and not any(
            (frames / video).is_dir() and (masks / video).is_dir() for video in videos["train"]
        ):
            skipped.append(Skipped(str(self.raw / EXPRESSIONS.format(split="train")), NO_TRAINING_DATA))
            del videos["train"]
        if not videos:
            reasons = "".join(f"  {item.where}: {item.reason}\n" for item in skipped[:5])
            raise UserError(f"{self.raw} has no split that can be read.\n{reasons}{HOW_TO_GET}")
        return Annotations(videos, tuple(skipped))

    def _read_split(self, split: str, skipped: list[Skipped]) -> dict[str, Video]:
        """Name -> video, for the videos of a split."""
        masks, expressions = f"{split}/{MASKS}", EXPRESSIONS.format(split=split)
        required = (f"{split}/{FRAMES}", *([] if split == "valid" else [masks]), expressions)
        check_complete(self.raw, required, HOW_TO_GET)
        entries = read_videos(self.raw / expressions)
        if split == "valid":
            if not (self.raw / masks).exists():
                reason = "split valid has no masks: only the server can score it"
                skipped.append(Skipped(str(self.raw / masks), reason))
            entries = self._without_test(entries, skipped)
        videos = {}
        for name, entry in entries.items():
            where = f"{self.raw / expressions}: video {shorten(name)}"
            if not is_plain_name(name):
                skipped.append(Skipped(where, BAD_VIDEO_NAME))
                continue
            video = parse_video(where, entry, split == "valid", skipped)
            if video.sentences and video.frames:
                videos[name] = video
            else:
                skipped.append(Skipped(where, "video without a readable sentence or frame"))
        return videos

    def _without_test(self, entries: dict[str, Any], skipped: list[Skipped]) -> dict[str, Any]:
        """The entries of valid without the videos of test, which its file also lists."""
        path = self.raw / EXPRESSIONS.format(split="test")
        if not path.exists():
            reason = "the videos of test can't be distinguished from those of valid: all are kept"
            skipped.append(Skipped(str(path), reason))
            return entries
        test = read_videos(path)
        return {name: entry for name, entry in entries.items() if name not in test}

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields every listed frame of a video with its sentences, and what had to be left out.

        In train, a frame has no sentences about objects that are not in it. In valid it has, with empty masks, since
        scores are means over all listed frames; without ground truth, its sentences have no instance.
        """
        split = next(split for split, videos in self.annotations.videos.items() if video in videos)
        entry = self.annotations.videos[split][video]
        frames, masks = self.raw / split / FRAMES / video, self.raw / split / MASKS
        # A listed frame whose file is missing is an error: no other frame may replace it as the earlier frame.
        available = dict.fromkeys(sorted(frame_indices(frames, ".jpg").union(entry.frames)))
        yield from read_video(
            video,
            frames,
            masks / video if masks.exists() else None,
            entry.frames,
            lambda index: find_earlier(index, self.interval, available),
            entry.sentences,
            keep_all=split == "valid",
        )


def find_earlier(frame_index: int, interval: int, available: Collection[int]) -> tuple[int, str]:
    """The index of the earlier frame, out of the available ones, which are in order, and the rule that selected it.

    Published: `interval` before, else the first frame of the video. The first frame is its own earlier frame.
    """
    earlier = frame_index - interval
    return (earlier, "interval") if earlier in available else (next(iter(available)), "first frame")


def read_videos(path: Path) -> dict[str, Any]:
    """Video -> its entry. Raises UserError that names the file, and the position of an error in the JSON."""
    try:
        match read_json(path):
            case {"videos": dict(videos)}:
                return videos
        raise ValueError('it has no "videos"')
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no expressions ({error}). Unpack the file again.") from error


class _Expression(NamedTuple):
    """An expression as in the file, unchecked."""

    name: str
    text: object
    object_id: object


def parse_video(where: str, entry: object, truth_optional: bool, skipped: list[Skipped]) -> Video:
    """Parses an entry of either form. Leaves out what is malformed, possibly everything.

    If the ground truth is optional, an expression without a valid object id is kept with instance None.
    """
    frame_names, expressions = _parse_entry(where, entry, skipped)
    sentences = [_parse_expression(where, expression, truth_optional, skipped) for expression in expressions]
    frames = _parse_frame_names(where, frame_names, skipped)
    return Video(frames, tuple(sentence for sentence in sentences if sentence is not None))


def _parse_entry(where: str, entry: object, skipped: list[Skipped]) -> tuple[list[object], list[_Expression]]:
    """The names of the frames and the expressions of an entry of either form."""
    frame_names: list[object] = []
    expressions: list[_Expression] = []
    match entry:
        case {"expressions": dict(entries), "frames": list(frame_names)}:
            for name, expression in entries.items():
                match expression:
                    case {"exp": text}:
                        expressions.append(_Expression(name, text, expression.get("obj_id")))
                    case _:
                        expressions.append(_Expression(name, None, None))
        case {"objects": dict(objects)}:
            known: set[object] = set()
            for object_id, content in objects.items():
                match content:
                    case {"frames": list(names), "expressions": list(texts)}:
                        # Names that can't be keys are lists and dictionaries, which are no names.
                        frame_names += [name for name in names if not isinstance(name, Hashable) or name not in known]
                        known.update(name for name in names if isinstance(name, Hashable))
                        expressions += [
                            _Expression(f"{object_id}-{index}", text, object_id) for index, text in enumerate(texts)
                        ]
                    case _:
                        skipped.append(Skipped(f"{where}: object {shorten(object_id)}", "malformed object"))
    return frame_names, expressions


def _parse_expression(
    where: str, expression: _Expression, truth_optional: bool, skipped: list[Skipped]
) -> Sentence | None:
    """The sentence of an expression; None if it has to be left out."""
    where = f"{where}: expression {shorten(expression.name)}"
    name, text, object_id = expression
    error, object_error = _find_text_error(name, text), _find_object_error(object_id)
    if error or (object_error and not truth_optional):
        skipped.append(Skipped(where, error or object_error))
        return None
    if object_error and object_id is not None:
        skipped.append(Skipped(where, f"{object_error}: kept without ground truth"))
    return Sentence(str(text).strip(), None if object_error else int(str(object_id)), expression=name)


def _find_text_error(name: str, text: object) -> str:
    """What is wrong with the name or the text of an expression; "" if nothing is."""
    if not is_plain_name(name):  # it becomes a folder of the submission
        return "the expression's name is not a plain file name"
    return find_text_error(text) if isinstance(text, str) else "the expression is not text"


def _find_object_error(object_id: object) -> str:
    """Why the object of an expression can't have a mask; "" if it can."""
    if object_id is None:
        return "the expression does not name its object"
    if isinstance(object_id, str | int) and parse_object_id(str(object_id)) is not None:
        return ""
    return "the object is not a number from 1 to 255"


def _parse_frame_names(where: str, names: list[object], skipped: list[Skipped]) -> tuple[int, ...]:
    """The indices of the frames, in order."""
    indices: set[int] = set()
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[0-9]{5}", name):
            reason = "the frame's name is not a five-digit number"
            skipped.append(Skipped(f"{where}: frame {shorten(name)}", reason))
        elif int(name) in indices:
            skipped.append(Skipped(f"{where}: frame {name}", "frame listed twice"))
        else:
            indices.add(int(name))
    return tuple(sorted(indices))
