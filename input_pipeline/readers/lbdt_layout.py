"""Readers of the layout that LBDT's released code prepares its data in: pictures, masks, and a text file of rows.

    a2d/    images/<video>/<%05d>.jpg, masks/<video>/<%05d>.h5, train.txt, val.txt
                                        video/frame,height,width,instance,sentence,category
    jhmdb/  Rename_Images/<action>/<video>/<%05d>.png, puppet_mask/<action>/<video>/puppet_mask.mat, val.txt
                                        the same rows; the instance means nothing, there is one person
    ytvos/  train/ and val/, each with JPEGImages/<video>/<%05d>.jpg, Annotations/<video>/<%05d>.png; train.txt, val.txt
                                        video/frame#height#width#object#sentence; in val.txt with ~ instead of #

A row is a sample. `val.txt` holds what is evaluated; its split has the name that the reader of the raw data gives it.

Source: https://github.com/dzh19990407/LBDT.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.readers import a2d_sentences, jhmdb_sentences
from input_pipeline.readers.raw_files import is_plain_name, numbered_lines, read_frames
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.readers.video_folders import frame_numbers, read_labels
from input_pipeline.types import FramePair, Sentence, Skipped


def is_lbdt_layout(raw: Path) -> bool:
    """Whether a folder holds a data set in this layout, and not as its source publishes it."""
    return any((raw / file).is_file() for file in ("train.txt", "val.txt"))


class Row(NamedTuple):
    """A good row: its number in its file (from 1), its frame, that frame's size in pixels, and its sentence."""

    line: int
    frame: int
    height: int
    width: int
    sentence: Sentence


