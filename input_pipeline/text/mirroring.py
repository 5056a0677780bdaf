"""English sentences about a mirrored picture: "left" and "right" change places.

Both words also mean other things: "the man who left", "right behind the car". Whether they do is guessed from the words
next to them, and where it is in doubt there is no mirrored sentence: a picture that is not mirrored is never wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_OPPOSITE = {"left": "right", "right": "left"}
#: ASCII letters only: otherwise "i" matches "ı" and "İ" as well, which `_OPPOSITE` does not know.
_DIRECTION = re.compile(r"(?<!\w)(?a:(left|right)(most|wards?|hand|handed|hander|side)?)(?!\w)", re.IGNORECASE)
#: Turning and the face of a clock: mirroring changes them, in words that have no simple opposite.
_CLOCK = re.compile(r"(?<!\w)((counter|anti)[\s-]?)?clockwise(?!\w)|o\s?['’]\s?clock(?!\w)", re.IGNORECASE)

# What stands before or after "left" and "right". A word may be joined by a hyphen: "left-over".
_GAP = r"[\s-]+"
_POSSESSIVE = rf"((the|an?){_GAP})?(\w+{_GAP}){{0,2}}(?!(what|who|that|it|he|she|there)['’]s)\w+['’]s"
_DETERMINER = rf"(the|its|his|her|their|my|your|our|{_POSSESSIVE})"
_NOUN_PHRASE = rf"{_GAP}{_DETERMINER}({_GAP}(far|very|extreme|upper|lower))?"
_PREPOSITION = r"(?<!\w)(on|to|towards?|from|at|in|near)"

#: Something else wherever it stands: "the right way" may be the correct one.
_NEVER_A_PLACE_AFTER = {
    "left": re.compile(r"-(overs?|behind|out|off|alone|open)(?!\w)"),
    "right": re.compile(
        rf"{_GAP}(angles?|angled|way|of{_GAP}way|time|moment|answer|choice|order|amount|size|thing|reason|place|spot|"
        rf"direction|fit|whale|side{_GAP}(up|out))(?!\w)"
    ),
}
#: A place, even after "is" and "that": "the circle that is left of the square".
_PLACE_AFTER = re.compile(rf"({_GAP}(of|side|hand|handed)|-most)(?!\w)")
#: "on the left over the fence", "to her right in the back". Without "the" only "left" is a place: "from right behind".
_PLACE_BEFORE = {
    "left": re.compile(rf"{_PREPOSITION}({_NOUN_PHRASE})?{_GAP}$|right{_GAP}(and|or){_GAP}$"),
    "right": re.compile(rf"{_PREPOSITION}{_NOUN_PHRASE}{_GAP}$|left{_GAP}(and|or|to){_GAP}$"),
}
#: "moving left in the back", "it moves left"; not "having left".
_MOTION_BEFORE = re.compile(
    r"(?<!\w)(?!(be|hav|gett|leav|(any|every|no|some)?th)ing)(\w+ing|moves?|moved|goes|go|went|travels?|walks?|runs?|ran|"
    r"drives?|rides?|turns?|turned|looks?|faces?|faced|heads?|headed|flies|fly|swims?|jumps?|rolls?|slides?|steps?|"
    rf"leans?|points?|pointed|comes?|came|drifts?|shifts?|crawls?|steers?|veers?|swings?|hops?|floats?|stays?){_GAP}"
    rf"((further|farther|far|slightly|straight|towards?){_GAP})?$"
)
#: An adjective: "the left zebra", "upper left", at the beginning or after a comma; not "the man's left".
_ADJECTIVE_BEFORE = re.compile(
    rf"(^|[^\w\s'’-]|(^|\s)['‘’])\s*$|"
    r"(?<!\w)(the|an?|its|his|her|their|my|your|our|whose|far|further|very|extreme|upper|"
    rf"lower|top|bottom|front|back|rear|middle|cent(er|re)|first|second|third|fourth|fifth|other){_GAP}$"
)
#: "left the room", "left behind", "left in the sun"; "right behind the car", "right now", "right?".
_OTHER_AFTER = {
    "left": re.compile(
        rf"{_GAP}(behind|overs?|alone|out|off|open|unattended|unfinished|for|from|by|in|at|on|after|before|with|without|"
        rf"to(?!{_GAP}right)|standing|lying|sitting|hanging|empty|the|an?|his|her|its|their|my|your|our|this|that|these|"
        r"those|it|him|them|me|us|you|when|while|as|early|home|work|there|here|today)(?!\w)"
    ),
    "right": re.compile(
        rf"{_GAP}(now|away|next|behind|besides?|before|after|above|below|beneath|under|underneath|over|in|inside|into|"
        rf"at|on|onto|there|here|where|when|while|as|across|through|along|alongside|against|near|nearby|by|between|"
        rf"beyond|around|round|past|down|up|out|outside|off|back|then|to(?!{_GAP}left)|towards?|about|opposite|from|"
        r"ahead|until|till|amid|among|within|underfoot|overhead)(?!\w)|\s*[?!]"
    ),
}
#: "all right", "just right", "which one is right".
_OTHER_BEFORE_RIGHT = re.compile(
    rf"(?<!\w)(all|just|that|not|quite|yeah|is|are|was|were|be|been|being|it|he|she|they|you|(it|he|she|that)['’]s){_GAP}$"
)
_INTERJECTION = re.compile(r"\s*[,.;:]")  # "Right, the man in red"


def mirror_sentence(sentence: str) -> str | None:
    """The sentence for the mirrored picture, with "left" and "right" in each other's place.

    Whole words only: left, right, leftmost, leftward, leftwards, lefthand(ed), leftside, also with hyphens, and the
    same of right; capital letters and everything between the words stay. "leftover", "copyright" and "upright" are
    other words.

    Args:
      sentence: any text.

    Returns:
      None if the picture should not be mirrored, because one of these words may not be a direction ("left behind",
      "right next to", "all right"), or the sentence tells a direction of rotation ("clockwise") or time ("o'clock").
    """
    if _CLOCK.search(sentence):
        return None
    # Letter by letter, since positions must stay: a few of other alphabets become several.
    lower = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in sentence)
    for match in _DIRECTION.finditer(lower):
        if match[2] is None and _is_doubtful(match[1], lower[: match.start()], lower[match.end() :]):
            return None
    return _DIRECTION.sub(_opposite, sentence)


def with_mirrored_tokens(tokens: Iterable[str]) -> list[str]:
    """The tokens of a dataset, and those of them that mirrored sentences may contain in addition, sorted."""
    tokens = set(tokens)
    return sorted(tokens | {_DIRECTION.sub(_opposite, token) for token in tokens if _DIRECTION.fullmatch(token)})


def _is_doubtful(word: str, before: str, after: str) -> bool:
    """Whether "left" or "right" may be something else than a direction, from the lower-case text around it.

    A right that is none is followed by certain words; a left that is none is a verb, which may follow any noun.
    """
    before = before[-100:]  # more than any of the patterns needs
    if _NEVER_A_PLACE_AFTER[word].match(after):
        return True
    if _PLACE_BEFORE[word].search(before) or _PLACE_AFTER.match(after):
        return False
    if word == "left":
        return not _MOTION_BEFORE.search(before) and bool(
            not _ADJECTIVE_BEFORE.search(before) or _OTHER_AFTER[word].match(after)
        )
    interjection = not before.strip() and _INTERJECTION.match(after)
    return bool(interjection or _OTHER_BEFORE_RIGHT.search(before) or _OTHER_AFTER[word].match(after))


def _opposite(match: re.Match[str]) -> str:
    word, ending = match[1], match[2] or ""
    opposite = _OPPOSITE[word.lower()]
    if word.isupper():
        opposite = opposite.upper()
    elif word[0].isupper():
        opposite = opposite.capitalize()
    return opposite + ending
