"""Ref-DAVIS17 in the layout of Refer-YouTube-VOS, to which ReferFormer and its successors convert it.

    {train,valid}/JPEGImages/<video>/<%05d>.jpg               frames, from 00000
    {train,valid}/Annotations/<video>/<%05d>.png              masks, moved from DAVIS/Annotations_unsupervised/480p
    meta_expressions/{train,valid}/meta_expressions.json      as in Refer-YouTube-VOS

The name of an expression is 4 * object + annotator. The object ids in the JSON files are those of the text files, which
belong to DAVIS/Annotations/480p: if that folder is still there, it is used, else the masks that were moved.

Source: tools/data/convert_davis_to_ytvos.py of https://github.com/wjn922/ReferFormer.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import BAD_VIDEO_NAME, is_plain_name, shorten
from input_pipeline.readers.refer_youtube_vos import EXPRESSIONS, FRAMES, MASKS, parse_video, read_videos
from input_pipeline.types import Sentence, Skipped

#: Split -> its name in this layout.
SPLITS = {"train": "train", "val": "valid"}


def is_converted(raw: Path) -> bool:
    """Whether a folder has the converted layout, at least of the split "val"."""
    return (raw / EXPRESSIONS.format(split="valid")).exists() or (raw / "valid" / FRAMES).is_dir()


def frame_folder(raw: Path, split: str, video: str) -> Path:
    """The folder of a video's frames."""
    return raw / SPLITS[split] / FRAMES / video


def mask_folder(raw: Path, split: str, video: str) -> Path:
    """The folder of a video's masks."""
    return raw / SPLITS[split] / MASKS / video


def read_expressions(
    raw: Path, annotators: Sequence[str], skipped: list[Skipped]
) -> tuple[dict[str, str], dict[str, tuple[Sentence, ...]], dict[str, int]]:
    """Reads the JSON files; that of "train" may be missing.

    Args:
      raw: the folder.
      annotators: their names, which become the sentences' groups.
      skipped: gets what was left out.

    Returns:
      Video -> split; video -> its sentences; video -> its number of frames by the JSON file.

    Raises:
      UserError: a file can't be read, or lacks one of the annotators. Scores are means over all four.
    """
    split_of: dict[str, str] = {}
    sentences: dict[str, tuple[Sentence, ...]] = {}
    lengths: dict[str, int] = {}
    for split, folder in SPLITS.items():
        path = raw / EXPRESSIONS.format(split=folder)
        if split == "train" and not path.exists():
            continue
        found: set[str] = set()
        for video, entry in read_videos(path).items():
            where = f"{path}: video {shorten(video)}"
            if not is_plain_name(video):
                skipped.append(Skipped(where, BAD_VIDEO_NAME))
                continue
            if video in split_of:
                skipped.append(Skipped(where, "video in two splits"))
                continue
            parsed = parse_video(where, entry, split == "val", skipped)
            kept = [_with_annotator(where, sentence, annotators, skipped) for sentence in parsed.sentences]
            numbered = sorted((s for s in kept if s is not None), key=lambda sentence: int(sentence.expression))
            if not numbered:
                skipped.append(Skipped(where, "video without a sentence"))
                continue
            split_of[video], sentences[video] = split, tuple(numbered)
            lengths[video] = parsed.frames[-1] + 1 if parsed.frames else 0
            found.update(sentence.group for sentence in numbered)
        if missing := [annotator for annotator in annotators if found and annotator not in found]:
            raise UserError(f"{path} has no expression by annotator {', '.join(missing)}. Convert the dataset again.")
    return split_of, sentences, lengths


def _with_annotator(
    where: str, sentence: Sentence, annotators: Sequence[str], skipped: list[Skipped]
) -> Sentence | None:
    """The sentence with its annotator, which follows from its number; None if it has no valid number or object."""
    where = f"{where}: expression {shorten(sentence.expression)}"
    if not re.fullmatch(r"0|[1-9][0-9]{0,5}", sentence.expression):
        skipped.append(Skipped(where, "the expression's name is not a number, from which the annotator follows"))
        return None
    if sentence.instance == 255:
        skipped.append(Skipped(where, "the object is not a number from 1 to 254"))
        return None
    return dataclasses.replace(sentence, group=annotators[int(sentence.expression) % len(annotators)])
