"""Reader of A2D-Sentences: clips of actors in action, a few annotated frames each, a sentence per object.

    Release/videoset.csv             vid,label,start,end,height,width,frames,annotated frames,subset (0 train, 1 test)
    Release/clips320H/<vid>.mp4      frame n of an annotation is index n - 1 of the decoded clip
    text_annotations/a2d_annotation.txt                    video_id,instance_id,query; a header, no quotes
    text_annotations/a2d_missed_videos.txt                 videos without any sentence, one a line
    text_annotations/a2d_annotation_with_instances/<vid>/<%05d>.h5     instance, reMask; one per annotated frame

Sources: Xu et al., CVPR 2015 (https://web.eecs.umich.edu/~jjcorso/r/a2d/) for the clips, Gavrilyuk et al., CVPR 2018
(https://kgavrilyuk.github.io/publication/actor_action/) for sentences and instances.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import av
import h5py
import numpy as np
from av.video.reformatter import VideoReformatter

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import is_plain_name, numbered_lines
from input_pipeline.types import FramePair, Sentence, Skipped

VIDEOSET = "Release/videoset.csv"
CLIPS = "Release/clips320H"
SENTENCES = "text_annotations/a2d_annotation.txt"
MISSED_VIDEOS = "text_annotations/a2d_missed_videos.txt"
INSTANCES = "text_annotations/a2d_annotation_with_instances"

HOW_TO_GET = f"""\
A2D-Sentences comes from two places and lies together in one folder:
  {VIDEOSET}, {CLIPS}/       from the A2D data set, https://web.eecs.umich.edu/~jjcorso/r/a2d/
  {SENTENCES}, {INSTANCES}/
                                            from https://kgavrilyuk.github.io/publication/actor_action/