@dataclasses.dataclass(frozen=True)
class Tables:
    """The text files: split -> video -> its rows in the order of the file, and what was left out."""

    rows: dict[str, dict[str, tuple[Row, ...]]]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class LBDTLayout:
    """What the three data sets share; see `input_pipeline.readers` for what every reader offers."""

    raw: Path
    interval: int

    #: Split -> its file and what stands between the fields of a row.
    FILES: ClassVar[dict[str, tuple[str, str]]]
    #: The fields of a row.
    FIELDS: ClassVar[tuple[str, ...]] = ("video/frame", "height", "width", "instance", "sentence", "category")
    #: Split -> its folders of frames and masks.
    FOLDERS: ClassVar[dict[str, tuple[str, str]]]
    #: How the name of a frame ends.
    SUFFIX: ClassVar[str] = ".jpg"
    #: What the full data set holds, to show beside what was found.
    FULL: ClassVar[dict[str, int]]

    def splits(self) -> tuple[str, ...]:
        """Those whose file is there. Raises UserError if one lacks its frames or masks, or is not UTF-8."""
        return tuple(self.tables.rows)

    def videos(self, split: str) -> list[str]:
        """The videos of `split` that have a row, sorted. Raises UserError as `splits` does."""
        return sorted(self.tables.rows[split])

    def skipped(self) -> tuple[Skipped, ...]:
        """The rows that were left out."""
        return self.tables.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """What is there: thing -> (number found, number in the full data set or None where its source gives none)."""
        found = {}
        for split, videos in self.tables.rows.items():
            found[f"{split} videos"] = len(videos)
            found[f"{split} folders of frames"] = sum(self.frames_of(split, video).is_dir() for video in videos)
            found[f"{split} sentences about a frame"] = sum(map(len, videos.values()))
        return {thing: (number, self.FULL.get(thing)) for thing, number in found.items()}

    @functools.cached_property
    def tables(self) -> Tables:
        """The text files, read once. Raises UserError if part of the tree is missing or a file is not UTF-8."""
        skipped: list[Skipped] = []
        rows: dict[str, dict[str, tuple[Row, ...]]] = {}
        for split, (file, separator) in self.FILES.items():
            if not (self.raw / file).is_file():
                continue
            if missing := [folder for folder in self.FOLDERS[split] if not (self.raw / folder).is_dir()]:
                raise UserError(f"{self.raw} has {file} and lacks {', '.join(missing)}, which it is about.")
            rows[split] = self._read_rows(self.raw / file, separator, skipped)
        if not rows:
            raise UserError(f"{self.raw} lacks {' and '.join(file for file, _ in self.FILES.values())}.")
        first, *others = rows
        for split in others:
            for video in sorted(rows[first].keys() & rows[split].keys()):
                skipped.append(Skipped(f"{self.raw / self.FILES[split][0]}: video {video}", "video of two splits"))
                del rows[split][video]
        return Tables(rows, tuple(skipped))

    def _read_rows(self, path: Path, separator: str, skipped: list[Skipped]) -> dict[str, tuple[Row, ...]]:
        """Video -> its rows. The separator may stand in a sentence: nothing else is between the other fields."""
        rows: dict[str, list[Row]] = {}
        field, size = f"([^{separator}]*)", r" *([1-9][0-9]{0,4}) *"
        after = [field] * (len(self.FIELDS) - 5)
        pattern = re.compile(separator.join([f"{field}/([0-9]{{5}}) *", size, size, field, "(.*)", *after]), re.DOTALL)
        for where, line in numbered_lines(path):
            row = pattern.fullmatch(line)
            if row is None:
                skipped.append(Skipped(where, f"the row is not: {separator.join(self.FIELDS)}"))
                continue
            video, number, height, width, instance, text, *_ = (group.strip() for group in row.groups())
            if not is_plain_name(video):
                skipped.append(Skipped(f"{where}: {video[:200]!r}", "the video's name is not a plain file name"))
            elif (object_id := self.instance(instance)) is None:
                skipped.append(Skipped(f"{where}: {instance[:60]!r}", "the instance is not the number of an object"))
            elif not text:
                skipped.append(Skipped(where, "empty sentence"))
            else:
                line_number = int(where.rpartition(":")[2])
                sentence = Sentence(text, object_id)
                rows.setdefault(video, []).append(Row(line_number, int(number), int(height), int(width), sentence))
        return {video: self.named(of_video) for video, of_video in rows.items()}

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Every frame of `video` that has a row, in order, with its sentences, and what had to be left out."""
        split, rows = next((split, videos[video]) for split, videos in self.tables.rows.items() if video in videos)
        frames, file = self.frames_of(split, video), self.raw / self.FILES[split][0]
        if not frames.is_dir():
            yield Skipped(str(frames), "the video's folder of frames is missing")
            return
        listed = {row.frame for row in rows}  # one of these that is lost has no substitute
        known = frame_numbers(frames, self.SUFFIX) | listed
        for number, of_frame in itertools.groupby(sorted(rows, key=lambda row: row.frame), key=lambda row: row.frame):
            asked = tuple(of_frame)
            earlier, rule = self.earlier(number, known)
            path = frames / f"{number:05d}{self.SUFFIX}"
            try:
                frame, earlier_frame, files = read_frames(path, path.with_stem(f"{earlier:05d}"))
                path = self.masks_of(split, video, number)
                masks = self.read_masks(path, number, frame.shape[:2], {row.sentence.instance for row in asked}, split)
            except UserError as error:
                yield Skipped(str(path), str(error))
                continue
            sentences = []
            for row in asked:
                if (row.height, row.width) != frame.shape[:2]:
                    where = f"{file}:{row.line}"
                    yield Skipped(where, "the row's height and width are not those of the frame: kept with the frame's")
                if row.sentence.instance not in masks:
                    where = f"{file}:{row.line}: instance {row.sentence.instance}"
                    yield Skipped(where, "the instance is not in the frame")
                else:
                    sentences.append(row.sentence)
            if sentences:
                present = {s.instance: masks[s.instance] for s in sorted(sentences, key=lambda s: s.instance)}
                yield FramePair(video, number, frame, earlier_frame, rule, present, tuple(sentences), files=files)

    def instance(self, field: str) -> int | None:
        """The id that a row gives its object; None if there can be no such object."""
        return int(field) if re.fullmatch(r"[0-9]{1,9}", field) else None

    def named(self, rows: list[Row]) -> tuple[Row, ...]:
        """The rows of a video, with names for their sentences where the data set has them."""
        return tuple(rows)

    def earlier(self, number: int, known: Collection[int]) -> tuple[int, str]:
        """The number of the earlier frame among those that the video has, and the rule that found it."""
        raise NotImplementedError

    def frames_of(self, split: str, video: str) -> Path:
        """The folder of a video's frames."""
        return self.raw / self.FOLDERS[split][0] / video

    def masks_of(self, split: str, video: str, number: int) -> Path:
        """The file with the masks of a frame."""
        raise NotImplementedError

    def read_masks(
        self, path: Path, number: int, size: tuple[int, int], wanted: set[int], split: str
    ) -> dict[int, np.ndarray]:
        """The wanted masks of a frame of size (H, W): instance -> (H, W) bool. Raises UserError that says why not."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LBDTLayoutA2D(LBDTLayout):
    """A2D-Sentences as LBDT prepares it; fields as in `A2DSentences`."""

    interval: int = 6

    FILES: ClassVar[dict[str, tuple[str, str]]] = {"train": ("train.txt", ","), "test": ("val.txt", ",")}
    FOLDERS: ClassVar[dict[str, tuple[str, str]]] = dict.fromkeys(FILES, ("images", "masks"))
    FULL: ClassVar[dict[str, int]] = {"train videos": 3017, "test videos": 737}

    def earlier(self, number: int, known: Collection[int]) -> tuple[int, str]:
        """Published: `interval` frames before, else 6 before, which may not exist; we take the first frame then."""
        for before, rule in ((number - self.interval, "interval"), (number - 6, "index - 6")):
            if before in known:
                return before, rule
        return min(known), "first frame"

    def masks_of(self, split: str, video: str, number: int) -> Path:
        return self.raw / "masks" / video / f"{number:05d}.h5"

    def read_masks(
        self, path: Path, number: int, size: tuple[int, int], wanted: set[int], split: str
    ) -> dict[int, np.ndarray]:
        return a2d_sentences.read_masks(path, size, wanted)


@dataclasses.dataclass(frozen=True)
class LBDTLayoutJHMDB(LBDTLayout):
    """J-HMDB-Sentences as LBDT prepares it, for evaluation only; fields as in `JHMDBSentences`."""

    interval: int = 5

    FILES: ClassVar[dict[str, tuple[str, str]]] = {"test": ("val.txt", ",")}
    FOLDERS: ClassVar[dict[str, tuple[str, str]]] = {"test": (jhmdb_sentences.FRAMES, jhmdb_sentences.MASKS)}
    SUFFIX: ClassVar[str] = ".png"
    FULL: ClassVar[dict[str, int]] = {"test videos": 928, "test sentences about a frame": 2784}

    def instance(self, field: str) -> int:
        return 0

    def skipped(self) -> tuple[Skipped, ...]:
        """The rows that were left out, and the videos that lie under two actions."""
        return (*self.tables.skipped, *self.actions[1])

    @functools.cached_property
    def actions(self) -> tuple[dict[str, str], tuple[Skipped, ...]]:
        """Video -> the folder it lies in, and what was left out."""
        skipped: list[Skipped] = []
        return jhmdb_sentences.find_videos(self.raw / jhmdb_sentences.FRAMES, skipped), tuple(skipped)

    def earlier(self, number: int, known: Collection[int]) -> tuple[int, str]:
        return jhmdb_sentences.JHMDBSentences(self.raw, self.interval).earlier(number)

    def frames_of(self, split: str, video: str) -> Path:
        return self.raw / jhmdb_sentences.FRAMES / self.actions[0].get(video, "*") / video

    def masks_of(self, split: str, video: str, number: int) -> Path:
        return self.raw / jhmdb_sentences.MASKS / self.actions[0][video] / video / "puppet_mask.mat"

    def read_masks(
        self, path: Path, number: int, size: tuple[int, int], wanted: set[int], split: str
    ) -> dict[int, np.ndarray]:
        return {0: jhmdb_sentences.mask_of_frame(_masks_of_video(path), number, size)}


#: The frames of a video are read one after the other.
_masks_of_video = functools.lru_cache(maxsize=1)(jhmdb_sentences.read_masks)


@dataclasses.dataclass(frozen=True)
class LBDTLayoutReferYouTubeVOS(LBDTLayout):
    """Refer-YouTube-VOS as LBDT prepares it; fields as in `ReferYouTubeVOS`."""

    interval: int = 5

    FILES: ClassVar[dict[str, tuple[str, str]]] = {"train": ("train.txt", "#"), "valid": ("val.txt", "~")}
    FIELDS: ClassVar[tuple[str, ...]] = ("video/frame", "height", "width", "object", "sentence")
    FOLDERS: ClassVar[dict[str, tuple[str, str]]] = {
        "train": ("train/JPEGImages", "train/Annotations"),
        "valid": ("val/JPEGImages", "val/Annotations"),
    }
    FULL: ClassVar[dict[str, int]] = {"train videos": 3471}

    def instance(self, field: str) -> int | None:
        return int(field) if re.fullmatch(r"[1-9][0-9]{0,2}", field) and int(field) <= 255 else None

    def named(self, rows: list[Row]) -> tuple[Row, ...]:
        """Numbers the sentences of a video, each with its object, in the order of the file.

        A frame may be asked the same twice, by two annotators: these are two expressions.
        """
        sentences: dict[tuple[int, str, int], Sentence] = {}
        asked: Counter[tuple[int, int, str]] = Counter()
        named = []
        for row in rows:
            instance, text = row.sentence.instance, row.sentence.text
            key = instance, text, asked[row.frame, instance, text]
            asked[row.frame, instance, text] += 1
            if key not in sentences:
                sentences[key] = dataclasses.replace(row.sentence, expression=str(len(sentences)))
            named.append(row._replace(sentence=sentences[key]))
        return tuple(named)

    def earlier(self, number: int, known: Collection[int]) -> tuple[int, str]:
        return ReferYouTubeVOS(self.raw, self.interval).earlier(number, known)

    def masks_of(self, split: str, video: str, number: int) -> Path:
        return self.raw / self.FOLDERS[split][1] / video / f"{number:05d}.png"

    def read_masks(
        self, path: Path, number: int, size: tuple[int, int], wanted: set[int], split: str
    ) -> dict[int, np.ndarray]:
        """Where an object is not in a frame, it has an empty mask in valid, and none in train, as in the raw data."""
        labels = read_labels(path)
        if labels.shape != size:
            raise UserError("the mask has another size than the frame")
        masks = {instance: labels == instance for instance in wanted}
        return {instance: mask for instance, mask in masks.items() if split == "valid" or mask.any()}
