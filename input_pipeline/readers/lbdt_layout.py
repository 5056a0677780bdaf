"""Readers of the layout that the preprocessing of LBDT's released code writes: frames, masks, and text files of rows.

    a2d/    images/<video>/<%05d>.jpg, masks/<video>/<%05d>.h5, train.txt, val.txt
                                        video/frame,height,width,instance,sentence,category
    jhmdb/  Rename_Images/<action>/<video>/<%05d>.png, puppet_mask/<action>/<video>/puppet_mask.mat, val.txt
                                        the same rows; the instance is ignored, since there is one person
    ytvos/  train/ and val/, each with JPEGImages/<video>/<%05d>.jpg, Annotations/<video>/<%05d>.png; train.txt, val.txt
                                        video/frame#height#width#object#sentence; in val.txt with ~ instead of #

A row is a sample. `val.txt` holds the samples to evaluate; its split is named as in the reader of the raw data.

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
from input_pipeline.readers import a2d_sentences, jhmdb_sentences, refer_youtube_vos
from input_pipeline.readers.array_files import read_h5_masks
from input_pipeline.readers.raw_files import (
    BAD_VIDEO_NAME,
    MASK_SIZE,
    NO_TRAINING_DATA,
    NOT_IN_FRAME,
    SkippedItems,
    find_text_error,
    is_plain_name,
    numbered_lines,
    parse_object_id,
    read_frames,
    shorten,
)
from input_pipeline.readers.video_folders import frame_indices, read_labels
from input_pipeline.report import format_skipped
from input_pipeline.types import FramePair, Sentence, Skipped


def is_lbdt_layout(raw: Path) -> bool:
    """Whether a folder holds a dataset in this layout, rather than as its source publishes it, if without lists."""
    lists = any((raw / file).exists() for file in ("train.txt", "val.txt"))
    folders = ("images", "masks"), ("val/JPEGImages", "val/Annotations")  # of a2d and ytvos; jhmdb's are the source's
    unlisted = any(all((raw / folder).is_dir() for folder in pair) for pair in folders)
    return lists or (unlisted and not any((raw / part).exists() for part in ("Release", "meta_expressions")))


class Row(NamedTuple):
    """A valid row of a text file: its line (from 1), its frame, the frame's size in pixels, and its sentence.

    `instance`, `text` and `expression` are those of `Sentence`.
    """

    line: int
    frame_index: int
    height: int
    width: int
    instance: int
    text: str
    expression: str = ""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The text files: split -> video -> its rows in the order of the file, and the rows that were left out."""

    rows: dict[str, dict[str, tuple[Row, ...]]]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class LBDTLayout:
    """What the three datasets have in common; the methods are those of `input_pipeline.types.Reader`.

    Attributes:
      raw: folder of one dataset in this layout.
      interval: frames from the earlier frame to the frame.
    """

    raw: Path
    interval: int

    #: Split -> its file and the separator between the fields of a row.
    FILES: ClassVar[dict[str, tuple[str, str]]]
    #: The fields of a row.
    FIELDS: ClassVar[tuple[str, ...]] = ("video/frame", "height", "width", "instance", "sentence", "category")
    #: Split -> its folders of frames and masks.
    FOLDERS: ClassVar[dict[str, tuple[str, str]]]
    #: Suffix of the frame files.
    SUFFIX: ClassVar[str] = ".jpg"
    #: Counts of the full dataset.
    FULL_COUNTS: ClassVar[dict[str, int]]

    def splits(self) -> tuple[str, ...]:
        """Those whose text file exists. Raises UserError if one lacks its frames or masks, or is not UTF-8."""
        return tuple(self.annotations.rows)

    def videos(self, split: str) -> list[str]:
        return sorted(self.annotations.rows[split])

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        counts = {}
        for split, videos in self.annotations.rows.items():
            counts[f"{split} videos"] = len(videos)
            counts[f"{split} folders of frames"] = sum(self.frame_folder(split, video).is_dir() for video in videos)
            counts[f"{split} sentences about a frame"] = sum(map(len, videos.values()))
        return {item: (count, self.FULL_COUNTS.get(item)) for item, count in counts.items()}

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The text files, read once. Raises UserError if frames or masks are missing or a file is not UTF-8."""
        skipped = SkippedItems()
        rows: dict[str, dict[str, tuple[Row, ...]]] = {}
        for split, (file, separator) in self.FILES.items():
            path = self.raw / file
            if not path.exists():
                skipped.append(Skipped(str(path), f"list of samples missing: split {split} left out"))
                continue
            missing = [folder for folder in self.FOLDERS[split] if not (self.raw / folder).is_dir()]
            if split == "train" and len(missing) == len(self.FOLDERS[split]):
                skipped.append(Skipped(str(path), NO_TRAINING_DATA))
                continue
            if missing:
                raise UserError(f"{self.raw} has {file} but lacks {', '.join(missing)}, which its rows refer to.")
            videos = self._read_rows(path, separator, skipped)
            if not videos:
                skipped.append(Skipped(str(path), f"list of samples without a valid row: split {split} left out"))
            elif split == "train" and not any(self.frame_folder(split, video).is_dir() for video in videos):
                skipped.append(Skipped(str(path), NO_TRAINING_DATA))
            else:
                rows[split] = videos
        if not rows:
            files = " and ".join(file for file, _ in self.FILES.values())
            raise UserError(f"{self.raw} has no sample in {files}.\n{format_skipped(skipped)}")
        first, *later = rows
        for split in later:
            for video in sorted(rows[first].keys() & rows[split].keys()):
                skipped.append(Skipped(f"{self.raw / self.FILES[split][0]}: video {video}", "video in two splits"))
                del rows[split][video]
        return Annotations(rows, tuple(skipped))

    def _read_rows(self, path: Path, separator: str, skipped: list[Skipped]) -> dict[str, tuple[Row, ...]]:
        """Video -> its rows. A sentence may contain the separator; the other fields can't."""
        rows: dict[str, list[Row]] = {}
        field, size = f"([^{separator}]*)", r" *([1-9][0-9]{0,4}) *"
        last_fields = [field] * (len(self.FIELDS) - 5)
        pattern = re.compile(
            separator.join([f"{field}/([0-9]{{5}}) *", size, size, field, "(.*)", *last_fields]), re.DOTALL
        )
        for where, line in numbered_lines(path):
            match = pattern.fullmatch(line)
            if match is None:
                skipped.append(Skipped(where, f"the row does not have the form {separator.join(self.FIELDS)}"))
                continue
            video, frame_index, height, width, object_id, text, *_ = (group.strip() for group in match.groups())
            if not is_plain_name(video):
                skipped.append(Skipped(f"{where}: {shorten(video)}", BAD_VIDEO_NAME))
            elif (instance := self.parse_instance(object_id)) is None:
                skipped.append(Skipped(f"{where}: {shorten(object_id)}", "the instance is not a valid object id"))
            elif text_error := find_text_error(text):
                skipped.append(Skipped(where, text_error))
            else:
                line_number = int(where.rpartition(":")[2])
                row = Row(line_number, int(frame_index), int(height), int(width), instance, text)
                rows.setdefault(video, []).append(row)
        return {video: self.name_expressions(video_rows) for video, video_rows in rows.items()}

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields every frame of a video that has a row, in order, and what had to be left out."""
        split, rows = next((split, videos[video]) for split, videos in self.annotations.rows.items() if video in videos)
        folder, file = self.frame_folder(split, video), self.raw / self.FILES[split][0]
        if not folder.is_dir():
            yield Skipped(str(folder), "the video's folder of frames is missing")
            return
        # A frame that has a row and no file is an error: no other frame may replace it as the earlier frame.
        available = dict.fromkeys(sorted(frame_indices(folder, self.SUFFIX) | {row.frame_index for row in rows}))
        in_order = sorted(rows, key=lambda row: row.frame_index)
        for index, group in itertools.groupby(in_order, key=lambda row: row.frame_index):
            frame_rows = tuple(group)
            earlier, rule = self.find_earlier(index, available)
            path = folder / f"{index:05d}{self.SUFFIX}"
            try:
                frame, earlier_frame, files = read_frames(path, path.with_stem(f"{earlier:05d}"))
                path = self.mask_file(split, video, index)
                masks = self.read_masks(path, split, index, frame.shape[:2], {row.instance for row in frame_rows})
            except UserError as error:
                yield Skipped(str(path), str(error))
                continue
            for row in frame_rows:
                if (row.height, row.width) != frame.shape[:2]:
                    reason = "the row's height and width are not the frame's: kept with those of the frame"
                    yield Skipped(f"{file}:{row.line}", reason)
                if row.instance not in masks:
                    yield Skipped(f"{file}:{row.line}: instance {row.instance}", NOT_IN_FRAME)
            present = (row for row in frame_rows if row.instance in masks)
            sentences = tuple(Sentence(row.text, row.instance, expression=row.expression) for row in present)
            if sentences:
                masks = dict(sorted(masks.items()))
                yield FramePair(video, index, frame, earlier_frame, rule, masks, sentences, files=files)

    def parse_instance(self, object_id: str) -> int | None:
        """The object id of a row; None if it is not valid."""
        return int(object_id) if re.fullmatch(r"[0-9]{1,9}", object_id) else None

    def name_expressions(self, rows: list[Row]) -> tuple[Row, ...]:
        """The rows of a video, with the ids of their expressions if the dataset has such ids."""
        return tuple(rows)

    def find_earlier(self, frame_index: int, available: Collection[int]) -> tuple[int, str]:
        """The index of the earlier frame, out of the available ones in order, and the rule that selected it."""
        raise NotImplementedError

    def frame_folder(self, split: str, video: str) -> Path:
        """The folder of a video's frames."""
        return self.raw / self.FOLDERS[split][0] / video

    def mask_file(self, split: str, video: str, frame_index: int) -> Path:
        """The file with the masks of a frame."""
        raise NotImplementedError

    def read_masks(
        self, path: Path, split: str, frame_index: int, size: tuple[int, int], instances: set[int]
    ) -> dict[int, np.ndarray]:
        """Reads masks of a frame.

        Args:
          path: file of the masks.
          split: the split of its video.
          frame_index: index of the frame.
          size: (H, W) of the frame.
          instances: ids to look for.

        Returns:
          Id -> (H, W) bool, for those that are in the frame.

        Raises:
          UserError: the file is missing, can't be read, or its masks and the frame differ in size.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LBDTLayoutA2D(LBDTLayout):
    """A2D-Sentences as LBDT prepares it; attributes as in `A2DSentences`."""

    interval: int = 6

    FILES: ClassVar[dict[str, tuple[str, str]]] = {"train": ("train.txt", ","), "test": ("val.txt", ",")}
    FOLDERS: ClassVar[dict[str, tuple[str, str]]] = dict.fromkeys(FILES, ("images", "masks"))
    FULL_COUNTS: ClassVar[dict[str, int]] = {"train videos": 3017, "test videos": 737}

    def find_earlier(self, frame_index: int, available: Collection[int]) -> tuple[int, str]:
        return a2d_sentences.find_earlier(frame_index, self.interval, available)

    def mask_file(self, split: str, video: str, frame_index: int) -> Path:
        return self.raw / "masks" / video / f"{frame_index:05d}.h5"

    def read_masks(
        self, path: Path, split: str, frame_index: int, size: tuple[int, int], instances: set[int]
    ) -> dict[int, np.ndarray]:
        return read_h5_masks(path, size, instances)


@dataclasses.dataclass(frozen=True)
class LBDTLayoutJHMDB(LBDTLayout):
    """J-HMDB-Sentences as LBDT prepares it, for evaluation only; attributes as in `JHMDBSentences`."""

    interval: int = 5

    FILES: ClassVar[dict[str, tuple[str, str]]] = {"test": ("val.txt", ",")}
    FOLDERS: ClassVar[dict[str, tuple[str, str]]] = {"test": (jhmdb_sentences.FRAMES, jhmdb_sentences.MASKS)}
    SUFFIX: ClassVar[str] = ".png"
    FULL_COUNTS: ClassVar[dict[str, int]] = {"test videos": 928, "test sentences about a frame": 2784}

    def parse_instance(self, object_id: str) -> int:
        return 0

    def skipped(self) -> tuple[Skipped, ...]:
        """The rows that were left out, and the videos that occur under two actions."""
        return (*self.annotations.skipped, *self.actions[1])

    @functools.cached_property
    def actions(self) -> tuple[dict[str, str], tuple[Skipped, ...]]:
        """Video -> its action, the folder that contains it; and what was left out."""
        skipped: list[Skipped] = []
        return jhmdb_sentences.find_videos(self.raw / jhmdb_sentences.FRAMES, skipped), tuple(skipped)

    def find_earlier(self, frame_index: int, available: Collection[int]) -> tuple[int, str]:
        return jhmdb_sentences.find_earlier(frame_index, self.interval)

    def frame_folder(self, split: str, video: str) -> Path:
        return self.raw / jhmdb_sentences.FRAMES / self.actions[0].get(video, "*") / video

    def mask_file(self, split: str, video: str, frame_index: int) -> Path:
        return self.raw / jhmdb_sentences.MASKS / self.actions[0][video] / video / "puppet_mask.mat"

    def read_masks(
        self, path: Path, split: str, frame_index: int, size: tuple[int, int], instances: set[int]
    ) -> dict[int, np.ndarray]:
        return {0: jhmdb_sentences.select_mask(_read_video_masks(path), frame_index, size)}


#: Cached, since the frames of a video are read one after the other.
_read_video_masks = functools.lru_cache(maxsize=1)(jhmdb_sentences.read_masks)


@dataclasses.dataclass(frozen=True)
class LBDTLayoutReferYouTubeVOS(LBDTLayout):
    """Refer-YouTube-VOS as LBDT prepares it; attributes as in `ReferYouTubeVOS`."""

    interval: int = 5

    FILES: ClassVar[dict[str, tuple[str, str]]] = {"train": ("train.txt", "#"), "valid": ("val.txt", "~")}
    FIELDS: ClassVar[tuple[str, ...]] = ("video/frame", "height", "width", "object", "sentence")
    FOLDERS: ClassVar[dict[str, tuple[str, str]]] = {
        "train": ("train/JPEGImages", "train/Annotations"),
        "valid": ("val/JPEGImages", "val/Annotations"),
    }
    FULL_COUNTS: ClassVar[dict[str, int]] = {"train videos": 3471}

    def parse_instance(self, object_id: str) -> int | None:
        return parse_object_id(object_id)

    def name_expressions(self, rows: list[Row]) -> tuple[Row, ...]:
        """Numbers the expressions of a video, one per object and sentence, in the order of the file.

        A frame may have the same sentence twice, by two annotators: these are two expressions.
        """
        names: dict[tuple[int, str, int], str] = {}
        repeats: Counter[tuple[int, int, str]] = Counter()
        named = []
        for row in rows:
            in_frame = row.frame_index, row.instance, row.text
            name = names.setdefault((row.instance, row.text, repeats[in_frame]), str(len(names)))
            repeats[in_frame] += 1
            named.append(row._replace(expression=name))
        return tuple(named)

    def find_earlier(self, frame_index: int, available: Collection[int]) -> tuple[int, str]:
        return refer_youtube_vos.find_earlier(frame_index, self.interval, available)

    def mask_file(self, split: str, video: str, frame_index: int) -> Path:
        return self.raw / self.FOLDERS[split][1] / video / f"{frame_index:05d}.png"

    def read_masks(
        self, path: Path, split: str, frame_index: int, size: tuple[int, int], instances: set[int]
    ) -> dict[int, np.ndarray]:
        """If an object is not in a frame, it has an empty mask in valid, and none in train, as in the raw data."""
        labels = read_labels(path)
        if labels.shape != size:
            raise UserError(MASK_SIZE)
        masks = {instance: labels == instance for instance in instances}
        return {instance: mask for instance, mask in masks.items() if split == "valid" or mask.any()}
