"""What all sheets share: colors, distances in pixels, rows under headings, and writing them to files."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from PIL import Image, ImageDraw

from lbdt_jax.cli import atomic_write
from lbdt_jax.visualization.overlays import Color
from lbdt_jax.visualization.text import draw_text

BACKGROUND: Color = (255, 255, 255)
TEXT_COLOR: Color = (28, 30, 34)
LABEL_COLOR: Color = (128, 132, 140)
LINE_COLOR: Color = (226, 228, 232)

PANEL = 256  # the longer side of a panel
GAP = 12  # between panels
MARGIN = 36  # around a sheet


def stack_rows(rows: Sequence[Image.Image], headings: Sequence[str], title: str) -> Image.Image:
    """Puts rows of panels below each other, under a title and the headings of their columns.

    Args:
      rows: at least one, each as wide as its panels and the gaps between them.
      headings: one for each column.
      title: a line above all rows.
    """
    width, header = rows[0].width + 2 * MARGIN, MARGIN + 70
    sheet = Image.new("RGB", (width, header + sum(row.height + MARGIN for row in rows)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, (MARGIN, MARGIN), title, 26, TEXT_COLOR, rows[0].width)
    for column, heading in enumerate(headings):
        draw_text(draw, (MARGIN + column * (PANEL + GAP), header - 26), heading, 14, LABEL_COLOR, PANEL)
    top = header
    for row in rows:
        draw.line((MARGIN, top, width - MARGIN, top), LINE_COLOR)
        sheet.paste(row, (MARGIN, top + MARGIN // 2))
        top += row.height + MARGIN
    return sheet


def panel_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) of the panel of an image."""
    scale = PANEL / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes an image atomically: an existing file of that name stays until the new one is complete.

    Args:
      image: any.
      path: its suffix decides the format (".png", ".jpg"); missing folders are created.

    Raises:
      ValueError: Pillow has no format for that suffix.
    """
    # The temporary file has no suffix, so Pillow has to be given the format.
    image_format = Image.registered_extensions().get(pathlib.Path(path).suffix.lower())
    with atomic_write(pathlib.Path(path)) as temporary:
        image.save(temporary, image_format)
