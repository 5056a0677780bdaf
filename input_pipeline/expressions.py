"""The referring expressions of Moving Shapes: which are true of exactly one shape, and how they are worded.

Four tiers, scored separately:

    attribute    "the green square"
    motion       "the red circle moving left", "the square standing still"
    comparison   "the largest circle", "the fastest shape"
    relation     "the circle left of the yellow square", "the triangle moving like the blue circle"

In the last three tiers the noun alone fits at least two shapes (in relations the landmark not counted), so that only
the deciding words tell which one is meant. Everything said holds in every annotated frame, by a clear margin.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from input_pipeline.readers import Sentence

if TYPE_CHECKING:
    from input_pipeline.scenes import Shape

TIERS = ("attribute", "motion", "comparison", "relation")
SPLITS = ("train", "test", "validation", "unseen_words")

SIZE_RATIO = 1.25  # of square roots of areas: below this, nothing is called larger
SPEED_RATIO = 1.5  # below this, nothing is called faster
POSITION_MARGIN = 10.0  # pixels between middles: more than half extents differ by, so that edges are ordered alike
OTHER_SIDE_MARGIN = 4.0  # pixels by which the other candidates of a relation lie on the other side of the landmark

Noun = tuple[str, str]  # colour and kind; "" where it is left open

# Concept -> the words for it in every split but "unseen_words"; the first is the plain one.
LEXICON = {
    "red": ("red", "scarlet", "ruby"),
    "green": ("green", "lime", "jade"),
    "blue": ("blue", "sapphire", "cobalt"),
    "yellow": ("yellow", "lemon"),
    "purple": ("purple", "magenta"),
    "white": ("white",),
    "circle": ("circle", "ball", "disk", "dot"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle",),
    "shape": ("shape", "object", "thing"),
    "moving": ("moving", "going", "travelling"),
    "moves": ("moves", "goes", "travels"),
    "standing": ("standing", "staying", "sitting"),
    "still": ("motionless", "still", "immobile", "static"),
    "left": ("left", "leftward"),
    "right": ("right", "rightward"),
    "up": ("up", "upward"),
    "down": ("down", "downward", "downwards"),
    "largest": ("largest",),
    "smallest": ("smallest",),
    "leftmost": ("leftmost",),
    "rightmost": ("rightmost",),
    "topmost": ("topmost", "highest"),
    "lowest": ("lowest",),
    "fastest": ("fastest", "swiftest"),
    "slowest": ("slowest",),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "underneath"),
}

# Word that only "unseen_words" uses -> the concept it stands for.
HELD_OUT = {
    "crimson": "red",
    "emerald": "green",
    "azure": "blue",
    "golden": "yellow",
    "violet": "purple",
    "disc": "circle",
    "rectangle": "square",
    "stationary": "still",
    "upwards": "up",
    "biggest": "largest",
    "quickest": "fastest",
    "beneath": "below",
}

# Predicate -> wordings. A word in braces is a concept of the lexicon; NOUN and LANDMARK are noun phrases.
_ATTRIBUTE = ("the NOUN", "the NOUN", "NOUN", "the only NOUN")
_DIRECTION = (
    "the NOUN {moving} {DIRECTION}",
    "NOUN {moving} {DIRECTION}",
    "the NOUN that {moves} {DIRECTION}",
    "the NOUN, {moving} {DIRECTION}",
    "the DIRECTIONward {moving} NOUN",
)
_SIDEWAYS = ("the NOUN {moving} to the {DIRECTION}", "NOUN which {moves} to the {DIRECTION}")
_SUPERLATIVE = ("the {SUPERLATIVE} NOUN", "{SUPERLATIVE} NOUN", "the NOUN that is {SUPERLATIVE}")
_SPEED = ("the NOUN that {moves} {SUPERLATIVE}", "the {SUPERLATIVE} {moving} NOUN")
_PLACE = (
    "the NOUN {RELATION} the LANDMARK",
    "NOUN {RELATION} the LANDMARK",
    "the NOUN that is {RELATION} the LANDMARK",
)
WORDINGS = {
    "": _ATTRIBUTE,
    **{way: tuple(w.replace("DIRECTION", way) for w in _DIRECTION + _SIDEWAYS) for way in ("left", "right")},
    **{way: tuple(w.replace("DIRECTION", way) for w in _DIRECTION) for way in ("up", "down")},
    "still": (
        "the NOUN {standing} still",
        "the {still} NOUN",
        "the NOUN that is {still}",
        "NOUN that does not move",
        "the NOUN, not moving",
    ),
    "moving": ("the {moving} NOUN", "the NOUN that {moves}", "NOUN that is {moving}"),
    **{
        best: tuple(w.replace("SUPERLATIVE", best) for w in _SUPERLATIVE)
        for best in ("largest", "smallest", "leftmost", "rightmost", "topmost", "lowest")
    },
    **{best: tuple(w.replace("SUPERLATIVE", best) for w in _SUPERLATIVE + _SPEED) for best in ("fastest", "slowest")},
    **{
        where: tuple(w.replace("RELATION", where) for w in _PLACE)
        for where in ("left of", "right of", "above", "below")
    },
    "like": (
        "the NOUN {moving} like the LANDMARK",
        "NOUN that {moves} like the LANDMARK",
        "the NOUN {moving} the same way as the LANDMARK",
        "the NOUN, {moving} in the same direction as the LANDMARK",
    ),
}


@dataclasses.dataclass(frozen=True)
class Expression:
    """What a sentence says, before it is put in words.

    Attributes:
      tier: one of TIERS.
      target: instance id of the one shape it is true of.
      noun: what the shape is called.
      predicate: a key of WORDINGS; "" in the attribute tier.
      landmark: what the other shape of a relation is called, or None.
    """

    tier: str
    target: int
    noun: Noun
    predicate: str
    landmark: Noun | None = None


def true_expressions(shapes: Sequence[Shape], frames: Sequence[int]) -> list[Expression]:
    """Every expression that is true of exactly one shape in all the frames, in a fixed order."""
    names = sorted({(colour, kind) for s in shapes for colour in ("", s.colour) for kind in ("", s.kind)})
    called = {name: [i for i, shape in enumerate(shapes) if _fits(shape, name)] for name in names}
    landmarks = {name: ids[0] for name, ids in called.items() if len(ids) == 1}
    directions = [shape.direction for shape in shapes]
    middles = np.array([[shape.position(frame) for frame in frames] for shape in shapes])  # (shapes, frames, 2)
    measures = _measures(shapes, middles)
    found = []
    for noun, ids in called.items():
        if len(ids) == 1:
            found.append(Expression("attribute", ids[0], noun, ""))
            continue
        for direction in ("left", "right", "up", "down", "still"):
            meant = [i for i in ids if directions[i] == direction]
            if len(meant) == 1:
                found.append(Expression("motion", meant[0], noun, direction))
        meant = [i for i in ids if directions[i] != "still"]
        if len(meant) == 1:
            found.append(Expression("motion", meant[0], noun, "moving"))
        for predicate, (values, margin) in measures.items():
            first = ids[int(np.argmax(values[ids, 0]))]
            others = [i for i in ids if i != first]
            if np.all(values[first] - values[others] >= margin):
                found.append(Expression("comparison", first, noun, predicate))
        for landmark, other in landmarks.items():
            candidates = [i for i in ids if i != other]
            if len(candidates) < 2:
                continue
            for predicate, (axis, sign) in _PLACES.items():
                offsets = sign * (middles[candidates, :, axis] - middles[other, :, axis])
                there = np.all(offsets >= POSITION_MARGIN, axis=1)
                elsewhere = np.all(offsets <= -OTHER_SIDE_MARGIN, axis=1)
                if there.sum() == 1 and elsewhere.sum() == len(candidates) - 1:
                    found.append(Expression("relation", candidates[int(np.argmax(there))], noun, predicate, landmark))
            meant = [i for i in candidates if directions[i] == directions[other] != "still"]
            if len(meant) == 1:
                found.append(Expression("relation", meant[0], noun, "like", landmark))
    return found


#: Relation -> the axis it is about (0 is x, 1 is y), and on which side of the landmark the shape lies.
_PLACES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


def _fits(shape: Shape, noun: Noun) -> bool:
    return noun[0] in ("", shape.colour) and noun[1] in ("", shape.kind)


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


def refer(expressions: Sequence[Expression], rng: np.random.Generator, per_tier: int = 2) -> tuple[Sentence, ...]:
    """Sentences for one scene, the same number from every tier; their group is the tier."""
    sentences = []
    for tier in TIERS:
        for expression in _pick([e for e in expressions if e.tier == tier], rng, per_tier):
            pattern = _pattern(expression, rng)
            words = {concept: _word(concept, rng) for concept in _concepts(pattern)}
            sentences.append(Sentence(pattern.format_map(words), expression.target, tier))
    return tuple(sentences)


def refer_in_pairs(expressions: Sequence[Expression], rng: np.random.Generator, pairs: int = 4) -> tuple[Sentence, ...]:
    """Pairs of sentences about the same shape which differ in one word, for one scene.

    The first is in words of the other splits (group "seen words"); in the second, one of them is replaced by a word
    of HELD_OUT (group such as "crimson for red").
    """
    sentences: list[Sentence] = []
    for word in rng.permutation(list(HELD_OUT)):
        concept = HELD_OUT[word]
        fitting = []
        for expression in expressions:
            pattern = _pattern(expression, rng)
            if _concepts(pattern).count(concept) == 1:
                fitting.append((expression.target, pattern))
        if not fitting:
            continue
        target, pattern = fitting[rng.integers(len(fitting))]
        words = {concept: LEXICON[concept][0] for concept in _concepts(pattern)}
        sentences.append(Sentence(pattern.format_map(words), target, "seen words"))
        text = pattern.format_map(words | {concept: str(word)})
        sentences.append(Sentence(text, target, f"{word} for {LEXICON[concept][0]}"))
        if len(sentences) == 2 * pairs:
            break
    return tuple(sentences)


def _pick(expressions: list[Expression], rng: np.random.Generator, count: int) -> list[Expression]:
    """Some of the expressions, with as many predicates as there are; each is as likely, however many nouns it has."""
    shuffled = [expressions[i] for i in rng.permutation(len(expressions))]
    predicates = rng.permutation(sorted({expression.predicate for expression in expressions}))
    queues = [[e for e in shuffled if e.predicate == predicate] for predicate in predicates]
    in_turn = [e for turn in itertools.zip_longest(*queues) for e in turn if e is not None]
    return in_turn[:count]


def _pattern(expression: Expression, rng: np.random.Generator) -> str:
    """One of the expression's wordings, with its concepts in braces."""
    wordings = WORDINGS[expression.predicate]
    pattern = wordings[rng.integers(len(wordings))].replace("NOUN", _noun_phrase(expression.noun))
    if expression.landmark is not None:
        pattern = pattern.replace("LANDMARK", _noun_phrase(expression.landmark))
    return pattern + ("." if rng.random() < 0.1 else "")


def _noun_phrase(noun: Noun) -> str:
    colour, kind = noun
    return (f"{{{colour}}} " if colour else "") + f"{{{kind or 'shape'}}}"


def _concepts(pattern: str) -> list[str]:
    return re.findall(r"{(.*?)}", pattern)


def _word(concept: str, rng: np.random.Generator) -> str:
    """A word for the concept: the plain one half of the time, else any."""
    words = LEXICON[concept]
    return words[0] if rng.random() < 0.5 else words[rng.integers(len(words))]
