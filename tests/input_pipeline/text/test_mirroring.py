"""Sentences about mirrored pictures: which words change, which don't, and where the picture stays as it is."""

from __future__ import annotations

import itertools
import re

import pytest

from input_pipeline.moving_shapes.wording import HELD_OUT_WORDINGS, LEXICON, WORDINGS
from input_pipeline.text.mirroring import mirror_sentence, with_mirrored_tokens


@pytest.mark.parametrize(
    ("sentence", "mirrored"),
    [
        ("the man on the left", "the man on the right"),
        ("left", "right"),
        ("Left zebra", "Right zebra"),
        ("THE LEFT ZEBRA", "THE RIGHT ZEBRA"),
        ("the leftmost and the rightmost dog", "the rightmost and the leftmost dog"),
        ("a left-most, right-hand (left) \"right\" 'left'", "a right-most, left-hand (right) \"left\" 'right'"),
        ("leftward leftwards rightward Rightwards", "rightward rightwards leftward Leftwards"),
        ("lefthand, righthand side; left-handed", "righthand, lefthand side; right-handed"),
        ("moving from left to right, then right to left", "moving from right to left, then left to right"),
        ("the left one of two", "the right one of two"),
        ("upper left corner", "upper right corner"),
        ("the man moving left in the back.", "the man moving right in the back."),
        ("a car that turns left at the corner", "a car that turns right at the corner"),
        ("the circle that is left of the box", "the circle that is right of the box"),
        ("dog just right of the tree", "dog just left of the tree"),
        ("the man on the left behind the car", "the man on the right behind the car"),
        ("the one to the right next to the tree", "the one to the left next to the tree"),
        ("man on left in red", "man on right in red"),
        ("her left arm, on the woman's left", "her right arm, on the woman's right"),
        ("the left/right wing", "the right/left wing"),
        ("walking left and right", "walking right and left"),
        ("THE İSTANBUL BUS ON THE LEFT", "THE İSTANBUL BUS ON THE RIGHT"),
        ("the left\nand\tright  ", "the right\nand\tleft  "),
    ],
)
def test_directions_change_places(sentence: str, mirrored: str) -> None:
    assert mirror_sentence(sentence) == mirrored
    assert mirror_sentence(mirrored) in (sentence, None)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "leftover copyright bright upright cleft outright rights righteous lefty frightened",
        "eating leftovers, a bright copyright sign",
        "éleft left_2 right2 aright",
        "手 le ft 左",
        "the İstanbul bus",
        "the rıght dog, the RİGHT cat, the leftſide",
    ],
)
def test_other_words_stay(sentence: str) -> None:
    assert mirror_sentence(sentence) == sentence


@pytest.mark.parametrize(
    "sentence",
    [
        "the man who left",
        "the man left",
        "The Man Who LEFT the room",
        "a dog left alone",
        "bags left behind on the left",
        "the left over food",
        "at the left-over food",
        "the only cookie that is left",
        "having left the house",
        "a boy left in the car on the right",
        "the person left standing",
        "he came in and left",
        "the man right next to the car",
        "the man on the left, right behind the car",
        "a cat walking right behind the dog",
        "right now moving left",
        "Right, the man in red",
        "the man in red, right?",
        "eating from what's left",
        "all right",
        "which one is right",
        "doing it the right way",
        "a car at a right angle, right-angled",
        "a truck giving right of way",
        "standing right in front of the door",
        "RIGHT NEXT TO the lamp",
        "the İstanbul bus RIGHT BEHIND the car",
        "turning clockwise",
        "spinning counter-clockwise to the left",
        "the hand at 3 o'clock on the right",
    ],
)
def test_in_doubt_nothing_is_mirrored(sentence: str) -> None:
    assert mirror_sentence(sentence) is None


def test_every_wording_of_moving_shapes_is_mirrored() -> None:
    templates = {
        template.replace("PREDICATE", predicate).replace("NOUN", "{red} {circle}").replace("LANDMARK", "{box}")
        for predicates, group in itertools.chain(WORDINGS.items(), HELD_OUT_WORDINGS.items())
        for predicate, template in itertools.product(predicates, group)
    }
    lexicon = {**LEXICON, "red": ("red",), "circle": ("circle",), "box": ("box",)}
    sentences = {
        template.format_map(dict(zip(concepts, words, strict=True)))
        for template in templates
        for concepts in [sorted(set(re.findall("{(.*?)}", template)))]
        for words in itertools.product(*(lexicon[concept] for concept in concepts))
    }
    assert sum("left" in sentence for sentence in sentences) > 50
    for sentence in sentences:
        mirrored = mirror_sentence(sentence)
        assert mirrored is not None, sentence
        assert (mirrored != sentence) == ("left" in sentence or "right" in sentence)
        assert mirror_sentence(mirrored) == sentence


def test_the_vocabulary_has_both_words_of_each_pair() -> None:
    tokens = ["a", "left", "rightmost", "leftover", "-", "", "bright", "rıght"]
    assert with_mirrored_tokens(tokens) == [
        "",
        "-",
        "a",
        "bright",
        "left",
        "leftmost",
        "leftover",
        "right",
        "rightmost",
        "rıght",
    ]
