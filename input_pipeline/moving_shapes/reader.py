"""Reader of Moving Shapes: the A2D-Sentences reader, with three more splits and a group for every sentence.

    text_annotations/moving_shapes_groups.csv     video_id,instance_id,group,query; a header, no quotes

In "train", "validation" and "test" the group is the sentence's tier; in "unseen_words" it is "seen words", or the
substitution that was made, such as "crimson for red"; in "unseen_wordings" it is "seen wordings", or the tier of a
sentence in other ones, such as "reworded motion".
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

from input_pipeline.errors import UserError
from input_pipeline.readers.a2d_sentences import A2DSentences

GROUPS = "text_annotations/moving_shapes_groups.csv"
HEADER = "video_id,instance_id,group,query"


@dataclasses.dataclass(frozen=True)
class MovingShapes(A2DSentences):
    """Moving Shapes as `input_pipeline.moving_shapes.write_raw` draws it; fields as in `A2DSentences`."""

    SUBSETS: ClassVar[dict[str, str]] = {
        "train": "0",
        "test": "1",
        "validation": "2",
        "unseen_words": "3",
        "unseen_wordings": "4",
    }
    FULL_COUNTS: ClassVar[dict[str, int]] = {}
    HOW_TO_GET: ClassVar[str] = (
        "Moving Shapes draws itself where its folder does not exist. Move this folder away, or name another, and run\n"
        "  python -m input_pipeline.prepare --dataset=moving_shapes --raw=DIR --data_dir=DATA_DIR"
    )

    def splits(self) -> tuple[str, ...]:
        """Those that were drawn: a folder from before there was "unseen_wordings" is good without it."""
        drawn = set(self.annotations.subset.values())
        return tuple(split for split, subset in self.SUBSETS.items() if subset in drawn)

    def group(self, video: str, instance: int, text: str) -> str:
        """The group of a sentence. Raises UserError where the file of groups does not hold it."""
        if (video, instance, text) not in self.groups:
            raise UserError(f"{self.raw / GROUPS} has no group for {video},{instance},{text}.\n{self.HOW_TO_GET}")
        return self.groups[video, instance, text]

    @functools.cached_property
    def groups(self) -> dict[tuple[str, int, str], str]:
        """(video, instance, sentence) -> group. Raises UserError where the file is missing or malformed."""
        path = self.raw / GROUPS
        try:
            _, *lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read ({error}).\n{self.HOW_TO_GET}") from error
        groups = {}
        for number, line in enumerate(lines, start=2):
            fields = line.split(",", maxsplit=3)
            if len(fields) < 4 or not fields[1].isdecimal():
                raise UserError(f"{path}:{number}: expected {HEADER}.\n{self.HOW_TO_GET}")
            groups[fields[0], int(fields[1]), fields[3]] = fields[2]
        return groups
