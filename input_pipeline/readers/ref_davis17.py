"""Reader of Ref-DAVIS17: the videos of DAVIS 2017, masks in every frame, four expressions per object.

    DAVIS/JPEGImages/480p/<video>/<%05d>.jpg          frames, from 00000
    DAVIS/Annotations/480p/<video>/<%05d>.png         masks; the value of a pixel is its object's id, 255 is void
    DAVIS/Annotations_unsupervised/480p/<video>/<%05d>.png     the same with other ids: those of published scores
    DAVIS/ImageSets/2017/{train,val}.txt              the videos of each split, one per line
    davis_text_annotations/Davis17_annot{1,2}.txt                 video object "expression", of the first frame
    davis_text_annotations/Davis17_annot{1,2}_full_video.txt      the same, of the whole video

The four text files count as four annotators. Those of annot2 are Latin-1, the others UTF-8. They name three videos
differently than DAVIS does; their object ids are those of DAVIS/Annotations.

`ref_davis17_converted` describes the layout to which other code converts the dataset; it is read as well.

Sources: Khoreva et al., ACCV 2018 (arXiv 1803.08006) for the expressions, Pont-Tuset et al., arXiv 1704.00675
(https://davischallenge.org) for frames and masks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from input_pipeline.errors import UserError
from input_pipeline.readers import ref_davis17_converted as converted
from input_pipeline.readers.raw_files import (
    BAD_VIDEO_NAME,
    MASK_SIZE,
    NO_TRAINING_DATA,
    SkippedItems,
    check_complete,
    find_text_error,
    is_plain_name,
    numbered_lines,
    parse_object_id,
    shorten,
)
from input_pipeline.readers.video_folders import frame_indices, read_labels, read_video
from input_pipeline.types import FramePair, Sentence, Skipped

FRAMES = "DAVIS/JPEGImages/480p"
MASKS = "DAVIS/Annotations/480p"
MASKS_FOR_SCORES = "DAVIS/Annotations_unsupervised/480p"
LISTS = "DAVIS/ImageSets/2017/{split}.txt"
SENTENCES = "davis_text_annotations"

#: Annotator -> file, in the order in which the expressions of an object are numbered.
ANNOTATORS = {
    "annot1 first": "Davis17_annot1.txt",
    "annot1 full": "Davis17_annot1_full_video.txt",
    "annot2 first": "Davis17_annot2.txt",
    "annot2 full": "Davis17_annot2_full_video.txt",
}
#: The encoding as published; a copy that was saved again may be UTF-8.
LATIN_1 = ("Davis17_annot2.txt", "Davis17_annot2_full_video.txt")
#: Name of a video in the text files -> its name in DAVIS.
RENAMED = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}

HOW_TO_GET = f"""\
Ref-DAVIS17 comes from two sources, which belong in one folder:
  {FRAMES}/, {MASKS}/, DAVIS/ImageSets/
                                         from https://davischallenge.org/davis2017/code.html: TrainVal, 480p
  {MASKS_FOR_SCORES}/   from the same page: Unsupervised TrainVal, 480p; for published scores only
  {SENTENCES}/                from https://www.mpi-inf.mpg.de: Khoreva et al., Video Object Segmentation
                                         with Language Referring Expressions
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=ref_davis17 --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The contents of the lists and text files.

    Attributes:
      split: video -> its split.
      sentences: video -> its sentences, grouped by object; `group` is the annotator, and `expression` is
        4 * object + annotator, both counted from 0.
      splits: those to read: without "train" if there are data for evaluation alone.
      skipped: the lines that were left out.
      lengths: video -> its number of frames, where the annotation files have it: in the converted layout; else None.
    """

    split: dict[str, str]
    sentences: dict[str, tuple[Sentence, ...]]
    splits: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    lengths: dict[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class RefDAVIS17:
    """Ref-DAVIS17 as unpacked; the methods are those of `input_pipeline.types.Reader`.

    Attributes:
      raw: folder that contains `DAVIS` and `davis_text_annotations`, or `valid` and `meta_expressions`.
      interval: frames from the earlier frame to the annotated frame; 2 in the published runs.
    """

    raw: Path
    interval: int = 2

    #: Counts of the full dataset: the videos of each split.
    FULL_COUNTS: ClassVar[dict[str, int]] = {"train": 60, "val": 30}

    def splits(self) -> tuple[str, ...]:
        return self.annotations.splits

    def videos(self, split: str) -> list[str]:
        annotations = self.annotations
        return sorted(video for video in annotations.sentences if annotations.split[video] == split)

    def skipped(self) -> tuple[Skipped, ...]:
        """Lines of annotation files that were left out, and objects that lack an expression."""
        return self.annotations.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        counts: dict[str, tuple[int, int | None]] = {}
        for split, full_count in self.FULL_COUNTS.items():
            videos = self.videos(split)
            counts[f"{split} videos"] = len(videos), full_count
            folders_of = {
                FRAMES: self.frame_folder,
                MASKS: self.mask_folder,
                MASKS_FOR_SCORES: self.folder_of_masks_for_scores,
            }
            for kind, folder in folders_of.items():
                counts[f"{split} folders of {kind}"] = sum(folder(video).is_dir() for video in videos), full_count
            counts[f"{split} sentences"] = sum(len(self.annotations.sentences[video]) for video in videos), None
        return counts

    def frame_folder(self, video: str) -> Path:
        """The folder of a video's frames."""
        annotations = self.annotations
        if annotations.lengths is not None:
            return converted.frame_folder(self.raw, annotations.split[video], video)
        return self.raw / FRAMES / video

    def mask_folder(self, video: str) -> Path:
        """The folder of a video's masks; in the converted layout the original one, if it is still there."""
        annotations = self.annotations
        if annotations.lengths is not None and not (self.raw / MASKS / video).is_dir():
            return converted.mask_folder(self.raw, annotations.split[video], video)
        return self.raw / MASKS / video

    def folder_of_masks_for_scores(self, video: str) -> Path:
        """The folder of a video's masks for published scores, as `mask_folder`."""
        annotations = self.annotations
        if annotations.lengths is not None and not (self.raw / MASKS_FOR_SCORES / video).is_dir():
            return converted.mask_folder(self.raw, annotations.split[video], video)
        return self.raw / MASKS_FOR_SCORES / video

    @functools.cached_property
    def annotations(self) -> Annotations:
        """Lists and text files, read once. Raises UserError if one is missing or is not text in its encoding.

        train.txt may be missing, and so may everything else about the training videos.
        """
        skipped = SkippedItems()
        files = [f"{SENTENCES}/{file}" for file in ANNOTATORS.values()]
        required = (FRAMES, MASKS, LISTS.format(split="val"), *files)
        lengths = None
        if converted.is_converted(self.raw) and not all((self.raw / part).exists() for part in required):
            path = self.raw / converted.EXPRESSIONS.format(split="train")
            split_of, sentences, lengths = converted.read_expressions(self.raw, tuple(ANNOTATORS), skipped)
        else:
            path = self.raw / LISTS.format(split="train")
            check_complete(self.raw, required, HOW_TO_GET)
            split_of = _read_lists(self.raw, skipped)
            expressions = _read_expressions(self.raw, split_of, skipped)
            sentences = _number_expressions(expressions, self.raw / SENTENCES, skipped)
        for video in split_of:
            if video not in sentences:
                skipped.append(Skipped(f"{self.raw / SENTENCES}: video {video}", "video without a sentence"))
        annotations = Annotations(split_of, sentences, tuple(self.FULL_COUNTS), (), lengths)
        if not self._can_train(annotations):
            skipped.append(Skipped(str(path), NO_TRAINING_DATA))
            splits = tuple(split for split in annotations.splits if split != "train")
            annotations = dataclasses.replace(annotations, splits=splits)
        return dataclasses.replace(annotations, skipped=tuple(skipped))

    def _can_train(self, annotations: Annotations) -> bool:
        """Whether a training video has sentences, frames and masks."""
        if annotations.lengths is None:
            frames, masks = self.raw / FRAMES, self.raw / MASKS
        else:
            frames, masks = (
                folder(self.raw, "train", "") for folder in (converted.frame_folder, converted.mask_folder)
            )
        videos = (video for video in annotations.sentences if annotations.split[video] == "train")
        return any((frames / video).is_dir() and (masks / video).is_dir() for video in videos)

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields every frame of a video with its sentences, and what had to be left out.

        In train, a frame has no sentences about objects that are not in it. In val it has, with empty masks, since
        scores are means over all frames; without a readable mask, its sentences have no instance. Void pixels belong to
        no object. The frame pairs of val have the labels that published scores are computed on, if these are there.
        """
        frames, masks = self.frame_folder(video), self.mask_folder(video)
        length = max(frame_indices(frames, ".jpg") | frame_indices(masks, ".png"), default=-1) + 1
        length = max(length, (self.annotations.lengths or {}).get(video, 0))
        evaluated = self.annotations.split[video] == "val"
        items = read_video(
            video,
            frames,
            masks,
            range(length),
            lambda index: find_earlier(index, self.interval, length),
            self.annotations.sentences[video],
            keep_all=evaluated,
        )
        yield from self._add_labels(video, items) if evaluated else items

    def _add_labels(self, video: str, items: Iterator[FramePair | Skipped]) -> Iterator[FramePair | Skipped]:
        """Adds to every frame pair the labels that published scores are computed on, or reports why it has none."""
        folder = self.folder_of_masks_for_scores(video)
        if not folder.is_dir():
            yield Skipped(str(folder), "the video's folder of masks for published scores is missing")
            yield from items
            return
        for item in items:
            if isinstance(item, FramePair):
                path = folder / f"{item.frame_index:05d}.png"
                try:
                    labels = read_labels(path)
                    if labels.shape != item.frame.shape[:2]:
                        raise UserError(MASK_SIZE)
                    item = dataclasses.replace(item, labels=labels)
                except UserError as error:
                    yield Skipped(str(path), str(error))
            yield item


def find_earlier(frame_index: int, interval: int, length: int) -> tuple[int, str]:
    """The index of the earlier frame (from 0) in a video of `length` frames, and the rule that selected it.

    Published: `interval` frames before, or as many after for the first frames. If the video is too short for either, it
    is the frame itself.
    """
    if frame_index >= interval:
        return frame_index - interval, "interval"
    if frame_index + interval < length:
        return frame_index + interval, "index + interval"
    return frame_index, "the frame itself"


def _read_lists(raw: Path, skipped: list[Skipped]) -> dict[str, str]:
    """Video -> split, from train.txt and val.txt."""
    split_of: dict[str, str] = {}
    for split in RefDAVIS17.FULL_COUNTS:
        path = raw / LISTS.format(split=split)
        if split == "train" and not path.exists():
            continue
        for where, line in numbered_lines(path):
            video = line.strip()
            if not is_plain_name(video):
                skipped.append(Skipped(f"{where}: {shorten(video)}", BAD_VIDEO_NAME))
            elif video in split_of:
                skipped.append(Skipped(f"{where}: {video}", "video listed twice"))
            else:
                split_of[video] = split
    return split_of


def _read_expressions(
    raw: Path, videos: dict[str, str], skipped: list[Skipped]
) -> dict[tuple[str, int], dict[str, Sentence]]:
    """(video, object) -> annotator -> sentence.

    Raises:
      UserError: an annotator has no expression for any video of a split; scores are means over all four. All four may
        lack the training videos.
    """
    expressions: dict[tuple[str, int], dict[str, Sentence]] = {}
    described_splits: dict[Path, set[str]] = {}
    for annotator, file in ANNOTATORS.items():
        path = raw / SENTENCES / file
        rows = list(_read_sentences(path, videos, skipped))
        described_splits[path] = {videos[video] for _, video, _, _ in rows}
        for where, video, instance, text in rows:
            sentences = expressions.setdefault((video, instance), {})
            if annotator in sentences:
                skipped.append(Skipped(f"{where}: {video} {instance}", "object described twice in one file"))
            else:
                sentences[annotator] = Sentence(text, instance, annotator)
    required = {"val"}.union(*described_splits.values()).intersection(videos.values())
    for path, splits in described_splits.items():
        for split in sorted(required - splits):
            raise UserError(f"{path} has no expression for a video of {split}.txt. Unpack it again.")
    return expressions


def _number_expressions(
    expressions: dict[tuple[str, int], dict[str, Sentence]], folder: Path, skipped: list[Skipped]
) -> dict[str, tuple[Sentence, ...]]:
    """Video -> its sentences, with expression ids as in the evaluation code of other papers.

    That code sorts the objects of a video as text, "10" before "2", and numbers four expressions for each. If one is
    missing, the others keep their ids.
    """
    sentences: dict[str, list[Sentence]] = {}
    object_count: Counter[str] = Counter()
    for video, instance in sorted(expressions, key=lambda key: (key[0], str(key[1]))):
        first = len(ANNOTATORS) * object_count[video]
        object_count[video] += 1
        for expression, (annotator, file) in enumerate(ANNOTATORS.items(), start=first):
            if sentence := expressions[video, instance].get(annotator):
                sentences.setdefault(video, []).append(dataclasses.replace(sentence, expression=str(expression)))
            else:
                where = f"{folder / file}: {video} {instance}"
                skipped.append(Skipped(where, "object without an expression by one annotator"))
    return {video: tuple(numbered) for video, numbered in sentences.items()}


def _read_sentences(path: Path, videos: dict[str, str], skipped: list[Skipped]) -> Iterator[tuple[str, str, int, str]]:
    """Yields ("file:line", video, object, sentence) of every valid line of a text file."""
    for where, line in numbered_lines(path, latin_1=path.name in LATIN_1):
        fields = re.fullmatch(r'\s*(\S+)\s+(\S+)\s+"(.*)"\s*', line)
        if fields is None:
            skipped.append(Skipped(where, 'the line does not have the form video object "expression"'))
            continue
        video, instance, text = RENAMED.get(fields[1], fields[1]), fields[2], fields[3].strip()
        if not is_plain_name(video):
            skipped.append(Skipped(f"{where}: {shorten(video)}", BAD_VIDEO_NAME))
        elif video not in videos:
            skipped.append(Skipped(f"{where}: {video}", "video is neither in train.txt nor in val.txt"))
        elif (object_id := parse_object_id(instance, largest=254)) is None:
            skipped.append(Skipped(f"{where}: {shorten(instance)}", "the object is not a number from 1 to 254"))
        elif text_error := find_text_error(text):
            skipped.append(Skipped(where, text_error))
        else:
            yield where, video, object_id, text
