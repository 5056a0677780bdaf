"""Made-up videos as folders of JPEG frames and palette masks, for the tests of Refer-YouTube-VOS and Ref-DAVIS17."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fabricate import HEIGHT, WIDTH, box, frame
from PIL import Image


def write_frame(path: Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame(index)).save(path, quality=95)


def write_labels(path: Path, objects: dict[int, np.ndarray]) -> None:
    """A palette picture whose pixels are the ids of the objects; masks are (H, W) bool."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for instance, mask in objects.items():
        labels[mask] = instance
    picture = Image.fromarray(labels, "L")
    picture.putpalette([channel for value in range(256) for channel in (value, 7 * value % 256, 255 - value)])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def walking(instance: int, number: int) -> np.ndarray:
    """The mask of object `instance` (from 1, at most 4) in frame `number` (at most 30): apart from the others'."""
    return box(11 * (instance - 1), number, height=8, width=20)


def picture_of(path: Path) -> np.ndarray:
    """What the file shows, (H, W, 3) uint8 RGB."""
    return np.asarray(Image.open(path).convert("RGB"))
