"""Reader of Moving Shapes: the reader of A2D-Sentences, with three more splits and a group for every sentence.

    text_annotations/moving_shapes_groups.csv     video_id,instance_id,group,query; a header, no quotes

In "train", "validation" and "test" the group is the sentence's tier. In "unseen_words" it is "seen words" or the
substitution, such as "crimson for red". In "unseen_wordings" it is "seen wordings" or the tier of a reworded sentence,
such as "reworded motion".
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import ClassVar

from input_pipeline.errors import UserError
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.raw_files import numbered_lines, shorten

GROUPS = "text_annotations/moving_shapes_groups.csv"
HEADER = "video_id,instance_id,group,query"


@dataclasses.dataclass(frozen=True)
class MovingShapes(A2DSentences):
    """Moving Shapes as `moving_shapes.raw_layout.write_raw` writes it; attributes as in `A2DSentences`."""

    SUBSETS: ClassVar[dict[str, str]] = {
        "train": "0",
        "test": "1",
        "validation": "2",
        "unseen_words": "3",
        "unseen_wordings": "4",
    }
    FULL_COUNTS: ClassVar[dict[str, int]] = {}
    HOW_TO_GET: ClassVar[str] = (
        "Moving Shapes is generated if its folder does not exist. Move this folder away, or name another, and run\n"
        "  python -m input_pipeline.prepare --dataset=moving_shapes --raw=DIR --data_dir=DATA_DIR"
    )

    def splits(self) -> tuple[str, ...]:
        """Those that the folder has: one that an older version wrote has no "unseen_wordings"."""
        existing = set(self.annotations.subset.values())
        return tuple(split for split in self.annotations.splits if self.SUBSETS[split] in existing)

    def group(self, video: str, instance: int, text: str) -> str:
        """The group of a sentence. Raises UserError if the file of groups lacks it."""
        if (video, instance, text) not in self.groups:
            where = f"{video},{instance},{shorten(text)}"
            raise UserError(f"{self.raw / GROUPS} has no group for {where}.\n{self.HOW_TO_GET}")
        return self.groups[video, instance, text]

    @functools.cached_property
    def groups(self) -> dict[tuple[str, int, str], str]:
        """(video, instance, sentence) -> group. Raises UserError if the file is missing or malformed."""
        groups: dict[tuple[str, int, str], str] = {}
        try:
            for where, line in numbered_lines(self.raw / GROUPS):
                fields = [field.strip() for field in line.split(",", maxsplit=3)]
                if fields == HEADER.split(","):
                    continue
                if len(fields) < 4 or not re.fullmatch(r"[0-9]{1,9}", fields[1]):
                    raise UserError(f"{where}: expected {HEADER}.")
                if groups.setdefault((fields[0], int(fields[1]), fields[3]), fields[2]) != fields[2]:
                    raise UserError(f"{where}: the sentence has two groups.")
        except UserError as error:
            raise UserError(f"{error}\n{self.HOW_TO_GET}") from error
        return groups
