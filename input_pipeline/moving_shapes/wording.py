"""The sentences of Moving Shapes: referring expressions in many wordings and with synonyms.

A wording is a template, such as "the NOUN {moving} {PREDICATE}". Filled in, it has concepts in braces, "the {red}
{circle} {moving} {left}", each of which is replaced by one of its words.

Some words are held out for the split "unseen_words": a model with pretrained word vectors may still understand them.
Some wordings are held out for the split "unseen_wordings": a model with a pretrained language model may.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline.moving_shapes.expressions import TIERS, Expression, Noun
from input_pipeline.types import Sentence

#: Predicates -> their wordings.
Wordings = Mapping[tuple[str, ...], tuple[str, ...]]

# Concept -> its words in all splits but "unseen_words" and "unseen_wordings"; the first is the most common.
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

WORD_PAIRS = 4  # in a scene of "unseen_words", at most

# Word that only "unseen_words" uses -> its concept.
HELD_OUT_WORDS = {
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

# Predicates -> their wordings, in which PREDICATE stands for one of them, NOUN and LANDMARK for noun phrases.
WORDINGS: Wordings = {
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

# The wordings that only "unseen_wordings" uses. Their concepts use the most common words; the other words, such as
# "which" and "find", are new as well.
HELD_OUT_WORDINGS: Wordings = {
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


def make_sentences(expressions: Sequence[Expression], rng: np.random.Generator, split: str) -> tuple[Sentence, ...]:
    """Returns sentences for one scene; their group is the tier.

    Two of every tier, but up to four attributes in training. If the expressions allow it, half of the sentences are
    unambiguous by their nouns alone: from these, and from the attributes, a model learns the nouns.
    """
    sentences = []
    for tier in TIERS:
        per_tier = 4 if (split, tier) == ("train", "attribute") else 2
        in_tier = [e for e in expressions if e.tier == tier]
        unambiguous = _pick([e for e in in_tier if not e.ambiguous], rng, per_tier)
        ambiguous = _pick([e for e in in_tier if e.ambiguous], rng, per_tier - len(unambiguous) // 2)
        for expression in (ambiguous + unambiguous)[:per_tier]:
            template = _fill_wording(expression, rng)
            words = {concept: _choose_word(concept, rng) for concept in _concepts(template)}
            sentences.append(Sentence(template.format_map(words), expression.target, tier))
    return tuple(sentences)


def make_word_pairs(expressions: Sequence[Expression], rng: np.random.Generator) -> tuple[Sentence, ...]:
    """Returns pairs of sentences about the same shape that differ in one word, for one scene.

    The first sentence uses words of the other splits (group "seen words"); in the second, one of them is replaced by a
    word of HELD_OUT_WORDS (group such as "crimson for red").
    """
    sentences: list[Sentence] = []
    for word in rng.permutation(list(HELD_OUT_WORDS)):
        concept = HELD_OUT_WORDS[word]
        candidates = []
        for expression in expressions:
            template = _fill_wording(expression, rng)
            if _concepts(template).count(concept) == 1:
                candidates.append((expression.target, template))
        if not candidates:
            continue
        target, template = candidates[rng.integers(len(candidates))]
        words = {concept: LEXICON[concept][0] for concept in _concepts(template)}
        sentences.append(Sentence(template.format_map(words), target, "seen words"))
        text = template.format_map(words | {concept: str(word)})
        sentences.append(Sentence(text, target, f"{word} for {LEXICON[concept][0]}"))
        if len(sentences) == 2 * WORD_PAIRS:
            break
    return tuple(sentences)


def make_wording_pairs(expressions: Sequence[Expression], rng: np.random.Generator) -> tuple[Sentence, ...]:
    """Returns pairs of sentences with the same meaning in common words, for one scene: a pair of every tier.

    The first sentence has a wording of the other splits (group "seen wordings"), the second one of HELD_OUT_WORDINGS
    (group such as "reworded motion"). Except for attributes, the noun alone is ambiguous.
    """
    sentences = []
    for tier in TIERS:
        candidates = [e for e in expressions if e.tier == tier and e.ambiguous == (tier != "attribute")]
        for expression in _pick(candidates, rng, 1):
            for group, wordings in (("seen wordings", WORDINGS), (f"reworded {tier}", HELD_OUT_WORDINGS)):
                template = _fill_wording(expression, rng, wordings).rstrip(".")
                words = {concept: LEXICON[concept][0] for concept in _concepts(template)}
                sentences.append(Sentence(template.format_map(words), expression.target, group))
    return tuple(sentences)


def _pick(expressions: list[Expression], rng: np.random.Generator, count: int) -> list[Expression]:
    """Picks random expressions with as many different predicates as possible.

    All predicates are equally likely, however many nouns they occur with. A kind without a color ("the circle") is a
    third as likely as other nouns: small networks learn colors within some hundred steps, but to tell circles from
    squares only within some thousands.
    """
    rarity = [3.0 if expression.noun[1] and not expression.noun[0] else 1.0 for expression in expressions]
    shuffled = [expressions[i] for i in np.argsort(rng.exponential(rarity))]
    predicates = rng.permutation(sorted({expression.predicate for expression in expressions}))
    queues = [[e for e in shuffled if e.predicate == predicate] for predicate in predicates]
    interleaved = [e for group in itertools.zip_longest(*queues) for e in group if e is not None]
    return interleaved[:count]


def _fill_wording(expression: Expression, rng: np.random.Generator, wordings: Wordings = WORDINGS) -> str:
    """A random wording of an expression, with its concepts in braces; one in ten ends with a full stop."""
    options = [w for predicates, group in wordings.items() if expression.predicate in predicates for w in group]
    template = options[rng.integers(len(options))].replace("PREDICATE", expression.predicate)
    template = template.replace("NOUN", _noun_phrase(expression.noun))
    if expression.landmark is not None:
        template = template.replace("LANDMARK", _noun_phrase(expression.landmark))
    return template + ("." if rng.random() < 0.1 else "")


def _noun_phrase(noun: Noun) -> str:
    color, kind = noun
    return (f"{{{color}}} " if color else "") + f"{{{kind or 'shape'}}}"


def _concepts(template: str) -> list[str]:
    return re.findall(r"{(.*?)}", template)


def _choose_word(concept: str, rng: np.random.Generator) -> str:
    """A word for a concept: the most common one in three out of four cases, else any."""
    words = LEXICON[concept]
    return words[0] if rng.random() < 0.75 else words[rng.integers(len(words))]
