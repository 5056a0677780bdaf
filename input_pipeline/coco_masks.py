"""Masks in COCO's formats, from files that are not trusted: run-length encoding, compressed or not, and polygons.

pycocotools writes beyond a mask whose runs don't fill it exactly, and takes as much memory as a polygon's edges are
long; both are checked here first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from input_pipeline.errors import UserError
from input_pipeline.pictures import MAX_PIXELS
from input_pipeline.readers.raw_files import MASK_SIZE

#: Pixels of all edges of an object's polygons together; the most detailed objects of COCO have about 20,000.
MAX_PERIMETER = 5_000_000


def decode_rle(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decodes a mask.

    Args:
      segmentation: {"size": [h, w], "counts": str or list of int}.
      size: (h, w) of the frame. A few bytes may claim to be a mask of any other.

    Returns:
      (h, w) bool.

    Raises:
      UserError: it is a mask of another size.
      ValueError, TypeError: it is not a mask, or is larger than any frame.
    """
    runs = _read_runs(segmentation)
    height, width = size
    if segmentation["size"] != [height, width]:
        raise UserError(MASK_SIZE)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def is_empty_rle(segmentation: Any) -> bool:
    """Whether a mask, of any size, has no pixel. Arguments and errors are those of `decode_rle`."""
    return not _read_runs(segmentation)[1::2].any()


def _read_runs(segmentation: Any) -> np.ndarray:
    """The runs of a mask in its own size, see `check_rle`."""
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise TypeError("a mask without size or counts")
    return check_rle(segmentation["size"], segmentation["counts"], MAX_PIXELS)


def check_rle(size: Any, counts: Any, max_pixels: int = 2**31 - 1) -> np.ndarray:
    """Checks a run-length encoded mask.

    Args:
      size: [h, w].
      counts: a str of COCO's compressed form, or a list of ints.
      max_pixels: the largest mask.

    Returns:
      (runs,) int64, the lengths of runs of 0 and 1, in turns, column by column.

    Raises:
      ValueError, TypeError: it is not a mask.
    """
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, str | list):
        raise TypeError("a mask without size or counts")
    height, width = size
    if not (type(height) is type(width) is int and height > 0 and width > 0 and height * width <= max_pixels):
        raise ValueError("a mask without a height and a width, or a larger one than any")
    if isinstance(counts, str):
        runs = _decompress(counts)
    else:
        if not counts or not all(type(count) is int and 0 <= count <= max_pixels for count in counts):
            raise ValueError("counts that are no numbers")
        runs = np.array(counts, np.int64)
    num_pixels = height * width
    if runs.min() < 0 or runs.max() > num_pixels or runs.sum() != num_pixels:  # a sum of longer ones might overflow
        raise ValueError("runs that do not fill the mask")
    return runs


def _decompress(counts: str) -> np.ndarray:
    """The runs of a compressed mask. Raises ValueError if they are no numbers."""
    # Each character is 48 plus five bits of a number, the lowest first, and a sixth bit if the number goes on.
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(ends) or ends[-1] != len(codes) - 1 or codes.min() < 0 or codes.max() > 63:
        raise ValueError("counts that are no numbers")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a count that is too large")
    numbers = np.add.reduceat((codes & 31) << 5 * (np.arange(len(codes)) - np.repeat(starts, lengths)), starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    # From the fourth on, they are differences to the number two before.
    runs = np.concatenate([numbers[:1], np.zeros(len(numbers) - 1, np.int64)])
    runs[1::2], runs[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return runs


def rasterize_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """The union of polygons, equal to pycocotools' to the pixel.

    Args:
      polygons: each a list x1, y1, x2, y2, ... of at least three points, in pixels; they may leave the image.
      size: (h, w) of the image.

    Returns:
      (h, w) bool.

    Raises:
      ValueError, TypeError: there is none, or one is not a polygon or longer than any object's.
    """
    height, width = size
    if not polygons or not 0 < height * width <= MAX_PIXELS:
        raise ValueError("no polygon")
    perimeter = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(type(number) in (int, float) for number in polygon):
            raise TypeError("a polygon that is not a list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon with less than three points, or an odd number of coordinates")
        if not all(abs(number) <= MAX_PERIMETER for number in polygon):  # false for NaN as well
            raise ValueError("a polygon with a point far from the image")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        perimeter += float(np.abs(points - np.roll(points, 1, axis=0)).sum()) + len(points)
    if perimeter > MAX_PERIMETER:
        raise ValueError("a polygon longer than any object's")
    encoded = coco_mask.frPyObjects([[float(number) for number in polygon] for polygon in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(encoded)).astype(bool)
