"""Reader of Ref-DAVIS17: the videos of DAVIS 2017, every frame with masks, each object described four times.

    DAVIS/JPEGImages/480p/<video>/<%05d>.jpg          frames, from 00000
    DAVIS/Annotations/480p/<video>/<%05d>.png         masks; the value of a pixel is its object's id, 255 is void
    DAVIS/Annotations_unsupervised/480p/<video>/<%05d>.png     the same, with other ids: published scores are of these
    DAVIS/ImageSets/2017/{train,val}.txt              the videos of each split, one a line
    davis_text_annotations/Davis17_annot{1,2}.txt                 video object "expression", of the first frame
    davis_text_annotations/Davis17_annot{1,2}_full_video.txt      the same, of the whole video

The four files are counted as four annotators. Those of the second one are Latin-1 text, the others UTF-8, and three
videos have other names there. The ids are those of DAVIS/Annotations.

Sources: Khoreva et al., ACCV 2018 (arXiv 1803.08006) for the expressions, Pont-Tuset et al., arXiv 1704.00675
(https://davischallenge.org) for frames and masks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import is_plain_name, numbered_lines
from input_pipeline.readers.video_folders import frame_numbers, read_labels, read_video
from input_pipeline.types import FramePair, Sentence, Skipped

FRAMES = "DAVIS/JPEGImages/480p"
MASKS = "DAVIS/Annotations/480p"
MASKS_FOR_SCORES = "DAVIS/Annotations_unsupervised/480p"
LISTS = "DAVIS/ImageSets/2017/{split}.txt"
SENTENCES = "davis_text_annotations"

#: Annotator -> file, in the order in which the expressions of an object are counted.
ANNOTATORS = {
    "annot1 first": "Davis17_annot1.txt",
    "annot1 full": "Davis17_annot1_full_video.txt",
    "annot2 first": "Davis17_annot2.txt",
    "annot2 full": "Davis17_annot2_full_video.txt",
}
#: As published; saved again, they may be UTF-8.
LATIN_1 = ("Davis17_annot2.txt", "Davis17_annot2_full_video.txt")
#: Name in the expressions -> name in DAVIS.
RENAMED = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}

HOW_TO_GET = f"""\
Ref-DAVIS17 comes from two places and lies together in one folder:
  {FRAMES}/, {MASKS}/, DAVIS/ImageSets/
                                         from https://davischallenge.org/davis2017/code.html: TrainVal, 480p
  {MASKS_FOR_SCORES}/   from the same page: Unsupervised TrainVal, 480p; for published scores only
  {SENTENCES}/                from https://www.mpi-inf.mpg.de: Khoreva et al., Video Object Segmentation
                                         with Language Referring Expressions
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset=ref_davis17 --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class RefDAVIS17:
    """Ref-DAVIS17 as unpacked; see `input_pipeline.readers` for what every reader offers.

    Attributes:
      raw: folder that holds `DAVIS` and `davis_text_annotations`.
      interval: frames from the earlier frame to the annotated frame; 2 in the published runs.
    """

    raw: Path
    interval: int = 2

    #: What the full data set holds, to show beside what was found: the videos of each split.
    FULL: ClassVar[dict[str, int]] = {"train": 60, "val": 30}

    def splits(self) -> tuple[str, ...]:
        return tuple(self.FULL)

    def videos(self, split: str) -> list[str]:
        """The videos of `split` that have a sentence, sorted. Raises UserError if the tree is not complete."""
        tables = self.tables
        return sorted(video for video in tables.sentences if tables.split[video] == split)

    def skipped(self) -> tuple[Skipped, ...]:
        """The lines of the annotation files that were left out, and the sentences that they lack."""
        return self.tables.skipped

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """What is there: thing -> (number found, number in the full data set or None where its source gives none)."""
        found: dict[str, tuple[int, int | None]] = {}
        for split, in_full in self.FULL.items():
            videos = self.videos(split)
            found[f"{split} videos"] = len(videos), in_full
            for kind in (FRAMES, MASKS, MASKS_FOR_SCORES):
                found[f"{split} folders of {kind}"] = sum((self.raw / kind / v).is_dir() for v in videos), in_full
            found[f"{split} sentences"] = sum(len(self.tables.sentences[video]) for video in videos), None
        return found

    @functools.cached_property
    def tables(self) -> Tables:
        """Lists and expressions, read once. Raises UserError if part is missing or is not text as it should be."""
        lists = [LISTS.format(split=split) for split in self.FULL]
        files = [f"{SENTENCES}/{file}" for file in ANNOTATORS.values()]
        missing = [part for part in (FRAMES, MASKS, *lists, *files) if not (self.raw / part).exists()]
        if missing:
            raise UserError(f"{self.raw} lacks {', '.join(missing)}.\n{HOW_TO_GET}")
        skipped: list[Skipped] = []
        split_of = _read_lists(self.raw, skipped)
        described = _read_expressions(self.raw, split_of, skipped)
        by_video: dict[str, tuple[Sentence, ...]] = {}
        objects_of: dict[str, int] = {}
        # The evaluations of the field count the expressions of a video: its objects as text, "10" before "2", and four
        # for each. One that is missing keeps its number, so that every other one has its own.
        for video, instance in sorted(described, key=lambda key: (key[0], str(key[1]))):
            first = len(ANNOTATORS) * objects_of.get(video, 0)
            objects_of[video] = objects_of.get(video, 0) + 1
            sentences = described[video, instance]
            for number, (annotator, file) in enumerate(ANNOTATORS.items(), start=first):
                if annotator in sentences:
                    sentence = dataclasses.replace(sentences[annotator], expression=str(number))
                    by_video[video] = (*by_video.get(video, ()), sentence)
                else:
                    where = f"{self.raw / SENTENCES / file}: {video} {instance}"
                    skipped.append(Skipped(where, "object without an expression of one annotator"))
        for video in split_of:
            if video not in by_video:
                skipped.append(Skipped(f"{self.raw / SENTENCES}: video {video}", "video without a sentence"))
        return Tables(split_of, by_video, tuple(skipped))

    def earlier(self, number: int, frames: int) -> tuple[int, str]:
        """The number of the earlier frame (from 0) in a video of so many frames, and the rule that found it.

        Published: `interval` frames before; as many after for the first frames, which have none. In a video too short
        for either it is the frame itself.
        """
        if number >= self.interval:
            return number - self.interval, "interval"
        if number + self.interval < frames:
            return number + self.interval, "index + interval"
        return number, "the frame itself"

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Every frame of `video` with its sentences, and what had to be left out.

        Where an object is not in a frame, the frame is no sample for it in train; in val it is one with an empty mask,
        since scores are means over all frames, and without truth where the mask is not there. Void pixels belong to no
        object. In val the pairs have the labels that published scores are computed on, as far as they are there.
        """
        frames, masks = self.raw / FRAMES / video, self.raw / MASKS / video
        length = max(frame_numbers(frames, ".jpg") | frame_numbers(masks, ".png"), default=-1) + 1
        evaluated = self.tables.split[video] == "val"
        items = read_video(
            video,
            frames,
            masks,
            range(length),
            lambda number: self.earlier(number, length),
            self.tables.sentences[video],
            keep_all=evaluated,
        )
        yield from self._with_labels(video, items) if evaluated else items

    def _with_labels(self, video: str, items: Iterator[FramePair | Skipped]) -> Iterator[FramePair | Skipped]:
        """Gives every frame pair the labels that published scores are computed on, or the reason why it has none."""
        folder = self.raw / MASKS_FOR_SCORES / video
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
                        raise UserError("the mask has another size than the frame")
                    item = dataclasses.replace(item, labels=labels)
                except UserError as error:
                    yield Skipped(str(path), str(error))
            yield item


@dataclasses.dataclass(frozen=True)
class Tables:
    """Lists and expressions.

    Attributes:
      split: video -> its split.
      sentences: video -> its sentences, the four annotators' of each object together; `group` names the annotator, and
        `expression` is 4 * object + annotator, both counted from 0.
      skipped: the lines left out.
    """

    split: dict[str, str]
    sentences: dict[str, tuple[Sentence, ...]]
    skipped: tuple[Skipped, ...]


def _read_lists(raw: Path, skipped: list[Skipped]) -> dict[str, str]:
    """Video -> split, from train.txt and val.txt."""
    split_of: dict[str, str] = {}
    for split in RefDAVIS17.FULL:
        for where, line in numbered_lines(raw / LISTS.format(split=split)):
            video = line.strip()
            if not is_plain_name(video):
                skipped.append(Skipped(f"{where}: {video!r}", "the video's name is not a plain file name"))
            elif video in split_of:
                skipped.append(Skipped(f"{where}: {video}", "video listed twice"))
            else:
                split_of[video] = split
    return split_of


def _read_expressions(
    raw: Path, videos: dict[str, str], skipped: list[Skipped]
) -> dict[tuple[str, int], dict[str, Sentence]]:
    """(video, object) -> annotator -> sentence. Raises UserError if an annotator has none: scores are means of four."""
    described: dict[tuple[str, int], dict[str, Sentence]] = {}
    for annotator, file in ANNOTATORS.items():
        path = raw / SENTENCES / file
        rows = list(_read_sentences(path, videos, skipped))
        described_splits = {videos[video] for _, video, _, _ in rows}
        for split in sorted(set(videos.values()) - described_splits):
            raise UserError(f"{path} has no expression of a video of {split}.txt. Unpack it again.")
        for where, video, instance, text in rows:
            sentences = described.setdefault((video, instance), {})
            if annotator in sentences:
                skipped.append(Skipped(f"{where}: {video} {instance}", "object described twice in one file"))
            else:
                sentences[annotator] = Sentence(text, instance, annotator)
    return described


def _read_sentences(path: Path, videos: dict[str, str], skipped: list[Skipped]) -> Iterator[tuple[str, str, int, str]]:
    """("file:line", video, object, sentence) of every good line of one file."""
    for where, line in numbered_lines(path, latin_1=path.name in LATIN_1):
        fields = re.fullmatch(r'\s*(\S+)\s+(\S+)\s+"(.*)"\s*', line)
        if fields is None:
            skipped.append(Skipped(where, 'the line is not: video object "expression"'))
            continue
        video, instance, text = RENAMED.get(fields[1], fields[1]), fields[2], fields[3].strip()
        if not is_plain_name(video):
            skipped.append(Skipped(f"{where}: {video!r}", "the video's name is not a plain file name"))
        elif video not in videos:
            skipped.append(Skipped(f"{where}: {video}", "video is neither in train.txt nor in val.txt"))
        elif not re.fullmatch(r"[1-9][0-9]{0,2}", instance) or int(instance) > 254:
            skipped.append(Skipped(f"{where}: {instance!r}", "the object is not a number from 1 to 254"))
        elif not text:
            skipped.append(Skipped(where, "empty sentence"))
        else:
            yield where, video, int(instance), text
