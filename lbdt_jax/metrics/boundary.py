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
    boundaries = _boundaries(both, radius)
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
      (N, margin + ceil(h / 8) + margin + 1, multiple of 8) uint8, without columns that are empty in all masks.
    """
    height, width = masks[0].shape
    band = -(-height // 8)
    rows, words = margin + band + margin + 1, -(-(width + margin) // 8)
    padded = np.zeros((7 * band + rows, 8 * words), bool)
    padded_words = padded.view(np.uint64)  # eight pixels, each 0 or 1 in a byte of its own
    inside = slice(margin, margin + height)
    bands = np.zeros((len(masks), rows, words), np.uint64)
    for mask, own in zip(masks, bands, strict=True):
        padded[inside, :width] = mask.view(np.uint8) != 0  # some libraries make bools of other bytes than 0 and 1
        padded[inside, width] = padded[inside, width - 1]  # as its neighbour: no boundary between them
        padded[margin + height] = padded[margin + height - 1]
        for bit in range(8):
            own |= padded_words[bit * band : bit * band + rows] << bit
    used = np.flatnonzero(np.bitwise_or.reduce(bands, axis=(0, 1)))
    first, last = (max(used[0] - 1, 0), used[-1]) if used.size else (0, 0)
    pixels = bands[:, :, first : last + 1 - (-margin // 8)].view(np.uint8)
    shape, pixels = pixels.shape, pixels.ravel()
    boundaries = np.zeros_like(pixels)
    for offset in (1, shape[2], shape[2] + 1):
        boundaries[:-offset] |= pixels[:-offset] ^ pixels[offset:]
    boundaries = boundaries.reshape(shape)
    row = np.arange(rows)[:, None] + np.arange(8) * band - margin  # of the picture, for each row and bit of the bands
    boundaries &= np.packbits((row >= 0) & (row < height), axis=1, bitorder="little")
    boundaries[:, :, min(width - 8 * first, shape[2] - 1) :] = 0  # the last column's neighbour is in the next row
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
