"""Reader of Refer-YouTube-VOS: videos with a mask at every 5th frame, several expressions per object.

    train/JPEGImages/<video>/<%05d>.jpg               frames, from 00000
    train/Annotations/<video>/<%05d>.png              masks; the value of a pixel is its object's id
    valid/JPEGImages, valid/Annotations               the same; the masks of valid were published in 2026
    meta_expressions/{train,valid,test}/meta_expressions.json
        {"videos": {video: {"expressions": {name: {"exp": sentence, "obj_id": object}}, "frames": [name, ...]}}}
        and an older form, where a video is
        {"objects": {object: {"frames": [name, ...], "expressions": [sentence, ...]}}}

The file of valid also lists the videos of test: those of valid are what remains without them. As first published, valid
has neither masks nor "obj_id"; it is read without them, too, since the server of the benchmark only wants predictions.

Source: Seo et al., ECCV 2020 (https://github.com/skynbe/Refer-Youtube-VOS); frames and masks of YouTube-VOS.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import is_plain_name
from input_pipeline.readers.video_folders import frame_numbers, read_video
from input_pipeline.types import FramePair, Sentence, Skipped

FRAMES = "JPEGImages"
MASKS = "Annotations"
EXPRESSIONS = "meta_expressions/{split}/meta_expressions.json"

HOW_TO_GET = f"""\
Refer-YouTube-VOS lies in one folder, with {FRAMES} and {MASKS} in train/ and valid/:
  train/, valid/, meta_expressions/    from https://youtube-vos.org/dataset/rvos/
  valid/{MASKS}/                   and the expressions of valid with their objects, from
                                       https://github.com/skynbe/Refer-Youtube-VOS, issue 7
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=refer_youtube_vos --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class ReferYouTubeVOS:
    """Refer-YouTube-VOS as unpacked; see `input_pipeline.readers` for what every reader offers.

    Attributes:
      raw: folder that holds `train`, `valid` and `meta_expressions`.
      interval: frames from the earlier frame to the annotated frame; 5 in the published runs. Every 5th frame has a
        file, so it is a multiple of 5.
    """

    raw: Path
    interval: int = 5

    #: What the full data set holds, to show beside what was found: (videos, sentences) of each split.
    FULL: ClassVar[dict[str, tuple[int, int | None]]] = {"train": (3471, 12913), "valid": (202, None)}

    def splits(self) -> tuple[str, ...]:
        """Those of "train" and "valid" that can be read. Raises UserError if there is none, or if one lacks a part."""
        return tuple(self.tables.videos)

    def videos(self, split: str) -> list[str]:
        """The videos of `split` that have a sentence, sorted. Raises UserError as `splits` does."""
        return sorted(self.tables.videos[split])

    def skipped(self) -> tuple[Skipped, ...]:
        """What was left out of the json files: videos, frames and expressions."""
        return self.tables.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """What is there: thing -> (number found, number in the full data set or None where its source gives none)."""
        found = {}
        for split, (in_full, sentences_in_full) in self.FULL.items():
            videos = self.tables.videos.get(split, {})
            found[f"{split} videos"] = len(videos), in_full
            for kind in (FRAMES, MASKS):
                folders = sum((self.raw / split / kind / video).is_dir() for video in videos)
                found[f"{split} folders of {kind}"] = folders, in_full
            sentences = [sentence for video in videos.values() for sentence in video.sentences]
            found[f"{split} sentences"] = len(sentences), sentences_in_full
            named = sum(sentence.instance is not None for sentence in sentences)
            found[f"{split} sentences that name their object"] = named, sentences_in_full
        return found

    @functools.cached_property
    def tables(self) -> Tables:
        """The json files, read once. Raises UserError if part of the tree is missing or a file is no such json."""
        skipped: list[Skipped] = []
        videos = {split: self._videos_of(split, skipped) for split in self.FULL if (self.raw / split).is_dir()}
        for name in sorted(videos.get("train", {}).keys() & videos.get("valid", {}).keys()):
            skipped.append(
                Skipped(f"{self.raw / EXPRESSIONS.format(split='valid')}: video {name}", "video of two splits")
            )
            del videos["valid"][name]
        if not videos.get("valid"):  # the reasons are in `skipped`; training data are of use without it
            videos.pop("valid", None)
        if not videos:
            reasons = "".join(f"  {item.where}: {item.reason}\n" for item in skipped[:3])
            raise UserError(f"{self.raw} has no split that can be read.\n{reasons}{HOW_TO_GET}")
        return Tables(videos, tuple(skipped))

    def _videos_of(self, split: str, skipped: list[Skipped]) -> dict[str, Video]:
        """The videos of a split whose folder is there: name -> video."""
        frames, masks = self.raw / split / FRAMES, self.raw / split / MASKS
        expressions, expressions_of_test = (self.raw / EXPRESSIONS.format(split=name) for name in (split, "test"))
        needed = (frames, expressions) if split == "valid" else (frames, masks, expressions)
        if missing := [str(path.relative_to(self.raw)) for path in needed if not path.exists()]:
            raise UserError(f"{self.raw} lacks {', '.join(missing)}.\n{HOW_TO_GET}")
        entries = _read_json(expressions)
        if split == "valid":
            if not masks.exists():
                skipped.append(Skipped(str(masks), "split valid has no masks: only the server can score it"))
            if expressions_of_test.exists():
                test = _read_json(expressions_of_test)
                entries = {name: entry for name, entry in entries.items() if name not in test}
            else:
                reason = "the videos of test can't be told from those of valid: all are taken"
                skipped.append(Skipped(str(expressions_of_test), reason))
        videos = {}
        for name, entry in entries.items():
            where = f"{expressions}: video {name!r}"
            if not is_plain_name(name):
                skipped.append(Skipped(where, "the video's name is not a plain file name"))
                continue
            video = _parse_video(where, entry, split == "valid", skipped)
            if video.sentences and video.numbers:
                videos[name] = video
            else:
                skipped.append(Skipped(where, "video without a readable sentence or frame"))
        return videos

    def earlier(self, number: int, known: Collection[int]) -> tuple[int, str]:
        """The number of the earlier frame among those that the video has, and the rule that found it.

        Published: `interval` before, else the video's first frame; that is the frame itself at a video's start.
        """
        return (number - self.interval, "interval") if number - self.interval in known else (min(known), "first frame")

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Every listed frame of `video` with its sentences, and what had to be left out.

        Where an object is not in a frame, the frame is no sample for it in train; in valid it is one with an empty
        mask, since scores are means over all listed frames, and where the truth is not there, it is one without.
        """
        split = next(split for split, videos in self.tables.videos.items() if video in videos)
        entry = self.tables.videos[split][video]
        frames, masks = self.raw / split / FRAMES / video, self.raw / split / MASKS
        known = frame_numbers(frames, ".jpg").union(entry.numbers)  # a listed frame that is lost has no substitute
        yield from read_video(
            video,
            frames,
            masks / video if masks.exists() else None,
            entry.numbers,
            lambda number: self.earlier(number, known),
            entry.sentences,
            keep_all=split == "valid",
        )


@dataclasses.dataclass(frozen=True)
class Video:
    """A video's annotated frames, in order, and its sentences, in the order of the file."""

    numbers: tuple[int, ...]
    sentences: tuple[Sentence, ...]


