"""What all sheets share: colors, distances in pixels, and writing them to files."""

from __future__ import annotations

import os
import pathlib

from PIL import Image

from lbdt_jax.cli import atomic_write
from lbdt_jax.visualization.overlays import Color

BACKGROUND: Color = (255, 255, 255)
TEXT_COLOR: Color = (28, 30, 34)
LABEL_COLOR: Color = (128, 132, 140)
LINE_COLOR: Color = (226, 228, 232)

PANEL = 256  # the longer side of a panel
GAP = 12  # between panels
MARGIN = 36  # around a sheet


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
