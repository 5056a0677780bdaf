"""The referring expressions of Moving Shapes, before they are put in words: which are true of exactly one shape.

Four tiers, scored separately:

    attribute    "the green square"
    motion       "the red circle moving left", "the square standing still"
    comparison   "the largest circle", "the fastest shape"
    relation     "the circle left of the yellow square", "the triangle moving like the blue circle"

What is said of motion and relation is found with nouns that fit several shapes, so that only the predicate decides,
and with nouns that would do alone; comparisons only with the former. Everything said holds in every annotated frame,
by a clear margin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from input_pipeline.moving_shapes.scenes import Shape

TIERS = ("attribute", "motion", "comparison", "relation")

SIZE_RATIO = 1.25  # of square roots of areas: below this, nothing is called larger
SPEED_RATIO = 1.5  # below this, nothing is called faster
POSITION_MARGIN = 10.0  # pixels between middles: more than half extents differ by, so that edges are ordered alike
OTHER_SIDE_MARGIN = 4.0  # pixels by which the other candidates of a relation lie on the other side of the landmark

Noun = tuple[str, str]  # color and kind; "" where it is left open


@dataclasses.dataclass(frozen=True)
class Expression:
    """What a sentence says, before it is put in words.

    Attributes:
      tier: one of TIERS.
      target: instance id of the one shape it is true of.
      noun: what the shape is called.
      predicate: the deciding words, plainly ("left", "largest", "like", ...); "" in the attribute tier.
      landmark: what the other shape of a relation is called, or None.
      ambiguous: whether the noun alone fits other shapes as well (in relations the landmark not counted), so that
        only the predicate tells which one is meant.
    """

    tier: str
    target: int
    noun: Noun
    predicate: str
    landmark: Noun | None = None
    ambiguous: bool = False


def true_expressions(shapes: Sequence[Shape], frames: Sequence[int]) -> list[Expression]:
    """Every expression that is true of exactly one shape in all the frames, in a fixed order."""
    names = sorted({(color, kind) for s in shapes for color in ("", s.color) for kind in ("", s.kind)})
    called = {name: [i for i, shape in enumerate(shapes) if _fits(shape, name)] for name in names}
    landmarks = {name: ids[0] for name, ids in called.items() if len(ids) == 1}
    directions = [shape.direction for shape in shapes]
    middles = np.array([[shape.position(frame) for frame in frames] for shape in shapes])  # (shapes, frames, 2)
    measures = _measures(shapes, middles)
    found = []
    for noun, ids in called.items():
        ambiguous = len(ids) > 1
        if not ambiguous:
            found.append(Expression("attribute", ids[0], noun, ""))
        for direction in ("left", "right", "up", "down", "still"):
            meant = [i for i in ids if directions[i] == direction]
            if len(meant) == 1:
                found.append(Expression("motion", meant[0], noun, direction, ambiguous=ambiguous))
        meant = [i for i in ids if directions[i] != "still"]
        if len(meant) == 1:
            found.append(Expression("motion", meant[0], noun, "moving", ambiguous=ambiguous))
        for predicate, (values, margin) in measures.items() if ambiguous else ():
            first = ids[int(np.argmax(values[ids, 0]))]
            others = [i for i in ids if i != first]
            if np.all(values[first] - values[others] >= margin):
                found.append(Expression("comparison", first, noun, predicate, ambiguous=True))
        for landmark, other in landmarks.items():
            candidates = [i for i in ids if i != other]
            if not candidates:
                continue
            several = len(candidates) > 1
            for predicate, (axis, sign) in _PLACES.items():
                offsets = sign * (middles[candidates, :, axis] - middles[other, :, axis])
                there = np.all(offsets >= POSITION_MARGIN, axis=1)
                elsewhere = np.all(offsets <= -OTHER_SIDE_MARGIN, axis=1)
                if there.sum() == 1 and elsewhere.sum() == len(candidates) - 1:
                    target = candidates[int(np.argmax(there))]
                    found.append(Expression("relation", target, noun, predicate, landmark, several))
            meant = [i for i in candidates if directions[i] == directions[other] != "still"]
            if len(meant) == 1:
                found.append(Expression("relation", meant[0], noun, "like", landmark, several))
    return found


#: Relation -> the axis it is about (0 is x, 1 is y), and on which side of the landmark the shape lies.
_PLACES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def _fits(shape: Shape, noun: Noun) -> bool:
    return noun[0] in ("", shape.color) and noun[1] in ("", shape.kind)


def _measures(shapes: Sequence[Shape], middles: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Superlative -> (shapes, frames) what it is the greatest of, and by how much it must be greater than the next."""
    frames = middles.shape[1]
    size = np.log([[shape.size] * frames for shape in shapes])
    # NaN for a shape that stands still fails every comparison with it: is it the slowest, or has it no speed?
    speed = np.log([[shape.speed or np.nan] * frames for shape in shapes])
    x, y = middles[..., 0], middles[..., 1]
    return {
        "largest": (size, np.log(SIZE_RATIO)),
        "smallest": (-size, np.log(SIZE_RATIO)),
        "leftmost": (-x, POSITION_MARGIN),
        "rightmost": (x, POSITION_MARGIN),
        "topmost": (-y, POSITION_MARGIN),
        "lowest": (y, POSITION_MARGIN),
        "fastest": (speed, np.log(SPEED_RATIO)),
        "slowest": (-speed, np.log(SPEED_RATIO)),
    }
