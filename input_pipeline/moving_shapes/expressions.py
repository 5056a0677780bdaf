"""The referring expressions of Moving Shapes, before they become sentences: all that are true of exactly one shape.

There are four tiers, which are scored separately:

    attribute    "the green square"
    motion       "the red circle moving left", "the square standing still"
    comparison   "the largest circle", "the fastest shape"
    relation     "the circle left of the yellow square", "the triangle moving like the blue circle"

Motions and relations occur with nouns that fit several shapes, so that only the predicate decides, and with nouns that
identify the shape by themselves; comparisons only with the former. Every expression holds in all annotated frames, by a
clear margin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from input_pipeline.moving_shapes.shapes import DIRECTIONS, Shape

TIERS = ("attribute", "motion", "comparison", "relation")

SIZE_RATIO = 1.25  # least ratio of the square roots of two areas for one shape to be called larger
SPEED_RATIO = 1.5  # least ratio of two speeds for one shape to be called faster
POSITION_MARGIN = 10.0  # pixels between centers: more than half extents differ by, so that edges have the same order
OPPOSITE_MARGIN = 4.0  # pixels by which the other candidates of a relation are on the opposite side of the landmark

#: Spatial relation -> its axis (0 is x, 1 is y), and the sign of the offset from the landmark.
SPATIAL_RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}

#: Color and kind; "" if left open.
Noun = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Expression:
    """The meaning of a sentence.

    Attributes:
      tier: one of TIERS.
      target: instance id of the one shape that it is true of.
      noun: what the shape is called.
      predicate: the deciding words in plain form ("left", "largest", "like", ...); "" in the attribute tier.
      landmark: what the other shape of a relation is called, or None.
      ambiguous: whether the noun alone also fits other shapes (in a relation: other than the landmark), so that only
        the predicate identifies the shape.
    """

    tier: str
    target: int
    noun: Noun
    predicate: str
    landmark: Noun | None = None
    ambiguous: bool = False


def true_expressions(shapes: Sequence[Shape], frames: Sequence[int]) -> list[Expression]:
    """Returns every expression that is true of exactly one shape in all the frames, in a fixed order.

    Args:
      shapes: of a scene; their indices are the instance ids.
      frames: frame indices, counted from 1.
    """
    nouns = sorted({(color, kind) for s in shapes for color in ("", s.color) for kind in ("", s.kind)})
    matches = {noun: [i for i, shape in enumerate(shapes) if _fits(shape, noun)] for noun in nouns}
    landmarks = {noun: ids[0] for noun, ids in matches.items() if len(ids) == 1}
    directions = [shape.direction for shape in shapes]
    centers = np.stack([shape.centers(frames).T for shape in shapes])  # (shapes, frames, 2)
    measures = _measures(shapes, centers)
    expressions: list[Expression] = []
    for noun, ids in matches.items():
        if len(ids) == 1:
            expressions.append(Expression("attribute", ids[0], noun, ""))
        expressions += _motions(noun, ids, directions)
        if len(ids) > 1:
            expressions += _comparisons(noun, ids, measures)
        for landmark, landmark_id in landmarks.items():
            expressions += _relations(noun, ids, landmark, landmark_id, directions, centers)
    return expressions


def _fits(shape: Shape, noun: Noun) -> bool:
    return noun[0] in ("", shape.color) and noun[1] in ("", shape.kind)


def _motions(noun: Noun, ids: list[int], directions: list[str]) -> Iterator[Expression]:
    """The motions that single out one of the shapes `ids`, which the noun fits."""
    matches = {direction: [i for i in ids if directions[i] == direction] for direction in DIRECTIONS}
    matches["moving"] = [i for i in ids if directions[i] != "still"]
    for predicate, targets in matches.items():
        if len(targets) == 1:
            yield Expression("motion", targets[0], noun, predicate, ambiguous=len(ids) > 1)


def _comparisons(noun: Noun, ids: list[int], measures: dict[str, tuple[np.ndarray, float]]) -> Iterator[Expression]:
    """The superlatives of one of the shapes `ids`, which the noun fits."""
    for predicate, (values, margin) in measures.items():
        first = ids[int(np.argmax(values[ids, 0]))]
        rest = [i for i in ids if i != first]
        if np.all(values[first] - values[rest] >= margin):
            yield Expression("comparison", first, noun, predicate, ambiguous=True)


def _relations(
    noun: Noun, ids: list[int], landmark: Noun, landmark_id: int, directions: list[str], centers: np.ndarray
) -> Iterator[Expression]:
    """The relations to a landmark that single out one of the shapes `ids`, which the noun fits."""
    candidates = [i for i in ids if i != landmark_id]
    if not candidates:
        return
    ambiguous = len(candidates) > 1
    for predicate, (axis, sign) in SPATIAL_RELATIONS.items():
        offsets = sign * (centers[candidates, :, axis] - centers[landmark_id, :, axis])
        related = np.all(offsets >= POSITION_MARGIN, axis=1)
        opposite = np.all(offsets <= -OPPOSITE_MARGIN, axis=1)
        if related.sum() == 1 and opposite.sum() == len(candidates) - 1:
            target = candidates[int(np.argmax(related))]
            yield Expression("relation", target, noun, predicate, landmark, ambiguous)
    targets = [i for i in candidates if directions[i] == directions[landmark_id] != "still"]
    if len(targets) == 1:
        yield Expression("relation", targets[0], noun, "like", landmark, ambiguous)


def _measures(shapes: Sequence[Shape], centers: np.ndarray) -> dict[str, tuple[np.ndarray, float]]:
    """Superlative -> the values to maximize, (shapes, frames), and the least margin to the second largest."""
    frames = centers.shape[1]
    size = np.log([[shape.size] * frames for shape in shapes])
    # NaN makes every comparison with a still shape false: it is unclear whether that is the slowest or has no speed.
    speed = np.log([[shape.speed or np.nan] * frames for shape in shapes])
    x, y = centers[..., 0], centers[..., 1]
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
