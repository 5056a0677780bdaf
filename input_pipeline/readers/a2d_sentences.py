"""Reader of A2D-Sentences: clips of actors performing actions, a few annotated frames each, a sentence per object.

    Release/videoset.csv             vid,label,start,end,height,width,frames,annotated frames,subset (0 train, 1 test)
    Release/clips320H/<vid>.mp4      frame n of an annotation is index n - 1 of the decoded clip
    text_annotations/a2d_annotation.txt                    video_id,instance_id,query; a header, no quotes
    text_annotations/a2d_missed_videos.txt                 videos without a sentence, one per line
    text_annotations/a2d_annotation_with_instances/<vid>/<%05d>.h5     instance, reMask; one per annotated frame

Sources: Xu et al., CVPR 2015 (https://web.eecs.umich.edu/~jjcorso/r/a2d/) for the clips, Gavrilyuk et al., CVPR 2018
(https://kgavrilyuk.github.io/publication/actor_action/) for sentences and instances.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, list_folder
from input_pipeline.readers.array_files import read_h5_masks as read_masks
from input_pipeline.readers.raw_files import (
    BAD_VIDEO_NAME,
    EARLIER_FRAME_SIZE,
    NO_TRAINING_DATA,
    NOT_IN_FRAME,
    SkippedItems,
    check_complete,
    find_text_error,
    is_plain_name,
    numbered_lines,
    shorten,
)
from input_pipeline.types import FramePair, Sentence, Skipped

VIDEOSET = "Release/videoset.csv"
CLIPS = "Release/clips320H"
SENTENCES = "text_annotations/a2d_annotation.txt"
MISSED_VIDEOS = "text_annotations/a2d_missed_videos.txt"
INSTANCES = "text_annotations/a2d_annotation_with_instances"

HOW_TO_GET = f"""\
A2D-Sentences comes from two sources, which belong in one folder:
  {VIDEOSET}, {CLIPS}/       from the A2D dataset, https://web.eecs.umich.edu/~jjcorso/r/a2d/
  {SENTENCES}, {INSTANCES}/
                                            from https://kgavrilyuk.github.io/publication/actor_action/