@dataclasses.dataclass(frozen=True)
class Tables:
    """The json files: split -> name -> video, and what was left out."""

    videos: dict[str, dict[str, Video]]
    skipped: tuple[Skipped, ...]


def _read_json(path: Path) -> dict[str, Any]:
    """Video -> its entry. Raises UserError that names the file, and the line where the json is broken."""
    try:
        match json.loads(path.read_bytes().decode("utf-8-sig")):
            case {"videos": dict(videos)}:
                return videos
        raise ValueError('it has no "videos"')
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no expressions ({error}). Unpack the file again.") from error


def _parse_video(where: str, entry: object, truth_optional: bool, skipped: list[Skipped]) -> Video:
    """An entry of either form -> its frames and sentences; what is wrong in it is left out, maybe everything.

    Where the truth is optional, an expression that names no object, or none that there can be, has the instance None.
    """
    names: list[object] = []
    expressions: list[tuple[str, object, object]] = []  # name, sentence, object
    match entry:
        case {"expressions": dict(found), "frames": list(names)}:
            for name, expression in found.items():
                match expression:
                    case {"exp": text}:
                        expressions.append((name, text, expression.get("obj_id")))
                    case _:
                        expressions.append((name, None, None))
        case {"objects": dict(objects)}:
            for instance, content in objects.items():
                match content:
                    case {"frames": list(of_object), "expressions": list(texts)}:
                        names += [name for name in of_object if name not in names]
                        expressions += [(f"{instance}-{number}", text, instance) for number, text in enumerate(texts)]
                    case _:
                        skipped.append(Skipped(f"{where}: object {instance!r}", "malformed object"))
    sentences = []
    for name, text, instance in expressions:
        place = f"{where}: expression {name!r}"
        fault, object_fault = _fault(name, text), _object_fault(instance)
        if fault or (object_fault and not truth_optional):
            skipped.append(Skipped(place, fault or object_fault))
            continue
        if object_fault and instance is not None:
            skipped.append(Skipped(place, f"{object_fault}: kept without truth"))
        sentences.append(Sentence(text.strip(), None if object_fault else int(instance), expression=name))
    numbers: set[int] = set()
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[0-9]{5}", name):
            skipped.append(
                Skipped(f"{where}: frame {str(name)[:60]!r}", "the frame's name is not a number of five digits")
            )
        elif int(name) in numbers:
            skipped.append(Skipped(f"{where}: frame {name}", "frame listed twice"))
        else:
            numbers.add(int(name))
    return Video(tuple(sorted(numbers)), tuple(sentences))


def _fault(name: str, text: object) -> str:
    """Why an expression has to be left out, "" if it is good."""
    if not is_plain_name(name):  # it becomes a folder of the submission
        return "the expression's name is not a plain file name"
    if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
        return "the expression is no text"
    return "" if text.strip() else "empty sentence"


def _object_fault(instance: object) -> str:
    """Why the object of an expression can't be one of the masks, "" if it can."""
    if instance is None:
        return "the expression does not name its object"
    if isinstance(instance, str | int) and re.fullmatch(r"[1-9][0-9]{0,2}", str(instance)) and int(instance) <= 255:
        return ""
    return "the object is not a number from 1 to 255"
