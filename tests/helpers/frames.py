"""Made-up frames and masks."""

from __future__ import annotations

import numpy as np


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A frame of noise, (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(height: int, width: int, radius: float) -> np.ndarray:
    """A mask, (height, width) bool, of the pixels within `radius` of the center."""
    rows, columns = np.ogrid[:height, :width]
    return (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2
