"""Reader of J-HMDB-Sentences: short clips of one person each, a sentence per clip; for evaluation only.

    Rename_Images/<action>/<video>/<%05d>.png               frames, from 1
    puppet_mask/<action>/<video>/puppet_mask.mat            part_mask (H, W, T); the last frames may have no mask
    jhmdb_annotation.txt                                    video_id,query; a header
    jhmdb_sentences_samples_metadata.json                   [[video, frame's path, mask's path, frames, sentence], ...]

The last file, which comes with MTTR, lists the frames that published scores are computed on: 2784, three per video. Its
paths are those of another machine; action, video and frame index are taken from them and checked against the folders
here. Without the file, three frames of each video are chosen by a fixed rule, and the report says so.

Sources: Jhuang et al., ICCV 2013 (http://jhmdb.is.tue.mpg.de) for frames and masks, Gavrilyuk et al., CVPR 2018
(https://kgavrilyuk.github.io/publication/actor_action/) for the sentences, Botach et al., CVPR 2022
(https://github.com/mttr2021/MTTR) for the list.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import list_folder, read_limited
from input_pipeline.readers.array_files import MAX_ARRAY_BYTES, parse_mat_array, to_mask
from input_pipeline.readers.raw_files import (
    BAD_VIDEO_NAME,
    MASK_SIZE,
    SkippedItems,
    check_complete,
    find_text_error,
    is_plain_name,
    numbered_lines,
    read_frames,
    read_json,
    shorten,
)
from input_pipeline.types import FramePair, Sentence, Skipped

FRAMES = "Rename_Images"
MASKS = "puppet_mask"
SENTENCES = "jhmdb_annotation.txt"
SAMPLES = "jhmdb_sentences_samples_metadata.json"
FRAMES_PER_VIDEO = 3

HOW_TO_GET = f"""\
J-HMDB-Sentences comes from three sources, which belong in one folder:
  {FRAMES}/, {MASKS}/    from http://jhmdb.is.tue.mpg.de
  {SENTENCES}           from https://kgavrilyuk.github.io/publication/actor_action/
  {SAMPLES}
                                 from https://github.com/mttr2021/MTTR, datasets/jhmdb_sentences/: the frames that
                                 published scores are computed on
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=jhmdb_sentences --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The videos found and the contents of the annotation files.

    Attributes:
      actions: video -> its action, the folder that contains it.
      sentences: video -> its sentence.
      samples: video -> its listed frames, in order; () for every video with a sentence if there is no list.
      skipped: the lines and entries that were left out.
    """

    actions: dict[str, str]
    sentences: dict[str, str]
    samples: dict[str, tuple[int, ...]]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class JHMDBSentences:
    """J-HMDB-Sentences as unpacked; the methods are those of `input_pipeline.types.Reader`.

    Attributes:
      raw: folder that contains `Rename_Images` and `puppet_mask`.
      interval: frames from the earlier frame to the annotated frame; 5 in the published runs.
    """

    raw: Path
    interval: int = 5

    #: Counts of the full dataset.
    FULL_COUNTS: ClassVar[dict[str, int]] = {"videos": 928, "mask files": 928, "sentences": 928, "listed samples": 2784}

    def splits(self) -> tuple[str, ...]:
        return ("test",)

    def videos(self, split: str) -> list[str]:
        """The videos with a sentence and, if there is a list of samples, a frame in it; sorted."""
        return sorted(self.annotations.samples)

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        annotations = self.annotations
        counts = {
            "videos": len(annotations.actions),
            "mask files": sum(self.mask_file(video).exists() for video in annotations.actions),
            "sentences": len(annotations.sentences),
            "listed samples": sum(map(len, annotations.samples.values())),
        }
        return {item: (count, self.FULL_COUNTS[item]) for item, count in counts.items()}

    @functools.cached_property
    def annotations(self) -> Annotations:
        """Folders and annotation files, read once. Raises UserError if one is missing, not UTF-8 or not JSON."""
        check_complete(self.raw, (FRAMES, MASKS, SENTENCES), HOW_TO_GET)
        skipped = SkippedItems()
        actions = find_videos(self.raw / FRAMES, skipped)
        sentences = _read_sentences(self.raw / SENTENCES, actions, skipped)
        for video in sorted(actions.keys() - sentences.keys()):
            skipped.append(Skipped(f"{self.raw / SENTENCES}: video {video}", "video without a sentence"))
        path = self.raw / SAMPLES
        samples: dict[str, tuple[int, ...]] = dict.fromkeys(sentences, ())
        if path.exists():
            samples = _read_samples(path, actions, sentences, skipped)
            for video in sorted(sentences.keys() - samples.keys()):
                skipped.append(Skipped(f"{path}: video {video}", "video without a frame in the list of samples"))
        else:
            reason = "list of samples missing: frames are chosen by a fixed rule, and are not those of published scores"
            skipped.append(Skipped(str(path), reason))
        return Annotations(actions, sentences, samples, tuple(skipped))

    def frame_folder(self, video: str) -> Path:
        """The folder of a video's frames."""
        return self.raw / FRAMES / self.annotations.actions[video] / video

    def mask_file(self, video: str) -> Path:
        """The file of a video's masks."""
        return self.raw / MASKS / self.annotations.actions[video] / video / "puppet_mask.mat"

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields the listed frames of a video, or three of them if there is no list, and what had to be left out."""
        folder = self.frame_folder(video)
        try:
            masks = read_masks(self.mask_file(video))
        except UserError as error:
            yield Skipped(str(self.mask_file(video)), str(error))
            return
        indices = self.annotations.samples[video]
        if not indices:
            stems = (path.stem for path in list_folder(folder, "*.png"))
            indices = choose_frames(video, (int(s) for s in stems if is_frame(s) and int(s) <= masks.shape[2]))
            if len(indices) < FRAMES_PER_VIDEO:
                yield Skipped(str(folder), f"fewer than {FRAMES_PER_VIDEO} frames with a mask")
        sentence = Sentence(self.annotations.sentences[video], instance=0)
        for index in indices:
            earlier, rule = find_earlier(index, self.interval)
            try:
                frame, earlier_frame, files = read_frames(folder / f"{index:05d}.png", folder / f"{earlier:05d}.png")
                mask = select_mask(masks, index, frame.shape[:2])
            except UserError as error:
                yield Skipped(f"{folder}: frame {index}", str(error))
            else:
                yield FramePair(video, index, frame, earlier_frame, rule, {0: mask}, (sentence,), files=files)


def find_earlier(frame_index: int, interval: int) -> tuple[int, str]:
    """The index of the earlier frame (from 1) and the rule that selected it.

    Published: `interval` frames before, which fails for the first frames; we use the first frame for them.
    """
    earlier = frame_index - interval
    return (earlier, "interval") if earlier >= 1 else (1, "first frame")


def choose_frames(video: str, indices: Iterable[int]) -> tuple[int, ...]:
    """The three frames, or all if there are fewer, whose names have the smallest SHA-256, in order.

    The choice depends on the names alone: it is the same on every machine and with every version of a library.
    """

    def digest(index: int) -> bytes:
        return hashlib.sha256(f"{video}/{index:05d}".encode()).digest()

    return tuple(sorted(sorted(indices, key=digest)[:FRAMES_PER_VIDEO]))


def is_frame(stem: str) -> bool:
    """Whether a file name without ".png" is that of a frame: five digits, from 00001."""
    return re.fullmatch(r"[0-9]{5}", stem) is not None and stem != "00000"


def read_masks(path: Path) -> np.ndarray:
    """Reads the masks of a video.

    Args:
      path: a MATLAB 5 file, whose `part_mask` is (H, W, T), or (H, W) if T is 1.

    Returns:
      (H, W, T) bool, frame 1 first.

    Raises:
      UserError: the file is missing, can't be read, or contains something else.
    """
    try:
        content = read_limited(path, MAX_ARRAY_BYTES)
    except FileNotFoundError as error:
        raise UserError("puppet_mask.mat missing") from error
    except (OSError, UserError) as error:
        raise UserError("puppet_mask.mat can't be read") from error
    try:
        masks = parse_mat_array(content, "part_mask")
    except UserError:
        raise
    except Exception as error:
        raise UserError("puppet_mask.mat can't be read") from error
    if masks is None:
        raise UserError("puppet_mask.mat contains no part_mask")
    if not isinstance(masks, np.ndarray) or masks.ndim not in (2, 3) or masks.dtype.kind not in "buif":
        raise UserError("part_mask is not a stack of masks")
    return to_mask(np.atleast_3d(masks))


def select_mask(masks: np.ndarray, frame_index: int, size: tuple[int, int]) -> np.ndarray:
    """Selects the mask of a frame.

    Args:
      masks: (H, W, T) bool, the masks of its video.
      frame_index: from 1.
      size: (H, W) of the frame.

    Returns:
      (H, W) bool.

    Raises:
      UserError: the frame has no mask, the mask is empty, or it differs in size from the frame.
    """
    if not 1 <= frame_index <= masks.shape[2]:
        raise UserError("the masks end before the frame")
    mask = masks[:, :, frame_index - 1]
    if mask.shape != size:
        raise UserError(MASK_SIZE)
    if not mask.any():
        raise UserError("the mask is empty")
    return mask


def find_videos(folder: Path, skipped: list[Skipped]) -> dict[str, str]:
    """Video -> action, from the folders of frames. A video that occurs under two actions is left out."""
    actions_of: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/*")):
        if not (is_plain_name(path.name) and is_plain_name(path.parent.name)):
            skipped.append(Skipped(repr(str(path)), BAD_VIDEO_NAME))  # repr: a name that is not UTF-8 can't be printed
        elif path.is_dir():
            actions_of.setdefault(path.name, []).append(path.parent.name)
    for video, actions in actions_of.items():
        if len(actions) > 1:
            skipped.append(Skipped(f"{folder}: {video} in {', '.join(actions)}", "video under two actions"))
    return {video: actions[0] for video, actions in actions_of.items() if len(actions) == 1}


def _read_sentences(path: Path, actions: dict[str, str], skipped: list[Skipped]) -> dict[str, str]:
    """Video -> sentence, from jhmdb_annotation.txt. A query may be quoted; commas belong to it either way."""
    sentences: dict[str, str] = {}
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
            skipped.append(Skipped(f"{where}: {shorten(video)}", BAD_VIDEO_NAME))
        elif video not in actions:
            skipped.append(Skipped(f"{where}: {video}", f"video is not in {FRAMES}"))
        elif text_error := find_text_error(text):
            skipped.append(Skipped(where, text_error))
        elif video in sentences:
            skipped.append(Skipped(f"{where}: {video}", "video listed twice"))
        else:
            sentences[video] = text
    return sentences


def _read_samples(
    path: Path, actions: dict[str, str], sentences: dict[str, str], skipped: list[Skipped]
) -> dict[str, tuple[int, ...]]:
    """Video -> its frames in the list of samples, in order. Raises UserError if the file is not a JSON list."""
    try:
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError("not a list")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not the list of samples that comes with MTTR ({error}). Download it again, or move it away: "
            "without it, frames are chosen by a fixed rule."
        ) from error
    samples: dict[str, set[int]] = {}
    for position, entry in enumerate(entries, start=1):
        where = f"{path}: entry {position}"
        match entry:
            case [str(video), str(frame_path), _, _, str(text)]:
                match = re.fullmatch(r"(?s:.*/)?([^/]+)/([^/]+)/([0-9]{5})\.png", frame_path)
            case _:
                match = None
        if match is None or not is_frame(match[3]):
            skipped.append(Skipped(where, f"malformed entry of {SAMPLES}"))
        elif video not in sentences:
            skipped.append(Skipped(f"{where}: {shorten(video)}", f"video has no sentence in {SENTENCES}"))
        elif match.groups()[:2] != (actions[video], video):
            skipped.append(Skipped(f"{where}: {shorten(frame_path)}", "the frame's path does not belong to the video"))
        elif text.split() != sentences[video].split():
            skipped.append(Skipped(f"{where}: {text[:60]!r}", f"the sentence differs from the one in {SENTENCES}"))
        elif int(match[3]) in samples.setdefault(video, set()):
            skipped.append(Skipped(f"{where}: {video}", "frame listed twice"))
        else:
            samples[video].add(int(match[3]))
    return {video: tuple(sorted(indices)) for video, indices in samples.items()}
