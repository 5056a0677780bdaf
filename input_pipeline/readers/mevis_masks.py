"""The masks of MeViS: the entries of mask_dict.json for the objects of one video, decoded frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.coco_masks import decode_rle
from input_pipeline.errors import UserError, first_few
from input_pipeline.readers.json_index import JsonIndex
from input_pipeline.readers.mevis_expressions import Video
from input_pipeline.readers.raw_files import NOT_IN_FRAME
from input_pipeline.types import Skipped

#: Limit for a video's masks, encoded. The longest of MeViS have a few MB.
MAX_MASK_BYTES = 256 * 2**20


class VideoMasks:
    """The masks of a video's targets, frame by frame, and what is wrong with them."""

    def __init__(self, index: JsonIndex | None, video: Video) -> None:
        self._video = video
        self._faults: dict[tuple[str, str], list[int]] = {}  # (objects, reason) -> frames
        self._lists: dict[int, list[Any]] = {}
        num_bytes = 0
        for anno in sorted({anno for annos in video.targets.values() for anno in annos}) if index else ():
            assert index is not None
            num_bytes += index.size(str(anno))
            try:
                if num_bytes > MAX_MASK_BYTES:
                    raise ValueError("the video's masks take too much memory")
                masks = index.read(str(anno))
                if not isinstance(masks, list):
                    raise ValueError("not a list")
            except (OSError, ValueError, RecursionError):
                self._add(f"object {anno}", 0, "the masks of an object can't be read")
                continue
            if len(masks) != len(video.frames):
                which = "fewer" if len(masks) < len(video.frames) else "more"
                reason = f"an object has {which} masks than the video has frames: the others are left out"
                self._add(f"object {anno}", min(len(masks), len(video.frames)) - 1, reason)
            self._lists[anno] = masks

    def targets(self, position: int, size: tuple[int, int]) -> dict[int, np.ndarray | None]:
        """Target -> its mask in a frame of `size` (h, w), (h, w) bool, empty if it is not there; None if unknown."""
        decoded = {anno: self._decode(anno, position, size) for anno in self._lists}
        targets: dict[int, np.ndarray | None] = {}
        for target, annos in self._video.targets.items():
            parts = [decoded.get(anno) for anno in annos]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts):
                targets[target] = None
                continue
            union = np.zeros(size, bool)
            for part in known:
                union |= part
            targets[target] = union
            if annos and not union.any():
                self._add(f"object{'s' * (len(annos) > 1)} {first_few(annos)}", position, NOT_IN_FRAME)
        return targets

    def _decode(self, anno: int, position: int, size: tuple[int, int]) -> np.ndarray | None:
        """An object's mask in a frame, empty if it is not there; None if it can't be read or is of another size."""
        masks = self._lists[anno]
        if position >= len(masks):
            return None
        if masks[position] is None:
            return np.zeros(size, bool)
        try:
            return decode_rle(masks[position], size)
        except UserError as error:
            self._add(f"object {anno}", position, str(error))
            return None
        except (ValueError, TypeError):
            self._add(f"object {anno}", position, "the mask can't be read")
            return None

    def _add(self, objects: str, position: int, reason: str) -> None:
        frames = self._faults.setdefault((objects, reason), [])
        index = self._video.frames[position] if self._video.frames else 0
        if index not in frames[-1:]:
            frames.append(index)

    def skipped(self, where: str, training: bool) -> Iterator[Skipped]:
        """One note for each object and reason, with the frames: an object is absent in most frames of many videos."""
        for (objects, reason), frames in self._faults.items():
            if training or reason != NOT_IN_FRAME:
                names = first_few([f"{frame:05d}" for frame in frames], 5)
                yield Skipped(f"{where}: {objects}, frames {names}", reason)
