"""J and F of the DAVIS benchmark: how well two masks agree in region and in contour.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and
the davis2017 evaluation code, whose numbers these equal. Pixels to be ignored ("void") are cleared in both masks first.
"""

from __future__ import annotations

import math

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
    tolerance = math.ceil(0.008 * math.hypot(*mask.shape))
    rows, columns = (np.flatnonzero((prediction | mask).any(axis)) for axis in (1, 0))
    if not rows.size:
        return 1.0
    crop = (slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2))
    # A boundary is one integer, a bit per pixel, row by row: Python shifts and unites such integers faster than
    # libraries dilate pictures. The margin on the right keeps a shift by the tolerance out of the next row.
    width = mask[crop].shape[1] + tolerance
    predicted, true = _to_bits(_boundary(prediction[crop]), width), _to_bits(_boundary(mask[crop]), width)
    if not predicted or not true:
        return float(predicted == true)
    precision = (predicted & _dilate(true, tolerance, width)).bit_count() / predicted.bit_count()
    recall = (true & _dilate(predicted, tolerance, width)).bit_count() / true.bit_count()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels that differ from their neighbour to the right, below, or both; the image's edge is no boundary."""
    boundary = np.zeros_like(mask)
    boundary[:, :-1] = mask[:, :-1] != mask[:, 1:]
    boundary[:-1] |= mask[:-1] != mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return boundary


def _to_bits(picture: np.ndarray, width: int) -> int:
    """(h, w) bool -> an integer with `width` bits for each row, the surplus of them 0."""
    padded = np.pad(picture, ((0, 0), (0, width - picture.shape[1])))
    return int.from_bytes(np.packbits(padded).tobytes(), "big")


def _dilate(bits: int, radius: int, width: int) -> int:
    """Sets every pixel within `radius` (Euclidean) of a set one, in rows of `width` bits that end in `radius` zeros."""
    dilated, spread, reach = 0, bits, 0  # spread: every pixel within `reach` of a set one of its own row
    for rows in range(radius, -1, -1):
        while reach < math.isqrt(radius**2 - rows**2):
            reach += 1
            spread |= bits << reach | bits >> reach
        dilated |= spread << rows * width | spread >> rows * width
    return dilated
