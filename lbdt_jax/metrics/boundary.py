"""J and F of the DAVIS benchmark: how well two masks agree in region and in contour.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and
the davis2017 evaluation code, whose numbers these equal. Pixels to be ignored ("void") are cleared in both masks first.
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
    """F: how much of each mask's boundary lies near the other's boundary.

    Precision is the share of the prediction's boundary pixels that have a boundary pixel of the true mask within
    ceil(0.008 * image diagonal) pixels, recall the same with the roles exchanged; F is their harmonic mean. Without
    any boundary in both (empty, or the whole image) it is 1, without one in only one of them 0.

    Args:
      prediction: (h, w) bool.
      mask: (h, w) bool, the true one.

    Returns:
      F in [0, 1].
    """
    return float(boundary_accuracies([prediction], [mask])[0, 0])


def boundary_accuracies(predictions: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """F (`boundary_accuracy`) of every prediction with every true mask of a frame; each boundary is found once.

    Args:
      predictions: P masks (h, w) bool, at least one.
      masks: T masks (h, w) bool, at least one.

    Returns:
      (P, T) float64 in [0, 1].
    """
    both = [*predictions, *masks]
    radius = math.ceil(0.008 * math.hypot(*both[0].shape))
    rows, columns = (np.flatnonzero(np.any([mask.any(axis) for mask in both], axis=0)) for axis in (1, 0))
    if not rows.size:
        return np.ones((len(predictions), len(masks)))
    crop = (slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2))
    boundaries = _boundaries([mask[crop] for mask in both], radius)
    own = boundaries[:, radius : -radius - 1].reshape(len(both), -1).view(np.uint64)
    near = _dilate(boundaries, radius).reshape(len(both), -1).view(np.uint64)
    split = len(predictions)
    counts = np.bitwise_count(own).sum(1, dtype=float)
    predicted, true = counts[:split, None], counts[split:]
    precision = _common_pixels(own[:split], near[split:]) / np.maximum(predicted, 1)
    recall = _common_pixels(near[:split], own[split:]) / np.maximum(true, 1)
    f = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return np.where((predicted == 0) & (true == 0), 1.0, f)


def _boundaries(masks: Sequence[np.ndarray], margin: int) -> np.ndarray:
    """The pixels that differ from their neighbour to the right, below, or both; the image's edge is no boundary.

    Eight pixels share a byte, which makes everything after it several times faster: the picture is cut into eight
    bands of equally many rows, laid upon each other, band k in bit k. So a shift of the picture is a shift of bytes.

    Args:
      masks: N masks (h, w) bool.
      margin: rows that each band shares with the next ones, and empty columns on the right, at least.

    Returns:
      (N, margin + ceil(h / 8) + margin + 1, multiple of 8 over w + margin) uint8.
    """
    height, width = masks[0].shape
    band = -(-height // 8)
    rows, row_bytes = margin + band + margin + 1, -(-(width + margin) // 8) * 8
    padded = np.zeros((len(masks), 7 * band + rows, row_bytes), bool)
    inside = slice(margin, margin + height)
    for picture, mask in zip(padded, masks, strict=True):
        picture[inside, :width] = mask
        picture[inside, width] = mask[:, -1]  # as its neighbour: no boundary between them
        picture[margin + height] = picture[margin + height - 1]
    words = padded.view(np.uint64)  # eight pixels, each 0 or 1 in a byte of its own
    bands = words[:, :rows].copy()
    for bit in range(1, 8):
        bands |= words[:, bit * band : bit * band + rows] << bit
    pixels = bands.view(np.uint8).ravel()
    boundaries = np.zeros_like(pixels)
    for offset in (1, row_bytes, row_bytes + 1):
        boundaries[:-offset] |= pixels[:-offset] ^ pixels[offset:]
    boundaries = boundaries.reshape(len(masks), rows, row_bytes)
    row = np.arange(rows)[:, None] + np.arange(8) * band - margin  # of the picture, for each row and bit of the bands
    boundaries &= np.packbits((row >= 0) & (row < height), axis=1, bitorder="little")
    boundaries[:, :, width:] = 0
    return boundaries


def _dilate(bands: np.ndarray, radius: int) -> np.ndarray:
    """Sets every pixel within `radius` (Euclidean) of a set one; gives the bands' own rows, without their margins."""
    height = bands.shape[1] - 2 * radius - 1
    spread, reach = bands.copy(), 0  # spread: every pixel within `reach` of a set one of its own row
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


def _common_pixels(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P, n) and (T, n) uint64 -> (P, T) int: how many bits are set in both."""
    return np.stack([np.bitwise_count(each & others).sum(1, dtype=int) for each in some])
