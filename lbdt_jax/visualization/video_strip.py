"""Frames of a segmented video: masks and sentences drawn over each, and a sheet of evenly spaced frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lbdt_jax.visualization.overlays import color_of, overlay
from lbdt_jax.visualization.sheet import BACKGROUND, GAP, LABEL_COLOR, MARGIN, TEXT_COLOR
from lbdt_jax.visualization.text import choose_font, draw_text

_FRAME_WIDTH, _MAX_FRAME_HEIGHT = 360, 1080  # pixels of a frame on the sheet; only extreme shapes are less wide
_COLUMNS = 3  # frames in a row of the sheet
_MAX_SENTENCES, _LINE_HEIGHT = 12, 26  # of the sheet's legend


def draw_segmentation(frame: np.ndarray, masks: np.ndarray, sentences: Sequence[str]) -> np.ndarray:
    """Draws the masks of all sentences over a frame, and a legend of the sentences over its lower edge.

    Args:
      frame: (h, w, 3) uint8 RGB.
      masks: (S, h, w) bool; later masks are drawn over earlier ones.
      sentences: S of them. Those that don't fit into the lower third of the frame are only counted; a frame of less
        than 160 pixels in either direction has no legend.

    Returns:
      (h, w, 3) uint8 RGB.
    """
    for index, mask in enumerate(masks):
        frame = overlay(frame, mask, color_of(index))
    image = Image.fromarray(frame)
    if min(image.size) < 160:
        return frame
    _draw_legend(image, sentences)
    return np.asarray(image)


def _draw_legend(image: Image.Image, sentences: Sequence[str]) -> None:
    """Writes the sentences, each next to a square of its color, into the lower left corner."""
    size = max(10, round(min(image.size) / 24))
    line_height, padding = round(1.5 * size), size // 2
    max_lines = max(1, image.height // 3 // line_height)
    shown = len(sentences) if len(sentences) <= max_lines else max_lines - 1
    labels = [*sentences[:shown]]
    if shown < len(sentences):
        labels.append(f"and {len(sentences) - shown} more")

    # Darkened, so that the text is legible on any frame.
    longest = max(font.getlength(text) for text, font in (choose_font(label, size) for label in labels))
    width = min(image.width, round(longest) + 3 * padding + size)
    top = image.height - len(labels) * line_height - padding
    image.paste(image.crop((0, top, width, image.height)).point(lambda value: round(0.3 * value)), (0, top))
    draw = ImageDraw.Draw(image)
    for index, label in enumerate(labels):
        line_top = top + padding // 2 + index * line_height
        if index < shown:
            square_top = line_top + size // 4
            draw.rectangle((padding, square_top, padding + size - 1, square_top + size - 1), color_of(index))
        left = 2 * padding + size
        draw_text(draw, (left, line_top), label, size, BACKGROUND, image.width - 3 * padding - size)


class FrameSampler:
    """Keeps evenly spaced frames of a video of unknown length, and draws them on a sheet.

    Args:
      max_frames: on the sheet, an even number.
      pixel_aspect: width of a frame's pixel divided by its height.
    """

    def __init__(self, max_frames: int, pixel_aspect: float = 1.0) -> None:
        self._max_frames, self._pixel_aspect, self._count, self._step = max_frames, float(pixel_aspect), 0, 1
        self._frames: list[tuple[str, Image.Image]] = []

    def add(self, frame: np.ndarray, label: str) -> None:
        """Takes the next frame, (h, w, 3) uint8 RGB, and keeps it if it is on the current grid."""
        if self._count % self._step == 0:
            image = Image.fromarray(frame)
            aspect = image.width * self._pixel_aspect / image.height
            width = max(1, min(_FRAME_WIDTH, round(_MAX_FRAME_HEIGHT * aspect)))
            height = max(1, min(_MAX_FRAME_HEIGHT, round(_FRAME_WIDTH / aspect)))
            self._frames.append((label, image.resize((width, height), Image.Resampling.BICUBIC)))
            if len(self._frames) > self._max_frames:  # drop every second frame, and double the step from here on
                self._frames, self._step = self._frames[::2], 2 * self._step
        self._count += 1

    def sheet(self, sentences: Sequence[str]) -> Image.Image:
        """Draws the frames in rows, below the sentences in their colors: an RGB image 1176 pixels wide."""
        width = _COLUMNS * (_FRAME_WIDTH + GAP) - GAP
        shown = sentences[:_MAX_SENTENCES]
        legend_lines = len(shown) + (len(shown) < len(sentences))
        top = 2 * MARGIN + _LINE_HEIGHT * legend_lines
        row_height = self._frames[0][1].height + 34
        rows = -(-len(self._frames) // _COLUMNS)
        sheet = Image.new("RGB", (width + 2 * MARGIN, top + rows * row_height + MARGIN), BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        for index, sentence in enumerate(shown):
            line_top = MARGIN + _LINE_HEIGHT * index
            draw.rectangle((MARGIN, line_top + 3, MARGIN + 15, line_top + 18), color_of(index))
            draw_text(draw, (MARGIN + 26, line_top), sentence, 17, TEXT_COLOR, width - 26)
        if len(shown) < len(sentences):
            line_top = MARGIN + _LINE_HEIGHT * len(shown)
            draw_text(draw, (MARGIN + 26, line_top), f"and {len(sentences) - len(shown)} more", 17, LABEL_COLOR, width)
        for index, (label, image) in enumerate(self._frames):
            row, column = divmod(index, _COLUMNS)
            left, frame_top = MARGIN + column * (_FRAME_WIDTH + GAP), top + row * row_height
            sheet.paste(image, (left, frame_top))
            draw_text(draw, (left, frame_top + image.height + 4), label, 14, LABEL_COLOR, _FRAME_WIDTH)
        return sheet
