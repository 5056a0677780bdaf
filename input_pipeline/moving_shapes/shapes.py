"""The shapes of Moving Shapes, and the properties that all scenes have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 96, 72  # pixels; not square, so that resizing to the model's size is exercised
NUM_FRAMES = 16
ANNOTATED_FRAMES = (8, 15)  # counted from 1, as in A2D-Sentences; both have a frame 6 before them

COLORS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 225),
    "yellow": (235, 215, 50),
    "purple": (165, 55, 190),
    "white": (240, 240, 240),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
# Half the width and half the height of a shape of area 1.
HALF_EXTENTS = {"circle": (0.564, 0.564), "square": (0.5, 0.5), "triangle": (0.76, 0.658)}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    Attributes:
      kind: a key of HALF_EXTENTS.
      color: a key of COLORS.
      size: the square root of its area, in pixels, so that the sizes of different kinds can be compared.
      direction: a key of DIRECTIONS.
      speed: in pixels per frame; 0 if it stands still.
      start: (x, y) of the center of its bounding box in frame 1, in pixels from the top left corner of the frame.
    """

    kind: str
    color: str
    size: float
    direction: str
    speed: float
    start: tuple[float, float] = (0.0, 0.0)

    def centers(self, frames: Sequence[int] | np.ndarray) -> np.ndarray:
        """(2, frames): x and y of its center in some frames, counted from 1."""
        dx, dy = DIRECTIONS[self.direction]
        steps = np.asarray(frames) - 1
        return np.stack([self.start[0] + dx * self.speed * steps, self.start[1] + dy * self.speed * steps])

    @property
    def half_extent(self) -> tuple[float, float]:
        """Half its width and half its height, in pixels."""
        width, height = HALF_EXTENTS[self.kind]
        return width * self.size, height * self.size