Unpack both into DIR and run
  python -m input_pipeline.prepare --dataset=a2d_sentences --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The contents of the annotation files.

    Attributes:
      subset: video -> its subset in videoset.csv.
      sentences: video -> its sentences.
      splits: those to read: all but "train" if there are data for evaluation alone.
      skipped: the lines that were left out.
    """

    subset: dict[str, str]
    sentences: dict[str, tuple[Sentence, ...]]
    splits: tuple[str, ...]
    skipped: tuple[Skipped, ...]


@dataclasses.dataclass(frozen=True)
class A2DSentences:
    """A2D-Sentences as unpacked; the methods are those of `input_pipeline.types.Reader`.

    Attributes:
      raw: folder that contains `Release` and `text_annotations`.
      interval: frames from the earlier frame to the annotated frame; 6 in the published runs.
    """

    raw: Path
    interval: int = 6

    #: Split -> its value in the last column of videoset.csv.
    SUBSETS: ClassVar[dict[str, str]] = {"train": "0", "test": "1"}
    #: Counts of the full dataset.
    FULL_COUNTS: ClassVar[dict[str, int]] = {
        "videos": 3782,
        "clips": 3782,
        "videos with sentences": 3754,
        "sentences": 6655,
    }
    HOW_TO_GET: ClassVar[str] = HOW_TO_GET

    def splits(self) -> tuple[str, ...]:
        return self.annotations.splits

    def videos(self, split: str) -> list[str]:
        subset = self.annotations.subset
        return sorted(video for video in self.annotations.sentences if subset[video] == self.SUBSETS[split])

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        annotations = self.annotations
        counts = {
            "videos": len(annotations.subset),
            "clips": sum((self.raw / CLIPS / f"{video}.mp4").exists() for video in annotations.subset),
            "videos with sentences": len(annotations.sentences),
            "folders of masks": sum((self.raw / INSTANCES / video).is_dir() for video in annotations.sentences),
            "sentences": sum(map(len, annotations.sentences.values())),
        }
        return {item: (count, self.FULL_COUNTS.get(item)) for item, count in counts.items()}

    def group(self, video: str, instance: int, text: str) -> str:
        """The label under which a sentence is scored; A2D-Sentences has none."""
        return ""

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The annotation files, read once. Raises UserError if something is missing or is not UTF-8 text."""
        check_complete(self.raw, (VIDEOSET, CLIPS, SENTENCES, INSTANCES), self.HOW_TO_GET)
        skipped = SkippedItems()
        subset = _read_videoset(self.raw / VIDEOSET, tuple(self.SUBSETS.values()), skipped)
        sentences: dict[str, list[Sentence]] = {}
        for video, instance, text in _read_sentences(self.raw / SENTENCES, subset, skipped):
            sentences.setdefault(video, []).append(Sentence(text, instance, self.group(video, instance, text)))
        missed = self.raw / MISSED_VIDEOS
        expected = {line.strip() for _, line in numbered_lines(missed)} if missed.exists() else set()
        for video in subset:
            if video not in sentences and video not in expected:
                skipped.append(Skipped(f"{self.raw / VIDEOSET}: video {video}", "video without a sentence"))
        splits = tuple(self.SUBSETS)
        training_videos = (video for video in sentences if subset[video] == self.SUBSETS["train"])
        if not any(
            (self.raw / CLIPS / f"{video}.mp4").exists() and (self.raw / INSTANCES / video).is_dir()
            for video in training_videos
        ):
            skipped.append(Skipped(str(self.raw / VIDEOSET), NO_TRAINING_DATA))
            splits = tuple(split for split in splits if split != "train")
        return Annotations(subset, {video: tuple(texts) for video, texts in sentences.items()}, splits, tuple(skipped))

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        skipped: list[Skipped] = []
        mask_files = self._find_mask_files(video, skipped)
        yield from skipped
        if not mask_files:
            yield Skipped(str(self.raw / INSTANCES / video), "no h5 file for the video")
            return
        clip = self.raw / CLIPS / f"{video}.mp4"
        if not clip.exists():
            yield Skipped(str(clip), "clip missing")
            return
        earlier_frames = {index: find_earlier(index, self.interval, range(1, index + 1)) for index in mask_files}
        needed = {*mask_files, *(index for index, _ in earlier_frames.values())}
        try:
            frames = decode_frames(clip, {index - 1 for index in needed})
        except UserError as error:
            yield Skipped(str(clip), str(error))
            return
        for frame_index, path in sorted(mask_files.items()):
            earlier, rule = earlier_frames[frame_index]
            if frame_index - 1 not in frames or earlier - 1 not in frames:
                yield Skipped(f"{clip}: frame {frame_index}", "the clip is damaged or ends before the frame")
                continue
            frame, earlier_frame = frames[frame_index - 1], frames[earlier - 1]
            if earlier_frame.shape != frame.shape:
                yield Skipped(f"{clip}: frame {frame_index}", EARLIER_FRAME_SIZE)
                continue
            sentences = self.annotations.sentences[video]
            try:
                masks = read_masks(path, frame.shape[:2], [sentence.instance for sentence in sentences])
            except UserError as error:
                yield Skipped(str(path), str(error))
                continue
            for sentence in sentences:
                if sentence.instance not in masks:
                    yield Skipped(f"{path}: instance {sentence.instance} ({sentence.text[:60]})", NOT_IN_FRAME)
            present = tuple(sentence for sentence in sentences if sentence.instance in masks)
            if present:
                yield FramePair(video, frame_index, frame, earlier_frame, rule, masks, present)

    def _find_mask_files(self, video: str, skipped: list[Skipped]) -> dict[int, Path]:
        """Frame index (from 1) -> h5 file with its masks."""
        files: dict[int, Path] = {}
        for path in list_folder(self.raw / INSTANCES / video, "*.h5"):
            if re.fullmatch(r"[0-9]{5}", path.stem) and int(path.stem) >= 1:
                files[int(path.stem)] = path
            else:
                skipped.append(
                    Skipped(f"{path.parent}: {path.name!r}", "the name of the h5 file is not a frame number")
                )
        return files


#: Limit for the frames of a clip that are kept in memory. A2D-Sentences annotates 3 to 5 frames of a clip: 5 MB.
MAX_CLIP_BYTES = 2**30