Unpack both into DIR and run
  python -m input_pipeline.prepare --dataset=a2d_sentences --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class A2DSentences:
    """A2D-Sentences as unpacked; see `input_pipeline.readers` for what every reader offers.

    Attributes:
      raw: folder that holds `Release` and `text_annotations`.
      interval: frames from the earlier frame to the annotated frame; 6 in the published runs.
    """

    raw: Path
    interval: int = 6

    #: Split -> its number in the last column of videoset.csv.
    SUBSETS: ClassVar[dict[str, str]] = {"train": "0", "test": "1"}
    #: What the full data set holds, to show beside what was found.
    FULL: ClassVar[dict[str, int]] = {"videos": 3782, "clips": 3782, "videos with sentences": 3754, "sentences": 6655}
    HOW_TO_GET: ClassVar[str] = HOW_TO_GET

    def splits(self) -> tuple[str, ...]:
        return tuple(self.SUBSETS)

    def videos(self, split: str) -> list[str]:
        """The videos of `split` that have a sentence, sorted. Raises UserError if the tree is not complete."""
        subset = self.tables.subset
        return sorted(video for video in self.tables.sentences if subset[video] == self.SUBSETS[split])

    def skipped(self) -> tuple[Skipped, ...]:
        """The lines of the annotation files that were left out."""
        return self.tables.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """What is there: thing -> (number found, number in the full data set or None where it has no fixed size)."""
        tables = self.tables
        found = {
            "videos": len(tables.subset),
            "clips": sum((self.raw / CLIPS / f"{video}.mp4").exists() for video in tables.subset),
            "videos with sentences": len(tables.sentences),
            "folders of masks": sum((self.raw / INSTANCES / video).is_dir() for video in tables.sentences),
            "sentences": sum(map(len, tables.sentences.values())),
        }
        return {thing: (number, self.FULL.get(thing)) for thing, number in found.items()}

    def group(self, video: str, instance: int, text: str) -> str:
        """The label under which a sentence is scored; A2D-Sentences has none."""
        return ""

    @functools.cached_property
    def tables(self) -> Tables:
        """Both annotation files, read once. Raises UserError if part of the tree is missing or is not UTF-8 text."""
        missing = [part for part in (VIDEOSET, CLIPS, SENTENCES, INSTANCES) if not (self.raw / part).exists()]
        if missing:
            raise UserError(f"{self.raw} lacks {', '.join(missing)}.\n{self.HOW_TO_GET}")
        skipped: list[Skipped] = []
        subset = _read_videoset(self.raw / VIDEOSET, tuple(self.SUBSETS.values()), skipped)
        rows = _read_sentences(self.raw / SENTENCES, subset, skipped)
        sentences: dict[str, list[Sentence]] = {}
        for video, instance, text in rows:
            sentences.setdefault(video, []).append(Sentence(text, instance, self.group(video, instance, text)))
        missed = self.raw / MISSED_VIDEOS
        expected = {line.strip() for _, line in numbered_lines(missed)} if missed.exists() else set()
        for video in subset:
            if video not in sentences and video not in expected:
                skipped.append(Skipped(f"{self.raw / VIDEOSET}: video {video}", "video without a sentence"))
        return Tables(subset, {video: tuple(rows) for video, rows in sentences.items()}, tuple(skipped))

    def earlier(self, frame_index: int) -> tuple[int, str]:
        """The number of the earlier frame (from 1) and the rule that found it.

        Published: `interval` frames before, else 6 before, which fails where neither exists; we take the first frame.
        """
        for number, rule in ((frame_index - self.interval, "interval"), (frame_index - 6, "index - 6")):
            if number >= 1:
                return number, rule
        return 1, "first frame"

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Every annotated frame of `video` with the sentences whose object it holds, and what had to be left out."""
        clip = self.raw / CLIPS / f"{video}.mp4"
        numbers = {}
        for path in sorted((self.raw / INSTANCES / video).glob("*.h5")):
            if re.fullmatch(r"[0-9]{5}", path.stem) and int(path.stem) >= 1:
                numbers[int(path.stem)] = path
            else:
                yield Skipped(f"{path.parent}: {path.name!r}", "the name of the h5 file is not a frame number")
        if not numbers:
            yield Skipped(str(self.raw / INSTANCES / video), "no h5 file for the video")
            return
        if not clip.exists():
            yield Skipped(str(clip), "clip missing")
            return
        wanted = {index - 1 for number in numbers for index in (number, self.earlier(number)[0])}
        frames = decode_frames(clip, wanted)
        for number, path in sorted(numbers.items()):
            earlier, rule = self.earlier(number)
            if number - 1 not in frames or earlier - 1 not in frames:
                yield Skipped(f"{clip}: frame {number}", "the clip is damaged or ends before the frame")
                continue
            frame, earlier_frame = frames[number - 1], frames[earlier - 1]
            if earlier_frame.shape != frame.shape:
                yield Skipped(f"{clip}: frame {number}", "the earlier frame has another size than the frame")
                continue
            sentences = self.tables.sentences[video]
            try:
                masks = read_masks(path, frame.shape[:2], {sentence.instance for sentence in sentences})
            except UserError as error:
                yield Skipped(str(path), str(error))
                continue
            for sentence in sentences:
                if sentence.instance not in masks:
                    where = f"{path}: instance {sentence.instance} ({sentence.text[:60]})"
                    yield Skipped(where, "the instance is not in the frame")
            present = tuple(sentence for sentence in sentences if sentence.instance in masks)
            if present:
                yield FramePair(video, number, frame, earlier_frame, rule, masks, present)


@dataclasses.dataclass(frozen=True)
class Tables:
    """The two annotation files: video -> subset, video -> its sentences, and the lines left out."""

    subset: dict[str, str]
    sentences: dict[str, tuple[Sentence, ...]]
    skipped: tuple[Skipped, ...]


def decode_frames(clip: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """Frames of a clip by index from 0, (H, W, 3) uint8 RGB; those at or after the first damage are not there.

    Decoding stops at the last frame that is wanted. The decoder is told to fail where it would guess, since a guessed
    picture is a wrong sample.
    """
    frames: dict[int, np.ndarray] = {}
    to_rgb = VideoReformatter()  # one for all frames: each new one costs as much as a small frame
    try:
        # Left to guess, FFmpeg also follows lists of other files
        with av.open(str(clip), format="mp4", options={"err_detect": "explode"}) as container:
            codec = next((stream.codec_context for stream in container.streams.video), None)
            if codec is None:  # no video stream, or none whose codec can be told
                return frames
            codec.options = {"err_detect": "explode"}
            codec.thread_count = 1  # the clips are read in parallel already
            for index, frame in enumerate(container.decode(video=0)):
                if frame.is_corrupt:
                    break
                if index in wanted:
                    frames[index] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
                if index >= max(wanted):
                    break
    except (av.FFmpegError, ValueError):
        pass  # the caller reports each frame that is not there
    return frames


#: In one frame, and some more: a broken file may claim any number.
MOST_INSTANCES = 1000


def read_masks(path: Path, size: tuple[int, int], wanted: set[int]) -> dict[int, np.ndarray]:
    """The masks of the wanted instances that are in one h5 file: id -> (H, W) bool.

    MATLAB wrote the file, so `reMask` is (n, W, H), and (W, H) where `instance` has a single id: `instance` and not
    the number of axes says which, and there may be more planes than ids.

    Args:
      path: the h5 file.
      size: (H, W) of the frame.
      wanted: ids to look for.

    Raises:
      UserError: the file is missing, can't be read, or holds masks of another size than the frame.
    """
    try:
        with h5py.File(path, "r") as file:
            instance, planes = file["instance"], file["reMask"]
            if instance.size > MOST_INSTANCES or instance.dtype.kind not in "iuf":
                raise UserError("the instances of the h5 file are no list of numbers")
            numbers = np.ravel(instance[()]).tolist()
            if not all(float(number).is_integer() for number in numbers):
                raise UserError("the instances of the h5 file are no whole numbers")
            ids = [int(number) for number in numbers]
            if planes.shape[-2:] != size[::-1]:
                raise UserError("the masks have another size than the frame")
            alone = len(ids) == 1 and planes.ndim == 2
            if not alone and (planes.ndim != 3 or len(planes) < len(ids)):
                raise UserError("the h5 file has fewer masks than instances")
            return {
                number: np.asarray(planes[()] if alone else planes[ids.index(number)]).T > 0
                for number in sorted(wanted.intersection(ids))
            }
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("h5 file missing") from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError("the h5 file can't be read") from error


def _read_videoset(path: Path, subsets: tuple[str, ...], skipped: list[Skipped]) -> dict[str, str]:
    """Video -> subset, from videoset.csv."""
    subset: dict[str, str] = {}
    for where, line in numbered_lines(path):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 9:
            skipped.append(Skipped(where, "malformed line of videoset.csv"))
        elif not is_plain_name(fields[0]):
            skipped.append(Skipped(f"{where}: {fields[0]!r}", "the video's name is not a plain file name"))
        elif fields[8] not in subsets:
            skipped.append(Skipped(f"{where}: {fields[8]!r}", "unknown subset"))
        elif fields[0] in subset:
            skipped.append(Skipped(f"{where}: {fields[0]}", "video listed twice"))
        else:
            subset[fields[0]] = fields[8]
    return subset


def _read_sentences(path: Path, subset: dict[str, str], skipped: list[Skipped]) -> Iterator[tuple[str, int, str]]:
    """(video, instance, sentence) of every good line of a2d_annotation.txt."""
    for where, line in numbered_lines(path):
        fields = [field.strip() for field in line.split(",", maxsplit=2)]
        if fields[:2] == ["video_id", "instance_id"]:
            continue
        if len(fields) < 3:
            skipped.append(Skipped(where, "malformed line of a2d_annotation.txt"))
        elif not is_plain_name(fields[0]):
            skipped.append(Skipped(f"{where}: {fields[0]!r}", "the video's name is not a plain file name"))
        elif fields[0] not in subset:
            skipped.append(Skipped(f"{where}: {fields[0]}", "video is not in videoset.csv"))
        elif not re.fullmatch(r"[0-9]{1,9}", fields[1]):
            skipped.append(Skipped(f"{where}: {fields[1]!r}", "the instance is not a whole number"))
        elif not fields[2]:
            skipped.append(Skipped(where, "empty sentence"))
        else:
            yield fields[0], int(fields[1]), fields[2]
