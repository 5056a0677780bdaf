"""Reader of J-HMDB-Sentences: short clips of one acting person each, a sentence per clip; for evaluation only.

    Rename_Images/<action>/<video>/<%05d>.png               frames, from 1
    puppet_mask/<action>/<video>/puppet_mask.mat            part_mask (H, W, T); the last frames may have no mask
    jhmdb_annotation.txt                                    video_id,query; a header
    jhmdb_sentences_samples_metadata.json                   [[video, frame's path, mask's path, frames, sentence], ...]

The last file lists the 2784 frames, three of each video, on which published scores are computed. It comes with MTTR
and its paths are those of another machine: action, video and frame number are read from them, and compared with what is
here. Without it three frames of each video are chosen by a fixed rule, which the report says.

Sources: Jhuang et al., ICCV 2013 (http://jhmdb.is.tue.mpg.de) for frames and masks, Gavrilyuk et al., CVPR 2018
(https://kgavrilyuk.github.io/publication/actor_action/) for the sentences, Botach et al., CVPR 2022
(https://github.com/mttr2021/MTTR) for the list.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.io import loadmat

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import is_plain_name, numbered_lines, read_frames
from input_pipeline.types import FramePair, Sentence, Skipped

FRAMES = "Rename_Images"
MASKS = "puppet_mask"
SENTENCES = "jhmdb_annotation.txt"
SAMPLES = "jhmdb_sentences_samples_metadata.json"
FRAMES_PER_VIDEO = 3

HOW_TO_GET = f"""\
J-HMDB-Sentences comes from three places and lies together in one folder:
  {FRAMES}/, {MASKS}/    from http://jhmdb.is.tue.mpg.de
  {SENTENCES}           from https://kgavrilyuk.github.io/publication/actor_action/
  {SAMPLES}
                                 from https://github.com/mttr2021/MTTR, datasets/jhmdb_sentences/: the frames that
                                 published scores are computed on
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=jhmdb_sentences --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class JHMDBSentences:
    """J-HMDB-Sentences as unpacked; see `input_pipeline.readers` for what every reader offers.

    Attributes:
      raw: folder that holds `Rename_Images` and `puppet_mask`.
      interval: frames from the earlier frame to the annotated frame; 5 in the published runs.
    """

    raw: Path
    interval: int = 5

    #: What the full data set holds, to show beside what was found.
    FULL: ClassVar[dict[str, int]] = {"videos": 928, "mask files": 928, "sentences": 928, "listed samples": 2784}

    def splits(self) -> tuple[str, ...]:
        return ("test",)

    def videos(self, split: str) -> list[str]:
        """The videos that have a sentence and, where there is a list, a frame in it; sorted.

        Raises UserError if the tree is not complete.
        """
        return sorted(self.tables.samples)

    def skipped(self) -> tuple[Skipped, ...]:
        """The lines and entries of the annotation files that were left out."""
        return self.tables.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """What is there: thing -> (number found, number in the full data set)."""
        tables = self.tables
        found = {
            "videos": len(tables.actions),
            "mask files": sum(self.masks_of(video).exists() for video in tables.actions),
            "sentences": len(tables.sentences),
            "listed samples": sum(map(len, tables.samples.values())),
        }
        return {thing: (number, self.FULL[thing]) for thing, number in found.items()}

    @functools.cached_property
    def tables(self) -> Tables:
        """Tree and annotation files, read once. Raises UserError if part is missing, not UTF-8 or not json."""
        missing = [part for part in (FRAMES, MASKS, SENTENCES) if not (self.raw / part).exists()]
        if missing:
            raise UserError(f"{self.raw} lacks {', '.join(missing)}.\n{HOW_TO_GET}")
        skipped: list[Skipped] = []
        actions = find_videos(self.raw / FRAMES, skipped)
        sentences = _read_sentences(self.raw / SENTENCES, actions, skipped)
        for video in sorted(actions.keys() - sentences.keys()):
            skipped.append(Skipped(f"{self.raw / SENTENCES}: video {video}", "video without a sentence"))
        path = self.raw / SAMPLES
        if path.exists():
            samples = _read_samples(path, actions, sentences, skipped)
            for video in sorted(sentences.keys() - samples.keys()):
                skipped.append(Skipped(f"{path}: video {video}", "video without a frame in the list of samples"))
        else:
            samples = {video: () for video in sentences}
            reason = "list of samples missing: the frames are our own choice, published scores are of others"
            skipped.append(Skipped(str(path), reason))
        return Tables(actions, sentences, samples, tuple(skipped))

    def frames_of(self, video: str) -> Path:
        """The folder of a video's frames."""
        return self.raw / FRAMES / self.tables.actions[video] / video

    def masks_of(self, video: str) -> Path:
        """The file of a video's masks."""
        return self.raw / MASKS / self.tables.actions[video] / video / "puppet_mask.mat"

    def earlier(self, frame_index: int) -> tuple[int, str]:
        """The number of the earlier frame (from 1) and the rule that found it.

        Published: `interval` frames before, which fails in the first frames; we take the first frame there.
        """
        number = frame_index - self.interval
        return (number, "interval") if number >= 1 else (1, "first frame")

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """The listed frames of `video`, or three of them where there is no list, and what had to be left out."""
        folder = self.frames_of(video)
        try:
            masks = read_masks(self.masks_of(video))
        except UserError as error:
            yield Skipped(str(self.masks_of(video)), str(error))
            return
        numbers = self.tables.samples[video]
        if not numbers:
            stems = (path.stem for path in folder.glob("*.png"))
            numbers = choose_frames(
                video, (int(stem) for stem in stems if is_frame(stem) and int(stem) <= masks.shape[2])
            )
            if len(numbers) < FRAMES_PER_VIDEO:
                yield Skipped(str(folder), f"less than {FRAMES_PER_VIDEO} frames with a mask")
        for number in numbers:
            try:
                pair = self.frame_pair(video, number, masks)
            except UserError as error:
                yield Skipped(f"{folder}: frame {number}", str(error))
            else:
                yield pair

    def frame_pair(self, video: str, number: int, masks: np.ndarray) -> FramePair:
        """Frame `number` (from 1) of a video whose masks are (H, W, T) bool.

        Raises:
          UserError: the reason why it has to be left out.
        """
        earlier, rule = self.earlier(number)
        folder = self.frames_of(video)
        frame, earlier_frame, files = read_frames(folder / f"{number:05d}.png", folder / f"{earlier:05d}.png")
        mask = mask_of_frame(masks, number, frame.shape[:2])
        sentence = self.tables.sentences[video]
        masks_of_frame = {sentence.instance: mask}
        return FramePair(video, number, frame, earlier_frame, rule, masks_of_frame, (sentence,), files=files)


