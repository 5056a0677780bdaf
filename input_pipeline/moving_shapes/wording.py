"""The words of Moving Shapes: referring expressions -> sentences, in many wordings and with synonyms.

A pattern is a wording with concepts in braces, "the {red} {circle} {moving} {left}"; each becomes one of its words.
Some words are held out for the split "unseen_words": whoever has learnt from word vectors may know them all the same.
Some wordings are held out for the split "unseen_wordings": whoever understands sentences may understand them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.moving_shapes.expressions import TIERS, Expression, Noun
from input_pipeline.types import Sentence

# Concept -> the words for it in every split but "unseen_words" and "unseen_wordings"; the first is the plain one.
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

# Predicates -> their wordings, in which PREDICATE stands for any one of them, NOUN and LANDMARK for noun phrases.
WORDINGS = {
    ("",): ("the NOUN", "NOUN", "the only NOUN"),
    ("left", "right", "up", "down"): (
        "the NOUN {moving} {PREDICATE}",
        "NOUN {moving} {PREDICATE}",
        "the NOUN that {moves} {PREDICATE}",
        "the NOUN, {moving} {PREDICATE}",
        "the PREDICATEward {moving} NOUN",
    ),
    ("left", "right"): ("the NOUN {moving} to the PREDICATE", "NOUN which {moves} to the PREDICATE"),
    ("moving",): ("the moving NOUN", "the NOUN that moves", "NOUN that is moving"),
    ("still",): (
        "the NOUN {standing} still",
        "the {still} NOUN",
        "the NOUN that is {still}",
        "NOUN that does not move",
        "the NOUN, not moving",
    ),
    ("largest", "smallest", "leftmost", "rightmost", "topmost", "lowest", "fastest", "slowest"): (
        "the {PREDICATE} NOUN",
        "{PREDICATE} NOUN",
        "the NOUN that is {PREDICATE}",
    ),
    ("fastest", "slowest"): ("the NOUN that {moves} {PREDICATE}", "the {PREDICATE} {moving} NOUN"),
    ("left of", "right of", "above", "below"): (
        "the NOUN {PREDICATE} the LANDMARK",
        "NOUN {PREDICATE} the LANDMARK",
        "the NOUN that is {PREDICATE} the LANDMARK",
    ),
    ("like",): (
        "the NOUN {moving} like the LANDMARK",
        "NOUN that {moves} like the LANDMARK",
        "the NOUN {moving} the same way as the LANDMARK",
        "the NOUN, {moving} in the same direction as the LANDMARK",
    ),
}

# The same for wordings that only "unseen_wordings" uses. All words for concepts are plain ones; others, such as "which"
# and "find", are new as well.
HELD_OUT_WORDINGS = {
    ("",): ("find the NOUN", "where is the NOUN", "there is a NOUN somewhere"),
    ("left", "right", "up", "down"): (
        "which NOUN {moves} {PREDICATE}",
        "find the NOUN, it {moves} {PREDICATE}",
        "what {moves} {PREDICATE} is the NOUN",
    ),
    ("moving",): ("which NOUN moves", "the NOUN does move", "find the NOUN in motion"),
    ("still",): ("which NOUN does not move", "the NOUN stays where it is", "find the NOUN at rest"),
    ("largest", "smallest", "leftmost", "rightmost", "topmost", "lowest", "fastest", "slowest"): (
        "which NOUN is {PREDICATE}",
        "of all, the {PREDICATE} NOUN",
        "the NOUN, namely the {PREDICATE} one",
    ),
    ("left of", "right of", "above", "below"): (
        "which NOUN is {PREDICATE} the LANDMARK",
        "{PREDICATE} the LANDMARK is the NOUN",
        "look {PREDICATE} the LANDMARK to find the NOUN",
    ),
    ("like",): (
        "which NOUN {moves} like the LANDMARK",
        "as the LANDMARK {moves}, so does the NOUN",
        "the NOUN has the direction of the LANDMARK",
    ),
}


def refer(expressions: Sequence[Expression], rng: np.random.Generator, split: str) -> tuple[Sentence, ...]:
    """Sentences for one scene; their group is the tier. Two of every tier, but up to four attributes in training.

    Half of them, where there are such, could do with their noun alone: from these, and from the attributes, the nouns
    are learnt.
    """
    sentences = []
    for tier in TIERS:
        per_tier = 4 if (split, tier) == ("train", "attribute") else 2
        of_tier = [e for e in expressions if e.tier == tier]
        decided_by_noun = _pick([e for e in of_tier if not e.ambiguous], rng, per_tier)
        chosen = _pick([e for e in of_tier if e.ambiguous], rng, per_tier - len(decided_by_noun) // 2) + decided_by_noun
        for expression in chosen[:per_tier]:
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


def reword_in_pairs(expressions: Sequence[Expression], rng: np.random.Generator) -> tuple[Sentence, ...]:
    """Pairs of sentences that say the same of the same shape in plain words, for one scene; a pair of every tier.

    The first is in a wording of the other splits (group "seen wordings"), the second in one of HELD_OUT_WORDINGS (group
    such as "reworded motion"). Except for attributes, the noun alone would not do.
    """
    sentences = []
    for tier in TIERS:
        fitting = [e for e in expressions if e.tier == tier and e.ambiguous == (tier != "attribute")]
        for expression in _pick(fitting, rng, 1):
            for group, wordings in (("seen wordings", WORDINGS), (f"reworded {tier}", HELD_OUT_WORDINGS)):
                pattern = _pattern(expression, rng, wordings).rstrip(".")
                words = {concept: LEXICON[concept][0] for concept in _concepts(pattern)}
                sentences.append(Sentence(pattern.format_map(words), expression.target, group))
    return tuple(sentences)


def _pick(expressions: list[Expression], rng: np.random.Generator, count: int) -> list[Expression]:
    """Some of the expressions, with as many predicates as there are; each is as likely, however many nouns it has.

    A kind without a color ("the circle") is a third as likely as other nouns: small networks tell colors within
    some hundred steps, but circles from squares within some thousands.
    """
    rarity = [3.0 if expression.noun[1] and not expression.noun[0] else 1.0 for expression in expressions]
    shuffled = [expressions[i] for i in np.argsort(rng.exponential(rarity))]
    predicates = rng.permutation(sorted({expression.predicate for expression in expressions}))
    queues = [[e for e in shuffled if e.predicate == predicate] for predicate in predicates]
    run_sequentially = [e for turn in itertools.zip_longest(*queues) for e in turn if e is not None]
    return run_sequentially[:count]


def _pattern(
    expression: Expression,
    rng: np.random.Generator,
    of_predicates: Mapping[tuple[str, ...], tuple[str, ...]] = WORDINGS,
) -> str:
    """One of the expression's wordings, with its concepts in braces; a tenth of them end in a full stop."""
    wordings = [w for predicates, group in of_predicates.items() if expression.predicate in predicates for w in group]
    pattern = wordings[rng.integers(len(wordings))].replace("PREDICATE", expression.predicate)
    pattern = pattern.replace("NOUN", _noun_phrase(expression.noun))
    if expression.landmark is not None:
        pattern = pattern.replace("LANDMARK", _noun_phrase(expression.landmark))
    return pattern + ("." if rng.random() < 0.1 else "")


def _noun_phrase(noun: Noun) -> str:
    color, kind = noun
    return (f"{{{color}}} " if color else "") + f"{{{kind or 'shape'}}}"


def _concepts(pattern: str) -> list[str]:
    return re.findall(r"{(.*?)}", pattern)


def _word(concept: str, rng: np.random.Generator) -> str:
    """A word for the concept: the plain one three times out of four, else any."""
    words = LEXICON[concept]
    return words[0] if rng.random() < 0.75 else words[rng.integers(len(words))]