def find_earlier(frame_index: int, interval: int, available: Collection[int]) -> tuple[int, str]:
    """The index of the earlier frame, out of the available ones, which are in order, and the rule that selected it.

    Published: `interval` frames before, else 6 before, which fails if neither exists; we use the first frame then.
    """
    for index, rule in ((frame_index - interval, "interval"), (frame_index - 6, "index - 6")):
        if index in available:
            return index, rule
    return next(iter(available)), "first frame"


def decode_frames(clip: Path, indices: set[int]) -> dict[int, np.ndarray]:
    """Decodes some frames of a clip.

    Decoding stops at the last frame needed, or at the first damaged one: the decoder is set to fail instead of
    concealing errors, since a concealed frame would be a wrong sample.

    Args:
      clip: an MP4 file.
      indices: the frames to decode, from 0; at least one.

    Returns:
      Index -> (H, W, 3) uint8 RGB, without the frames at or after the first damage.

    Raises:
      UserError: the clip is not a regular file, or the frames would take too much memory.
    """
    frames: dict[int, np.ndarray] = {}
    try:
        check_regular_file(clip)
    except UserError as error:
        raise UserError("the clip is not a regular file") from error
    except OSError:
        return frames
    to_rgb = VideoReformatter()  # one for all frames: creating it costs as much as converting a small frame
    try:
        # If FFmpeg may guess the format, it also follows playlists to other files.
        with av.open(str(clip), format="mp4", options={"err_detect": "explode"}) as container:
            codec = next((stream.codec_context for stream in container.streams.video), None)
            if codec is None:  # no video stream, or its codec is unknown
                return frames
            codec.options = {"err_detect": "explode", "max_pixels": str(MAX_CLIP_BYTES // 3)}
            codec.thread_count = 1  # several clips are read in parallel already
            for index, frame in enumerate(container.decode(video=0)):
                if frame.is_corrupt:
                    break
                if index in indices:
                    if (len(frames) + 1) * frame.width * frame.height * 3 > MAX_CLIP_BYTES:
                        raise UserError("the clip's annotated frames take too much memory")
                    frames[index] = to_rgb.reformat(frame, format="rgb24").to_ndarray()
                if index >= max(indices):
                    break
    except UserError:
        raise
    except (av.FFmpegError, ValueError):
        pass  # the caller reports every missing frame
    return frames


def _read_videoset(path: Path, subsets: tuple[str, ...], skipped: list[Skipped]) -> dict[str, str]:
    """Video -> subset, from videoset.csv."""
    subset: dict[str, str] = {}
    for where, line in numbered_lines(path):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 9:
            skipped.append(Skipped(where, "malformed line of videoset.csv"))
        elif not is_plain_name(fields[0]):
            skipped.append(Skipped(f"{where}: {shorten(fields[0])}", BAD_VIDEO_NAME))
        elif fields[8] not in subsets:
            skipped.append(Skipped(f"{where}: {shorten(fields[8])}", "unknown subset"))
        elif fields[0] in subset:
            skipped.append(Skipped(f"{where}: {fields[0]}", "video listed twice"))
        else:
            subset[fields[0]] = fields[8]
    return subset


def _read_sentences(path: Path, subset: dict[str, str], skipped: list[Skipped]) -> Iterator[tuple[str, int, str]]:
    """Yields (video, instance, sentence) of every valid line of a2d_annotation.txt.

    Commas belong to the sentence, unless the header has more columns, as in copies with shorter sentences beside them.
    """
    columns = 3
    for where, line in numbered_lines(path):
        fields = [field.strip() for field in line.split(",", maxsplit=2 if columns == 3 else -1)]
        if fields[:2] == ["video_id", "instance_id"]:
            columns = max(3, 1 + line.count(","))
            continue
        if len(fields) != columns:
            skipped.append(Skipped(where, "malformed line of a2d_annotation.txt"))
        elif not is_plain_name(fields[0]):
            skipped.append(Skipped(f"{where}: {shorten(fields[0])}", BAD_VIDEO_NAME))
        elif fields[0] not in subset:
            skipped.append(Skipped(f"{where}: {fields[0]}", "video is not in videoset.csv"))
        elif not re.fullmatch(r"[0-9]{1,9}", fields[1]):
            skipped.append(Skipped(f"{where}: {shorten(fields[1])}", "the instance is not a whole number"))
        elif text_error := find_text_error(fields[2]):
            skipped.append(Skipped(where, text_error))
        else:
            yield fields[0], int(fields[1]), fields[2]
