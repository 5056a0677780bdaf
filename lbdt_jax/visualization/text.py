"""Text on images, in any script that an installed font supports; other characters are counted instead of drawn."""

from __future__ import annotations

import bisect
import functools
import itertools
import unicodedata

from PIL import ImageDraw, ImageFont

#: Fonts of Linux, macOS and Windows, tried where Pillow's own font, which is for English, lacks a character.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "arial.ttf",
    "msyh.ttc",
)
_MAX_CHARACTERS = 5_000  # more than fit on any line; measuring a longer text would take long
_UNASSIGNED = "\U0010ffff"  # fonts draw it as they draw every character that they lack

Font = ImageFont.FreeTypeFont


def draw_text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int],
    width: int,
    lines: int = 1,
) -> int:
    """Draws text from its upper left corner, wrapped to a width; what doesn't fit is replaced by an ellipsis.

    Args:
      draw: of the image.
      corner: (left, top) in pixels.
      text: its white space, newlines included, becomes single spaces.
      size: of the font, in pixels.
      color: RGB, 0 to 255.
      width: in pixels.
      lines: maximum number of lines.

    Returns:
      The lower edge of the text, in pixels.
    """
    left, top = corner
    rest, font = choose_font(text, size)
    for index in range(lines):
        line = rest
        if font.getlength(rest) > width:
            ellipsis = "…" if index == lines - 1 else ""
            fitting = (
                bisect.bisect(range(len(rest)), float(width), key=lambda n: font.getlength(rest[:n] + ellipsis)) - 1
            )
            space = rest.rfind(" ", 1, fitting + 1)
            line = rest[: fitting if space < 0 else space] + ellipsis
        draw.text((left, top), line, color, font)
        top += round(1.3 * size)
        rest = rest[len(line) :].lstrip()
        if not rest:
            break
    return top


@functools.lru_cache(1024)
def choose_font(text: str, size: int) -> tuple[str, Font]:
    """The text on one line, and a font of that size, in pixels, that has all of its characters.

    The font is Pillow's own, or the first installed one of SYSTEM_FONTS that has them. If no font has, accents are
    removed, and remaining characters that can't be drawn are counted: "(2 characters without a font)".
    """
    text = " ".join(text.split())
    text = text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"
    fonts = []
    for name in ("", *SYSTEM_FONTS):
        font = _load(name, size)
        if font and all(_has(font, character) for character in {*text, "…"}):
            return text, font
        fonts += [font] if font else []
    font = max(fonts, key=lambda font: sum(_has(font, character) for character in text))
    parts = []
    without_accents = "".join(_without_accents(font, character) for character in text)
    for supported, characters in itertools.groupby(without_accents, lambda character: _has(font, character)):
        part = "".join(characters)
        plural = "" if len(part) == 1 else "s"
        parts.append(part if supported else f"({len(part)} character{plural} without a font)")
    return "".join(parts), font


def _without_accents(font: Font, character: str) -> str:
    """A character that the font lacks, without its accents if the font has that."""
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return base if not _has(font, character) and base and all(_has(font, c) for c in base) else character


@functools.cache
def _load(name: str, size: int) -> Font | None:
    """An installed font, or Pillow's own for an empty name; None if it is not installed."""
    try:
        font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None
    return font if isinstance(font, Font) else None


@functools.cache
def _has(font: Font, character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):  # controls, and halves of surrogates, which getmask refuses
        return False
    image, missing = (font.getmask(c) for c in (character, _UNASSIGNED))
    return (image.size, bytes(image)) != (missing.size, bytes(missing))
