"""J and F of the DAVIS benchmark: region similarity and boundary accuracy of two masks.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and
the davis2017 evaluation code, with which the results agree. The caller clears void pixels in both masks first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def region_similarity(prediction: np.ndarray, mask: np.ndarray) -> float:
    """J: intersection over union of two (h, w) bool masks; 1 if both are empty."""
    union = np.count_nonzero(prediction | mask)
    return np.count_nonzero(prediction & mask) / union if union else 1.0


def boundary_accuracy(prediction: np.ndarray, mask: np.ndarray) -> float:
    """F: the share of each mask's boundary that lies near the other's boundary, as a harmonic mean.

    Precision is the share of the prediction's boundary pixels that have a boundary pixel of the true mask within
    ceil(0.008 * image diagonal) pixels, recall the same with the roles exchanged; F is their harmonic mean. If neither
    mask has a boundary (it is empty, or the whole image), F is 1; if only one has none, it is 0.

    Args:
      prediction: (h, w) bool.
      mask: (h, w) bool, the ground truth.

    Returns:
      F in [0, 1].
    """
    return float(boundary_accuracies([prediction], [mask])[0, 0])


def boundary_accuracies(predictions: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """F (`boundary_accuracy`) of every prediction with every true mask of a frame; computes each boundary only once.

    Args:
      predictions: P masks (h, w) bool, at least one.
      masks: T masks (h, w) bool, at least one.

    Returns:
      (P, T) float64 in [0, 1].
    """
    all_masks, count = [*predictions, *masks], len(predictions)
    radius = math.ceil(0.008 * math.hypot(*all_masks[0].shape))
    bands = _boundaries(all_masks, radius)
    boundary = bands[:, radius : -radius - 1].reshape(len(all_masks), -1).view(np.uint64)
    dilated = _dilate(bands, radius).reshape(len(all_masks), -1).view(np.uint64)
    pixels = np.bitwise_count(boundary).sum(1, dtype=float)
    predicted, true = pixels[:count, None], pixels[count:]
    precision = _common_pixels(boundary[:count], dilated[count:]) / np.maximum(predicted, 1)
    recall = _common_pixels(dilated[:count], boundary[count:]) / np.maximum(true, 1)
    f = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return np.where((predicted == 0) & (true == 0), 1.0, f)


def _boundaries(masks: Sequence[np.ndarray], margin: int) -> np.ndarray:
    """The pixels that differ from their right, lower or lower right neighbor; the image border is no boundary.

    Eight pixels are packed into a byte, which makes all that follows several times faster: the image is cut into eight
    bands of equal height, and band k is stored in bit k of the bytes. A shift of the image is then a shift of bytes.

    Args:
      masks: N masks (h, w) bool.
      margin: rows that each band shares with the next one; also the minimum of empty columns on the right.

    Returns:
      (N, margin + ceil(h / 8) + margin + 1, multiple of 8) uint8, without columns that are empty in all masks.
    """
    height, width = masks[0].shape
    band = -(-height // 8)
    rows, words = margin + band + margin + 1, -(-(width + margin) // 8)
    padded = np.zeros((7 * band + rows, 8 * words), bool)
    padded_words = padded.view(np.uint64)  # eight pixels, each 0 or 1 in a byte of its own
    inside = slice(margin, margin + height)
    bands = np.zeros((len(masks), rows, words), np.uint64)
    for mask, packed in zip(masks, bands, strict=True):
        padded[inside, :width] = mask.view(np.uint8) != 0  # some libraries make bools with other bytes than 0 and 1
        padded[inside, width] = padded[inside, width - 1]  # equal neighbors: no boundary between them
        padded[margin + height] = padded[margin + height - 1]
        for bit in range(8):
            packed |= padded_words[bit * band : bit * band + rows] << bit
    used = np.flatnonzero(np.bitwise_or.reduce(bands, axis=(0, 1)))
    first, last = (max(used[0] - 1, 0), used[-1]) if used.size else (0, 0)
    cropped = bands[:, :, first : last + 1 - (-margin // 8)].view(np.uint8)
    shape, pixels = cropped.shape, cropped.ravel()
    flat = np.zeros_like(pixels)
    for offset in (1, shape[2], shape[2] + 1):
        flat[:-offset] |= pixels[:-offset] ^ pixels[offset:]
    boundaries = flat.reshape(shape)
    row = np.arange(rows)[:, None] + np.arange(8) * band - margin  # image row of each row and bit of the bands
    boundaries &= np.packbits((row >= 0) & (row < height), axis=1, bitorder="little")
    boundaries[:, :, min(width - 8 * first, shape[2] - 1) :] = 0  # the last column's right neighbor is in the next row
    return boundaries


def _dilate(bands: np.ndarray, radius: int) -> np.ndarray:
    """Sets every pixel within the Euclidean distance `radius` of a set one; returns the bands without their margins."""
    height = bands.shape[1] - 2 * radius - 1
    spread, reach = bands.copy(), 0  # spread: pixels within `reach` of a set one in the same row
    pixels, spread_pixels = bands.ravel(), spread.ravel()
    dilated = np.zeros_like(bands[:, :height])
    for rows in range(radius, -1, -1):
        while reach < math.isqrt(radius**2 - rows**2):
            reach += 1
            spread_pixels[reach:] |= pixels[:-reach]
            spread_pixels[:-reach] |= pixels[reach:]
        for first in (radius - rows, radius + rows):
            dilated |= spread[:, first : first + height]
    return dilated


def _common_pixels(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P, n) and (T, n) uint64 -> (P, T) int: the number of bits set in both."""
    return np.stack([np.bitwise_count(bits & second).sum(1, dtype=int) for bits in first])
