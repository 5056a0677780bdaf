"""Shared by the tests of the dataset readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_datasets import HEIGHT, WIDTH
from fake_video_folders import walking_mask
from PIL import Image

from input_pipeline.types import FramePair, Reader, Skipped


def read_all(reader: Reader, video: str) -> tuple[list[FramePair], list[Skipped]]:
    """Returns the frame pairs of a video, and what was left out."""
    items = list(reader.read(video))
    pairs = [item for item in items if isinstance(item, FramePair)]
    return pairs, [item for item in items if isinstance(item, Skipped)]


def check_pair(frames: Path, pair: FramePair, earlier: int) -> None:
    """Checks the images and masks of a frame pair of `fake_video_folders`.

    Args:
      frames: the dataset's folder of frames.
      pair: the frame pair.
      earlier: index of the expected earlier frame.
    """
    for index, image in ((pair.frame_index, pair.frame), (earlier, pair.earlier_frame)):
        expected = Image.open(frames / pair.video / f"{index:05d}.jpg").convert("RGB")
        np.testing.assert_array_equal(image, np.asarray(expected))
    assert {sentence.instance for sentence in pair.sentences} - {None} == pair.masks.keys()
    for instance, mask in pair.masks.items():
        assert mask.dtype == bool
        if mask.any():
            np.testing.assert_array_equal(mask, walking_mask(instance, pair.frame_index))


def damage_mask(path: Path, fault: str) -> str:
    """Replaces a mask file by one that is "missing", "truncated" or of "another size"; returns the reader's reason."""
    if fault == "missing":
        path.unlink()
        return "mask missing"
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:60])
        return "the mask can't be read"
    assert fault == "another size"
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(path)
    return "the mask and the frame differ in size"
