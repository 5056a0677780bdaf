"""Text on pictures, in any letters that an installed font has; others are counted, not drawn as boxes."""

from __future__ import annotations

import bisect
import functools
import itertools
import unicodedata

from PIL import ImageDraw, ImageFont

#: Fonts of Linux, macOS and Windows, looked for where Pillow's own, which has English letters only, lacks one.
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
_NO_CHARACTER = "\U0010ffff"  # what fonts draw for it, they draw for all that they lack

Font = ImageFont.FreeTypeFont


@functools.lru_cache(1024)
def legible(text: str, size: int) -> tuple[str, Font]:
    """A text on one line and a font of that size, in pixels, that has all of its characters.

    The font is Pillow's own, or the first of SYSTEM_FONTS that is installed and has them. Where none has, accents are
    left out, and what then still can't be drawn is counted: "(2 characters without a font)".
    """
    text = " ".join(text.split())
    fonts = []
    for name in ("", *SYSTEM_FONTS):
        font = _load(name, size)
        if font and all(_has(font, character) for character in {*text, "…"}):
            return text, font
        fonts += [font] if font else []
    font = max(fonts, key=lambda font: sum(_has(font, character) for character in text))
    parts = []
    for drawn, run in itertools.groupby(
        "".join(_plain(font, character) for character in text), lambda c: _has(font, c)
    ):
        part = "".join(run)
        s = "" if len(part) == 1 else "s"
        parts.append(part if drawn else f"({len(part)} character{s} without a font)")
    return "".join(parts), font


def _plain(font: Font, character: str) -> str:
    """A character the font lacks, without its accents if it has it so."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return bare if not _has(font, character) and bare and all(_has(font, c) for c in bare) else character


@functools.cache
def _load(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:  # not installed
        return None


@functools.cache
def _has(font: Font, character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):  # no characters; half a surrogate can't even be asked for
        return False
    found, lacking = (font.getmask(each) for each in (character, _NO_CHARACTER))
    return (found.size, bytes(found)) != (lacking.size, bytes(lacking))


def write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int],
    width: int,
    lines: int = 1,
) -> int:
    """Writes from the upper left corner, wrapped to a width and cut with an ellipsis; returns the lower edge."""
    left, top = corner
    rest, font = legible(text, size)
    for line in range(lines):
        head = rest
        if font.getlength(rest) > width:
            mark = "…" if line == lines - 1 else ""
            fitting = bisect.bisect(range(len(rest)), width, key=lambda n: font.getlength(rest[:n] + mark)) - 1
            blank = rest.rfind(" ", 1, fitting + 1)
            head = rest[: fitting if blank < 0 else blank] + mark
        draw.text((left, top), head, color, font)
        top += round(1.3 * size)
        rest = rest[len(head) :].lstrip()
        if not rest:
            break
    return top
