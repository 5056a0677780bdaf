"""The scenes of Moving Shapes: what is in them, where it moves, and how they are drawn.

A scene holds three shapes over a textured background that stands still. Every shape stands still or moves
with constant velocity along one axis. At least two of them are of the same kind, in about half of the scenes of the
same color too, so that only how they move, compare or relate to the others tells them apart.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from input_pipeline.moving_shapes.expressions import TIERS, true_expressions
from input_pipeline.moving_shapes.wording import refer, refer_in_pairs, reword_in_pairs
from input_pipeline.types import Sentence

SPLITS = (
    "train",
    "test",
    "validation",
    "unseen_words",
    "unseen_wordings",
)  # the order is part of every scene's random stream

WIDTH, HEIGHT = 96, 72  # pixels; not square, so that resizing to the model's size is exercised
FRAMES = 16
ANNOTATED = (8, 15)  # counted from 1, as A2D-Sentences counts; both have a frame 6 before them
SHAPES = 3  # in one scene
SIZES = (18.0, 28.0)  # square roots of areas, in pixels
SEPARATION = 0.75  # least distance of two middles, as a share of the sum of their sizes: all but corners stay apart
SPEEDS = {"slow": (0.8, 0.95), "fast": (1.6, 1.8)}  # pixels per frame: at least 1.5 times apart
LEAST_VISIBLE = 0.6  # share of a shape that no other shape covers, in every annotated frame

COLORS = {
    "red": (215, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 225),
    "yellow": (235, 215, 50),
    "purple": (165, 55, 190),
    "white": (240, 240, 240),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
# Half the width and half the height of a shape whose area is 1.
HALF_EXTENTS = {"circle": (0.564, 0.564), "square": (0.5, 0.5), "triangle": (0.76, 0.658)}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    Attributes:
      kind: a key of HALF_EXTENTS.
      color: a key of COLORS.
      size: the square root of its area, in pixels, so that sizes compare across kinds.
      direction: a key of DIRECTIONS.
      speed: pixels per frame, 0 when it stands still.
      start: (x, y) of the middle of its bounding box in frame 1, in pixels from the picture's top left corner.
    """

    kind: str
    color: str
    size: float
    direction: str
    speed: float
    start: tuple[float, float] = (0.0, 0.0)

    def position(self, frame: float | np.ndarray) -> tuple[float | np.ndarray, float | np.ndarray]:
        """(x, y) of its middle in a frame, counted from 1."""
        dx, dy = DIRECTIONS[self.direction]
        return self.start[0] + dx * self.speed * (frame - 1), self.start[1] + dy * self.speed * (frame - 1)

    @property
    def half_extent(self) -> tuple[float, float]:
        """Half its width and half its height in pixels."""
        width, height = HALF_EXTENTS[self.kind]
        return width * self.size, height * self.size


@dataclasses.dataclass(frozen=True)
class Scene:
    """One drawn clip.

    Attributes:
      shapes: what it holds; a shape's place in the tuple is its instance id, and later shapes hide earlier ones.
      frames: (FRAMES, HEIGHT, WIDTH, 3) uint8 RGB.
      masks: frame number, counted from 1 -> (shapes, HEIGHT, WIDTH) bool, the visible part of each.
      sentences: each true of exactly one shape in every annotated frame.
    """

    shapes: tuple[Shape, ...]
    frames: np.ndarray
    masks: dict[int, np.ndarray]
    sentences: tuple[Sentence, ...]


