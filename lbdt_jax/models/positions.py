"""Sinusoidal position encodings of words and pixels, added inside the duplex transfer.

Vaswani et al., "Attention is all you need", 2017. Computed in float64; the caller rounds once, at the end.
"""

from __future__ import annotations

import numpy as np


def word_positions(length: int, channels: int) -> np.ndarray:
    """(length, channels) float64: sin(p w_i) at channel 2i, cos(p w_i) at 2i + 1, w_i = 10000^(-2i/channels)."""
    frequencies = 10000.0 ** (-np.arange(0, channels, 2) / channels)
    angles = np.arange(length)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, channels)


def pixel_positions(height: int, width: int, channels: int) -> np.ndarray:
    """(height * width, channels) float64, row by row.

    The first half of the channels encodes the column x, the second half the row y, each like `word_positions`.
    """
    columns = word_positions(width, channels // 2)
    rows = word_positions(height, channels // 2)
    shape = (height, width, channels // 2)
    both = [np.broadcast_to(columns[None, :], shape), np.broadcast_to(rows[:, None], shape)]
    return np.concatenate(both, axis=-1).reshape(height * width, channels)
