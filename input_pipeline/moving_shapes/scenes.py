"""The scenes of Moving Shapes.

A scene has three shapes over a textured background that stands still. Every shape stands still or moves with constant
velocity along one axis. At least two of them are of the same kind, in about half of the scenes of the same color too,
so that only their motion, their relative size or position, or their relation to another shape identifies them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipeline.moving_shapes.drawing import draw
from input_pipeline.moving_shapes.expressions import TIERS, Expression, true_expressions
from input_pipeline.moving_shapes.shapes import (
    ANNOTATED_FRAMES,
    COLORS,
    DIRECTIONS,
    HALF_EXTENTS,
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    Shape,
)
from input_pipeline.moving_shapes.wording import make_sentences, make_word_pairs, make_wording_pairs
from input_pipeline.types import Sentence

# The order matters: a split's index is part of the seed of its scenes.
SPLITS = ("train", "test", "validation", "unseen_words", "unseen_wordings")

NUM_SHAPES = 3
SIZES = (18.0, 28.0)  # square roots of areas, in pixels
SPEEDS = {"slow": (0.8, 0.95), "fast": (1.6, 1.8)}  # pixels per frame: at least a factor of 1.5 apart
MIN_DISTANCE = 0.75  # of two centers, as a fraction of the sum of their sizes: at most corners overlap
MIN_VISIBLE = 0.6  # fraction of every shape that no other shape hides, in every annotated frame
EARLIER_INTERVAL = 6  # frames from the earlier frame to the annotated frame
START_CANDIDATES = 300  # random starts to choose from when a shape is placed


@dataclasses.dataclass(frozen=True)
class Scene:
    """One clip with its annotations.

    Attributes:
      shapes: a shape's index is its instance id; later shapes hide earlier ones.
      frames: (NUM_FRAMES, HEIGHT, WIDTH, 3) uint8 RGB.
      masks: annotated frame, counted from 1 -> (shapes, HEIGHT, WIDTH) bool, the visible part of every shape.
      sentences: each true of exactly one shape in every annotated frame.
    """

    shapes: tuple[Shape, ...]
    frames: np.ndarray
    masks: dict[int, np.ndarray]
    sentences: tuple[Sentence, ...]


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Makes one scene. It depends on the arguments alone, and no two scenes share their random numbers.

    Args:
      seed: of the dataset.
      split: one of SPLITS. The sentences of "unseen_words" and "unseen_wordings" come in pairs, see
        `wording.make_word_pairs` and `wording.make_wording_pairs`.
      index: of the scene in its split.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    while True:
        shapes = _place_shapes(_choose_shapes(rng), rng)
        if shapes is None:
            continue
        expressions = true_expressions(shapes, ANNOTATED_FRAMES)
        if not _covers_all_tiers(expressions):
            continue
        frames, masks, visible = draw(shapes, rng)
        if visible >= MIN_VISIBLE:
            break
    if split == "unseen_words":
        sentences = make_word_pairs(expressions, rng)
    elif split == "unseen_wordings":
        sentences = make_wording_pairs(expressions, rng)
    else:
        sentences = make_sentences(expressions, rng, split)
    return Scene(shapes, frames, masks, sentences)


def _covers_all_tiers(expressions: list[Expression]) -> bool:
    """Whether every tier has two expressions, ambiguous ones except in the attribute tier."""
    return all(sum(e.tier == tier and e.ambiguous == (tier != "attribute") for e in expressions) >= 2 for tier in TIERS)


def _choose_shapes(rng: np.random.Generator) -> list[Shape]:
    """The shapes of a scene without their starts, in random order: two distractors and a landmark."""
    kinds, colors = list(HALF_EXTENTS), list(COLORS)
    shapes: list[Shape] = []
    for i in range(NUM_SHAPES):
        kind, color = str(rng.choice(kinds)), str(rng.choice(colors))
        direction = str(rng.choice(list(DIRECTIONS)))
        if i == 1:  # a distractor of the first shape, in the same color in half of the cases
            kind = shapes[0].kind
            color = shapes[0].color if rng.random() < 0.5 else color
        elif i == 2 and rng.random() < 0.5:  # the landmark moves like one of the distractors
            direction = shapes[rng.integers(2)].direction
        speed = 0.0 if direction == "still" else rng.uniform(*SPEEDS[str(rng.choice(list(SPEEDS)))])
        shapes.append(Shape(kind, color, rng.uniform(*SIZES), direction, speed))
    return [shapes[i] for i in rng.permutation(len(shapes))]


def _place_shapes(shapes: list[Shape], rng: np.random.Generator) -> tuple[Shape, ...] | None:
    """Chooses starts from which the shapes stay inside the frame and mostly apart; None if there are none."""
    times = np.array([frame - back for frame in ANNOTATED_FRAMES for back in (EARLIER_INTERVAL, 0)])
    placed: list[Shape] = []
    for shape in shapes:
        half = np.array(shape.half_extent)
        path = np.array(DIRECTIONS[shape.direction]) * shape.speed * (NUM_FRAMES - 1)
        lower = half + 2 + np.maximum(-path, 0)
        upper = np.array([WIDTH, HEIGHT]) - half - 2 - np.maximum(path, 0)
        starts = lower + rng.random((START_CANDIDATES, 2)) * (upper - lower)
        free = np.full(len(starts), np.all(upper > lower))
        for other in placed:
            offsets = shape.centers(times) - other.centers(times)  # (2, times), for a start at (0, 0)
            distance = np.linalg.norm(starts[..., None] + offsets, axis=1).min(axis=1)
            free &= distance > MIN_DISTANCE * (shape.size + other.size)
        if not free.any():
            return None
        start = starts[np.argmax(free)]
        placed.append(dataclasses.replace(shape, start=(float(start[0]), float(start[1]))))
    return tuple(placed)