def make_scene(seed: int, split: str, number: int) -> Scene:
    """Draws one scene; the same arguments give the same scene, different ones never share their randomness.

    Args:
      seed: of the data set.
      split: one of SPLITS; the sentences of "unseen_words" and "unseen_wordings" come in pairs, see
        `wording.refer_in_pairs` and `wording.reword_in_pairs`.
      number: of the scene in its split.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    while True:
        shapes = _place(_choose_shapes(rng), rng)
        if shapes is None:
            continue
        expressions = true_expressions(shapes, ANNOTATED)
        if any(sum(e.tier == tier and e.ambiguous == (tier != "attribute") for e in expressions) < 2 for tier in TIERS):
            continue
        frames, masks, visible = _draw(shapes, rng)
        if visible >= LEAST_VISIBLE:
            break
    if split == "unseen_words":
        sentences = refer_in_pairs(expressions, rng)
    elif split == "unseen_wordings":
        sentences = reword_in_pairs(expressions, rng)
    else:
        sentences = refer(expressions, rng, split)
    return Scene(shapes, frames, masks, sentences)


def _choose_shapes(rng: np.random.Generator) -> list[Shape]:
    """The shapes without a place, in random order: two distractors and a landmark."""
    kinds, colors = list(HALF_EXTENTS), list(COLORS)
    shapes: list[Shape] = []
    for i in range(SHAPES):
        kind, color = str(rng.choice(kinds)), str(rng.choice(colors))
        direction = str(rng.choice(list(DIRECTIONS)))
        if i == 1:  # the double of the first shape, rarely in another color
            kind = shapes[0].kind
            color = shapes[0].color if rng.random() < 0.5 else color
        elif i == 2 and rng.random() < 0.5:  # the landmark moves like one of the distractors
            direction = shapes[rng.integers(2)].direction
        speed = 0.0 if direction == "still" else rng.uniform(*SPEEDS[str(rng.choice(list(SPEEDS)))])
        shapes.append(Shape(kind, color, rng.uniform(*SIZES), direction, speed))
    return [shapes[i] for i in rng.permutation(len(shapes))]


def _place(shapes: list[Shape], rng: np.random.Generator) -> tuple[Shape, ...] | None:
    """Gives every shape a start from which it stays inside the picture and mostly clear of the others, or None."""
    times = np.array([frame - back for frame in ANNOTATED for back in (6, 0)])
    placed: list[Shape] = []
    for shape in shapes:
        half = np.array(shape.half_extent)
        way = np.array(DIRECTIONS[shape.direction]) * shape.speed * (FRAMES - 1)
        lowest = half + 2 + np.maximum(-way, 0)
        highest = np.array([WIDTH, HEIGHT]) - half - 2 - np.maximum(way, 0)
        starts = lowest + rng.random((300, 2)) * (highest - lowest)
        clear = np.full(len(starts), np.all(highest > lowest))
        for other in placed:
            apart = np.stack(shape.position(times)) - np.stack(other.position(times))  # (2, times), from a start at 0
            distance = np.linalg.norm(starts[..., None] + apart, axis=1).min(axis=1)
            clear &= distance > SEPARATION * (shape.size + other.size)
        if not clear.any():
            return None
        start = starts[np.argmax(clear)]
        placed.append(dataclasses.replace(shape, start=(float(start[0]), float(start[1]))))
    return tuple(placed)


def _draw(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray], float]:
    """Frames and masks as in Scene, and the smallest visible share of any shape in an annotated frame."""
    frames = np.repeat(_background(rng)[None], FRAMES, axis=0)
    annotated = np.array(ANNOTATED) - 1
    whole = np.zeros((len(shapes), len(ANNOTATED), HEIGHT, WIDTH), bool)
    for i, shape in enumerate(shapes):
        color = np.array(COLORS[shape.color]) + rng.uniform(-12, 12, 3)
        cover, rows, columns = _coverage(shape)
        part = frames[:, rows, columns]
        part += cover[..., None] * (color.astype(np.float32) - part)
        whole[i, :, rows, columns] = cover[annotated] > 0.5
    hidden = np.flip(np.logical_or.accumulate(np.flip(whole, 0), axis=0), 0)
    visible = whole.copy()
    visible[:-1] &= ~hidden[1:]
    share = visible.sum((2, 3)) / whole.sum((2, 3))
    masks = {frame: visible[:, place] for place, frame in enumerate(ANNOTATED)}
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8), masks, float(share.min())


def _coverage(shape: Shape) -> tuple[np.ndarray, slice, slice]:
    """(FRAMES, rows, columns) float32: the share of each pixel that the shape covers, from its signed distance;
    and the rows and the columns of the picture through which it moves."""
    x, y = shape.position(np.arange(1, FRAMES + 1))
    half_width, half_height = shape.half_extent
    columns = slice(int(min(x[0], x[-1]) - half_width) - 1, int(max(x[0], x[-1]) + half_width) + 2)
    rows = slice(int(min(y[0], y[-1]) - half_height) - 1, int(max(y[0], y[-1]) + half_height) + 2)
    right = (np.arange(columns.start, columns.stop) + 0.5 - x[:, None, None]).astype(np.float32)
    below = (np.arange(rows.start, rows.stop)[:, None] + 0.5 - y[:, None, None]).astype(np.float32)
    if shape.kind == "circle":
        distance = np.sqrt(right**2 + below**2) - half_width
    elif shape.kind == "square":
        distance = np.maximum(np.abs(right), np.abs(below)) - half_width
    else:  # equilateral, tip up: two slanted sides and the base
        slanted = np.float32(0.75**0.5) * np.abs(right) - 0.5 * (below + half_height)
        distance = np.maximum(slanted, below - half_height)
    return np.clip(0.5 - distance, 0, 1), rows, columns


def _background(rng: np.random.Generator) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) float32: a muted texture of blotches, slanted stripes and grain."""
    blotches = rng.integers(60, 150) + rng.uniform(-25, 25, (5, 6, 1)) + rng.uniform(-14, 14, (5, 6, 3))
    picture = Image.fromarray(blotches.clip(0, 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along = np.arange(WIDTH) * np.cos(angle) + np.arange(HEIGHT)[:, None] * np.sin(angle)
    stripes = rng.uniform(0, 12) * np.sin(2 * np.pi * along / period)
    grain = rng.normal(0, 3, (HEIGHT, WIDTH))
    return np.asarray(picture, np.float32) + (stripes + grain).astype(np.float32)[..., None]
