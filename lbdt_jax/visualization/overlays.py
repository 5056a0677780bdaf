"""Masks over frames in distinguishable colors, and the frame difference that the temporal stream gets."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

Color = tuple[int, int, int]

#: One color per sentence, distinguishable under every common color blindness: Okabe and Ito, "Color Universal Design"
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

# Standard deviations of ImageNet's channels, by which the model divides its frames; the means cancel in a difference.
_CHANNEL_STD = np.array((0.229, 0.224, 0.225), np.float32)
_FILL_OPACITY, _CONTOUR_OPACITY, _OUTLINE_OPACITY = 102, 255, 140  # of 255


def color_of(sentence: int) -> Color:
    """The color of a sentence by its index, from 0; the palette is cycled."""
    return PALETTE[sentence % len(PALETTE)]


def overlay(frame: np.ndarray, mask: np.ndarray, color: Color, filled: bool = True) -> np.ndarray:
    """Draws a mask over a frame: a translucent fill, an opaque contour and a dark outline around it.

    The contour lies inside the mask, 1/200 of the frame's longer side wide (at least one pixel). The dark outline lies
    outside, is as wide, and keeps the contour visible on an object of its own color. There is no contour along the
    frame's border, where the object continues out of view.

    Args:
      frame: (h, w, 3) uint8 RGB.
      mask: (h, w) bool.
      color: RGB, 0 to 255.
      filled: False for the contour and its outline alone.

    Returns:
      (h, w, 3) uint8 RGB: a new array, equal to the frame outside mask and outline.

    Raises:
      ValueError: mask and frame differ in size.
    """
    if frame.shape != (*mask.shape, 3):
        raise ValueError(f"a mask of shape {mask.shape} does not fit a frame of shape {frame.shape}")
    image = frame.copy()
    if not mask.any():
        return image
    width = max(1, round(max(mask.shape) / 200))
    # Only the mask's bounding box is drawn, with a margin that is wider than the reach of the blur below.
    rows, columns = (
        slice(max(0, inside[0] - 4 * width), inside[-1] + 4 * width + 1)
        for inside in (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    )
    mask = mask[rows, columns]
    # Blurred with standard deviation w, a straight edge is at .84 of its height w pixels inside and at .16 outside.
    blurred = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(width)))
    contour, outline = mask & (blurred < 0.84 * 255), ~mask & (blurred > 0.16 * 255)
    box = Image.fromarray(image[rows, columns])
    fill_and_contour = mask * np.uint8(filled * _FILL_OPACITY) | contour * np.uint8(_CONTOUR_OPACITY)
    box.paste(color, mask=Image.fromarray(fill_and_contour))
    box.paste((0, 0, 0), mask=Image.fromarray(outline * np.uint8(_OUTLINE_OPACITY)))
    image[rows, columns] = np.asarray(box)
    return image


def frame_difference(frame: np.ndarray, earlier_frame: np.ndarray) -> np.ndarray:
    """The temporal stream's input, abs(normalized frame - normalized earlier frame), scaled for viewing.

    The 99.5th percentile is shown as white if it is at least one standard deviation of ImageNet; otherwise one standard
    deviation is, so that a static scene stays dark.

    Args:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB.

    Returns:
      (h, w, 3) uint8.
    """
    difference = np.abs(frame.astype(np.float32) - earlier_frame) / 255 / _CHANNEL_STD
    return (255 * np.clip(difference / max(1.0, np.percentile(difference, 99.5)), 0, 1)).round().astype(np.uint8)
