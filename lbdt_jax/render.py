"""Pictures for people: masks laid over frames, the frame difference, and contact sheets of examples.

Evaluation draws its best, worst and random samples with `contact_sheet`, training sends the same sheets to
TensorBoard, and prediction lays masks over a user's video with `overlay`. NumPy and Pillow only.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]

#: One colour per sentence, told apart under every common colour blindness: Okabe and Ito, "Color Universal Design"
#: (2008), without its black.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
)
PREDICTION_COLOR, GROUND_TRUTH_COLOR = PALETTE[:2]

# Of ImageNet's channels, by which the model divides its frames; the means cancel in a difference.
_CHANNEL_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)

_COLUMNS = ("frame", "frame difference", "ground truth", "prediction")
_PANEL, _GAP, _MARGIN = 256, 12, 36  # pixels: a panel's longer side, between panels, around the sheet
_PAPER, _INK, _QUIET, _RULE = (255, 255, 255), (28, 30, 34), (128, 132, 140), (226, 228, 232)


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample with its prediction, as a contact sheet shows it.

    Attributes:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB, the same video a few frames before.
      mask: (h, w) bool, the ground truth.
      prediction: (h, w) bool.
      sentence: of any length; letters beyond English, which Pillow's own font lacks, come out as boxes.
      iou: of prediction and mask, in [0, 1].
      name: of the sample, "video/frame/instance".
    """

    frame: np.ndarray
    earlier_frame: np.ndarray
    mask: np.ndarray
    prediction: np.ndarray
    sentence: str
    iou: float
    name: str


def overlay(frame: np.ndarray, mask: np.ndarray, color: Color) -> np.ndarray:
    """Lays a mask over a frame: a soft fill, its contour in full colour, and a dark line around that.

    The contour lies inside the mask and is as wide as 1/200 of the frame's longer side (at least one pixel); the dark
    line lies outside, is as wide, and keeps the contour visible on an object of its own colour. No contour runs along
    the frame's border, where the object goes on out of sight.

    Args:
      frame: (h, w, 3) uint8 RGB.
      mask: (h, w) bool.
      color: RGB, 0 to 255.

    Returns:
      (h, w, 3) uint8 RGB: a new array, equal to the frame beyond mask and dark line.

    Raises:
      ValueError: mask and frame differ in size.
    """
    if frame.shape != (*mask.shape, 3):
        raise ValueError(f"a mask of shape {mask.shape} does not fit a frame of shape {frame.shape}")
    width = max(1, round(max(mask.shape) / 200))
    # Blurred with deviation w, a straight edge reaches .84 of its height w pixels inside and .16 w pixels outside.
    edge = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(width))) / 255
    painted = frame.astype(np.float32)
    for region, tint, opacity in (
        (mask, color, 0.4),
        (mask & (edge < 0.84), color, 1.0),
        (~mask & (edge > 0.16), (0, 0, 0), 0.55),
    ):
        painted[region] += opacity * (np.array(tint, np.float32) - painted[region])
    return painted.round().astype(np.uint8)


def frame_difference(frame: np.ndarray, earlier_frame: np.ndarray) -> np.ndarray:
    """What the temporal stream sees: abs(normalised frame - normalised earlier frame), scaled for viewing.

    Its 99.5th percentile becomes white, as long as that is at least one deviation: still pictures stay dark.

    Args:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB.

    Returns:
      (h, w, 3) uint8.
    """
    difference = np.abs(frame.astype(np.float32) - earlier_frame) / 255 / _CHANNEL_DEVIATION
    return (255 * np.clip(difference / max(1.0, np.percentile(difference, 99.5)), 0, 1)).round().astype(np.uint8)


def contact_sheet(examples: Sequence[Example], title: str) -> Image.Image:
    """One row per example: sentence, sample and IoU above frame, frame difference, ground truth and prediction.

    Frames may differ in size; each is scaled to a panel whose longer side has 256 pixels.

    Args:
      examples: at least one.
      title: a line above all rows.

    Returns:
      An RGB image 1132 pixels wide.

    Raises:
      ValueError: there is no example, or the pictures of an example differ in size.
    """
    if not examples:
        raise ValueError(f'the contact sheet "{title}" has no examples')
    rows = [_row(example) for example in examples]
    width, header = rows[0].width + 2 * _MARGIN, _MARGIN + 70
    sheet = Image.new("RGB", (width, header + sum(row.height + _MARGIN for row in rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_MARGIN, _MARGIN), title, 26, _INK, rows[0].width)
    for column, heading in enumerate(_COLUMNS):
        _write(draw, (_MARGIN + column * (_PANEL + _GAP), header - 26), heading, 14, _QUIET, _PANEL)
    top = header
    for row in rows:
        draw.line((_MARGIN, top, width - _MARGIN, top), _RULE)
        sheet.paste(row, (_MARGIN, top + _MARGIN // 2))
        top += row.height + _MARGIN
    return sheet


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a picture whole or not at all: an earlier file of that name stays until the new one is complete.

    Args:
      image: any.
      path: its ending decides the format (".png", ".jpg"); missing folders are made.

    Raises:
      ValueError: Pillow knows no format of that ending.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        image.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _row(example: Example) -> Image.Image:
    """The sentence, one line of sample and IoU, and four panels; as wide as the panels, without margin."""
    width = len(_COLUMNS) * (_PANEL + _GAP) - _GAP
    height, length, _ = example.frame.shape
    if not example.earlier_frame.shape[:2] == example.mask.shape == example.prediction.shape == (height, length):
        raise ValueError(f"{example.name}: earlier frame, mask and prediction must be as large as the frame")
    scale = _PANEL / max(height, length)
    size = max(1, round(length * scale)), max(1, round(height * scale))
    double = 2 * size[0], 2 * size[1]  # masks are drawn at twice the panel's size, so that contours come out smooth
    frame = np.asarray(Image.fromarray(example.frame).resize(double, Image.Resampling.BICUBIC))
    panels = [
        example.frame,
        frame_difference(example.frame, example.earlier_frame),
        overlay(frame, _resize_mask(example.mask, double), GROUND_TRUTH_COLOR),
        overlay(frame, _resize_mask(example.prediction, double), PREDICTION_COLOR),
    ]
    row = Image.new("RGB", (width, size[1] + 80), _PAPER)
    draw = ImageDraw.Draw(row)
    bottom = _write(draw, (0, 0), example.sentence.strip() or "(empty sentence)", 19, _INK, width, lines=2)
    _write(draw, (0, bottom + 4), example.name, 14, _QUIET, width - _PANEL - _GAP)
    _write(draw, (width - _PANEL, bottom + 4), f"IoU {example.iou:.3f}", 14, _QUIET, _PANEL)
    top = bottom + 30
    for column, panel in enumerate(panels):
        picture = Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC)
        row.paste(picture, (column * (_PANEL + _GAP) + (_PANEL - size[0]) // 2, top))
    return row.crop((0, 0, width, top + size[1]))


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (width, height) where at least half of a pixel is covered; no object is too small to be kept."""
    coverage = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    return (coverage > 0) & (coverage >= min(0.5, coverage.max()))


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, size: int, color: Color, width: int, lines: int = 1
) -> int:
    """Writes from the upper left corner, wrapped to a width and cut with an ellipsis; returns the lower edge."""
    font = ImageFont.load_default(size)
    left, top = corner
    rest = " ".join(text.split())
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