@dataclasses.dataclass(frozen=True)
class Tables:
    """What lies in the folder, by video.

    Attributes:
      actions: video -> the folder it lies in.
      sentences: video -> its sentence.
      samples: video -> its listed frames, in order; () for each video with a sentence where there is no list.
      skipped: the lines and entries left out.
    """

    actions: dict[str, str]
    sentences: dict[str, Sentence]
    samples: dict[str, tuple[int, ...]]
    skipped: tuple[Skipped, ...]


def choose_frames(video: str, numbers: Iterable[int]) -> tuple[int, ...]:
    """Three of the frames, or all if they are less, in order: those whose names have the smallest SHA-256.

    Nothing but the names decides, so the choice is the same on every machine and of every version of a library.
    """

    def draw(number: int) -> bytes:
        return hashlib.sha256(f"{video}/{number:05d}".encode()).digest()

    return tuple(sorted(sorted(numbers, key=draw)[:FRAMES_PER_VIDEO]))


def is_frame(stem: str) -> bool:
    """Whether a file is a frame by its name without ".png": five digits, from 00001."""
    return re.fullmatch(r"[0-9]{5}", stem) is not None and stem != "00000"


def read_masks(path: Path) -> np.ndarray:
    """The masks of a video.

    Args:
      path: a MATLAB file of version 5, whose `part_mask` is (H, W, T), or (H, W) where T is 1.

    Returns:
      (H, W, T) bool, frame 1 first.

    Raises:
      UserError: it is missing, can't be read, or holds something else.
    """
    try:
        with path.open("rb") as file:  # SciPy leaves a file that it opened open when it fails
            masks = loadmat(file, variable_names=["part_mask"]).get("part_mask")
    except FileNotFoundError as error:
        raise UserError("puppet_mask.mat missing") from error
    except Exception as error:  # SciPy fails in a dozen ways: zlib.error, TypeError, UnboundLocalError ...
        raise UserError("puppet_mask.mat can't be read") from error
    if masks is None:
        raise UserError("puppet_mask.mat holds no part_mask")
    if not isinstance(masks, np.ndarray) or masks.ndim not in (2, 3) or masks.dtype.kind not in "buif":
        raise UserError("part_mask is no stack of masks")
    return np.atleast_3d(masks) > 0


