"""Contact sheets: frame, frame difference, ground truth and prediction of a few examples.

Evaluation draws its best, worst and random samples with them, and training its progress for TensorBoard.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lbdt_jax.visualization.overlays import GROUND_TRUTH_COLOR, PREDICTION_COLOR, Color, frame_difference, overlay
from lbdt_jax.visualization.sheet import (
    BACKGROUND,
    GAP,
    LABEL_COLOR,
    LINE_COLOR,
    PANEL,
    TEXT_COLOR,
    panel_size,
    stack_rows,
)
from lbdt_jax.visualization.text import draw_text

_COLUMNS = ("frame", "frame difference", "ground truth", "prediction")


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample with its prediction.

    Attributes:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB, the same video a few frames before.
      mask: (h, w) bool, the ground truth; None, drawn as a blank panel, if there is none.
      prediction: (h, w) bool.
      sentence: of any length, in any script; see `text.choose_font`.
      iou: of prediction and mask, in [0, 1]; None without ground truth.
      name: of the sample, "video/frame/instance".
    """

    frame: np.ndarray
    earlier_frame: np.ndarray
    mask: np.ndarray | None
    prediction: np.ndarray
    sentence: str
    iou: float | None
    name: str


def contact_sheet(examples: Sequence[Example], title: str) -> Image.Image:
    """Draws one row per example: sentence, name and IoU above frame, frame difference, ground truth and prediction.

    Frames may differ in size; each is scaled to a panel whose longer side has 256 pixels.

    Args:
      examples: at least one.
      title: a line above all rows.

    Returns:
      An RGB image 1132 pixels wide.

    Raises:
      ValueError: there is no example, or frames and masks of an example differ in size.
    """
    if not examples:
        raise ValueError(f'the contact sheet "{title}" has no examples')
    return stack_rows([_draw_row(example) for example in examples], _COLUMNS, title)


def _draw_row(example: Example) -> Image.Image:
    """The sentence, a line with name and IoU, and four panels; as wide as the panels, without margin."""
    size = _panel_size(example)
    row = Image.new("RGB", (len(_COLUMNS) * (PANEL + GAP) - GAP, size[1] + 80), BACKGROUND)
    draw = ImageDraw.Draw(row)
    sentence = example.sentence.strip() or "(empty sentence)"
    bottom = draw_text(draw, (0, 0), sentence, 19, TEXT_COLOR, row.width, lines=2)
    draw_text(draw, (0, bottom + 4), example.name, 14, LABEL_COLOR, row.width - PANEL - GAP)
    if example.iou is not None:
        draw_text(draw, (row.width - PANEL, bottom + 4), f"IoU {example.iou:.3f}", 14, LABEL_COLOR, PANEL)
    top = bottom + 30
    for column, panel in enumerate(_panels(example, size)):
        image = Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC)
        row.paste(image, (column * (PANEL + GAP) + (PANEL - size[0]) // 2, top))
    return row.crop((0, 0, row.width, top + size[1]))


def _panel_size(example: Example) -> tuple[int, int]:
    """(width, height) of an example's panels; raises ValueError if its arrays differ in size."""
    height, width, _ = example.frame.shape
    arrays = [example.earlier_frame[..., 0], example.prediction, *([] if example.mask is None else [example.mask])]
    if any(array.shape != (height, width) for array in arrays):
        raise ValueError(f"{example.name}: earlier frame, mask and prediction must be as large as the frame")
    return panel_size(height, width)


def _panels(example: Example, size: tuple[int, int]) -> list[np.ndarray]:
    """The four images of a row, uint8 RGB, not yet of the panels' size."""
    ground_truth = np.full_like(example.frame, LINE_COLOR)
    if example.mask is not None:
        ground_truth = draw_mask(example.frame, example.mask, size, GROUND_TRUTH_COLOR)
    return [
        example.frame,
        frame_difference(example.frame, example.earlier_frame),
        ground_truth,
        draw_mask(example.frame, example.prediction, size, PREDICTION_COLOR),
    ]


def draw_mask(
    frame: np.ndarray, mask: np.ndarray, size: tuple[int, int], color: Color, filled: bool = True
) -> np.ndarray:
    """A frame with a mask over it at twice the panel's size (width, height), for smooth contours; uint8 RGB."""
    double = 2 * size[0], 2 * size[1]
    enlarged = np.asarray(Image.fromarray(frame).resize(double, Image.Resampling.BICUBIC))
    return overlay(enlarged, _resize_mask(mask, double), color, filled)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (width, height): True where at least half of a pixel is covered. Even the smallest object is kept."""
    coverage = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    return (coverage > 0) & (coverage >= min(0.5, coverage.max()))
