"""Pictures of an answered video: frames with masks and sentences on them, and a sheet of frames from all over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lbdt_jax.visualization.render import INK, PALETTE, PAPER, QUIET, Color, overlay
from lbdt_jax.visualization.text import legible, write

_WIDTH = 360  # pixels of a frame on the sheet
_GAP, _MARGIN = 12, 36  # pixels between frames, and around all
_COLUMNS = 3  # frames in a row


def color_of(sentence: int) -> Color:
    """The color of a sentence, counted from 0; after the palette's last it begins again."""
    return PALETTE[sentence % len(PALETTE)]


def draw_segmentation(frame: np.ndarray, masks: np.ndarray, sentences: Sequence[str]) -> np.ndarray:
    """Lays the masks of all sentences over a frame, and the sentences, each in its color, over its lower edge.

    Args:
      frame: (h, w, 3) uint8 RGB.
      masks: (S, h, w) bool; where they overlap, later ones lie above.
      sentences: S of them. Those that don't fit into the lower third of the frame are counted only; a frame of less
        than 160 pixels in either direction has room for none.

    Returns:
      (h, w, 3) uint8 RGB.
    """
    for number, mask in enumerate(masks):
        frame = overlay(frame, mask, color_of(number))
    picture = Image.fromarray(frame)
    if min(picture.size) < 160:
        return frame
    size = max(10, round(min(picture.size) / 24))
    line, margin = round(1.5 * size), size // 2
    lines = max(1, picture.height // 3 // line)
    shown = len(sentences) if len(sentences) <= lines else lines - 1
    labels = [*sentences[:shown]]
    if shown < len(sentences):
        labels.append(f"and {len(sentences) - shown} more")

    # Darkened, so that the text is legible on any frame.
    longest = max(font.getlength(text) for text, font in (legible(label, size) for label in labels))
    box = min(picture.width, round(longest) + 3 * margin + size), len(labels) * line + margin
    top = picture.height - box[1]
    corner = 0, top
    dark = picture.crop((*corner, box[0], picture.height)).point(lambda value: round(0.3 * value))
    picture.paste(dark, corner)
    draw = ImageDraw.Draw(picture)
    for number, label in enumerate(labels):
        upper = top + margin // 2 + number * line
        if number < shown:
            draw.rectangle(
                (margin, upper + size // 4, margin + size - 1, upper + size // 4 + size - 1), color_of(number)
            )
        write(draw, (2 * margin + size, upper), label, size, PAPER, picture.width - 3 * margin - size)
    return np.asarray(picture)


class FrameSampler:
    """Keeps frames from all over a video of unknown length: as many as a sheet holds.

    Args:
      most: frames on the sheet, an even number.
      pixel_aspect: width of a frame's pixel by its height.
    """

    def __init__(self, most: int, pixel_aspect: float = 1.0) -> None:
        self._most, self._pixel_aspect, self._count, self._step = most, float(pixel_aspect), 0, 1
        self._kept: list[tuple[str, Image.Image]] = []

    def add(self, picture: np.ndarray, label: str) -> None:
        """Considers a frame (h, w, 3) uint8 RGB."""
        if self._count % self._step == 0:
            small = Image.fromarray(picture)
            height = max(1, round(_WIDTH * small.height / (small.width * self._pixel_aspect)))
            small = small.resize((_WIDTH, height), Image.Resampling.BICUBIC)
            self._kept.append((label, small))
            if len(self._kept) > self._most:  # full: every second one goes, and every second one comes from now on
                self._kept, self._step = self._kept[::2], 2 * self._step
        self._count += 1

    def sheet(self, sentences: Sequence[str]) -> Image.Image:
        """The frames in rows, below the sentences in their colors; an RGB image 1176 pixels wide."""
        width = _COLUMNS * (_WIDTH + _GAP) - _GAP
        shown = sentences[:12]
        top = 2 * _MARGIN + 26 * len(shown) + (26 if len(shown) < len(sentences) else 0)
        height = self._kept[0][1].height + 34
        rows = -(-len(self._kept) // _COLUMNS)
        sheet = Image.new("RGB", (width + 2 * _MARGIN, top + rows * height + _MARGIN), PAPER)
        draw = ImageDraw.Draw(sheet)
        for number, sentence in enumerate(shown):
            upper = _MARGIN + 26 * number
            draw.rectangle((_MARGIN, upper + 3, _MARGIN + 15, upper + 18), color_of(number))
            write(draw, (_MARGIN + 26, upper), sentence, 17, INK, width - 26)
        if len(shown) < len(sentences):
            upper = _MARGIN + 26 * len(shown)
            write(draw, (_MARGIN + 26, upper), f"and {len(sentences) - len(shown)} more", 17, QUIET, width)
        for place, (label, small) in enumerate(self._kept):
            left, upper = _MARGIN + place % _COLUMNS * (_WIDTH + _GAP), top + place // _COLUMNS * height
            sheet.paste(small, (left, upper))
            write(draw, (left, upper + small.height + 4), label, 14, QUIET, _WIDTH)
        return sheet