def mask_of_frame(masks: np.ndarray, number: int, size: tuple[int, int]) -> np.ndarray:
    """The mask of frame `number` (from 1), (H, W) bool, among the masks of its video, (H, W, T) bool.

    Raises:
      UserError: there is none for the frame, or it is empty or has another size than the frame, (H, W).
    """
    if not 1 <= number <= masks.shape[2]:
        raise UserError("the masks end before the frame")
    mask = masks[:, :, number - 1]
    if mask.shape != size:
        raise UserError("the mask has another size than the frame")
    if not mask.any():
        raise UserError("the mask is empty")
    return mask


def find_videos(folder: Path, skipped: list[Skipped]) -> dict[str, str]:
    """Video -> action, from the tree of frames. A name that lies under two actions is left out."""
    actions: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/*")):
        if not (is_plain_name(path.name) and is_plain_name(path.parent.name)):  # one that is not UTF-8 can't be printed
            skipped.append(Skipped(repr(str(path)), "the video's name is not a plain file name"))
        elif path.is_dir():
            actions.setdefault(path.name, []).append(path.parent.name)
    for video, found in actions.items():
        if len(found) > 1:
            skipped.append(Skipped(f"{folder}: {video} in {', '.join(found)}", "video under two actions"))
    return {video: found[0] for video, found in actions.items() if len(found) == 1}


def _read_sentences(path: Path, actions: dict[str, str], skipped: list[Skipped]) -> dict[str, Sentence]:
    """Video -> sentence, from jhmdb_annotation.txt. A query may be quoted; commas belong to it either way."""
    sentences: dict[str, Sentence] = {}
    for where, line in numbered_lines(path):
        try:
            video, *query = next(csv.reader([line]))
        except csv.Error:
            video, query = line, []
        video, text = video.strip(), ",".join(query).strip()
        if (video, text) == ("video_id", "query"):
            continue
        if not query:
            skipped.append(Skipped(where, f"malformed line of {SENTENCES}"))
        elif not is_plain_name(video):
            skipped.append(Skipped(f"{where}: {video!r}", "the video's name is not a plain file name"))
        elif video not in actions:
            skipped.append(Skipped(f"{where}: {video}", f"video is not in {FRAMES}"))
        elif not text:
            skipped.append(Skipped(where, "empty sentence"))
        elif video in sentences:
            skipped.append(Skipped(f"{where}: {video}", "video listed twice"))
        else:
            sentences[video] = Sentence(text, instance=0)
    return sentences


def _read_samples(
    path: Path, actions: dict[str, str], sentences: dict[str, Sentence], skipped: list[Skipped]
) -> dict[str, tuple[int, ...]]:
    """Video -> its frames in the list of samples, in order. Raises UserError where the file is no json list."""
    try:
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
        if not isinstance(entries, list):
            raise ValueError("not a list")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not the list of samples that comes with MTTR ({error}). Download it again, or move it away: "
            "without it the frames are chosen here."
        ) from error
    samples: dict[str, set[int]] = {}
    for position, entry in enumerate(entries, start=1):
        where = f"{path}: entry {position}"
        match entry:
            case [str(video), str(frame), _, _, str(text)]:
                names = re.fullmatch(r"(?s:.*/)?([^/]+)/([^/]+)/([0-9]{5})\.png", frame)
            case _:
                names = None
        if names is None or not is_frame(names[3]):
            skipped.append(Skipped(where, f"malformed entry of {SAMPLES}"))
        elif video not in sentences:
            skipped.append(Skipped(f"{where}: {video[:200]!r}", f"video has no sentence in {SENTENCES}"))
        elif names.groups()[:2] != (actions[video], video):
            skipped.append(Skipped(f"{where}: {frame[:200]!r}", "the frame's path is not one of the video"))
        elif text.split() != sentences[video].text.split():
            skipped.append(Skipped(f"{where}: {text[:60]!r}", f"the sentence is not that of {SENTENCES}"))
        elif int(names[3]) in samples.setdefault(video, set()):
            skipped.append(Skipped(f"{where}: {video}", "frame listed twice"))
        else:
            samples[video].add(int(names[3]))
    return {video: tuple(sorted(numbers)) for video, numbers in samples.items()}
